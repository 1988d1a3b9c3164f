"""Computes the ranges of attention heads, and their errors under a scheme.

z_h is head h's slice of what enters the attention's output projection.

    T token positions, S of one sequence, H query heads, D channels of a head
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from workers.measurement.statistics.deviation import token_products
from workers.measurement.statistics.transfers import HostCopies

F64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class HeadRange:
    """The range figures of one head."""

    abs_max: float | None
    rms: float | None
    crest_db: float | None
    relative_peak: float | None
    """abs_max over the root mean square of the whole layer's z; None where that is 0."""


def head_ranges(abs_max: npt.NDArray[np.float32], mean: F64, variance: F64, heads: int) -> list[HeadRange]:
    """Return every head's range from its channels' figures, [H * D] each; NaN where a channel has no finite value."""
    power = (variance + mean**2).reshape(heads, -1)
    seen: npt.NDArray[np.bool_] = np.logical_or.reduce(np.isfinite(power), axis=1)
    if not seen.any():
        return [HeadRange(None, None, None, None)] * heads
    layer_rms = math.sqrt(float(np.nanmean(power)))
    peaks = np.fmax.reduce(abs_max.astype(np.float64).reshape(heads, -1), axis=1).tolist()
    of_heads = np.sqrt(np.nanmean(np.where(seen[:, None], power, 0), axis=1)).tolist()
    return [
        _head_range(peak, rms, layer_rms) if measured else HeadRange(None, None, None, None)
        for peak, rms, measured in zip(peaks, of_heads, seen, strict=True)
    ]


def _head_range(abs_max: float, rms: float, layer_rms: float) -> HeadRange:
    return HeadRange(
        abs_max=abs_max,
        rms=rms,
        crest_db=20 * math.log10(abs_max / rms) if rms else None,
        relative_peak=abs_max / layer_rms if layer_rms else None,
    )


class HeadDeviation:
    """Accumulates the error of every head under a scheme."""

    def __init__(self, heads: int, copies: HostCopies | None = None) -> None:
        """Begin with nothing; `copies` brings figures from a device, together with others."""
        self._sums = np.zeros((2, heads))
        self._copies = copies or HostCopies()

    def add(self, y: torch.Tensor, q: torch.Tensor) -> None:
        """Add a batch: the reference's z and the scheme's, [..., H * D]. What is not finite in either is left out."""
        heads = self._sums.shape[1]
        channels = y.shape[-1] // heads
        signal, _, _, noise, _ = token_products(y.reshape(-1, channels), q.reshape(-1, channels))
        sums = torch.stack([products.view(-1, heads).sum(dim=0) for products in (signal, noise)])
        self._copies.add((sums,), self._merge)

    def _merge(self, sums: F64) -> None:
        self._sums += sums

    def sqnr_db(self) -> list[float | None]:
        """Return 10 log10(signal / noise) of every head, [H]; None where exact, or where the head is silent."""
        self._copies.finish()
        pairs = zip(*self._sums.tolist(), strict=True)
        return [10 * math.log10(s / n) if s > 0 and n > 0 else None for s, n in pairs]
