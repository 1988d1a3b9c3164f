"""`comparison_error_growth`: the accumulated error of each shared scheme by layer, one line per report."""

from collections.abc import Iterator

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from workers.reporting.comparison.gathering import Gathered
from workers.reporting.drawing import style
from workers.reporting.drawing.figure import Caption, Drawing
from workers.reporting.loading import Source
from workers.reporting.text import counted, number, plain

_PANELS_PER_ROW = 2
"""Panels side by side."""


def draw(gathered: Gathered) -> Iterator[Drawing]:
    """Yield the figure, a panel for each scheme that two reports or more have; nothing where there is none."""
    shared = [
        scheme for scheme in gathered.schemes if sum(scheme in source.report.schemes for source in gathered.sources) > 1
    ]
    if not shared:
        return
    across = min(_PANELS_PER_ROW, len(shared))
    down = -(-len(shared) // across)
    figure = Figure(figsize=(style.WIDE[0], 0.9 + 2.5 * down))
    panels = list(figure.subplots(down, across, squeeze=False).flat)
    lines = {}
    for axes, scheme in zip(panels, shared, strict=False):
        lines[scheme] = _panel(axes, gathered, scheme)
    for axes in panels[len(shared) :]:
        axes.set_axis_off()
    figure.suptitle("Error growth through the layers")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2)
    yield Drawing(
        name="comparison_error_growth",
        title="Error growth through the layers",
        parts=Caption(
            "Accumulated error of every shared scheme by layer, in each report.",
            (
                "sqnr_db = 10 log10(sum y^2 / sum (y - q)^2) at block.output, in the scheme's own stream against its "
                "own reference. A layer that equals the reference has no point.",
            ),
            "Higher is better. A falling line means that the error accumulates.",
        ),
        alt="Line charts over layers. " + " ".join(_alt(gathered, scheme, lines[scheme]) for scheme in shared),
        table="",
        figure=figure,
    )


def _panel(axes: Axes, gathered: Gathered, scheme: str) -> list[NDArray[np.float64] | None]:
    axes.set_title(plain(style.scheme_title(scheme, gathered.facts(scheme)), 40), fontsize=10)
    axes.set_ylabel("SQNR at block.output, dB", fontsize=8.5)
    lines = [sqnr(source, scheme) if scheme in source.report.schemes else None for source in gathered.sources]
    for report, values in enumerate(lines):
        look = style.mark(report)
        axes.plot(
            np.arange(len(values)) if values is not None else [],
            values if values is not None else [],
            color=look.color,
            linestyle=look.line,
            marker=look.marker,
            markersize=3.2,
            label=plain(gathered.labels[report], 60),
            gid=f"{scheme}-{report}",
        )
    style.layer_axis(axes, max(source.report.model.layers for source in gathered.sources))
    return lines


def sqnr(source: Source, scheme: str) -> NDArray[np.float64]:
    """Return the accumulated SQNR after every layer, dB; NaN where it is exact."""
    layers, rows = source.stream_errors(scheme)
    values = np.full(source.report.model.layers, np.nan)
    values[layers] = rows["sqnr_db"]
    return values


def _alt(gathered: Gathered, scheme: str, lines: list[NDArray[np.float64] | None]) -> str:
    ends = []
    for label, values in zip(gathered.labels, lines, strict=True):
        drawn = np.empty(0) if values is None else values[np.isfinite(values)]
        none = "not measured" if values is None else "no ratio"
        ends.append(f"{label} {f'{number(drawn[-1])} dB' if drawn.size else none}")
    return f"{scheme} at the end of {counted(len(lines), 'report')}: {', '.join(ends)}."
