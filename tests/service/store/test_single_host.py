"""An SQLite database belongs to one host at a time."""

from datetime import timedelta
from pathlib import Path

import pytest
from alembic import command
from sqlalchemy import Engine, text

from service.errors import InvalidRequest
from service.settings import Settings
from service.startup import open_stores
from service.store.database import make_engine, migrations, writer
from service.store.hosts.single_host import FREE_SECONDS, SingleHost
from service.store.tables import HostRow
from service.store.transactions import Transactions


def aged(engine: Engine, seconds: float) -> None:
    """Let the host's name have been written so long ago."""
    with Transactions(engine)._write() as session:
        session.get_one(HostRow, 1).seen_at -= timedelta(seconds=seconds)


def test_a_second_host_is_refused_while_the_first_is_there(engine: Engine) -> None:
    first, second = SingleHost(engine, "here", "boot-1"), SingleHost(engine, "there", "boot-2")
    first.write()
    with pytest.raises(
        InvalidRequest, match=r"HEADROOM_DATABASE_URL: .*'here'.*one host only; allowed: .*postgresql://"
    ):
        second.write()
    aged(engine, FREE_SECONDS / 2)
    with pytest.raises(InvalidRequest):
        second.write()
    first.write()
    aged(engine, FREE_SECONDS + 1)
    second.write()
    with pytest.raises(InvalidRequest, match="'there'"):
        first.write()


@pytest.mark.parametrize(("name", "boot"), [("here", "after the boot"), ("a container", "boot-1")])
def test_what_is_the_same_host_under_another_name_or_boot_is_not_refused(engine: Engine, name: str, boot: str) -> None:
    SingleHost(engine, "here", "boot-1").write()
    SingleHost(engine, name, boot).write()


def test_a_process_does_not_start_on_another_host_s_database(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    stores = open_stores(settings)
    engine = stores.jobs._reader
    with Transactions(engine)._write() as session:
        row = session.get_one(HostRow, 1)
        row.name, row.boot = "elsewhere", "another"
    with pytest.raises(InvalidRequest, match="'elsewhere'"):
        open_stores(settings)
    engine.dispose()


def test_another_host_s_database_is_not_migrated(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    engine = make_engine(settings.database)
    with writer(engine).begin() as connection:
        command.upgrade(migrations(connection), "0006")
    SingleHost(engine, "elsewhere", "another").write()
    with pytest.raises(InvalidRequest, match="'elsewhere'"):
        open_stores(settings)
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT version_num FROM alembic_version")) == "0006"
    engine.dispose()


def test_a_new_database_belongs_to_nobody(tmp_path: Path) -> None:
    engine = make_engine(f"sqlite:///{tmp_path / 'new.db'}")
    SingleHost(engine, "here", "boot-1").check()
    engine.dispose()
