"""Prints results on standard output, and the progress of a job on standard error."""

import contextlib
import json
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from service.evaluation.shown_warnings import SHOWN_PER_CODE

PLAIN_WIDTH = 120
"""Columns where standard output is no terminal, so that tables are not folded in a log."""


def results() -> Console:
    """Return the console for results."""
    console = Console()
    return console if console.is_terminal else Console(width=PLAIN_WIDTH)


def document(content: Any) -> None:
    """Print one JSON document."""
    json.dump(content, sys.stdout, indent=2, ensure_ascii=False)
    sys.stdout.write("\n")
    sys.stdout.flush()


def line(console: Console, text: str) -> None:
    """Print a line as it is, however long."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def table(titles: tuple[str, ...], rows: list[tuple[Any, ...]]) -> None:
    """Print rows of values under their titles; None is shown as nothing."""
    shown = Table(box=None, pad_edge=False, header_style="bold")
    for column, title in enumerate(titles):
        shown.add_column(title, overflow="fold", no_wrap=column == 0)  # ids and names can be copied
    console = results()
    for row in rows:
        shown.add_row(
            *(console.render_str("" if value is None else str(value), markup=False, highlight=False) for value in row)
        )
    console.print(shown)


UNITS = {"sweep": "layers", "divergence": "sequences", "harm": "layer passes", "mixes": "layers"}
"""What `done` and `total` count, for the stages that count more than themselves."""
TITLES = {
    "load": "load the model",
    "calibrate": "read the calibration text",
    "sweep": "sweep over the layers",
    "divergence": "compare the outputs",
    "harm": "measure harm",
    "mixes": "measure mixes",
    "write": "write the tables",
    "report": "draw the report",
}
_MESSAGES = {
    "queued": "queued",
    "started": "started",
    "cancel_requested": "canceling: waiting for the worker to stop",
    "cancelled": "cancelled",
    "succeeded": "succeeded",
}


class Display(Protocol):
    """Shows what happens to a job."""

    def show(self, kind: str, data: dict[str, Any]) -> None:
        """Show one event."""

    def waiting(self, ahead: int) -> None:
        """Show that the job is queued, with `ahead` others before it."""


class RemainingTime:
    """Estimates how long a stage will still take, from the times that its progress events carry.

    The first unit does not count: kernels are compiled in it that the others use.
    """

    def __init__(self) -> None:
        self._stage = ""
        self._began = (0, 0.0)

    def left(self, stage: str, done: int, total: int, elapsed: float) -> float | None:
        """Return the seconds left in `stage`; None when nothing is known yet, or nothing is left.

        `done` of `total` units are done, `elapsed` seconds after the measurement began.
        """
        if stage != self._stage or self._began[0] == 0:
            self._stage, self._began = stage, (done, elapsed)
        advanced = done - self._began[0]
        if advanced <= 0 or done >= total:
            return None
        return (elapsed - self._began[1]) / advanced * (total - done)


@contextlib.contextmanager
def display(console: Console) -> Iterator[Display]:
    """Return what suits `console`, for as long as the context lasts."""
    if not console.is_terminal:
        yield Lines(console)
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]}", markup=False),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}", markup=False),
    )
    with Progress(*columns, console=console) as bars:
        yield Bars(bars)


class Events:
    """One line for every event that is no progress, but for warnings only while those of their code are few."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._warned: Counter[str] = Counter()

    def show(self, kind: str, data: dict[str, Any]) -> None:
        """Show one event."""
        if kind in ("started", "requeued"):  # what another attempt warns of is said again
            self._warned.clear()
        if kind == "warning":
            self._warn(data)
        elif kind == "failed":
            _print_line(self._console, f"failed: {data.get('message', '')}")
        elif kind == "requeued":
            _print_line(self._console, f"queued again: {data.get('reason', 'its worker was lost')}")
        else:
            _print_line(self._console, _MESSAGES.get(kind, kind))

    def _warn(self, data: dict[str, Any]) -> None:
        code = data.get("code", "")
        self._warned[code] += 1
        if self._warned[code] <= SHOWN_PER_CODE:
            where = f" ({data['where']})" if data.get("where") else ""
            _print_line(self._console, f"warning: {data['message']}{where}")
        elif self._warned[code] == SHOWN_PER_CODE + 1:
            _print_line(self._console, f"warning: more warnings of this kind ({code}); the report lists all")


class Lines:
    """One line for every stage, every tenth of one, and every other event."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._remaining = RemainingTime()
        self._events = Events(console)
        self._last_printed: tuple[Any, ...] = ()

    def show(self, kind: str, data: dict[str, Any]) -> None:
        """Show one event."""
        if kind != "progress":
            self._events.show(kind, data)
            return
        stage, done, total = data["stage"], data["done"], data["total"]
        if cost := data.get("cost"):
            self._print_if_new((stage, cost), cost)
        left = self._remaining.left(stage, done, total, data["elapsed_seconds"])
        line = TITLES.get(stage, stage)
        if total > 1:
            line += f": {done}/{total} {UNITS.get(stage, '')}".rstrip()
        step = (stage, done * 10 // total if total > 1 else 0)
        self._print_if_new(step, f"{line}, after {data['elapsed_seconds']:.0f} s{_left(left, ', ')}")

    def waiting(self, ahead: int) -> None:
        """Show the place in the queue, when it has changed."""
        if ahead:
            self._print_if_new(("queued", ahead), _ahead(ahead))

    def _print_if_new(self, what: tuple[Any, ...], line: str) -> None:
        if what != self._last_printed:
            self._last_printed = what
            _print_line(self._console, line)


class Bars:
    """One bar for every stage, filled as its units are done."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._remaining = RemainingTime()
        self._events = Events(bars.console)
        self._tasks: dict[str, TaskID] = {}

    def show(self, kind: str, data: dict[str, Any]) -> None:
        """Show one event."""
        if kind != "progress":
            if kind in ("started", "requeued"):  # a new attempt begins at the first stage
                self._clear()
            self._events.show(kind, data)
            return
        stage, done, total = data["stage"], data["done"], data["total"]
        left = self._remaining.left(stage, done, total, data["elapsed_seconds"])
        if cost := data.get("cost"):
            _print_line(self._bars.console, cost)
        if stage not in self._tasks:
            unit = UNITS.get(stage, "")
            self._tasks[stage] = self._bars.add_task(TITLES.get(stage, stage), total=total, unit=unit, left="")
        self._bars.update(self._tasks[stage], completed=done, total=total, left=_left(left))

    def waiting(self, ahead: int) -> None:
        """Show the place in the queue."""
        if "queued" not in self._tasks:
            self._tasks["queued"] = self._bars.add_task("queued", total=None, unit="", left="")
        self._bars.update(self._tasks["queued"], description=_ahead(ahead))

    def _clear(self) -> None:
        for task in self._tasks.values():
            self._bars.remove_task(task)
        self._tasks.clear()


def _ahead(jobs: int) -> str:
    return f"queued, {jobs} {'job' if jobs == 1 else 'jobs'} ahead of it" if jobs else "queued, next in line"


def _left(seconds: float | None, before: str = "") -> str:
    return "" if seconds is None else f"{before}about {seconds:.0f} s left in this stage"


def _print_line(console: Console, line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)
