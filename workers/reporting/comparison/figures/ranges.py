"""`comparison_range`: the largest and the typical magnitude of the residual stream, layer by layer."""

from collections.abc import Iterator

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from workers.reporting.comparison.gathering import Gathered
from workers.reporting.drawing import style
from workers.reporting.drawing.figure import Caption, Drawing
from workers.reporting.loading import Source, select
from workers.reporting.text import number, plain


def draw(gathered: Gathered) -> Iterator[Drawing]:
    """Yield the figure."""
    largest = [stream(source, "abs_max") for source in gathered.sources]
    typical = [stream(source, "median_abs") for source in gathered.sources]
    figure = Figure(figsize=style.WIDE)
    axes = figure.add_subplot()
    axes.set(title="Dynamic range of the residual stream", ylabel="abs(x) at block.output")
    for report in range(len(gathered.sources)):
        look = style.mark(report)
        for values, width in ((largest[report], 1.6), (typical[report], 0.8)):
            shown = np.where(values > 0, values, np.nan)
            axes.plot(shown, color=look.color, linestyle=look.line, linewidth=width, marker=look.marker, markersize=3)
    style.layer_axis(axes, max(source.report.model.layers for source in gathered.sources))
    positive = np.concatenate([values[values > 0] for values in (*largest, *typical)])
    if positive.size:
        style.log_axis(axes, float(positive.min()) / 1.5, float(positive.max()) * 1.5)
    figure.legend(
        handles=[
            Line2D([], [], color=look.color, linestyle=look.line, marker=look.marker, label=plain(label, 60))
            for look, label in ((style.mark(report), label) for report, label in enumerate(gathered.labels))
        ],
        loc="outside lower center",
        ncols=2,
    )
    yield Drawing(
        name="comparison_range",
        title="Dynamic range of the residual stream",
        parts=Caption(
            "abs_max (thick) and median_abs (thin) at block.output by layer, log scale.",
            ("The distance between the two lines of a report is its range_bits = log2(abs_max / median_abs).",),
            "A smaller distance is easier to quantize.",
        ),
        alt="Line chart over layers. "
        + " ".join(
            f"{label}: abs_max {number(first)} after the first layer, {number(last)} after the last."
            for label, (first, last) in zip(gathered.labels, ((v[0], v[-1]) for v in largest), strict=True)
        ),
        table="",
        figure=figure,
    )


def stream(source: Source, column: str) -> NDArray[np.float64]:
    """Return a column of `sites` at block.output, by layer; NaN where there is none."""
    rows = select(source.tables["sites"], component="block", port="output")
    values = np.full(source.report.model.layers, np.nan)
    values[source.layers_of("sites", rows)] = rows[column]
    return values
