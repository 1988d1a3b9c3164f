"""The schema, and several processes on one database."""

import multiprocessing
import socket
import sqlite3
import threading
from pathlib import Path

import psycopg
import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Engine, inspect, select, text

from service.contracts.request import JobRequest
from service.errors import InvalidRequest, ServiceUnreachable
from service.store import database
from service.store.database import make_engine, migrations, upgrade, writer
from service.store.jobs import JobStore
from service.store.statuses import Status
from service.store.tables import Base, JobRow

PROCESSES = 6


@pytest.fixture
def own_engine(empty_engine: Engine) -> Engine:
    """Engine of a database at the newest schema that no other test uses."""
    upgrade(empty_engine)
    return empty_engine


def test_the_migrations_make_the_models(engine: Engine) -> None:
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []


def test_a_model_without_migration_is_noticed(own_engine: Engine) -> None:
    with writer(own_engine).begin() as connection:
        connection.execute(text("ALTER TABLE jobs DROP COLUMN losses"))
    with own_engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert [difference[0] for difference in compare_metadata(context, Base.metadata)] == ["add_column"]


def test_downgrade_takes_everything_back(own_engine: Engine) -> None:
    with writer(own_engine).begin() as connection:
        command.downgrade(migrations(connection), "base")
    assert inspect(own_engine).get_table_names() == ["alembic_version"]


def test_a_migration_that_fails_leaves_nothing(empty_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(config: object, revision: str) -> None:
        config.attributes["connection"].execute(text("CREATE TABLE half (x INTEGER)"))  # type: ignore[attr-defined]
        raise RuntimeError(revision)

    monkeypatch.setattr(command, "upgrade", failing)
    with pytest.raises(RuntimeError):
        upgrade(empty_engine)
    assert inspect(empty_engine).get_table_names() == []


def test_upgrade_works_from_any_directory(
    empty_engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    upgrade(empty_engine)
    upgrade(empty_engine)
    assert set(inspect(empty_engine).get_table_names()) == {*Base.metadata.tables, "alembic_version"}


def _upgrade(url: str, start: "multiprocessing.synchronize.Barrier") -> None:
    engine = make_engine(url)
    start.wait()
    upgrade(engine)
    JobStore(engine).submit(JobRequest(model="sample"))
    engine.dispose()


def _claim_all(url: str, names: list[str], worker: str, start: "multiprocessing.synchronize.Barrier") -> None:
    engine = make_engine(url)
    store = JobStore(engine)
    start.wait()
    for name in names:
        store.claim(name, 1, worker, 60)
    engine.dispose()


def _in_processes(target: object, arguments: list[tuple[object, ...]]) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["service.store.jobs"])
    start = context.Barrier(len(arguments))
    children = [context.Process(target=target, args=(*each, start)) for each in arguments]  # type: ignore[arg-type]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0] * len(children)


def test_several_processes_may_upgrade_at_once(empty_url: str) -> None:
    _in_processes(_upgrade, [(empty_url,)] * PROCESSES)
    engine = make_engine(empty_url)
    assert JobStore(engine).counts()[Status.queued] == PROCESSES
    engine.dispose()


def test_each_job_is_claimed_once_by_many_processes(engine: Engine, url: str) -> None:
    store = JobStore(engine)
    names = [store.submit(JobRequest(model="sample")).id for _ in range(30)]
    _in_processes(_claim_all, [(url, names, f"worker-{number}") for number in range(PROCESSES)])
    with engine.connect() as connection:
        rows = connection.execute(select(JobRow.fence, JobRow.attempts, JobRow.status, JobRow.events)).all()
    assert rows == [(1, 1, Status.running, 2)] * 30
    for name in names:
        assert [event.kind for event in store.events(name)] == ["queued", "started"]


def test_sqlite_is_set_up_for_several_processes(tmp_path: Path) -> None:
    engine = make_engine(f"sqlite:///{tmp_path / 'x.db'}")
    with engine.connect() as connection:
        assert connection.scalar(text("PRAGMA journal_mode")) == "wal"
        assert connection.scalar(text("PRAGMA foreign_keys")) == 1
        assert connection.scalar(text("PRAGMA busy_timeout")) == 30_000
    engine.dispose()


def test_write_ahead_logging_waits_for_a_writer_that_came_first(tmp_path: Path) -> None:
    file = tmp_path / "x.db"
    first = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
    first.execute("BEGIN IMMEDIATE")
    release = threading.Timer(0.3, first.close)
    release.start()
    engine = make_engine(f"sqlite:///{file}")
    with engine.connect() as connection:
        assert connection.scalar(text("PRAGMA journal_mode")) == "wal"
    release.join()
    engine.dispose()


def test_sqlite_readers_do_not_wait_for_the_writer(tmp_path: Path) -> None:
    engine = make_engine(f"sqlite:///{tmp_path / 'x.db'}")
    upgrade(engine)
    store = JobStore(engine)
    job = store.submit(JobRequest(model="sample"))
    with writer(engine).begin() as connection:
        connection.execute(text("DELETE FROM jobs"))
        assert store.get(job.id).id == job.id
        connection.rollback()
    engine.dispose()


@pytest.mark.parametrize(
    "url", ["sqlite://", "sqlite:///:memory:", "mysql://user:pass@host/db", "postgresql+psycopg2://host/db"]
)
def test_other_databases_are_refused_by_name(url: str) -> None:
    with pytest.raises(InvalidRequest, match=r"HEADROOM_DATABASE_URL.*postgresql://") as caught:
        make_engine(url)
    assert "pass@" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://me:hush@127.0.0.1:{port}/db", "postgresql+psycopg://me:***@127.0.0.1:{port}/db"),
        (
            "postgresql:///db?host=127.0.0.1&port={port}&password=hush",
            "postgresql+psycopg:///db?host=127.0.0.1&password=hidden&port={port}",
        ),
    ],
)
def test_a_database_that_is_away_is_named_by_its_setting_without_the_password(url: str, shown: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    engine = make_engine(url.format(port=port))
    with pytest.raises(ServiceUnreachable) as caught:
        upgrade(engine)
    named = f"HEADROOM_DATABASE_URL: the database at {shown.format(port=port)} cannot be reached: "
    assert str(caught.value).startswith(named)
    assert "refused" in str(caught.value)
    assert "hush" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [None, b"this is no database" * 100], ids=["directory", "junk"])
