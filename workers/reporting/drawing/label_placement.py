"""Moves labels apart along one axis, as little as possible, without changing their order."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def spread(wanted: Sequence[float], sizes: Sequence[float], low: float, high: float) -> NDArray[np.float64]:
    """Return centers near `wanted` at which labels of the given `sizes` do not overlap.

    The sum of squared moves is the least possible (isotonic regression by pooling neighbors that would collide).
    All labels stay inside [low, high] when they fit there; when they do not, they run over `high`.
    """
    centers = np.asarray(wanted, dtype=np.float64)
    if not centers.size:
        return centers
    order = np.argsort(centers, kind="stable")
    size = np.asarray(sizes, dtype=np.float64)[order]
    offsets = np.concatenate([[0.0], np.cumsum((size[:-1] + size[1:]) / 2)])
    free = _ascending(centers[order] - offsets)
    first = low + size[0] / 2
    last = max(first, high - size[-1] / 2 - offsets[-1])
    placed = np.empty_like(centers)
    placed[order] = np.clip(free, first, last) + offsets
    return placed


def _ascending(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the non-descending sequence nearest to `values` in the sum of squares."""
    blocks: list[tuple[float, int]] = []
    for value in values:
        mean, count = float(value), 1
        while blocks and blocks[-1][0] > mean:
            before, members = blocks.pop()
            mean = (before * members + mean * count) / (members + count)
            count += members
        blocks.append((mean, count))
    return np.concatenate([np.full(count, mean) for mean, count in blocks])
