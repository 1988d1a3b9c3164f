"""Checkpoints of unfinished measurements in the artifact store, from which another machine can go on.

    checkpoints/JOB/FENCE.json     what a checkpoint consists of, written when its files are there
    checkpoints/JOB/files/SHA256   its files; most are in the next checkpoint too, and are not put again

Each claim of a job writes under its own fencing number, and the latest is continued. What a worker that lost its
job still writes is therefore older than what its successor writes.
"""

from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from pathlib import Path, PurePosixPath

from pydantic import Field, ValidationError

from service.contracts.record import Frozen
from service.storage.port import Storage
from service.store.job_records import Claim

PREFIX = "checkpoints/"


class Checkpoint(Frozen):
    """What a checkpoint consists of."""

    layers_done: int = Field(ge=0)
    """Layers that its streams are through."""
    request: str
    """The measurement's request, JSON."""
    files: dict[str, str]
    """SHA-256 by the file's relative path."""


class CheckpointStore:
    """The checkpoints of all jobs. Every method raises OSError and StoreFailed."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def save(
        self,
        claim: Claim,
        layers_done: int,
        request: str,
        files: Mapping[str, Path],
        check: Callable[[], None],
    ) -> None:
        """Keep a checkpoint, and remove what only earlier ones needed.

        `check` is called before each file, and what it raises is passed on; then the earlier checkpoint stays.
        """
        kept = {}
        for name, path in files.items():
            check()
            kept[name], _ = self._storage.put(path, lambda sha256: _file(claim.job_id, sha256))
        check()
        checkpoint = Checkpoint(layers_done=layers_done, request=request, files=kept)
        self._storage.write(_manifest(claim), checkpoint.model_dump_json().encode())
        self._remove_earlier(claim, checkpoint)

    def latest(self, job_id: str) -> Checkpoint | None:
        """Return the checkpoint to go on from, if there is one that can be read."""
        for key in sorted(self._manifests(job_id), reverse=True):
            try:
                return Checkpoint.model_validate_json(self._storage.read(key))
            except (ValidationError, FileNotFoundError):
                continue
        return None

    def fetch(self, job_id: str, checkpoint: Checkpoint, target: Path, check: Callable[[], None]) -> None:
        """Write the files of a checkpoint into the new directory `target`, each checked against its SHA-256.

        `check` is called before each file, and what it raises is passed on.
        """
        target.mkdir()
        for name, sha256 in checkpoint.files.items():
            check()
            path = target / _inside(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            self._storage.copy(_file(job_id, sha256), sha256, path)

    def remove(self, job_id: str) -> None:
        """Remove the checkpoints of a job that has ended, the files before what names them."""
        keys = {entry.key for entry in self._storage.entries(_of(job_id))}
        for key in sorted(keys, key=lambda key: (key.endswith(".json"), key)):
            self._storage.delete(key)

    def jobs(self, than: datetime) -> set[str]:
        """Return the ids of the jobs that have files here, all of which were put before `than`."""
        entries = [(entry.key.split("/")[1], entry.modified < than) for entry in self._storage.entries(PREFIX)]
        return {job for job, _ in entries} - {job for job, is_old in entries if not is_old}

    def _manifests(self, job_id: str) -> Iterator[str]:
        return (entry.key for entry in self._storage.entries(_of(job_id)) if entry.key.endswith(".json"))

    def _remove_earlier(self, claim: Claim, checkpoint: Checkpoint) -> None:
        mine = _manifest(claim)
        keys = {entry.key for entry in self._storage.entries(_of(claim.job_id))}
        if any(key.endswith(".json") and key > mine for key in keys):
            return  # another claim is at work by now
        needed = {_file(claim.job_id, sha256) for sha256 in checkpoint.files.values()}
        for key in keys - needed - {mine}:
            self._storage.delete(key)


def _of(job_id: str) -> str:
    return f"{PREFIX}{job_id}/"


def _manifest(claim: Claim) -> str:
    return f"{_of(claim.job_id)}{claim.fence:010d}.json"


def _file(job_id: str, sha256: str) -> str:
    return f"{_of(job_id)}files/{sha256}"


def _inside(name: str) -> PurePosixPath:
    """Return a relative path that leads nowhere else. Raises OSError."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise OSError(f"the checkpoint has a file {name!r}, which lies outside of it")
    return path
