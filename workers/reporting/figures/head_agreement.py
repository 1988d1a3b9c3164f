"""`head_agreement`: can outlier heads be told from the weights alone?

The two greens are heads on which weights and measurement agree. Red was measured and not foreseen; dark red was
foreseen and did not come. Heads that neither side flags outnumber the others by far, so only as many are drawn.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from workers.reporting.figures import style
from workers.reporting.figures.drawing import Drawing, NothingToDraw, model_title, provenance
from workers.reporting.figures.head_bars import QUARTERS, Heads, Stack, count, draw_bars, heads, quarters, span
from workers.reporting.loading import Source
from workers.reporting.text import counted, number, percent

CLASSES = tuple(
    map(
        Stack,
        ("predicted and measured", "neither", "measured, not predicted", "predicted, not measured"),
        style.AGREEMENT,
    )
)


def draw(source: Source) -> Iterator[Drawing]:
    """Yield the figure.

    Raises:
        NothingToDraw: the model has no heads, or none of them has a prediction.
    """
    found = heads(source)
    if not found.foretold.any():
        raise NothingToDraw("no layer's weights allow a prediction, column 'predicted_outlier' is null throughout")
    chosen = population(found, source.report.calibration.seed)
    depth = source.report.model.layers
    counts = count(found.layer[chosen], classify(found)[chosen], len(CLASSES), depth)
    figure, hover = draw_bars(
        model_title(source.report), depth, counts, CLASSES, "Outlier heads: from weights alone, and measured", 2
    )
    if not chosen.size:
        figure.axes[0].text(
            0.5, 0.5, _unflagged(source), transform=figure.axes[0].transAxes, ha="center", va="center", linespacing=1.5
        )
    yield Drawing(
        name="head_agreement",
        title="Outlier heads, predicted and measured",
        caption=_caption(source, found, chosen, counts),
        alt=_alt(depth, counts),
        table="heads",
        figure=figure,
        hover=hover,
    )


def classify(found: Heads) -> NDArray[np.int64]:
    """Return every head's place in `CLASSES`, [N]; one without a prediction counts as not predicted."""
    return np.where(found.measured, np.where(found.predicted, 0, 2), np.where(found.predicted, 3, 1))


def population(found: Heads, seed: int) -> NDArray[np.int64]:
    """Return the rows of the heads that are shown, ascending, each once.

    They are the heads flagged by either side, and as many drawn from the rest, or the whole rest if it is smaller.
    Heads without a prediction are left out.
    """
    flagged = (found.measured | found.predicted) & found.foretold
    rest = np.flatnonzero(~flagged & found.foretold)
    drawn = np.random.default_rng(seed).choice(rest, min(rest.size, int(flagged.sum())), replace=False)
    return np.sort(np.concatenate([np.flatnonzero(flagged), drawn]))


def _unflagged(source: Source) -> str:
    """Say that no head is flagged, and how far the nearest is from it."""
    lines = ["No head is flagged by either side."]
    limits = source.report.heads.thresholds
    for column, limit in (("relative_peak", limits.relative_peak), ("predicted_peak", limits.predicted_peak)):
        peaks = source.tables["heads"][column].astype(np.float64)
        largest = float(np.nanmax(peaks)) if np.isfinite(peaks).any() else None
        lines.append(f"Largest {column}: {number(largest)}; flagged from {limit:g}.")
    return "\n".join(lines)


def _caption(source: Source, found: Heads, chosen: NDArray[np.int64], counts: NDArray[np.int64]) -> str:
    limits, seed = source.report.heads.thresholds, source.report.calibration.seed
    both, neither, missed, false = counts.sum(axis=1).tolist()
    parts = [
        "Outlier heads by quarter of the depth (edges at floor(i L / 4) of L layers). Measured: relative_peak = "
        f"max abs(z) of the head / rms(z) of the layer is {limits.relative_peak:g} or more. Predicted, from the value "
        "projection and the norm before it alone: predicted_peak = largest norm2(W_v[c] g) of the head's value "
        f"channels / their root mean square over the layer is {limits.predicted_peak:g} or more."
    ]
    if chosen.size:
        flagged = both + missed + false
        parts.append(
            f"Shown: {counted(flagged, 'head')} flagged by either side and {neither:,} of the "
            f"{int(found.foretold.sum()) - flagged:,} others, drawn with seed {seed}."
        )
    else:
        parts.append(_unflagged(source).replace("\n", " "))
    if both + missed:
        parts.append(
            f"The weights find {both:,} of {both + missed:,} measured outliers ({percent(both / (both + missed))})."
        )
    if unknown := int((~found.foretold).sum()):
        measured = int((found.measured & ~found.foretold).sum())
        parts.append(
            f"{counted(unknown, 'head')} without a prediction are not shown, {measured:,} of them measured outliers."
        )
    if source.report.model.layers < QUARTERS:
        parts.append("The model has fewer than four layers: one bar for each.")
    return " ".join([*parts, provenance(source.report, "heads")])


def _alt(depth: int, counts: NDArray[np.int64]) -> str:
    if not counts.any():
        return "An empty chart of outlier heads by depth: none is predicted and none is measured."
    bars = [
        f"{span(quarter)}: " + ", ".join(f"{n} {c.label}" for n, c in zip(row, CLASSES, strict=True))
        for quarter, row in zip(quarters(depth), counts.T, strict=True)
    ]
    return f"Stacked bars of attention heads, predicted and measured outliers. {'; '.join(bars)}."
