"""Computes the dynamic range of one site: tensors go in, a small record of floats comes out.

Only sums, extremes, counts, a histogram and one number per token are kept between tensors, so memory hardly grows
with the text, and the result does not depend on how sequences were grouped into batches. Moments are formed from
float64 power sums about a pivot, a typical value of each channel, so that no digits are lost where a channel's mean is
far larger than its spread.

What a tensor on another device leaves comes to the host with everything else that its batch leaves (`transfers`).

    T token positions from N sequences of S, d channels
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from workers.measurement.statistics.backends import pivots, reduce_sequences
from workers.measurement.statistics.moments import ChannelTotals, Moments, pooled
from workers.measurement.statistics.order import magnitude_quantiles
from workers.measurement.statistics.reduction import BINS, F32, F64, I64, Reduction
from workers.measurement.statistics.transfers import HostCopies

_PER_SEQUENCE_EPSILON = 1e-6
"""Keeps the kurtosis of a constant sequence finite; from the source of `kurtosis_per_sequence`."""
_QUANTILES = (0.5, 0.99, 0.999, 0.9999)
"""Of magnitudes: median_abs, p99_abs, p99_9_abs and p99_99_abs."""


@dataclass(frozen=True)
class SiteRange:
    """The range figures of a site over all its elements. A figure that does not exist is None."""

    tokens: int
    channels: int
    min: float | None = None
    max: float | None = None
    abs_max: float | None = None
    mean: float | None = None
    std: float | None = None
    rms: float | None = None
    median_abs: float | None = None
    p99_abs: float | None = None
    p99_9_abs: float | None = None
    p99_99_abs: float | None = None
    crest_db: float | None = None
    max_to_median: float | None = None
    range_bits: float | None = None
    kurtosis: float | None = None
    kurtosis_per_sequence: float | None = None
    inf_norm_per_sequence: float | None = None
    token_abs_max_p50: float | None = None
    token_abs_max_p99: float | None = None
    over_fp16: int = 0
    nonfinite: int = 0


@dataclass(frozen=True)
class ChannelRanges:
    """The range figures of every channel, [d] each; NaN in a channel without a finite value."""

    min: F32
    max: F32
    abs_max: F32
    mean: F64
    variance: F64
    over_threshold: I64


class SiteStatistics:
    """Accumulates the statistics of one site."""

    def __init__(self, channels: int, threshold: float, copies: HostCopies | None = None) -> None:
        """Begin with nothing; `copies` brings figures from a device, together with those of other sites."""
        self._threshold = threshold
        self._copies = copies or HostCopies()
        self._totals = ChannelTotals.none(np.zeros(channels, np.float32))
        self._histogram = np.zeros(BINS, np.int64)
        self._over_fp16 = 0
        self._tokens = 0
        self._sequences: list[Moments] = []
        self._token_abs_max: list[F32] = []

    def add(self, x: torch.Tensor | F32) -> torch.Tensor:
        """Add sequences [..., S, d], bfloat16, float16 or float32, on any device.

        Returns how many values of each of the N sequences reach the threshold, by channel: [N, d], on their device.
        """
        x = torch.as_tensor(x)
        sequences = x.reshape(-1, *x.shape[-2:])
        reduction = reduce_sequences(sequences, pivots(sequences), self._threshold)
        self._copies.add(reduction, self._merge)
        return reduction.over

    def _merge(self, *figures: npt.NDArray[Any]) -> None:
        """Add the figures of a `Reduction`, in the order of its fields."""
        reduction = Reduction(*figures)
        if self._tokens == 0:
            self._totals = ChannelTotals.none(reduction.pivot[0])
        self._sequences.append(self._totals.add(reduction))
        self._histogram += reduction.histogram
        self._over_fp16 += int(reduction.over_fp16.sum())
        self._tokens += reduction.token_abs_max.size
        self._token_abs_max.append(reduction.token_abs_max.copy())

    @property
    def histogram(self) -> I64:
        """[16384]: values so far by the top 14 bits of their pattern."""
        self._copies.finish()
        return self._histogram

    @property
    def token_abs_max(self) -> F32:
        """[T]: the largest magnitude of every token so far; NaN where a token has no finite value."""
        self._copies.finish()
        return np.concatenate([peaks.reshape(-1) for peaks in self._token_abs_max])

    @property
    def nonfinite(self) -> int:
        """NaN and infinite values so far."""
        self._copies.finish()
        return self._tokens * len(self._totals.finite) - int(self._totals.finite.sum())

    def range(self) -> SiteRange:
        """Return the figures over everything added so far."""
        self._copies.finish()
        totals, tokens, channels = self._totals, self._tokens, len(self._totals.finite)
        if not totals.finite.any():
            return SiteRange(tokens=tokens, channels=channels, over_fp16=self._over_fp16, nonfinite=self.nonfinite)
        minimum, maximum = float(totals.minimum.min()), float(totals.maximum.max())
        abs_max = max(-minimum, maximum)
        token_median, token_p99 = np.nanquantile(self.token_abs_max.astype(np.float64), (0.5, 0.99)).tolist()
        median, p99, p99_9, p99_99 = magnitude_quantiles(self._histogram, _QUANTILES, abs_max).tolist()
        moments = pooled(totals.finite[None], totals.power_sums[None], totals.pivot[None])
        mean, second, fourth = (float(moment[0]) for moment in moments[1:])
        rms = math.sqrt(mean**2 + second)
        return SiteRange(
            tokens=tokens,
            channels=channels,
            over_fp16=self._over_fp16,
            nonfinite=self.nonfinite,
            min=minimum,
            max=maximum,
            abs_max=abs_max,
            mean=mean,
            std=math.sqrt(second),
            rms=rms,
            median_abs=median,
            p99_abs=p99,
            p99_9_abs=p99_9,
            p99_99_abs=p99_99,
            crest_db=20 * math.log10(abs_max / rms) if rms else None,
            max_to_median=abs_max / median if median else None,
            range_bits=math.log2(abs_max / median) if median else None,
            kurtosis=fourth / second**2 if second else None,
            kurtosis_per_sequence=_mean_kurtosis(self._sequences),
            inf_norm_per_sequence=_mean_inf_norm(self._token_abs_max),
            token_abs_max_p50=token_median,
            token_abs_max_p99=token_p99,
        )

    def channels(self) -> ChannelRanges:
        """Return the figures of every channel over everything added so far."""
        self._copies.finish()
        totals = self._totals
        seen = totals.finite > 0
        n = np.where(seen, totals.finite, 1)
        offset = totals.power_sums[0] / n
        variance = np.maximum(totals.power_sums[1] / n - offset**2, 0.0)
        nan = np.float32(np.nan)
        return ChannelRanges(
            min=np.where(seen, totals.minimum, nan),
            max=np.where(seen, totals.maximum, nan),
            abs_max=np.where(seen, np.maximum(-totals.minimum, totals.maximum), nan),
            mean=np.where(seen, totals.pivot + offset, np.nan),
            variance=np.where(seen, variance, np.nan),
            over_threshold=totals.over.copy(),
        )


def _kurtosis(sequences: Moments) -> F64:
    """Return n^-1 sum (x - m)^4 / (s^4 + 1e-6) of every sequence, with the unbiased s (arXiv 2306.12929)."""
    elements, _, second, fourth = (moment[sequences.elements > 1] for moment in sequences)
    unbiased = second * elements / (elements - 1)
    kurtosis: F64 = fourth / (unbiased**2 + _PER_SEQUENCE_EPSILON)
    return kurtosis


def _mean_kurtosis(sequences: list[Moments]) -> float | None:
    """Return the mean over all sequences of their kurtosis; None where none has more than one finite value."""
    kurtosis = np.concatenate([_kurtosis(moments) for moments in sequences])
    return float(kurtosis.mean()) if kurtosis.size else None


def _mean_inf_norm(token_abs_max: list[F32]) -> float:
    """Return the mean over all sequences of their largest magnitude."""
    return float(np.concatenate([_inf_norm(peaks) for peaks in token_abs_max]).mean(dtype=np.float64))


def _inf_norm(token_abs_max: F32) -> F32:
    """Return the largest magnitude of every sequence that has a finite value, from all its tokens' [N, S]."""
    largest: F32 = np.fmax.reduce(token_abs_max, axis=1)
    return largest[~np.isnan(largest)]
