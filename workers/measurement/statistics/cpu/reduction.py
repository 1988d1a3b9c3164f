"""Reduces tensors in host memory: each element is fetched once, in its own dtype, by all cores.

Eight tokens at a time are looked through for values that are not finite, and then are in a cache when all figures are
taken of them at once, eight channels at a time (`columns`). float32 and bfloat16 are used where they lie; float16,
and what is not finite everywhere, has gaps between its tokens or does not fill eight by eight, is decoded into a
float32 scratch.

Every sequence is cut into ranges of tokens by its length alone, and their parts are added in order: no sum depends
on how many threads there are. Counts may be added in any order.

    N sequences of S tokens, d channels, R ranges of a sequence
"""

from typing import Any

import numpy as np
import torch

from workers.measurement.statistics.cpu.bit_patterns import (
    BFLOAT16,
    FLOAT16,
    INFINITY,
    MAGNITUDE,
    NAN,
    decode,
    patterns,
)
from workers.measurement.statistics.cpu.columns import COLUMNS, ROWS, add_columns
from workers.measurement.statistics.cpu.compiling import compiled
from workers.measurement.statistics.cpu.histogram import U32, empty_lanes, total
from workers.measurement.statistics.cpu.prefetch import prefetch
from workers.measurement.statistics.cpu.threads import split_range
from workers.measurement.statistics.reduction import FP16_MAX, Reduction

_RANGE_TOKENS = 256
_MOST_RANGES = 8
_FP16_MAX = np.float32(FP16_MAX)


