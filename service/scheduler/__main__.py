"""The scheduler: a process that repeats rounds of jobs, and in threads rounds of audits, deliveries and cleaning.

    python -m service.scheduler

Judging reports and slow receivers keep no job waiting. Any number of schedulers may run at once. SIGTERM and SIGINT may
break off a step anywhere: the next one does the rest.
"""

import logging
import signal
import sys
from datetime import timedelta
from functools import partial
from threading import Event, Thread
from typing import Any

from service.notifications.delivery import Deliverer
from service.scheduler.audit_rounds import audit_rounds
from service.scheduler.cleaning import LOOK_SECONDS, clean
from service.scheduler.repeating import Repeating
from service.scheduler.rounds import rounds
from service.settings import settings
from service.startup import keep_private, open_stores, reporting_failure

log = logging.getLogger("service.scheduler")

STOP_SECONDS = 5.0
"""How long a process that ends waits for a step in a thread; the next scheduler does what is broken off."""


def main() -> None:
    """Run until SIGTERM or SIGINT.

    Exits with 2 when a setting is not allowed, and with 3 when the database does not answer at the start.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    stop = Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))
    keep_private()
    with reporting_failure("scheduler"):
        present = settings()
        stores = open_stores(present)
        jobs = Repeating("rounds of jobs", rounds(present, stores.jobs))
        deliverer = Deliverer(present, stores.alerts)
    seconds = present.scheduler_seconds
    cleaning = partial(clean, stores.removals, stores.garbage, present.retention_days)
    pruning = partial(stores.alerts.prune, timedelta(days=present.delivery_days))
    beside: list[tuple[Repeating[Any], float]] = [
        (Repeating("rounds of audits", audit_rounds(present, stores)), seconds),
        (Repeating("deliveries of messages", deliverer.step), seconds),
        (Repeating("removals of expired reports and unneeded files", cleaning), LOOK_SECONDS),
        (Repeating("removals of old deliveries", pruning), LOOK_SECONDS),
        (Repeating("warnings of jobs that no worker takes", stores.workers.warn), LOOK_SECONDS),
    ]
    threads = [Thread(target=one.run, args=(pause, stop), name=one.name, daemon=True) for one, pause in beside]
    for thread in threads:
        thread.start()
    log.info("the scheduler runs a round every %g s", seconds)
    try:
        jobs.run(seconds, stop)
    finally:
        stop.set()
        for thread in threads:
            thread.join(STOP_SECONDS)
        deliverer.wait(STOP_SECONDS)


if __name__ == "__main__":
    main()
