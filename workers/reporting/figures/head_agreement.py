"""`head_agreement`: are the outlier heads the ones that a scheme damages?

The two greens are heads on which peak and damage agree. Red heads are damaged and no outliers; dark red ones are
outliers that the scheme does not damage. Only as many of the heads that are neither are drawn as there are others.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from workers.reporting.figures import style
from workers.reporting.figures.drawing import Drawing, model_title, provenance, scheme_settings
from workers.reporting.figures.head_bars import QUARTERS, Heads, Stack, count, draw_bars, heads, quarters, ratios, span
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
    found, depth = heads(source), source.report.model.layers
    for scheme, facts in source.report.schemes.items():
        ratio, exact = ratios(source, scheme)
        damaged, known = ratio < source.report.heads.thresholds.damaged_sqnr_db, ~np.isnan(ratio) | exact
        chosen = population(found.outlier, damaged, known, source.report.calibration.seed)
        counts = count(found.layer[chosen], classify(found.outlier, damaged)[chosen], len(CLASSES), depth)
        legend = f"Heads under {style.scheme_title(scheme, facts)}: outliers, and damaged"
        figure, hover = draw_bars(model_title(source.report), depth, counts, CLASSES, legend, 2)
        if not chosen.size:
            said, place = _unflagged(source, scheme), figure.axes[0].transAxes
            figure.axes[0].text(0.5, 0.5, said, transform=place, ha="center", va="center", linespacing=1.5)
        yield Drawing(
            name=f"head_agreement_{scheme}",
            title=f"Outlier heads and damaged heads, {scheme}",
            caption=_caption(source, scheme, found, known, counts),
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
    """Say that no head is an outlier or damaged, and how far the nearest is from it."""
    limits, table = source.report.heads.thresholds, source.tables["heads"]
    peaks, ratio = table["relative_peak"].astype(np.float64), table[f"sqnr_db_{scheme}"].astype(np.float64)
    largest = float(np.nanmax(peaks)) if np.isfinite(peaks).any() else None
    lowest = float(np.nanmin(ratio)) if np.isfinite(ratio).any() else None
    return (
        "No head is an outlier, and none is damaged.\n"
        f"Largest relative_peak: {number(largest)}; an outlier from {limits.relative_peak:g}.\n"
        f"Lowest SQNR in dB: {number(lowest)}; damaged below {limits.damaged_sqnr_db:g}."
    )


def _caption(source: Source, scheme: str, found: Heads, known: NDArray[np.bool_], counts: NDArray[np.int64]) -> str:
    limits, seed = source.report.heads.thresholds, source.report.calibration.seed
    both, neither, damaged, spared = counts.sum(axis=1).tolist()
    flagged = both + damaged + spared
    parts = [
        f"Outlier heads and heads that {scheme_settings(source.report, scheme)}, damages, by quarter of the depth "
        "(edges at floor(i L / 4) of L layers). Outlier: relative_peak = max abs(z) of the head / rms(z) of the layer "
        f"is {limits.relative_peak:g} or more. Damaged: sqnr_db of z in the scheme's own stream is below "
        f"{limits.damaged_sqnr_db:g} dB."
    ]
    if flagged:
        verb = "is an outlier" if flagged == 1 else "are outliers"
        parts.append(
            f"Shown: {counted(flagged, 'head')} that {verb} or damaged, and {neither:,} of the "
            f"{int(known.sum()) - flagged:,} others, drawn with seed {seed}."
        )
    else:
        parts.append(_unflagged(source, scheme).replace("\n", " "))
    if outliers := both + spared:
        parts.append(f"Damaged outlier heads: {both:,} of {outliers:,} ({percent(both / outliers)}).")
        others = int(known.sum()) - outliers
        if others:
            parts.append(f"Damaged among all other heads: {damaged:,} of {others:,} ({percent(damaged / others)}).")
    if unknown := int((~known).sum()):
        lost = int((found.outlier & ~known).sum())
        parts.append(
            f"{counted(unknown, 'head')} without a ratio (nothing but zeros, or no finite value to compare) not "
            f"shown, {lost:,} of them outliers."
        )
    if source.report.model.layers < QUARTERS:
        parts.append("The model has fewer than four layers: one bar for each.")
    return " ".join([*parts, provenance(source.report, "heads")])


def _alt(scheme: str, depth: int, counts: NDArray[np.int64]) -> str:
    if not counts.any():
        return f"An empty chart of heads by depth under {scheme}: none is an outlier and none is damaged."
    bars = [
        f"{span(quarter)}: " + ", ".join(f"{n} {c.label}" for n, c in zip(row, CLASSES, strict=True))
        for quarter, row in zip(quarters(depth), counts.T, strict=True)
    ]
    return f"Stacked bars of attention heads, outliers and damaged ones, under {scheme}. {'; '.join(bars)}."
