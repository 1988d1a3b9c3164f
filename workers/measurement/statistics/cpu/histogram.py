"""Counts histograms of tensors in host memory from the patterns of their values.

T tokens, d channels
"""

import itertools
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from workers.measurement.statistics.cpu.bit_patterns import BFLOAT16, FLOAT16, MAGNITUDE, Patterns, decode, patterns
from workers.measurement.statistics.cpu.compiling import compiled
from workers.measurement.statistics.reduction import BINS, SHIFT, SPECIAL

U32 = npt.NDArray[np.uint32]
Row = npt.NDArray[Any]
"""Patterns of a token, uint16 or uint32, [d]."""

_BIN_SHIFTS = (SHIFT, SHIFT - 16)
"""Bits below those of the bin in a pattern of float32 and of bfloat16."""
LANES = 2
"""Histograms that a thread fills in turn: where equal values follow one another, an increment need not wait for the
one before it."""


class BinPatterns(NamedTuple):
    """How the patterns of a bin's magnitudes lie together, in the width of the patterns that are compared."""

    mask: np.uint16 | np.uint32
    """Hides the sign of a pattern."""
    width: np.uint16 | np.uint32
    """Patterns of one bin."""
    raised: int
    """By how many bits a float32's patterns are longer."""


def histogram(x: torch.Tensor) -> torch.Tensor:
    """Return how many values of tokens [T, d] each bin holds, [16384]; see `backends.histogram`."""
    lanes = empty_lanes()
    count(patterns(x), *x.shape, lanes)
    return total(lanes)


def magnitudes_in_bin(x: torch.Tensor, number: int) -> torch.Tensor:
    """Return the magnitudes of tokens [T, d] that lie in a bin of positive values, in no certain order; float32."""
    encoded = patterns(x)
    bins = bin_patterns(encoded.kind)
    held = np.empty(x.numel() + 1, type(bins.mask))
    size = collect(encoded, *x.shape, bins, number, held)
    magnitudes = held[:size].astype(np.uint32) << np.uint32(bins.raised)
    return torch.from_numpy(magnitudes.view(np.float32))


def bin_patterns(kind: int) -> BinPatterns:
    """Return the layout of bins in patterns of a kind; a float16 is decoded to float32 first."""
    pattern, raised = (np.uint16, 16) if kind == BFLOAT16 else (np.uint32, 0)
    return BinPatterns(pattern(int(MAGNITUDE) >> raised), pattern(1 << SHIFT >> raised), raised)


def empty_lanes() -> U32:
    """Return zeroed counters of a thread, [2, 16384]."""
    return np.zeros((LANES, BINS), np.uint32)


def total(*lanes: U32) -> torch.Tensor:
    """Return the sum of all threads' counters, [16384], int64, without the bins of NaN and infinity."""
    counts = np.zeros(BINS, np.int64)
    for lane in itertools.chain(*lanes):
        counts += lane
    for special in SPECIAL:
        counts[special] = 0
    return torch.from_numpy(counts)


@compiled()
def count(x: Patterns, tokens: int, channels: int, lanes: U32) -> None:  # pragma: no cover - compiled
    """Count tokens [T, d] in a thread's lanes [2, 16384]."""
    bits = np.empty(channels, np.uint32)
    for t in range(tokens):
        row = x.flat[t * x.strides[0] : t * x.strides[0] + channels]
        # A bin is the top bits of a float32 pattern, which a bfloat16 has too, but not a float16.
        if x.kind == FLOAT16:
            decode(row, x.kind, bits)
            _count_bins(bits, SHIFT, lanes)
        else:
            _count_bins(row, _BIN_SHIFTS[x.kind], lanes)


@compiled()
def collect(
    x: Patterns, tokens: int, channels: int, bins: BinPatterns, number: int, out: Row
) -> int:  # pragma: no cover - compiled
    """Put the magnitudes of tokens [T, d] that lie in a bin into `out`, [T * d + 1]; return how many they are.

    They are patterns, of float32 where those of the tokens are of float16.
    """
    first = np.uint64(number * bins.width)
    bits, held = np.empty(channels, np.uint32), 0
    for t in range(tokens):
        row = x.flat[t * x.strides[0] : t * x.strides[0] + channels]
        if x.kind == FLOAT16:
            decode(row, x.kind, bits)
            held += _collect_row(bits, bins.mask, bins.width, first, out[held:])
        else:
            held += _collect_row(row, bins.mask, bins.width, first, out[held:])
    return held


@compiled()
def _collect_row(row: Row, mask: int, width: int, first: np.uint64, out: Row) -> Any:  # pragma: no cover - compiled
    """Put the magnitudes of a row that lie in the bin from `first` on into `out`; return how many they are."""
    held = 0
    for c in range(row.shape[0]):
        magnitude = row[c] & mask
        out[held] = magnitude  # the next one takes its place if it is not in the bin: no branch has to be guessed
        held += int(np.uint64(np.uint64(magnitude) - first) < width)  # what is below wraps around
    return held


@compiled()
def _count_bins(row: Row, shift: int, lanes: U32) -> None:  # pragma: no cover - compiled
    """Count the patterns of a row in a thread's lanes [2, 16384]; those above `shift` bits are the bin."""
    lane0, lane1, one, bits = lanes[0], lanes[1], np.uint32(1), np.uint32(shift)
    # Two halves of the row go to two lanes, so that neighbors in one bin do not wait for each other.
    half = row.shape[0] // 2
    left, right = row[:half], row[half : 2 * half]
    for c in range(half):
        lane0[left[c] >> bits] += one
        lane1[right[c] >> bits] += one
    # The last value of a row of odd length.
    for value in row[2 * half :]:
        lane0[value >> bits] += one
