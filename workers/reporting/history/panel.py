"""One panel: value, interval, baseline, limits and verdicts of a figure over time, with its steps."""

from itertools import pairwise
from textwrap import wrap
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.contracts.audits.history import Step, StepLevel
from service.contracts.report import Estimate
from workers.reporting.drawing import style
from workers.reporting.drawing.color_scales import logarithmic
from workers.reporting.drawing.label_placement import spread
from workers.reporting.history.series import LEVELS, LOOKS, Series
from workers.reporting.text import counted, estimate, plain

_BARS = 60
"""Runs up to which every interval is a bar of its own; of more they are a band."""
_SMALL_MARKS_FROM = 120
"""Runs from which marks are smaller."""
_LIMIT_DRAWN_WITHIN = 3.0
"""A limit whose distance from the values is more than this multiple of their span is not drawn, but stated."""
_LONGEST = 122
"""Characters of a line above a panel."""
_MOST_STEPS = 5
"""Steps described above a panel and numbered in it, the last."""
_ROOM_BELOW = 2.2
"""Times the usual room below the values, where runs without a value have their marks."""
_MARGIN = 0.02
"""Share of the period left free on both sides."""
_LABEL = 0.022
"""Width of a step's number, as a share of the period."""


def draw_panel(axes: Any, one: Series, text: str, gid: str) -> dict[str, list[str]]:
    """Draw a figure's history under its title, and return the `Drawing.hover` of its marks, named GID-KIND."""
    axes.set_title(text, loc="left", fontsize=8.5, linespacing=1.35, pad=5)
    left, right = _period(one.times)
    axes.set_xlim(left, right)
    _values_axis(axes, one)
    for bounds in one.bounds:
        _stepped(axes, one.times, bounds, color=style.ORANGE, linewidth=1.2, zorder=2)
    _limit_numbers(axes, one)
    _stepped(axes, one.times, one.baseline, color=style.MUTED, linewidth=1, linestyle="--", zorder=2)
    _intervals(axes, one)
    axes.plot(one.times, one.values, color=style.BLUE, linewidth=0.9, zorder=3)
    _steps(axes, one)
    return _marks(axes, one, gid)


def title(one: Series) -> str:
    """Return what stands above a panel: its limits, a limit that is out of view, and the last steps."""
    limits = one.of.limits
    numbered = [f"({place}) {limit}" for place, limit in enumerate(limits, 1)] if len(limits) > 1 else limits
    lines = [plain("; ".join(numbered), _LONGEST)]
    if far := sorted({float(bound) for bounds in one.bounds for bound in bounds[np.isfinite(bounds)]} - _near(one)):
        shown = ", ".join(f"{bound:.6g}" for bound in (far if len(far) < 3 else (far[0], far[-1])))
        lines.append(f"Not in view: the limit{'s from' if len(far) > 2 else ''} {shown.replace(', ', ' to ')}")
    first = max(0, len(one.of.steps) - _MOST_STEPS)
    if first:
        lines.append(f"Steps before these: {counted(first, 'step')}, in the table")
    for place, step in enumerate(one.of.steps[first:], first + 1):
        lines += _described(place, step)
    return "\n".join(lines)


def _described(place: int, step: Step) -> list[str]:
    """Return a step in one line, or two where what changed is long."""
    levels = f"{place}  {step.at:%Y-%m-%d}: {_level(step.before)} -> {_level(step.after)};"
    text = plain(f"{levels} {step.what_changed}", 10 * _LONGEST)
    return wrap(text, _LONGEST, subsequent_indent="    ", max_lines=2, placeholder=" ...")


def _level(level: StepLevel) -> str:
    return estimate(Estimate(value=level.value, standard_error=None, interval=level.interval))


def _period(times: NDArray[np.float64]) -> tuple[float, float]:
    """Return the ends of the time axis: a day for one run, with room on both sides for more."""
    first, last = float(times.min()), float(times.max())
    room = _MARGIN * (last - first) or 0.5
    return first - room, last + room


def _span(one: Series) -> tuple[float, float]:
    """Return the smallest and the largest of values, intervals and baseline; 0 and 1 where there is none."""
    shown = np.concatenate([one.values, one.low, one.high, one.baseline])
    shown = shown[np.isfinite(shown)]
    return (float(shown.min()), float(shown.max())) if shown.size else (0.0, 1.0)


def limit_in_view(one: Series) -> bool:
    """Return whether a limit is drawn inside of the panel."""
    return one.of.kind == "dimensions" or bool(_near(one))


def _near(one: Series) -> set[float]:
    """Return the limits that are close enough to the values to be in view."""
    low, high = _span(one)
    reach = _LIMIT_DRAWN_WITHIN * max(high - low, 0.4 * max(abs(low), abs(high)))
    bounds = {float(bound) for bounds in one.bounds for bound in bounds[np.isfinite(bounds)]}
    return {bound for bound in bounds if one.of.kind != "number" or low - reach <= bound <= high + reach}


