"""Files by their content: the name of a file in the store is the SHA-256 of what it holds.

A file appears whole or not at all: it is written beside its place, forced to the disk, and renamed; then the
directory is forced to the disk, so that a power cut cannot take back what a database row already names. Putting
the same content twice keeps one file.
"""

import hashlib
import os
import re
import tempfile
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from service.errors import NotFound, StoreFailed

_CHUNK = 1 << 20
_SHA256 = re.compile(r"[0-9a-f]{64}")


class ArtifactStore:
    """A directory of files by content; safe to use from several threads and processes."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def put(self, content: Path | bytes) -> tuple[str, int]:
        """Keep a file or some bytes; return the SHA-256 in hexadecimal and the size in bytes.

        Raises StoreFailed when the content cannot be read or written whole; nothing of it is left then.
        """
        try:
            with BytesIO(content) if isinstance(content, bytes) else content.open("rb") as source:
                return self._keep(source)
        except OSError as error:
            what = f"{len(content)} bytes" if isinstance(content, bytes) else str(content)
            raise StoreFailed(f"{what} could not be stored in {self._root}: {error.strerror or error}") from error

    def open(self, sha256: str) -> BinaryIO:
        """Open a file for reading. Raises NotFound."""
        return self.path(sha256).open("rb")

    def path(self, sha256: str) -> Path:
        """Return where a file lies, to be read only. Raises NotFound."""
        if not _SHA256.fullmatch(sha256) or not (place := self._place(sha256)).is_file():
            raise NotFound(f"sha256: {sha256!r} is not in the artifact store")
        return place

    def _place(self, sha256: str) -> Path:
        return self._root / sha256[:2] / sha256

    def _keep(self, source: BinaryIO) -> tuple[str, int]:
        self._root.mkdir(parents=True, exist_ok=True)
        number, name = tempfile.mkstemp(dir=self._root, prefix=".incoming-")
        incoming = Path(name)
        try:
            with os.fdopen(number, "wb") as target:
                sha256, size = _copy(source, target)
                target.flush()
                os.fsync(target.fileno())
            self._settle(incoming, self._place(sha256))
        except BaseException:
            with suppress(OSError):
                incoming.unlink()
            raise
        return sha256, size

    def _settle(self, incoming: Path, place: Path) -> None:
        if place.is_file():
            incoming.unlink()
            return
        if not place.parent.is_dir():
            place.parent.mkdir(exist_ok=True)
            _sync_directory(self._root)
        incoming.replace(place)
        _sync_directory(place.parent)


def _copy(source: BinaryIO, target: BinaryIO) -> tuple[str, int]:
    digest, size = hashlib.sha256(), 0
    while chunk := source.read(_CHUNK):
        target.write(chunk)
        digest.update(chunk)
        size += len(chunk)
    return digest.hexdigest(), size


def _sync_directory(directory: Path) -> None:
    number = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
