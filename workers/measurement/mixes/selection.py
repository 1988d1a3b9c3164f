"""Selects the units to keep in 16 bits: the least predicted KL divergence under a number of bytes.

The problem is a knapsack with a quadratic objective, for which no fast exact method is known. A greedy choice by gain
per byte is improved by exchanges: drop one kept unit, fill the bytes again, and hold on to what is better. On small
cases this is compared with an exhaustive search.

    U units
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from workers.measurement.mixes.prediction import Bools, Prediction

I64 = npt.NDArray[np.int64]

_LEAST_GAIN = 1e-12
"""Relative to the uniform scheme's: below this an exchange is rounding."""
FRONTIER_POINTS = 24


class FrontierPoint(NamedTuple):
    """The best mix of a size."""

    extra_bytes: int
    """More than the uniform scheme takes."""
    predicted: float
    """KL divergence, nats per position."""


def best_mix(prediction: Prediction, extra_bytes: I64, budget: int) -> Bools:
    """Return which units to keep, [U].

    Args:
        prediction: for the units.
        extra_bytes: [U], what each takes more in 16 bits.
        budget: bytes that those kept may take more, in all.
    """
    nothing = np.zeros(len(extra_bytes), dtype=bool)
    starts = [_filled(prediction, extra_bytes, budget, nothing, per_byte) for per_byte in (True, False)]
    improved = [_exchanged(prediction, extra_bytes, budget, kept) for kept in starts]
    return min(improved, key=prediction.divergence)


def frontier(prediction: Prediction, extra_bytes: I64) -> list[FrontierPoint]:
    """Return the least predicted KL divergence at budgets from none to that of all units, by ascending bytes.

    Points that another one with fewer bytes equals are left out.
    """
    whole = int(extra_bytes.sum())
    points = [FrontierPoint(0, prediction.uniform)]
    # More points where bytes are few, for there the curve falls most.
    for share in np.linspace(0, 1, FRONTIER_POINTS + 1)[1:] ** 2:
        kept = best_mix(prediction, extra_bytes, int(share * whole))
        point = FrontierPoint(int(extra_bytes[kept].sum()), prediction.divergence(kept))
        if point.extra_bytes > points[-1].extra_bytes and point.predicted < points[-1].predicted:
            points.append(point)
    return points


def knee(points: Sequence[FrontierPoint]) -> FrontierPoint:
    """Return the point that lies farthest below the line from the first to the last, both axes from 0 to 1."""
    (_, highest), (most, lowest) = points[0], points[-1]
    if not most or highest <= lowest:
        return points[0]
    return min(points, key=lambda p: p.extra_bytes / most + (p.predicted - lowest) / (highest - lowest))


def budget_for(prediction: Prediction, extra_bytes: I64, most: float) -> int:
    """Return the fewest bytes, to within 1/1000 of all, with which the prediction is at most `most` nats."""
    low, high = 0, int(extra_bytes.sum())
    if prediction.uniform <= most:
        return 0
    resolution = max(1, high // 1000)
    while high - low > resolution:
        middle = (low + high) // 2
        if prediction.divergence(best_mix(prediction, extra_bytes, middle)) <= most:
            high = middle
        else:
            low = middle
    return high


def _filled(prediction: Prediction, extra_bytes: I64, budget: int, kept: Bools, per_byte: bool) -> Bools:
    """Keep further units, the one of the largest gain (per byte) first, until none fits or gains."""
    kept = kept.copy()
    left = budget - int(extra_bytes[kept].sum())
    weights = np.maximum(extra_bytes, 1) if per_byte else np.ones(len(extra_bytes))
    while True:
        gains = np.where(kept | (extra_bytes > left), 0, _gains(prediction, kept)) / weights
        best = int(gains.argmax())
        if gains[best] * weights[best] <= _LEAST_GAIN * prediction.uniform:
            return kept
        kept[best] = True
        left -= int(extra_bytes[best])


def _gains(prediction: Prediction, kept: Bools) -> npt.NDArray[np.float64]:
    """Return by how much keeping each unit besides `kept` lowers the prediction, [U]."""
    gains: npt.NDArray[np.float64] = 2 * prediction.matrix @ (~kept) - np.diag(prediction.matrix)
    return gains


def _exchanged(prediction: Prediction, extra_bytes: I64, budget: int, kept: Bools) -> Bools:
    """Exchange kept units for others until no exchange lowers the prediction."""
    lowest = prediction.divergence(kept)
    while True:
        candidates = [*_swaps(prediction, extra_bytes, budget, kept), *_refills(prediction, extra_bytes, budget, kept)]
        best = min(candidates, key=prediction.divergence, default=kept)
        if prediction.divergence(best) >= lowest - _LEAST_GAIN * prediction.uniform:
            return kept
        kept, lowest = best, prediction.divergence(best)


def _swaps(prediction: Prediction, extra_bytes: I64, budget: int, kept: Bools) -> list[Bools]:
    """Return the best exchange of one kept unit for one other, filled up."""
    inside, outside = np.flatnonzero(kept), np.flatnonzero(~kept)
    if not inside.size or not outside.size:
        return []
    matrix, slope = prediction.matrix, 2 * prediction.matrix @ (~kept)
    diagonal = np.diag(matrix)
    change = (
        (slope + diagonal)[inside][:, None] - (slope - diagonal)[outside][None] - 2 * matrix[np.ix_(inside, outside)]
    )
    left = budget - int(extra_bytes[kept].sum())
    change[extra_bytes[outside][None] - extra_bytes[inside][:, None] > left] = np.inf
    row, column = np.unravel_index(int(change.argmin()), change.shape)
    if not np.isfinite(change[row, column]):
        return []
    other = kept.copy()
    other[inside[row]], other[outside[column]] = False, True
    return [_filled(prediction, extra_bytes, budget, other, True)]


def _refills(prediction: Prediction, extra_bytes: I64, budget: int, kept: Bools) -> list[Bools]:
    """Return, for each kept unit, the mix without it, filled up with others."""
    refilled = []
    for dropped in np.flatnonzero(kept):
        blocked = extra_bytes.copy()
        blocked[dropped] = budget + 1
        other = kept.copy()
        other[dropped] = False
        refilled.append(_filled(prediction, blocked, budget, other, True))
    return refilled
