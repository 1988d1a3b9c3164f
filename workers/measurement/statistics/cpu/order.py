"""Computes the median magnitude of a tensor in host memory: count the bins, collect the middle one, pick its rank.

T tokens, d channels
"""

from typing import Any

import numpy as np
import torch

from workers.measurement.statistics.cpu.bit_patterns import patterns
from workers.measurement.statistics.cpu.compiling import compiled
from workers.measurement.statistics.cpu.histogram import bin_patterns, collect, count, empty_lanes
from workers.measurement.statistics.reduction import BINS, SHIFT

_DIGIT = SHIFT // 2
"""Bits of a pattern that are looked at together; two digits make up what a bin leaves open."""
_LAST = (1 << _DIGIT) - 1
_FINITE = 255 * 32
"""Bins of finite magnitudes."""


def median_magnitude(x: torch.Tensor) -> float:
    """Return the median of the finite magnitudes of tokens [T, d]; see `order.median_magnitude`."""
    flat, kind, strides = patterns(x)
    mask, width, raised = bin_patterns(kind)
    found = np.empty(x.numel() + 1, type(mask))
    middle = _middle(flat, kind, strides, *x.shape, mask, width, empty_lanes(), found)
    below, above = (middle << np.uint32(raised)).view(np.float32).astype(np.float64)
    return float(below + (above - below) / 2)


@compiled()
def _middle(
    flat: Any, kind: Any, strides: Any, tokens: Any, channels: Any, mask: Any, width: Any, lanes: Any, found: Any
) -> Any:  # pragma: no cover - compiled
    """Return the patterns of the two middle magnitudes, twice the same where their number is odd; NaN of none."""
    count(flat, kind, strides, tokens, channels, lanes)
    # Positive and negative values of one magnitude count together; the bins of infinity and NaN are left out.
    of_bins = np.zeros(_FINITE, np.int64)
    for lane in lanes:
        for number in range(_FINITE):
            of_bins[number] += lane[number] + lane[BINS // 2 + number]
    middle = np.full(2, mask, np.uint32)
    finite, held, collected = of_bins.sum(), 0, -1
    if finite == 0:
        return middle
    for k in range(2):
        # Find the bin that holds the rank, and collect it unless the rank before it lay there too.
        rank, number = (finite - 1 + k) // 2, 0
        while rank >= of_bins[number]:
            rank -= of_bins[number]
            number += 1
        if number != collected:
            held = collect(flat, kind, strides, tokens, channels, mask, width, number, found)
            collected = number
        middle[k] = _of_rank(found[:held].copy(), rank)
    return middle


@compiled()
def _of_rank(found: Any, rank: Any) -> Any:  # pragma: no cover - compiled
    """Return the pattern of a rank among those of one bin, digit by digit; they are lost."""
    for digit in (1, 0):
        shift = digit * _DIGIT
        counts, wanted, kept = np.zeros(1 << _DIGIT, np.int64), 0, 0
        # Count the patterns by this digit, find the digit at the rank, and keep those that have it.
        for pattern in found:
            counts[(pattern >> shift) & _LAST] += 1
        while rank >= counts[wanted]:
            rank -= counts[wanted]
            wanted += 1
        for pattern in found:
            if (pattern >> shift) & _LAST == wanted:
                found[kept] = pattern
                kept += 1
        found = found[:kept]
    return found[0]
