"""Computes AUROC and Spearman's rho of many numbers at once: how well each separates two groups or follows a score.

Both depend on ranks alone, so any rising transformation of the numbers leaves them as they are. Equal values share
the mean of their ranks. Ranks are multiples of a half and all sums of their products are exact in float64 for up to
100,000 records.

    R records, d dimensions
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
_ORDERS_AT_ONCE = 64
"""Orders that are compared together; bounds memory."""
_COLUMNS_AT_ONCE = 256
"""Dimensions that are ranked together; bounds memory."""


def average_ranks(values: NDArray[np.floating]) -> F64:
    """Return the ranks of finite values along the last axis, from 1; equal values get the mean of their ranks."""
    order = np.argsort(values, axis=-1)
    ordered = np.take_along_axis(values, order, axis=-1)
    place = np.broadcast_to(np.arange(values.shape[-1]), values.shape)
    begins = np.ones(values.shape, dtype=bool)
    begins[..., 1:] = ordered[..., 1:] != ordered[..., :-1]
    ends = np.ones(values.shape, dtype=bool)
    ends[..., :-1] = begins[..., 1:]
    first = np.maximum.accumulate(np.where(begins, place, 0), axis=-1)
    last = np.where(ends, place, values.shape[-1])
    last = np.minimum.accumulate(last[..., ::-1], axis=-1)[..., ::-1]
    ranks = np.empty(values.shape, dtype=np.float64)
    np.put_along_axis(ranks, order, (first + last) / 2 + 1, axis=-1)
    return ranks


def separation(
    values: NDArray[np.floating], labels: NDArray[np.bool_], scores: NDArray[np.floating]
) -> tuple[F64, F64]:
    """Return Spearman's rho of every dimension with the scores, and the AUROC with which it separates the labels.

    Args:
        values: [R, d], finite.
        labels: [R].
        scores: [R], finite.

    Returns:
        rho [d]: NaN where the dimension is constant, and everywhere if the scores are.
        auroc [d]: the chance that a true record has the larger value, a tie counted half; 0.5 where the dimension is
            constant, NaN everywhere if all labels are equal.
    """
    records, dimensions = values.shape
    rho, auroc = np.empty(dimensions), np.empty(dimensions)
    middle = (records + 1) / 2
    score_ranks = average_ranks(scores) - middle
    true = int(labels.sum())
    pairs = true * (records - true)
    for number, ranks in enumerate(_centered_ranks(values)):
        part = slice(number * _COLUMNS_AT_ONCE, (number + 1) * _COLUMNS_AT_ONCE)
        with np.errstate(invalid="ignore"):
            rho[part] = (ranks @ score_ranks) / np.sqrt((ranks**2).sum(axis=1) * (score_ranks**2).sum())
        # The rank sum of the true records, counted from the middle, is half of (pairs won - pairs lost).
        half_lead = ranks @ labels.astype(np.float64)
        auroc[part] = 0.5 + half_lead / pairs if pairs else np.nan
    return rho, auroc


def best_by_chance(
    values: NDArray[np.floating],
    labels: NDArray[np.bool_],
    scores: NDArray[np.floating] | None,
    permutations: int,
    seed: int,
) -> float | None:
    """Return the probability that the best of all dimensions is so good by chance.

    The statistic is the largest abs(rho) over the dimensions, or without scores the largest abs(AUROC - 0.5). The
    probability is the share of orders of the scores, or labels, under which it is at least as large: random
    permutations, and the original order, which counts as one.

    Args:
        values: [R, d], finite.
        labels: [R].
        scores: [R], finite, or None: the labels are what is followed.
        permutations: random ones.
        seed: of them.

    Returns:
        None where no dimension has such a figure: all are constant, or what is followed is.
    """
    followed = labels.astype(np.float64) if scores is None else average_ranks(scores) - (len(scores) + 1) / 2
    if np.ptp(followed) == 0:
        return None
    orders = _orders(followed, permutations, seed)
    best = np.full(permutations + 1, -1.0)
    for ranks in _centered_ranks(values):
        varying = ranks[np.ptp(ranks, axis=1) > 0]
        if len(varying):
            # For labels the sum is AUROC - 0.5 but for a factor that all dimensions share. Sums are exact, so that
            # an order that gives the same figure is never taken for a smaller one.
            scales = 1.0 if scores is None else np.sqrt((varying**2).sum(axis=1))[:, None]
            for start in range(0, len(orders), _ORDERS_AT_ONCE):
                part = slice(start, start + _ORDERS_AT_ONCE)
                strength = np.abs(varying @ orders[part].T.astype(np.float64)) / scales
                best[part] = np.maximum(best[part], strength.max(axis=0))
    return None if best[0] < 0 else float((best >= best[0]).mean())


def _orders(followed: F64, permutations: int, seed: int) -> NDArray[np.floating]:
    """Return the original order and random ones, [permutations + 1, R]; float32 where it holds them exactly."""
    generator = np.random.default_rng(seed)
    exact = np.array_equal(followed.astype(np.float32), followed)
    orders = np.empty((permutations + 1, len(followed)), dtype=np.float32 if exact else np.float64)
    orders[0] = followed
    for start in range(1, permutations + 1, _ORDERS_AT_ONCE):
        rows = orders[start : start + _ORDERS_AT_ONCE]
        rows[:] = generator.permuted(np.tile(followed, (len(rows), 1)), axis=1)
    return orders


def _centered_ranks(values: NDArray[np.floating]) -> Iterator[F64]:
    """Yield the ranks of some dimensions after others, [dimensions, R], counted from their middle."""
    for start in range(0, values.shape[1], _COLUMNS_AT_ONCE):
        part = np.ascontiguousarray(values[:, start : start + _COLUMNS_AT_ONCE].T)
        yield average_ranks(part) - (len(values) + 1) / 2
