"""Stacked bars of attention heads, one for each quarter of the depth: what `head_severity` and `head_agreement` share.

N heads, S stacks, Q quarters
"""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from service.errors import ReportUnreadable
from workers.reporting.drawing import style
from workers.reporting.drawing.figure import NothingToDraw, name_each
from workers.reporting.drawing.label_placement import spread
from workers.reporting.drawing.svg import Hover
from workers.reporting.loading import Source, select
from workers.reporting.text import counted

QUARTERS = 4
ONE_BAR_PER_LAYER = "The model has fewer than four layers: one bar per layer."
_WIDTH = 0.62
"""Of a bar, where the next one is 1 away."""
_SIZE = 8.5
"""Points of a share."""

Quarter = tuple[int, int]
"""First layer, and the first that no longer belongs to it."""


class Heads(NamedTuple):
    """The heads of a report in the order of their table; arrays are [N]."""

    layer: NDArray[np.int64]
    head: NDArray[np.int64]
    outlier: NDArray[np.bool_]
    """Measured outlier heads."""


class Ratios(NamedTuple):
    """The error of every head under a scheme; arrays are [N]."""

    sqnr_db: NDArray[np.float64]
    """NaN where there is no ratio."""
    exact: NDArray[np.bool_]
    """Heads without any error, which have no ratio for it is infinite.

    A head whose output z is 0, or that has no finite value in the reference or the scheme, has no ratio either.
    """


class Stack(NamedTuple):
    """A class of heads, as a part of every bar."""

    label: str
    color: str


class Bars(NamedTuple):
    """A drawn figure."""

    figure: Figure
    hover: Hover


def heads(source: Source) -> Heads:
    """Return the heads of a report.

    Raises:
        NothingToDraw: it has none.
        ReportUnreadable: the table names a layer that the model does not have, a head twice, or no head.
    """
    table = source.tables["heads"]
    layer, head = source.layers_of("heads", table), table["head"].astype(np.float64)
    if not layer.size:
        raise NothingToDraw("the model has no attention heads that are known")
    if absent := int(np.isnan(head).sum()):
        raise ReportUnreadable(
            f"tables/heads.parquet: column 'head' is null in {absent} rows; a head's number is allowed"
        )
    pairs, times = np.unique(np.stack([layer, head]), axis=1, return_counts=True)
    if (times > 1).any():
        twice = pairs[:, np.argmax(times)]
        raise ReportUnreadable(
            f"tables/heads.parquet: columns 'layer' and 'head' name head {twice[1]:g} of layer {twice[0]:g} "
            f"{times.max()} times; each head has one row"
        )
    return Heads(layer, head.astype(np.int64), source.truths("heads", "measured_outlier"))


def ratios(source: Source, scheme: str) -> Ratios:
    """Return what a scheme does to every head, in the order of the table."""
    table = source.tables["heads"]
    sqnr_db = table[f"sqnr_db_{scheme}"].astype(np.float64)
    nonzero = table["rms"].astype(np.float64) > 0
    exact = (
        np.isnan(sqnr_db)
        & nonzero
        & ~np.isin(source.layers_of("heads", table), _layers_without_finite_input(source, scheme))
    )
    return Ratios(sqnr_db, exact)


def _layers_without_finite_input(source: Source, scheme: str) -> NDArray[np.int64]:
    """Return the layers at which nothing finite is left to compare where the heads' outputs enter `attn.o`."""
    rows = select(source.tables["errors"], scheme=scheme, mode="accumulated", component="attn.o", port="input")
    return source.layers_of("errors", rows)[np.isnan(rows["relative_l2"].astype(np.float64))]


