"""Reduces sequences on CUDA: each element is read once, and nothing leaves the device.

N sequences of S tokens, d channels, R ranges of a sequence
"""

import torch

from workers.measurement.statistics.cuda.nvrtc import CHANNELS, RANGE_TOKENS, THREADS, launch
from workers.measurement.statistics.cuda.rows import contiguous_rows
from workers.measurement.statistics.reduction import BINS, Reduction


def reduce(x: torch.Tensor, pivot: torch.Tensor, threshold: float) -> Reduction[torch.Tensor]:
    """Reduce sequences [N, S, d] about pivots [N, d]; see `backends.reduce_sequences`."""
    x, pivot = contiguous_rows(x), pivot.contiguous()
    n, tokens, channels = x.shape
    ranges = -(-tokens // RANGE_TOKENS)
    extremes = x.new_empty((2, n, ranges, channels), dtype=torch.float32)
    sums = x.new_empty((n, ranges, 4, channels), dtype=torch.float64)
    counts = x.new_empty((2, n, ranges, channels), dtype=torch.int32)
    over_fp16 = x.new_zeros(n, dtype=torch.int32)
    peaks = x.new_full((n, tokens), -1, dtype=torch.int32)
    histogram = x.new_zeros(BINS, dtype=torch.int64)
    ranged = (extremes, sums, counts)
    grid = (n * ranges, -(-channels // CHANNELS))
    sizes = (n, tokens, channels, ranges, x.stride(0), x.stride(1))
    launch("reduce_range", x.dtype, grid, x, pivot, *ranged, over_fp16, peaks, histogram, *sizes, float(threshold))

    minimum, maximum = x.new_empty((2, n, channels), dtype=torch.float32)
    power_sums = x.new_empty((n, 4, channels), dtype=torch.float64)
    over, missing = x.new_empty((2, n, channels), dtype=torch.int32)
    joined = (minimum, maximum, power_sums, over, missing)
    launch("join_ranges", x.dtype, (-(-n * channels // THREADS), 1), *ranged, *joined, n, channels, ranges)
    return Reduction(
        pivot=pivot,
        minimum=minimum,
        maximum=maximum,
        power_sums=power_sums,
        over=over,
        missing=missing,
        over_fp16=over_fp16.long(),
        token_abs_max=torch.where(peaks < 0, torch.nan, peaks.view(torch.float32)),
        histogram=histogram,
    )


def pivots(x: torch.Tensor) -> torch.Tensor:
    """Return a pivot of every channel of sequences [N, S, d], [N, d]; see `backends.pivots`."""
    x = contiguous_rows(x)
    n, tokens, channels = x.shape
    values = x.new_empty((n, channels), dtype=torch.float32)
    blocks = -(-n * channels // THREADS)
    launch("pivots", x.dtype, (blocks, 1), x, values, n, tokens, channels, x.stride(0), x.stride(1))
    return values
