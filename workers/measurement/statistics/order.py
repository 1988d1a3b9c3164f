"""Exact order statistics of magnitudes.

Sorting them all is not needed: their histogram says in which bin a rank lies, so only that bin's values are sorted.

    T token positions, d channels
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import torch

from workers.measurement.statistics import backends, cpu_order
from workers.measurement.statistics.reduction import BINS, F64, I64, bin_edges

Stream = Callable[[], Iterable[torch.Tensor]]
"""Gives hidden states of some tokens after others, [T, d] each, every time it is called."""

_LOW, _HIGH = bin_edges()


def exact_quantile(stream: Stream, histogram: I64, quantile: float) -> float:
    """Return a quantile of the finite magnitudes of a stream, linear between order statistics.

    histogram: [16384], of the same stream, not empty.
    """
    ranked = _ranked(histogram, quantile)
    values = {number: _sorted_values_of_bin(stream, number) for number in set(ranked.bins)}
    below, above = (float(values[number][place]) for number, place in zip(ranked.bins, ranked.places, strict=True))
    return below + (above - below) * ranked.fraction


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


def _ranked(histogram: I64, quantile: float) -> _Ranked:
    counts = histogram[: BINS // 2] + histogram[BINS // 2 :]
    upto = np.cumsum(counts)
    rank = quantile * (int(upto[-1]) - 1)
    ranks = np.array([np.floor(rank), np.ceil(rank)], np.int64)
    bins = np.searchsorted(upto, ranks, side="right")
    places = ranks - (upto[bins] - counts[bins])
    return _Ranked(tuple(bins.tolist()), tuple(places.tolist()), float(rank - ranks[0]))


def median_magnitude(x: torch.Tensor) -> float:
    """Return the median of the finite magnitudes of tokens [T, d], which must have one."""
    if x.device.type == "cpu":
        return cpu_order.median_magnitude(x)
    return exact_quantile(lambda: [x], backends.histogram(x).cpu().numpy(), 0.5)


def _sorted_values_of_bin(stream: Stream, number: int) -> F64:
    found = [backends.magnitudes_in_bin(x, number).cpu().numpy() for x in stream()]
    return np.sort(np.concatenate(found)).astype(np.float64)
