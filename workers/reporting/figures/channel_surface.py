"""`channel_surface`: the magnitude of a hidden state by token position and channel, as a three-dimensional surface.

It shows massive activations as in arXiv 2402.17762, and outlier channels as in SmoothQuant (arXiv 2211.10438): most
values are close to 0, a channel that is large at every token is a ridge, and a massive activation is a single high
column. The scale is linear, because an integer grid is.

The height of a ridge line is the largest magnitude of its cell, drawn at that value's own channel.
"""

from collections.abc import Iterator
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from mpl_toolkits.mplot3d import Axes3D, proj3d
from numpy.typing import NDArray

from service.contracts.report import SurfaceFacts
from service.errors import ReportUnreadable
from workers.reporting.drawing import style
from workers.reporting.drawing.figure import Caption, Drawing, NothingToDraw, provenance
from workers.reporting.drawing.label_placement import spread
from workers.reporting.loading import Columns, Source
from workers.reporting.text import counted, number

MAX_LINES = 48
"""Ridge lines at most: each is a group of neighboring positions."""
MAX_POINTS = 160
"""Points of a line at most: each is a group of neighboring channels."""
LABELED_CELLS = 5
"""Columns that are labeled."""
_NAME_HEIGHT = 0.28
"""Inches that a column's name takes."""
_FLAT = 0.003
"""Share of the largest magnitude below which a line looks like 0."""


class Cells(NamedTuple):
    """The table's cells that have a value, one element each."""

    position: NDArray[np.int64]
    channel: NDArray[np.int64]
    value: NDArray[np.float64]

    @property
    def magnitude(self) -> NDArray[np.float64]:
        """The height of each cell."""
        return np.abs(self.value)

    def at(self, chosen: NDArray[np.int64]) -> "Cells":
        """Return some of the cells."""
        return Cells(self.position[chosen], self.channel[chosen], self.value[chosen])


def draw(source: Source) -> Iterator[Drawing]:
    """Yield the figure of the hidden state in the `surface` table.

    Raises:
        TableAbsent: the report was made before there was such a table.
        NothingToDraw: no value of the hidden state is finite.
    """
    table, facts = source.tables["surface"], source.report.surface
    if facts is None:
        raise ReportUnreadable("report.json: surface: the key is missing; tables/surface.parquet is there")
    cells = _cells(table, facts)
    if not cells.value.size:
        raise NothingToDraw(f"no value of the hidden state after layer {facts.layer} is finite")
    highest = largest(cells)
    with mpl.rc_context({"figure.constrained_layout.use": False}):  # which has no place for three dimensions
        figure = Figure(figsize=(style.WIDE[0], 5.0))
    axes: Axes3D = figure.add_axes((0.0, 0.0, 0.8, 0.98), projection="3d", computed_zorder=False)
    _frame(axes, facts, float(cells.magnitude.max()))
    _ridges(axes, cells, facts)
    _name(figure, axes, highest)
    figure.suptitle("Magnitudes by position and channel", fontsize=11.5, y=0.97)
    yield Drawing(
        name="channel_surface",
        title="Magnitudes by position and channel",
        parts=_caption(source, facts, cells),
        alt=_alt(facts, highest),
        table="surface",
        figure=figure,
        hover={_gid(*place): (f"{_where(*place)}: {value:g}",) for *place, value in zip(*highest, strict=True)},
    )


def _gid(position: int, channel: int) -> str:
    return f"column_{position}_{channel}"


def _where(position: int, channel: int) -> str:
    return f"channel {channel}, position {position}"


def _cells(table: Columns, facts: SurfaceFacts) -> Cells:
    for name, size in (("position", facts.positions), ("channel", facts.channels)):
        bad = table[name][(table[name] < 0) | (table[name] >= size)]
        if bad.size:
            raise ReportUnreadable(
                f"tables/surface.parquet: column {name!r} holds {bad[0]:g}; report.json gives the hidden state "
                f"{counted(size, name)}"
            )
    known = np.isfinite(table["value"])
    return Cells(
        table["position"][known].astype(np.int64),
        table["channel"][known].astype(np.int64),
        table["value"][known].astype(np.float64),
    )


def largest(cells: Cells) -> Cells:
    """Return the cells of the largest magnitudes, the largest first; of equal ones the first in the table."""
    return cells.at(np.argsort(-cells.magnitude, kind="stable")[:LABELED_CELLS])


