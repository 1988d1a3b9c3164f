"""`activation_profile`: one hidden-state vector against dimension index, its largest values labeled.

Most values lie in a narrow band; outlier dimensions are spikes many times higher. "Neuron" in its labels is a
dimension of the residual stream, not a unit of the MLP.
"""

from collections.abc import Iterator

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from numpy.typing import NDArray

from service.errors import ReportUnreadable
from workers.reporting.drawing import style
from workers.reporting.drawing.figure import Caption, Drawing, NothingToDraw, provenance
from workers.reporting.drawing.label_placement import spread
from workers.reporting.loading import Source
from workers.reporting.text import counted, number, visible

LABELED_PEAKS = 5
"""How many of the largest magnitudes are named."""
_BAND = 0.17
"""Share of the axes' height kept free of data for a row of labels."""
_GAP = 10.0
"""Pixels between two labels."""


def draw(source: Source) -> Iterator[Drawing]:
    """Yield the figure of the vector in the `profile` table."""
    values = _vector(source)
    peaks = largest(values)
    if not peaks.size:
        raise NothingToDraw("no activation in tables/profile.parquet is finite")
    figure = Figure(figsize=style.WIDE)
    axes = figure.add_subplot()
    axes.set(title="Neuron Activation Distribution", xlabel="Neuron Indexes", ylabel="Neuron Activations")
    finite = values[np.isfinite(values)]
    center = float(np.median(finite)) if finite.size else 0.0
    reach = source.report.profile.p99_abs
    axes.axhspan(center - reach, center + reach, color=style.SHADE, linewidth=0, zorder=0)
    _limits(axes, values, peaks, (center - reach, center + reach))
    figure.draw_without_rendering()
    kept = thin(values, axes.get_xlim(), round(axes.get_window_extent().width))
    axes.plot(kept, values[kept], color=style.CYAN, linewidth=0.8, gid="activations")
    _name(axes, values, peaks)
    yield Drawing(
        name="activation_profile",
        title="Neuron Activation Distribution",
        parts=_caption(source, values, peaks, center),
        alt=_alt(source, values, peaks),
        table="profile",
        figure=figure,
    )


def _vector(source: Source) -> NDArray[np.float32]:
    table = source.tables["profile"]
    size = source.report.model.hidden_size
    order = np.argsort(table["dimension"], kind="stable")
    if not np.array_equal(table["dimension"][order], np.arange(size)):
        raise ReportUnreadable(
            f"tables/profile.parquet: column 'dimension' does not name each of the {size} dimensions of "
            f"report.json's model once; it has {len(order)} rows"
        )
    return table["value"][order].astype(np.float32)


