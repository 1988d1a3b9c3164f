"""The scheduler: a process that repeats rounds of jobs.

    python -m service.scheduler

Any number of them may run at once. SIGTERM and SIGINT may break off a step anywhere: the next one does the rest.
"""

import logging
import signal
import sys
from threading import Event

from service.scheduler.repeating import Repeating
from service.scheduler.rounds import rounds
from service.settings import settings
from service.startup import open_stores, reporting_failure

log = logging.getLogger("service.scheduler")


def main() -> None:
    """Run until SIGTERM or SIGINT.

    Exits with 2 when a setting is not allowed, and with 3 when the database does not answer at the start.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    stop = Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))
    with reporting_failure("scheduler"):
        present = settings()
        stores = open_stores(present)
        jobs = Repeating("rounds of jobs", rounds(present, stores.jobs))
    log.info("the scheduler runs a round every %g s", present.scheduler_seconds)
    jobs.run(present.scheduler_seconds, stop)


if __name__ == "__main__":
    main()
