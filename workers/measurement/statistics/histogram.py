"""Computes order statistics of magnitudes from a histogram of float32 patterns.

Inside a bin the values are taken to be spread evenly. So each order statistic lies in the same bin as the exact
one, a relative error of 1/32 at the most, and so does a quantile, which interpolates between two of them.
"""

import numpy as np

from workers.measurement.statistics.reduction import BINS, F64, I64, bin_edges

_LOW, _HIGH = (edges.astype(np.float64) for edges in bin_edges())
_MAGNITUDES = slice(0, 255 * 32)
"""Bins of finite values of positive sign; those of negative sign lie BINS // 2 further on."""


def magnitude_quantiles(histogram: I64, fractions: tuple[float, ...], abs_max: float) -> F64:
    """Return quantiles of abs(x), one per fraction in [0, 1].

    histogram: [16384] counts; abs_max: the largest magnitude, which bounds the topmost bin from above.
    The rank of fraction f among n values is f * (n - 1); between whole ranks it is linear.
    All NaN if the histogram is empty.
    """
    counts = (histogram[: BINS // 2] + histogram[BINS // 2 :])[_MAGNITUDES]
    n = int(counts.sum())
    if n == 0:
        return np.full(len(fractions), np.nan)
    ranks = np.asarray(fractions) * (n - 1)
    below, above = (_order_statistics(counts, rank, abs_max) for rank in (np.floor(ranks), np.ceil(ranks)))
    quantiles: F64 = below + (above - below) * (ranks - np.floor(ranks))
    return quantiles


def _order_statistics(counts: I64, ranks: F64, abs_max: float) -> F64:
    """Return the values at whole ranks, the values of each bin taken to be spread evenly over it."""
    upto = np.cumsum(counts)
    bins = np.searchsorted(upto, ranks, side="right")
    low, high = _LOW[_MAGNITUDES][bins], np.minimum(_HIGH[_MAGNITUDES][bins], abs_max)
    within = (ranks - (upto[bins] - counts[bins]) + 0.5) / counts[bins]
    values: F64 = low + (high - low) * within
    return values


def occupied_bins(histogram: I64) -> tuple[F64, F64, I64]:
    """Return (bin_low, bin_high, count) of the bins that hold something, in ascending order of value."""
    order = np.concatenate([np.arange(BINS - 1, BINS // 2 - 1, -1), np.arange(BINS // 2)])
    order = order[histogram[order] > 0]
    return _LOW[order], _HIGH[order], histogram[order]
