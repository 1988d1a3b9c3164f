"""`component_heatmap`: layers by components, one map for each scheme and metric.

Read it by column for a kind of module that a scheme handles badly, and by row for a layer to leave in 16 bits.
White is the median cell, so that blue and orange mean better and worse than this model's ordinary module.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from matplotlib.colors import FuncNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, FuncFormatter
from numpy.typing import NDArray

from workers.reporting.figures import style
from workers.reporting.figures.drawing import Drawing, provenance, scheme_settings
from workers.reporting.loading import Columns, Source, select
from workers.reporting.text import ABSENT, listing, number, visible

COMPONENTS = ("attn.q", "attn.k", "attn.v", "attn.o", "mlp.up", "mlp.down", "mlp.gate")
"""The columns of every map, left to right."""
LABELS = tuple(component.replace(".", ". ") for component in COMPONENTS)
TICK_EVERY = 3
"""Layers between two ticks."""
_DECADE = 10.0
"""Largest over smallest cell from which colours follow the logarithm."""


class Metric(NamedTuple):
    """A column of the `errors` table that is drawn as a map."""

    column: str
    title: str
    bar: str
    """What the colour bar says."""
    definition: str


METRICS = (
    Metric(
        "weight_error",
        "Weight error",
        "weight_error (relative Frobenius norm)",
        "weight_error is norm_F(W - Q(W)) / norm_F(W), Q(W) the dequantised weight",
    ),
    Metric(
        "relative_l2",
        "Isolated output error",
        "relative_l2 (isolated, at the output)",
        "relative_l2 is norm2(y - q) / norm2(y) at the component's output, with the quantised module applied to the "
        "reference's input",
    ),
)


def draw(source: Source) -> Iterator[Drawing]:
    """Yield one map for each scheme of the report and each metric."""
    for scheme in source.report.schemes:
        rows = select(source.tables["errors"], scheme=scheme, mode="isolated", port="output")
        layers = source.layers_of("errors", rows)
        for metric in METRICS:
            cells = _cells(rows, layers, metric.column, source.report.model.layers)
            yield Drawing(
                name=f"component_heatmap_{scheme}_{metric.column}",
                title=f"{metric.title} by component, {scheme}",
                caption=_caption(source, scheme, metric, cells, rows),
                alt=_alt(scheme, metric, cells),
                table="errors",
                figure=_map(cells, metric, style.scheme_title(scheme)),
            )


def _cells(rows: Columns, layers: NDArray[np.int64], column: str, depth: int) -> NDArray[np.float64]:
    """Return the map, [depth, components]; NaN where the table has no value."""
    cells = np.full((depth, len(COMPONENTS)), np.nan)
    for position, component in enumerate(COMPONENTS):
        here = rows["component"] == component
        cells[layers[here], position] = rows[column][here]
    return cells


def _map(cells: NDArray[np.float64], metric: Metric, scheme: str) -> Any:
    depth, width = cells.shape
    figure = Figure(figsize=(style.NARROW, float(np.clip(1.5 + 0.105 * depth, 3.6, 9.8))))
    axes = figure.add_subplot()
    axes.set_title(f"{metric.title}: {scheme}")
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.set_xticks(range(width), LABELS, fontsize=8)
    axes.set_yticks(range(0, depth, TICK_EVERY))
    axes.set_ylabel("Layer")
    finite = cells[np.isfinite(cells)]
    norm, ticks = median_norm(finite)
    mesh = axes.pcolormesh(
        np.arange(width + 1) - 0.5,
        np.arange(depth + 1) - 0.5,
        np.ma.masked_invalid(cells),
        cmap=style.DIVERGING,
        norm=norm,
        edgecolors=style.PAPER,
        linewidth=0.7 if depth <= 40 else 0.35,
        gid="cells",
    )
    _hatch(axes, np.isfinite(cells))
    if finite.size:
        bar: Any = figure.colorbar(mesh, ax=axes, pad=0.02, aspect=7 * figure.get_figheight(), fraction=0.05)
        bar.outline.set_visible(False)
        bar.solids.set(edgecolor="face", rasterized=False)  # an embedded image would be a request of the page
        bar.set_label(metric.bar)
        bar.ax.minorticks_off()
        bar.ax.yaxis.set_major_locator(FixedLocator(ticks))
        bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
    return figure


def median_norm(values: NDArray[np.float64]) -> tuple[Any, list[float]]:
    """Return a norm that maps smallest, median and largest value to 0, 0.5 and 1, and five ticks for its bar.

    Between them it is linear in the value, or in its logarithm where the values are positive and span more than a
    decade. Values that are all equal lie in the middle of the smallest possible scale; no values give 0 to 1.
    """
    low, middle, high = np.quantile(values, (0, 0.5, 1)).tolist() if values.size else (0.0, 0.5, 1.0)
    forward, inverse = _scale(low, high)
    knots = np.array([forward(low), forward(middle), forward(high)], dtype=np.float64)
    step = max((knots[2] - knots[0]) / 1000, abs(knots[1]) * 1e-6, 1e-12)
    knots[0] = min(knots[0], knots[1] - step)
    knots[2] = max(knots[2], knots[1] + step)
    places = np.array([0.0, 0.5, 1.0])
    norm = FuncNorm(
        (
            lambda value: np.interp(forward(value), knots, places),
            lambda place: inverse(np.interp(place, places, knots)),
        ),
        vmin=float(inverse(knots[0])),
        vmax=float(inverse(knots[2])),
    )
    ticks = inverse(np.interp(np.linspace(0, 1, 5), places, knots))
    return norm, [float(tick) for tick in ticks]


def _scale(low: float, high: float) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    if _logarithmic(low, high):
        return (lambda value: np.log(np.maximum(value, low / 2))), np.exp  # a colour bar also asks below its range
    return np.asarray, np.asarray


def _logarithmic(low: float, high: float) -> bool:
    return low > 0 and high / low > _DECADE


def _hatch(axes: Any, present: NDArray[np.bool_]) -> None:
    """Hatch every run of absent cells of a column, and write n/a on it once."""
    depth, width = present.shape
    for column in range(width):
        absent = np.concatenate([[False], ~present[:, column], [False]])
        edges = np.flatnonzero(np.diff(absent.astype(np.int8)))
        for start, stop in edges.reshape(-1, 2):
            axes.add_patch(
                Rectangle(
                    (column - 0.5, start - 0.5),
                    1,
                    stop - start,
                    facecolor=style.SHADE,
                    edgecolor=style.MUTED,
                    hatch="////",
                    linewidth=0,
                )
            )
            axes.text(
                column,
                (start + stop - 1) / 2,
                ABSENT,
                ha="center",
                va="center",
                fontsize=7.5 if depth <= 48 or stop - start > 1 else 5,
                bbox={"facecolor": style.PAPER, "edgecolor": "none", "pad": 1.2},
            )


def _caption(source: Source, scheme: str, metric: Metric, cells: NDArray[np.float64], rows: Columns) -> str:
    finite = cells[np.isfinite(cells)]
    parts = [f"{metric.title} of {scheme_settings(source.report, scheme)}, layers by components. {metric.definition}."]
    if finite.size:
        low, middle, high = np.quantile(finite, (0, 0.5, 1)).tolist()
        log = " (colours follow the logarithm)" if _logarithmic(low, high) else ""
        parts.append(f"White is the median, {number(middle)}; blue is smaller, orange larger{log}.")
    if finite.size < cells.size:
        parts.append("Hatched, n/a: the model has no such component there, or the scheme leaves it as it is.")
    parts.extend(_others(rows, metric.column))
    parts.append(provenance(source.report, "errors"))
    return " ".join(parts)


def _others(rows: Columns, column: str) -> Iterator[str]:
    """Say which components were measured that have no column of their own, worst first."""
    worst: dict[str, float] = {}
    for component, value in zip(rows["component"], rows[column], strict=True):
        if component not in (*COMPONENTS, "block") and np.isfinite(value):
            worst[component] = max(value, worst.get(component, 0.0))
    if worst:
        ranked = sorted(worst, key=lambda name: (-worst[name], name))
        named = listing(f"{visible(name)} ({number(worst[name])})" for name in ranked)
        yield f"Also measured, with the largest value over layers: {named}."


def _alt(scheme: str, metric: Metric, cells: NDArray[np.float64]) -> str:
    if not np.isfinite(cells).any():
        return f"Heat map of {metric.column} under {scheme}: no value for any of the seven components."
    layer, column = np.unravel_index(np.nanargmax(cells), cells.shape)
    low, middle, high = np.nanquantile(cells, (0, 0.5, 1)).tolist()
    return (
        f"Heat map of {metric.column} under {scheme}, {cells.shape[0]} layers by {cells.shape[1]} components: from "
        f"{number(low)} to {number(high)}, median {number(middle)}; largest at layer {layer}, {LABELS[column]}."
    )
