"""How well one number tells two groups apart, or follows a score: AUROC and Spearman's rho, for many numbers at once.

Both depend on ranks alone, so any rising transformation of the numbers leaves them as they are. Equal values share
the mean of their ranks. Ranks are multiples of a half and all sums of their products are exact in float64 for up to
100,000 records.

    R records, d dimensions
"""

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
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
    """Return Spearman's rho of every dimension with the scores, and the AUROC with which it tells the labels.

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
    for start in range(0, dimensions, _COLUMNS_AT_ONCE):
        part = slice(start, start + _COLUMNS_AT_ONCE)
        ranks = average_ranks(np.ascontiguousarray(values[:, part].T)) - middle
        with np.errstate(invalid="ignore"):
            rho[part] = (ranks @ score_ranks) / np.sqrt((ranks**2).sum(axis=1) * (score_ranks**2).sum())
        # The rank sum of the true records, counted from the middle, is half of (pairs won - pairs lost).
        half_lead = ranks @ labels.astype(np.float64)
        auroc[part] = 0.5 + half_lead / pairs if pairs else np.nan
    return rho, auroc
