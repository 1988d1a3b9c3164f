"""The artifact store's id, in the store and in the database."""

import secrets
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from service.errors import InvalidRequest, OtherStore, StoreFailed
from service.store.artifacts import ArtifactStore
from service.store.files.identity import StoreIdentity


def test_the_first_start_writes_it_and_later_ones_find_it(engine: Engine, tmp_path: Path) -> None:
    first, later = ArtifactStore(tmp_path / "store"), ArtifactStore(tmp_path / "store")
    StoreIdentity(engine).compare(first)
    StoreIdentity(engine).compare(later)
    assert first.id == later.id == (tmp_path / "store" / "store-id").read_text().strip()
    assert len(str(first.id)) == 32
    later.check()


def test_processes_that_start_at_once_agree(engine: Engine, tmp_path: Path) -> None:
    stores = [ArtifactStore(tmp_path) for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(StoreIdentity(engine).compare, stores))
    assert len({store.id for store in stores}) == 1


def test_a_start_that_broke_off_before_the_store_was_written_is_finished(engine: Engine, tmp_path: Path) -> None:
    StoreIdentity(engine)._of_database()
    StoreIdentity(engine).compare(ArtifactStore(tmp_path))


@pytest.mark.parametrize("other", ["empty", "of another database"])
def test_another_store_is_refused(engine: Engine, tmp_path: Path, other: str) -> None:
    StoreIdentity(engine).compare(ArtifactStore(tmp_path / "first"))
    second = ArtifactStore(tmp_path / "second")
    if other != "empty":
        second.write_id(secrets.token_hex(16))
    with pytest.raises(InvalidRequest, match=r"HEADROOM_ARTIFACTS_URL: 'file:.*second' is not the artifact store of"):
        StoreIdentity(engine).compare(second)
    assert (second.read_id() is None) == (other == "empty")


def test_another_database_does_not_take_a_store_over(engine: Engine, tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    StoreIdentity(engine).compare(store)
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM artifact_store"))
    with pytest.raises(InvalidRequest, match="store-id"):
        StoreIdentity(engine).compare(ArtifactStore(tmp_path))


def test_a_store_that_is_exchanged_later_is_noticed(engine: Engine, tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    StoreIdentity(engine).compare(store)
    (tmp_path / "store-id").write_text("another")
    with pytest.raises(OtherStore, match="another artifact store than at the start"):
        store.check()


def test_a_store_that_is_gone_is_noticed(engine: Engine, tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path / "store")
    StoreIdentity(engine).compare(store)
    (tmp_path / "store").rename(tmp_path / "moved")
    with pytest.raises(StoreFailed, match="check that it is there"):
        store.check()
