"""The scheduler's side of the store: which messages are owed to the broker, and which jobs lost their worker."""

from collections.abc import Collection
from datetime import timedelta

from sqlalchemy import ColumnElement, Select, and_, func, select, update

from service.contracts.progress import Failed
from service.contracts.request import SIZE_CLASSES, SizeClass
from service.store.job_records import Dispatch
from service.store.statuses import Status
from service.store.tables import DispatchRow, JobRow
from service.store.transactions import Transactions, end_failed, requeue

WORKER_LOST = "worker-lost"


class Dispatches(Transactions):
    """Messages that are owed, and leases that ran out."""

    def unsent_dispatches(self, limit: int = 1000) -> list[Dispatch]:
        """Return the dispatches of queued jobs that never went to the broker, oldest first."""
        with self._read() as session:
            rows = session.execute(_waiting(DispatchRow.sent_at.is_(None)).limit(limit))
            return [Dispatch(*row) for row in rows]

    def expected_messages(self) -> dict[SizeClass, int]:
        """Return how many messages the broker must hold if none was lost: one for every queued job that was sent.

        By the class of the jobs; a class without any is left out.
        """
        with self._read() as session:
            sent = _waiting(DispatchRow.sent_at.is_not(None)).order_by(None).subquery()
            rows = session.execute(select(sent.c.size, func.count()).group_by(sent.c.size))
            return {size: count for size, count in rows}  # noqa: C416 - rows are not pairs to the type checker

    def unanswered_dispatches(
        self, seconds: float, sizes: Collection[SizeClass] = SIZE_CLASSES, limit: int = 1000
    ) -> list[Dispatch]:
        """Return those of queued jobs that went to the broker more than `seconds` ago, the longest ago first.

        Of jobs of the classes in `sizes` alone.

        Their messages wait for a worker, or are lost. One that is sent again goes to the end of this order, so every
        message has its turn before any is sent a third time.
        """
        with self._read() as session:
            before = self._clock() - timedelta(seconds=seconds)
            sent = _waiting(and_(DispatchRow.sent_at < before, JobRow.size.in_(sizes))).order_by(None)
            rows = session.execute(sent.order_by(DispatchRow.sent_at, DispatchRow.job_id).limit(limit))
            return [Dispatch(*row) for row in rows]

    def mark_sent(self, job_id: str, number: int) -> None:
        """Note that a dispatch went to the broker now. Unknown ones are ignored: their job has moved on."""
        with self._write() as session:
            session.execute(
                update(DispatchRow)
                .where(DispatchRow.job_id == job_id, DispatchRow.number == number)
                .values(sent_at=self._clock())
            )

    def mark_unsent(self, job_id: str, number: int) -> None:
        """Note that a dispatch did not get to the broker."""
        with self._write() as session:
            session.execute(
                update(DispatchRow)
                .where(DispatchRow.job_id == job_id, DispatchRow.number == number)
                .values(sent_at=None)
            )

    def requeue_expired(self, max_attempts: int) -> list[str]:
        """Take running jobs from workers whose lease ran out; return their ids.

        They go back to the queue; one that lost its worker `max_attempts` times fails with the code `worker-lost`;
        one that was to be cancelled ends cancelled. Retrying by hand restarts the count, and an attempt that a
        stopping worker gave back does not count.
        """
        requeued = []
        with self._write() as session:
            now = self._clock()
            expired = session.scalars(
                select(JobRow)
                .where(JobRow.status == Status.running, JobRow.lease_expires_at < now)
                .order_by(JobRow.owner, JobRow.lease_expires_at)  # as `owners.shares` asks
                .with_for_update(skip_locked=True)
            )
            for row in expired:
                row.losses += 1
                if row.losses < max_attempts or row.cancel_requested:
                    requeue(session, row, now, WORKER_LOST)
                else:
                    failed = Failed(
                        code=WORKER_LOST,
                        message=f"the worker was lost {row.losses} times, the last one: {row.worker}",
                        bad_input=False,
                    )
                    end_failed(session, row, failed, now)
                requeued.append(row.id)
        return requeued


def _waiting(condition: ColumnElement[bool]) -> Select[str, int, SizeClass]:
    current = and_(DispatchRow.job_id == JobRow.id, DispatchRow.number == JobRow.dispatch)
    return (
        select(DispatchRow.job_id, DispatchRow.number, JobRow.size)
        .join(JobRow, current)
        .where(JobRow.status == Status.queued, condition)
        .order_by(JobRow.queued_at, JobRow.id)
    )
