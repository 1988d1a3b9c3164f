"""Runs the stack: broker, API, scheduler and worker, as child processes that end with this process.

They are the programs that production runs on several machines; here they share a home directory, and reach each other
over a Unix socket and the loopback address. When a child ends, the stack stops, because a stack without one of its
parts would accept jobs and never finish them.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import httpx

from service.errors import InvalidRequest, StackStopped
from service.local import broker
from service.local.home import Home, Purpose, Running
from service.processes import spawn, terminate
from service.settings import Settings

START_SECONDS = 60.0
"""How long a child may take to answer."""
GRACE_SECONDS = {"worker": 10.0, "scheduler": 5.0, "api": 5.0, "broker": 5.0}
"""The children in the order in which they are stopped, and how long each may take before it is killed."""
SOCKET_PATH_BYTES = 100
"""Unix sockets' paths must be shorter than 104 bytes on some systems, 108 on others."""
LOG_TAIL_LINES = 5
LOOPBACK = ("127.0.0.1", "::1", "localhost")
WORKER_COMMAND = ("-m", "workers.app")
"""Arguments to Python; the worker's code is named, never imported."""


class Stack:
    """A context in which the stack runs. Without `workers` there is only the API: enough to look at what is stored."""

    def __init__(self, settings: Settings, *, purpose: Purpose, workers: bool, host: str, port: int) -> None:
        self.home = Home(settings)
        self.key = ""
        self.url = ""
        self._purpose: Purpose = purpose
        self._workers = workers
        self._address = (host, port)
        self._for_worker = for_worker(settings)
        self._broker_url = settings.broker_url.get_secret_value() if settings.broker_url else None
        self._children: dict[str, subprocess.Popen[bytes]] = {}
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
        """Raise StackStopped when a child has ended."""
        for name, child in self._children.items():
            if child.poll() is not None:
                raise StackStopped(self._ended_message(name, child))

    def _start(self) -> None:
        self.home.prepare()
        self._context.enter_context(self.home.lock())
        self.key = self.home.make_key()
        self._context.callback(self._stop)
        if self._workers:
            if self._broker_url is None:
                self._start_broker()
            else:
                self._check_broker()
        self._start_api()
        if self._workers:
            self._spawn("scheduler", ["-m", "service.scheduler"])
            own = trusting(self._address[0]) | self._for_worker
            self._spawn("worker", list(WORKER_COMMAND), more=own)
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
        with self._log("broker") as log:
            process, path, self._broker_url = broker.start(directory, log)
        self._children["broker"] = process
        self._wait("broker", path.exists)

    def _start_api(self) -> None:
        host, port = self._address
        with _listen(host, port) as listener:
            bound: int = listener.getsockname()[1]
            descriptor = listener.fileno()
            self._spawn(
                "api",
                ["-m", "service.api", "--fd", str(descriptor)],
                pass_fds=(descriptor,),
                more={"HEADROOM_API_KEY": self.key},
            )
        self.url = f"http://{_reachable(host)}:{bound}"
        self._wait("api", self._answers)

    def _answers(self) -> bool:
        try:
            return httpx.get(f"{self.url}/healthz", timeout=1.0, trust_env=False).is_success
        except httpx.TransportError:
            return False

    def _spawn(
        self, name: str, arguments: list[str], *, pass_fds: tuple[int, ...] = (), more: dict[str, str] | None = None
    ) -> None:
        environment = {name: value for name, value in os.environ.items() if name != "HEADROOM_API_KEY"}
        environment["HEADROOM_HOME"] = str(self.home.path)
        if self._broker_url is not None:
            environment["HEADROOM_BROKER_URL"] = self._broker_url
        environment.update(more or {})
        with self._log(name) as log:
            # -P and the home as working directory: no file of the user's working directory is imported.
            self._children[name] = spawn(
                [sys.executable, "-P", *arguments],
                env=environment,
                cwd=self.home.path,
                umask=0o077,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=pass_fds,
            )

    def _wait(self, name: str, ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not ready():
            self.check()
            if time.monotonic() > deadline:
                raise StackStopped(f"the {name} did not answer within {START_SECONDS:.0f} s; {self._log_tail(name)}")
            time.sleep(0.02)

    def _stop(self) -> None:
        """End every child, the worker first, so that it can hand its job back while the rest still answers."""
        with _uninterrupted():
            for name, grace in GRACE_SECONDS.items():
                child = self._children.pop(name, None)
                if child is not None:
                    terminate(child, grace)

    @contextlib.contextmanager
    def _log(self, name: str) -> Iterator[BinaryIO]:
        """Open a new log for a child; the one before it is kept beside it."""
        path = self.home.logs / f"{name}.log"
        with contextlib.suppress(FileNotFoundError):
            path.replace(path.with_suffix(".log.1"))
        with path.open("wb") as file:
            yield file

    def _ended_message(self, name: str, child: subprocess.Popen[bytes]) -> str:
        code = child.returncode
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
        return f"the {name} ended ({how}), so the stack stops; {self._log_tail(name)}"

    def _log_tail(self, name: str) -> str:
        path = self.home.logs / f"{name}.log"
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_TAIL_LINES:]
        return "\n  ".join([f"the end of its log, {path}:", *lines]) if lines else f"its log, {path}, is empty"


def for_worker(settings: Settings) -> dict[str, str]:
    """Return the environment variables of what a command may choose for its worker."""
    return {"HEADROOM_MEMORY": str(int(settings.memory)), "HEADROOM_DEVICE": settings.device}


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
