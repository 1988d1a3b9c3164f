"""Data of a panel: a figure's values as numbers over time, and the look of every run's verdict."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from matplotlib.dates import date2num
from numpy.typing import NDArray

from service.contracts.audits.history import FigureHistory, HistoryRun, Point
from service.evaluation.verdict import Level
from workers.reporting.drawing import style
from workers.reporting.text import number

Kind = Literal["pass", "warn", "fail", "unconfirmed", "not_judged", "unchanged", "skipped", "error", "no_value"]
"""What a figure's mark says of a run."""


class Look(NamedTuple):
    """A mark, with a shape and a color of its own."""

    label: str
    color: str
    marker: str
    face: str
    size: float
    """Points, in a figure of few runs."""


_UNCONFIRMED = "#6f62c4"
LOOKS: dict[Kind, Look] = {
    "pass": Look("pass", style.BLUE, "o", style.BLUE, 4.5),
    "unchanged": Look("unchanged", style.BLUE, "o", style.PAPER, 3.2),
    "warn": Look("warn", style.SEVERITY[2], "^", style.SEVERITY[2], 6.0),
    "fail": Look("fail", style.SEVERITY[3], "X", style.SEVERITY[3], 6.4),
    "unconfirmed": Look("unconfirmed", _UNCONFIRMED, "D", style.PAPER, 5.0),
    "not_judged": Look("not judged", style.MUTED, "s", style.PAPER, 4.2),
    "no_value": Look("no value", style.MUTED, "$?$", style.MUTED, 5.0),
    "skipped": Look("skipped", style.MUTED, "v", style.PAPER, 4.5),
    "error": Look("error", style.INK, "x", style.INK, 5.0),
}
LEVELS = tuple(level.name for level in Level if level is not Level.unjudged)
"""Verdicts on a scheme, from the mildest: heights 0, 1 and 2."""
_WORST: tuple[str, ...] = ("broken", "warn", "not_judged", "pass")


class Series(NamedTuple):
    """One figure over R runs; arrays have one element per run, NaN where there is none."""

    of: FigureHistory
    times: NDArray[np.float64]
    """Days, as matplotlib counts them."""
    values: NDArray[np.float64]
    """Numbers; the height of a level; how many dimensions a set has."""
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    baseline: NDArray[np.float64]
    bounds: tuple[NDArray[np.float64], ...]
    """For each limit of today."""
    kinds: tuple[Kind, ...]
    texts: tuple[str, ...]
    """What hovering over a run's mark shows."""

    @property
    def has_value(self) -> bool:
        """Whether any run has a value to draw."""
        return bool(np.isfinite(self.values).any())

    @property
    def has_baseline(self) -> bool:
        """Whether any run has a baseline's figure to draw."""
        return bool(np.isfinite(self.baseline).any())


def series(of: FigureHistory, runs: Sequence[HistoryRun]) -> Series:
    """Return what the panel of a figure draws; `runs` are those of its points."""
    kinds = tuple(_kind(point, run) for point, run in zip(of.points, runs, strict=True))
    return Series(
        of=of,
        times=np.array([date2num(point.at) for point in of.points], dtype=np.float64),
        values=_numbers([point.value for point in of.points]),
        low=_numbers([point.interval and point.interval[0] for point in of.points]),
        high=_numbers([point.interval and point.interval[1] for point in of.points]),
        baseline=_carried(_numbers([point.baseline for point in of.points])),
        bounds=tuple(_bounds(of, limit) for limit in of.limits),
        kinds=kinds,
        texts=tuple(_text(point, kind) for point, kind in zip(of.points, kinds, strict=True)),
    )


def _kind(point: Point, run: HistoryRun) -> Kind:
    if point.status == "gap" and run.verdict in ("skipped", "error"):
        return "skipped" if run.verdict == "skipped" else "error"
    worst = next((one for one in _WORST if one in {held.verdict for held in point.limits}), "not_judged")
    if worst == "broken" and point.status != "unchanged":
        return "unconfirmed" if run.verdict == "unconfirmed" else "fail"
    if point.status == "unchanged":
        return "unchanged"
    if point.status == "gap":
        return "no_value"
    return "warn" if worst == "warn" else "pass" if worst == "pass" else "not_judged"


def _bounds(of: FigureHistory, limit: str) -> NDArray[np.float64]:
    """Return what the figure is held to by a limit, run by run; for sets, which may gain nothing, 0."""
    if of.kind == "dimensions":
        return np.zeros(len(of.points))
    held = [next((one.bound for one in point.limits if one.limit == limit), None) for point in of.points]
    return _carried(_numbers(held))


def _carried(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return values with those that are missing taken from the last run before that has one."""
    known = np.where(np.isfinite(values), np.arange(len(values)), -1)
    last = np.maximum.accumulate(known) if len(known) else known
    return np.where(last >= 0, values[last], np.nan)


def _numbers(values: Sequence[Any]) -> NDArray[np.float64]:
    return np.array([_number(value) for value in values], dtype=np.float64)


def _number(value: Any) -> float:
    if isinstance(value, tuple):
        return float(len(value))
    if isinstance(value, str):
        return float(LEVELS.index(value)) if value in LEVELS else np.nan
    return np.nan if value is None else float(value)


def _text(point: Point, kind: Kind) -> str:
    value = point.value
    if isinstance(value, tuple):
        shown = f"{len(value)} gained"
    elif isinstance(value, float):
        shown = number(value, 4)
        if point.interval is not None:
            shown += f" ({number(point.interval[0], 4)} to {number(point.interval[1], 4)})"
    else:
        shown = value or ""
    return ": ".join(filter(None, (f"{point.at:%Y-%m-%d %H:%M} UTC", LOOKS[kind].label, shown, point.reason)))
