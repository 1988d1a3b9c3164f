"""One round for jobs: requeues those of lost workers and sends missing messages.

Jobs whose worker was lost go back to the queue; dispatches that never reached the broker are sent; and if the broker
holds fewer messages than there are queued jobs, the messages of jobs that have waited are sent again. A step may be
interrupted, repeated, or done by two schedulers at once: workers drop messages that are stale or double.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from service import queue
from service.contracts.request import SizeClass
from service.settings import Settings
from service.store.dispatches import Dispatches
from service.store.job_records import Dispatch
from service.submission import Send

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
    send: Send,
    waiting: Callable[[], Mapping[SizeClass, int]],
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
    present = waiting() if expected else {}
    lacking = [size for size, count in expected.items() if present.get(size, 0) < count]
    resent = _send_all(store, store.unanswered_dispatches(answer_seconds, lacking), send) if lacking else 0
    if requeued or resent:
        log.warning("%d jobs taken from lost workers, %d lost messages sent again", requeued, resent)
    return Round(requeued, sent, resent)


def _send_all(store: Dispatches, dispatches: Sequence[Dispatch], send: Send) -> int:
    for dispatch in dispatches:
        send(dispatch.job_id, dispatch.number, dispatch.size)
        store.mark_sent(dispatch.job_id, dispatch.number)
    return len(dispatches)


def rounds(settings: Settings, store: Dispatches) -> Callable[[], Round]:
    """Return a function that does one round with the broker that the settings name."""
    app = queue.make_app(settings)
    send, waiting = partial(queue.send, app), partial(queue.waiting, app)
    return partial(run_round, store, send, waiting, max_attempts=settings.max_attempts)
