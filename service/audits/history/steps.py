"""Detects steps in a series: positions from which on the figure has another mean, beyond its noise.

The series is cut into segments of constant mean by PELT (Killick, Fearnhead and Eckley 2012; the implementation is
ruptures' KernelCPD with the linear kernel, whose cost is the sum of squared deviations from the segment's mean). The
penalty of a step is a multiple of the noise variance:

    penalty = 10 * (1 + 6 / n) * s^2      noise s from n values
    penalty = 10 * s^2                    noise s known from the reports' intervals

A segment of one value that lies z noise deviations off a long level is thus a step from z = sqrt(10) = 3.16 on, which
noise exceeds once in 640 values; a step of 3 deviations that stays is found at its first value in 43 of 100 cases, at
its second in 86 (two lie 3 * sqrt(2) = 4.24 off). 6 / n makes up for the error of an s from few values.

Figures that were over 0 at every run are taken by their logarithms: the noise of divergences, perplexities and
magnitudes grows with them, and would look like steps after one step up.

s^2 comes from differences of neighboring values, halved: a step is in one of them only. The quarter with the largest
magnitudes is left out, and what is left of a normal distribution's variance is made up for.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from statistics import NormalDist, fmean, median
from typing import NamedTuple

from service.contracts.audits.history import SeriesNoise
from service.evaluation.uncertainty import exp, student_t

FEWEST = 8
"""Values from which a series gives an estimate of its own noise."""
PENALTY = 10.0
"""Noise variances that a step costs."""
FEW_VALUES = 6.0
"""Where the noise is estimated from n values, the penalty is larger by this factor over n."""
_KEPT = 0.75
"""Share of the differences, the smallest, that the noise is taken from."""
NORMAL_95 = NormalDist().inv_cdf(0.975)


class Value(NamedTuple):
    """One measurement of a figure."""

    value: float
    interval: tuple[float, float] | None
    """95% interval over texts; None where there is none."""


def noise(values: Sequence[Value], *, exact: bool) -> SeriesNoise | None:
    """Return how far a series varies without a step; None where it cannot be estimated.

    Args:
        values: In time.
        exact: The figure depends on the model alone, so that every difference is one of the model.
    """
    count, relative = len(values), all(one.value > 0 for one in values)
    if exact:
        return SeriesNoise(standard_deviation=0.0, relative=relative, source="exact", measurements=count)
    if count >= FEWEST:
        deviation = _from_differences(_scaled([one.value for one in values], relative=relative))
        return SeriesNoise(standard_deviation=deviation, relative=relative, source="series", measurements=count)
    reaches = [
        (one.interval[1] - one.interval[0]) / 2 / (one.value if relative else 1.0)
        for one in values
        if one.interval is not None
    ]
    if not reaches:
        return None
    deviation = median(reaches) / NORMAL_95
    return SeriesNoise(standard_deviation=deviation, relative=relative, source="intervals", measurements=count)


def steps(values: Sequence[float], of: SeriesNoise) -> list[int]:
    """Return the positions, ascending, at which a new level begins; the series' beginning is none.

    Without noise every change of value is a step.
    """
    if of.standard_deviation == 0:
        return [place for place in range(1, len(values)) if values[place] != values[place - 1]]
    if len(values) < 2:
        return []
    import numpy as np
    from ruptures import KernelCPD

    scaled = np.asarray(_scaled(values, relative=of.relative), dtype=np.float64)
    # In units of the noise around the middle, so that squares of large figures keep their digits.
    in_noise = (scaled - np.median(scaled)) / of.standard_deviation
    ends: list[int] = KernelCPD(kernel="linear", min_size=1).fit(in_noise[:, None]).predict(pen=penalty(of))
    return [int(end) for end in ends[:-1]]


def level(values: Sequence[float], of: SeriesNoise) -> tuple[float, tuple[float, float] | None]:
    """Return the mean of the values between two steps, and its 95% interval; None for a figure without noise."""
    mean = fmean(_scaled(values, relative=of.relative))
    if of.source == "exact":
        return fmean(values), None
    deviations = NORMAL_95 if of.source == "intervals" else student_t(of.measurements - 1)
    reach = deviations * of.standard_deviation / math.sqrt(len(values))
    if of.relative:
        value = values[0] if min(values) == max(values) else exp(mean)
        return value, (exp(mean - reach), exp(mean + reach))
    return mean, (mean - reach, mean + reach)


def penalty(of: SeriesNoise) -> float:
    """Return what a step costs, in noise variances."""
    return PENALTY * (1 + FEW_VALUES / of.measurements) if of.source == "series" else PENALTY


def _scaled(values: Sequence[float], *, relative: bool) -> list[float]:
    return [math.log(value) for value in values] if relative else list(values)


def _from_differences(values: Sequence[float]) -> float:
    """Return the standard deviation of single values from the smaller differences of neighboring ones.

    Where those are all 0, as of a figure that hardly ever changes, the larger ones count too.
    """
    differences = sorted(abs(after - before) for before, after in pairwise(values))
    largest = differences[-1]
    if largest == 0:
        return 0.0
    squares = [(one / largest) ** 2 / 2 for one in differences]  # of large figures they would not fit a float64
    kept = math.ceil(_KEPT * len(squares))
    return largest * math.sqrt(fmean(squares[:kept]) / _variance_within(kept / len(squares)) or fmean(squares))


def _variance_within(share: float) -> float:
    """Return the variance of the standard normal distribution inside the interval about 0 that holds `share`."""
    if share >= 1:
        return 1.0
    normal = NormalDist()
    end = normal.inv_cdf((1 + share) / 2)
    return 1 - 2 * end * normal.pdf(end) / share
