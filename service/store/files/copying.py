"""Copies an artifact store to another place, such as from a directory to a bucket, with the checkpoints in it.

Every file is checked against the SHA-256 that is its name before it is put. The store's id comes last: until then no
process starts with the copy. Files that are there already, with their size, are not sent again, so a copy that was
broken off is gone on with by copying again.
"""

from collections.abc import Callable
from dataclasses import dataclass

from service.errors import Conflict, StoreFailed
from service.storage.port import artifact_key, check_digest
from service.store.artifacts import ArtifactStore
from service.store.files.checkpoints import PREFIX as CHECKPOINTS


@dataclass(frozen=True)
class Copied:
    """What one copy did."""

    files: int
    """Files that it sent."""
    size: int
    """Bytes of these files."""
    present: int
    """Files that were there already."""


def copy(source: ArtifactStore, target: ArtifactStore, report: Callable[[Copied], None]) -> Copied:
    """Copy every file of `source` that `target` lacks, and the store's id; `report` is called after each file.

    Checkpoints of unfinished measurements are copied too: the services that write them must have stopped.

    Raises Conflict where one of the two is no store, or `target` another database's; StoreFailed where one fails or a
    file is damaged; OSError.
    """
    store_id = _id(source, target)
    there = _kept(target)
    copied = Copied(0, 0, 0)
    for key, (size, sha256) in _kept(source).items():
        if key in there and there[key][0] == size:
            copied = Copied(copied.files, copied.size, copied.present + 1)
        else:
            _copy_file(source, target, key, sha256)
            copied = Copied(copied.files + 1, copied.size + size, copied.present)
        report(copied)
    _copy_manifests(source, target)
    target.write_id(store_id)
    return copied


def _kept(store: ArtifactStore) -> dict[str, tuple[int, str]]:
    """Return the size and the SHA-256 of every file by its key: artifacts, and the files of checkpoints."""
    kept = {artifact_key(entry.key): (entry.size, entry.key) for entry in store.entries()}
    files = (entry for entry in store.storage.entries(CHECKPOINTS) if not entry.key.endswith(".json"))
    return kept | {entry.key: (entry.size, entry.key.rpartition("/")[2]) for entry in files}


def _copy_manifests(source: ArtifactStore, target: ArtifactStore) -> None:
    """Write what each checkpoint consists of, when all of it is there."""
    for entry in source.storage.entries(CHECKPOINTS):
        if entry.key.endswith(".json"):
            target.storage.write(entry.key, source.storage.read(entry.key))


def _id(source: ArtifactStore, target: ArtifactStore) -> str:
    store_id, other = source.read_id(), target.read_id()
    if store_id is None:
        raise Conflict(f"{source.url} is not an artifact store that a service has used: it has no id; nothing to copy")
    if other not in (None, store_id):
        raise Conflict(f"{target.url} is the artifact store of another database; copy to an empty place")
    return store_id


def _copy_file(source: ArtifactStore, target: ArtifactStore, key: str, sha256: str) -> None:
    """Put one file; nothing of it is kept where its content is not what its name says."""

    def checked(actual: str) -> str:
        check_digest(source.url, sha256, sha256, actual)
        return key

    try:
        target.storage.put(source.storage.path(key, sha256), checked)
    except OSError as error:
        raise StoreFailed(f"{sha256} could not be copied to {target.url}: {error.strerror or error}") from error
