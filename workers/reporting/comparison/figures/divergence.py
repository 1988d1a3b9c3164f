"""`comparison_divergence`: every scheme's divergence in every report, with 95% intervals.

Top: the mean KL divergence; bottom: the perplexity's ratio to the reference. Points of one scheme are side by side, in
the order of the reports.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from service.contracts.report import Estimate, SchemeFacts
from service.evaluation.verdict import interval, mean_kl
from workers.reporting.comparison.gathering import Gathered
from workers.reporting.drawing import style
from workers.reporting.drawing.figure import Caption, Drawing
from workers.reporting.text import estimate, plain

_SPREAD = 0.6
"""Share of a scheme's place that its points take up."""


class Point(NamedTuple):
    """One report's value of one scheme."""

    report: int
    scheme: int
    estimate: Estimate


def draw(gathered: Gathered) -> Iterator[Drawing]:
    """Yield the figure, unless no report has a scheme with a finite prediction."""
    kl, ratio = (
        _points(gathered, lambda facts: mean_kl(facts.kl_divergence)),
        _points(gathered, lambda facts: facts.perplexity_ratio),
    )
    if not kl:
        return
    figure = Figure(figsize=(style.WIDE[0], 5.0))
    upper, lower = figure.subplots(2, 1, sharex=True)
    upper.set(title="Divergence of the predictions", ylabel="mean KL, nats")
    lower.set_ylabel("perplexity ratio")
    _plot(upper, kl, gathered)
    _plot(lower, ratio, gathered)
    lower.axhline(1, color=style.MUTED, linewidth=0.7, zorder=0)
    _kl_axis(upper, kl)
    lower.set_xticks(
        range(len(gathered.schemes)),
        [plain(style.scheme_label(scheme, gathered.facts(scheme)), 26) for scheme in gathered.schemes],
    )
    lower.set_xlim(-0.5, len(gathered.schemes) - 0.5)
    figure.legend(loc="outside lower center", ncols=2)
    yield Drawing(
        name="comparison_divergence",
        title="Divergence of the predictions",
        parts=Caption(
            "Divergence of every scheme in every report: mean KL (top) and perplexity ratio (bottom).",
            (
                "KL(reference || scheme) in nats per scored position; perplexity under the scheme / perplexity of the "
                "same report's reference. Bars: 95% intervals of each report alone.",
            ),
            "Lower is better. The table has the differences over the sequences that both reports scored.",
        ),
        alt="Points with intervals. "
        + " ".join(
            f"{gathered.labels[p.report]}, {gathered.schemes[p.scheme]}: mean KL {estimate(p.estimate)}." for p in kl
        ),
        table="",
        figure=figure,
    )


def _points(gathered: Gathered, figure_of: Callable[[SchemeFacts], Estimate | None]) -> list[Point]:
    figures = (
        (report, scheme, figure_of(source.report.schemes[name]))
        for report, source in enumerate(gathered.sources)
        for scheme, name in enumerate(gathered.schemes)
        if name in source.report.schemes
    )
    return [Point(report, scheme, figure) for report, scheme, figure in figures if figure is not None]


def _plot(axes: Any, points: Sequence[Point], gathered: Gathered) -> None:
    count = len(gathered.sources)
    for report, label in enumerate(gathered.labels):
        own = [point for point in points if point.report == report]
        places = np.array([point.scheme for point in own]) + _SPREAD * ((report + 0.5) / count - 0.5)
        look = style.mark(report)
        axes.errorbar(
            places,
            [point.estimate.value for point in own],
            yerr=_reach(own),
            color=look.color,
            marker=look.marker,
            linestyle="none",
            markersize=5,
            capsize=3,
            label=plain(label, 60) if axes.get_subplotspec().is_first_row() else None,
        )


def _reach(points: Sequence[Point]) -> NDArray[np.float64]:
    """Return how far the intervals reach below and above their values, [2, points]."""
    ends = [(p.estimate.value - interval(p.estimate)[0], interval(p.estimate)[1] - p.estimate.value) for p in points]
    return np.array(ends).reshape(-1, 2).T


def _kl_axis(axes: Axes, points: Sequence[Point]) -> None:
    """Make the axis logarithmic where every value is positive, and wide enough for the intervals."""
    values = np.array([point.estimate.value for point in points])
    below, above = _reach(points)
    if values.min() <= 0:
        return
    lowest = np.maximum(values - below, values / 3)
    style.log_axis(axes, float(lowest.min()) / 1.3, float((values + above).max()) * 1.3)
