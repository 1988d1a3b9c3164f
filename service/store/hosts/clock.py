"""The clock of the stores: the time of the database, so that hosts whose clocks differ agree on leases and schedules.

PostgreSQL is asked for its time every few seconds; in between, the time since the last answer is added. The result is
off by at most the time that the answer took. SQLite is used on one host only and has no clock but that host's.
"""

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from threading import Lock

from sqlalchemy import Engine, text

Clock = Callable[[], datetime]
"""Returns the present time, timezone-aware, in UTC."""

SYNC_SECONDS = 10.0
"""How long an answer of the database is used."""
# The time in which the machine was suspended must count too.
_STEADY = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def utcnow() -> datetime:
    """Return the present time by the clock of this host."""
    return datetime.now(UTC)


def clock_of(engine: Engine) -> Clock:
    """Return the clock of the stores on a database, by which they set and compare times."""
    return DatabaseClock(engine) if engine.dialect.name == "postgresql" else utcnow


class DatabaseClock:
    """The time of a PostgreSQL server; safe to call from several threads, inside a transaction too."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._syncing = Lock()
        self._answer: tuple[datetime, float] | None = None
        """A time of the database, and the steady time of this host at that moment, in seconds."""

    def __call__(self) -> datetime:
        """Return the present time. Raises SQLAlchemyError when the database must be asked and does not answer."""
        answer = self._answer
        if answer is None:
            with self._syncing:
                answer = self._answer or self._ask()
        elif _steady() - answer[1] > SYNC_SECONDS and self._syncing.acquire(blocking=False):
            # Only one thread asks: the others go on with the old answer, and hold up no connection meanwhile.
            try:
                answer = self._ask()
            finally:
                self._syncing.release()
        at, steady = answer
        return at + timedelta(seconds=_steady() - steady)

    def _ask(self) -> tuple[datetime, float]:
        with self._engine.connect() as connection:
            before = _steady()
            at: datetime = connection.scalar(text("SELECT clock_timestamp()"))
            after = _steady()
        self._answer = (at.astimezone(UTC), (before + after) / 2)
        return self._answer


def _steady() -> float:
    return time.clock_gettime(_STEADY)
