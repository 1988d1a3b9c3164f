"""Computes moments from power sums, and adds up extremes, counts and power sums of every channel.

Where v = x - p, the sums of (v + e)^k follow from those of v^k by the binomial theorem, so parts that were taken
about different pivots can be added, and moments over all channels follow from each channel's sums about its own
pivot. Everything is float64.

    N parts (sequences of S tokens), d channels
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from workers.measurement.statistics.cpu.compiling import compiled
from workers.measurement.statistics.reduction import F32, F64, I64, Reduction


class Moments(NamedTuple):
    """Moments over all elements of each of N parts, [N] each."""

    elements: F64
    mean: F64
    second: F64
    """E[(x - mean)^2]."""
    fourth: F64
    """E[(x - mean)^4]."""


def pooled(finite: I64, power_sums: F64, pivot: F32) -> Moments:
    """Return the moments of N parts over all channels, from the channels' own sums.

    finite: [N, d], counts; power_sums: [N, 4, d], about pivot: [N, d]. Where nothing is counted, moments are NaN.
    """
    moments = np.empty((4, len(finite)))
    for number in range(len(finite)):
        pool(finite[number], power_sums[number], pivot[number], moments[:, number])
    return Moments(*moments)


@compiled(fastmath={"reassoc", "contract", "nsz"}, forceinline=True)  # one machine code, fresh or from the cache
def pool(finite: I64, sums: F64, pivot: F32, moments: F64) -> None:  # pragma: no cover - compiled
    """Write the moments of one part, [4], from its sums [4, d]; the fields of `Moments` in order."""
    # Count and mean over all channels: each channel's values are its distances from its pivot, and the pivot.
    count = 0
    total = second = fourth = 0.0
    for c in range(len(finite)):
        count += finite[c]
        total += sums[0, c] + finite[c] * np.float64(pivot[c])
    mean = total / count
    # Central moments: the binomial theorem carries each channel's sums from its pivot to the mean, e apart.
    for c in range(len(finite)):
        e = np.float64(pivot[c]) - mean
        n, s1, s2, s3, s4 = finite[c], sums[0, c], sums[1, c], sums[2, c], sums[3, c]
        second += s2 + 2 * e * s1 + n * e**2
        fourth += s4 + 4 * e * s3 + 6 * e**2 * s2 + 4 * e**3 * s1 + n * e**4
    # Rounding can leave a central moment of nothing a little below 0.
    moments[0], moments[1] = count, mean
    moments[2], moments[3] = max(second / count, 0.0), max(fourth / count, 0.0)


@compiled()
def add_about(total: F64, about: F32, finite: I64, sums: F64, pivot: F32) -> None:  # pragma: no cover - compiled
    """Add power sums [4, d] of counts [d], taken about a pivot [d], to a total [4, d] about `about` [d]."""
    for c in range(len(about)):
        e = np.float64(pivot[c]) - np.float64(about[c])
        n, s1, s2, s3, s4 = finite[c], sums[0, c], sums[1, c], sums[2, c], sums[3, c]
        total[0, c] += s1 + n * e
        total[1, c] += s2 + 2 * e * s1 + n * e**2
        total[2, c] += s3 + 3 * e * s2 + 3 * e**2 * s1 + n * e**3
        total[3, c] += s4 + 4 * e * s3 + 6 * e**2 * s2 + 4 * e**3 * s1 + n * e**4


@dataclass(frozen=True)
class ChannelTotals:
    """Extremes, counts and power sums of every channel so far."""

    minimum: F32
    """[d]; +inf in a channel without a finite value."""
    maximum: F32
    """[d]; -inf in a channel without a finite value."""
    pivot: F32
    """[d]: what the power sums are taken about."""
    power_sums: F64
    """[4, d]: the sums of v, v^2, v^3, v^4, where v = x - pivot."""
    over: I64
    """[d]: values with abs(x) at or over the threshold."""
    finite: I64
    """[d]: finite values."""

    @classmethod
    def none(cls, pivot: F32) -> "ChannelTotals":
        """Return the totals before any tensor; pivot: [d]."""
        d = len(pivot)
        return cls(
            minimum=np.full(d, np.inf, np.float32),
            maximum=np.full(d, -np.inf, np.float32),
            pivot=pivot.copy(),
            power_sums=np.zeros((4, d)),
            over=np.zeros(d, np.int64),
            finite=np.zeros(d, np.int64),
        )

    def add(self, reduction: Reduction[npt.NDArray[Any]]) -> Moments:
        """Add the figures of a reduction of N sequences; return each sequence's moments, [N] each."""
        moments = np.empty((4, len(reduction.pivot)))
        totals = (self.pivot, self.minimum, self.maximum, self.power_sums, self.over, self.finite)
        parts = reduction[:6]  # in the same order, with the count of what is missing in place of what is finite
        _add_sequences(totals, parts, reduction.token_abs_max.shape[1], moments)
        return Moments(*moments)


@compiled()
def _add_sequences(totals: Any, parts: Any, tokens: int, moments: F64) -> None:  # pragma: no cover - compiled
    """Add N sequences' figures to totals of every channel, and write the sequences' moments, [4, N].

    totals: the fields of `ChannelTotals` in the order of a `Reduction`'s first six, which are `parts`.
    """
    total_pivot, total_minimum, total_maximum, total_sums, total_over, total_finite = totals
    pivot, minimum, maximum, sums, over, missing = parts
    for number in range(len(pivot)):
        # Extremes and counts of every channel.
        finite = tokens - missing[number].astype(np.int64)
        for c in range(len(finite)):
            total_minimum[c] = min(total_minimum[c], minimum[number, c])
            total_maximum[c] = max(total_maximum[c], maximum[number, c])
            total_over[c] += over[number, c]
            total_finite[c] += finite[c]
        # Power sums, carried from the sequence's pivot to that of the totals; and the sequence's own moments.
        add_about(total_sums, total_pivot, finite, sums[number], pivot[number])
        pool(finite, sums[number], pivot[number], moments[:, number])
