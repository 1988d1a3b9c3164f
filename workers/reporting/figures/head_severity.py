"""`head_severity`: the damage of a scheme to the outlier heads, by quarter of the depth.

Outlier heads have the largest values; a scheme with one scale for many values leaves few levels for the others.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from workers.reporting.drawing import style
from workers.reporting.drawing.figure import Caption, Drawing, model_title, provenance
from workers.reporting.drawing.head_bars import (
    ONE_BAR_PER_LAYER,
    QUARTERS,
    Heads,
    Stack,
    bar_texts,
    count,
    draw_bars,
    heads,
    ratios,
)
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
    """Which heads these are: a sentence."""


def draw(source: Source) -> Iterator[Drawing]:
    """Yield one figure for each scheme.

    Raises:
        NothingToDraw: the model has no heads.
    """
    if not source.report.schemes:
        return
    every = heads(source)
    population = choose(source, every)
    depth = source.report.model.layers
    for scheme, facts in source.report.schemes.items():
        grades, exact = grade(source, scheme)
        counts = count(every.layer[population.chosen], grades[population.chosen], len(GRADES), depth)
        stacks = GRADES if counts[_NO_RATIO].any() else GRADES[:_NO_RATIO]
        title, legend = model_title(source.report), f"SQNR of the head under {style.scheme_title(scheme, facts)}"
        figure, hover = draw_bars(title, depth, counts[: len(stacks)], stacks, legend, len(stacks))
        yield Drawing(
            name=f"head_severity_{scheme}",
            title=f"Damage to heads by depth, {scheme}",
            parts=_caption(source, scheme, population, counts, int(exact[population.chosen].sum())),
            alt=_alt(scheme, depth, counts),
            table="heads",
            figure=figure,
            hover=hover,
        )


def choose(source: Source, every: Heads) -> Population:
    """Return the measured outlier heads, or all heads if there are none."""
    chosen = np.flatnonzero(every.outlier)
    limit = source.report.heads.thresholds.relative_peak
    if chosen.size:
        text = (
            f"Counted: {counted(chosen.size, 'measured outlier head')} (relative_peak of {limit:g} or more) of "
            f"{len(every.layer):,}."
        )
        return Population(chosen, text)
    peaks = source.tables["heads"]["relative_peak"].astype(np.float64)
    largest = number(float(np.nanmax(peaks))) if np.isfinite(peaks).any() else number(None)
    text = (
        f"Counted: all {counted(len(every.layer), 'head')}, because none is a measured outlier (relative_peak of "
        f"{limit:g} or more; the largest is {largest})."
    )
    return Population(np.arange(len(every.layer)), text)


def grade(source: Source, scheme: str) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return every head's place in `GRADES` under a scheme, and which heads are exact, [N] each.

    An exact head is as good as can be; any other without a ratio has no grade.
    """
    ratio, exact = ratios(source, scheme)
    grades = np.sum([ratio < limit for limit in LIMITS_DB], axis=0)
    return np.where(np.isnan(ratio) & ~exact, _NO_RATIO, grades).astype(np.int64), exact


def _caption(source: Source, scheme: str, population: Population, counts: NDArray[np.int64], exact: int) -> Caption:
    notes = []
    if exact:
        notes.append(f"Best class: includes {counted(exact, 'head')} without any error, which have no ratio.")
    if ungraded := int(counts[_NO_RATIO].sum()):
        notes.append(f"No ratio: {counted(ungraded, 'head')} with only zeros or without a finite value.")
    return Caption(
        "Attention heads by damage, in quarters of the depth.",
        (
            "sqnr_db = 10 log10(sum z^2 / sum (z - q)^2) of a head's output z, with q from the scheme's own stream.",
            population.text,
            ONE_BAR_PER_LAYER if source.report.model.layers < QUARTERS else "",
        ),
        "Green: SQNR of 30 dB or more. Red: below 10 dB.",
        tuple(notes),
        provenance(source.report, "heads", (scheme,)),
    )


def _alt(scheme: str, depth: int, counts: NDArray[np.int64]) -> str:
    bars = bar_texts(depth, counts, GRADES)
    return f"Stacked bars of attention heads by signal to quantization noise ratio under {scheme}. {'; '.join(bars)}."
