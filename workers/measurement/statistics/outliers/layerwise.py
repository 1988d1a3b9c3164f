"""Finds outlier dimensions in one layer's residual stream, by two definitions.

- median_quantile (Macocco et al.): the median over tokens of abs(x_j) is above the 99th percentile of all abs(x).
- variance (Rudman et al.): var(x_j) is at least 5 times the mean over dimensions of var.

The first wants exact order statistics of the whole stream. The histogram bounds the percentile closely; only where a
dimension's median lies between the bounds must it be known exactly. A median can only be above a bound if at least half
of the dimension's values are, and then its mean square is at least half of the bound's square: few dimensions reach
that, so the others need not be looked at.

    T token positions, d hidden dimensions
"""

from collections.abc import Iterator

import numpy as np
import torch

from workers.measurement.statistics.order import exact_quantile, quantile_bounds
from workers.measurement.statistics.reduction import F64, I64, Stream

_ROUNDING = 1e-9
"""By less than this are mean squares too small."""


def median_quantile_dimensions(stream: Stream, histogram: I64, mean_square: F64, quantile: float) -> list[int]:
    """Return the dimensions that median_quantile flags, in ascending order.

    Of the same stream, histogram: [16384], and mean_square: [d], over tokens, NaN where a dimension has no finite
    value. Values that are not finite are left out.
    """
    if not histogram.any():
        return []
    low, high = quantile_bounds(histogram, quantile)
    candidates = np.flatnonzero(mean_square * (1 + _ROUNDING) >= low**2 / 2)
    if not candidates.size:
        return []
    counts = sum(
        torch.stack([magnitudes.isfinite().sum(dim=0), (magnitudes >= low).sum(dim=0)])
        for magnitudes in _magnitudes(stream, candidates)
    )
    finite, above = torch.as_tensor(counts).cpu().numpy()
    candidates = candidates[2 * above >= finite]
    if not candidates.size:
        return []
    medians = np.nanmedian(torch.cat(list(_magnitudes(stream, candidates))).cpu().double().numpy(), axis=0)
    undecided = (low <= medians) & (medians <= high)
    limit = exact_quantile(stream, histogram, quantile) if undecided.any() else high
    flagged: list[int] = candidates[medians > limit].tolist()
    return flagged


def variance_dimensions(variance: F64, ratio: float) -> list[int]:
    """Return the dimensions that the variance definition flags, in ascending order.

    variance: [d], over tokens; NaN where a dimension has no finite value. None is flagged where all are 0.
    """
    if not np.isfinite(variance).any():
        return []
    mean = np.nanmean(variance)
    return np.flatnonzero(variance >= ratio * mean).tolist() if mean > 0 else []


def _magnitudes(stream: Stream, dimensions: I64) -> Iterator[torch.Tensor]:
    """Yield the magnitudes of these dimensions, float32 on their device, NaN where not finite, part by part."""
    index = torch.from_numpy(dimensions)
    for x in stream():
        index = index.to(x.device)
        magnitudes = x[:, index].float().abs()
        yield torch.where(magnitudes.isfinite(), magnitudes, torch.nan)