def largest(values: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return the dimensions of the largest finite magnitudes, ascending; of equal ones the first."""
    magnitude = np.where(np.isfinite(values), np.abs(values), -1)
    ranked = np.argsort(-magnitude, kind="stable")[: min(LABELED_PEAKS, int(np.isfinite(values).sum()))]
    return np.sort(ranked)


def thin(values: NDArray[np.float32], limits: tuple[float, float], pixels: int) -> NDArray[np.int64]:
    """Return the dimensions to draw so that each of `pixels` columns keeps its smallest and its largest value.

    Args:
        values: One value per dimension, [d]; a value that is not finite is kept, and breaks the line.
        limits: The x axis from its first to its last pixel.
        pixels: Width of the axes.

    Returns:
        All dimensions where no pixel holds more than two; else at most two for each pixel, ascending.
    """
    dimensions = np.arange(len(values))
    if len(values) <= 2 * pixels:
        return dimensions
    values = np.where(np.isfinite(values), values, np.nan)
    low, high = limits
    column = np.floor((dimensions - low) / (high - low) * pixels).astype(np.int64)
    starts = np.flatnonzero(np.diff(column, prepend=-1))
    kept = [np.isnan(values)]
    for extreme in (np.fmin, np.fmax):
        level = np.repeat(extreme.reduceat(values, starts), np.diff(starts, append=len(values)))
        hits = np.flatnonzero(values == level)
        first = np.zeros(len(values), dtype=bool)
        first[hits[np.diff(column[hits], prepend=-1) > 0]] = True
        kept.append(first)
    return np.flatnonzero(np.logical_or.reduce(kept))


def _limits(axes: Axes, values: NDArray[np.float32], peaks: NDArray[np.int64], shade: tuple[float, float]) -> None:
    """Cover the data and the shaded band, with room for a row of labels where there are any."""
    last = max(len(values) - 1, 1)
    axes.set_xlim(-0.01 * last, 1.01 * last)
    finite = values[np.isfinite(values)].astype(np.float64)
    low, high = float(min(shade[0], *finite, 0.0)), float(max(shade[1], *finite, 0.0))
    span = (high - low) or 1.0
    above, below = _BAND * bool((values[peaks] >= 0).any()), _BAND * bool((values[peaks] < 0).any())
    unit = span / (1 - above - below - 0.06)
    axes.set_ylim(low - (below + 0.03) * unit, high + (above + 0.03) * unit)


def _name(axes: Axes, values: NDArray[np.float32], peaks: NDArray[np.int64]) -> None:
    """Label the peaks: positive ones in a row along the top, negative ones along the bottom."""
    axes.plot(peaks, values[peaks], "o", color=style.INK, markersize=2.6, gid="peaks")
    box = axes.get_window_extent()
    for side, chosen in ((1, peaks[values[peaks] >= 0]), (0, peaks[values[peaks] < 0])):
        labels = [
            axes.annotate(
                f"index {dimension}\n{values[dimension]!s}",
                xy=(dimension, values[dimension]),
                xytext=(0.5, 0.985 if side else 0.015),
                textcoords="axes fraction",
                ha="center",
                va="top" if side else "bottom",
                fontsize=8,
                linespacing=1.25,
                bbox={"facecolor": style.PAPER, "edgecolor": "none", "pad": 1.5},
                arrowprops={
                    "arrowstyle": "-",
                    "color": style.MUTED,
                    "linewidth": 0.6,
                    "relpos": (0.5, 1 - side),
                    "shrinkA": 1,
                    "shrinkB": 2,
                },
            )
            for dimension in chosen
        ]
        widths = [Text.get_window_extent(label).width + _GAP for label in labels]  # of the text, without its line
        wanted = [axes.transData.transform((dimension, 0))[0] - box.x0 for dimension in chosen]
        for label, center in zip(labels, spread(wanted, widths, 0, box.width), strict=True):
            label.set_position((center / box.width, label.get_position()[1]))


def _meeting(source: Source, peaks: NDArray[np.int64]) -> str:
    """Return the definitions that flag a labeled dimension, in all layers or in the profile's, each with dimensions.

    Definitions that do not discriminate are left out.
    """
    table = source.tables["outlier_dimensions"]
    layer = table["layer"].astype(np.float64)
    here = np.isnan(layer) | (layer == source.report.profile.layer)
    unnamed = source.report.outliers.unnamed(source.report.model.hidden_size)
    pairs = {
        (str(name), int(dimension))
        for name, dimension in zip(table["definition"][here], table["dimension"][here], strict=True)
        if str(name) not in unnamed and dimension in peaks
    }
    listed = {name: ", ".join(str(of) for one, of in sorted(pairs) if one == name) for name in sorted(dict(pairs))}
    if rest := sorted(set(peaks.tolist()) - {dimension for _, dimension in pairs}):
        listed["no definition"] = ", ".join(map(str, rest))
    return "; ".join(f"{visible(name)}: {dimensions}" for name, dimensions in listed.items())


def _caption(source: Source, values: NDArray[np.float32], peaks: NDArray[np.int64], center: float) -> Caption:
    profile = source.report.profile
    not_finite = int((~np.isfinite(values)).sum())
    text = "" if profile.token is None else f" “{visible(profile.token)}”"
    return Caption(
        f"Hidden state of token{text} (id {profile.token_id}) after layer {profile.layer}, sequence "
        f"{profile.sequence}, position {profile.position}.",
        (
            f"“Neuron”: one of {counted(len(values), 'hidden dimension')}. Median {number(center)}, max_to_median "
            f"{number(profile.max_to_median)}, kurtosis {number(profile.kurtosis)}. Shaded: median ± p99 of abs(x), "
            f"{number(profile.p99_abs)}.",
        ),
        "Spikes far outside the shaded band are outliers.",
        (
            f"Labeled dimensions by the definitions they meet: {_meeting(source, peaks)}.",
            f"Not drawn: {counted(not_finite, 'value')} that {'is' if not_finite == 1 else 'are'} not finite."
            if not_finite
            else "",
        ),
        provenance(source.report, "profile"),
    )


def _alt(source: Source, values: NDArray[np.float32], peaks: NDArray[np.int64]) -> str:
    named = ", ".join(f"{values[dimension]!s} at index {dimension}" for dimension in peaks)
    return (
        f"Line chart of {len(values)} activations of one token after layer {source.report.profile.layer}. Ninety-nine "
        f"percent have a magnitude below {number(source.report.profile.p99_abs)}. The largest: {named}."
    )
