"""`head_severity`: what a scheme does to the heads that stand out, by quarter of the depth.

Outlier heads carry the largest values, and a scheme that shares one scale among many values drowns the rest. A bar
that turns from green to red with depth says where.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from workers.reporting.figures import style
from workers.reporting.figures.drawing import Drawing, model_title, provenance, scheme_settings
from workers.reporting.figures.head_bars import QUARTERS, Heads, Stack, count, draw_bars, heads, quarters, ratios, span
from workers.reporting.loading import Source
from workers.reporting.text import counted, number

LIMITS_DB = (30, 20, 10)
"""Ratios from which a head is green, yellow and orange; below the last it is red."""
GRADES = tuple(
    map(Stack, ("\u2265 30 dB", "20 to 30 dB", "10 to 20 dB", "< 10 dB", "no ratio"), (*style.SEVERITY, style.UNKNOWN))
)
"""The last is of heads that give nothing to compare."""
_NO_RATIO = len(GRADES) - 1


class Population(NamedTuple):
    """The heads that are counted."""

    chosen: NDArray[np.int64]
    """Rows of the table."""
    text: str
    """Who they are."""


def draw(source: Source) -> Iterator[Drawing]:
    """Yield one figure for each scheme.

    Raises:
        NothingToDraw: the model has no heads.
    """
    if not source.report.schemes:
        return
    found = heads(source)
    population = choose(source, found)
    depth = source.report.model.layers
    for scheme, facts in source.report.schemes.items():
        grades, exact = grade(source, scheme)
        counts = count(found.layer[population.chosen], grades[population.chosen], len(GRADES), depth)
        stacks = GRADES if counts[_NO_RATIO].any() else GRADES[:_NO_RATIO]
        title, legend = model_title(source.report), f"SQNR of the head under {style.scheme_title(scheme, facts)}"
        figure, hover = draw_bars(title, depth, counts[: len(stacks)], stacks, legend, len(stacks))
        yield Drawing(
            name=f"head_severity_{scheme}",
            title=f"Damage to heads by depth, {scheme}",
            caption=_caption(source, scheme, population, counts, int(exact[population.chosen].sum())),
            alt=_alt(scheme, depth, counts),
            table="heads",
            figure=figure,
            hover=hover,
        )


def choose(source: Source, found: Heads) -> Population:
    """Return the measured outlier heads, or all heads if there are none."""
    chosen = np.flatnonzero(found.outlier)
    limit = source.report.heads.thresholds.relative_peak
    everyone = counted(len(found.layer), "head")
    if chosen.size:
        who = "measured outlier head is" if chosen.size == 1 else "measured outlier heads are"
        text = f"The {chosen.size:,} {who} counted (relative_peak of {limit:g} or more), of {everyone} in all."
        return Population(chosen, text)
    peaks = source.tables["heads"]["relative_peak"].astype(np.float64)
    largest = number(float(np.nanmax(peaks))) if np.isfinite(peaks).any() else number(None)
    text = (
        f"No head is a measured outlier (relative_peak of {limit:g} or more; the largest is {largest}), so all "
        f"{everyone} are counted."
    )
    return Population(np.arange(len(found.layer)), text)


def grade(source: Source, scheme: str) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return every head's place in `GRADES` under a scheme, and which heads are exact, [N] each.

    An exact head is as good as can be; any other without a ratio has no grade.
    """
    ratio, exact = ratios(source, scheme)
    grades = np.sum([ratio < limit for limit in LIMITS_DB], axis=0)
    return np.where(np.isnan(ratio) & ~exact, _NO_RATIO, grades).astype(np.int64), exact


def _caption(source: Source, scheme: str, population: Population, counts: NDArray[np.int64], exact: int) -> str:
    parts = [
        f"What {scheme_settings(source.report, scheme)}, does to attention heads, by quarter of the depth (edges at "
        "floor(i L / 4) of L layers). sqnr_db is 10 log10(sum z^2 / sum (z - q)^2) over a head's output z, q the same "
        "in the scheme's own stream: 10 dB less is an error three times as large.",
        population.text,
        "Shares are of the bar; over it stands its number of heads.",
    ]
    if exact:
        parts.append(f"{counted(exact, 'head')} without any error, and so without a ratio, in the best class.")
    if lost := int(counts[_NO_RATIO].sum()):
        parts.append(f"{counted(lost, 'head')} without a ratio: nothing but zeros, or no finite value to compare.")
    if source.report.model.layers < QUARTERS:
        parts.append("The model has fewer than four layers: one bar for each.")
    return " ".join([*parts, provenance(source.report, "heads")])


def _alt(scheme: str, depth: int, counts: NDArray[np.int64]) -> str:
    bars = [
        f"{span(quarter)}: "
        + (", ".join(f"{n} {grade.label}" for n, grade in zip(row, GRADES, strict=True) if n) or "no head")
        for quarter, row in zip(quarters(depth), counts.T, strict=True)
    ]
    return f"Stacked bars of attention heads by signal to quantization noise ratio under {scheme}. {'; '.join(bars)}."
