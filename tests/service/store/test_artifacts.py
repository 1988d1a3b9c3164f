"""Files by content: whole or not at all."""

import errno
import hashlib
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import NotFound, StoreFailed
from service.storage import directory
from service.store.artifacts import ArtifactStore


def files(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file()]


@given(content=st.binary(max_size=3000))
def test_bytes_come_back_by_their_hash(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    store = ArtifactStore(tmp_path_factory.mktemp("artifacts") / "not" / "there" / "yet")
    sha256, size = store.put(content)
    assert (sha256, size) == (hashlib.sha256(content).hexdigest(), len(content))
    with store.open(sha256) as kept:
        assert kept.read() == content


def test_a_file_larger_than_a_chunk_is_kept(tmp_path: Path) -> None:
    source = tmp_path / "large"
    content = os.urandom(1 << 20) + b"rest"
    source.write_bytes(content)
    store = ArtifactStore(tmp_path / "artifacts")
    sha256, size = store.put(source)
    assert (store.path(sha256).read_bytes(), size) == (content, len(content))
    assert source.read_bytes() == content


def test_the_same_content_is_kept_once(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        kept = set(pool.map(store.put, [b"content"] * 24))
    assert len(kept) == 1
    assert [path.name for path in files(tmp_path)] == [hashlib.sha256(b"content").hexdigest()]


@pytest.mark.parametrize("name", ["", "0" * 63, "0" * 64, "../" + "0" * 61, "A" * 64, "0" * 64 + "\n"])
def test_what_is_not_there_is_not_found(tmp_path: Path, name: str) -> None:
    store = ArtifactStore(tmp_path)
    with pytest.raises(NotFound, match="sha256"):
        store.path(name)
    with pytest.raises(NotFound, match="sha256"):
        store.open(name)


def test_a_source_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreFailed, match="missing"):
        ArtifactStore(tmp_path / "artifacts").put(tmp_path / "missing")


def _can_mount() -> bool:
    with tempfile.TemporaryDirectory() as place:
        if os.geteuid() != 0 or subprocess.run([*MOUNT, place], capture_output=True).returncode != 0:
            return False
        subprocess.run(["umount", place], check=True)
        return True


MOUNT = ("mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs")
DISKS = ["injected", "tmpfs"] if _can_mount() else ["injected"]


@pytest.fixture(params=DISKS)
def small_disk(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file system of 64 KiB where one may be mounted, and a directory that refuses what is larger."""
    if request.param == "injected":
        copy = directory.digest_of

        def copy_until_full(source: BinaryIO, take: Callable[[bytes], object]) -> tuple[str, int]:
            copied = copy(BytesIO(source.read(1 << 16)), take)
            if source.read(1):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return copied

        monkeypatch.setattr(directory, "digest_of", copy_until_full)
        yield tmp_path
        return
    subprocess.run([*MOUNT, str(tmp_path)], check=True)
    yield tmp_path
    subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_full_disk_leaves_nothing(small_disk: Path) -> None:
    store = ArtifactStore(small_disk)
    sha256, _ = store.put(b"it was here before")
    with pytest.raises(StoreFailed, match="No space left on device") as caught:
        store.put(os.urandom(1 << 17))
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.ENOSPC
    assert files(small_disk) == [store.path(sha256)]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_step_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os if step == "fsync" else Path, step, fail)
    with pytest.raises(StoreFailed, match="Input/output error"):
        ArtifactStore(tmp_path).put(b"content")
    assert files(tmp_path) == []


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def noting_fsync(number: int) -> None:
        steps.append("fsync directory" if os.path.isdir(f"/proc/self/fd/{number}") else "fsync file")
        fsync(number)

    def noting_replace(path: Path, target: Path) -> Path:
        steps.append("rename")
        return replace(path, target)

    store = ArtifactStore(tmp_path)
    store.put(b"first")
    monkeypatch.setattr(os, "fsync", noting_fsync)
    monkeypatch.setattr(Path, "replace", noting_replace)
    store.put(b"second")
    assert [step for step in steps if step != "fsync directory"] == ["fsync file", "rename"]
    assert steps[-1] == "fsync directory"
