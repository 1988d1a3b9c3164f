"""The interface of a file storage, which a directory and S3 implement.

A key is a relative path with `/`, such as `ab/abcd...`. A file appears under its key whole or not at all.
"""

import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import BinaryIO, Protocol

from service.errors import StoreFailed

CHUNK = 1 << 20
"""Bytes read at once."""
SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Entry:
    """One file that a place keeps."""

    key: str
    size: int
    """Bytes."""
    modified: datetime
    """When it was last put; aware, UTC."""


class Storage(Protocol):
    """A place that keeps files.

    Every method raises OSError or StoreFailed when the place does not do what it is asked for, and FileNotFoundError
    for a key without a file.
    """

    @property
    def url(self) -> str:
        """Where it is, as HEADROOM_ARTIFACTS_URL names it."""
        ...

    def check(self) -> None:
        """Return if files can be read and written, as far as can be checked without writing."""
        ...

    def put(self, content: Path | bytes, key_of: Callable[[str], str]) -> tuple[str, int]:
        """Keep content under the key that `key_of` makes of its SHA-256; return that and the size in bytes.

        What is there already is not written again, but counts as put now.
        """
        ...

    def path(self, key: str, sha256: str) -> Path:
        """Return a file on this machine with the content of a key, to be read only."""
        ...

    def copy(self, key: str, sha256: str, target: Path) -> None:
        """Write the content of a key to the new file `target`; raises StoreFailed if its SHA-256 is another."""
        ...

    def read(self, key: str) -> bytes:
        """Return the content of a small file."""
        ...

    def write(self, key: str, content: bytes) -> None:
        """Keep a small file under a key, in place of the one before."""
        ...

    def delete(self, key: str) -> None:
        """Remove the file under a key, if there is one."""
        ...

    def entries(self, prefix: str = "") -> Iterator[Entry]:
        """Yield the files whose keys begin with `prefix`, which is empty or ends with `/`."""
        ...

    def delete_older(self, key: str, than: datetime) -> bool:
        """Remove the file under a key unless it was put at `than` or later; return whether it was removed."""
        ...

    def delete_unfinished(self, than: datetime) -> None:
        """Remove what a put that was broken off before `than` has left."""
        ...

    def signed(self, key: str, seconds: int) -> str | None:
        """Return a URL from which anybody may read the file for so long; None where there are no such URLs."""
        ...


def artifact_key(sha256: str) -> str:
    """Return the key of a file that is named by its content."""
    return f"{sha256[:2]}/{sha256}"


def digest_of(source: BinaryIO, take: Callable[[bytes], object] = lambda _: None) -> tuple[str, int]:
    """Return the SHA-256 in hexadecimal and the size in bytes of what `source` holds; `take` gets every chunk."""
    digest, size = hashlib.sha256(), 0
    while chunk := source.read(CHUNK):
        take(chunk)
        digest.update(chunk)
        size += len(chunk)
    return digest.hexdigest(), size


def check_digest(url: str, key: str, expected: str, actual: str) -> None:
    """Raise StoreFailed unless the content is what the key stands for."""
    if actual != expected:
        raise StoreFailed(f"{url}: {key!r} is damaged: its SHA-256 is {actual}, not {expected}; restore it from a copy")
