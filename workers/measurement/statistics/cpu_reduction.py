"""The reduction of tensors in host memory: each element is read once, in its own dtype, by all cores.

Four tokens at a time are decoded into a float32 scratch that stays in the first-level cache, and simple loops over
the channels, each of which the compiler turns into vector instructions, take it from there: the histogram by itself
(its scattered increments would keep the rest from being vectorised), then extremes and counts, then the power sums,
which thus are loaded and stored once for four tokens. Only a row that holds a NaN or an infinity is looked at again.

Every sequence is cut into ranges of tokens by its length alone, and their parts are added in order: no sum depends
on how many threads there are. Counts may be added in any order.

    N sequences of S tokens, d channels, R ranges of a sequence
"""

from typing import Any

import numpy as np
import torch

from workers.measurement.statistics.compiling import compiled
from workers.measurement.statistics.patterns import INFINITY, MAGNITUDE, NAN, decode, patterns
from workers.measurement.statistics.reduction import BINS, FP16_MAX, PIVOT_TOKENS, SHIFT, SPECIAL, Reduction
from workers.measurement.statistics.threads import most_threads, share_out

_RANGE_TOKENS = 256
_MOST_RANGES = 8
_LANES = 2
"""Histograms that a thread fills in turn: where equal values follow one another, an increment need not wait for the
one before it."""
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
    lanes = np.zeros((most_threads(), _LANES, BINS), np.uint32)
    given = (*patterns(x), pivot.numpy(), np.float32(threshold))

    def work(thread: int, first: int, last: int) -> None:
        _reduce(first, last, *given, *parts, token_abs_max, lanes[thread])

    share_out(sequences * ranges, work)
    _merge(*parts)
    histogram = lanes.sum(axis=(0, 1), dtype=np.int64)
    for special in SPECIAL:
        histogram[special] = 0
    merged = (part[:, 0] for part in parts)
    return Reduction(pivot, *map(torch.from_numpy, (*merged, token_abs_max, histogram)))


def typical(x: torch.Tensor) -> torch.Tensor:
    """Return a typical value of every channel of sequences [N, S, d], [N, d]; see `backends.typical`."""
    sequences, tokens, channels = x.shape
    pivot = np.empty((sequences, channels), np.float32)
    _typical(*patterns(x), tokens, pivot)
    return torch.from_numpy(pivot)


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
    over_fp16 = 0
    bits = np.empty((4, channels), np.uint32)
    values = bits.view(np.float32)
    v0, v1, v2, v3 = values[0], values[1], values[2], values[3]
    s1, s2, s3, s4 = sums[0], sums[1], sums[2], sums[3]
    lane0, lane1 = lanes[0], lanes[1]
    for t in range(0, tokens, 4):
        whole = True
        for k in range(4):
            if t + k >= tokens:
                bits[k, :] = NAN
                whole = False
                continue
            row = start + (t + k) * stride
            peak = decode(flat[row : row + channels], kind, bits[k])
            if peak >= INFINITY:
                peak = _mark_missing(bits[k], missing)
                whole = False
            peaks.view(np.uint32)[t + k] = peak
            if peaks[t + k] > _FP16_MAX:
                over_fp16 += _count_over(values[k], _FP16_MAX)
        for k in range(4):
            _count_bins(bits[k], lane0, lane1)
        _extremes(v0, v1, v2, v3, threshold, low, high, over)
        if not whole:
            _fill(values, pivot)
        _powers(v0, v1, v2, v3, pivot, s1, s2, s3, s4)
    return over_fp16


@compiled()
def _mark_missing(bits: Any, missing: Any) -> Any:  # pragma: no cover - compiled
    """Make all that is not finite one NaN, and count it; return the largest finite pattern, sign aside."""
    peak = np.uint32(0)
    for c in range(bits.shape[0]):
        magnitude = bits[c] & MAGNITUDE
        if magnitude >= INFINITY:
            bits[c] = NAN
            missing[c] += 1
        else:
            peak = max(peak, magnitude)
    return peak


@compiled()
def _count_over(values: Any, limit: Any) -> Any:  # pragma: no cover - compiled
    count = 0
    for c in range(values.shape[0]):
        count += abs(values[c]) > limit
    return count


