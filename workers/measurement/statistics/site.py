"""The dynamic range of one site: tensors go in, a small record of floats comes out.

Only sums, extremes, counts, a histogram and one number per token are kept between tensors, so memory hardly grows
with the text, and the result does not depend on how sequences were grouped into batches. Moments are formed from
float64 power sums about a pivot, a typical value of each channel, so that no digits are lost where a channel's mean is
far larger than its spread.

What a tensor on another device leaves stays there, and is fetched when a figure is asked for: the device need not
wait for each tensor's figures before it goes on with the next.

    T token positions from N sequences of S, d channels
"""

import math
from dataclasses import dataclass

import numpy as np
import torch

from workers.measurement.statistics.backends import reduce_sequences, typical
from workers.measurement.statistics.histogram import magnitude_quantiles
from workers.measurement.statistics.moments import Moments, add_about, pooled
from workers.measurement.statistics.reduction import BINS, F32, F64, I64, Reduction

_PER_SEQUENCE_EPSILON = 1e-6
"""Keeps the kurtosis of a constant sequence finite; from the source of `kurtosis_per_sequence`."""
_MOST_PENDING = 16
"""Tensors whose figures may wait on a device."""


@dataclass(frozen=True)
class SiteRange:
    """The range figures of a site over all its elements. A figure that does not exist is None."""

    tokens: int
    channels: int
    min: float | None
    max: float | None
    abs_max: float | None
    mean: float | None
    std: float | None
    rms: float | None
    median_abs: float | None
    p99_abs: float | None
    p99_9_abs: float | None
    p99_99_abs: float | None
    crest_db: float | None
    max_to_median: float | None
    range_bits: float | None
    kurtosis: float | None
    kurtosis_per_sequence: float | None
    inf_norm_per_sequence: float | None
    token_abs_max_p50: float | None
    token_abs_max_p99: float | None
    over_fp16: int
    nonfinite: int


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

    def __init__(self, channels: int, threshold: float) -> None:
        self._threshold = threshold
        self._pending: list[Reduction] = []
        self._minimum = np.full(channels, np.inf, np.float32)
        self._maximum = np.full(channels, -np.inf, np.float32)
        self._pivot: F32 | None = None
        self._power_sums = np.zeros((4, channels))
        self._over = np.zeros(channels, np.int64)
        self._finite = np.zeros(channels, np.int64)
        self._histogram = np.zeros(BINS, np.int64)
        self._over_fp16 = 0
        self._tokens = 0
        self._kurtosis: list[F64] = []
        self._inf_norm: list[F32] = []
        self._token_abs_max: list[F32] = []

    def add(self, x: torch.Tensor | F32) -> torch.Tensor:
        """Add sequences [..., S, d], bfloat16, float16 or float32, on any device.

        Returns how many of their values reach the threshold, by channel: [d], on their device.
        """
        x = torch.as_tensor(x)
        sequences = x.reshape(-1, *x.shape[-2:])
        reduction = reduce_sequences(sequences, typical(sequences), self._threshold)
        self._pending.append(reduction)
        if x.device.type == "cpu" or len(self._pending) == _MOST_PENDING:
            self._settle()
        return reduction.over.sum(dim=0)

    def _settle(self) -> None:
        pending, self._pending = self._pending, []
        for reduction in pending:
            self._merge(*(figure.cpu().numpy() for figure in reduction))

    def _merge(
        self,
        pivot: F32,
        minimum: F32,
        maximum: F32,
        power_sums: F64,
        over: I64,
        missing: I64,
        over_fp16: I64,
        token_abs_max: F32,
        histogram: I64,
    ) -> None:
        """Merge the figures of a Reduction."""
        finite = token_abs_max.shape[1] - missing.astype(np.int64)
        if self._pivot is None:
            self._pivot = pivot[0]
        np.minimum(self._minimum, minimum.min(axis=0), out=self._minimum)
        np.maximum(self._maximum, maximum.max(axis=0), out=self._maximum)
        add_about(self._power_sums, self._pivot, finite, power_sums, pivot)
        self._over += over.sum(axis=0, dtype=np.int64)
        self._finite += finite.sum(axis=0)
        self._histogram += histogram
        self._over_fp16 += int(over_fp16.sum())
        self._tokens += token_abs_max.size
        self._token_abs_max.append(token_abs_max.reshape(-1))
        sequences = pooled(finite, power_sums, pivot)
        self._kurtosis.append(_kurtosis(sequences)[sequences.elements > 1])
        self._inf_norm.append(np.fmax.reduce(token_abs_max, axis=1)[sequences.elements > 0])

    @property
    def histogram(self) -> I64:
        """[16384]: values so far by the top 14 bits of their pattern."""
        self._settle()
        return self._histogram

    @property
    def token_abs_max(self) -> F32:
        """[T]: the largest magnitude of every token so far; NaN where a token has no finite value."""
        self._settle()
        return np.concatenate(self._token_abs_max)

    @property
    def nonfinite(self) -> int:
        """NaN and infinite values so far."""
        self._settle()
        return self._tokens * len(self._finite) - int(self._finite.sum())

    def range(self) -> SiteRange:
        """Return the figures over everything added so far."""
        self._settle()
        n, channels = int(self._finite.sum()), len(self._finite)
        counts = {
            "tokens": self._tokens,
            "channels": channels,
            "over_fp16": self._over_fp16,
            "nonfinite": self.nonfinite,
        }
        if n == 0 or self._pivot is None:
            nothing = [name for name in SiteRange.__dataclass_fields__ if name not in counts]
            return SiteRange(**counts, **dict.fromkeys(nothing))  # type: ignore[arg-type]
        minimum, maximum = float(self._minimum.min()), float(self._maximum.max())
        abs_max = max(-minimum, maximum)
        token_median, token_p99 = np.nanquantile(self.token_abs_max.astype(np.float64), (0.5, 0.99)).tolist()
        moments = pooled(self._finite[None], self._power_sums[None], self._pivot[None])
        mean, second, fourth = (float(moment[0]) for moment in moments[1:])
        rms = math.sqrt(mean**2 + second)
        kurtosis, inf_norm = np.concatenate(self._kurtosis), np.concatenate(self._inf_norm)
        median, p99, p99_9, p99_99 = magnitude_quantiles(self._histogram, (0.5, 0.99, 0.999, 0.9999), abs_max).tolist()
        return SiteRange(
            **counts,
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
            kurtosis_per_sequence=float(kurtosis.mean()) if kurtosis.size else None,
            inf_norm_per_sequence=float(inf_norm.mean(dtype=np.float64)),
            token_abs_max_p50=token_median,
            token_abs_max_p99=token_p99,
        )

    def channels(self) -> ChannelRanges:
        """Return the figures of every channel over everything added so far."""
        self._settle()
        seen = self._finite > 0
        n = np.where(seen, self._finite, 1)
        offset = self._power_sums[0] / n
        mean = (0.0 if self._pivot is None else self._pivot) + offset
        variance = np.maximum(self._power_sums[1] / n - offset**2, 0.0)
        nan = np.float32(np.nan)
        return ChannelRanges(
            min=np.where(seen, self._minimum, nan),
            max=np.where(seen, self._maximum, nan),
            abs_max=np.where(seen, np.maximum(-self._minimum, self._maximum), nan),
            mean=np.where(seen, mean, np.nan),
            variance=np.where(seen, variance, np.nan),
            over_threshold=self._over.copy(),
        )


def _kurtosis(sequences: Moments) -> F64:
    """Return n^-1 sum (x - m)^4 / (s^4 + 1e-6) of every sequence, with the unbiased s (arXiv 2306.12929)."""
    unbiased = sequences.second * sequences.elements / np.maximum(sequences.elements - 1, 1)
    kurtosis: F64 = sequences.fourth / (unbiased**2 + _PER_SEQUENCE_EPSILON)
    return kurtosis
