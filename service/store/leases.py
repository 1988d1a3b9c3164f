"""The worker's side of the store: jobs held under a lease, with a fencing number.

A worker that claims a job gets the job's next fencing number. Every write it makes names that number and happens
only while the job is running under it; otherwise LeaseLost is raised and nothing is written. So a worker that was
thought dead, lost its job to another and wakes up again can do no harm.

Leases are set and compared by the clock of the database, so the clocks of the machines need not agree.
"""

from collections.abc import Iterable, Sequence
from datetime import timedelta

from pydantic import ValidationError
from sqlalchemy import select
from sqlalchemy.orm import Session

from service.contracts.audits.resolution import Resolution, Terms
from service.contracts.progress import Failed, Progress
from service.contracts.request import JobRequest, SizeClass
from service.contracts.warnings import Warning
from service.errors import LeaseLost
from service.store.job_records import Artifact, Claim, first_problem
from service.store.owners.shares import begin, next_job
from service.store.statuses import Status
from service.store.tables import ArtifactRow, JobRow
from service.store.transactions import Transactions, end_cancelled, end_failed, move, record, requeue

UNCHANGED = "unchanged"
"""Why a job is cancelled that would measure what was measured before."""
LARGE_MODEL = "large-model"
"""Why a job is queued again that a worker for small ones took."""


class Leases(Transactions):
    """Claim a job, keep it, and end it."""

    def next_claim(
        self, worker: str, lease_seconds: float, sizes: Sequence[SizeClass], *, most_running: int | None = None
    ) -> Claim | None:
        """Take the job whose turn it is for `lease_seconds`; None where there is none to take.

        Args:
            worker: What the job calls the worker.
            lease_seconds: How long the worker may go without renewing the claim.
            sizes: The classes of jobs that it takes.
            most_running: Running jobs of an owner at which the owner is passed over; None: nobody is.
        """
        while True:
            with self._read() as session:
                chosen = next_job(session, sizes, most_running)
            if chosen is None:
                return None
            claim = self.claim(chosen.job_id, chosen.number, worker, lease_seconds)
            if claim is not None:  # else another worker was faster
                return claim

    def job_waits(self, sizes: Sequence[SizeClass], *, most_running: int | None = None) -> bool:
        """Whether `next_claim` with these arguments would take a job."""
        with self._read() as session:
            return next_job(session, sizes, most_running) is not None

    def claim(self, job_id: str, dispatch: int, worker: str, lease_seconds: float) -> Claim | None:
        """Take a queued job for `lease_seconds`.

        Returns None when there is nothing to do: no such job, it is not queued, or `dispatch` is not its present
        one, as with a message that came twice or late. A job whose request this version cannot read fails, and None
        is returned: if it stayed in the queue, no other job would have its turn.
        """
        with self._write() as session:
            row = session.get(JobRow, job_id, with_for_update=True)
            if row is None or row.status is not Status.queued or row.dispatch != dispatch:
                return None
            now = self._clock()
            row.fence += 1
            row.attempts += 1
            row.worker = worker
            row.started_at = now
            row.progress = None
            row.lease_expires_at = now + timedelta(seconds=lease_seconds)
            begin(session, row.owner, now)
            move(session, row, Status.running, "started", now, {"attempt": row.attempts, "worker": worker})
            try:
                terms = None if row.terms is None else Terms.model_validate(row.terms)
                return Claim(row.id, row.fence, JobRequest.model_validate(row.request), row.attempts, terms)
            except ValidationError as error:
                end_failed(session, row, _unreadable(error), now)
                return None

    def renew(self, claim: Claim, lease_seconds: float) -> bool:
        """Hold the job for another `lease_seconds` from now; True when a cancellation was asked for.

        A lease that has run out but was taken by nobody is renewed too. Raises LeaseLost.
        """
        with self._write() as session:
            row = _held(session, claim)
            row.lease_expires_at = self._clock() + timedelta(seconds=lease_seconds)
            return row.cancel_requested

    def progress(self, claim: Claim, line: Progress | Warning) -> None:
        """Write an event, and for progress the job's latest. Raises LeaseLost."""
        with self._write() as session:
            row = _held(session, claim)
            data = line.model_dump(mode="json", exclude={"kind"})
            if isinstance(line, Progress):
                row.progress = line.model_dump(mode="json")
            record(session, row, line.kind, data, self._clock())

    def resolved(self, claim: Claim, resolution: Resolution) -> None:
        """Keep what the model was found to be. Raises LeaseLost."""
        with self._write() as session:
            row = _held(session, claim)
            row.resolution = resolution.model_dump(mode="json")
            record(session, row, "resolved", row.resolution, self._clock())

    def unchanged(self, claim: Claim) -> None:
        """End the job without a report, because it would measure what was measured before. Raises LeaseLost."""
        with self._write() as session:
            row = _held(session, claim)
            move(session, row, Status.cancelled, "cancelled", self._clock(), {"reason": UNCHANGED})

    def succeed(self, claim: Claim, artifacts: Iterable[Artifact]) -> None:
        """End the job with its report, in one transaction: every artifact's row and the status. Raises LeaseLost."""
        with self._write() as session:
            row = _held(session, claim)
            session.add_all(
                ArtifactRow(
                    job_id=row.id, name=item.name, sha256=item.sha256, size=item.size, media_type=item.media_type
                )
                for item in artifacts
            )
            now = self._clock()
            days = row.request.get("retention_days")
            row.expires_at = None if days is None else now + timedelta(days=days)
            move(session, row, Status.succeeded, "succeeded", now)

    def fail(self, claim: Claim, failed: Failed) -> None:
        """End the job without a report. Raises LeaseLost."""
        with self._write() as session:
            end_failed(session, _held(session, claim), failed, self._clock())

    def cancelled(self, claim: Claim) -> None:
        """End the job as was asked. Raises LeaseLost."""
        with self._write() as session:
            end_cancelled(session, _held(session, claim), self._clock())

    def open_jobs(self, job_ids: Iterable[str]) -> set[str]:
        """Return those of the ids whose jobs are queued or running."""
        with self._read() as session:
            present = (Status.queued, Status.running)
            query = select(JobRow.id).where(JobRow.id.in_(list(job_ids)), JobRow.status.in_(present))
            return set(session.scalars(query))

    def move_to_large(self, claim: Claim) -> None:
        """Give the job back to the queue, for a worker that takes large ones. Raises LeaseLost."""
        with self._write() as session:
            row = _held(session, claim)
            row.size = "large"
            requeue(session, row, self._clock(), LARGE_MODEL)

    def release(self, claim: Claim) -> None:
        """Give the job back to the queue, because this worker stops. Raises LeaseLost."""
        with self._write() as session:
            requeue(session, _held(session, claim), self._clock(), "worker-stopped")


def _unreadable(error: ValidationError) -> Failed:
    problem = first_problem(error)
    message = f"the request was stored by another version of the service: {problem}; submit it again"
    return Failed(code="bad-request", message=message, bad_input=True)


def _held(session: Session, claim: Claim) -> JobRow:
    row = session.scalars(
        select(JobRow)
        .where(JobRow.id == claim.job_id, JobRow.fence == claim.fence, JobRow.status == Status.running)
        .with_for_update()
    ).one_or_none()
    if row is None:
        raise LeaseLost(f"job {claim.job_id} is no longer held by claim {claim.fence}")
    return row
