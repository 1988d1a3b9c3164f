"""Requeues the jobs of lost workers and sends missing messages, in rounds.

One round: jobs whose worker was lost go back to the queue; dispatches that never reached the broker are sent; and if
the broker holds fewer messages than there are queued jobs, the messages of jobs that have waited are sent again. A
step may be interrupted, repeated, or done by two schedulers at once: workers drop messages that are stale or double.
"""

import logging
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NoReturn

from sqlalchemy.exc import SQLAlchemyError

from service import queue
from service.errors import ServiceUnreachable
from service.settings import Settings, settings
from service.startup import open_stores, reporting_failure
from service.store.dispatches import Dispatches
from service.store.job_records import Dispatch

log = logging.getLogger(__name__)

ANSWER_SECONDS = 10.0
"""When messages are missing, they are those of jobs whose message was last sent longer ago than this."""


@dataclass(frozen=True)
class Round:
    """Counts of what one round did."""

    requeued: int
    """Jobs taken from lost workers."""
    sent: int
    """Dispatches sent for the first time."""
    resent: int
    """Dispatches sent again."""


def run_round(
    store: Dispatches,
    send: Callable[[str, int], None],
    waiting: Callable[[], int],
    *,
    max_attempts: int,
    answer_seconds: float = ANSWER_SECONDS,
) -> Round:
    """Do one round. `send` and `waiting` speak to the broker, and raise ServiceUnreachable when it is down."""
    requeued = len(store.requeue_expired(max_attempts))
    sent = _send_all(store, store.unsent_dispatches(), send)
    # Jobs are counted before messages: a job that is taken in between makes the broker hold one too few, and the
    # message is sent once too often. The other order could hide a loss behind a message that has just come.
    expected = store.expected_messages()
    lost = expected > 0 and waiting() < expected
    resent = _send_all(store, store.unanswered_dispatches(answer_seconds), send) if lost else 0
    return Round(requeued, sent, resent)


def _send_all(store: Dispatches, dispatches: Sequence[Dispatch], send: Callable[[str, int], None]) -> int:
    for dispatch in dispatches:
        send(dispatch.job_id, dispatch.number)
        store.mark_sent(dispatch.job_id, dispatch.number)
    return len(dispatches)


class Scheduler:
    """Repeats rounds; logs a failure when it begins and when it ends, not every round."""

    def __init__(self, settings: Settings, store: Dispatches) -> None:
        app = queue.make_app(settings)
        self._send = partial(queue.send, app)
        self._waiting = partial(queue.waiting, app)
        self._settings = settings
        self._store = store
        self._trouble: str | None = None

    def step(self) -> Round | None:
        """Do one round; None when the broker or the database was in the way, which is logged once."""
        try:
            done = run_round(self._store, self._send, self._waiting, max_attempts=self._settings.max_attempts)
        except (ServiceUnreachable, SQLAlchemyError) as error:
            if self._trouble != type(error).__name__:
                log.error("a round was broken off, and will be tried again until it succeeds: %s", error)
            self._trouble = type(error).__name__
            return None
        if self._trouble:
            log.info("rounds succeed again")
            self._trouble = None
        if done.requeued or done.resent:
            log.warning("%d jobs taken from lost workers, %d lost messages sent again", done.requeued, done.resent)
        return done

    def run(self) -> NoReturn:
        """Do rounds until the process is told to stop."""
        while True:
            self.step()
            time.sleep(self._settings.scheduler_seconds)


def main() -> NoReturn:
    """Run the loop until SIGTERM or SIGINT, which may break off a round anywhere: the next one does the rest.

    Exits with 2 when a setting is not allowed, and with 3 when the database does not answer at the start.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))
    with reporting_failure("scheduler"):
        present = settings()
        scheduler = Scheduler(present, open_stores(present).jobs)
    log.info("the scheduler runs a round every %g s", present.scheduler_seconds)
    scheduler.run()


if __name__ == "__main__":
    main()
