"""`outlier_dimensions`: the dimensions that any definition of outlier flags, with their abs_max at every layer.

A row is a hidden dimension, a column a layer. The color is the largest magnitude at block.output; a mark means that a
definition flags the dimension at that layer, and its shape shows which one. LLM.int8()'s definitions are about all
layers at once, so their marks are to the right of the rows. A definition that flags more than half of the dimensions
has no marks.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from service.contracts.sections.outliers import Outliers
from service.contracts.thresholds import LlmInt8Thresholds
from workers.reporting.drawing import style
from workers.reporting.drawing.color_scales import color_bar, logarithmic, rising_norm
from workers.reporting.drawing.figure import Caption, Drawing, joined, provenance
from workers.reporting.drawing.missing_values import hatch
from workers.reporting.drawing.svg import Hover
from workers.reporting.loading import Source
from workers.reporting.text import counted, number, percent

SHOWN_DIMENSIONS = 20
"""Dimensions that a figure has room for."""
SHAPES = {
    "massive_tensor": "^",
    "massive_token": "v",
    "median_quantile": "s",
    "variance": "o",
    "llm_int8": "D",
    "llm_int8_relative": "P",
}
"""The mark of every definition."""
OVER_ALL = ("llm_int8", "llm_int8_relative")
"""The definitions about all layers at once; their marks are to the right of the rows."""


class Flagged(NamedTuple):
    """One dimension that a definition flags."""

    dimension: int
    at: dict[str, tuple[int, ...]]
    """By definition the layers that flag it, ascending; none for a definition about all layers."""
    peaks: NDArray[np.float64]
    """[layers]: its largest magnitude at block.output; NaN where the table has none."""

    @property
    def importance(self) -> tuple[int, int, float]:
        """How many definitions flag it, in how many layers, and its largest magnitude."""
        largest = float(np.nanmax(self.peaks)) if np.isfinite(self.peaks).any() else 0.0
        return len(self.at), sum(map(len, self.at.values())), largest


def draw(source: Source) -> Iterator[Drawing]:
    """Yield the figure; where no dimension is flagged, it says so."""
    flagged = sorted(_flagged(source), key=lambda dimension: dimension.importance, reverse=True)
    shown = flagged[:SHOWN_DIMENSIONS]
    figure, hover = _figure(shown, source.report.model.layers) if shown else (_nothing(source.report.outliers), {})
    yield Drawing(
        name="outlier_dimensions",
        title="Outlier dimensions",
        parts=_caption(source, shown, len(flagged)),
        alt=_alt(shown, len(flagged)),
        table="outlier_dimensions",
        figure=figure,
        hover=hover,
    )


def _flagged(source: Source) -> list[Flagged]:
    depth, unnamed = source.report.model.layers, source.report.outliers.unnamed(source.report.model.hidden_size)
    whole = source.tables["outlier_dimensions"]
    named = ~np.isin(whole["definition"].astype(str), list(unnamed))
    table = {name: values[named] for name, values in whole.items()}
    here = np.isfinite(table["layer"].astype(np.float64))
    at: dict[int, dict[str, list[int]]] = {}
    for definition, dimension in zip(table["definition"][~here], table["dimension"][~here], strict=True):
        at.setdefault(int(dimension), {}).setdefault(str(definition), [])
    rows = {name: values[here] for name, values in table.items()}
    layers = source.layers_of("outlier_dimensions", rows).tolist()
    for definition, dimension, layer in zip(rows["definition"], rows["dimension"], layers, strict=True):
        at.setdefault(int(dimension), {}).setdefault(str(definition), []).append(layer)
    if not at:
        return []
    peaks = _peaks(source, np.array(sorted(at)), depth)
    return [
        Flagged(dimension, {name: tuple(sorted(layers)) for name, layers in at[dimension].items()}, row)
        for dimension, row in zip(sorted(at), peaks, strict=True)
    ]


def _peaks(source: Source, dimensions: NDArray[np.int64], depth: int) -> NDArray[np.float64]:
    """Return the largest magnitudes at block.output, [dimensions, layers]."""
    rows = source.tables.where("channels", component="block", port="output")
    layers = source.layers_of("channels", rows)
    known = np.isin(rows["channel"], dimensions)
    peaks = np.full((len(dimensions), depth), np.nan)
    peaks[np.searchsorted(dimensions, rows["channel"][known]), layers[known]] = rows["abs_max"][known]
    return peaks


def _figure(shown: Sequence[Flagged], depth: int) -> tuple[Any, Hover]:
    figure = Figure(figsize=(style.WIDE[0], 2.1 + 0.3 * len(shown)))
    axes = figure.add_subplot()
    axes.set(title="Outlier dimensions: largest magnitude at block.output", ylabel="Dimension")
    style.layer_axis(axes, depth)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.set_yticks(range(len(shown)), [str(one.dimension) for one in shown])
    peaks = np.array([one.peaks for one in shown])
    norm, ticks = rising_norm(peaks[np.isfinite(peaks)])
    edges = np.arange(depth + 1) - 0.5, np.arange(len(shown) + 1) - 0.5
    cells = np.ma.masked_invalid(peaks)
    if not np.isfinite(peaks).all():
        hatch(axes, (-0.5, -0.5), depth, len(shown), zorder=0.9)
    mesh = axes.pcolormesh(*edges, cells, cmap=style.SEQUENTIAL, norm=norm, zorder=1, gid="cells", clip_on=False)
    axes.hlines(edges[1], -0.5, depth - 0.5, color=style.PAPER, linewidth=2, zorder=1.1)
    _mark(axes, shown, depth)
    axes.set_ylim(len(shown) - 0.5, -0.5)
    color_bar(figure, axes, mesh, ticks, "abs_max", pad=0.02, fraction=0.04, aspect=8 + 2 * len(shown))
    hover = {"cells": [_cell(one, layer) for one in shown for layer in range(depth)]}
    return figure, hover


def _mark(axes: Axes, shown: Sequence[Flagged], depth: int) -> None:
    """Draw one mark for each definition, dimension and layer; each definition keeps to a lane of the rows."""
    present = [name for name in SHAPES if any(name in dimension.at for dimension in shown)]
    by_layer = [name for name in present if name not in OVER_ALL]
    for lane, name in enumerate(by_layer):
        offset = (lane - (len(by_layer) - 1) / 2) * 0.21
        places = [(layer, row + offset) for row, one in enumerate(shown) for layer in one.at.get(name, ())]
        axes.plot(*np.array(places).reshape(-1, 2).T, markersize=4, gid=f"mark_{name}", **_look(name))
    axes.set_xticks([tick for tick in axes.get_xticks() if 0 <= tick < depth])  # none below the marks to the right
    axes.set_xlim(-0.5, _mark_over_all(axes, shown, depth))
    handles = [Line2D([], [], markersize=5, **_look(name)) for name in present]
    labels = [f"{name} (over all layers)" if name in OVER_ALL else name for name in present]
    axes.figure.legend(handles, labels, loc="outside lower center", ncols=5, fontsize=8, handletextpad=0.1)


def _mark_over_all(axes: Axes, shown: Sequence[Flagged], depth: int) -> float:
    """Draw the marks of the definitions about all layers right of the rows; return the right edge of the marks."""
    edge, step = depth - 0.5, 0.022 * depth
    for name in [name for name in SHAPES if name in OVER_ALL]:
        rows = [row for row, one in enumerate(shown) if name in one.at]
        if rows:
            axes.plot([edge + step] * len(rows), rows, markersize=6, gid=f"mark_{name}", **_look(name))
            edge += 2 * step
    return edge


def _look(definition: str) -> dict[str, Any]:
    """Return how the marks of a definition are drawn."""
    return {
        "marker": SHAPES[definition],
        "linestyle": "none",
        "markerfacecolor": style.INK,
        "markeredgecolor": style.PAPER,
        "markeredgewidth": 0.5,
        "clip_on": False,
    }


def _cell(flagged: Flagged, layer: int) -> str:
    met = [name for name in SHAPES if layer in flagged.at.get(name, ())]
    return f"dimension {flagged.dimension}, layer {layer}: {number(flagged.peaks[layer], 6)}" + (
        f"; {', '.join(met)}" if met else ""
    )


def thresholds(outliers: Outliers) -> dict[str, str]:
    """Return the condition of every definition, with the thresholds that were used."""
    massive = outliers.massive_tensor.thresholds
    token = outliers.massive_token.thresholds
    return {
        "massive_tensor": f"abs(x) > {massive.magnitude:g} and at least {massive.ratio:g} times the sequence's median",
        "massive_token": f"abs(x) > {token.magnitude:g} and at least {token.ratio:g} times the token's median",
        "median_quantile": "median of abs(x) over tokens above the layer's "
        f"{percent(outliers.median_quantile.thresholds.quantile, 0)} quantile",
        "variance": f"variance at least {outliers.variance.thresholds.ratio:g} times the mean variance",
        "llm_int8": _over_all(outliers.llm_int8.thresholds, ""),
    } | (
        {"llm_int8_relative": _over_all(outliers.llm_int8_relative.thresholds, " times the token's rms")}
        if outliers.llm_int8_relative
        else {}
    )


def _over_all(limits: LlmInt8Thresholds, scale: str) -> str:
    return (
        f"abs(x) >= {limits.magnitude:g}{scale} at attn.q.input or mlp.up.input, in "
        f"{percent(limits.layers_fraction, 0)} of layers and at {percent(limits.positions_fraction, 0)} of positions "
        "in any layer"
    )


def _definitions(outliers: Outliers) -> str:
    """Return all definitions as one sentence; two with the same thresholds are stated together."""
    every = thresholds(outliers)
    tensor, relative = outliers.massive_tensor.thresholds, outliers.llm_int8_relative
    if tensor == outliers.massive_token.thresholds:
        text = every.pop("massive_token").replace("token's", "sequence's (token's)")
        every = {"massive_tensor (massive_token)": text} | every
        del every["massive_tensor"]
    if relative and relative.thresholds.model_dump() == outliers.llm_int8.thresholds.model_dump():
        del every["llm_int8"], every["llm_int8_relative"]
        every["llm_int8 (llm_int8_relative)"] = _over_all(relative.thresholds, " (times the token's rms)")
    return f"{'; '.join(f'{name}: {text}' for name, text in every.items())}."


def _nothing(outliers: Outliers) -> Any:
    """Draw the statement that no dimension is flagged, with every definition."""
    figure = Figure(figsize=(style.WIDE[0], 2.1))
    axes = figure.add_subplot()
    axes.set_axis_off()
    axes.set_title("No dimension meets any definition of outlier")
    lines = [f"{name}: {text}" for name, text in thresholds(outliers).items()]
    axes.text(0.5, 1.0, "\n".join(lines), ha="center", va="top", transform=axes.transAxes, fontsize=8, linespacing=1.9)
    return figure


def _caption(source: Source, shown: Sequence[Flagged], flagged: int) -> Caption:
    hidden_size = source.report.model.hidden_size
    notes = [_scale(shown) if shown else "None is flagged."]
    if flagged > len(shown):
        notes.append(f"Left out: {flagged - len(shown):,} of {counted(flagged, 'dimension')}; the table has all.")
    notes += [
        f"Left out: {name}, which flags {count:,} of {hidden_size:,} dimensions and does not discriminate."
        for name, count in source.report.outliers.unnamed(hidden_size).items()
    ]
    if source.report.model.layers == 1:
        notes.append("The model has a single layer.")
    return Caption(
        "Dimensions that a definition of outlier flags: abs_max at block.output by layer.",
        (_definitions(source.report.outliers),),
        "A mark: the definition flags the dimension in that layer. Dark rows hold the largest values: they "
        "determine the tensor's scale."
        if shown
        else "",
        tuple(notes),
        provenance(source.report, "outlier_dimensions"),
    )


def _scale(shown: Sequence[Flagged]) -> str:
    """Return a sentence about the colors."""
    peaks = np.array([dimension.peaks for dimension in shown])
    known = peaks[np.isfinite(peaks)]
    colors = "Logarithmic colors." if known.size and logarithmic(known.min(), known.max()) else ""
    return joined(colors, "" if known.size == peaks.size else "Hatched, n/a: the table has no finite value.")


def _alt(shown: Sequence[Flagged], flagged: int) -> str:
    if not shown:
        return "A statement: no dimension meets any definition of outlier."
    first = shown[0]
    return (
        f"Heat map of {counted(len(shown), 'dimension')} by {counted(len(first.peaks), 'layer')}; {flagged:,} are "
        "flagged. " + " ".join(f"Dimension {one.dimension} meets {', '.join(sorted(one.at))}." for one in shown[:5])
    )
