"""One read of a tensor gives everything that its range statistics need.

The figures of a site (extremes, moments, quantiles, counts) are many, but all follow from a few sums per channel,
one number per token, and one histogram of the values. A kernel collects them in a single pass over [N, S, d]
(`backends` picks it by device); whoever calls it merges the parts by addition.

The histogram needs no range: a value's bin is the top 14 bits of its float32 pattern (sign, exponent, five
bits of mantissa), so there are 32 bins per octave, of relative width 1/32 at the most, the same for every
tensor, and two histograms merge by addition.

    N sequences of S tokens, d channels
"""

import math
from collections.abc import Callable, Iterable
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]

Stream = Callable[[], Iterable[torch.Tensor]]
"""Gives hidden states of some tokens after others, [T, d] each, every time it is called."""

BINS = 1 << 14
SHIFT = 32 - 14
SPECIAL = (slice(255 * 32, 256 * 32), slice(511 * 32, 512 * 32))
"""The bins of NaN and infinity, of either sign."""
FP16_MAX = 65504.0
"""The largest finite fp16."""
FP16_INFINITE = 65520.0
"""The smallest magnitude that rounds to infinity in fp16: halfway from the largest one to the next power of two."""
SMALLEST = 2.0**-149
"""The smallest positive float32."""
PIVOT_TOKENS = 9
"""Tokens of a sequence that its pivot is taken from: few, and enough that one unusual token does not decide."""


Array = TypeVar("Array")
"""The type of a reduction's figures: tensors on a device, or arrays once they have come to the host."""


class Reduction(NamedTuple, Generic[Array]):
    """The figures that one pass over sequences [N, S, d] leaves.

    Values that are not finite count nowhere but in `missing`.
    """

    pivot: Array
    """[N, d], float32: what the power sums are taken about."""
    minimum: Array
    """[N, d], float32; +inf in a channel without a finite value."""
    maximum: Array
    """[N, d], float32; -inf in a channel without a finite value."""
    power_sums: Array
    """[N, 4, d], float64: the sums of v, v^2, v^3, v^4 over the tokens of each channel, where v = x - pivot."""
    over: Array
    """[N, d], int32: values with abs(x) at or over the threshold."""
    missing: Array
    """[N, d], int32: values that are not finite."""
    over_fp16: Array
    """[N], int64: values with abs(x) > 65504."""
    token_abs_max: Array
    """[N, S], float32: the largest magnitude of each token; NaN where a token has no finite value."""
    histogram: Array
    """[16384], int64: values of all sequences by the top 14 bits of their pattern."""


def pivot_tokens(tokens: int) -> list[int]:
    """Return the positions, spread evenly over a sequence, that its pivot is taken from."""
    return [(tokens - 1) * k // (PIVOT_TOKENS - 1) for k in range(PIVOT_TOKENS)]


def bin_edges() -> tuple[F32, F32]:
    """Return the smallest and the largest value of every bin, [16384] each, float32; NaN for the bins of NaN and inf.

    In a bin of negative values the smallest value is the one of largest magnitude.
    """
    index = np.arange(BINS, dtype=np.uint32)
    near = (index << np.uint32(SHIFT)).view(np.float32)
    far = ((index << np.uint32(SHIFT)) | np.uint32((1 << SHIFT) - 1)).view(np.float32)
    negative = index >= BINS // 2
    low, high = np.where(negative, far, near), np.where(negative, near, far)
    for special in SPECIAL:
        low[special] = high[special] = math.nan
    return low, high
