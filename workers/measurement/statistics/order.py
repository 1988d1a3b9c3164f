"""Computes exact order statistics of magnitudes.

Sorting them all is not needed: their histogram says in which bin a rank lies, so only that bin's values are sorted.

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
        """Return the quantile, given the two order statistics, [2]."""
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
