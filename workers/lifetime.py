"""Runs a worker for one job (--once), and restarts a worker that gets no messages although jobs wait.

A worker that is idle although jobs wait has lost its connection to the broker without an error. It replaces itself by a
new process of the same id.
"""

import logging
import sys
import time
from collections.abc import Callable
from functools import partial
from threading import Event, Lock, Thread
from typing import NoReturn

from sqlalchemy.exc import SQLAlchemyError

from service.processes import parent_death_signal, replace_process
from service.store.jobs import JobStore
from service.store.statuses import Status
from workers.supervisor import Supervisor

log = logging.getLogger(__name__)

IDLE_SECONDS = 120.0
"""Seconds for which a worker may be idle while jobs wait."""
POLL_SECONDS = 10.0

DONE, FAILED, NONE_WAITING, NOT_ENDED = 0, 1, 5, 6
"""Exit statuses of a worker for one job; 2 and 3 as of every command."""
_STATUS = {Status.succeeded: DONE, Status.cancelled: DONE, Status.failed: FAILED}


def run_once(supervisor: Supervisor, store: JobStore) -> int:
    """Take one job from the database and do it; returns the exit status of the worker.

    DONE: it ended with a report, or was canceled. FAILED: it failed. NONE_WAITING: there was no job to take.
    NOT_ENDED: this worker was stopped, or lost the job to another.
    """
    job_id = supervisor.run_next()
    if job_id is None:
        log.info("no job waits for this worker")
        return NONE_WAITING
    return _STATUS.get(store.get(job_id).status, NOT_ENDED)


class IdleWatch:
    """Restarts a worker that gets no message although there are jobs that it may take."""

    def __init__(
        self, jobs_wait: Callable[[], bool], restart: Callable[[], None], seconds: float = IDLE_SECONDS
    ) -> None:
        self._ask = jobs_wait
        self._restart = restart
        self._seconds = seconds
        self._working = Lock()
        self._since: float | None = None
        self._stopped = Event()

    def working(self, run: Callable[[str, int], object]) -> Callable[[str, int], None]:
        """Return a task that runs a job, during which the worker is not idle."""

        def task(job_id: str, dispatch: int) -> None:
            with self._working:
                self._since = None
                run(job_id, dispatch)

        return task

    def start(self, poll_seconds: float = POLL_SECONDS) -> Thread:
        """Check every `poll_seconds`, in a thread that ends with the process or with `stop`."""

        def watch() -> None:
            while not self._stopped.wait(poll_seconds):
                self.look(time.monotonic())

        thread = Thread(target=watch, name="idle watch", daemon=True)
        thread.start()
        return thread

    def stop(self) -> None:
        """End the thread at its next check."""
        self._stopped.set()

    def look(self, now: float) -> None:
        """Restart the worker if jobs have waited beside it for too long; `now` in seconds of any clock."""
        if not self._working.acquire(blocking=False):
            return
        try:  # with the lock, for no job may begin between this look and the restart
            if not self._jobs_wait():
                self._since = None
            elif self._since is None:
                self._since = now
            elif now - self._since >= self._seconds:
                log.error("jobs wait and no message has come for %.0f s; this worker restarts", now - self._since)
                self._since = None
                self._restart()
        finally:
            self._working.release()

    def _jobs_wait(self) -> bool:
        try:
            return self._ask()
        except SQLAlchemyError:  # then a restart would not help
            return False


def renewal() -> Callable[[], NoReturn]:
    """Return what replaces this process, from any thread, by a new one with the same command line and process id.

    Call it in the main thread: as before, the new process is ended with its parent.
    """
    return partial(replace_process, sys.orig_argv[1:], parent_death_signal())