def reduce(x: torch.Tensor, pivot: torch.Tensor, threshold: float) -> Reduction:
    """Reduce sequences [N, S, d] about pivots [N, d]; see `backends.reduce_sequences`."""
    sequences, tokens, channels = x.shape
    ranges = min(_MOST_RANGES, -(-tokens // _RANGE_TOKENS))
    width = -(-channels // COLUMNS) * COLUMNS
    minimum = np.full((sequences, ranges, width), np.inf, np.float32)
    maximum = np.full((sequences, ranges, width), -np.inf, np.float32)
    power_sums = np.zeros((sequences, ranges, 4, width))
    over = np.zeros((sequences, ranges, width), np.int32)
    missing = np.zeros((sequences, ranges, channels), np.int32)
    over_fp16 = np.zeros((sequences, ranges), np.int64)
    parts = (minimum, maximum, power_sums, over, missing, over_fp16)
    token_abs_max = np.empty((sequences, tokens), np.float32)
    lanes: dict[int, U32] = {}
    about = np.pad(pivot.numpy(), ((0, 0), (0, width - channels))) if width > channels else pivot.numpy()
    operands = (*patterns(x), about, np.float32(threshold))

    def work(thread: int, first: int, last: int) -> None:
        if thread not in lanes:
            lanes[thread] = empty_lanes()
        _reduce(first, last, *operands, *parts, token_abs_max, lanes[thread])

    split_range(sequences * ranges, work)
    _merge(*parts)
    merged = [np.ascontiguousarray(part[:, 0][..., :channels]) for part in parts[:-1]] + [over_fp16[:, 0]]
    return Reduction._make([pivot, *map(torch.from_numpy, (*merged, token_abs_max)), total(*lanes.values())])


@compiled()
def _reduce(
    begin: Any,
    end: Any,
    flat: Any,
    kind: Any,
    strides: Any,
    pivot: Any,
    threshold: Any,
    minimum: Any,
    maximum: Any,
    sums: Any,
    over: Any,
    missing: Any,
    over_fp16: Any,
    peaks: Any,
    lanes: Any,
) -> None:  # pragma: no cover - compiled
    """Reduce the ranges begin..end of all sequences."""
    ranges, tokens = over_fp16.shape[1], peaks.shape[1]
    for unit in range(begin, end):
        n, r = unit // ranges, unit % ranges
        first, last = tokens * r // ranges, tokens * (r + 1) // ranges
        over_fp16[n, r] = _reduce_range(
            flat,
            kind,
            n * strides[0] + first * strides[1],
            strides[1],
            pivot[n],
            threshold,
            minimum[n, r],
            maximum[n, r],
            sums[n, r],
            over[n, r],
            missing[n, r],
            peaks[n, first:last],
            lanes,
        )


def _merge(minimum: Any, maximum: Any, sums: Any, over: Any, missing: Any, over_fp16: Any) -> None:
    """Add the later ranges of every sequence to its first, in order."""
    for r in range(1, over_fp16.shape[1]):
        np.minimum(minimum[:, 0], minimum[:, r], out=minimum[:, 0])
        np.maximum(maximum[:, 0], maximum[:, r], out=maximum[:, 0])
        for part in (sums, over, missing, over_fp16):
            part[:, 0] += part[:, r]


@compiled()
def _reduce_range(
    flat: Any,
    kind: Any,
    start: Any,
    stride: Any,
    pivot: Any,
    threshold: Any,
    low: Any,
    high: Any,
    sums: Any,
    over: Any,
    missing: Any,
    peaks: Any,
    lanes: Any,
) -> Any:  # pragma: no cover - compiled
    """Reduce the tokens [len(peaks), d] that begin at `start`; return how many values are over fp16's largest."""
    tokens, channels = len(peaks), len(missing)
    scratch = np.full((ROWS, len(pivot)), NAN, np.uint32)
    magnitudes = peaks.view(np.uint32)
    whole_vectors = kind != FLOAT16 and stride == channels == len(pivot)
    over_fp16 = 0
    for t in range(0, tokens, ROWS):
        rows = magnitudes[t : t + ROWS]
        first = start + t * stride
        ahead = first + ROWS * stride
        # Eight whole rows that are all finite are used where they lie; this also finds each token's largest magnitude.
        in_place = whole_vectors and len(rows) == ROWS
        if in_place:
            there = flat[first : first + ROWS * channels].reshape(ROWS, channels)
            in_place = _all_finite(there, kind, rows)
        if in_place:
            _add(flat, ahead, stride, there, pivot, threshold, low, high, over, sums, lanes)
        else:
            # Everything else is decoded into the scratch, with NaN, which changes no figure, for what is not there.
            _load(flat, kind, first, stride, scratch, missing, rows)
            _add(flat, ahead, stride, scratch, pivot, threshold, low, high, over, sums, lanes)
        # Values over fp16's largest are rare: only a token whose peak is over it is looked through for them.
        for k in range(len(rows)):
            if peaks[t + k] > _FP16_MAX:
                row = first + k * stride
                decode(flat[row : row + channels], kind, scratch[k])
                over_fp16 += _count_over(scratch[k, :channels].view(np.float32))
    return over_fp16


@compiled()
def _add(
    flat: Any,
    ahead: Any,
    stride: Any,
    bits: Any,
    pivot: Any,
    threshold: Any,
    low: Any,
    high: Any,
    over: Any,
    sums: Any,
    lanes: Any,
) -> None:  # pragma: no cover - compiled
    """Add eight tokens, and ask meanwhile for those that begin at `ahead`."""
    for column in range(0, bits.shape[1], COLUMNS):
        for k in range(ROWS):
            prefetch(flat, ahead + k * stride + column)
        add_columns(bits, column, pivot, threshold, low, high, over, sums, lanes)


@compiled()
def _all_finite(bits: Any, kind: Any, peaks: Any) -> Any:  # pragma: no cover - compiled
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
def _load(
    flat: Any, kind: Any, first: Any, stride: Any, bits: Any, missing: Any, peaks: Any
) -> None:  # pragma: no cover - compiled
    """Decode as many rows as there are `peaks`, with NaN for all that is not finite; of the rest is NaN."""
    channels = len(missing)
    for k in range(ROWS):
        if k >= len(peaks):
            bits[k, :] = NAN
            continue
        row = first + k * stride
        peaks[k] = decode(flat[row : row + channels], kind, bits[k])
        if peaks[k] >= INFINITY:
            peaks[k] = _mark_missing(bits[k, :channels], missing)


@compiled()
def _mark_missing(bits: Any, missing: Any) -> Any:  # pragma: no cover - compiled
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
def _count_over(values: Any) -> Any:  # pragma: no cover - compiled
    """Return how many finite values of a row [d] are over fp16's largest."""
    count = 0
    for c in range(values.shape[0]):
        count += _FP16_MAX < abs(values[c]) < np.inf
    return count
