"""Files in a directory, on this machine or on a file system that several share.

A file is written beside its place, forced to the disk, and renamed; then the directory is forced to the disk, so that
a power cut cannot take back what a database row already names.
"""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

from service.errors import StoreFailed
from service.storage.port import Entry, check_digest, digest_of

_INCOMING = ".incoming-"
_DOOMED = ".removed-"


class DirectoryStorage:
    """A directory; safe to use from several threads and processes."""

    def __init__(self, root: Path) -> None:
        self._root = root

    @property
    def url(self) -> str:
        """`file:///DIRECTORY`."""
        return self._root.absolute().as_uri()

    def check(self) -> None:
        """Look at the directory's permissions."""
        if not os.access(self._root, os.R_OK | os.W_OK | os.X_OK):
            raise StoreFailed(
                f"{self.url} is not a directory that this user can read and write; check that it is there"
            )

    def put(self, content: Path | bytes, key_of: Callable[[str], str]) -> tuple[str, int]:
        """Keep content; nothing of it is left when this fails."""
        with BytesIO(content) if isinstance(content, bytes) else content.open("rb") as source:
            return self._keep(source, key_of)

    def path(self, key: str, sha256: str) -> Path:  # noqa: ARG002
        """Return where the file lies."""
        place = self._place(key)
        if not place.is_file():
            raise FileNotFoundError(key)
        return place

    def copy(self, key: str, sha256: str, target: Path) -> None:
        """Copy a file."""
        with self._place(key).open("rb") as source, target.open("xb") as sink:
            actual, _ = digest_of(source, sink.write)
        check_digest(self.url, key, sha256, actual)

    def read(self, key: str) -> bytes:
        """Return the content of a file."""
        return self._place(key).read_bytes()

    def write(self, key: str, content: bytes) -> None:
        """Keep a file in place of the one before."""
        self._keep(BytesIO(content), lambda _: key, replace=True)

    def delete(self, key: str) -> None:
        """Remove a file, and the directory that it leaves empty."""
        place = self._place(key)
        place.unlink(missing_ok=True)
        with suppress(OSError):  # other files are there, or another process has removed it
            if place.parent != self._root:
                place.parent.rmdir()

    def entries(self, prefix: str = "") -> Iterator[Entry]:
        """Yield the files below a directory; those that are being written are not among them."""
        top = self._root / prefix
        for directory, below, names in os.walk(top):
            below[:] = [name for name in below if not name.startswith(".")]
            for name in names:
                path = Path(directory, name)
                if name.startswith((_INCOMING, _DOOMED)):
                    continue
                with suppress(FileNotFoundError):
                    facts = path.stat()
                    modified = datetime.fromtimestamp(facts.st_mtime, UTC)
                    yield Entry(path.relative_to(self._root).as_posix(), facts.st_size, modified)

    def delete_older(self, key: str, than: datetime) -> bool:
        """Remove a file that nobody has put again.

        It is renamed before its time is read: a put that comes later finds nothing, and writes it again.
        """
        place, doomed = self._place(key), self._root / f"{_DOOMED}{uuid4().hex}"
        try:
            place.rename(doomed)
        except FileNotFoundError:
            return False
        if doomed.stat().st_mtime >= than.timestamp():
            doomed.replace(place)
            return False
        doomed.unlink(missing_ok=True)
        return True

    def delete_unfinished(self, than: datetime) -> None:
        """Remove files that were being written or removed when their process died."""
        for prefix in (_INCOMING, _DOOMED):
            for path in self._root.glob(f"{prefix}*"):
                with suppress(FileNotFoundError):
                    if path.stat().st_mtime < than.timestamp():
                        path.unlink()

    def signed(self, key: str, seconds: int) -> str | None:  # noqa: ARG002
        """Return None: a directory has no addresses."""
        return None

    def _place(self, key: str) -> Path:
        return self._root / key

    def _keep(self, source: BinaryIO, key_of: Callable[[str], str], *, replace: bool = False) -> tuple[str, int]:
        self._root.mkdir(parents=True, exist_ok=True)
        number, name = tempfile.mkstemp(dir=self._root, prefix=_INCOMING)
        incoming = Path(name)
        try:
            with os.fdopen(number, "wb") as target:
                sha256, size = digest_of(source, target.write)
                target.flush()
                os.fsync(target.fileno())
            self._settle(incoming, self._place(key_of(sha256)), replace=replace)
        except BaseException:
            with suppress(OSError):
                incoming.unlink()
            raise
        return sha256, size

    def _settle(self, incoming: Path, place: Path, *, replace: bool) -> None:
        if not replace and _renewed(place):
            incoming.unlink()
            return
        missing = [place.parent, *place.parent.parents]
        for parent in reversed(missing[: missing.index(self._root)]):
            if not parent.is_dir():
                parent.mkdir(exist_ok=True)
                _sync_directory(parent.parent)
        incoming.replace(place)
        _sync_directory(place.parent)


def _renewed(place: Path) -> bool:
    """Let a file count as put now; False where there is none."""
    try:
        os.utime(place)
    except FileNotFoundError:
        return False
    return True


def _sync_directory(directory: Path) -> None:
    number = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
