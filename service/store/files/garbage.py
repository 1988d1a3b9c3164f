"""Garbage collection: removes the files that no row of the database names.

A file is put before the row that names it is written, so a file without a row may be one whose row is about to come.
Only files that were put longer ago than a grace period go, and none that a job may have put which still runs. A file
that is put again meanwhile counts as new, and stays. So do files of an interrupted submission, or of a worker that
died, until then.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import islice
from typing import TypeVar

from sqlalchemy import ColumnElement, Engine, func, or_, select, update
from sqlalchemy.orm import InstrumentedAttribute, Session

from service.storage.port import Entry
from service.store.artifacts import ArtifactStore
from service.store.audit_tables import AuditRow, AuditRunRow
from service.store.files.checkpoints import CheckpointStore
from service.store.hosts.clock import Clock
from service.store.statuses import Status
from service.store.tables import ArtifactRow, Document, FileRow, JobRow, StoreRow
from service.store.transactions import Transactions

GRACE = timedelta(days=1)
"""A file that was put later than this ago stays, whether or not a row names it."""
RENEWED = timedelta(hours=1)
"""A file that is put again within this time of the last put may keep the earlier time."""
_BATCH = 500
Item = TypeVar("Item")
_UPLOADS = ("calibration", "labelled")


@dataclass(frozen=True)
class Collected:
    """What one collection removed."""

    files: int
    size: int
    """Bytes of these files."""
    checkpoints: int
    """Ended jobs whose checkpoints were removed."""


class Garbage(Transactions):
    """The files of the artifact store that nothing needs."""

    def __init__(self, engine: Engine, artifacts: ArtifactStore, clock: Clock | None = None) -> None:
        super().__init__(engine, clock)
        self._artifacts = artifacts

    def take_turn(self, interval: timedelta) -> bool:
        """Return whether the caller is the one of all schedulers that is to collect now, once in an interval."""
        with self._write() as session:
            now = self._clock()
            due = or_(StoreRow.collected_at.is_(None), StoreRow.collected_at <= now - interval)
            taken = session.execute(update(StoreRow).where(due).values(collected_at=now).returning(StoreRow.number))
            return taken.first() is not None

    def collect(self, grace: timedelta = GRACE) -> Collected:
        """Remove what nothing needs. Raises StoreFailed, also where the store is another one than at the start."""
        self._artifacts.check()
        than = self._latest(grace)
        uploads = self._uploads()
        files = size = 0
        for batch in _batches(entry for entry in self._artifacts.entries() if entry.modified < than):
            for entry in self._unnamed(batch, uploads):
                if self._artifacts.delete_older(entry.key, than):
                    files, size = files + 1, size + entry.size
        self._artifacts.storage.delete_unfinished(than)
        return Collected(files, size, self._remove_checkpoints(than))

    def _latest(self, grace: timedelta) -> datetime:
        """Return the time before which a file must have been put to be removed."""
        with self._read() as session:
            started = session.scalar(select(func.min(JobRow.started_at)).where(JobRow.status == Status.running))
        than = self._clock() - grace
        return than if started is None else min(than, started - RENEWED)

    def _uploads(self) -> set[str]:
        """Return the SHA-256 of the files that were uploaded or that requests brought.

        In this order: a row that takes over a file from another is written before that other may be deleted, so one of
        the two is seen.
        """
        with self._read() as session:
            # Some that expired just now may be named by a request that has not made its job yet.
            expired = self._clock() - GRACE
            kept = session.scalars(select(FileRow.sha256).where(FileRow.expires_at > expired).distinct()).all()
            return set(kept) | {
                sha256
                for column in (AuditRow.definition, AuditRunRow.definition, JobRow.request)
                for name in _UPLOADS
                for sha256 in _hashes(session, column, name)
            }

    def _unnamed(self, entries: list[Entry], uploads: set[str]) -> Iterator[Entry]:
        with self._read() as session:
            listed = [entry.key for entry in entries]
            named = set(session.scalars(select(ArtifactRow.sha256).where(ArtifactRow.sha256.in_(listed)).distinct()))
        return (entry for entry in entries if entry.key not in named and entry.key not in uploads)

    def _remove_checkpoints(self, than: datetime) -> int:
        store = CheckpointStore(self._artifacts.storage)
        jobs = store.jobs(than)
        with self._read() as session:
            unended = JobRow.status.in_((Status.queued, Status.running))
            kept = {job for batch in _batches(jobs) for job in _present(session, batch, unended)}
        for job_id in jobs - kept:
            store.remove(job_id)
        return len(jobs - kept)


def _hashes(
    session: Session, column: InstrumentedAttribute[Document] | InstrumentedAttribute[Document | None], name: str
) -> Iterable[str]:
    sha256 = column[name]["sha256"].as_string()
    return session.scalars(select(sha256).where(sha256.is_not(None)).distinct())


def _present(session: Session, job_ids: list[str], condition: ColumnElement[bool]) -> Iterable[str]:
    return session.scalars(select(JobRow.id).where(JobRow.id.in_(job_ids), condition))


def _batches(items: Iterable[Item]) -> Iterator[list[Item]]:
    remaining = iter(items)
    while batch := list(islice(remaining, _BATCH)):
        yield batch
