"""A Celery worker: one process, one job at a time, one GPU or the CPU.

    python -m workers.app           (options of `celery worker` may follow, such as --loglevel=DEBUG)
    python -m workers.app --once    takes one job and ends; needs no broker

Jobs name the worker that holds them `HOST:PID:DEVICE`, with the device as the settings have it; Celery knows it as
`DEVICE-PID@HOST`, unless -n says otherwise. So several workers can run on one host, one for each GPU.

The pool is `solo`: the task runs in the worker's main thread, which supervises the measurement in a process of its
own. On SIGTERM, SIGINT and SIGQUIT the job in hand goes back to the queue and the worker ends.
"""

import logging
import os
import signal
import socket
import sys
from collections.abc import Callable
from threading import Event

from celery import Celery
from celery.worker import state

from service import queue
from service.errors import ServiceUnreachable
from service.settings import Settings, settings
from service.startup import Stores, keep_private, open_stores, reporting_failure
from workers.lifetime import IdleWatch, renewal, run_once
from workers.sandbox.family import settle_worker
from workers.sandbox.programs import Commands
from workers.sandbox.sandbox import open_sandbox
from workers.supervisor import Supervisor

_HOST_CHARACTERS = 200


def make_worker(present: Settings, commands: Commands | None = None) -> Celery:
    """Return a Celery application with the one task that runs jobs; the database is brought up to date.

    `commands` are the programs that jobs run, by default this package's. Raises InvalidRequest for a setting that is
    not allowed, and ServiceUnreachable when the database does not answer.
    """
    app = queue.make_app(present)
    stores = open_stores(present)
    supervisor = _supervisor(present, stores, stopping, commands)
    idle = IdleWatch(supervisor.jobs_wait, renewal())
    app.task(name=queue.TASK)(idle.working(supervisor.run))
    idle.start()
    stores.workers.keep(worker_name(present), present.queues)
    return app


def _supervisor(
    present: Settings, stores: Stores, is_stopping: Callable[[], bool], commands: Commands | None = None
) -> Supervisor:
    settle_worker()
    sandbox = open_sandbox(present)
    # Once, in the log as well as for whoever starts the worker by hand.
    print(f"headroom worker: {sandbox.description()}", file=sys.stderr, flush=True)
    return Supervisor(
        stores.jobs,
        stores.artifacts,
        present,
        worker=worker_name(present),
        stopping=is_stopping,
        commands=commands,
        sandbox=sandbox,
    )


def worker_name(present: Settings) -> str:
    """Return what jobs call this worker; the host's name is cut to what the database has room for."""
    return f"{socket.gethostname()[:_HOST_CHARACTERS]}:{os.getpid()}:{present.device}"


def stopping() -> bool:
    """Whether this worker was told to stop.

    Celery's signal handlers, which run in the middle of the task, set these two to an exit status, which may be 0.
    They do so whatever goes wrong in them; the signal `worker_shutting_down` is not sent then.
    """
    return any(flag is not None and flag is not False for flag in (state.should_stop, state.should_terminate))


def main() -> None:
    """Run a worker until it is told to stop, or with --once for one job. It waits for its broker.

    Exits with 2 when a setting is not allowed, and with 3 when the database does not answer at the start.
    """
    keep_private()
    if sys.argv[1:2] == ["--once"]:
        sys.exit(_once())
    with reporting_failure("worker"):
        present = settings()
        app = make_worker(present)
    try:
        queue.waiting(app)
    except ServiceUnreachable as error:
        print(f"headroom worker: {error}; it is tried again until it answers", file=sys.stderr, flush=True)
    queues = ",".join(map(queue.queue_name, present.queues))
    usual = ["--loglevel=INFO", "-n", f"{present.device}-{os.getpid()}@%h", "-Q", queues]
    app.worker_main(
        [*queue.WORKER_ARGUMENTS, *usual, *sys.argv[1:]]
    )  # of an option that is given twice, the last counts


def _once() -> int:
    """Do one job without Celery and broker: the database says which; returns the exit status."""
    stop = Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
        signal.signal(number, lambda *_: stop.set())
    with reporting_failure("worker"):
        present = settings()
        stores = open_stores(present)
        supervisor = _supervisor(present, stores, stop.is_set)
        stores.workers.keep(worker_name(present), present.queues)
    logging.basicConfig(level=logging.INFO, format="[%(asctime)s: %(levelname)s] %(message)s")
    return run_once(supervisor, stores.jobs)


if __name__ == "__main__":
    main()
