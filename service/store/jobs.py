"""The job store: the one writer of a job's status.

A job is a row before it is a message. Submitting writes the row, its first event and the dispatch that is owed to
the broker in one transaction; nothing is sent before that is committed (`service.submission`, `service.scheduler`).
The worker's side is in `leases`, the scheduler's in `dispatches`; this module has what the API calls.
"""

import logging
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

from sqlalchemy import Select, bindparam, case, func, select, tuple_, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, aliased

from service.contracts.audits.resolution import Terms
from service.contracts.request import JobRequest
from service.errors import Gone, IdempotencyKeyReused, InvalidRequest, JobUnreadable, NotFound, TransitionNotAllowed
from service.store.dispatches import Dispatches
from service.store.job_records import Artifact, Claim, Dispatch, Event, Job, Page, artifact_of, event_of, job_of
from service.store.leases import Leases
from service.store.owners.usage import Usage
from service.store.owners.visibility import access_in
from service.store.statuses import Status
from service.store.tables import ArtifactRow, DeletedJobRow, EventRow, JobRow
from service.store.transactions import end_cancelled, enqueue, insert_job, locked, missing, move, owned_key, record

log = logging.getLogger(__name__)

__all__ = ["Artifact", "Claim", "Dispatch", "Event", "Job", "JobStore", "Page"]

MAX_PAGE_SIZE = 1000
MOST_AHEAD = 1000
"""A job's position in the queue is counted up to here."""


