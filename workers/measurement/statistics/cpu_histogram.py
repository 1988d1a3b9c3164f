"""Histograms of tensors in host memory, counted from the patterns of their values.

T tokens, d channels
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from workers.measurement.statistics.compiling import compiled
from workers.measurement.statistics.patterns import FLOAT16, MAGNITUDE, decode, patterns
from workers.measurement.statistics.reduction import BINS, SHIFT, SPECIAL

U32 = npt.NDArray[np.uint32]

_BIN_SHIFTS = (SHIFT, SHIFT - 16)
"""Bits below those that tell the bin in a pattern of float32 and of bfloat16."""
LANES = 2
"""Histograms that a thread fills in turn: where equal values follow one another, an increment need not wait for the
one before it."""


def histogram(x: torch.Tensor) -> torch.Tensor:
    """Return how many values of tokens [T, d] each bin holds, [16384]; see `backends.histogram`."""
    lanes = empty_lanes(1)
    _count(*patterns(x), *x.shape, lanes[0])
    return total(lanes)


def magnitudes_in_bin(x: torch.Tensor, number: int) -> torch.Tensor:
    """Return the magnitudes of tokens [T, d] that lie in a bin; see `backends.magnitudes_in_bin`."""
    found = np.empty(x.numel(), np.uint32)
    count = _collect(*patterns(x), *x.shape, np.uint32(number), found)
    return torch.from_numpy(found[:count].view(np.float32).copy())


def empty_lanes(threads: int) -> U32:
    """Return what threads count in, [threads, 2, 16384]."""
    return np.zeros((threads, LANES, BINS), np.uint32)


def total(lanes: U32) -> torch.Tensor:
    """Return what the threads counted together, [16384], int64, without the bins of NaN and infinity."""
    counts = _total(lanes.reshape(-1, BINS))
    for special in SPECIAL:
        counts[special] = 0
    return torch.from_numpy(counts)


@compiled()
def _total(lanes: Any) -> Any:  # pragma: no cover - compiled
    counts = np.zeros(lanes.shape[1], np.int64)
    for lane in lanes:
        for number in range(len(counts)):
            counts[number] += lane[number]
    return counts


@compiled()
def _count(
    flat: Any, kind: Any, strides: Any, tokens: Any, channels: Any, lanes: Any
) -> None:  # pragma: no cover - compiled
    bits = np.empty(channels, np.uint32)
    for t in range(tokens):
        row = flat[t * strides[0] : t * strides[0] + channels]
        if kind == FLOAT16:
            decode(row, kind, bits)
            _count_bins(bits, SHIFT, lanes)
        else:
            _count_bins(row, _BIN_SHIFTS[kind], lanes)


@compiled()
def _collect(
    flat: Any, kind: Any, strides: Any, tokens: Any, channels: Any, number: Any, out: Any
) -> Any:  # pragma: no cover - compiled
    bits, shift, count = np.empty(channels, np.uint32), np.uint32(SHIFT), 0
    for t in range(tokens):
        decode(flat[t * strides[0] : t * strides[0] + channels], kind, bits)
        for c in range(channels):
            magnitude = bits[c] & MAGNITUDE
            if magnitude >> shift == number:
                out[count] = magnitude
                count += 1
    return count


@compiled()
def _count_bins(row: Any, shift: Any, lanes: Any) -> None:  # pragma: no cover - compiled
    """Count the patterns of a row in a thread's lanes [2, 16384]; those above `shift` bits are the bin."""
    lane0, lane1, one, shift = lanes[0], lanes[1], np.uint32(1), np.uint32(shift)
    even = row.shape[0] // 4 * 4
    for c in range(0, even, 4):
        lane0[row[c] >> shift] += one
        lane1[row[c + 1] >> shift] += one
        lane0[row[c + 2] >> shift] += one
        lane1[row[c + 3] >> shift] += one
    for c in range(even, row.shape[0]):
        lane0[row[c] >> shift] += one
