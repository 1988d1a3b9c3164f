"""The models of the hub that a machine keeps: the least recently used go, and none that is in use."""

import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from service.contracts.request import ModelFiles
from workers.model_files.cache import ModelCache, make_room

SIZE = 1000
HOLD = """
import sys
from pathlib import Path
from service.contracts.request import ModelFiles
from workers.model_files.cache import ModelCache
cache, name, path = sys.argv[1:]
models = ModelCache(None, Path(cache))
models.fetched(name, lambda: ModelFiles(path=Path(path)))
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "hub"


def snapshot(cache: Path, name: str, commit: str, *blobs: str) -> ModelFiles:
    """Lay out a snapshot as huggingface_hub does; each blob has 1,000 bytes."""
    folder = cache / f"models--{name.replace('/', '--')}"
    path = folder / "snapshots" / (commit * 40)
    for directory in (path, folder / "blobs", folder / "refs"):
        directory.mkdir(parents=True, exist_ok=True)
    for number, blob in enumerate(blobs):
        (folder / "blobs" / blob).write_bytes(bytes(SIZE))
        link = path / f"{number}.safetensors"
        link.unlink(missing_ok=True)
        link.symlink_to(Path("..", "..", "blobs", blob))
    return ModelFiles(path=path)


def use(cache: Path, name: str, commit: str, *blobs: str, limit: int | None = None) -> None:
    """Measure a model as a worker does, from the beginning to the end."""
    with ModelCache(limit, cache) as models:
        models.fetched(name, lambda: snapshot(cache, name, commit, *blobs))


def left(cache: Path) -> set[str]:
    return {f"{path.parents[1].name.removeprefix('models--')}@{path.name[0]}" for path in cache.glob("*/snapshots/*")}


@pytest.fixture
def three(cache: Path) -> Path:
    """Three models of one blob each, used in this order."""
    for second, name in enumerate("abc"):
        use(cache, f"org/{name}", "1", name)
        for lock in (cache / ".locks" / "headroom").glob(f"*{name}@*"):
            os.utime(lock, (second, second))
    return cache


@pytest.mark.parametrize(
    ("limit", "stays"),
    [(3 * SIZE, {"org--a@1", "org--b@1", "org--c@1"}), (3 * SIZE - 1, {"org--b@1", "org--c@1"}), (0, set())],
)
def test_the_least_recently_used_go(three: Path, limit: int, stays: set[str]) -> None:
    make_room(three, limit)
    assert left(three) == stays
    assert len(list(three.glob("*/blobs/*"))) == len(stays)


def test_use_counts_and_not_the_time_of_the_download(three: Path) -> None:
    use(three, "org/a", "1", limit=2 * SIZE)
    assert left(three) == {"org--a@1", "org--c@1"}


def test_what_the_worker_uses_itself_stays(three: Path) -> None:
    with ModelCache(0, three) as models:
        for name in "ab":
            models.fetched(f"org/{name}", partial(snapshot, three, f"org/{name}", "1", name))
        assert left(three) == {"org--a@1", "org--b@1"}
    make_room(three, 0)
    assert left(three) == set()


@pytest.mark.parametrize("is_fetched_only", [False, True])
def test_what_another_process_uses_or_fetches_stays(three: Path, is_fetched_only: bool) -> None:
    code = HOLD
    if is_fetched_only:  # it never comes to its end
        code = code.replace(
            "lambda: ModelFiles(path=Path(path))", "lambda: print('held', flush=True) or sys.stdin.read()"
        )
    path = three / "models--org--a" / "snapshots" / ("1" * 40)
    arguments = [sys.executable, "-c", code, str(three), "org/a", str(path)]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        make_room(three, 0)
        assert left(three) == {"org--a@1"}
        assert (path / "0.safetensors").read_bytes() == bytes(SIZE)
        other.kill()
    make_room(three, 0)
    assert left(three) == set()


def test_earlier_revisions_go_and_what_they_share_with_later_ones_stays(cache: Path) -> None:
    use(cache, "org/a", "1", "shared", "first")
    use(cache, "org/a", "2", "shared", "second", limit=2 * SIZE)
    assert left(cache) == {"org--a@2"}
    assert {path.name for path in cache.glob("*/blobs/*")} == {"shared", "second"}


def test_what_no_worker_has_used_neither_counts_nor_goes(cache: Path) -> None:
    snapshot(cache, "mine/own", "1", "x", "y", "z")
    use(cache, "org/a", "1", "a", limit=SIZE)
    assert left(cache) == {"mine--own@1", "org--a@1"}
    make_room(cache, 0)
    assert left(cache) == {"mine--own@1"}


def test_a_cache_without_locks_is_left_as_it_is(
    cache: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = snapshot(cache, "org/a", "1", "a")
    real: Callable[..., int] = os.open

    def read_only(path: object, *arguments: object) -> int:
        if str(path).endswith(".lock"):
            raise OSError(30, os.strerror(30))
        return real(path, *arguments)

    monkeypatch.setattr(os, "open", read_only)
    with ModelCache(0, cache) as models:
        assert models.fetched("org/a", lambda: kept) is kept
    assert left(cache) == {"org--a@1"}
    assert "Read-only file system" in caplog.text


def test_a_download_that_fails_holds_nothing(three: Path) -> None:
    def fail() -> ModelFiles:
        raise OSError("the hub does not answer")

    with ModelCache(0, three) as models:
        with pytest.raises(OSError, match="does not answer"):
            models.fetched("org/a", fail)
        make_room(three, 0)
        assert left(three) == set()
