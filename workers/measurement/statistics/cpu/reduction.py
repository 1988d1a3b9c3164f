"""Reduces tensors in host memory: each element is fetched once, in its own dtype, by all cores.

Eight tokens at a time are looked through for values that are not finite, and then are in a cache when all figures are
taken of them at once, eight channels at a time (`columns`). float32 and bfloat16 are used where they lie; float16,
and what is not finite everywhere, has gaps between its tokens or does not fill eight by eight, is decoded into a
float32 scratch.

Every sequence is cut into ranges of tokens by its length alone, and their parts are added in order: no sum depends
on how many threads there are. Counts may be added in any order.

    N sequences of S tokens, d channels, R ranges of a sequence
"""

from typing import NamedTuple

import numpy as np
import torch

from workers.measurement.statistics.cpu.bit_patterns import (
    BFLOAT16,
    FLOAT16,
    INFINITY,
    MAGNITUDE,
    NAN,
    Patterns,
    decode,
    patterns,
)
from workers.measurement.statistics.cpu.columns import COLUMNS, ROWS, Columns, add_columns
from workers.measurement.statistics.cpu.compiling import compiled
from workers.measurement.statistics.cpu.histogram import U32, Row, empty_lanes, total
from workers.measurement.statistics.cpu.threads import split_range
from workers.measurement.statistics.reduction import F32, F64, FP16_MAX, I32, I64, Reduction

_RANGE_TOKENS = 256
_MAX_RANGES = 8
_FP16_MAX = np.float32(FP16_MAX)


class _Ranges(NamedTuple):
    """The figures of every range of every sequence; channels are padded to a multiple of eight, w."""

    minimum: F32
    """[N, R, w]."""
    maximum: F32
    """[N, R, w]."""
    power_sums: F64
    """[N, R, 4, w]."""
    over: I32
    """[N, R, w]."""
    missing: I32
    """[N, R, d]."""
    over_fp16: I64
    """[N, R]."""
    token_abs_max: F32
    """[N, S]."""


