"""Computes the products of quantized and reference tokens in host memory, reading both once, by all cores.

A float32 or bfloat16 row is a shift away from float32 patterns, so it is used where it lies; a float16 row, and one
with a value that is not finite, which shows in the sum of its squares, is decoded into a scratch.

T tokens, d channels
"""

from typing import Any

import numpy as np
import torch

from workers.measurement.statistics.cpu.bit_patterns import BFLOAT16, FLOAT16, INFINITY, MAGNITUDE, decode, patterns
from workers.measurement.statistics.cpu.compiling import compiled
from workers.measurement.statistics.cpu.prefetch import AHEAD, prefetch_row
from workers.measurement.statistics.cpu.threads import split_range

_UNIT_ELEMENTS = 1 << 18
"""What makes a unit of work: it takes as long as a sleeping thread takes to begin."""


def token_products(y: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """Return the five products of every token of y and q [T, d], [5, T]; see `backends.token_products`."""
    tokens, channels = y.shape
    out = np.empty((5, tokens))
    unit = max(1, _UNIT_ELEMENTS // channels)
    operands = (*patterns(y), *patterns(q), channels, out)

    def work(_: int, first: int, last: int) -> None:
        _products(first * unit, min(last * unit, tokens), *operands)

    split_range(-(-tokens // unit), work)
    return torch.from_numpy(out)


@compiled()
def _products(
    first: Any,
    last: Any,
    y: Any,
    y_kind: Any,
    y_strides: Any,
    q: Any,
    q_kind: Any,
    q_strides: Any,
    channels: Any,
    out: Any,
) -> None:  # pragma: no cover - compiled
    """Put the products of tokens first..last into `out`."""
    bits = np.empty((2, channels), np.uint32)
    in_place = y_kind != FLOAT16 and q_kind != FLOAT16
    y_shift, q_shift = np.uint32(16 * (y_kind == BFLOAT16)), np.uint32(16 * (q_kind == BFLOAT16))
    for t in range(first, last):
        a, b = t * y_strides[0], t * q_strides[0]
        prefetch_row(y, a + AHEAD * y_strides[0], channels)
        prefetch_row(q, b + AHEAD * q_strides[0], channels)
        y_row, q_row = y[a : a + channels], q[b : b + channels]
        # Nearly every row is finite: add it up where it lies, and look at its values only if a sum says otherwise.
        if in_place and _sums(y_row, y_shift, q_row, q_shift, out[:, t]):
            continue
        # Else decode both rows, put zeros where either is not finite, and add those up.
        left = channels
        y_peak = decode(y_row, y_kind, bits[0])
        q_peak = decode(q_row, q_kind, bits[1])
        if max(y_peak, q_peak) >= INFINITY:
            left -= _leave_out(bits[0], bits[1])
        _sums(bits[0], np.uint32(0), bits[1], np.uint32(0), out[:, t])
        # Of a token without a finite pair there is no largest error; its sums are 0.
        if left == 0:
            out[4, t] = np.nan


@compiled()
def _leave_out(y: Any, q: Any) -> Any:  # pragma: no cover - compiled
    """Put zeros in both where either is not finite; return how often."""
    count = 0
    for c in range(y.shape[0]):
        if max(y[c] & MAGNITUDE, q[c] & MAGNITUDE) >= INFINITY:
            y[c] = q[c] = 0
            count += 1
    return count


@compiled(fastmath={"reassoc", "contract"})
def _sums(y: Any, y_shift: Any, q: Any, q_shift: Any, out: Any) -> Any:  # pragma: no cover - compiled
    """Put the products of two rows [d] into `out` [5]; return whether all of both rows is finite.

    Shifted to the left, the rows' patterns are those of float32.
    """
    yy = qq = yq = ee = np.float64(0)
    peak = np.int64(0)  # the compiler makes vector instructions of integers' maximum, not of floats'
    for c in range(y.shape[0]):
        a = np.float64(np.uint32(np.uint32(y[c]) << y_shift).view(np.float32))
        b = np.float64(np.uint32(np.uint32(q[c]) << q_shift).view(np.float32))
        e = a - b
        yy += a * a
        qq += b * b
        yq += a * b
        ee += e * e
        peak = max(peak, np.float64(abs(e)).view(np.int64))
    out[0], out[1], out[2], out[3], out[4] = yy, qq, yq, ee, np.int64(peak).view(np.float64)
    return np.isfinite(yy + qq)
