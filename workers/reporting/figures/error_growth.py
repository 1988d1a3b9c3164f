"""`error_growth`: the error of each scheme by layer, accumulated and of the worst component.

Top: the signal to quantization noise ratio of the residual stream, each scheme in its own stream; a falling line
accumulates error. Bottom: the worst component of every layer, applied to the reference's input.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from workers.reporting.drawing import style
from workers.reporting.drawing.figure import Caption, Drawing, provenance
from workers.reporting.drawing.label_placement import label_line_ends
from workers.reporting.drawing.missing_values import leave_empty
from workers.reporting.loading import Source, select
from workers.reporting.text import counted, number, plain, ranges, visible

_MAX_SCHEMES_AT_USUAL_HEIGHT = 6
"""Schemes that a figure of the usual height has room for."""
_VISIBLE_DB = 0.1
"""Smallest difference at which two lines are distinguishable."""
_TYPICAL = (0, (1, 1.5))
_MAX_MARKERS = 40
"""Layers up to which every point of a line has its marker."""


class Growth(NamedTuple):
    """One scheme's lines; all arrays have one element per layer, NaN where the table has none."""

    scheme: str
    label: str
    """What the figure calls it."""
    sqnr_db: NDArray[np.float64]
    typical: NDArray[np.float64]
    """`sqnr_db` without the dimensions that are massive in any layer; NaN in reports that are older than the column."""
    exact: NDArray[np.bool_]
    """The scheme's stream equals the reference after the layer: no ratio to draw."""
    worst: NDArray[np.float64]
    """Largest isolated relative_l2 of the layer."""
    component: list[str]
    """Where it is; empty where there is none."""


def draw(source: Source) -> Iterator[Drawing]:
    """Yield the figure, unless the report has no scheme."""
    growths = [_growth(source, scheme) for scheme in source.report.schemes]
    if not growths:
        return
    depth = source.report.model.layers
    figure = Figure(figsize=(style.WIDE[0], 5.4 if len(growths) <= _MAX_SCHEMES_AT_USUAL_HEIGHT else 7.0))
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    upper.set(title="Error growth through the layers", ylabel="SQNR at block.output, dB")
    lower.set_ylabel("worst component,\nisolated relative_l2")
    style.layer_axis(lower, depth)
    _accumulated(upper, growths)
    _isolated(lower, growths)
    figure.draw_without_rendering()
    label_line_ends(upper, [growth.sqnr_db for growth in growths], [growth.label for growth in growths], "bold")
    label_line_ends(lower, [growth.worst for growth in growths], [_worst_label(growth) for growth in growths], "normal")
    yield Drawing(
        name="error_growth",
        title="Error growth through the layers",
        parts=_caption(source, growths),
        alt=_alt(growths),
        table="errors",
        figure=figure,
    )


def _growth(source: Source, scheme: str) -> Growth:
    depth = source.report.model.layers
    sqnr, typical, exact = np.full(depth, np.nan), np.full(depth, np.nan), np.zeros(depth, dtype=bool)
    layers, stream = source.stream_errors(scheme)
    exact[layers] = stream["exact"] == 1
    sqnr[layers] = np.where(exact[layers], np.nan, stream["sqnr_db"])
    typical[layers] = stream["sqnr_db_typical"]
    worst, component = np.full(depth, np.nan), [""] * depth
    isolated = select(source.tables["errors"], scheme=scheme, mode="isolated", port="output")
    rows = zip(source.layers_of("errors", isolated), isolated["component"], isolated["relative_l2"], strict=True)
    for layer, name, value in rows:
        if name != "block" and np.isfinite(value) and not value <= worst[layer]:
            worst[layer], component[layer] = value, str(name)
    label = style.scheme_label(scheme, source.report.schemes[scheme])
    return Growth(scheme, label, sqnr, typical, exact, worst, component)


