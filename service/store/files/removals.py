"""Deletes jobs, and removes expired reports.

Only rows go here; the files that no other row names are removed by the next garbage collection. What an audit holds
models to stays. Runs, alerts and comparisons that name a deleted job keep what they say; asking for the job or its
report gives the time at which it went.
"""

from collections.abc import Callable
from datetime import datetime, timedelta

from sqlalchemy import Engine, Select, and_, delete, or_, select
from sqlalchemy.orm import Session

from service.errors import Conflict, TransitionNotAllowed
from service.store.hosts.clock import Clock
from service.store.statuses import Status
from service.store.tables import ArtifactRow, DeletedJobRow, JobRow
from service.store.transactions import Transactions, locked

BATCH = 20
"""Reports that one transaction looks at: no writer waits long for it."""

IsNeeded = Callable[[str, Session], bool]
"""Whether an audit needs a report, in the view of a transaction, as `AuditStore.report_is_baseline` answers."""


class Removals(Transactions):
    """Removal of jobs on request, and of reports by age; safe to use from several threads and processes."""

    def __init__(self, engine: Engine, is_needed: IsNeeded, clock: Clock | None = None) -> None:
        super().__init__(engine, clock)
        self._is_needed = is_needed

    def delete(self, job_id: str) -> None:
        """Remove a job with its report; the message of a queued one then has no effect.

        Raises NotFound, Gone for one that was deleted before, TransitionNotAllowed for one that runs, and Conflict for
        one that an audit needs.
        """
        with self._write() as session:
            row = locked(session, job_id)
            if row.status is Status.running:
                raise TransitionNotAllowed(f"job {job_id} is running and cannot be deleted; cancel it first")
            if self._is_needed(job_id, session):
                raise Conflict(
                    f"job {job_id} cannot be deleted: its report is an audit's baseline, or an open run needs it; "
                    "change the audit's baseline, or delete the audit first"
                )
            kept = {"id": job_id, "owner": row.owner, "idempotency_key": row.idempotency_key}
            session.add(DeletedJobRow(**kept, deleted_at=self._clock()))
            session.delete(row)

    def expire(self, default_days: int | None) -> int:
        """Remove the reports whose time has come, in small transactions; return how many.

        Args:
            default_days: Days that a report is kept whose job does not say so; None: forever.
        """
        expired, last = 0, ""
        while True:
            with self._write() as session:
                now = self._clock()
                rows = session.scalars(_due(now, default_days, last)).all()
                for row in rows:
                    if not self._is_needed(row.id, session):
                        session.execute(delete(ArtifactRow).where(ArtifactRow.job_id == row.id))
                        row.report_expired_at = now
                        expired += 1
                if len(rows) < BATCH:
                    return expired
                last = rows[-1].id


def _due(now: datetime, default_days: int | None, after: str) -> Select[JobRow]:
    """Return the query for the next jobs, by id, whose reports have been kept for long enough."""
    due = JobRow.expires_at <= now
    if default_days is not None:
        due = or_(due, and_(JobRow.expires_at.is_(None), JobRow.finished_at <= now - timedelta(days=default_days)))
    present = (JobRow.status == Status.succeeded, JobRow.report_expired_at.is_(None), JobRow.id > after)
    return select(JobRow).where(*present, due).order_by(JobRow.id).limit(BATCH).with_for_update(skip_locked=True)
