"""Sums the squares of reference tokens and of quantized tokens' errors, channel by channel, on CUDA.

T tokens, d channels
"""

import torch

from workers.measurement.statistics.cuda.nvrtc import RANGE_TOKENS, THREADS, launch
from workers.measurement.statistics.cuda.rows import contiguous_rows


def channel_products(y: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """Return |y|^2 and |y - q|^2 of every channel of y and q [T, d], [2, d]; see `backends.channel_products`."""
    if y.dtype != q.dtype:  # the kernel is compiled for one type
        y, q = y.float(), q.float()
    y, q = contiguous_rows(y), contiguous_rows(q)
    tokens, channels = y.shape
    ranges = -(-tokens // RANGE_TOKENS)
    sums = y.new_empty((2, ranges, channels), dtype=torch.float64)
    grid = (ranges, -(-channels // THREADS))
    launch("channel_products", y.dtype, grid, y, q, sums, tokens, channels, ranges, y.stride(0), q.stride(0))
    return sums.sum(dim=1)