def _line(axes: Axes, values: NDArray[np.float64], position: int, gid: str, **other: Any) -> None:
    """Draw a scheme's line; `other` replaces parts of its look."""
    mark = style.mark(position)
    look = {"color": mark.color, "linestyle": mark.line, "marker": mark.marker} | other
    axes.plot(np.arange(len(values)), values, markersize=4, markevery=-(-len(values) // _MAX_MARKERS), gid=gid, **look)


def _apart(growths: Sequence[Growth]) -> bool:
    """Whether leaving out massive dimensions changes what the figure shows."""
    return any(bool((np.abs(growth.typical - growth.sqnr_db) >= _VISIBLE_DB).any()) for growth in growths)


def _name_lines(axes: Axes) -> None:
    axes.legend(
        handles=[
            Line2D([], [], color=style.MUTED, label="all dimensions"),
            Line2D([], [], color=style.MUTED, linestyle=_TYPICAL, linewidth=1, label="without massive dimensions"),
        ],
        loc="best",
        fontsize=8,
    )


def _off_scale(axes: Axes, layers: NDArray[np.int64], level: float, position: int) -> None:
    """Mark the layers in which a scheme's value is off the scale, on the level that is the scheme's own."""
    look = style.mark(position)
    axes.plot(
        layers,
        np.full(len(layers), level),
        linestyle="none",
        marker=look.marker,
        markersize=5,
        markerfacecolor="none",
        markeredgecolor=look.color,
        gid="exact",
    )


def _accumulated(axes: Axes, growths: Sequence[Growth]) -> None:
    """Draw the SQNR of every scheme's stream; layers that equal the reference have marks above the scale."""
    lines = _draw_streams(axes, growths, with_typical=_apart(growths))
    finite = np.concatenate([line[np.isfinite(line)] for line in lines])
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    pad = 0.08 * (high - low) or 1.0
    top = _exact_layers(axes, growths, high, pad)
    axes.set_ylim(low - pad, top + pad)
    if top > high:
        axes.set_yticks([tick for tick in axes.get_yticks() if low - pad <= tick <= high + pad])
        axes.axhline(high + pad, color=style.MUTED, linewidth=0.6, linestyle=(0, (1, 3)), zorder=0)
        _edge_note(axes, high + pad, "exact")
    if not finite.size:
        axes.set_yticks([])
        if top == high:
            leave_empty(axes, "n/a: the table has no SQNR at block.output")


def _draw_streams(axes: Axes, growths: Sequence[Growth], *, with_typical: bool) -> list[NDArray[np.float64]]:
    """Draw the SQNR lines, with those without the massive dimensions if asked, and return what they show."""
    lines = []
    look = {"linestyle": _TYPICAL, "linewidth": 1, "alpha": 0.7, "marker": ""}
    for position, growth in enumerate(growths):
        _line(axes, growth.sqnr_db, position, f"sqnr_{growth.scheme}")
        lines.append(growth.sqnr_db)
        if with_typical:
            _line(axes, growth.typical, position, f"typical_{growth.scheme}", **look)
            lines.append(growth.typical)
    if with_typical:
        _name_lines(axes)
    return lines


def _exact_layers(axes: Axes, growths: Sequence[Growth], high: float, pad: float) -> float:
    """Mark the exact layers of each scheme on a level of its own above `high`; return the highest level in use."""
    exact = [position for position, growth in enumerate(growths) if growth.exact.any()]
    step = pad * min(1, _MAX_SCHEMES_AT_USUAL_HEIGHT / (len(exact) or 1))
    level = high
    for lane, position in enumerate(exact):
        level = high + 2 * pad + step * lane
        _off_scale(axes, np.flatnonzero(growths[position].exact), level, position)
    return level


def _edge_note(axes: Axes, level: float, text: str, below: bool = False) -> None:
    axes.annotate(
        text,
        (1, level),
        xycoords=("axes fraction", "data"),
        xytext=(-3, -2 if below else 2),
        textcoords="offset points",
        ha="right",
        va="top" if below else "bottom",
        fontsize=8,
        color=style.MUTED,
    )


def _isolated(axes: Axes, growths: Sequence[Growth]) -> None:
    """Draw the largest isolated error of every layer; errors of 0 have marks below the scale."""
    positive = np.concatenate([growth.worst[growth.worst > 0] for growth in growths])
    low, high = (float(positive.min()), float(positive.max())) if positive.size else (0.01, 1.0)
    exact = [position for position, growth in enumerate(growths) if (growth.worst == 0).any()]
    levels = [low / 1.6 / 1.35 ** (lane + 1) for lane in range(len(exact))]
    style.log_axis(axes, (levels[-1] if exact else low) / 1.4, high * 1.6)
    for position, growth in enumerate(growths):
        _line(axes, np.where(growth.worst > 0, growth.worst, np.nan), position, f"worst_{growth.scheme}")
        _ring_worst(axes, growth, position)
    for position, level in zip(exact, levels, strict=True):
        _off_scale(axes, np.flatnonzero(growths[position].worst == 0), level, position)
    if exact:
        _edge_note(axes, low / 1.6, "exact", below=True)
    if not positive.size and not exact:
        leave_empty(axes, "n/a: the table has no isolated error")


def _ring_worst(axes: Axes, growth: Growth, position: int) -> None:
    """Ring the largest isolated error."""
    if (growth.worst > 0).any():
        layer = int(np.nanargmax(growth.worst))
        axes.plot(
            [layer],
            [growth.worst[layer]],
            linestyle="none",
            marker="o",
            markersize=8,
            markerfacecolor="none",
            markeredgecolor=style.mark(position).color,
            gid=f"ring_{growth.scheme}",
        )


def _worst_label(growth: Growth) -> str:
    if not (growth.worst > 0).any():
        return ""
    layer = int(np.nanargmax(growth.worst))
    return f"{plain(growth.component[layer], 20)}, layer {layer}"


def _caption(source: Source, growths: Sequence[Growth]) -> Caption:
    massive = counted(len(source.report.outliers.massive_dimensions()), "massive dimension")
    return Caption(
        "Error of each scheme by layer: accumulated (top) and of the worst component (bottom).",
        (
            "Top: sqnr_db = 10 log10(sum y^2 / sum (y - q)^2) at block.output, in the scheme's own stream.",
            f"Dotted: sqnr_db_typical, without the {massive}." if _apart(growths) else "",
            "Bottom: the largest isolated relative_l2 = norm2(y - q) / norm2(y), on the reference's input, log scale.",
        ),
        "A falling line means that the error accumulates. A peak at the bottom is the layer with the largest "
        "component error.",
        tuple(_exceptions(source, growths)),
        provenance(source.report, "errors", [growth.scheme for growth in growths]),
    )


def _exceptions(source: Source, growths: Sequence[Growth]) -> Iterator[str]:
    """Yield sentences about what the lines do not show."""
    if any(growth.label != growth.scheme for growth in growths):
        yield "(sim.): simulated, with rounded values in place of a low-precision kernel."
    for growth in growths:
        if growth.exact.any():
            layers = np.flatnonzero(growth.exact).tolist()
            yield f"{growth.scheme} equals the reference after {_layers(layers)}: exact, no ratio."
        if (growth.worst == 0).any():
            layers = np.flatnonzero(growth.worst == 0).tolist()
            yield f"Every component of {growth.scheme} is exact in {_layers(layers)}."
    if source.report.model.layers == 1:
        yield "The model has a single layer."


def _layers(layers: Sequence[int]) -> str:
    return f"layer{'' if len(layers) == 1 else 's'} {ranges(layers)}"


def _alt(growths: Sequence[Growth]) -> str:
    return "Line chart over layers. " + " ".join(_alt_of(growth) for growth in growths)


def _alt_of(growth: Growth) -> str:
    drawn = np.flatnonzero(np.isfinite(growth.sqnr_db))
    if drawn.size:
        first, last = int(drawn[0]), int(drawn[-1])
        text = (
            f"{growth.scheme}: {number(growth.sqnr_db[first])} dB after layer {first}, "
            f"{number(growth.sqnr_db[last])} dB after layer {last}"
        )
    else:
        text = f"{growth.scheme}: {counted(int(growth.exact.sum()), 'exact layer')}, no ratio"
    if (growth.worst > 0).any():
        layer = int(np.nanargmax(growth.worst))
        text += f"; worst component {visible(growth.component[layer])} of layer {layer}, "
        text += f"relative error {number(growth.worst[layer])}"
    return text + "."
