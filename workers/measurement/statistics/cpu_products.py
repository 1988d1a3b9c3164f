"""The products of quantised and reference tokens in host memory: both are read once, in their own dtypes, by all cores.

T tokens, d channels
"""

from typing import Any

import numpy as np
import torch

from workers.measurement.statistics.compiling import compiled
from workers.measurement.statistics.patterns import INFINITY, MAGNITUDE, decode, patterns
from workers.measurement.statistics.threads import share_out

_TOKENS_AT_ONCE = 16
"""Tokens that make a unit of work."""


def token_products(y: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """Return the five products of every token of y and q [T, d], [5, T]; see `backends.token_products`."""
    tokens, channels = y.shape
    out = np.empty((5, tokens))
    given = (*patterns(y), *patterns(q), channels, out)

    def work(_: int, first: int, last: int) -> None:
        _products(first * _TOKENS_AT_ONCE, min(last * _TOKENS_AT_ONCE, tokens), *given)

    share_out(-(-tokens // _TOKENS_AT_ONCE), work)
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
    bits = np.empty((2, channels), np.uint32)
    values = bits.view(np.float32)
    errors = np.empty(channels)
    for t in range(first, last):
        a, b = t * y_strides[0], t * q_strides[0]
        y_peak = decode(y[a : a + channels], y_kind, bits[0])
        q_peak = decode(q[b : b + channels], q_kind, bits[1])
        left = channels
        if max(y_peak, q_peak) >= INFINITY:
            left -= _leave_out(bits[0], bits[1])
        out[0, t], out[1, t], out[2, t], out[3, t] = _sums(values[0], values[1], errors)
        out.view(np.int64)[4, t] = _largest(errors.view(np.int64))
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
def _sums(y: Any, q: Any, errors: Any) -> Any:  # pragma: no cover - compiled
    yy = qq = yq = ee = np.float64(0)
    for c in range(y.shape[0]):
        a, b = np.float64(y[c]), np.float64(q[c])
        e = a - b
        errors[c] = abs(e)
        yy += a * a
        qq += b * b
        yq += a * b
        ee += e * e
    return yy, qq, yq, ee


@compiled()
def _largest(patterns: Any) -> Any:  # pragma: no cover - compiled
    """Return the largest pattern; the compiler makes vector instructions of this for integers, not for floats."""
    largest = np.int64(0)
    for c in range(patterns.shape[0]):
        largest = max(largest, patterns[c])
    return largest