@compiled()
def _count_bins(row: Any, lane0: Any, lane1: Any) -> None:  # pragma: no cover - compiled
    shift, one = np.uint32(SHIFT), np.uint32(1)
    even = row.shape[0] // 4 * 4
    for c in range(0, even, 4):
        lane0[row[c] >> shift] += one
        lane1[row[c + 1] >> shift] += one
        lane0[row[c + 2] >> shift] += one
        lane1[row[c + 3] >> shift] += one
    for c in range(even, row.shape[0]):
        lane0[row[c] >> shift] += one


@compiled()
def _lower(a: Any, b: Any) -> Any:  # pragma: no cover - compiled
    """Return the smaller; a where b is NaN."""
    return b if b < a else a


@compiled()
def _higher(a: Any, b: Any) -> Any:  # pragma: no cover - compiled
    """Return the larger; a where b is NaN."""
    return b if b > a else a


@compiled()
def _extremes(
    v0: Any, v1: Any, v2: Any, v3: Any, threshold: Any, low: Any, high: Any, over: Any
) -> None:  # pragma: no cover - compiled
    for c in range(v0.shape[0]):
        low[c] = _lower(_lower(_lower(_lower(low[c], v0[c]), v1[c]), v2[c]), v3[c])
        high[c] = _higher(_higher(_higher(_higher(high[c], v0[c]), v1[c]), v2[c]), v3[c])
        over[c] += (
            np.int32(abs(v0[c]) >= threshold)
            + np.int32(abs(v1[c]) >= threshold)
            + np.int32(abs(v2[c]) >= threshold)
            + np.int32(abs(v3[c]) >= threshold)
        )


@compiled()
def _fill(values: Any, pivot: Any) -> None:  # pragma: no cover - compiled
    """Put the pivot, whose distance from itself adds nothing to any power sum, where there is no number."""
    for k in range(values.shape[0]):
        for c in range(values.shape[1]):
            if values[k, c] != values[k, c]:
                values[k, c] = pivot[c]


@compiled(fastmath={"contract"})
def _powers(
    v0: Any, v1: Any, v2: Any, v3: Any, pivot: Any, s1: Any, s2: Any, s3: Any, s4: Any
) -> None:  # pragma: no cover - compiled
    for c in range(v0.shape[0]):
        p = np.float64(pivot[c])
        w, x, y, z = np.float64(v0[c]) - p, np.float64(v1[c]) - p, np.float64(v2[c]) - p, np.float64(v3[c]) - p
        w2, x2, y2, z2 = w * w, x * x, y * y, z * z
        s1[c] += (w + x) + (y + z)
        s2[c] += (w2 + x2) + (y2 + z2)
        s3[c] = s3[c] + w2 * w + x2 * x + y2 * y + z2 * z
        s4[c] = s4[c] + w2 * w2 + x2 * x2 + y2 * y2 + z2 * z2


@compiled()
def _typical(flat: Any, kind: Any, strides: Any, tokens: Any, pivot: Any) -> None:  # pragma: no cover - compiled
    sequences, channels = pivot.shape
    bits = np.empty((PIVOT_TOKENS, channels), np.uint32)
    v = bits.view(np.float32)
    for n in range(sequences):
        for k in range(PIVOT_TOKENS):
            row = n * strides[0] + (tokens - 1) * k // (PIVOT_TOKENS - 1) * strides[1]
            if decode(flat[row : row + channels], kind, bits[k]) >= INFINITY:
                for c in range(channels):
                    if bits[k, c] & MAGNITUDE >= INFINITY:
                        bits[k, c] = 0
        out = pivot[n]
        for c in range(channels):
            a = _middle(v[0, c], v[3, c], v[6, c])
            b = _middle(v[1, c], v[4, c], v[7, c])
            out[c] = _middle(a, b, _middle(v[2, c], v[5, c], v[8, c]))


@compiled()
def _middle(a: Any, b: Any, c: Any) -> Any:  # pragma: no cover - compiled
    return _higher(_lower(a, b), _lower(_higher(a, b), c))
