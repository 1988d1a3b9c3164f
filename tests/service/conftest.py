"""A database without rows for every test: SQLite, and PostgreSQL too where one answers.

`HEADROOM_TEST_POSTGRESQL` names the PostgreSQL database. The tests of a process share one schema in it, which is
emptied after each; a test of migrations gets one of its own.
"""

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import Engine, MetaData, Table, make_url

from service.store.database import make_engine, upgrade
from service.store.jobs import JobStore

POSTGRESQL = os.environ.get("HEADROOM_TEST_POSTGRESQL", "postgresql://postgres@127.0.0.1:5432/test")


def _answers() -> bool:
    try:
        psycopg.connect(POSTGRESQL, connect_timeout=2).close()
    except psycopg.OperationalError:
        return False
    return True


DATABASES = ["sqlite", "postgresql"] if _answers() else ["sqlite"]


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def move(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


@pytest.fixture(params=DATABASES)
def database(request: pytest.FixtureRequest) -> str:
    """The kind of database that a test runs on."""
    kind: str = request.param
    return kind


@contextlib.contextmanager
def _schema() -> Iterator[str]:
    """Yield the URL of a new PostgreSQL schema, which is removed afterwards."""
    schema = f"headroom_{secrets.token_hex(8)}"
    with psycopg.connect(POSTGRESQL, autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA {schema}")
        try:
            url = make_url(POSTGRESQL).update_query_dict({"options": f"-csearch_path={schema}"})
            yield url.render_as_string(hide_password=False)
        finally:
            connection.execute(f"DROP SCHEMA {schema} CASCADE")


def _sqlite_url(directory: Path) -> str:
    """Return the URL of a file whose path has characters with a meaning in URLs."""
    return f"sqlite:///{directory / 'with space %41' / 'headroom.db'}"


@pytest.fixture
def empty_url(database: str, tmp_path: Path) -> Iterator[str]:
    """URL of an empty database."""
    if database == "sqlite":
        yield _sqlite_url(tmp_path)
        return
    with _schema() as url:
        yield url


@pytest.fixture
def empty_engine(empty_url: str) -> Iterator[Engine]:
    """Engine of an empty database."""
    engine = make_engine(empty_url)
    yield engine
    engine.dispose()


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SQLite file at the newest schema, to be copied: the migrations take longer than most tests."""
    path = tmp_path_factory.mktemp("migrated") / "headroom.db"
    engine = make_engine(f"sqlite:///{path}")
    upgrade(engine)
    engine.dispose()
    return path


@pytest.fixture(scope="session")
def migrated_schema() -> Iterator[tuple[str, list[Table]]]:
    """URL of a PostgreSQL schema at the newest version, which one test after the other uses, and the tables to empty.

    A table comes before those that it refers to.
    """
    with _schema() as url:
        engine = make_engine(url)
        upgrade(engine)
        reflected = MetaData()
        reflected.reflect(engine)
        tables = [table for table in reversed(reflected.sorted_tables) if table.name != "alembic_version"]
        yield url, tables
        engine.dispose()


@pytest.fixture
def url(request: pytest.FixtureRequest, database: str, tmp_path: Path, migrated: Path) -> Iterator[str]:
    """URL of a database at the newest schema, without a row."""
    if database == "sqlite":
        of_file = _sqlite_url(tmp_path)
        engine = make_engine(of_file)  # which makes the directory too
        shutil.copy(migrated, str(engine.url.database))
        engine.dispose()
        yield of_file
        return
    shared, tables = request.getfixturevalue("migrated_schema")
    yield shared
    with psycopg.connect(shared) as connection:
        connection.execute("; ".join(f'DELETE FROM "{table.name}"' for table in tables))


@pytest.fixture
def engine(url: str) -> Iterator[Engine]:
    """Engine of a database at the newest schema."""
    engine = make_engine(url)
    yield engine
    engine.dispose()


@pytest.fixture
def clock() -> Clock:
    """The clock of `store`."""
    return Clock()


@pytest.fixture
def store(engine: Engine, clock: Clock) -> JobStore:
    """An empty job store."""
    return JobStore(engine, clock)
