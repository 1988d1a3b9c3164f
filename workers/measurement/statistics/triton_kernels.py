"""The reduction and the token products on CUDA: each element is read once, and nothing leaves the device.

State: checked against `plain` in Triton's interpreter; never yet run on a GPU. On a machine that
has one, `python tests/benchmarks/kernel_speed.py --check-cuda` compares them.

A program reduces a block of channels over a range of tokens, so sums need no atomic operation and are the same
every time; the largest magnitude of a token and the histogram gather integers, whose order does not matter.

    N sequences of S tokens, d channels, R ranges of a sequence; T tokens
"""

import torch
import triton
import triton.language as tl

from workers.measurement.statistics.reduction import BINS, FP16_MAX, SHIFT, SPECIAL, Reduction

_RANGE_TOKENS = 128
_MOST_RANGES = 16
_TOKENS = 8
_CHANNELS = 256
"""Tokens and channels that a program reads at a time."""
_COPIES = 64
"""Histograms that programs fill in turn, for fewer collisions."""
_PRODUCT_CHANNELS = 1024


def reduce(x: torch.Tensor, pivot: torch.Tensor, threshold: float) -> Reduction:
    """Reduce sequences [N, S, d] about pivots [N, d]; see `backends.reduce_sequences`."""
    x = _rows(x)
    sequences, tokens, channels = x.shape
    ranges = min(_MOST_RANGES, -(-tokens // _RANGE_TOKENS))
    extremes = x.new_empty((2, sequences, ranges, channels), dtype=torch.float32)
    sums = x.new_empty((sequences, ranges, 4, channels), dtype=torch.float64)
    counts = x.new_empty((2, sequences, ranges, channels), dtype=torch.int32)
    over_fp16 = x.new_zeros(sequences, dtype=torch.int64)
    peaks = x.new_full((sequences, tokens), -1, dtype=torch.int32)
    histograms = x.new_zeros((_COPIES, BINS), dtype=torch.int32)
    _reduce[(triton.cdiv(channels, _CHANNELS), sequences * ranges)](
        x,
        pivot.contiguous(),
        extremes[0],
        extremes[1],
        sums,
        counts[0],
        counts[1],
        over_fp16,
        peaks,
        histograms,
        tokens,
        channels,
        ranges,
        x.stride(0),
        x.stride(1),
        float(threshold),
        TOKENS=_TOKENS,
        CHANNELS=_CHANNELS,
        COPIES=_COPIES,
        BINS=BINS,
        SHIFT=SHIFT,
        FP16_MAX=FP16_MAX,
    )
    histogram = histograms.sum(dim=0, dtype=torch.int64)
    for special in SPECIAL:
        histogram[special] = 0
    return Reduction(
        pivot=pivot,
        minimum=extremes[0].amin(dim=1),
        maximum=extremes[1].amax(dim=1),
        power_sums=sums.sum(dim=1),
        over=counts[0].sum(dim=1, dtype=torch.int32),
        missing=counts[1].sum(dim=1, dtype=torch.int32),
        over_fp16=over_fp16,
        token_abs_max=torch.where(peaks < 0, torch.nan, peaks.view(torch.float32)),
        histogram=histogram,
    )


def token_products(y: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """Return the five products of every token of y and q [T, d], [5, T]; see `backends.token_products`."""
    y, q = _rows(y), _rows(q)
    tokens, channels = y.shape
    out = y.new_empty((5, tokens), dtype=torch.float64)
    _products[(tokens,)](y, q, out, tokens, channels, y.stride(0), q.stride(0), CHANNELS=_PRODUCT_CHANNELS)
    return out


def _rows(x: torch.Tensor) -> torch.Tensor:
    x = x.detach()
    return x if x.stride(-1) == 1 else x.contiguous()


@triton.jit
def _float32(v: tl.tensor) -> tl.tensor:  # pragma: no cover - runs on the device
    """Widen v to the bit: a bfloat16 by its pattern, so that no conversion can flush a subnormal."""
    if v.dtype == tl.bfloat16:
        return (v.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    else:  # noqa: RET505 - Triton wants one branch or the other
        return v.to(tl.float32)


@triton.jit
def _reduce(
    x: tl.tensor,
    pivot: tl.tensor,
    minimum: tl.tensor,
    maximum: tl.tensor,
    sums: tl.tensor,
    over: tl.tensor,
    missing: tl.tensor,
    over_fp16: tl.tensor,
    peaks: tl.tensor,
    histograms: tl.tensor,
    tokens: tl.tensor,
    channels: tl.tensor,
    ranges: tl.tensor,
    stride_n: tl.tensor,
    stride_s: tl.tensor,
    threshold: tl.tensor,
    TOKENS: tl.constexpr,  # noqa: N803 - Triton's way to name a constant
    CHANNELS: tl.constexpr,  # noqa: N803
    COPIES: tl.constexpr,  # noqa: N803
    BINS: tl.constexpr,  # noqa: N803
    SHIFT: tl.constexpr,  # noqa: N803
    FP16_MAX: tl.constexpr,  # noqa: N803
) -> None:  # pragma: no cover - runs on the device
    block, unit = tl.program_id(0), tl.program_id(1).to(tl.int64)
    n, r = unit // ranges, unit % ranges
    begin, end = tokens * r // ranges, tokens * (r + 1) // ranges
    c = block * CHANNELS + tl.arange(0, CHANNELS)
    in_row = c < channels
    p = tl.load(pivot + n * channels + c, mask=in_row, other=0.0).to(tl.float64)[None, :]
    low = tl.full([CHANNELS], float("inf"), tl.float32)
    high = tl.full([CHANNELS], float("-inf"), tl.float32)
    s1 = tl.zeros([CHANNELS], tl.float64)
    s2 = tl.zeros([CHANNELS], tl.float64)
    s3 = tl.zeros([CHANNELS], tl.float64)
    s4 = tl.zeros([CHANNELS], tl.float64)
    n_over = tl.zeros([CHANNELS], tl.int32)
    n_missing = tl.zeros([CHANNELS], tl.int32)
    n_over_fp16 = tl.zeros([CHANNELS], tl.int32)
    bins = histograms + ((unit * tl.num_programs(0) + block) % COPIES) * BINS
    for first in range(begin, end, TOKENS):
        t = first + tl.arange(0, TOKENS)
        there = (t < end)[:, None] & in_row[None, :]
        v = _float32(tl.load(x + n * stride_n + t[:, None] * stride_s + c[None, :], mask=there, other=0.0))
        bits = v.to(tl.uint32, bitcast=True)
        pattern = (bits & 0x7FFFFFFF).to(tl.int32)
        ok = there & (pattern < 0x7F800000)
        magnitude = tl.where(ok, tl.abs(v), 0.0)
        low = tl.minimum(low, tl.min(tl.where(ok, v, float("inf")), axis=0))
        high = tl.maximum(high, tl.max(tl.where(ok, v, float("-inf")), axis=0))
        w = tl.where(ok, v.to(tl.float64) - p, 0.0)
        w2 = w * w
        s1 += tl.sum(w, axis=0)
        s2 += tl.sum(w2, axis=0)
        s3 += tl.sum(w2 * w, axis=0)
        s4 += tl.sum(w2 * w2, axis=0)
        n_over += tl.sum((ok & (magnitude >= threshold)).to(tl.int32), axis=0)
        n_missing += tl.sum((there & (pattern >= 0x7F800000)).to(tl.int32), axis=0)
        n_over_fp16 += tl.sum((magnitude > FP16_MAX).to(tl.int32), axis=0)
        tl.atomic_max(peaks + n * tokens + t, tl.max(tl.where(ok, pattern, -1), axis=1), mask=t < end, sem="relaxed")
        tl.atomic_add(bins + (bits >> SHIFT).to(tl.int32), 1, mask=ok, sem="relaxed")
    tl.atomic_add(over_fp16 + n, tl.sum(n_over_fp16, axis=0).to(tl.int64), sem="relaxed")
    here = unit * channels + c
    tl.store(minimum + here, low, mask=in_row)
    tl.store(maximum + here, high, mask=in_row)
    tl.store(over + here, n_over, mask=in_row)
    tl.store(missing + here, n_missing, mask=in_row)
    here = unit * 4 * channels + c
    tl.store(sums + here, s1, mask=in_row)
    tl.store(sums + here + channels, s2, mask=in_row)
    tl.store(sums + here + 2 * channels, s3, mask=in_row)
    tl.store(sums + here + 3 * channels, s4, mask=in_row)


@triton.jit
def _products(
    y: tl.tensor,
    q: tl.tensor,
    out: tl.tensor,
    tokens: tl.tensor,
    channels: tl.tensor,
    y_stride: tl.tensor,
    q_stride: tl.tensor,
    CHANNELS: tl.constexpr,  # noqa: N803
) -> None:  # pragma: no cover - runs on the device
    t = tl.program_id(0).to(tl.int64)
    yy = tl.zeros([CHANNELS], tl.float64)
    qq = tl.zeros([CHANNELS], tl.float64)
    yq = tl.zeros([CHANNELS], tl.float64)
    ee = tl.zeros([CHANNELS], tl.float64)
    peak = tl.zeros([CHANNELS], tl.float64)
    compared = tl.zeros([CHANNELS], tl.int32)
    for first in range(0, channels, CHANNELS):
        c = first + tl.arange(0, CHANNELS)
        a = _float32(tl.load(y + t * y_stride + c, mask=c < channels, other=0.0))
        b = _float32(tl.load(q + t * q_stride + c, mask=c < channels, other=0.0))
        a_pattern = (a.to(tl.uint32, bitcast=True) & 0x7FFFFFFF).to(tl.int32)
        b_pattern = (b.to(tl.uint32, bitcast=True) & 0x7FFFFFFF).to(tl.int32)
        ok = (a_pattern < 0x7F800000) & (b_pattern < 0x7F800000)
        a_wide = tl.where(ok, a.to(tl.float64), 0.0)
        b_wide = tl.where(ok, b.to(tl.float64), 0.0)
        e = a_wide - b_wide
        yy += a_wide * a_wide
        qq += b_wide * b_wide
        yq += a_wide * b_wide
        ee += e * e
        peak = tl.maximum(peak, tl.abs(e))
        compared += (ok & (c < channels)).to(tl.int32)
    tl.store(out + t, tl.sum(yy, axis=0))
    tl.store(out + tokens + t, tl.sum(qq, axis=0))
    tl.store(out + 2 * tokens + t, tl.sum(yq, axis=0))
    tl.store(out + 3 * tokens + t, tl.sum(ee, axis=0))
    largest = tl.where(tl.sum(compared, axis=0) > 0, tl.max(peak, axis=0), float("nan"))
    tl.store(out + 4 * tokens + t, largest)
