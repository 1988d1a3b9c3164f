"""Copying a store's files to a bucket: checked, gone on with after an interruption, and with the store's id last."""

from pathlib import Path

import pytest
from sqlalchemy import Engine

from service.contracts.request import JobRequest
from service.errors import Conflict, InvalidRequest, StoreFailed
from service.storage.cache import FileCache
from service.storage.opening import open_storage
from service.store.artifacts import ArtifactStore
from service.store.files.checkpoints import CheckpointStore
from service.store.files.copying import Copied, copy
from service.store.files.identity import StoreIdentity
from service.store.job_records import Claim

TEXTS = [b"one", b"two", b"three"]
CLAIM = Claim("job", 1, JobRequest(model="sample"), 1)


def ignore(_: Copied) -> None:
    """Do nothing."""


@pytest.fixture
def source(tmp_path: Path) -> ArtifactStore:
    store = ArtifactStore(tmp_path / "artifacts")
    store.write_id("1" * 32)
    for text in TEXTS:
        store.put(text)
    CheckpointStore(store.storage).save(CLAIM, 3, "{}", {"streams/0.bin": _file(tmp_path, b"hidden")}, lambda: None)
    return store


def _file(directory: Path, content: bytes) -> Path:
    path = directory / "file"
    path.write_bytes(content)
    return path


@pytest.fixture(params=["directory", "bucket"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> ArtifactStore:
    is_bucket = request.param == "bucket"
    place = str(request.getfixturevalue("bucket_url")) if is_bucket else (tmp_path / "target").as_uri()
    return ArtifactStore(open_storage(place, FileCache(tmp_path / "cache", 1 << 30)))


def test_every_file_and_the_id_are_copied_once(source: ArtifactStore, target: ArtifactStore) -> None:
    assert copy(source, target, ignore) == Copied(4, len(b"onetwothreehidden"), 0)
    assert {target.path(entry.key).read_bytes() for entry in target.entries()} == set(TEXTS)
    assert target.read_id() == source.read_id()
    assert copy(source, target, ignore) == Copied(0, 0, 4)
    source.put(b"later")
    assert copy(source, target, ignore) == Copied(1, 5, 4)


def test_a_measurement_goes_on_from_the_copied_checkpoint(
    source: ArtifactStore, target: ArtifactStore, tmp_path: Path
) -> None:
    copy(source, target, ignore)
    checkpoints = CheckpointStore(target.storage)
    checkpoint = checkpoints.latest(CLAIM.job_id)
    assert checkpoint is not None
    assert (checkpoint.layers_done, checkpoint.request) == (3, "{}")
    checkpoints.fetch(CLAIM.job_id, checkpoint, tmp_path / "work", lambda: None)
    assert (tmp_path / "work" / "streams" / "0.bin").read_bytes() == b"hidden"


def test_a_copy_that_was_broken_off_is_gone_on_with(source: ArtifactStore, target: ArtifactStore) -> None:
    class BrokenOff(Exception):
        pass

    def break_off(copied: Copied) -> None:
        if copied.files == 2:
            raise BrokenOff

    with pytest.raises(BrokenOff):
        copy(source, target, break_off)
    assert target.read_id() is None
    assert list(target.storage.entries("checkpoints/")) == []
    assert copy(source, target, ignore).files == 2
    assert target.read_id() == source.read_id()


def test_a_damaged_file_is_named_and_not_copied(source: ArtifactStore, target: ArtifactStore) -> None:
    name, _ = source.put(b"damaged")
    source.path(name).write_bytes(b"DAMAGED")
    with pytest.raises(StoreFailed, match=f"'{name}' is damaged: its SHA-256 is"):
        copy(source, target, ignore)
    assert name not in {entry.key for entry in target.entries()}
    assert all(target.path(entry.key).read_bytes() in TEXTS for entry in target.entries())
    assert target.read_id() is None


def test_the_store_of_another_database_is_not_copied_into(source: ArtifactStore, target: ArtifactStore) -> None:
    target.write_id("2" * 32)
    with pytest.raises(Conflict, match="is the artifact store of another database; copy to an empty place"):
        copy(source, target, ignore)
    assert list(target.entries()) == []


def test_what_is_no_store_is_not_copied(tmp_path: Path, target: ArtifactStore) -> None:
    with pytest.raises(Conflict, match="it has no id; nothing to copy"):
        copy(ArtifactStore(tmp_path / "empty"), target, ignore)


def test_the_database_takes_the_copy_for_its_own_only_when_it_is_whole(
    source: ArtifactStore, target: ArtifactStore, engine: Engine
) -> None:
    (Path(source.url.removeprefix("file://")) / "store-id").unlink()
    StoreIdentity(engine).compare(source)
    with pytest.raises(InvalidRequest, match="is not the artifact store of this database"):
        StoreIdentity(engine).compare(target)
    copy(source, target, ignore)
    StoreIdentity(engine).compare(target)
