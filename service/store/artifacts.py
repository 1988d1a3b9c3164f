"""Files by their content: the name of a file in the store is the SHA-256 of what it holds.

A file appears whole or not at all, and putting the same content twice keeps one file. Where the files lie is the
business of `service.storage`: in a directory, or in a bucket of an object store.
"""

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

from service.errors import NotFound, OtherStore, StoreFailed
from service.storage.directory import DirectoryStorage
from service.storage.port import SHA256, Entry, Storage, artifact_key

ID_KEY = "store-id"
"""Key of the store's id."""


class ArtifactStore:
    """Files by content; safe to use from several threads and processes."""

    def __init__(self, storage: Storage | Path) -> None:
        """`storage` is where they lie; a path is a directory."""
        self.storage = DirectoryStorage(storage) if isinstance(storage, Path) else storage
        self.id: str | None = None
        """What the database calls it, once a process has compared them (`service.store.identity`)."""

    @property
    def url(self) -> str:
        """Where the files lie, as HEADROOM_ARTIFACTS_URL names it."""
        return self.storage.url

    def check(self) -> None:
        """Raise StoreFailed unless files can be read and written, and this is the store that it was at the start."""
        try:
            self.storage.check()
            present = self.read_id() if self.id is not None else None
        except OSError as error:
            raise StoreFailed(f"{self.url} cannot be read: {error.strerror or error}") from error
        if present != self.id:
            raise OtherStore(
                f"{self.url} is another artifact store than at the start: its id is {present}, not {self.id}"
            )

    def read_id(self) -> str | None:
        """Return the id that is written in the store; None where there is none. Raises OSError and StoreFailed."""
        try:
            return self.storage.read(ID_KEY).decode("ascii", "replace").strip()
        except FileNotFoundError:
            return None

    def write_id(self, store_id: str) -> None:
        """Write the store's id. Raises OSError and StoreFailed."""
        self.storage.write(ID_KEY, f"{store_id}\n".encode())

    def put(self, content: Path | bytes) -> tuple[str, int]:
        """Keep a file or some bytes; return the SHA-256 in hexadecimal and the size in bytes.

        Raises StoreFailed when the content cannot be read or written whole; nothing of it is left then.
        """
        try:
            return self.storage.put(content, artifact_key)
        except OSError as error:
            what = f"{len(content)} bytes" if isinstance(content, bytes) else str(content)
            raise StoreFailed(f"{what} could not be stored in {self.url}: {error.strerror or error}") from error

    def open(self, sha256: str) -> BinaryIO:
        """Open a file for reading. Raises NotFound, and StoreFailed."""
        return self.path(sha256).open("rb")

    def path(self, sha256: str) -> Path:
        """Return where a file lies on this machine, to be read only; one from a bucket is fetched first.

        Raises NotFound, and StoreFailed when it cannot be fetched or is damaged.
        """
        try:
            if SHA256.fullmatch(sha256):
                return self.storage.path(artifact_key(sha256), sha256)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise StoreFailed(f"{sha256} could not be read from {self.url}: {error.strerror or error}") from error
        raise NotFound(f"sha256: {sha256!r} is not in the artifact store")

    def signed(self, sha256: str, seconds: int) -> str | None:
        """Return a URL from which anybody may read a file for so long; None for a directory. Raises StoreFailed."""
        return self.storage.signed(artifact_key(sha256), seconds)

    def entries(self) -> Iterator[Entry]:
        """Yield every file by content; `key` is its SHA-256. Raises OSError and StoreFailed."""
        for entry in self.storage.entries():
            _, _, name = entry.key.rpartition("/")
            if SHA256.fullmatch(name) and entry.key == artifact_key(name):
                yield Entry(name, entry.size, entry.modified)

    def delete_older(self, sha256: str, than: datetime) -> bool:
        """Remove a file unless it was put at `than` or later; return whether it was removed."""
        return self.storage.delete_older(artifact_key(sha256), than)
