"""A fresh database for every test: SQLite, and PostgreSQL too where one answers.

`HEADROOM_TEST_POSTGRESQL` names the PostgreSQL database; every test gets a schema of its own in it.
"""

import os
import secrets
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import Engine, make_url
from sqlalchemy.engine import URL

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
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """URL of an empty database."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'with space %41' / 'headroom.db'}"
        return
    schema = f"headroom_{secrets.token_hex(8)}"
    with psycopg.connect(POSTGRESQL, autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA {schema}")
        try:
            yield _in_schema(make_url(POSTGRESQL), schema).render_as_string(hide_password=False)
        finally:
            connection.execute(f"DROP SCHEMA {schema} CASCADE")


def _in_schema(url: URL, schema: str) -> URL:
    return url.update_query_dict({"options": f"-csearch_path={schema}"})


@pytest.fixture
def empty_engine(url: str) -> Iterator[Engine]:
    """Engine of an empty database."""
    engine = make_engine(url)
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


@pytest.fixture
def engine(empty_engine: Engine, migrated: Path) -> Engine:
    """Engine of a database at the newest schema."""
    if empty_engine.dialect.name == "sqlite":
        shutil.copy(migrated, str(empty_engine.url.database))
    else:
        upgrade(empty_engine)
    return empty_engine


@pytest.fixture
def clock() -> Clock:
    """The clock of `store`."""
    return Clock()


@pytest.fixture
def store(engine: Engine, clock: Clock) -> JobStore:
    """An empty job store."""
    return JobStore(engine, clock)
