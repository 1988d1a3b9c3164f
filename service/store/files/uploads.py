"""Uploaded files that jobs may name: calibration texts and labeled prompts too large for the body of a request.

A row keeps a file of the artifact store for its owner until it expires, and for a grace period more. A job that names
the file keeps its content by itself, so a job outlives the upload that it was made with.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import Engine, delete, func, select
from sqlalchemy.orm import Session

from service.contracts.files import StoredFile
from service.errors import InvalidRequest, NotFound, QuotaReached
from service.store.files.garbage import GRACE
from service.store.hosts.clock import Clock
from service.store.job_records import new_id
from service.store.owners.shares import locked_owner
from service.store.tables import FileRow
from service.store.transactions import Transactions

USE_SECONDS = 3600.0
"""A file that a request names stays for so long at least, until the request has made its job."""
MAX_PAGE_SIZE = 1000


@dataclass(frozen=True)
class UploadedFile:
    """One uploaded file."""

    id: str
    owner: str
    name: str
    sha256: str
    size: int
    """Bytes."""
    created_at: datetime
    expires_at: datetime

    @property
    def stored(self) -> StoredFile:
        """The file as a job's request has it."""
        return StoredFile(name=self.name, sha256=self.sha256, size=self.size)


@dataclass(frozen=True)
class FilePage:
    """Part of a list of files, newest first."""

    files: list[UploadedFile]
    next_page_token: str | None
    """Asks for the next part; None at the end."""


class UploadStore(Transactions):
    """The uploaded files that a caller sees: their own, or all those of an administrator."""

    def __init__(self, engine: Engine, *, quota_bytes: int, keep_seconds: float, clock: Clock | None = None) -> None:
        """Set what the files of one owner may have together, and how long a file is kept that no job names."""
        super().__init__(engine, clock)
        self._quota = quota_bytes
        self._kept = timedelta(seconds=keep_seconds)

    def check_room(self, owner: str, size: int) -> None:
        """Raise QuotaReached unless the owner may upload that many more bytes."""
        with self._read() as session:
            self._check_room(session, owner, size)

    def add(self, owner: str, file: StoredFile) -> UploadedFile:
        """Keep a file that lies in the artifact store; the same content under the same name is kept once.

        Raises QuotaReached.
        """
        now = self._clock()
        with self._write() as session:
            locked_owner(session, owner)  # two uploads at a time see each other
            session.execute(delete(FileRow).where(FileRow.expires_at <= now - GRACE))
            same = (FileRow.owner == owner, FileRow.sha256 == file.sha256, FileRow.name == file.name)
            row = session.scalar(select(FileRow).where(*same))
            if row is None or row.expires_at <= now:
                self._check_room(session, owner, file.size)
            if row is None:
                row = FileRow(id=new_id(now), owner=owner, **file.model_dump(), created_at=now)
                session.add(row)
            row.expires_at = now + self._kept
            return _file_of(row)

    def get(self, file_id: str) -> UploadedFile:
        """Return a file. Raises NotFound, also for one that has expired."""
        with self._read() as session:
            return _file_of(self._existing(session, file_id))

    def use(self, file_id: str) -> UploadedFile:
        """Return a file that a request names, and keep it until the request has made its job. Raises NotFound."""
        with self._write() as session:
            row = self._existing(session, file_id)
            row.expires_at = max(row.expires_at, self._clock() + timedelta(seconds=USE_SECONDS))
            return _file_of(row)

    def list(self, *, page_size: int = 50, page_token: str | None = None) -> FilePage:
        """Return up to `page_size` files (1 to 1000), newest first, after those of the page that gave `page_token`.

        Raises InvalidRequest for a page size or token that is not allowed.
        """
        if not 1 <= page_size <= MAX_PAGE_SIZE:
            raise InvalidRequest("page_size", page_size, f"1 to {MAX_PAGE_SIZE}")
        query = select(FileRow).where(FileRow.expires_at > self._clock())
        if page_token is not None:
            if len(page_token) != 32 or not page_token.isalnum():
                raise InvalidRequest("page_token", page_token, "a next_page_token of an earlier answer")
            query = query.where(FileRow.id < page_token)
        with self._read() as session:
            rows = session.scalars(query.order_by(FileRow.id.desc()).limit(page_size + 1)).all()
            return _page(rows, page_size)

    def delete(self, file_id: str) -> None:
        """Forget a file; jobs that were made with it keep its content. Raises NotFound."""
        with self._write() as session:
            session.delete(self._existing(session, file_id))

    def _existing(self, session: Session, file_id: str) -> FileRow:
        row = session.get(FileRow, file_id)
        if row is None or row.expires_at <= self._clock():
            raise NotFound(f"file: {file_id[:64]!r} is not the id of a file; GET /v1/files lists them")
        return row

    def _check_room(self, session: Session, owner: str, size: int) -> None:
        mine = (FileRow.owner == owner, FileRow.expires_at > self._clock())
        used = session.scalar(select(func.coalesce(func.sum(FileRow.size), 0)).where(*mine)) or 0
        if used + size > self._quota:
            raise QuotaReached(
                f"the file has {size} bytes, and your uploaded files have {used} together; allowed: {self._quota} "
                "bytes (HEADROOM_FILE_QUOTA_BYTES of the service); delete files with DELETE /v1/files/ID"
            )


def _page(rows: Sequence[FileRow], page_size: int) -> FilePage:
    files = [_file_of(row) for row in rows[:page_size]]
    return FilePage(files, files[-1].id if len(rows) > page_size else None)


def _file_of(row: FileRow) -> UploadedFile:
    return UploadedFile(row.id, row.owner, row.name, row.sha256, row.size, row.created_at, row.expires_at)
