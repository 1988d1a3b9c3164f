"""Copies on this machine of files that lie elsewhere: the least recently used go when they are too many.

Files that were used in the last minutes stay whatever they take, for somebody may be about to open them.
"""

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

KEEP_SECONDS = 600.0
"""A copy that was used within this time stays."""
BROKEN_OFF_SECONDS = 86_400.0
"""A file that is still being fetched after this time is not fetched any longer."""


class FileCache:
    """A directory of copies by SHA-256, which several processes may share."""

    def __init__(self, directory: Path, limit: int) -> None:
        """`limit` is in bytes."""
        self._directory = directory
        self._limit = limit

    def get(self, sha256: str, fetch: Callable[[Path], None]) -> Path:
        """Return the copy of a file; where there is none, `fetch` writes it to the path that it is given.

        Passes on what `fetch` raises, and OSError.
        """
        place = self._directory / sha256
        try:
            os.utime(place)
            return place
        except FileNotFoundError:
            self._directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self._directory, prefix=".incoming-") as incoming:
            copy = Path(incoming, sha256)
            fetch(copy)
            copy.replace(place)
        self._make_room()
        return place

    def _make_room(self) -> None:
        copies = []
        for path in self._directory.iterdir():
            with suppress(FileNotFoundError):
                facts = path.stat()
                if path.is_dir():
                    _remove_broken_off(path, facts.st_mtime)
                else:
                    copies.append((facts.st_mtime, facts.st_size, path))
        excess = sum(size for _, size, _ in copies) - self._limit
        for used_at, size, path in sorted(copies):
            if excess <= 0 or used_at > time.time() - KEEP_SECONDS:
                return
            path.unlink(missing_ok=True)
            excess -= size


def _remove_broken_off(directory: Path, modified: float) -> None:
    """Remove what a process that died while it fetched a file has left."""
    if modified < time.time() - BROKEN_OFF_SECONDS:
        shutil.rmtree(directory, ignore_errors=True)
