"""`headroom serve` and `headroom worker`: programs that stay until they are stopped."""

import os
import sys
import time

from service.cli import output
from service.cli.connection import WorkerOptions, require_worker, with_options
from service.cli.running import interruptible
from service.errors import InvalidRequest
from service.local.devices import worker_devices
from service.local.stack import Stack
from service.local.workers import WORKER_COMMAND, worker_environment
from service.settings import settings

CHECK_SECONDS = 0.3
"""Pause between two looks at the children."""


def serve(*, host: str | None, port: int | None, workers: int | None, options: WorkerOptions, as_json: bool) -> None:
    """Run the whole stack until SIGINT or SIGTERM. Raises StackStopped when a part of it but a worker dies."""
    chosen = with_options(settings(), options)
    require_worker()
    host = chosen.host if host is None else host
    port = chosen.port if port is None else port
    devices = worker_devices(chosen.device, workers)
    try:
        with interruptible(), Stack(chosen, purpose="serve", devices=devices, host=host, port=port) as stack:
            _announce(stack, as_json=as_json)
            while True:
                stack.check()
                time.sleep(CHECK_SECONDS)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)


def worker(arguments: list[str], options: WorkerOptions, *, once: bool) -> None:
    """Become a Celery worker, to which `arguments` go, or a worker for one job."""
    chosen = with_options(settings(), options)
    require_worker()
    if once:
        if arguments:
            raise InvalidRequest("--once", " ".join(arguments), "no options of `celery worker` beside it")
        arguments = ["--once"]
    elif chosen.broker_url is None:
        raise InvalidRequest(
            "HEADROOM_BROKER_URL",
            None,
            "redis://HOST:PORT/0",
            message="HEADROOM_BROKER_URL is not set; a worker needs it: redis://HOST:PORT/0",
        )
    environment = {**os.environ, **worker_environment(str(int(chosen.memory)), chosen.device)}
    os.execve(sys.executable, [sys.executable, "-P", *WORKER_COMMAND, *arguments], environment)


def _announce(stack: Stack, *, as_json: bool) -> None:
    if as_json:
        output.document({"url": stack.url, "pid": os.getpid(), "home": str(stack.home.path)})
        return
    console = output.results()
    output.line(console, f"Headroom listens on {stack.url} (Ctrl-C stops it)")
    output.line(console, f"home {stack.home.path}, logs {stack.home.logs}, API key in {stack.home.path / 'api-key'}")
