"""Counts and notes the values that reach a limit of their token's own, on CUDA.

N sequences of S tokens; T tokens, d channels, k dimensions
"""

import torch

from workers.measurement.statistics.cuda.nvrtc import RANGE_TOKENS, THREADS, launch
from workers.measurement.statistics.cuda.rows import contiguous_rows

_WARP = 32
"""Dimensions that a block of `note_hits` reads, and tokens that each of its warps reads of them."""


def token_limits(x: torch.Tensor, factor: float) -> torch.Tensor:
    """Return `factor` times the root mean square of every token of x [N, S, d], [N, S]; see `backends.token_limits`."""
    x = contiguous_rows(x)
    n, tokens, channels = x.shape
    limits = x.new_empty((n, tokens), dtype=torch.float32)
    launch(
        "token_limits", x.dtype, (n * tokens, 1), x, limits, tokens, channels, x.stride(0), x.stride(1), float(factor)
    )
    return limits


def count_reaching(x: torch.Tensor, limits: torch.Tensor) -> torch.Tensor:
    """Return how many values of x [N, S, d] reach their token's limit, [N, d]; see `backends.count_reaching`."""
    x, limits = contiguous_rows(x), limits.contiguous()
    n, tokens, channels = x.shape
    ranges = -(-tokens // RANGE_TOKENS)
    counts = x.new_zeros((n, channels), dtype=torch.int32)
    grid = (n * ranges, -(-channels // THREADS))
    launch("count_reaching", x.dtype, grid, x, limits, counts, tokens, channels, ranges, x.stride(0), x.stride(1))
    return counts


def note_hits(
    x: torch.Tensor, dimensions: torch.Tensor, count: int, limits: torch.Tensor, kept_bits: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Note the values of some dimensions of tokens [T, d] that reach a limit; see `backends.note_hits`."""
    x, limits = contiguous_rows(x), limits.contiguous()
    tokens, k = len(x), len(dimensions)
    words = -(-tokens // _WARP)
    positions = x.new_empty((k, words), dtype=torch.int32)
    peaks = x.new_zeros(k, dtype=torch.int32)
    keys, used = x.new_zeros(count, dtype=torch.int64), x.new_zeros(1, dtype=torch.int64)
    grid = (-(-words * _WARP // THREADS), -(-k // _WARP))
    sizes = (tokens, k, words, x.stride(0), count, kept_bits)
    launch("note_hits", x.dtype, grid, x, dimensions, limits, positions, peaks, keys, used, *sizes)
    return positions.view(torch.uint8)[:, : -(-tokens // 8)], peaks.view(torch.float32), keys
