"""Computes order statistics of magnitudes: approximate ones from a histogram of float32 patterns, and exact ones.

The approximate ones take the values of a bin to be spread evenly over it. So each lies in the same bin as the exact
one, a relative error of 1/32 at the most, and so does a quantile, which interpolates between two of them. The exact
ones need no sorting of all values: the histogram says in which bin a rank lies, so only that bin's values are sorted.

    T token positions, d channels
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

from workers.measurement.statistics import backends
from workers.measurement.statistics.cpu import order as cpu_order
from workers.measurement.statistics.reduction import BINS, F64, I64, Stream, bin_edges
from workers.measurement.statistics.transfers import HostCopies

_LOW, _HIGH = bin_edges()
"""[16384] each, float32."""
_WIDE_LOW, _WIDE_HIGH = (edges.astype(np.float64) for edges in (_LOW, _HIGH))
_MAGNITUDES = slice(0, 255 * 32)
"""Bins of finite values of positive sign; those of negative sign lie BINS // 2 further on."""


def exact_quantile(stream: Stream, histogram: I64, quantile: float) -> float:
    """Return a quantile of the finite magnitudes of a stream, linear between order statistics.

    histogram: [16384], of the same stream, not empty.
    """
    ranked = _ranked(histogram, quantile)
    return ranked.between(_order_statistics(stream, histogram, ranked).cpu().numpy())


def quantile_bounds(histogram: I64, quantile: float) -> tuple[float, float]:
    """Return two values between which that quantile lies, as far as a histogram [16384], not empty, tells."""
    below, above = _ranked(histogram, quantile).bins
    return float(_LOW[below]), float(_HIGH[above])


class _Ranked(NamedTuple):
    """The two order statistics that a quantile lies between."""

    bins: tuple[int, int]
    """Those that hold them."""
    places: tuple[int, int]
    """How many values of the bin are below each."""
    fraction: float
    """How far the quantile is from the one to the other."""

    def between(self, two: F64) -> float:
        """Return the quantile, from the two order statistics, [2]."""
        below, above = two.tolist()
        return float(below + (above - below) * self.fraction)


def _ranked(histogram: I64, quantile: float) -> _Ranked:
    counts = histogram[: BINS // 2] + histogram[BINS // 2 :]
    upto = np.cumsum(counts)
    rank = quantile * (int(upto[-1]) - 1)
    ranks = np.array([np.floor(rank), np.ceil(rank)], np.int64)
    bins = np.searchsorted(upto, ranks, side="right")
    places = ranks - (upto[bins] - counts[bins])
    return _Ranked(tuple(bins.tolist()), tuple(places.tolist()), float(rank - ranks[0]))


def median_magnitude(x: torch.Tensor, copies: HostCopies, use: Callable[[float], None]) -> None:
    """Call `use` with the median of the finite magnitudes of tokens [T, d], which must have one, once it is known."""
    if copies.on_host:
        use(cpu_order.median_magnitude(x))
        return

    def find(histogram: I64) -> None:
        ranked = _ranked(histogram, 0.5)
        copies.add((_order_statistics(lambda: [x], histogram, ranked),), lambda two: use(ranked.between(two)))

    copies.add((backends.histogram(x),), find)


def _order_statistics(stream: Stream, histogram: I64, ranked: _Ranked) -> torch.Tensor:
    """Return the two order statistics of a stream, [2], float64, on its device."""
    counts = histogram[: BINS // 2] + histogram[BINS // 2 :]
    ordered = {
        number: _sorted(backends.magnitudes_in_bin(stream, number, int(counts[number]))) for number in set(ranked.bins)
    }
    two = [ordered[number][place] for number, place in zip(ranked.bins, ranked.places, strict=True)]
    return torch.stack(two).double()


def _sorted(values: torch.Tensor) -> torch.Tensor:
    """Return values [n] in ascending order; in host memory by numpy, which leaves torch's threads alone."""
    return torch.from_numpy(np.sort(values.numpy())) if values.device.type == "cpu" else values.sort().values


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
    below, above = (_spread_order_statistics(counts, rank, abs_max) for rank in (np.floor(ranks), np.ceil(ranks)))
    quantiles: F64 = below + (above - below) * (ranks - np.floor(ranks))
    return quantiles


def _spread_order_statistics(counts: I64, ranks: F64, abs_max: float) -> F64:
    """Return the values at whole ranks, the values of each bin taken to be spread evenly over it."""
    upto = np.cumsum(counts)
    bins = np.searchsorted(upto, ranks, side="right")
    low, high = _WIDE_LOW[_MAGNITUDES][bins], np.minimum(_WIDE_HIGH[_MAGNITUDES][bins], abs_max)
    within = (ranks - (upto[bins] - counts[bins]) + 0.5) / counts[bins]
    values: F64 = low + (high - low) * within
    return values


def occupied_bins(histogram: I64) -> tuple[F64, F64, I64]:
    """Return (bin_low, bin_high, count) of the bins that hold something, in ascending order of value."""
    order = np.concatenate([np.arange(BINS - 1, BINS // 2 - 1, -1), np.arange(BINS // 2)])
    order = order[histogram[order] > 0]
    return _WIDE_LOW[order], _WIDE_HIGH[order], histogram[order]
