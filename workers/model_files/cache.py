"""Limits the size of the cache of hub models: removes the least recently used snapshots.

They lie in the cache of huggingface_hub, which other programs use too. Only snapshots that a worker has used count, and
only they go. Two kinds of locks, which the kernel frees when their process dies, keep what is in use:

    .locks/headroom/models--ORG--NAME.lock           shared while a worker fetches a snapshot of the repository
    .locks/headroom/models--ORG--NAME@COMMIT.lock    shared while a worker measures it; its time is that of the last use

A snapshot is removed by a process that holds both alone. So none goes between its being fetched and its being used.
"""

import fcntl
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

from huggingface_hub import scan_cache_dir
from huggingface_hub.constants import HF_HUB_CACHE
from huggingface_hub.file_download import repo_folder_name

from service.contracts.request import ModelFiles

log = logging.getLogger(__name__)

_LOCKS = Path(".locks", "headroom")


class ModelCache:
    """Context manager: the snapshots that are fetched inside it stay until its end."""

    def __init__(self, limit: int | None, cache: Path | None = None) -> None:
        """Keep at most `limit` bytes, beside what is in use; None: all. `cache` is huggingface_hub's directory."""
        self._limit = limit
        self._cache = cache or Path(HF_HUB_CACHE)
        self._held = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held.close()

    def fetched(self, name: str, fetch: Callable[[], ModelFiles]) -> ModelFiles:
        """Return the files of `org/name` or `org/name@revision` as `fetch` does, and make room for the next ones.

        Passes on what `fetch` raises. Where the cache takes no locks, such as on a disk that is read only, nothing is
        ever removed.
        """
        repository = repo_folder_name(repo_id=name.partition("@")[0], repo_type="model")
        try:
            fetching = self._shared(repository)
        except OSError as error:
            log.warning(
                "%s cannot be locked in the model cache %s, which is left as it is: %s", name, self._cache, error
            )
            return fetch()
        with fetching:
            files = fetch()
            self._held.enter_context(self._shared(f"{repository}@{files.path.name}"))
        if self._limit is not None:
            make_room(self._cache, self._limit)
        return files

    def _shared(self, name: str) -> ExitStack:
        """Hold a lock together with others, from now until the end of the context that is returned."""
        path = self._cache / _LOCKS / f"{name}.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            number = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
            stack.callback(os.close, number)
            fcntl.flock(number, fcntl.LOCK_SH)
            os.utime(number)
            return stack.pop_all()


def make_room(cache: Path, limit: int) -> list[str]:
    """Remove snapshots until those that workers have used take at most `limit` bytes; return their names.

    The least recently used go first, and none that is in use. Files that a snapshot shares with another one stay.
    """
    present = {
        f"{repo.repo_path.name}@{revision.commit_hash}": revision
        for repo in scan_cache_dir(cache).repos
        for revision in repo.revisions
    }
    used = [(path.stat().st_mtime, path.name.removesuffix(".lock")) for path in (cache / _LOCKS).glob("*@*.lock")]
    names = [name for _, name in sorted(used) if name in present]
    sizes = {file.blob_path: file.size_on_disk for name in names for file in present[name].files}
    excess, removed = sum(sizes.values()) - limit, []
    for name in names:
        if excess <= 0:
            break
        with _alone(cache, name) as is_free:
            if is_free:
                excess -= _remove(cache, name)
                removed.append(name)
    log.log(logging.INFO if removed else logging.DEBUG, "removed from the model cache: %s", ", ".join(removed))
    return removed


def _remove(cache: Path, name: str) -> int:
    """Remove a snapshot, both of whose locks are held; return the bytes that this frees."""
    folder, _, commit = name.partition("@")
    present = scan_cache_dir(cache)  # again: before the locks were held, other snapshots may have come and gone
    of_it = frozenset(repo for repo in present.repos if repo.repo_path.name == folder)
    deletion = replace(present, repos=of_it).delete_revisions(commit)
    deletion.execute()
    return deletion.expected_freed_size


@contextmanager
def _alone(cache: Path, name: str) -> Iterator[bool]:
    """Hold both locks of a snapshot alone; false where somebody else has one of them."""
    with ExitStack() as stack:
        for lock in (name.partition("@")[0], name):
            number = os.open(cache / _LOCKS / f"{lock}.lock", os.O_RDWR | os.O_CREAT, 0o600)
            stack.callback(os.close, number)
            try:
                fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
        yield True