def _values_axis(axes: Any, one: Series) -> None:
    if one.of.kind == "level":
        axes.set_yticks(range(len(LEVELS)), LEVELS)
        axes.set_ylim(-0.4, len(LEVELS) - 0.6)
        return
    if not one.has_value:
        axes.set_yticks([])
        axes.set_ylabel("no value")
    low, high = _span(one)
    low, high = min([low, *_near(one)]), max([high, *_near(one)])
    foot = 1.0 if np.isfinite(one.values).all() else _ROOM_BELOW  # marks of runs without a value stand there
    if one.of.kind == "dimensions":
        if one.has_value:
            axes.yaxis.get_major_locator().set_params(integer=True)
        axes.set(
            ylim=(-0.08 * foot * max(high, 1), 1.15 * max(high, 1)), ylabel="gained" if one.has_value else "no value"
        )
    elif logarithmic(low, high):
        room = (high / low) ** 0.08
        style.log_axis(axes, low / room**foot, high * room**1.6)
    else:
        room = 0.08 * (high - low) or 0.05 * abs(high) or 0.5
        axes.set_ylim(low - foot * room, high + 1.6 * room)
        if one.has_value:
            axes.ticklabel_format(axis="y", useOffset=False)
            axes.yaxis.get_major_locator().set_params(nbins=5)


def _stepped(axes: Any, times: NDArray[np.float64], values: NDArray[np.float64], **look: Any) -> None:
    """Draw a value that holds from run to run, to both ends of the axis."""
    known = np.isfinite(values)
    if not known.any():
        return
    edges = np.array([*((times[1:] + times[:-1]) / 2), axes.get_xlim()[1]])
    starts = np.array([axes.get_xlim()[0], *edges[:-1]])
    x = np.column_stack([starts, edges]).ravel()
    axes.plot(x, np.repeat(values, 2), **look)


def _limit_numbers(axes: Any, one: Series) -> None:
    """Number the lines of several limits at their right ends, as the title does; lines that meet share a label."""
    if len(one.bounds) < 2:
        return
    at: dict[float, list[int]] = {}
    for place, bounds in enumerate(one.bounds, 1):
        known = bounds[np.isfinite(bounds)]
        if known.size:
            at.setdefault(float(known[-1]), []).append(place)
    for bound, places in at.items():
        label = f"({', '.join(map(str, places))})"
        axes.annotate(label, (1, bound), (2, 0), xycoords=axes.get_yaxis_transform(), textcoords="offset points",
                      va="center", fontsize=7, color=style.ORANGE, annotation_clip=True)  # fmt: skip


def _intervals(axes: Any, one: Series) -> None:
    known = np.isfinite(one.low) & np.isfinite(one.high) & np.isfinite(one.values)
    if not known.any():
        return
    if len(one.times) > _BARS:
        axes.fill_between(
            one.times, one.low, one.high, where=known, color=style.BLUE, alpha=0.18, linewidth=0, zorder=1
        )
        return
    axes.vlines(
        one.times[known], one.low[known], one.high[known], color=style.BLUE, alpha=0.55, linewidth=1.2, zorder=1
    )


def _steps(axes: Any, one: Series) -> None:
    """Draw the level before and after every step, and number at the top the steps that the title describes."""
    if not one.of.steps:
        return
    times = {point.run_id: float(time) for point, time in zip(one.of.points, one.times, strict=True)}
    starts = [times[step.run_id] for step in one.of.steps]
    left, right = axes.get_xlim()
    before = [float(one.times[one.times < start].max()) for start in starts]
    cuts = [(start + last) / 2 for start, last in zip(starts, before, strict=True)]
    ends = [float(one.times.min()), *cuts, float(one.times.max())]
    for level, (begin, end) in zip(one.of.levels, pairwise(ends), strict=True):
        axes.plot([begin, end], [level.value] * 2, color=style.INK, alpha=0.45, linewidth=3, zorder=2.5,
                  solid_capstyle="butt")  # fmt: skip
    for cut in cuts:
        axes.axvline(cut, color=style.INK, linewidth=0.7, linestyle=":", zorder=1)
    first = max(0, len(cuts) - _MOST_STEPS)
    labels = spread(cuts[first:], [_LABEL * (right - left)] * (len(cuts) - first), left, right)
    paper = {"facecolor": style.PAPER, "edgecolor": style.MUTED, "linewidth": 0.5, "boxstyle": "round,pad=0.2"}
    for place, at in enumerate(labels, first + 1):
        axes.text(at, 0.97, str(place), transform=axes.get_xaxis_transform(), ha="center", va="top", fontsize=7,
                  bbox=paper, zorder=8)  # fmt: skip


def _marks(axes: Any, one: Series, gid: str) -> dict[str, list[str]]:
    """Draw the mark of every run: at its value, or at the foot of the panel where there is none."""
    smaller = 0.62 if len(one.times) > _SMALL_MARKS_FROM else 1.0
    hover = {}
    for kind, look in LOOKS.items():
        chosen = np.array([own == kind for own in one.kinds])
        at_value = chosen & np.isfinite(one.values)
        for part, heights, how in (
            (at_value, one.values, {}),
            (chosen & ~at_value, np.full(len(chosen), 0.05), {"transform": axes.get_xaxis_transform()}),
        ):
            if part.any():
                name = f"{gid}-{kind}"
                name = f"{name}-none" if name in hover else name
                axes.plot(one.times[part], heights[part], linestyle="none", marker=look.marker, color=look.color,
                          markerfacecolor=look.face, markersize=smaller * look.size, markeredgewidth=0.9 * smaller,
                          gid=name, zorder=5, **how)  # fmt: skip
                hover[name] = [text for text, own in zip(one.texts, part, strict=True) if own]
    return hover
