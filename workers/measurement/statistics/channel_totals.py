"""What the reductions of a site's tensors add up to, channel by channel.

N sequences of S tokens, d channels
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from workers.measurement.statistics.cpu.compiling import compiled
from workers.measurement.statistics.moments import Moments, add_about, pool
from workers.measurement.statistics.reduction import F32, F64, I64


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

    def add(
        self, pivot: F32, minimum: F32, maximum: F32, power_sums: F64, over: Any, missing: Any, tokens: int
    ) -> Moments:
        """Add the figures of a `Reduction` of sequences of S `tokens`; return each sequence's moments."""
        moments = np.empty((4, len(pivot)))
        totals = (self.minimum, self.maximum, self.pivot, self.power_sums, self.over, self.finite)
        _add(totals, (minimum, maximum, pivot, power_sums, over, missing), tokens, moments)
        return Moments(*moments)


@compiled()
def _add(totals: Any, sequences: Any, tokens: Any, moments: Any) -> None:  # pragma: no cover - compiled
    total_minimum, total_maximum, total_pivot, total_sums, total_over, total_finite = totals
    minimum, maximum, pivot, sums, over, missing = sequences
    for number in range(len(pivot)):
        finite = tokens - missing[number].astype(np.int64)
        for c in range(len(finite)):
            total_minimum[c] = min(total_minimum[c], minimum[number, c])
            total_maximum[c] = max(total_maximum[c], maximum[number, c])
            total_over[c] += over[number, c]
            total_finite[c] += finite[c]
        add_about(total_sums, total_pivot, finite, sums[number], pivot[number])
        pool(finite, sums[number], pivot[number], moments[:, number])
