"""`head_agreement`: are the outlier heads the ones that a scheme damages?

Dark green heads are outliers and damaged, lime ones neither. Red heads are damaged but not outliers; dark red ones are
outliers that the scheme does not damage. As many heads of neither kind are drawn as there are flagged ones.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from workers.reporting.drawing import style
from workers.reporting.drawing.figure import Caption, Drawing, model_title, provenance
from workers.reporting.drawing.head_bars import (
    ONE_BAR_PER_LAYER,
    QUARTERS,
    Heads,
    Stack,
    count,
    draw_bars,
    heads,
    quarters,
    ratios,
    span,
)
from workers.reporting.loading import Source
from workers.reporting.text import counted, number, percent

CLASSES = tuple(
    map(Stack, ("outlier and damaged", "neither", "damaged, no outlier", "outlier, not damaged"), style.AGREEMENT)
)


def draw(source: Source) -> Iterator[Drawing]:
    """Yield one figure for each scheme.

    Raises:
        NothingToDraw: the model has no heads.
    """
    if not source.report.schemes:
        return
    every, depth = heads(source), source.report.model.layers
    for scheme, facts in source.report.schemes.items():
        ratio, exact = ratios(source, scheme)
        damaged, known = ratio < source.report.heads.thresholds.damaged_sqnr_db, ~np.isnan(ratio) | exact
        chosen = population(every.outlier, damaged, known, source.report.calibration.seed)
        counts = count(every.layer[chosen], classify(every.outlier, damaged)[chosen], len(CLASSES), depth)
        legend = f"Heads under {style.scheme_title(scheme, facts)}"
        figure, hover = draw_bars(model_title(source.report), depth, counts, CLASSES, legend, 2)
        if not chosen.size:
            text, place = _unflagged(source, scheme), figure.axes[0].transAxes
            figure.axes[0].text(0.5, 0.5, text, transform=place, ha="center", va="center", linespacing=1.5)
        yield Drawing(
            name=f"head_agreement_{scheme}",
            title=f"Outlier heads and damaged heads, {scheme}",
            parts=_caption(source, scheme, every, known, counts),
            alt=_alt(scheme, depth, counts),
            table="heads",
            figure=figure,
            hover=hover,
        )


def classify(outlier: NDArray[np.bool_], damaged: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return every head's place in `CLASSES`, [N]."""
    return np.where(outlier, np.where(damaged, 0, 3), np.where(damaged, 2, 1))


def population(
    outlier: NDArray[np.bool_], damaged: NDArray[np.bool_], known: NDArray[np.bool_], seed: int
) -> NDArray[np.int64]:
    """Return the rows of the heads that are shown, ascending, each once; arguments are [N].

    They are the heads that are outliers or damaged, and as many drawn from the rest, or the whole rest if it is
    smaller. Heads that are not known to be damaged or not are left out.
    """
    flagged = (outlier | damaged) & known
    rest = np.flatnonzero(~flagged & known)
    drawn = np.random.default_rng(seed).choice(rest, min(rest.size, int(flagged.sum())), replace=False)
    return np.sort(np.concatenate([np.flatnonzero(flagged), drawn]))


def _unflagged(source: Source, scheme: str) -> str:
    """Return the statement that no head is an outlier or damaged, with the values closest to it."""
    limits, table = source.report.heads.thresholds, source.tables["heads"]
    peaks, ratio = table["relative_peak"].astype(np.float64), table[f"sqnr_db_{scheme}"].astype(np.float64)
    largest = float(np.nanmax(peaks)) if np.isfinite(peaks).any() else None
    lowest = float(np.nanmin(ratio)) if np.isfinite(ratio).any() else None
    return (
        "No head is an outlier, and none is damaged.\n"
        f"Largest relative_peak: {number(largest)}; an outlier from {limits.relative_peak:g}.\n"
        f"Lowest SQNR in dB: {number(lowest)}; damaged below {limits.damaged_sqnr_db:g}."
    )


def _caption(source: Source, scheme: str, every: Heads, known: NDArray[np.bool_], counts: NDArray[np.int64]) -> Caption:
    limits = source.report.heads.thresholds
    return Caption(
        "Outlier heads against damaged heads, in quarters of the depth.",
        (
            f"Outlier: relative_peak = max abs(z) of the head / rms(z) of the layer is {limits.relative_peak:g} or "
            f"more. Damaged: sqnr_db of z in the scheme's own stream is below {limits.damaged_sqnr_db:g} dB.",
            ONE_BAR_PER_LAYER if source.report.model.layers < QUARTERS else "",
        ),
        "Green: outlier and damaged, or neither. Red: only one of them. If much is red, outlier heads do not predict "
        "damage.",
        tuple(_counted(source, scheme, every, known, counts)),
        provenance(source.report, "heads", (scheme,)),
    )


def _counted(
    source: Source, scheme: str, every: Heads, known: NDArray[np.bool_], counts: NDArray[np.int64]
) -> Iterator[str]:
    """Yield which heads are shown, and how many of them are damaged."""
    both, neither, damaged, undamaged = counts.sum(axis=1).tolist()
    flagged, outliers = both + damaged + undamaged, both + undamaged
    others = int(known.sum()) - outliers
    if flagged:
        yield (
            f"Shown: {counted(flagged, 'outlier or damaged head')}, and {neither:,} of {int(known.sum()) - flagged:,} "
            f"others (seed {source.report.calibration.seed})."
        )
    else:
        yield _unflagged(source, scheme).replace("\n", " ")
    if outliers:
        rest = f", {damaged:,} of {others:,} others ({percent(damaged / others)})" if others else ""
        yield f"Damaged: {both:,} of {counted(outliers, 'outlier head')} ({percent(both / outliers)}){rest}."
    if unknown := int((~known).sum()):
        unknown_outliers = int((every.outlier & ~known).sum())
        yield (
            f"Not shown: {counted(unknown, 'head')} without a ratio (only zeros, or no finite value), "
            f"{unknown_outliers:,} of them outliers."
        )


def _alt(scheme: str, depth: int, counts: NDArray[np.int64]) -> str:
    if not counts.any():
        return f"An empty chart of heads by depth under {scheme}: none is an outlier and none is damaged."
    bars = [
        f"{span(quarter)}: " + ", ".join(f"{n} {c.label}" for n, c in zip(row, CLASSES, strict=True))
        for quarter, row in zip(quarters(depth), counts.T, strict=True)
    ]
    return f"Stacked bars of attention heads, outliers and damaged ones, under {scheme}. {'; '.join(bars)}."
