"""Runs the stack: broker, API, scheduler and workers, as child processes that end with this process.

They are the programs that production runs on several machines; here they share a home directory, and reach each other
over a Unix socket and the loopback address. A worker that ends is started again. When another child ends, the stack
stops, because a stack without one of its parts would accept jobs and never finish them.
"""

import contextlib
import os
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

from service.errors import InvalidRequest, StackStopped
from service.local import broker
from service.local.home import Home, Purpose, Running
from service.local.programs import Programs
from service.local.workers import Workers
from service.settings import Settings

START_SECONDS = 60.0
"""How long a child may take to answer."""
GRACE_SECONDS = 5.0
"""How long a child other than a worker may take to end before it is killed."""
SOCKET_PATH_BYTES = 100
"""Unix sockets' paths must be shorter than 104 bytes on some systems, 108 on others."""
LOOPBACK = ("127.0.0.1", "::1", "localhost")
MOST_SHORT_LIVES = 3
"""Of a worker in a stack that a command waits for."""


class Stack:
    """A context in which the stack runs, with a worker for each of `devices`.

    Without any there is only the API: enough to look at what is stored.
    """

    def __init__(self, settings: Settings, *, purpose: Purpose, devices: Sequence[str], host: str, port: int) -> None:
        self.home = Home(settings)
        self.key = ""
        self.url = ""
        self._purpose: Purpose = purpose
        self._address = (host, port)
        self._broker_url = settings.broker_url.get_secret_value() if settings.broker_url else None
        self._programs = Programs(self.home.path, self.home.logs)
        self._watched: list[str] = []
        """Children whose end is the stack's."""
        most_short_lives = None if purpose == "serve" else MOST_SHORT_LIVES
        self._workers = Workers(self._programs, settings, devices, most_short_lives) if devices else None
        self._context = contextlib.ExitStack()

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._context.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._context.close()

    def check(self) -> None:
        """Start workers again that have ended. Raises StackStopped when another child has ended."""
        self._check_watched()
        if self._workers is not None:
            self._workers.check()

    def _check_watched(self) -> None:
        for name in self._watched:
            self._programs.check(name)

    def _start(self) -> None:
        self.home.prepare()
        self._context.enter_context(self.home.lock())
        self.key = self.home.make_key()
        self._context.callback(self._stop)
        if self._workers is not None:
            if self._broker_url is None:
                self._start_broker()
            else:
                self._check_broker()
            self._programs.environment["HEADROOM_BROKER_URL"] = self._broker_url or ""
            self._programs.environment |= trusting(self._address[0])
        self._start_api()
        if self._workers is not None:
            self._start_program("scheduler", ["-m", "service.scheduler"])
            self._context.callback(self._stop_workers, self._workers)
            self._workers.start()
        self._context.enter_context(self.home.announce(Running(self.url, os.getpid(), self._purpose)))

    def _check_broker(self) -> None:
        """Raise ServiceUnreachable when the broker that HEADROOM_BROKER_URL names does not answer."""
        from service import queue  # which loads Celery; this process needs it for nothing else

        queue.waiting(queue.make_app(self.home.settings))

    def _start_broker(self) -> None:
        directory = _short_directory()
        self._context.callback(shutil.rmtree, directory, ignore_errors=True)
        # Registered again so that the children are gone before their directory goes.
        self._context.callback(self._stop)
        with self._programs.log("broker") as log:
            process, path, self._broker_url = broker.start(directory, log)
        self._programs.add("broker", process)
        self._watched.append("broker")
        self._wait("broker", path.exists)

    def _start_api(self) -> None:
        host, port = self._address
        with _listen(host, port) as listener:
            bound: int = listener.getsockname()[1]
            descriptor = listener.fileno()
            arguments = ["-m", "service.api", "--fd", str(descriptor)]
            more = {"HEADROOM_API_KEY": self.key}
            self._programs.start("api", arguments, pass_fds=(descriptor,), more=more)
        self._watched.append("api")
        self.url = f"http://{_reachable(host)}:{bound}"
        self._wait("api", self._answers)

    def _start_program(self, name: str, arguments: Sequence[str]) -> None:
        self._programs.start(name, arguments)
        self._watched.append(name)

    def _answers(self) -> bool:
        try:
            return httpx.get(f"{self.url}/healthz", timeout=1.0, trust_env=False).is_success
        except httpx.TransportError:
            return False

    def _wait(self, name: str, ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not ready():
            self._check_watched()
            if time.monotonic() > deadline:
                tail = self._programs.log_tail(name)
                raise StackStopped(f"the {name} did not answer within {START_SECONDS:.0f} s; {tail}")
            time.sleep(0.02)

    def _stop_workers(self, workers: Workers) -> None:
        """End the workers, before the rest: they give their jobs back while that still answers."""
        with _uninterrupted():
            workers.stop()

    def _stop(self) -> None:
        """End every child but the workers, the broker last."""
        with _uninterrupted():
            for name in ("scheduler", "api", "broker"):
                self._programs.stop([name], GRACE_SECONDS)


def trusting(host: str) -> dict[str, str]:
    """Return the environment variables of a worker whose jobs come from this machine's users alone.

    They may name any directory and model type, as they can read the directories themselves. Variables that are set
    already stay, and on an address that others reach there are none.
    """
    if host not in LOOPBACK:
        return {}
    wanted = {"HEADROOM_MODEL_ROOTS": "/", "HEADROOM_ANY_MODEL_TYPE": "true"}
    return {name: value for name, value in wanted.items() if name not in os.environ}


def _listen(host: str, port: int) -> socket.socket:
    """Return a listening socket. Raises InvalidRequest when the address cannot be had."""
    try:
        return socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=128
        )
    except OSError as error:
        allowed = f"an address of this machine and a free port ({error.strerror or error})"
        raise InvalidRequest("--host and --port", f"{host} {port}", allowed) from error


def _reachable(host: str) -> str:
    """Return the host under which this machine reaches a server that listens on `host`."""
    here = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)
    return f"[{here}]" if ":" in here else here


def _short_directory() -> Path:
    """Make a directory of mode 700 whose name leaves room for a socket's."""
    directory = Path(tempfile.mkdtemp(prefix="headroom-"))
    if len(os.fsencode(directory)) + len("/broker.sock") > SOCKET_PATH_BYTES:
        directory.rmdir()
        directory = Path(tempfile.mkdtemp(prefix="headroom-", dir="/tmp"))
    return directory


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Let a second Ctrl-C wait until everything is stopped; only the main thread can be interrupted at all."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
