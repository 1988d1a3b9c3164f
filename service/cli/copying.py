"""`headroom artifacts copy`: moves the files of a service to another place."""

import sys

from service.cli import output
from service.errors import InvalidRequest
from service.settings import settings
from service.storage.cache import FileCache
from service.storage.opening import open_storage
from service.store.artifacts import ArtifactStore
from service.store.files.copying import Copied, copy

_SHOWN_EVERY = 100


def copy_artifacts(url: str, *, as_json: bool) -> None:
    """Copy the files of HEADROOM_ARTIFACTS_URL, or of HEADROOM_HOME, to `url`, and print how many there were."""
    chosen = settings()
    cache = FileCache(chosen.home / "cache" / "artifacts", int(chosen.artifact_cache_bytes))
    source = ArtifactStore(open_storage(chosen.artifacts_place, cache))
    target = ArtifactStore(open_storage(url, cache, parameter="TO_URL"))
    if source.url == target.url:
        raise InvalidRequest("TO_URL", url, f"another place than {source.url}", problem="is where the files are")
    copied = copy(source, target, _show)
    if as_json:
        output.document({"from": source.url, "to": target.url} | vars(copied))
        return
    text = f"{copied.files} files ({copied.size} bytes) copied to {target.url}; {copied.present} were there already"
    output.line(output.results(), text)
    output.line(output.results(), f"Set HEADROOM_ARTIFACTS_URL={target.url} for API, scheduler and workers.")


def _show(so_far: Copied) -> None:
    if (so_far.files + so_far.present) % _SHOWN_EVERY == 0:
        print(f"{so_far.files + so_far.present} files, {so_far.files} of them sent", file=sys.stderr)