def reduce(x: torch.Tensor, pivot: torch.Tensor, threshold: float) -> Reduction[torch.Tensor]:
    """Reduce sequences [N, S, d] about pivots [N, d]; see `backends.reduce_sequences`."""
    sequences, tokens, channels = x.shape
    count = min(_MAX_RANGES, -(-tokens // _RANGE_TOKENS))
    width = -(-channels // COLUMNS) * COLUMNS
    ranges = _Ranges(
        minimum=np.full((sequences, count, width), np.inf, np.float32),
        maximum=np.full((sequences, count, width), -np.inf, np.float32),
        power_sums=np.zeros((sequences, count, 4, width)),
        over=np.zeros((sequences, count, width), np.int32),
        missing=np.zeros((sequences, count, channels), np.int32),
        over_fp16=np.zeros((sequences, count), np.int64),
        token_abs_max=np.empty((sequences, tokens), np.float32),
    )
    lanes: dict[int, U32] = {}
    padded = np.pad(pivot.numpy(), ((0, 0), (0, width - channels))) if width > channels else pivot.numpy()
    encoded = patterns(x)

    def work(thread: int, first: int, last: int) -> None:
        if thread not in lanes:
            lanes[thread] = empty_lanes()
        _reduce(first, last, encoded, padded, np.float32(threshold), ranges, lanes[thread])

    split_range(sequences * count, work)
    _merge(ranges)
    figures = (ranges.minimum, ranges.maximum, ranges.power_sums, ranges.over, ranges.missing)
    merged = [np.ascontiguousarray(figure[:, 0][..., :channels]) for figure in figures]
    of_sequences = map(torch.from_numpy, (*merged, ranges.over_fp16[:, 0], ranges.token_abs_max))
    return Reduction._make([pivot, *of_sequences, total(*lanes.values())])


@compiled()
def _reduce(
    begin: int, end: int, x: Patterns, pivot: F32, threshold: np.float32, ranges: _Ranges, lanes: U32
) -> None:  # pragma: no cover - compiled
    """Reduce the ranges begin..end of all sequences; pivot: [N, w], padded as they are."""
    count, tokens = ranges.over_fp16.shape[1], ranges.token_abs_max.shape[1]
    for unit in range(begin, end):
        # Where the range's tokens lie, and its place in the arrays.
        n, r = unit // count, unit % count
        first, last = tokens * r // count, tokens * (r + 1) // count
        columns = Columns(
            pivot[n],
            threshold,
            ranges.minimum[n, r],
            ranges.maximum[n, r],
            ranges.power_sums[n, r],
            ranges.over[n, r],
            lanes,
        )
        start = n * x.strides[0] + first * x.strides[1]
        peaks = ranges.token_abs_max[n, first:last]
        ranges.over_fp16[n, r] = _reduce_range(x, start, columns, ranges.missing[n, r], peaks)


def _merge(ranges: _Ranges) -> None:
    """Add the later ranges of every sequence to its first, in order."""
    for r in range(1, ranges.over_fp16.shape[1]):
        np.minimum(ranges.minimum[:, 0], ranges.minimum[:, r], out=ranges.minimum[:, 0])
        np.maximum(ranges.maximum[:, 0], ranges.maximum[:, r], out=ranges.maximum[:, 0])
        for sums in (ranges.power_sums, ranges.over, ranges.missing, ranges.over_fp16):
            sums[:, 0] += sums[:, r]


@compiled()
def _reduce_range(
    x: Patterns, start: int, columns: Columns, missing: I32, peaks: F32
) -> int:  # pragma: no cover - compiled
    """Reduce the tokens [len(peaks), d] that begin at `start`; return how many values are over fp16's largest.

    missing [d] is added to; peaks gets every token's largest magnitude.
    """
    tokens, channels, stride = len(peaks), len(missing), x.strides[1]
    scratch = np.full((ROWS, len(columns.pivot)), NAN, np.uint32)
    magnitudes = peaks.view(np.uint32)
    whole_vectors = x.kind != FLOAT16 and stride == channels == len(columns.pivot)
    over_fp16 = 0
    for t in range(0, tokens, ROWS):
        rows = magnitudes[t : t + ROWS]
        first = start + t * stride
        # Eight whole rows that are all finite are used where they lie; this also finds each token's largest magnitude.
        in_place = whole_vectors and len(rows) == ROWS
        if in_place:
            there = x.flat[first : first + ROWS * channels].reshape(ROWS, channels)
            in_place = _all_finite(there, x.kind, rows)
        if in_place:
            _add(there, columns)
        else:
            # Everything else is decoded into the scratch, with NaN, which changes no figure, for what is not there.
            _load(x, first, scratch, missing, rows)
            _add(scratch, columns)
        # Values over fp16's largest are rare: only a token whose peak is over it is looked through for them.
        for k in range(len(rows)):
            if peaks[t + k] > _FP16_MAX:
                row = first + k * stride
                decode(x.flat[row : row + channels], x.kind, scratch[k])
                over_fp16 += _count_over(scratch[k, :channels].view(np.float32))
    return over_fp16


@compiled()
def _add(bits: Row, columns: Columns) -> None:  # pragma: no cover - compiled
    """Add eight tokens [8, w]."""
    for column in range(0, bits.shape[1], COLUMNS):
        add_columns(bits, column, columns)


@compiled()
def _all_finite(bits: Row, kind: int, peaks: U32) -> np.bool_:  # pragma: no cover - compiled
    """Put the largest float32 pattern of every row, sign aside, into `peaks`; return whether all are finite."""
    most = np.uint32(0)
    for k in range(ROWS):
        # The maximum of the patterns in their own width: twice as many to a vector in bfloat16.
        if kind == BFLOAT16:
            half = np.uint16(0)
            for c in range(bits.shape[1]):
                half = max(half, np.uint16(bits[k, c] & np.uint16(0x7FFF)))
            peak = np.uint32(np.uint32(half) << np.uint32(16))
        else:
            peak = np.uint32(0)
            for c in range(bits.shape[1]):
                peak = max(peak, np.uint32(bits[k, c] & MAGNITUDE))
        peaks[k] = peak
        most = max(most, peak)
    return most < INFINITY


@compiled()
def _load(x: Patterns, first: int, bits: U32, missing: I32, peaks: U32) -> None:  # pragma: no cover - compiled
    """Decode as many rows as there are `peaks` into bits [8, w], NaN for what is not finite; the rest becomes NaN.

    peaks gets the largest finite pattern of every row, sign aside.
    """
    channels = len(missing)
    for k in range(ROWS):
        # Past the last token there is nothing to decode.
        if k >= len(peaks):
            bits[k, :] = NAN
            continue
        # What is not finite shows in the row's largest pattern; only then are its values looked at one by one.
        row = first + k * x.strides[1]
        peaks[k] = decode(x.flat[row : row + channels], x.kind, bits[k])
        if peaks[k] >= INFINITY:
            peaks[k] = _mark_missing(bits[k, :channels], missing)


@compiled()
def _mark_missing(bits: U32, missing: I32) -> np.uint32:  # pragma: no cover - compiled
    """Make all that is not finite one NaN, and count it; return the largest finite pattern, sign aside, or NaN's."""
    peak, count = np.uint32(0), 0
    for c in range(bits.shape[0]):
        magnitude = bits[c] & MAGNITUDE
        if magnitude >= INFINITY:
            bits[c] = NAN
            missing[c] += 1
            count += 1
        else:
            peak = max(peak, magnitude)
    return peak if count < bits.shape[0] else NAN


@compiled()
def _count_over(values: F32) -> int:  # pragma: no cover - compiled
    """Return how many finite values of a row [d] are over fp16's largest."""
    count = 0
    for c in range(values.shape[0]):
        count += _FP16_MAX < abs(values[c]) < np.inf
    return count