def test_a_file_that_is_no_database_is_named(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "x.db"
    file.mkdir() if content is None else file.write_bytes(content)
    with pytest.raises(ServiceUnreachable, match=rf"^HEADROOM_DATABASE_URL: the database at sqlite:///{file} cannot"):
        upgrade(make_engine(f"sqlite:///{file}"))


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(
        InvalidRequest,
        match=r"^HEADROOM_DATABASE_URL: '.*/x\.db' is in a directory that cannot be created \(File exists\); allowed: ",
    ):
        make_engine(f"sqlite:///{tmp_path / 'file' / 'x.db'}")


def test_what_is_no_url_is_refused() -> None:
    with pytest.raises(InvalidRequest, match=r"^HEADROOM_DATABASE_URL: 'headroom\.db' is not allowed"):
        make_engine("headroom.db")


@pytest.mark.parametrize("url", ["postgresql//me:hush@host/db", "postgresql://me:hush@host:port/db"])
def test_no_part_of_a_url_that_cannot_be_read_is_shown(url: str) -> None:
    with pytest.raises(InvalidRequest, match=r"^HEADROOM_DATABASE_URL") as caught:
        make_engine(url)
    assert "hush" not in str(caught.value)


def test_a_connection_that_was_idle_is_tested_before_it_is_used(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PostgreSQL: after a restart of the server the first statement finds new connections."""
    if engine.dialect.name != "postgresql":
        return
    first, second = engine.connect(), engine.connect()
    pids = [connection.scalar(text("SELECT pg_backend_pid()")) for connection in (first, second)]
    first.close()
    second.close()
    with psycopg.connect(engine.url.set(drivername="postgresql").render_as_string(hide_password=False)) as other:
        for pid in pids:
            other.execute("SELECT pg_terminate_backend(%s, 10000)", [pid])
    monkeypatch.setattr(database, "UNTESTED_SECONDS", 0.0)
    for _ in pids:
        with engine.connect() as connection:
            assert connection.scalar(text("SELECT pg_backend_pid()")) not in pids


def test_a_connection_in_use_is_not_tested(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine.dialect, "do_ping", lambda _: pytest.fail("tested"))
    for _ in range(2):
        with engine.connect() as connection:
            connection.execute(text("SELECT 1"))
