"""Running one child process under a lease: its lines are read, and it is ended when the work must stop."""

import os
import subprocess
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from threading import Thread
from typing import IO

from service.processes import spawn, terminate

POLL_SECONDS = 0.2
GRACE_SECONDS = 5.0
"""Between SIGTERM and SIGKILL."""
_LONGEST_LINE = 1 << 16
_TAIL_LINES = 20
_SECRETS = ("HEADROOM_", "CELERY_", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "PGPASS", "AWS_")


@dataclass(frozen=True)
class Ended:
    """How a child ended."""

    status: int
    """Exit status; -N when signal N ended it."""
    errors: tuple[str, ...]
    """The last lines of its standard error."""

    @property
    def last_error(self) -> str:
        """The last line of standard error that is not blank, or nothing."""
        return next((line for line in reversed(self.errors) if line.strip()), "")


def run_child(
    command: Sequence[str],
    *,
    environment: Mapping[str, str],
    check: Callable[[], None],
    on_line: Callable[[bytes], None],
) -> Ended:
    """Run `command` to its end; its standard output goes to `on_line` line by line, in this thread.

    `check` is called several times a second. What it or `on_line` raises ends the child, with all it started, and is
    passed on. Lines over 64 KiB come in pieces.
    """
    process = spawn(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=dict(environment)
    )
    lines: SimpleQueue[bytes] = SimpleQueue()
    errors: deque[bytes] = deque(maxlen=_TAIL_LINES)
    readers = [_read(process.stdout, lines.put), _read(process.stderr, errors.append)]
    try:
        while process.poll() is None:
            check()
            try:
                on_line(lines.get(timeout=POLL_SECONDS))
            except Empty:
                continue
    finally:
        status = terminate(process, GRACE_SECONDS)
        for reader in readers:
            reader.join(GRACE_SECONDS)
    while not lines.empty():
        on_line(lines.get())
    return Ended(status, tuple(line.decode("utf-8", "replace").rstrip() for line in errors))


def without_secrets() -> dict[str, str]:
    """Return this process's environment without the credentials that a measurement must not see."""
    return {name: value for name, value in os.environ.items() if not name.startswith(_SECRETS)}


def _read(stream: IO[bytes] | None, take: Callable[[bytes], None]) -> Thread:
    assert stream is not None

    def read() -> None:
        with stream:
            while line := stream.readline(_LONGEST_LINE):
                take(line)

    thread = Thread(target=read, daemon=True)
    thread.start()
    return thread
