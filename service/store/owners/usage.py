"""Sums up what an owner uses of the service: queued jobs and uploaded bytes; refuses what exceeds the limits."""

from datetime import UTC, datetime, time, timedelta

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from service.errors import LimitReached
from service.store.owners.shares import locked_owner
from service.store.owners.visibility import access_in
from service.store.statuses import Status
from service.store.tables import JobRow
from service.store.transactions import Transactions

_QUEUE_SECONDS = 30.0
"""When a full queue is worth another try."""


class Usage(Transactions):
    """What the caller uses, as long as the caller has limits."""

    def use_upload(self, size: int) -> None:
        """Count the bytes of an upload. Raises LimitReached when they are too many for today."""
        limits = self._access.limits
        if limits is None or size == 0:
            return
        with self._write() as session:
            row, now = locked_owner(session, self.owner), self._clock()
            today = now.astimezone(UTC).date()
            used = size + (row.upload_bytes if row.upload_day == today else 0)
            if used > limits.upload_bytes:
                tomorrow = datetime.combine(today + timedelta(days=1), time(), UTC)
                raise LimitReached(
                    f"uploads of a day: {used} bytes with this one; allowed: {limits.upload_bytes} "
                    "(HEADROOM_UPLOAD_BYTES_PER_DAY of the service, or the key's own limit)",
                    (tomorrow - now).total_seconds(),
                )
            row.upload_day, row.upload_bytes = today, used

    def _check_queue(self, session: Session) -> None:
        """Raise LimitReached when the caller has as many jobs in the queue as are allowed."""
        access = access_in(session)
        if access.limits is None:
            return
        locked_owner(session, access.owner)  # two submissions at a time see each other
        queued = select(func.count()).where(JobRow.status == Status.queued, JobRow.owner == access.owner)
        if (session.scalar(queued) or 0) >= access.limits.queued_jobs:
            raise LimitReached(
                f"queued jobs: {access.limits.queued_jobs} of {access.owner!r} wait already; allowed: as many "
                "(HEADROOM_QUEUED_JOBS of the service, or the key's own limit)",
                _QUEUE_SECONDS,
            )
