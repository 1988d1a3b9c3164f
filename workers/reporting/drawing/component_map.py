"""Draws a heat map of layers by components: colored cells, hatching where there is no value, and a color bar."""

import textwrap
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from numpy.typing import NDArray

from workers.reporting.drawing import style
from workers.reporting.drawing.color_scales import color_bar, median_norm
from workers.reporting.drawing.figure import name_each
from workers.reporting.drawing.missing_values import hatch
from workers.reporting.drawing.svg import Hover
from workers.reporting.loading import Columns, Source
from workers.reporting.text import ABSENT, number, ranges

COMPONENTS = ("attn.q", "attn.k", "attn.v", "attn.o", "mlp.up", "mlp.down", "mlp.gate")
"""The columns of every map, left to right."""
LABELS = tuple(component.replace(".", ". ") for component in COMPONENTS)
TICK_EVERY = 3
"""Layers between two ticks."""
TITLE_CHARACTERS = 52
"""Of a line of the title; a longer title has several."""


class Run(NamedTuple):
    """Neighboring layers in which a component has no value."""

    column: int
    first: int
    last: int


def draw_map(
    cells: NDArray[np.float64],
    title: str,
    bar: str,
    seen_as: tuple[str, ...],
    scale: Callable[[NDArray[np.float64]], tuple[Any, list[float]]] = median_norm,
    colors: Any = style.DIVERGING,
) -> tuple[Any, Hover]:
    """Return the figure of the map, and what its cells say on hover.

    Args:
        cells: [layers, components]; NaN where there is no value.
        title: Above the map.
        bar: Beside the color bar.
        seen_as: What hovering calls each component.
        scale: From the finite values to the norm of the colors and the ticks of the bar.
        colors: The map of colors.
    """
    depth, width = cells.shape
    figure = Figure(figsize=(style.NARROW, float(np.clip(1.5 + 0.105 * depth, 3.6, 9.8))))
    axes = figure.add_subplot()
    axes.set_title(textwrap.fill(title, TITLE_CHARACTERS))
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.set_xticks(range(width), LABELS, fontsize=8)
    axes.set(yticks=range(0, depth, TICK_EVERY), ylabel="Layer")
    finite = cells[np.isfinite(cells)]
    norm, ticks = scale(finite)
    edges = np.arange(width + 1) - 0.5, np.arange(depth + 1) - 0.5
    values = np.ma.masked_invalid(cells)
    mesh = axes.pcolormesh(*edges, values, cmap=colors, norm=norm, zorder=1, gid="cells", clip_on=False)
    _rule(axes, *edges)
    hover: dict[str, Sequence[str]] = {}
    hover["cells"] = [_cell(layer, name, row[i]) for layer, row in enumerate(cells) for i, name in enumerate(seen_as)]
    hatched = {run: _hatch(axes, run, depth) for run in _absent(np.isfinite(cells))}
    hover |= name_each(hatched.values(), (_gap(seen_as[run.column], run) for run in hatched), "absent")
    if finite.size:
        color_bar(figure, axes, mesh, ticks, bar, pad=0.02, aspect=7 * figure.get_figheight(), fraction=0.05)
    return figure, hover


def cells_of(source: Source, table: str, rows: Columns, column: str) -> NDArray[np.float64]:
    """Return a column of `rows`, which are of `table`, as [layers, components]; NaN where there is no row."""
    layers = source.layers_of(table, rows)
    cells = np.full((source.report.model.layers, len(COMPONENTS)), np.nan)
    for position, component in enumerate(COMPONENTS):
        here = rows["component"] == component
        cells[layers[here], position] = rows[column][here]
    return cells


def largest_cell(cells: NDArray[np.float64]) -> str:
    """Return where the largest finite value of a map is, in words; there must be one."""
    layer, component = np.unravel_index(np.nanargmax(cells), cells.shape)
    return f"layer {layer}, {LABELS[component]}"


def _cell(layer: int, component: str, value: float) -> str:
    return f"layer {layer}, {component}: {number(value, 6)}"


def _gap(component: str, run: Run) -> str:
    layers = ranges(range(run.first, run.last + 1))
    return f"{'layer' if run.first == run.last else 'layers'} {layers}, {component}: {ABSENT}"


def _rule(axes: Axes, x: NDArray[np.float64], y: NDArray[np.float64]) -> None:
    """Draw thin lines of the paper's color between the cells."""
    across = [[(x[0], place), (x[-1], place)] for place in y]
    down = [[(place, y[0]), (place, y[-1])] for place in x]
    width = 0.7 if len(y) <= 41 else 0.35
    axes.add_collection(LineCollection([*across, *down], colors=style.PAPER, linewidths=width, zorder=1.1))


def _absent(present: NDArray[np.bool_]) -> Iterator[Run]:
    """Yield every run of cells of a column that have no value."""
    for column in range(present.shape[1]):
        absent = np.concatenate([[False], ~present[:, column], [False]])
        for start, stop in np.flatnonzero(np.diff(absent.astype(np.int8))).reshape(-1, 2).tolist():
            yield Run(column, start, stop - 1)


def _hatch(axes: Axes, run: Run, depth: int) -> Any:
    """Hatch a run of absent cells, and write n/a on it once."""
    height = run.last - run.first + 1
    patch = hatch(axes, (run.column - 0.5, run.first - 0.5), 1, height, zorder=1.2)
    axes.text(
        run.column,
        (run.first + run.last) / 2,
        ABSENT,
        ha="center",
        va="center",
        fontsize=7.5 if depth <= 48 or height > 1 else 5,
        bbox={"facecolor": style.PAPER, "edgecolor": "none", "pad": 1.2},
    )
    return patch