class JobStore(Leases, Dispatches, Usage):
    """Jobs, their events and their artifacts in one database; safe to use from several threads and processes."""

    def submit(
        self,
        request: JobRequest,
        *,
        idempotency_key: str | None = None,
        terms: Terms | None = None,
        needs_report: bool = False,
        sent: bool = False,
    ) -> Job:
        """Put a job of the caller into the queue; `terms` say how the worker finds its model where it is an audit's.

        The same key with the same request gives the job that the first call made, whatever has become of it; with
        another request it raises IdempotencyKeyReused, and Gone where that job was deleted. With `needs_report`, a
        job that was deleted or whose report has expired is made again instead.

        With `sent`, a new job's message counts as sent: the caller sends it at once, and calls `mark_unsent` where that
        fails. If neither happens, the scheduler notices after a while that the broker lacks a message.
        """
        try:
            with self._write() as session:
                if needs_report and idempotency_key is not None:
                    _free_key(session, idempotency_key)
                if idempotency_key is not None and (row := _by_key(session, idempotency_key)):
                    return _same(session, row, request, idempotency_key)
                self._check_queue(session)
                row = insert_job(
                    session,
                    request,
                    self._clock(),
                    owner=self.owner,
                    idempotency_key=idempotency_key,
                    terms=terms,
                    sent=sent,
                )
                return _job(session, row)
        except IntegrityError:  # another call brought the same key in the same moment
            if idempotency_key is None or (made := self._made(request, idempotency_key)) is None:
                raise
            return made

    def _made(self, request: JobRequest, idempotency_key: str) -> Job | None:
        """Return the job that another call with the same key has made; None where there is none."""
        with self._read() as session:
            row = _by_key(session, idempotency_key)
            return None if row is None else _same(session, row, request, idempotency_key)

    def get(self, job_id: str) -> Job:
        """Return a job. Raises NotFound, and JobUnreadable."""
        with self._read_once() as session:
            row = session.execute(_by_id(MOST_AHEAD), {"id": job_id}).one_or_none()
            if row is None:
                raise missing(session, job_id)
            return job_of(*row)

    def list(
        self,
        *,
        status: Status | None = None,
        model: str | None = None,
        page_size: int = 50,
        page_token: str | None = None,
        with_report: bool = False,
    ) -> Page:
        """Return up to `page_size` jobs (1 to 1000), newest first, after those of the page that gave `page_token`.

        Their positions in the queue are not counted. Jobs that this version cannot read are left out, and logged.

        Raises InvalidRequest for a page size or token that is not allowed.
        """
        if not 1 <= page_size <= MAX_PAGE_SIZE:
            raise InvalidRequest("page_size", page_size, f"1 to {MAX_PAGE_SIZE}")
        query = select(JobRow).order_by(JobRow.id.desc()).limit(page_size + 1)
        if page_token is not None:
            if len(page_token) != 32 or not page_token.isalnum():
                raise InvalidRequest("page_token", page_token, "a next_page_token of an earlier answer")
            query = query.where(JobRow.id < page_token)
        if status is not None:
            query = query.where(JobRow.status == status)
        if with_report:
            query = query.where(JobRow.status == Status.succeeded, JobRow.report_expired_at.is_(None))
        if model is not None:
            query = query.where(JobRow.model == model)
        with self._read() as session:
            rows = session.scalars(query).all()
            more = len(rows) > page_size
            return Page(_readable(rows[:page_size]), rows[page_size - 1].id if more else None)

    def status(self, job_id: str) -> Status:
        """Return the status of a job. Raises NotFound."""
        with self._read_once() as session:
            status = session.scalar(select(JobRow.status).where(JobRow.id == job_id))
            return status or _existing(session, job_id).status

    def events(self, job_id: str, after: int = 0, limit: int = 1000) -> Sequence[Event]:
        """Return up to `limit` events of a job with a sequence number over `after`, in order. Raises NotFound."""
        with self._read() as session:
            _existing(session, job_id)
            query = select(EventRow).where(EventRow.job_id == job_id, EventRow.sequence > after)
            return [event_of(row) for row in session.scalars(query.order_by(EventRow.sequence).limit(limit))]

    def cancel(self, job_id: str) -> Job:
        """Stop a job: a queued one at once, a running one as soon as its worker hears of it.

        Raises NotFound, and TransitionNotAllowed when the job has ended.
        """
        with self._write() as session:
            row = locked(session, job_id)
            now = self._clock()
            if row.status is not Status.running:
                end_cancelled(session, row, now)
            elif not row.cancel_requested:
                row.cancel_requested = True
                record(session, row, "cancel_requested", {}, now)
            session.flush()
            return _job(session, row)

    def retry(self, job_id: str) -> Job:
        """Put a failed or cancelled job into the queue again, with the same request.

        Raises NotFound, and TransitionNotAllowed when the job is in any other status.
        """
        with self._write() as session:
            row = locked(session, job_id)
            if row.status is Status.running:  # only its worker, or the loss of its worker, may give it back
                raise TransitionNotAllowed(f"job {job_id} is running and cannot be retried; cancel it first")
            self._check_queue(session)
            now = self._clock()
            move(session, row, Status.queued, "requeued", now, {"reason": "retried"})
            row.error = row.progress = row.started_at = row.finished_at = None
            row.cancel_requested = False
            row.losses = 0
            enqueue(session, row, now)
            session.flush()
            return _job(session, row)

    def artifact(self, job_id: str, name: str) -> Artifact:
        """Return one file of a report. Raises NotFound, and Gone where the report is no more."""
        with self._read_once() as session:
            row = session.get(ArtifactRow, (job_id, name))
            if row is None:
                raise _no_file(_existing(session, job_id), name)
            return artifact_of(row)

    def artifacts(self, job_id: str) -> Sequence[Artifact]:
        """Return the files of a report by name; none until the job has succeeded. Raises NotFound."""
        with self._read() as session:
            _existing(session, job_id)
            query = select(ArtifactRow).where(ArtifactRow.job_id == job_id).order_by(ArtifactRow.name)
            return [artifact_of(row) for row in session.scalars(query)]

    def named(self, name: str, job_ids: Iterable[str]) -> dict[str, str]:
        """Return the SHA-256 of the file `name` of each job that has one, by the jobs' ids."""
        with self._read() as session:
            query = select(ArtifactRow).where(ArtifactRow.job_id.in_(list(job_ids)), ArtifactRow.name == name)
            return {row.job_id: row.sha256 for row in session.scalars(query)}

    def keyed(self, idempotency_keys: Iterable[str]) -> dict[str, Job]:
        """Return the jobs that the caller submitted with these keys, by the keys."""
        kept = {owned_key(self.owner, key): key for key in idempotency_keys}
        with self._read() as session:
            found = session.scalars(select(JobRow).where(JobRow.idempotency_key.in_(list(kept)))).all()
            keys = {row.id: kept[str(row.idempotency_key)] for row in found}
            return {keys[job.id]: job for job in _readable(found)}

    def counts(self) -> dict[Status, int]:
        """Return the number of jobs in every status."""
        with self._read() as session:
            rows = session.execute(select(JobRow.status, func.count()).group_by(JobRow.status))
            counted = {status: count for status, count in rows}  # noqa: C416 - rows are not pairs to the type checker
        return {status: counted.get(status, 0) for status in Status}


