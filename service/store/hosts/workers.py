"""Records which workers run, to warn of queued jobs that no worker takes.

Every worker writes its name and the classes of jobs that it takes, at its start and now and then. A class that has
jobs in the queue, and no worker that was seen lately, is not served: `/readyz` names it, and its jobs get a warning.
"""

import logging
import time
from collections.abc import Sequence
from datetime import datetime, timedelta
from threading import Thread

from sqlalchemy import delete, exists, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from service.contracts.request import SIZE_CLASSES, SizeClass
from service.contracts.warnings import Warning
from service.store.statuses import Status
from service.store.tables import EventRow, JobRow, WorkerRow
from service.store.transactions import Transactions, record

log = logging.getLogger(__name__)

WRITE_SECONDS = 30.0
"""Pause between two writes of a worker."""
GONE = timedelta(seconds=120)
"""A worker that was seen longer ago is gone."""
MIN_WAIT = timedelta(seconds=60)
"""Jobs that wait for less time get no warning: their worker may be about to start."""
FORGOTTEN = timedelta(days=1)
NO_WORKER = "no-worker"
"""Code of the warning."""
_BATCH = 200


class WorkerStore(Transactions):
    """The workers of all machines."""

    def write(self, name: str, sizes: Sequence[SizeClass]) -> None:
        """Record that a worker runs, and which classes of jobs it takes."""
        with self._write() as session:
            now = self._clock()
            session.execute(delete(WorkerRow).where(WorkerRow.seen_at < now - FORGOTTEN))
            session.merge(WorkerRow(name=name, sizes=list(sizes), seen_at=now))

    def keep(self, name: str, sizes: Sequence[SizeClass]) -> None:
        """Write now and then, from a thread, for as long as the process lives."""
        Thread(target=self._repeat, args=(name, sizes), name="presence of the worker", daemon=True).start()

    def _repeat(self, name: str, sizes: Sequence[SizeClass]) -> None:
        while True:
            try:
                self.write(name, sizes)
            except SQLAlchemyError as error:
                log.warning("the database does not know that this worker is there: %s", error)
            time.sleep(WRITE_SECONDS)

    def unserved(self) -> list[SizeClass]:
        """Return the classes that have had jobs in the queue for a while, and no worker."""
        with self._read() as session:
            return _unserved(session, self._clock())

    def warn(self) -> int:
        """Write a warning for jobs of those classes, once for each time they wait; return how many.

        The longest waiting come first; a call warns of 200 jobs of a class at most.
        """
        with self._write() as session:
            now = self._clock()
            return sum(_warn(session, size, now) for size in _unserved(session, now))


def _unserved(session: Session, now: datetime) -> list[SizeClass]:
    present = session.scalars(select(WorkerRow.sizes).where(WorkerRow.seen_at >= now - GONE))
    served = {size for sizes in present for size in sizes}
    waits = (JobRow.status == Status.queued, JobRow.queued_at < now - MIN_WAIT)
    return [
        size
        for size in SIZE_CLASSES
        if size not in served and session.scalar(select(exists().where(*waits, JobRow.size == size)))
    ]


def _warn(session: Session, size: SizeClass, now: datetime) -> int:
    said = exists().where(EventRow.job_id == JobRow.id, EventRow.kind == "warning", EventRow.at >= JobRow.queued_at)
    waiting = (JobRow.status == Status.queued, JobRow.size == size, JobRow.queued_at < now - MIN_WAIT, ~said)
    query = select(JobRow).where(*waiting).order_by(JobRow.queued_at).limit(_BATCH)
    rows = session.scalars(query.with_for_update(skip_locked=True)).all()
    warning = Warning(
        code=NO_WORKER,
        message=f"The job waits in the queue `{size}`, and no worker that takes such jobs was seen in the last "
        f"{GONE.seconds} seconds.",
        advice=f"Start a worker with HEADROOM_QUEUES={size}, or small,large.",
    )
    for row in rows:
        record(session, row, Warning.kind, warning.model_dump(mode="json"), now)
    return len(rows)
