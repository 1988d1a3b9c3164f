"""The reduction of tensors in host memory: each element is fetched once, in its own dtype, by all cores.

Eight tokens at a time, simple loops over the channels, each of which the compiler turns into vector instructions. First
comes the histogram, by itself (its scattered increments would keep the rest from being vectorised): it is slow enough
for the memory to keep up with it, and the rest then finds the tokens in a cache. Then extremes and counts, then the
power sums, which thus are loaded and stored once for eight tokens. float32 is used where it lies; what is narrower, or
not finite everywhere, or has gaps between its tokens, is decoded into a float32 scratch.

Every sequence is cut into ranges of tokens by its length alone, and their parts are added in order: no sum depends
on how many threads there are. Counts may be added in any order.

    N sequences of S tokens, d channels, R ranges of a sequence
"""

from typing import Any

import numpy as np
import torch

from workers.measurement.statistics.compiling import compiled
from workers.measurement.statistics.cpu_histogram import BIN_SHIFTS, count_bins, empty_lanes, total
from workers.measurement.statistics.patterns import FLOAT16, FLOAT32, INFINITY, MAGNITUDE, NAN, decode, patterns
from workers.measurement.statistics.reduction import FP16_MAX, SHIFT, Reduction
from workers.measurement.statistics.threads import most_threads, share_out

_RANGE_TOKENS = 256
_MOST_RANGES = 8
_ROWS = 8
"""Tokens that are taken together."""
_FP16_MAX = np.float32(FP16_MAX)


def reduce(x: torch.Tensor, pivot: torch.Tensor, threshold: float) -> Reduction:
    """Reduce sequences [N, S, d] about pivots [N, d]; see `backends.reduce_sequences`."""
    sequences, tokens, channels = x.shape
    ranges = min(_MOST_RANGES, -(-tokens // _RANGE_TOKENS))
    minimum = np.full((sequences, ranges, channels), np.inf, np.float32)
    maximum = np.full((sequences, ranges, channels), -np.inf, np.float32)
    power_sums = np.zeros((sequences, ranges, 4, channels))
    counts = np.zeros((2, sequences, ranges, channels), np.int32)
    over_fp16 = np.zeros((sequences, ranges), np.int64)
    parts = (minimum, maximum, power_sums, counts[0], counts[1], over_fp16)
    token_abs_max = np.empty((sequences, tokens), np.float32)
    lanes = empty_lanes(most_threads())
    given = (*patterns(x), pivot.numpy(), np.float32(threshold))

    def work(thread: int, first: int, last: int) -> None:
        _reduce(first, last, *given, *parts, token_abs_max, lanes[thread])

    share_out(sequences * ranges, work)
    _merge(*parts)
    merged = (part[:, 0] for part in parts)
    return Reduction._make([pivot, *map(torch.from_numpy, (*merged, token_abs_max)), total(lanes)])


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
    tokens, channels = len(peaks), len(pivot)
    scratch = np.empty((_ROWS, channels), np.uint32)
    magnitudes = peaks.view(np.uint32)
    over_fp16 = 0
    for t in range(0, tokens, _ROWS):
        rows = magnitudes[t : t + _ROWS]
        first = start + t * stride
        if kind != FLOAT16:
            for k in range(len(rows)):
                row = first + k * stride
                count_bins(flat[row : row + channels], BIN_SHIFTS[kind], lanes)
        bits, whole = scratch, False
        if kind == FLOAT32 and stride == channels and len(rows) == _ROWS:
            there = flat.view(np.uint32)[first : first + _ROWS * channels].reshape(_ROWS, channels)
            if _all_finite(there, rows):
                bits, whole = there, True
        if not whole:
            whole = _load(flat, kind, first, stride, scratch, missing, rows)
        if kind == FLOAT16:
            for k in range(len(rows)):
                count_bins(scratch[k], SHIFT, lanes)
        values = bits.view(np.float32)
        for k in range(len(rows)):
            if peaks[t + k] > _FP16_MAX:
                over_fp16 += _count_over(values[k], _FP16_MAX)
        _extremes(values, threshold, low, high, over)
        if not whole:
            _fill(values, pivot)
        _powers(values, pivot, sums)
    return over_fp16


@compiled()
def _all_finite(bits: Any, peaks: Any) -> Any:  # pragma: no cover - compiled
    """Put the largest pattern of every row, sign aside, into `peaks`; return whether all are finite."""
    most = np.uint32(0)
    for k in range(_ROWS):
        peak = np.uint32(0)
        for c in range(bits.shape[1]):
            peak = max(peak, np.uint32(bits[k, c] & MAGNITUDE))
        peaks[k] = peak
        most = max(most, peak)
    return most < INFINITY


@compiled()
def _load(
    flat: Any, kind: Any, first: Any, stride: Any, bits: Any, missing: Any, peaks: Any
) -> Any:  # pragma: no cover - compiled
    """Decode as many rows as there are `peaks`; return whether `bits` is now full of finite values."""
    whole = len(peaks) == _ROWS
    for k in range(_ROWS):
        if k >= len(peaks):
            bits[k, :] = NAN
            continue
        row = first + k * stride
        peak = decode(flat[row : row + bits.shape[1]], kind, bits[k])
        if peak >= INFINITY:
            peak = _mark_missing(bits[k], missing)
            whole = False
        peaks[k] = peak
    return whole


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
def _count_over(values: Any, limit: Any) -> Any:  # pragma: no cover - compiled
    count = 0
    for c in range(values.shape[0]):
        count += abs(values[c]) > limit
    return count


@compiled()
def _extremes(values: Any, threshold: Any, low: Any, high: Any, over: Any) -> None:  # pragma: no cover - compiled
    for c in range(values.shape[1]):
        least, most, count = low[c], high[c], np.int32(0)
        for k in range(_ROWS):
            value = values[k, c]
            least = value if value < least else least  # not if it is NaN
            most = value if value > most else most
            count += np.int32(abs(value) >= threshold)
        low[c], high[c] = least, most
        over[c] += count


@compiled()
def _fill(values: Any, pivot: Any) -> None:  # pragma: no cover - compiled
    """Put the pivot, whose distance from itself adds nothing to any power sum, where there is no number."""
    for k in range(values.shape[0]):
        for c in range(values.shape[1]):
            if values[k, c] != values[k, c]:
                values[k, c] = pivot[c]


@compiled(fastmath={"contract"})
def _powers(values: Any, pivot: Any, sums: Any) -> None:  # pragma: no cover - compiled
    for c in range(values.shape[1]):
        p = np.float64(pivot[c])
        s1, s2, s3, s4 = sums[0, c], sums[1, c], sums[2, c], sums[3, c]
        for k in range(_ROWS):
            v = np.float64(values[k, c]) - p
            square = v * v
            s1 += v
            s2 += square
            s3 += square * v
            s4 += square * square
        sums[0, c], sums[1, c], sums[2, c], sums[3, c] = s1, s2, s3, s4