def quarters(depth: int) -> list[Quarter]:
    """Return the quarters of a depth, edges floor(i * depth / 4), without those that hold no layer."""
    edges = [place * depth // QUARTERS for place in range(QUARTERS + 1)]
    return [(low, high) for low, high in itertools.pairwise(edges) if low < high]


def span(quarter: Quarter) -> str:
    """Return a quarter's layers for a sentence: `layers 0-11`, `layer 3`."""
    low, high = quarter
    return f"layer {low}" if high == low + 1 else f"layers {low}-{high - 1}"


def count(layers: NDArray[np.int64], classes: NDArray[np.int64], stacks: int, depth: int) -> NDArray[np.int64]:
    """Return how many heads of each class lie in each quarter, [S, Q]; `layers` and `classes` are [N]."""
    return np.array(
        [
            [int(((classes == stack) & (layers >= low) & (layers < high)).sum()) for low, high in quarters(depth)]
            for stack in range(stacks)
        ]
    )


def draw_bars(
    title: str, depth: int, counts: NDArray[np.int64], stacks: Sequence[Stack], legend: str, columns: int
) -> Bars:
    """Return the figure: a bar for each quarter, its stacks from the bottom up, each with its share in percent.

    Args:
        title: Over the axes.
        depth: Layers of the model.
        counts: [S, Q].
        stacks: [S].
        legend: Title of the legend, which is always shown.
        columns: Of the legend.
    """
    figure = Figure(figsize=(style.NARROW, 4.4))
    totals = counts.sum(axis=0)
    axes = _axes(figure, quarters(depth), int(totals.max()))
    axes.set_title(title)
    figure.legend(
        handles=[
            Patch(facecolor=stack.color, edgecolor=style.MUTED, linewidth=0.5, label=stack.label) for stack in stacks
        ],
        title=legend,
        title_fontsize=9,
        loc="outside lower center",
        ncols=columns,
    )
    hover: dict[str, Sequence[str]] = {}
    for place, (stack, row) in enumerate(zip(stacks, counts, strict=True)):
        here = np.flatnonzero(row)
        look = {"color": stack.color, "edgecolor": style.PAPER, "linewidth": 0.8}
        drawn = axes.bar(here, row[here], _WIDTH, counts[:place, here].sum(axis=0), **look)
        texts = [f"{span(quarters(depth)[q])}, {stack.label}: {counted(int(row[q]), 'head')}" for q in here]
        hover |= name_each(drawn, texts, f"heads-{place}")
    figure.draw_without_rendering()
    for quarter, total in enumerate(totals):
        axes.annotate(f"{total:,}", (quarter, total), (0, 2), textcoords="offset points", ha="center", va="bottom")
        _shares(axes, quarter, counts[:, quarter], stacks)
    return Bars(figure, hover)


def bar_texts(depth: int, counts: NDArray[np.int64], stacks: Sequence[Stack]) -> list[str]:
    """Return for every quarter its layers and the heads of each class that occurs; `counts` is [S, Q]."""
    return [
        f"{span(quarter)}: "
        + (", ".join(f"{n} {stack.label}" for n, stack in zip(heads, stacks, strict=True) if n) or "no head")
        for quarter, heads in zip(quarters(depth), counts.T, strict=True)
    ]


def _axes(figure: Figure, spans: Sequence[Quarter], tallest: int) -> Any:
    axes = figure.add_subplot()
    axes.set(xlabel="Layer", ylabel="# heads")
    axes.grid(False, axis="x")
    axes.set_xticks(range(len(spans)), [f"[{low}, {high})" for low, high in spans])
    axes.tick_params(axis="x", length=0)
    axes.set_xlim(-0.55, len(spans) - 0.25)  # beside the last bar too there is room for a share
    axes.yaxis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))
    axes.set_ylim(0, 1.09 * max(1, tallest))
    return axes


def _shares(axes: Axes, quarter: int, row: NDArray[np.int64], stacks: Sequence[Stack]) -> None:
    """Label every segment of a bar: inside where the text fits, else beside it on a ground of its color."""
    total = int(row.sum())
    tops = np.cumsum(row)
    unit = axes.get_window_extent().height / axes.get_ylim()[1]
    line = _SIZE / 72 * axes.figure.dpi
    slivers = [place for place in np.flatnonzero(row).tolist() if row[place] * unit < 1.35 * line]
    heights = spread([(tops[p] - row[p] / 2) * unit for p in slivers], [1.7 * line] * len(slivers), 0, np.inf)
    beside = dict(zip(slivers, heights / unit, strict=True))
    edge = quarter + _WIDTH / 2
    for place in np.flatnonzero(row).tolist():
        color, middle = stacks[place].color, tops[place] - row[place] / 2
        outside = place in beside
        axes.annotate(
            f"{100 * row[place] / total:.1f}%",
            (edge if outside else quarter, middle),
            (edge + 0.09, beside[place]) if outside else (quarter, middle),
            ha="left" if outside else "center",
            va="center",
            fontsize=_SIZE,
            color=style.text_on(color),
            gid=f"share-{quarter}-{place}",
            bbox={"facecolor": color, "edgecolor": "none", "pad": 1.4} if outside else None,
            arrowprops={"arrowstyle": "-", "color": style.MUTED, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 0}
            if outside
            else None,
        )
