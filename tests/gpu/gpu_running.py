"""Runs a step in a process of its own, and keeps what it says even if it is cut short.

A step prints JSON objects, one a line: a figure, a detail, a problem, or why it is skipped. Whatever else it writes
goes into a log. It may hang, crash or be killed by a signal: that harms no other step.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from gpu_forking import Forked
from gpu_steps import Step

Result = dict[str, Any]
"""A line of gpu.jsonl."""
Process = subprocess.Popen[str] | Forked


class Interruption:
    """Whether the run was told to end; then its processes are killed, and no other begins."""

    def __init__(self) -> None:
        self.signal_name: str | None = None
        self._running: set[Process] = set()

    def listen(self) -> None:
        """Take SIGTERM and SIGINT."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._heard)

    def start(self, begin: Callable[[], Process]) -> Process:
        """Start a process, which has a group of its own."""
        process = begin()
        self._running.add(process)
        if self.signal_name is not None:
            kill_group(process)
        return process

    def ended(self, process: Process) -> None:
        """Forget a process, and end whatever it has started and left behind."""
        kill_group(process)
        self._running.discard(process)

    def _heard(self, number: int, _frame: object) -> None:
        self.signal_name = signal.Signals(number).name
        for process in tuple(self._running):
            kill_group(process)


def kill_group(process: Process) -> None:
    """Kill a process and those that it has started."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


class _Said:
    """What a step has said so far; a figure said again takes the place of the first."""

    def __init__(self) -> None:
        self.figures: dict[str, Result] = {}
        self.details: dict[str, Any] = {}
        self.problems: list[str] = []
        self.skipped: str | None = None

    def read(self, stream: Any) -> None:
        """Read all lines, and close the stream."""
        with stream:
            for line in stream:
                with suppress(ValueError, TypeError, KeyError):  # the last of a process that was killed may be cut off
                    self._take(json.loads(line))

    def _take(self, said: Result) -> None:
        if "figure" in said:
            self.figures[said["figure"]] = said
        elif "detail" in said:
            self.details[said["detail"]] = said["value"]
        elif "problem" in said:
            self.problems.append(said["problem"])
        else:
            self.skipped = said["skipped"]


def run_step(
    step: Step, options: Sequence[str], limit: float, log: Path, environment: Mapping[str, str] | None, by: Interruption
) -> Result:
    """Run a step for `limit` seconds at most, and return its line.

    `environment`: of a new process; without it the step is a fork, see `gpu_forking.preload`.
    """
    said, began, timed_out = _Said(), time.monotonic(), False
    with log.open("w", encoding="utf-8") as errors:
        process = by.start(lambda: _begin([str(step.file), *step.arguments, *options], errors, environment))
        reader = threading.Thread(target=said.read, args=(process.stdout,), daemon=True)
        reader.start()
        try:
            process.wait(limit)
        except subprocess.TimeoutExpired:
            timed_out = True
        by.ended(process)
        status_code = process.wait()
        reader.join(5)
    status, error = _outcome(status_code, timed_out, limit, said, log, by.signal_name)
    line: Result = {"step": step.name, "title": step.title, "status": status}
    line |= {"seconds": round(time.monotonic() - began, 1), "budget_seconds": step.budget_seconds}
    line |= {"error": error} if error else {}
    line |= {"figures": list(said.figures.values()), "details": said.details, "problems": said.problems}
    return line


def _begin(program: list[str], errors: TextIO, environment: Mapping[str, str] | None) -> Process:
    if environment is None:
        return Forked(program, errors)
    return subprocess.Popen(
        [sys.executable, *program],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=errors,
        env=environment,
        start_new_session=True,
        text=True,
    )


def not_run(step: Step, why: str) -> Result:
    """Return the line of a step that was never begun."""
    return {"step": step.name, "title": step.title, "status": "skipped", "seconds": 0.0} | {
        "budget_seconds": step.budget_seconds,
        "error": why,
        "figures": [],
        "details": {},
        "problems": [],
    }


def _outcome(
    code: int, timed_out: bool, limit: float, said: _Said, log: Path, interrupted: str | None
) -> tuple[str, str | None]:
    """Return a step's status, and what went wrong or why it was skipped."""
    if interrupted is not None and code < 0:
        return "failed", f"interrupted by {interrupted}"
    if timed_out:
        return "timeout", f"not done after {limit:.0f} s"
    if code < 0:
        return "failed", f"killed by {signal.Signals(-code).name}{_last_line(log)}"
    if code > 0 or said.problems:
        return "failed", "; ".join(said.problems[:3]) or f"exit status {code}{_last_line(log)}"
    return ("skipped", said.skipped) if said.skipped is not None else ("ok", None)


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return f": {last:.300}" if last else ""
