"""The stack that commands share: it starts with the first command that needs one, and ends with the last.

It runs in a process of its own, `python -m service.local`, that no command's end takes with it. Every command that uses
it holds a lock in the home, which the kernel frees however the command ends. The last one stops the stack before it
ends itself; where that one was killed, the process sees that nobody holds the lock.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from service.errors import HeadroomError, StackStopped
from service.local.home import Home, Running
from service.local.programs import log_tail

PROGRAM = ("-m", "service.local")
STOP_SECONDS = 60.0
"""How long the last command waits for the end of the stack."""


class NotStarted(HeadroomError):
    """The shared stack could not be started; `code` and `status` are those of the reason."""

    def __init__(self, message: str, code: str, status: int) -> None:
        super().__init__(message)
        self.code = code  # type: ignore[misc]
        self.status = status  # type: ignore[misc]


@contextlib.contextmanager
def shared_stack(
    home: Home, environment: Mapping[str, str], on_join: Callable[[Running], None], on_start: Callable[[], None]
) -> Iterator[Running]:
    """Use the shared stack on a home, or the one of `headroom serve`; start the shared one where there is none.

    `environment` is for its worker. `on_join` is called with a stack that runs already, and may raise; `on_start`
    before one is started. Raises HomeInUse and NotStarted.
    """
    home.prepare()
    with home.using() as is_last:
        with home.starting():
            running = home.running()
            if running is not None and running.purpose != "command":
                on_join(running)
            else:
                on_start()
                running = _start(home, environment)
        try:
            yield running
        finally:
            if running.purpose == "shared" and is_last():
                _stop(home, running)


def check(home: Home) -> None:
    """Raise StackStopped when no stack runs on the home."""
    if home.running() is None:
        raise StackStopped(f"the stack has stopped; {log_tail(_log(home))}")


def _start(home: Home, environment: Mapping[str, str]) -> Running:
    with _log(home).open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-P", *PROGRAM],
            env={**os.environ, "HEADROOM_HOME": str(home.path), **environment},
            cwd=home.path,
            umask=0o077,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,  # Ctrl-C in the terminal is for the command alone
        )
    assert process.stdout is not None
    with process.stdout as answer:
        try:
            said = answer.readline()
        except BaseException:
            process.terminate()
            process.wait()
            raise
    if not said:
        raise StackStopped(f"the stack ended (exit status {process.wait()}); {log_tail(_log(home))}")
    document = json.loads(said)
    if "url" not in document:
        process.wait()
        raise NotStarted(**document)
    return Running(document["url"], process.pid, "shared")


def _stop(home: Home, running: Running) -> None:
    """End the shared stack, and wait until it has ended."""
    if home.running() != running:
        return
    os.kill(running.pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_SECONDS
    while home.is_locked() and time.monotonic() < deadline:
        time.sleep(0.05)


def _log(home: Home) -> Path:
    return home.logs / "stack.log"
