"""Computes a pivot of every channel of tensors in host memory: a typical value, about which power sums are taken.

N sequences of S tokens, d channels
"""

from typing import Any

import numpy as np
import torch

from workers.measurement.statistics.cpu.bit_patterns import INFINITY, MAGNITUDE, Patterns, decode, patterns
from workers.measurement.statistics.cpu.compiling import compiled
from workers.measurement.statistics.reduction import F32, PIVOT_TOKENS


def pivots(x: torch.Tensor) -> torch.Tensor:
    """Return a pivot of every channel of sequences [N, S, d], [N, d]; see `backends.pivots`."""
    sequences, tokens, channels = x.shape
    pivot = np.empty((sequences, channels), np.float32)
    _pivots(patterns(x), tokens, pivot)
    return torch.from_numpy(pivot)


@compiled()
def _pivots(x: Patterns, tokens: int, pivot: F32) -> None:  # pragma: no cover - compiled
    """Put the pivots of every sequence into `pivot` [N, d]."""
    sequences, channels = pivot.shape
    bits = np.empty((PIVOT_TOKENS, channels), np.uint32)
    v = bits.view(np.float32)
    for n in range(sequences):
        # Nine tokens spread over the sequence, from its first to its last; what is not finite counts as 0.
        for k in range(PIVOT_TOKENS):
            start = n * x.strides[0] + (tokens - 1) * k // (PIVOT_TOKENS - 1) * x.strides[1]
            if decode(x.flat[start : start + channels], x.kind, bits[k]) >= INFINITY:
                for c in range(channels):
                    if bits[k, c] & MAGNITUDE >= INFINITY:
                        bits[k, c] = 0
        # The median of three medians of three: no branch and no sorting, and one token cannot move it far.
        out = pivot[n]
        for c in range(channels):
            a = _middle(v[0, c], v[3, c], v[6, c])
            b = _middle(v[1, c], v[4, c], v[7, c])
            out[c] = _middle(a, b, _middle(v[2, c], v[5, c], v[8, c]))


@compiled()
def _lower(a: float, b: float) -> float:  # pragma: no cover - compiled
    return b if b < a else a


@compiled()
def _higher(a: float, b: float) -> float:  # pragma: no cover - compiled
    return b if b > a else a


@compiled()
def _middle(a: float, b: float, c: float) -> Any:  # pragma: no cover - compiled
    return _higher(_lower(a, b), _lower(_higher(a, b), c))
