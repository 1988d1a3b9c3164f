"""Runs one child process under a lease: reads its lines, and ends it when the work must stop."""

import subprocess
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, Queue
from threading import Thread
from typing import IO

from service.processes import spawn, terminate

POLL_SECONDS = 0.2
GRACE_SECONDS = 5.0
"""Between SIGTERM and SIGKILL."""
_LONGEST_LINE = 1 << 16
_TAIL_LINES = 20
_DRAIN_SECONDS = 0.01
_WAITING_LINES = 1000
"""Read and not yet taken; a child that prints faster than its lines are stored waits."""


@dataclass(frozen=True)
class Ended:
    """How a child ended."""

    status: int
    """Exit status; -N when signal N ended it."""
    errors: tuple[str, ...]
    """The last lines of its standard error."""
    peak_bytes: int | None = None
    """The most memory that it and its children held, where that was watched."""

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
    clear_up: Callable[[], None] = lambda: None,
    umask: int = -1,
) -> Ended:
    """Run `command` to its end; its standard output goes to `on_line` line by line, in this thread.

    `check` is called several times a second. What it or `on_line` raises ends the child, with all it started, and is
    passed on. Lines over 64 KiB come in pieces. `clear_up` is called when the child and its group have ended, to end
    what has left the group. `umask` is the child's; -1: this process's.
    """
    process = spawn(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=dict(environment),
        umask=umask,
    )
    lines: Queue[bytes] = Queue(_WAITING_LINES)
    errors: deque[bytes] = deque(maxlen=_TAIL_LINES)
    reader, error_reader = _read(process.stdout, lines.put), _read(process.stderr, errors.append)
    try:
        _follow(process, lines, check, on_line)
    finally:
        status = terminate(process, GRACE_SECONDS)
        clear_up()
        rest = _drain(reader, lines)
        error_reader.join(GRACE_SECONDS)
    for line in rest:
        on_line(line)
    return Ended(status, tuple(line.decode("utf-8", "replace").rstrip() for line in errors if line))


def _follow(
    process: subprocess.Popen[bytes], lines: Queue[bytes], check: Callable[[], None], on_line: Callable[[bytes], None]
) -> None:
    """Hand the lines of a process to `on_line` until it ends; what `check` and `on_line` raise is passed on."""
    while process.poll() is None:
        check()
        with suppress(Empty, subprocess.TimeoutExpired):
            if line := lines.get(timeout=POLL_SECONDS):
                on_line(line)
            else:
                process.wait(POLL_SECONDS)


def _drain(reader: Thread, lines: Queue[bytes]) -> list[bytes]:
    """Return the lines that were not taken yet, and let the reader end, which may wait for room."""
    deadline = time.monotonic() + GRACE_SECONDS
    rest = []
    while time.monotonic() < deadline and (reader.is_alive() or not lines.empty()):
        with suppress(Empty):
            rest.append(lines.get(timeout=_DRAIN_SECONDS))
    return [line for line in rest if line]


def _read(stream: IO[bytes] | None, take: Callable[[bytes], None]) -> Thread:
    """Let `take` have every line of a stream, and at its end an empty one, in a thread."""
    assert stream is not None

    def read() -> None:
        with stream:
            while line := stream.readline(_LONGEST_LINE):
                take(line)
        take(b"")

    thread = Thread(target=read, daemon=True)
    thread.start()
    return thread
