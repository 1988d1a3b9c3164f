"""Noting where the values of some dimensions reach a magnitude, on CUDA.

T tokens, d channels, k dimensions
"""

import torch

from workers.measurement.statistics.cuda.nvrtc import THREADS, launch
from workers.measurement.statistics.cuda.rows import contiguous_rows

_MOST_ROWS = 256
"""Blocks along the dimensions."""


def note_hits(
    x: torch.Tensor, dimensions: torch.Tensor, count: int, magnitude: float, kept_bits: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Note every value of some dimensions of tokens [T, d] that reaches the magnitude.

    Args:
        x: bfloat16, float16 or float32.
        dimensions: [k], int64, on the same device.
        count: how many values reach it.
        magnitude: compared as float32.
        kept_bits: top bits of a value's float32 pattern that its key keeps.

    Returns:
        A bit for every token, [k, bytes], uint8, the first token in the highest bit; the largest magnitude of every
        dimension, [k], float32; and a key for every value, [count], int64: dimension << kept_bits | top bits.
    """
    x = contiguous_rows(x)
    tokens, k = len(x), len(dimensions)
    words = -(-tokens // 32)
    positions = x.new_zeros((k, words), dtype=torch.int32)
    peaks = x.new_zeros(k, dtype=torch.int32)
    keys, used = x.new_zeros(count, dtype=torch.int64), x.new_zeros(1, dtype=torch.int64)
    grid = (-(-tokens // THREADS), min(k, _MOST_ROWS))
    sizes = (tokens, k, words, x.stride(0), count, kept_bits)
    launch("note_hits", x.dtype, grid, x, dimensions, positions, peaks, keys, used, *sizes, float(magnitude))
    return positions.view(torch.uint8)[:, : -(-tokens // 8)], peaks.view(torch.float32), keys
