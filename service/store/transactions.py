"""Transactions of the stores, and the one function that changes a job's status.

`move` is the only code that assigns a status. It checks the table of transitions and writes the event, so that a
job's events tell its whole story.
"""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import Any, Self

from sqlalchemy import Engine
from sqlalchemy.orm import Session

from service.contracts.audits.resolution import Terms
from service.contracts.progress import Failed
from service.contracts.request import JobRequest
from service.errors import Gone, NotFound, TransitionNotAllowed
from service.store.database import single, turn_to_write, writer
from service.store.hosts.clock import Clock, clock_of
from service.store.job_records import new_id
from service.store.owners.access import EVERYTHING, Access
from service.store.owners.shares import serve
from service.store.owners.visibility import OwnedSession
from service.store.statuses import TRANSITIONS, Status
from service.store.tables import DeletedJobRow, DispatchRow, EventRow, JobRow


class Transactions:
    """Short transactions on one database, what is seen in them, and the clock by which their times are set."""

    def __init__(self, engine: Engine, clock: Clock | None = None) -> None:
        """`clock` replaces the database's in tests."""
        self._reader = engine
        self._single = single(engine)
        self._writer = writer(engine)
        self._turn = turn_to_write(engine)
        self._clock = clock or clock_of(engine)
        self._access = EVERYTHING

    def seen_by(self, access: Access) -> Self:
        """Return this store as a caller sees it, without what others own; what is made is the caller's."""
        seen = copy.copy(self)
        seen._access = access
        return seen

    @property
    def owner(self) -> str:
        """Whose what is made through this store is."""
        return self._access.owner

    def now(self) -> datetime:
        """Return the present time by the clock of the database."""
        return self._clock()

    @contextmanager
    def _read(self) -> Iterator[Session]:
        with OwnedSession(self._reader, self._access) as session, session.begin():
            yield session

    @contextmanager
    def _read_once(self) -> Iterator[Session]:
        """Like `_read`, for one statement: two of them may see the database at different times."""
        with OwnedSession(self._single, self._access) as session, session.begin():
            yield session

    @contextmanager
    def _write(self) -> Iterator[Session]:
        with self._turn, OwnedSession(self._writer, self._access) as session, session.begin():
            yield session


def locked(session: Session, job_id: str) -> JobRow:
    """Return a job's row, held until the transaction ends. Raises NotFound, and Gone for a deleted job."""
    row = session.get(JobRow, job_id, with_for_update=True)
    if row is None:
        raise missing(session, job_id)
    return row


def missing(session: Session, job_id: str) -> NotFound:
    """Return the error for an id without a job."""
    deleted = session.get(DeletedJobRow, job_id)
    if deleted is not None:
        return Gone(f"job: {job_id} was deleted, with its report, at {deleted.deleted_at:%Y-%m-%d %H:%M:%S} UTC")
    return NotFound(f"job: {job_id!r} is not the id of a job; `headroom jobs list` lists them")


def insert_job(
    session: Session,
    request: JobRequest,
    now: datetime,
    *,
    owner: str,
    idempotency_key: str | None = None,
    terms: Terms | None = None,
    sent: bool = False,
) -> JobRow:
    """Put a new job at the end of the queue: its row, its first event and the dispatch that is owed to the broker.

    With `sent` the caller sends the message as soon as the transaction is committed.
    """
    row = JobRow(
        id=new_id(now),
        owner=owner,
        request=request.model_dump(mode="json"),
        model=request.model,
        status=Status.queued,
        created_at=now,
        queued_at=now,
        dispatch=1,
        events=1,
        idempotency_key=None if idempotency_key is None else owned_key(owner, idempotency_key),
        terms=None if terms is None else terms.model_dump(mode="json"),
    )
    session.add(row)
    session.flush()
    session.add(EventRow(job_id=row.id, sequence=1, at=now, kind="queued", data={}))
    session.add(DispatchRow(job_id=row.id, number=1, created_at=now, sent_at=now if sent else None))
    return row


def owned_key(owner: str, idempotency_key: str) -> str:
    """Return how an idempotency key of an owner is kept; neither of the two has a line break."""
    return f"{owner}\n{idempotency_key}" if owner else idempotency_key


def record(session: Session, row: JobRow, kind: str, data: Mapping[str, Any], at: datetime) -> None:
    """Write a job's next event. The row must be locked."""
    row.events += 1
    session.add(EventRow(job_id=row.id, sequence=row.events, at=at, kind=kind, data=dict(data)))


def move(
    session: Session, row: JobRow, to: Status, kind: str, at: datetime, data: Mapping[str, Any] | None = None
) -> None:
    """Change a job's status and write the event `kind`. The row must be locked.

    Raises TransitionNotAllowed when the table of transitions has no such step.
    """
    if to not in TRANSITIONS[row.status]:
        allowed = ", ".join(sorted(TRANSITIONS[row.status])) or "nothing"
        raise TransitionNotAllowed(f"job {row.id} is {row.status} and cannot become {to}; allowed: {allowed}")
    if row.status is Status.running and row.started_at is not None:
        serve(session, row.owner, (at - row.started_at).total_seconds())
    row.status = to
    if to is not Status.running:
        row.worker = row.lease_expires_at = None
    if to in (Status.succeeded, Status.failed, Status.cancelled):
        row.finished_at = at
    record(session, row, kind, data or {}, at)


def enqueue(session: Session, row: JobRow, at: datetime) -> None:
    """Put a job at the end of the queue: a new dispatch, which makes every earlier message void."""
    row.dispatch += 1
    row.queued_at = at
    session.add(DispatchRow(job_id=row.id, number=row.dispatch, created_at=at))


def end_cancelled(session: Session, row: JobRow, at: datetime) -> None:
    """End a job that somebody asked to stop."""
    move(session, row, Status.cancelled, "cancelled", at)


def end_failed(session: Session, row: JobRow, failed: Failed, at: datetime) -> None:
    """End a job without a report, for the reason given."""
    row.error = failed.model_dump(mode="json")
    data = failed.model_dump(mode="json", exclude={"kind"}, exclude_none=True)
    move(session, row, Status.failed, "failed", at, data)


def requeue(session: Session, row: JobRow, at: datetime, reason: str) -> None:
    """Give a running job back to the queue, or end it if a cancellation was asked for."""
    if row.cancel_requested:
        end_cancelled(session, row, at)
        return
    row.progress = None
    move(session, row, Status.queued, "requeued", at, {"reason": reason})
    enqueue(session, row, at)
