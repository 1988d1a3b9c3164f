"""Tells who follows jobs that these have new events, whichever process wrote them.

PostgreSQL notifies of every event, over one connection of this process outside the pool; a notification has nothing but
the job's id. On SQLite the process hears of its own commits, and asks for those of others. One thread does this for all
followers, with one query however many there are, and lives only while there are any.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from threading import Event, Lock, Thread
from typing import Any, Self

from sqlalchemy import Engine, event, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from service.store.database import is_writer
from service.store.owners.access import Access
from service.store.tables import JobRow
from service.store.transactions import Transactions

log = logging.getLogger(__name__)

CHANNEL = "headroom_events"
"""Of the notifications; a trigger of the table of events sends them."""
POLL_SECONDS = 0.3
"""Pause between two queries on SQLite."""
FALLBACK_SECONDS = 5.0
"""Pause between two queries on PostgreSQL, for notifications that were missed."""


@dataclass(eq=False)
class Follower:
    """Who follows a job."""

    job_id: str
    wake: Callable[[], None]
    """Called from another thread; it must not block."""
    seen: int
    """Number of the last event that it has."""


class EventNews(Transactions):
    """The followers of this process, and the thread that wakes them."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self._followers: dict[str, set[Follower]] = {}
        self._lock = Lock()
        self._thread: Thread | None = None
        self._committed = Event()

    def seen_by(self, access: Access) -> Self:  # noqa: ARG002
        """Return the same followers: the job store says who may follow a job."""
        return self

    @contextmanager
    def follow(self, job_id: str, wake: Callable[[], None], seen: int) -> Iterator[Follower]:
        """Have `wake` called when the job has events after `seen`; it may be called without any, too.

        The value's `seen` is the caller's to keep up.
        """
        follower = Follower(job_id, wake, seen)
        with self._lock:
            self._followers.setdefault(job_id, set()).add(follower)
            if self._thread is None or not self._thread.is_alive():
                self._thread = Thread(target=self._run, name="news of events", daemon=True)
                self._thread.start()
        try:
            yield follower
        finally:
            with self._lock:
                self._followers[job_id].discard(follower)
                if not self._followers[job_id]:
                    del self._followers[job_id]

    def _run(self) -> None:
        dialect = self._reader.dialect
        listen = self._listen if dialect.name == "postgresql" else self._poll_often
        trouble = False
        while self._goes_on():
            try:
                listen()
                trouble = False
            except Exception as error:  # whatever it was, the followers must hear of their events
                expected = isinstance(error, SQLAlchemyError | dialect.loaded_dbapi.Error)
                if not trouble:
                    detail = None if expected else error
                    log.warning("no news of events; the database is asked now and then: %s", error, exc_info=detail)
                trouble = True
                self._committed.wait(FALLBACK_SECONDS)
                with suppress(Exception):  # it is said above, and tried again
                    self._wake_behind()

    def _goes_on(self) -> bool:
        """Whether there are followers; if not, the next one starts another thread."""
        with self._lock:
            if not self._followers:
                self._thread = None
            return bool(self._followers)

    def _listen(self) -> None:
        """Wake the followers of whatever PostgreSQL notifies of, until there are none."""
        dialect = self._reader.dialect
        arguments, options = dialect.create_connect_args(self._reader.url)
        psycopg: Any = dialect.loaded_dbapi
        with psycopg.connect(*arguments, **options, autocommit=True) as connection:
            connection.execute(f"LISTEN {CHANNEL}")
            while self._followers:
                self._wake_behind()
                for notification in connection.notifies(timeout=FALLBACK_SECONDS):
                    self._wake(notification.payload)

    def _poll_often(self) -> None:
        """Wake the followers that are behind after every commit here and now and then, until there are none."""

        def committed(session: Session) -> None:
            if is_writer(session.get_bind()):
                self._committed.set()

        event.listen(Session, "after_commit", committed)
        try:
            while self._followers:
                self._wake_behind()
                self._committed.wait(POLL_SECONDS)
                self._committed.clear()
        finally:
            event.remove(Session, "after_commit", committed)

    def _wake_behind(self) -> None:
        """Wake the followers of jobs that have more events than they have seen, or that are gone."""
        with self._lock:
            followed = list(self._followers)
        with self._read() as session:
            rows = session.execute(select(JobRow.id, JobRow.events).where(JobRow.id.in_(followed)))
            last = {job_id: number for job_id, number in rows}  # noqa: C416
        for job_id in followed:
            self._wake(job_id, last.get(job_id))

    def _wake(self, job_id: str, last: int | None = None) -> None:
        """Wake the followers of a job; where its last event's number is known, only those that are behind."""
        with self._lock:
            followers = list(self._followers.get(job_id, ()))
        for follower in followers:
            if last is None or follower.seen < last:
                follower.wake()
