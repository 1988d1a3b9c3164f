"""Computes the error of a quantized tensor q against its reference y, in one reading of both.

Every figure of `Error of a scheme` follows from five numbers per token: |y|^2, |q|^2, <y, q>, |y - q|^2 and
max |y - q|. Elements where either is not finite are left out. Sums are float64.

A massive dimension of the residual stream is most of its signal, and hides the errors of all others. Which dimensions
are massive in any layer is known only after the last, so `ChannelErrors` keeps two sums for every dimension, and those
to be left out are chosen later.

    T tokens, d channels
"""

import math
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import torch

from workers.measurement.statistics import backends
from workers.measurement.statistics.reduction import F32, F64
from workers.measurement.statistics.transfers import HostCopies


@dataclass(frozen=True)
class Deviation:
    """The error figures of one site. A figure that does not exist is None."""

    sqnr_db: float | None
    """None where exact, and where y is zero everywhere."""
    relative_l2: float | None
    median_token_error: float | None
    cosine: float | None
    max_abs_error: float | None
    exact: bool
    """y and q are equal wherever both are finite, and they are so somewhere."""


class DeviationStatistics:
    """Accumulates the deviation at one site; keeps one number per token."""

    def __init__(self, copies: HostCopies | None = None) -> None:
        """Begin with nothing; `copies` brings figures from a device, together with those of other sites."""
        self._copies = copies or HostCopies()
        self._signal = 0.0
        self._noise = 0.0
        self._peak = math.nan
        self._token_error: list[F64] = []
        self._cosine_sum = 0.0
        self._cosines = 0

    def add(self, y: torch.Tensor | F32, q: torch.Tensor | F32) -> None:
        """Add tokens: y and q [..., d], on one device, each bfloat16, float16 or float32."""
        self._copies.add((token_products(y, q),), self._merge)

    def _merge(self, products: F64) -> None:
        yy, qq, yq, ee, peak = products
        self._signal += float(yy.sum())
        self._noise += float(ee.sum())
        self._peak = float(np.fmax.reduce(peak, initial=self._peak))
        present = yy > 0
        self._token_error.append(np.sqrt(ee[present] / yy[present]))
        both = present & (qq > 0)
        self._cosine_sum += float((yq[both] / np.sqrt(yy[both] * qq[both])).sum())
        self._cosines += int(both.sum())

    def deviation(self) -> Deviation:
        """Return the figures over everything added so far."""
        self._copies.finish()
        errors = np.concatenate(self._token_error) if self._token_error else np.empty(0)
        compared = not math.isnan(self._peak)
        exact, silent = compared and self._noise == 0, self._signal == 0
        return Deviation(
            sqnr_db=None if exact or silent else 10 * math.log10(self._signal / self._noise),
            relative_l2=None if silent else math.sqrt(self._noise / self._signal),
            median_token_error=float(np.median(errors)) if errors.size else None,
            cosine=self._cosine_sum / self._cosines if self._cosines else None,
            max_abs_error=self._peak if compared else None,
            exact=exact,
        )


def token_products(y: torch.Tensor | F32, q: torch.Tensor | F32) -> torch.Tensor:
    """Return |y|^2, |q|^2, <y, q>, |y - q|^2 and max |y - q| of every token of y and q [..., d], [5, T], float64."""
    y, q = torch.as_tensor(y), torch.as_tensor(q)
    return backends.token_products(y.reshape(-1, y.shape[-1]), q.reshape(-1, q.shape[-1]))


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
