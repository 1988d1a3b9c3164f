"""Computes products of quantized and reference tokens in host memory, by token and by channel, on all cores.

A float32 or bfloat16 row is a shift away from float32 patterns, so it is used where it lies; a float16 row, and one
with a value that is not finite, which shows in the sum of its squares, is decoded into a scratch.

    T tokens, d channels, R ranges of tokens
"""

from typing import Any

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
from workers.measurement.statistics.reduction import F32, F64

_RANGE_TOKENS = 256
"""Tokens of a range whose sums by channel are added up by one thread."""
_MAX_RANGES = 16


def token_products(y: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """Return the five products of every token of y and q [T, d], [5, T]; see `backends.token_products`."""
    tokens, channels = y.shape
    out = np.empty((5, tokens))
    operands = (patterns(y), patterns(q), channels, out)
    split_tokens(tokens, channels, lambda first, last: _token_products(first, last, *operands))
    return torch.from_numpy(out)


def channel_products(y: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """Return |y|^2 and |y - q|^2 of every channel of y and q [T, d], [2, d]; see `backends.channel_products`."""
    tokens, channels = y.shape
    ranges = min(_MAX_RANGES, -(-tokens // _RANGE_TOKENS))
    sums = np.zeros((ranges, 2, channels))
    operands = (patterns(y), patterns(q), tokens, sums)
    split_range(ranges, lambda _, first, last: _channel_products(first, last, *operands))
    return torch.from_numpy(sums.sum(axis=0))


@compiled()
def _token_products(
    first: int, last: int, y: Patterns, q: Patterns, channels: int, out: F64
) -> None:  # pragma: no cover - compiled
    """Put the products of tokens first..last into `out` [5, T]."""
    bits = np.empty((2, channels), np.uint32)
    in_place = y.kind != FLOAT16 and q.kind != FLOAT16
    y_shift, q_shift = np.uint32(16 * (y.kind == BFLOAT16)), np.uint32(16 * (q.kind == BFLOAT16))
    for t in range(first, last):
        a, b = t * y.strides[0], t * q.strides[0]
        y_row, q_row = y.flat[a : a + channels], q.flat[b : b + channels]
        # Nearly every row is finite: add it up where it lies, and look at its values only if a sum says otherwise.
        if in_place and _row_products(y_row, y_shift, q_row, q_shift, out[:, t]):
            continue
        # Else decode both rows, put zeros where either is not finite, and add those up.
        left = channels
        y_peak = decode(y_row, y.kind, bits[0])
        q_peak = decode(q_row, q.kind, bits[1])
        if max(y_peak, q_peak) >= INFINITY:
            left -= _zero_nonfinite(bits[0], bits[1])
        _row_products(bits[0], np.uint32(0), bits[1], np.uint32(0), out[:, t])
        # Of a token without a finite pair there is no largest error; its sums are 0.
        if left == 0:
            out[4, t] = np.nan


@compiled()
def _channel_products(
    first: int, last: int, y: Patterns, q: Patterns, tokens: int, sums: F64
) -> None:  # pragma: no cover - compiled
    """Add up the ranges first..last into sums [R, 2, d]; the ranges depend on the number of tokens alone."""
    ranges, _, channels = sums.shape
    bits = np.empty((2, channels), np.uint32)
    for r in range(first, last):
        for t in range(tokens * r // ranges, tokens * (r + 1) // ranges):
            # Decode both rows. Where either has a value that is not finite, which its largest pattern shows, those
            # channels of the token are left out.
            a, b = t * y.strides[0], t * q.strides[0]
            y_peak = decode(y.flat[a : a + channels], y.kind, bits[0])
            q_peak = decode(q.flat[b : b + channels], q.kind, bits[1])
            if max(y_peak, q_peak) >= INFINITY:
                _zero_nonfinite(bits[0], bits[1])
            _add_squares(bits[0].view(np.float32), bits[1].view(np.float32), sums[r, 0], sums[r, 1])


@compiled()
def _zero_nonfinite(y: U32, q: U32) -> int:  # pragma: no cover - compiled
    """Put zeros into both rows [d] wherever either is not finite; return how often."""
    count = 0
    for c in range(y.shape[0]):
        if max(y[c] & MAGNITUDE, q[c] & MAGNITUDE) >= INFINITY:
            y[c] = q[c] = 0
            count += 1
    return count


@compiled(fastmath={"reassoc", "contract"})
def _row_products(
    y: Row, y_shift: np.uint32, q: Row, q_shift: np.uint32, out: F64
) -> Any:  # pragma: no cover - compiled
    """Put the products of two rows [d] into `out` [5]; return whether all of both rows is finite.

    Shifted to the left, the rows' patterns are those of float32.
    """
    yy = qq = yq = ee = np.float64(0)
    peak = np.int64(0)  # the compiler makes vector instructions of integers' maximum, not of floats'
    for c in range(y.shape[0]):
        # float64 from here on: an error of a few digits of y would lose them in float32.
        a = np.float64(np.uint32(np.uint32(y[c]) << y_shift).view(np.float32))
        b = np.float64(np.uint32(np.uint32(q[c]) << q_shift).view(np.float32))
        e = a - b
        yy += a * a
        qq += b * b
        yq += a * b
        ee += e * e
        # Positive float64 order as their patterns do; NaN and infinity come last, and show in yy + qq.
        peak = max(peak, np.float64(abs(e)).view(np.int64))
    out[0], out[1], out[2], out[3], out[4] = yy, qq, yq, ee, np.int64(peak).view(np.float64)
    return np.isfinite(yy + qq)


@compiled()
def _add_squares(y: F32, q: F32, signal: F64, noise: F64) -> None:  # pragma: no cover - compiled
    """Add y^2 and (y - q)^2 of a token [d] to the channels' sums [d], in float64."""
    for c in range(y.shape[0]):
        a = np.float64(y[c])
        e = a - np.float64(q[c])
        signal[c] += a * a
        noise[c] += e * e
