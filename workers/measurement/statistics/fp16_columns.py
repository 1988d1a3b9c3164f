"""Counts the input columns that bitsandbytes' int8 computes in 16 bits: abs(x) at or over the threshold in a call.

bitsandbytes casts the input to fp16 and compares there. A magnitude that is a little too small may be rounded up to
the threshold, and the threshold itself is rounded to fp16; so the comparison is with the smallest magnitude of the
input's own type whose fp16 value reaches it.

    N sequences of S tokens, d columns
"""

import functools
import math

import numpy as np
import torch

from workers.measurement.statistics.reduction import FP16_INFINITE, FP16_MAX, I32
from workers.measurement.statistics.transfers import HostCopies


def reaching(magnitude: float, dtype: torch.dtype) -> float:
    """Return the smallest value of a type that is `magnitude`, taken as float32, or more."""
    wide = np.float32(magnitude)
    if dtype == torch.float32 or not np.isfinite(wide):
        return float(wide)
    value = torch.tensor(wide).to(dtype)
    if float(value) < wide:  # it was rounded down; the patterns of positive values ascend as they do
        value = (value.view(torch.int16) + 1).view(dtype)
    return float(value)


def reaching_in_fp16(threshold: float, dtype: torch.dtype) -> float:
    """Return the smallest value of a type that bitsandbytes takes for one at or over the threshold; 0 for all."""
    with np.errstate(over="ignore"):
        limit = np.float16(threshold)
    if limit == 0:
        return 0.0
    if limit > FP16_MAX:
        return reaching(FP16_INFINITE, dtype)
    below = np.nextafter(limit, np.float16(0))
    middle = np.float32((float(below) + float(limit)) / 2)
    return reaching(float(middle if np.float16(middle) >= limit else np.nextafter(middle, np.float32(np.inf))), dtype)


class Fp16Columns:
    """Accumulates, at one input and for one threshold, the shares of the columns that are computed in 16 bits."""

    def __init__(self, copies: HostCopies | None = None) -> None:
        """Begin with nothing; `copies` brings counts from a device, together with others."""
        self._copies = copies or HostCopies()
        self._sequences = self._values = self._reaching = 0
        self._shares = 0.0

    def add(self, over: torch.Tensor, tokens: int) -> None:
        """Add sequences of S `tokens`; over: [N, d], values of every column that reach the threshold."""
        self._copies.add((over,), functools.partial(self._merge, tokens))

    def _merge(self, tokens: int, over: I32) -> None:
        self._sequences += len(over)
        self._values += over.size * tokens
        self._reaching += int(over.sum(dtype=np.int64))
        self._shares += float((over > 0).mean(axis=1).sum())

    @property
    def prefill(self) -> float:
        """Share of the columns when a call is one sequence, mean over calls; NaN of nothing."""
        self._copies.finish()
        return self._shares / self._sequences if self._sequences else math.nan

    @property
    def decode(self) -> float:
        """Share of the columns when a call is one token, mean over calls; NaN of nothing."""
        self._copies.finish()
        return self._reaching / self._values if self._values else math.nan
