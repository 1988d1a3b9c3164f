"""Counts values by bin, and collects those of one bin, on CUDA.

T tokens, d channels
"""

import torch

from workers.measurement.statistics.cuda.nvrtc import CHANNELS, RANGE_TOKENS, launch
from workers.measurement.statistics.cuda.rows import contiguous_rows
from workers.measurement.statistics.reduction import BINS, Stream


def histogram(x: torch.Tensor) -> torch.Tensor:
    """Return how many values of tokens [T, d] each bin holds, [16384]; see `backends.histogram`."""
    x = contiguous_rows(x)
    counts = x.new_zeros(BINS, dtype=torch.int64)
    launch("count_bins", x.dtype, _grid(x), x, counts, *x.shape, x.stride(0))
    return counts


def magnitudes_in_bin(stream: Stream, number: int, count: int) -> torch.Tensor:
    """Return the `count` magnitudes of a stream that lie in a bin; see `backends.magnitudes_in_bin`."""
    device = next(iter(stream())).device
    values = torch.zeros(count, dtype=torch.float32, device=device)
    used = torch.zeros(1, dtype=torch.int64, device=device)
    for part in stream():
        x = contiguous_rows(part)
        launch("collect_bin", x.dtype, _grid(x), x, values, used, *x.shape, x.stride(0), count, number)
    return values


def _grid(x: torch.Tensor) -> tuple[int, int]:
    """Return the blocks that together read tokens [T, d]."""
    tokens, channels = x.shape
    return -(-tokens // RANGE_TOKENS), -(-channels // CHANNELS)