def _existing(session: Session, job_id: str) -> JobRow:
    row = session.get(JobRow, job_id)
    if row is None:
        raise missing(session, job_id)
    return row


def _no_file(row: JobRow, name: str) -> NotFound:
    if row.report_expired_at is not None:
        return Gone(f"report: that of job {row.id} expired at {row.report_expired_at:%Y-%m-%d %H:%M:%S} UTC")
    return NotFound(f"job {row.id!r} has no file {name!r}")


def _by_key(session: Session, key: str) -> JobRow | None:
    """Return the job that the caller submitted with a key. Raises Gone where it was deleted."""
    kept = owned_key(access_in(session).owner, key)
    row = session.scalars(select(JobRow).where(JobRow.idempotency_key == kept)).one_or_none()
    deleted = (
        None
        if row
        else session.scalars(select(DeletedJobRow).where(DeletedJobRow.idempotency_key == kept)).one_or_none()
    )
    if deleted is not None:
        when = f"{deleted.deleted_at:%Y-%m-%d %H:%M:%S} UTC"
        raise Gone(f"Idempotency-Key: {key!r} was used for job {deleted.id}, deleted at {when}; allowed: a new key")
    return row


def _free_key(session: Session, key: str) -> None:
    """Let a key of the caller stand for no job whose report is gone."""
    kept = owned_key(access_in(session).owner, key)
    expired = (JobRow.idempotency_key == kept, JobRow.report_expired_at.is_not(None))
    session.execute(update(JobRow).where(*expired).values(idempotency_key=None))
    session.execute(update(DeletedJobRow).where(DeletedJobRow.idempotency_key == kept).values(idempotency_key=None))


def _same(session: Session, row: JobRow, request: JobRequest, key: str) -> Job:
    job = _job(session, row)
    if job.request != request:
        raise IdempotencyKeyReused(
            f"Idempotency-Key: {key!r} was used for job {row.id} with a different request; "
            "allowed: a new key, or the same request again"
        )
    return job


def _readable(rows: Iterable[JobRow]) -> list[Job]:
    """Return the records of the rows that can be read."""
    jobs = []
    for row in rows:
        try:
            jobs.append(job_of(row, None))
        except JobUnreadable as error:
            _log_once(str(error))
    return jobs


@lru_cache(maxsize=1000)
def _log_once(message: str) -> None:
    log.error("left out of lists: %s", message)


def _job(session: Session, row: JobRow) -> Job:
    """Return the record of a row; of a queued job with its position in the queue."""
    if row.status is not Status.queued:
        return job_of(row, None)
    session.flush()
    return job_of(*session.execute(_by_id(MOST_AHEAD), {"id": row.id}).one())


@lru_cache
def _by_id(most: int) -> Select[Any]:
    """Return the query for a job, by the parameter `id`, and its position in the queue.

    That is the number of queued jobs of its owner and size that are taken before it, up to `most`. They are read in
    order and with a limit, so that PostgreSQL reads the index of the queue, and no more of it than this.
    """
    other = aliased(JobRow)
    before = tuple_(other.queued_at, other.id) < tuple_(JobRow.queued_at, JobRow.id)
    queue = (other.status == Status.queued, other.owner == JobRow.owner, other.size == JobRow.size)
    ahead = select(other.id).where(*queue, before).order_by(other.queued_at, other.id).limit(most)
    count = select(func.count()).select_from(ahead.correlate(JobRow).subquery()).scalar_subquery()
    position = case((JobRow.status == Status.queued, count))
    return select(JobRow, position).where(JobRow.id == bindparam("id"))
