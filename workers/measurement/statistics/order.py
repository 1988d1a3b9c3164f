"""Exact order statistics of magnitudes.

Sorting them all is not needed: their histogram says in which bin a rank lies, so only that bin's values are sorted.

    T token positions in sequences of S, d channels
"""

from collections.abc import Callable, Iterable

import numpy as np
import torch

from workers.measurement.statistics import backends
from workers.measurement.statistics.reduction import BINS, F64, I64

Stream = Callable[[], Iterable[torch.Tensor]]
"""Gives hidden states sequence by sequence, [S, d] each, every time it is called."""


def exact_quantile(stream: Stream, histogram: I64, quantile: float) -> float:
    """Return a quantile of the finite magnitudes of a stream, linear between order statistics.

    histogram: [16384], of the same stream, not empty.
    """
    counts = histogram[: BINS // 2] + histogram[BINS // 2 :]
    upto = np.cumsum(counts)
    rank = quantile * (int(upto[-1]) - 1)
    ranks = np.array([np.floor(rank), np.ceil(rank)], np.int64)
    bins = np.searchsorted(upto, ranks, side="right")
    values = {int(b): _sorted_values_of_bin(stream, int(b)) for b in np.unique(bins)}
    below, above = (float(values[int(b)][r - (upto[b] - counts[b])]) for b, r in zip(bins, ranks, strict=True))
    return below + (above - below) * float(rank - ranks[0])


def _sorted_values_of_bin(stream: Stream, number: int) -> F64:
    found = [backends.magnitudes_in_bin(x, number).cpu().numpy() for x in stream()]
    return np.sort(np.concatenate(found)).astype(np.float64)
