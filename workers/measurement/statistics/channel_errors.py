"""Sums the errors of a quantized residual stream, dimension by dimension.

A massive dimension is most of the signal, and hides every other error. Which dimensions are massive in any layer is
known only after the last, so each layer keeps two sums for every dimension, and those to be left out are chosen later.

    T tokens, d dimensions
"""

import math
from collections.abc import Collection

import numpy as np
import torch

from workers.measurement.statistics import backends
from workers.measurement.statistics.reduction import F64
from workers.measurement.statistics.transfers import HostCopies


class ChannelErrors:
    """Accumulates the sums of y^2 and (y - q)^2 of every dimension."""

    def __init__(self, copies: HostCopies | None = None) -> None:
        """Begin with nothing; `copies` brings figures from a device, together with others."""
        self._copies = copies or HostCopies()
        self._sums: F64 | None = None

    def add(self, y: torch.Tensor, q: torch.Tensor) -> None:
        """Add tokens: y and q [..., d], on one device."""
        flat = (part.reshape(-1, part.shape[-1]) for part in (y, q))
        self._copies.add((backends.channel_products(*flat),), self._merge)

    def _merge(self, sums: F64) -> None:
        self._sums = sums.copy() if self._sums is None else self._sums + sums

    def sums(self) -> F64:
        """Return the sums of y^2 and of (y - q)^2 over everything added so far, [2, d]; of nothing [2, 0]."""
        self._copies.finish()
        return np.empty((2, 0)) if self._sums is None else self._sums


def sqnr_without(sums: F64, dimensions: Collection[int]) -> float | None:
    """Return the signal to quantization noise ratio in dB with some dimensions left out of both sums, [2, d].

    None where the rest is exact, or zero.
    """
    signal, noise = np.delete(sums, sorted(dimensions), axis=1).sum(axis=1).tolist()
    return 10 * math.log10(signal / noise) if signal > 0 and noise > 0 else None
