"""Sums the squares of reference tokens and of quantized tokens' errors, channel by channel, in host memory.

T tokens, d channels
"""

from typing import Any

import numpy as np
import torch

from workers.measurement.statistics.cpu.bit_patterns import INFINITY, MAGNITUDE, decode, patterns
from workers.measurement.statistics.cpu.compiling import compiled
from workers.measurement.statistics.cpu.threads import split_range

_RANGE_TOKENS = 256
_MOST_RANGES = 16


def channel_products(y: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """Return |y|^2 and |y - q|^2 of every channel of y and q [T, d], [2, d]; see `backends.channel_products`."""
    tokens, channels = y.shape
    ranges = min(_MOST_RANGES, -(-tokens // _RANGE_TOKENS))
    sums = np.zeros((ranges, 2, channels))
    operands = (*patterns(y), *patterns(q), tokens, sums)
    split_range(ranges, lambda _, first, last: _add(first, last, *operands))
    return torch.from_numpy(sums.sum(axis=0))


@compiled()
def _add(
    first: Any,
    last: Any,
    y: Any,
    y_kind: Any,
    y_strides: Any,
    q: Any,
    q_kind: Any,
    q_strides: Any,
    tokens: Any,
    sums: Any,
) -> None:  # pragma: no cover - compiled
    """Add up the ranges first..last; which they are depends on the number of tokens alone."""
    ranges, _, channels = sums.shape
    bits = np.empty((2, channels), np.uint32)
    for r in range(first, last):
        for t in range(tokens * r // ranges, tokens * (r + 1) // ranges):
            # A token is left out channel by channel where either value is not finite, which its peaks show.
            a, b = t * y_strides[0], t * q_strides[0]
            y_peak = decode(y[a : a + channels], y_kind, bits[0])
            q_peak = decode(q[b : b + channels], q_kind, bits[1])
            if max(y_peak, q_peak) >= INFINITY:
                _leave_out(bits[0], bits[1])
            _add_row(bits[0].view(np.float32), bits[1].view(np.float32), sums[r, 0], sums[r, 1])


@compiled()
def _leave_out(y: Any, q: Any) -> None:  # pragma: no cover - compiled
    """Put zeros in both where either is not finite."""
    for c in range(y.shape[0]):
        if max(y[c] & MAGNITUDE, q[c] & MAGNITUDE) >= INFINITY:
            y[c] = q[c] = 0


@compiled()
def _add_row(y: Any, q: Any, signal: Any, noise: Any) -> None:  # pragma: no cover - compiled
    """Add y^2 and (y - q)^2 of a token [d] to the channels' sums [d], in float64."""
    for c in range(y.shape[0]):
        a = np.float64(y[c])
        e = a - np.float64(q[c])
        signal[c] += a * a
        noise[c] += e * e
