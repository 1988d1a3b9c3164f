"""Counts the values that reach a limit of their token's own, in host memory.

Magnitudes order as their patterns do, so they are compared as integers, as many at a time as a vector holds.

    N sequences of S tokens, d channels
"""

from typing import Any

import numpy as np
import torch

from workers.measurement.statistics.cpu.bit_patterns import BFLOAT16, FLOAT16, INFINITY, MAGNITUDE, decode, patterns
from workers.measurement.statistics.cpu.compiling import compiled
from workers.measurement.statistics.cpu.threads import split_range
from workers.measurement.statistics.reduction import SMALLEST

_UNIT_ELEMENTS = 1 << 18
"""What makes a unit of work: it takes as long as a sleeping thread takes to begin."""
_SMALLEST = np.float32(SMALLEST)


def token_limits(x: torch.Tensor, factor: float) -> torch.Tensor:
    """Return `factor` times the root mean square of every token of x [N, S, d], [N, S]; see `backends.token_limits`."""
    sequences, tokens, channels = x.shape
    out = np.empty((sequences, tokens), np.float32)
    unit = max(1, _UNIT_ELEMENTS // channels)
    operands = (*patterns(x), channels, np.float64(np.float32(factor)), out)

    def work(_: int, first: int, last: int) -> None:
        _limits(first * unit, min(last * unit, out.size), *operands)

    split_range(-(-out.size // unit), work)
    return torch.from_numpy(out)


def count_reaching(x: torch.Tensor, limits: torch.Tensor) -> torch.Tensor:
    """Return how many values of x [N, S, d] reach their token's limit, [N, d]; see `backends.count_reaching`."""
    counts = np.zeros((x.shape[0], x.shape[2]), np.int32)
    operands = (*patterns(x), np.ascontiguousarray(limits.numpy()).view(np.uint32), counts)
    split_range(len(counts), lambda _, first, last: _count(first, last, *operands))
    return torch.from_numpy(counts)


@compiled()
def _limits(
    first: Any, last: Any, flat: Any, kind: Any, strides: Any, channels: Any, factor: Any, out: Any
) -> None:  # pragma: no cover - compiled
    """Put the limits of tokens first..last, counted over all sequences."""
    bits = np.empty(channels, np.uint32)
    shift, tokens = np.uint32(16 * (kind == BFLOAT16)), out.shape[1]
    for number in range(first, last):
        n, t = number // tokens, number % tokens
        row = n * strides[0] + t * strides[1]
        left = channels
        # float32 and bfloat16 are added up where they lie; NaN asks for decoding, as does what is not finite.
        squares = np.float64(np.nan)
        if kind != FLOAT16:
            squares = _squares(flat[row : row + channels], shift)
        if not np.isfinite(squares):
            if decode(flat[row : row + channels], kind, bits) >= INFINITY:
                left -= _leave_out(bits)
            squares = _squares(bits, np.uint32(0))
        # The mean is over the finite values; a token of zeros, or without any, has a limit that nothing reaches.
        limit = np.float32(factor * np.sqrt(squares / max(left, 1)))
        out[n, t] = max(limit, _SMALLEST) if squares > 0 else np.float32(np.inf)


@compiled()
def _leave_out(bits: Any) -> Any:  # pragma: no cover - compiled
    """Put zeros where a row is not finite; return how often."""
    count = 0
    for c in range(bits.shape[0]):
        if (bits[c] & MAGNITUDE) >= INFINITY:
            bits[c] = 0
            count += 1
    return count


@compiled(fastmath={"reassoc", "contract"})
def _squares(row: Any, shift: Any) -> Any:  # pragma: no cover - compiled
    """Return the sum of a row's squares; shifted to the left, its patterns are those of float32."""
    total = np.float64(0)
    for c in range(row.shape[0]):
        value = np.float64(np.uint32(np.uint32(row[c]) << shift).view(np.float32))
        total += value * value
    return total


@compiled()
def _count(
    first: Any, last: Any, flat: Any, kind: Any, strides: Any, limits: Any, counts: Any
) -> None:  # pragma: no cover - compiled
    """Count in sequences first..last."""
    channels = counts.shape[1]
    bits = np.empty(channels, np.uint32)
    shift = np.uint32(16 * (kind == BFLOAT16))
    for n in range(first, last):
        for t in range(limits.shape[1]):
            row, limit = n * strides[0] + t * strides[1], limits[n, t]
            if kind == FLOAT16:
                decode(flat[row : row + channels], kind, bits)
                _add_reaching(bits, np.uint32(0), limit, counts[n])
            else:
                _add_reaching(flat[row : row + channels], shift, limit, counts[n])


@compiled()
def _add_reaching(row: Any, shift: Any, limit: Any, counts: Any) -> None:  # pragma: no cover - compiled
    """Add 1 wherever a row's value is finite and reaches the limit; shifted, its patterns are those of float32."""
    if limit >= INFINITY:
        return
    # One unsigned comparison for limit <= magnitude < infinity, which the compiler turns into vector instructions.
    room = np.uint32(INFINITY - limit)
    for c in range(row.shape[0]):
        magnitude = np.uint32(np.uint32(np.uint32(row[c]) << shift) & MAGNITUDE)
        # Below the limit the difference wraps round to a large number.
        counts[c] += np.int32(1) if np.uint32(magnitude - limit) < room else np.int32(0)
