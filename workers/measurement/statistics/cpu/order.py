"""Computes the median magnitude of a tensor in host memory: count the bins, collect the middle one, pick its rank.

T tokens, d channels
"""

from typing import Any

import numpy as np
import torch

from workers.measurement.statistics.cpu.bit_patterns import Patterns, patterns
from workers.measurement.statistics.cpu.compiling import compiled
from workers.measurement.statistics.cpu.histogram import (
    U32,
    BinPatterns,
    Row,
    bin_patterns,
    collect,
    count,
    empty_lanes,
)
from workers.measurement.statistics.reduction import BINS, SHIFT

_DIGIT = SHIFT // 2
"""Bits of a pattern that are looked at together; two digits make up what a bin leaves open."""
_LAST = (1 << _DIGIT) - 1
_FINITE = 255 * 32
"""Bins of finite magnitudes."""


def median_magnitude(x: torch.Tensor) -> float:
    """Return the median of the finite magnitudes of tokens [T, d]; see `order.median_magnitude`."""
    encoded = patterns(x)
    bins = bin_patterns(encoded.kind)
    held = np.empty(x.numel() + 1, type(bins.mask))
    middle = _middle(encoded, *x.shape, bins, empty_lanes(), held)
    below, above = (middle << np.uint32(bins.raised)).view(np.float32).astype(np.float64)
    return float(below + (above - below) / 2)


@compiled()
def _middle(
    x: Patterns, tokens: int, channels: int, bins: BinPatterns, lanes: U32, held: Row
) -> U32:  # pragma: no cover - compiled
    """Return the patterns of the two middle magnitudes, twice the same where their number is odd; NaN of none.

    held: [T * d + 1], takes the magnitudes of a bin.
    """
    count(x, tokens, channels, lanes)
    # Positive and negative values of one magnitude count together; the bins of infinity and NaN are left out.
    of_bins = np.zeros(_FINITE, np.int64)
    for lane in lanes:
        for number in range(_FINITE):
            of_bins[number] += lane[number] + lane[BINS // 2 + number]
    middle = np.full(2, bins.mask, np.uint32)
    finite, size, collected = of_bins.sum(), 0, -1
    if finite == 0:
        return middle
    for k in range(2):
        # Find the bin that holds the rank, and collect it unless the rank before it lay there too.
        rank, number = (finite - 1 + k) // 2, 0
        while rank >= of_bins[number]:
            rank -= of_bins[number]
            number += 1
        if number != collected:
            size = collect(x, tokens, channels, bins, number, held)
            collected = number
        middle[k] = _of_rank(held[:size].copy(), rank)
    return middle


@compiled()
def _of_rank(bin_values: Row, rank: int) -> Any:  # pragma: no cover - compiled
    """Return the pattern of a rank among those of one bin, digit by digit; they are overwritten."""
    for digit in (1, 0):
        shift = digit * _DIGIT
        counts, wanted, kept = np.zeros(1 << _DIGIT, np.int64), 0, 0
        # Count the patterns by this digit, find the digit at the rank, and keep those that have it.
        for pattern in bin_values:
            counts[(pattern >> shift) & _LAST] += 1
        while rank >= counts[wanted]:
            rank -= counts[wanted]
            wanted += 1
        for pattern in bin_values:
            if (pattern >> shift) & _LAST == wanted:
                bin_values[kept] = pattern
                kept += 1
        bin_values = bin_values[:kept]
    return bin_values[0]
