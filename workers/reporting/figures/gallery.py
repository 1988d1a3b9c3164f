"""Draws and saves every figure of a report, in several processes where that is faster.

Each process imports matplotlib once and reads only the tables that its figures need. What a figure looks like does
not depend on the process that draws it.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import NamedTuple

from service.contracts.report import LeftOut
from service.errors import HeadroomError
from workers.reporting.drawing import style
from workers.reporting.drawing.figure import NothingToDraw, Saved
from workers.reporting.figures.registry import FIGURES, SPLITTABLE
from workers.reporting.loading import Source, TableAbsent

MAX_PROCESSES = 8
"""More would wait for one another's longest figure."""
MIN_PARALLEL_WORK = 100
"""Layers times schemes from which drawing takes long enough to make up for starting processes."""


class DrawingStopped(HeadroomError):
    """A drawing process was killed."""

    code = "drawing-stopped"


class Gallery(NamedTuple):
    """The figures of a report, in the order of the page."""

    figures: tuple[Saved, ...]
    left_out: tuple[LeftOut, ...]


class Task(NamedTuple):
    """The figures of one module, or a share of them."""

    module: int
    """Its place in the registry."""
    part: int
    parts: int


class Part(NamedTuple):
    """What a task has drawn."""

    figures: tuple[tuple[int, Saved], ...]
    """Each with its place among the figures of its module."""
    left_out: tuple[LeftOut, ...]


def draw_all(source: Source, directory: Path, processes: int | None = None) -> Gallery:
    """Draw every figure for which the report has something to show, and save them in `directory`.

    Args:
        source: The report.
        directory: Where the files go.
        processes: How many draw at once; by default one for a small report, else one for each CPU.

    Raises:
        ReportUnreadable: a table is damaged.
        DrawingStopped: a process was killed.
    """
    count = min(processes or _sensible(source), MAX_PROCESSES)
    tasks = _tasks(count)
    drawn = (
        [_draw(source, directory, task) for task in tasks] if count == 1 else _at_once(source, directory, tasks, count)
    )
    part_of = dict(zip(tasks, drawn, strict=True))
    figures: list[Saved] = []
    left_out: list[LeftOut] = []
    for module in range(len(FIGURES)):
        parts = [part_of[task] for task in tasks if task.module == module]
        placed = sorted((place, saved) for part in parts for place, saved in part.figures)
        figures += [saved for _, saved in placed]
        left_out += parts[0].left_out
    return Gallery(tuple(figures), tuple(left_out))


def _tasks(count: int) -> list[Task]:
    """Return the tasks for `count` processes, those that take longest first."""
    several = [module for module, draw in enumerate(FIGURES) if draw in SPLITTABLE]
    single = [module for module, draw in enumerate(FIGURES) if draw not in SPLITTABLE]
    return [Task(m, part, count) for m in several for part in range(count)] + [Task(m, 0, 1) for m in single]


def _sensible(source: Source) -> int:
    work = source.report.model.layers * max(1, len(source.report.schemes))
    return _cpus() if work >= MIN_PARALLEL_WORK else 1


def _cpus() -> int:
    """Return how many CPUs this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _draw(source: Source, directory: Path, task: Task) -> Part:
    """Draw and save the figures of a task."""
    draw = FIGURES[task.module]
    saved: list[tuple[int, Saved]] = []
    left_out: tuple[LeftOut, ...] = ()
    try:
        with style.applied():
            for place, drawing in enumerate(draw(source)):
                if place % task.parts == task.part:
                    saved.append((place, drawing.save(directory)))
    except (TableAbsent, NothingToDraw) as absent:
        left_out = (LeftOut(name=draw.__module__.rpartition(".")[2], reason=str(absent)),)
    return Part(tuple(saved), left_out)


def _at_once(source: Source, directory: Path, tasks: Sequence[Task], count: int) -> list[Part]:
    # Spawned, for a fork would copy the locks of threads that it does not copy.
    context = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(count, context, initializer=_begin, initargs=(source, directory)) as pool:
            drawn = [pool.submit(_draw_here, task) for task in tasks]
            try:
                return [part.result() for part in drawn]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    except BrokenProcessPool as error:
        raise DrawingStopped("a process that draws figures was ended; most often that is a lack of memory") from error


_here: tuple[Source, Path] | None = None
"""In a drawing process: what it draws, and where to."""


def _begin(source: Source, directory: Path) -> None:
    global _here
    _here = source, directory
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group: the parent decides
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this process when the one that started it is gone, however that came about."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _draw_here(task: Task) -> Part:
    assert _here is not None
    return _draw(*_here, task)
