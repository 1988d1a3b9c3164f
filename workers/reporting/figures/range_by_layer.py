"""`range_by_layer`: the largest and the typical magnitudes at three sites of every layer.

A grid with one scale has to span the gap between abs max and median: every factor of two costs a bit.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from workers.reporting.drawing import style
from workers.reporting.drawing.figure import Caption, Drawing, provenance
from workers.reporting.drawing.missing_values import leave_empty
from workers.reporting.drawing.style import Mark
from workers.reporting.loading import Source, select
from workers.reporting.text import number, ranges

FP16_MAX = float(np.finfo(np.float16).max)


class Site(NamedTuple):
    """A place in every layer."""

    component: str
    port: str
    role: str

    @property
    def name(self) -> str:
        """As the tables and the captions have it."""
        return f"{self.component}.{self.port}"


SITES = (
    Site("block", "output", "residual stream"),
    Site("attn.q", "input", "input of attention"),
    Site("mlp.up", "input", "input of the MLP"),
)


class Line(NamedTuple):
    """A column of the `sites` table that is drawn."""

    column: str
    label: str
    look: Mark


LINES = (
    Line("abs_max", "abs max", Mark("#c8500a", "o", "-")),
    Line("p99_9_abs", "p99.9", Mark("#2a78c8", "s", "--")),
    Line("p99_abs", "p99", Mark("#0b9b72", "^", "-.")),
    Line("median_abs", "median", Mark("#8f5bc4", "D", ":")),
)
"""Largest first."""

Values = Mapping[str, NDArray[np.float64]]
"""By column, one element per layer; NaN where the table has none."""


def draw(source: Source) -> Iterator[Drawing]:
    """Yield the figure."""
    depth = source.report.model.layers
    values = [_values(source, site) for site in SITES]
    figure = Figure(figsize=(style.WIDE[0], 4.0))
    panels = figure.subplots(1, len(SITES), sharey=True)
    low, high, zero = _scale(values)
    style.log_axis(panels[0], low, high)
    panels[0].set_ylabel("abs(x)")
    for axes, site, lines in zip(panels, SITES, values, strict=True):
        axes.set_title(f"{site.name}\n{site.role}", fontsize=9.5, pad=6)
        style.layer_axis(axes, depth, ticks=8)
        if any(np.isfinite(line).any() for line in lines.values()):
            _lines(axes, lines, zero, site.name)
        else:
            leave_empty(axes)
    _thresholds(panels, _levels(source))
    figure.legend(handles=[_key(line) for line in LINES], loc="outside lower center", ncols=len(LINES), handlelength=3)
    yield Drawing(
        name="range_by_layer",
        title="Dynamic range by layer",
        parts=_caption(source, values),
        alt=_alt(values),
        table="sites",
        figure=figure,
    )


def _values(source: Source, site: Site) -> Values:
    rows = select(source.tables["sites"], component=site.component, port=site.port)
    layers = source.layers_of("sites", rows)
    values = {}
    for line in LINES:
        values[line.column] = np.full(source.report.model.layers, np.nan)
        values[line.column][layers] = rows[line.column]
    return values


def _scale(sites: Sequence[Values]) -> tuple[float, float, float | None]:
    """Return the limits of the y axis and, if there are zeros, where these are marked."""
    everything = np.concatenate([line for values in sites for line in values.values()])
    positive = everything[(everything > 0) & np.isfinite(everything)]
    low, high = (float(positive.min()), float(positive.max())) if positive.size else (0.1, 1.0)
    if (everything == 0).any():
        return low / 3, high * 1.6, low / 2
    return low / 1.6, high * 1.6, None


def _levels(source: Source) -> dict[float, str]:
    """Return the lines to be drawn across, by value."""
    return {source.report.outliers.llm_int8.thresholds.magnitude: "LLM.int8()", FP16_MAX: "fp16 max"}


def _lines(axes: Axes, values: Values, zero: float | None, site: str) -> None:
    layers = np.arange(len(values["abs_max"]))
    for line in LINES:
        drawn = values[line.column]
        axes.plot(
            layers,
            np.where(drawn > 0, drawn, np.nan),
            color=line.look.color,
            linestyle=line.look.line,
            marker=line.look.marker,
            markersize=_marker_size(len(layers)),
            linewidth=1.2,
            gid=f"{line.column}-{site}",
        )
        if zero is not None:
            axes.plot(
                layers[drawn == 0],
                np.full(int((drawn == 0).sum()), zero),
                linestyle="none",
                marker="v",
                markersize=5,
                markerfacecolor="none",
                markeredgecolor=line.look.color,
                gid=f"zero-{line.column}-{site}",
            )


def _marker_size(layers: int) -> float:
    return 3.6 if layers <= 40 else 1.8


def _key(line: Line) -> Line2D:
    look = line.look
    return Line2D([], [], color=look.color, linestyle=look.line, marker=look.marker, markersize=3.6, label=line.label)


def _thresholds(panels: Sequence[Any], levels: Mapping[float, str]) -> None:
    """Draw every level that is in view across the panels, and name it at their right end."""
    low, high = panels[0].get_ylim()
    for level, name in levels.items():
        if not low <= level <= high:
            continue
        for place, axes in enumerate(panels):
            gid = f"level-{level:g}-{place}"
            axes.axhline(level, color=style.INK, linewidth=0.7, linestyle=(0, (5, 3)), zorder=1.5, gid=gid)
        panels[-1].annotate(
            f"{level:g}\n{name}",
            (1, level),
            xycoords=("axes fraction", "data"),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )


def _caption(source: Source, values: Sequence[Values]) -> Caption:
    magnitude = source.report.outliers.llm_int8.thresholds.magnitude
    notes = []
    for site, lines in zip(SITES, values, strict=True):
        absent = np.flatnonzero(np.isnan(lines["abs_max"]))
        if absent.size == len(lines["abs_max"]):
            notes.append(f"Hatched, n/a: the model has no {site.name}, or no finite value there.")
        elif absent.size:
            notes.append(f"No {site.name}, or no finite value there, in layer {ranges(absent.tolist())}.")
        notes += _zeros(site, lines)
    if source.report.model.layers == 1:
        notes.append("The model has a single layer.")
    return Caption(
        "Magnitudes of the reference at three sites of every layer, log scale.",
        (
            "Maximum, 99.9th and 99th percentile, and median of abs(x) over all tokens and channels, to within 1/32.",
            f"Dashed, where in range: {magnitude:g} (threshold of llm_int8) and {FP16_MAX:g} (largest fp16 value).",
        ),
        "A wide gap from median to maximum leaves few integer levels for typical values.",
        tuple(notes),
        provenance(source.report, "sites"),
    )


def _zeros(site: Site, values: Values) -> Iterator[str]:
    for line in LINES:
        if zeros := np.flatnonzero(values[line.column] == 0).tolist():
            yield f"{site.name}: {line.label} is 0 in layer {ranges(zeros)}, marked at the bottom."


def _alt(values: Sequence[Values]) -> str:
    return "Line charts over layers, logarithmic. " + " ".join(
        _alt_of(site, lines) for site, lines in zip(SITES, values, strict=True)
    )


def _alt_of(site: Site, values: Values) -> str:
    peaks, medians = (values[column][np.isfinite(values[column])] for column in ("abs_max", "median_abs"))
    if not (peaks.size and medians.size):
        return f"{site.name}: not there."
    widest = int(np.nanargmax(values["abs_max"]))
    middle = f"{number(float(medians.min()))} to {number(float(medians.max()))}"
    return f"{site.name}: abs max up to {number(float(peaks.max()))}, in layer {widest}; median {middle}."