def ridge_lines(cells: Cells, facts: SurfaceFacts) -> list[Cells]:
    """Return the lines to draw, by position: of every group of positions and channels the cell with the largest
    magnitude, and of every line the cells by channel. No cell that is a maximum of its surroundings is left out.
    """
    down, across = -(-facts.positions // MAX_LINES), -(-facts.channels // MAX_POINTS)
    group = (cells.position // down) * facts.channels + cells.channel // across
    order = np.lexsort((-cells.magnitude, group))
    first = np.flatnonzero(np.diff(group[order], prepend=-1))
    kept = cells.at(order[first])
    line = kept.position // down
    return [kept.at(np.flatnonzero(line == number)) for number in np.unique(line)]


def _frame(axes: Axes3D, facts: SurfaceFacts, peak: float) -> None:
    """Set up axes that cover the data: channels to the right, positions into the depth, magnitudes upwards."""
    axes.set_proj_type("ortho")
    axes.view_init(elev=24, azim=-62)
    axes.set_box_aspect((1.75, 1.15, 0.8), zoom=1.12)
    axes.set(xlim=(0, max(facts.channels - 1, 1)), ylim=(0, max(facts.positions - 1, 1)), zlim=(0, 1.02 * peak or 1.0))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(nbins=9, integer=True, min_n_ticks=1))
    axes.set_xlabel("Channel", labelpad=6)
    axes.set_ylabel("Token position", labelpad=6)
    axes.set_zlabel("abs(x)", labelpad=2)
    axes.zaxis.set_ticks_position("lower")
    axes.zaxis.set_label_position("lower")
    for axis in (axes.xaxis, axes.yaxis, axes.zaxis):
        axis.set_pane_color(style.PAPER)
        axis.pane.set_edgecolor(style.GRID)
        axis.line.set_color(style.MUTED)
        axis._axinfo["grid"].update(color=style.GRID, linewidth=0.5)
        axis.set_tick_params(pad=0)


def _ridges(axes: Axes3D, cells: Cells, facts: SurfaceFacts) -> None:
    """Draw the lines from the last position to the first, each hiding what lies behind it."""
    floor = _FLAT * float(cells.magnitude.max())
    for line in reversed(ridge_lines(cells, facts)):
        high = line.magnitude > floor
        near = high | np.append(high[1:], False) | np.insert(high[:-1], 0, False)
        x, z = line.channel[near], np.where(high[near], line.magnitude[near], 0.0)
        outline = np.column_stack([[0, *x, facts.channels - 1], [0, *z, 0]])
        depth = int(line.position[line.magnitude.argmax()])
        face = PolyCollection([outline], facecolors=style.PALE_BLUE, edgecolors=style.BLUE, linewidths=0.4)
        axes.add_collection3d(face, zs=depth, zdir="y")
        face.set(gid=f"ridge_{depth}", clip_on=False)


def _name(figure: Figure, axes: Axes3D, highest: Cells) -> None:
    """Draw the largest columns over the surface, and label them in a list beside it."""
    for position, channel, height in zip(highest.position, highest.channel, highest.magnitude, strict=True):
        axes.plot(
            [channel] * 2,
            [position] * 2,
            [0, height],
            color=style.ORANGE,
            linewidth=1.6,
            clip_on=False,
            gid=_gid(position, channel),
        )
    figure.draw_without_rendering()
    projection = axes.get_proj()
    # In fractions of the figure, for an SVG has other pixels than what is drawn here.
    to_fraction = axes.transData + figure.transFigure.inverted()
    tops = [
        to_fraction.transform(proj3d.proj_transform(*place, projection)[:2])
        for place in zip(highest.channel, highest.position, highest.magnitude, strict=True)
    ]
    wanted = [top[1] for top in tops]
    apart = _NAME_HEIGHT / figure.get_figheight()
    places = spread(wanted, [apart] * len(wanted), 0.1, 0.9)
    for top, place, row in zip(tops, places, range(len(wanted)), strict=True):
        axes.annotate(
            f"{number(highest.value[row], 4)}\n{_where(highest.position[row], highest.channel[row])}",
            xy=top,
            xycoords="figure fraction",
            xytext=(0.80, place),
            textcoords="figure fraction",
            va="center",
            fontsize=8,
            linespacing=1.2,
            arrowprops={"arrowstyle": "-", "color": style.MUTED, "linewidth": 0.4, "relpos": (0, 0.5), "shrinkB": 2},
        )


def _caption(source: Source, facts: SurfaceFacts, cells: Cells) -> Caption:
    return Caption(
        f"abs(x) at block.output of layer {facts.layer}, sequence {facts.sequence}, where its maximum is farthest "
        f"above the layer's median ({number(facts.max_to_median)} times {number(facts.median_abs)}).",
        (
            f"{counted(facts.positions, 'position')} by {counted(facts.channels, 'channel')}, linear scale; a point is "
            "the maximum of neighboring positions and channels.",
        ),
        "A column far above the others is a massive activation. A scale that covers it leaves few levels for the other "
        "values. "
        f"Orange: the largest {len(largest(cells).value)}.",
        (),
        provenance(source.report, "surface"),
    )


def _alt(facts: SurfaceFacts, highest: Cells) -> str:
    named = ", ".join(
        f"{number(value, 4)} at {_where(position, channel)}"
        for position, channel, value in zip(highest.position, highest.channel, highest.value, strict=True)
    )
    return (
        f"Surface of magnitudes over {counted(facts.positions, 'token position')} and "
        f"{counted(facts.channels, 'channel')} after layer {facts.layer}; the median is {number(facts.median_abs)}. "
        f"The largest columns: {named}."
    )
