"""The database: SQLite in one file, or PostgreSQL. The same code and the same migrations run on both.

SQLite is set up for several processes: write-ahead logging, so that readers and the one writer do not wait for each
other; BEGIN IMMEDIATE for transactions that write, so that a writer waits for its turn at the start and never
fails half way because another came between its read and its write; and a busy timeout that makes it wait.
"""

import time
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from sqlite3 import SQLITE_BUSY, OperationalError
from sqlite3 import Connection as SQLiteConnection
from threading import Lock
from typing import TYPE_CHECKING, Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.exc import ArgumentError, DBAPIError, InvalidatePoolError
from sqlalchemy.orm import DeclarativeBase, Session

from service.errors import InvalidRequest, ServiceUnreachable

if TYPE_CHECKING:
    from alembic.config import Config  # only a start needs it
    from sqlalchemy.pool import ConnectionPoolEntry

BUSY_SECONDS = 30
"""How long a writer waits for the others on SQLite."""
UNTESTED_SECONDS = 2.0
"""A pooled connection to PostgreSQL that was not used for longer is tested before it is used again."""
MIGRATION_LOCK = 0x48454144
"""Key of the PostgreSQL advisory lock that a migration holds."""
CLAIM_LOCK = 0x48454143
"""Key of the one of those who claim messages to receivers."""
_WRITES = "headroom_writes"
_turns: dict[str, AbstractContextManager[object]] = {}
"""Locks of this process by the URLs of SQLite files."""
_turns_lock = Lock()
_ALLOWED = "sqlite:////absolute/file.db or postgresql://user:password@host:port/database"


def make_engine(url: str) -> Engine:
    """Return an engine for `sqlite:///FILE` (its directory is made when missing) or `postgresql://...`.

    Any other URL raises InvalidRequest, and so does a directory that cannot be made. Nothing is connected yet.
    """
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError) as error:
        # Where a password stands in such a text cannot be told, so nothing is shown of one that may have any.
        secret = "@" in url or "password" in url
        raise InvalidRequest("HEADROOM_DATABASE_URL", None if secret else url, _ALLOWED) from error
    if parsed.drivername in ("postgresql", "postgres", "postgresql+psycopg"):
        engine = create_engine(parsed.set(drivername="postgresql+psycopg"), pool_size=10)
        event.listen(engine, "checkin", _note_use)
        event.listen(engine, "checkout", partial(_test_idle, engine))
        return engine
    if parsed.drivername == "sqlite" and parsed.database and parsed.database != ":memory:":
        _make_directory(Path(parsed.database).absolute().parent, parsed)
        engine = create_engine(parsed, pool_size=10)
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return engine
    raise InvalidRequest("HEADROOM_DATABASE_URL", public_url(parsed), _ALLOWED)


def public_url(url: URL) -> str:
    """Return a database URL without its password, wherever that stands in it."""
    return (url.update_query_dict({"password": "hidden"}) if "password" in url.query else url).render_as_string()


def single(engine: Engine) -> Engine:
    """Return the same engine for transactions of one statement that reads.

    PostgreSQL needs no BEGIN and COMMIT around it, each of which takes as long as a short statement.
    """
    return engine.execution_options(isolation_level="AUTOCOMMIT") if engine.dialect.name == "postgresql" else engine


def writer(engine: Engine) -> Engine:
    """Return the same engine for transactions that write."""
    return engine.execution_options(**{_WRITES: True})


def turn_to_write(engine: Engine) -> AbstractContextManager[object]:
    """Return what the writers of this process hold one after the other, on SQLite.

    A writer that finds the file locked sleeps and looks again, for longer each time; threads that wait for each other
    here go on at once.
    """
    if engine.dialect.name != "sqlite":
        return nullcontext()
    with _turns_lock:
        return _turns.setdefault(str(engine.url), Lock())


def wait_for_turn(transaction: Connection | Session, key: int) -> None:
    """Wait for the other transactions that have this turn, and have it until the end of this one.

    On SQLite every transaction that writes has the only turn there is.
    """
    bind = transaction.get_bind() if isinstance(transaction, Session) else transaction
    if bind.dialect.name == "postgresql":
        transaction.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": key})


def is_writer(bind: Engine | Connection) -> bool:
    """Whether transactions on an engine, or on its connection, are for writing."""
    return bool(bind.get_execution_options().get(_WRITES, False))


def insert_missing(session: Session, row: type[DeclarativeBase], **values: object) -> None:
    """Insert a row unless there is one with its key."""
    if session.get_bind().dialect.name == "postgresql":  # each dialect takes long to load
        from sqlalchemy.dialects.postgresql import insert as postgresql_insert

        session.execute(postgresql_insert(row).values(**values).on_conflict_do_nothing())
    else:
        from sqlalchemy.dialects.sqlite import insert

        session.execute(insert(row).values(**values).on_conflict_do_nothing())


def upgrade(engine: Engine) -> None:
    """Bring the database to the newest schema; several processes may do this at once.

    All steps are one transaction: it ends at the newest schema or leaves everything as it was. Raises
    ServiceUnreachable when the database does not answer, or refuses the user.
    """
    from alembic import command

    reach(engine)
    with writer(engine).begin() as connection:
        wait_for_turn(connection, MIGRATION_LOCK)
        command.upgrade(migrations(connection), "head")


def reach(engine: Engine) -> None:
    """Raise ServiceUnreachable when the database does not answer, or refuses the user."""
    try:
        engine.connect().close()
    except DBAPIError as error:
        where = f"HEADROOM_DATABASE_URL: the database at {public_url(engine.url)}"
        reason = str(error.orig).strip().partition("\n")[0]
        raise ServiceUnreachable(f"{where} cannot be reached: {reason}") from error


def migrations(connection: Connection) -> "Config":
    """Return Alembic's configuration for the migrations that come with this package, run on `connection`."""
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


def _make_directory(directory: Path, url: URL) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        problem = f"is in a directory that cannot be created ({error.strerror})"
        raise InvalidRequest("HEADROOM_DATABASE_URL", public_url(url), _ALLOWED, problem=problem) from error


def _note_use(_connection: object, record: "ConnectionPoolEntry") -> None:
    record.info["used"] = time.monotonic()


def _test_idle(engine: Engine, connection: Any, record: "ConnectionPoolEntry", _proxy: object) -> None:
    """Have the pool open new connections where one that was idle does not answer, as after a restart of the server.

    A test before every use would take as long as the statement that follows.
    """
    if time.monotonic() - record.info.get("used", time.monotonic()) <= UNTESTED_SECONDS:
        return
    try:
        engine.dialect.do_ping(connection)
    except engine.dialect.loaded_dbapi.Error as error:
        raise InvalidatePoolError from error


def _prepare_sqlite(connection: SQLiteConnection, _record: object) -> None:
    connection.isolation_level = None  # sqlite3 begins nothing by itself: `_begin_sqlite` does
    connection.execute(f"PRAGMA busy_timeout = {BUSY_SECONDS * 1000}")
    _write_ahead(connection)
    connection.execute("PRAGMA foreign_keys = ON")


def _write_ahead(connection: SQLiteConnection) -> None:
    """Turn write-ahead logging on; the file remembers it, so only the first connections ever change anything.

    SQLite does not wait out the busy timeout for this one change: two connections that both hold a read lock and
    want to change the mode would wait for each other. So it is tried again until another has made the change.
    """
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except OperationalError as error:
            if error.sqlite_errorcode & 0xFF != SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get(_WRITES, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
