"""Computes a limit for every token from its root mean square, and counts values that reach it, in host memory.

Magnitudes order as their patterns do, so they are compared as integers, as many at a time as a vector holds.

    N sequences of S tokens, d channels
"""

import numpy as np
import torch

from workers.measurement.statistics.cpu.bit_patterns import (
    BFLOAT16,
    FLOAT16,
    INFINITY,
    MAGNITUDE,
    Patterns,
    decode,
    patterns,
)
from workers.measurement.statistics.cpu.compiling import compiled
from workers.measurement.statistics.cpu.histogram import U32, Row
from workers.measurement.statistics.cpu.threads import split_range, split_tokens
from workers.measurement.statistics.reduction import F32, I32, SMALLEST

_SMALLEST = np.float32(SMALLEST)


def token_limits(x: torch.Tensor, factor: float) -> torch.Tensor:
    """Return `factor` times the root mean square of every token of x [N, S, d], [N, S]; see `backends.token_limits`."""
    sequences, tokens, channels = x.shape
    out = np.empty((sequences, tokens), np.float32)
    operands = (patterns(x), channels, np.float64(np.float32(factor)), out)
    split_tokens(out.size, channels, lambda first, last: _token_limits(first, last, *operands))
    return torch.from_numpy(out)


def count_reaching(x: torch.Tensor, limits: torch.Tensor) -> torch.Tensor:
    """Return how many values of x [N, S, d] reach their token's limit, [N, d]; see `backends.count_reaching`."""
    counts = np.zeros((x.shape[0], x.shape[2]), np.int32)
    operands = (patterns(x), np.ascontiguousarray(limits.numpy()).view(np.uint32), counts)
    split_range(len(counts), lambda _, first, last: _count_reaching(first, last, *operands))
    return torch.from_numpy(counts)


@compiled()
def _token_limits(
    first: int, last: int, x: Patterns, channels: int, factor: float, out: F32
) -> None:  # pragma: no cover - compiled
    """Put the limits of tokens first..last, counted over all sequences, into `out` [N, S]."""
    bits = np.empty(channels, np.uint32)
    shift, tokens = np.uint32(16 * (x.kind == BFLOAT16)), out.shape[1]
    for number in range(first, last):
        n, t = number // tokens, number % tokens
        start = n * x.strides[0] + t * x.strides[1]
        row, left = x.flat[start : start + channels], channels
        # float32 and bfloat16 are added up where they lie; NaN asks for decoding, as does what is not finite.
        squares = np.float64(np.nan)
        if x.kind != FLOAT16:
            squares = _sum_of_squares(row, shift)
        if not np.isfinite(squares):
            if decode(row, x.kind, bits) >= INFINITY:
                left -= _zero_nonfinite(bits)
            squares = _sum_of_squares(bits, np.uint32(0))
        # The mean is over the finite values. A limit that is rounded to 0 would be reached by zeros, so it is raised
        # to the smallest float32; a token of zeros, or without a finite value, has a limit that nothing reaches.
        limit = np.float32(factor * np.sqrt(squares / max(left, 1)))
        out[n, t] = max(limit, _SMALLEST) if squares > 0 else np.float32(np.inf)


@compiled()
def _zero_nonfinite(bits: U32) -> int:  # pragma: no cover - compiled
    """Put zeros where a row [d] is not finite; return how often."""
    count = 0
    for c in range(bits.shape[0]):
        if (bits[c] & MAGNITUDE) >= INFINITY:
            bits[c] = 0
            count += 1
    return count


@compiled(fastmath={"reassoc", "contract"})
def _sum_of_squares(row: Row, shift: np.uint32) -> float:  # pragma: no cover - compiled
    """Return the sum of the squares of a row [d]; shifted to the left, its patterns are those of float32."""
    total = np.float64(0)
    for c in range(row.shape[0]):
        value = np.float64(np.uint32(np.uint32(row[c]) << shift).view(np.float32))
        total += value * value
    return total


@compiled()
def _count_reaching(
    first: int, last: int, x: Patterns, limits: U32, counts: I32
) -> None:  # pragma: no cover - compiled
    """Count in sequences first..last; limits [N, S] are patterns of float32, counts [N, d] are added to."""
    channels = counts.shape[1]
    bits = np.empty(channels, np.uint32)
    shift = np.uint32(16 * (x.kind == BFLOAT16))
    for n in range(first, last):
        for t in range(limits.shape[1]):
            start, limit = n * x.strides[0] + t * x.strides[1], limits[n, t]
            row = x.flat[start : start + channels]
            # A float16 is no shift away from float32, so it is decoded first.
            if x.kind == FLOAT16:
                decode(row, x.kind, bits)
                _add_reaching(bits, np.uint32(0), limit, counts[n])
            else:
                _add_reaching(row, shift, limit, counts[n])


@compiled()
def _add_reaching(row: Row, shift: np.uint32, limit: np.uint32, counts: I32) -> None:  # pragma: no cover - compiled
    """Add 1 wherever a row's value is finite and reaches the limit; shifted, its patterns are those of float32."""
    if limit >= INFINITY:
        return
    # One unsigned comparison for limit <= magnitude < infinity, which the compiler turns into vector instructions.
    width = np.uint32(INFINITY - limit)
    for c in range(row.shape[0]):
        magnitude = np.uint32(np.uint32(np.uint32(row[c]) << shift) & MAGNITUDE)
        # Below the limit the difference wraps round to a large number.
        counts[c] += np.int32(1) if np.uint32(magnitude - limit) < width else np.int32(0)
