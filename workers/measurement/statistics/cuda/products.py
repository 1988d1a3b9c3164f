"""Computes the products of two tensors' tokens on CUDA: each element is read once, and nothing leaves the device.

T tokens, d channels
"""

import torch
import triton
import triton.language as tl

from workers.measurement.statistics.cuda.decoding import float32
from workers.measurement.statistics.cuda.rows import contiguous_rows

_PRODUCT_CHANNELS = 1024
"""Channels that a program, which has a token of its own, reads at a time."""


def token_products(y: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """Return the five products of every token of y and q [T, d], [5, T]; see `backends.token_products`."""
    y, q = contiguous_rows(y), contiguous_rows(q)
    tokens, channels = y.shape
    out = y.new_empty((5, tokens), dtype=torch.float64)
    _products[(tokens,)](y, q, out, tokens, channels, y.stride(0), q.stride(0), CHANNELS=_PRODUCT_CHANNELS)
    return out


@triton.jit
def _finite(v: tl.tensor) -> tl.tensor:  # pragma: no cover - runs on the device
    """Tell which float32 are finite: by the patterns, for a compiler may assume that no float is NaN or infinite."""
    return (v.to(tl.uint32, bitcast=True) & 0x7FFFFFFF).to(tl.int32) < 0x7F800000


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
    """Put the five products of one token into `out` [5, T]; each program takes one."""
    t = tl.program_id(0).to(tl.int64)
    # A sum for each lane, added up at the end: the order of additions depends on d alone.
    yy, qq = tl.zeros([CHANNELS], tl.float64), tl.zeros([CHANNELS], tl.float64)
    yq, ee = tl.zeros([CHANNELS], tl.float64), tl.zeros([CHANNELS], tl.float64)
    peak = tl.zeros([CHANNELS], tl.float64)
    compared = tl.zeros([CHANNELS], tl.int32)
    for first in range(0, channels, CHANNELS):
        # Read a block of both rows; past the last channel there are zeros.
        c = first + tl.arange(0, CHANNELS)
        a = float32(tl.load(y + t * y_stride + c, mask=c < channels, other=0.0))
        b = float32(tl.load(q + t * q_stride + c, mask=c < channels, other=0.0))
        ok = _finite(a) & _finite(b)
        # What is not finite in either adds nothing. float64, for an error may be in the last digits of its value.
        a_wide = tl.where(ok, a.to(tl.float64), 0.0)
        b_wide = tl.where(ok, b.to(tl.float64), 0.0)
        e = a_wide - b_wide
        yy += a_wide * a_wide
        qq += b_wide * b_wide
        yq += a_wide * b_wide
        ee += e * e
        peak = tl.maximum(peak, tl.abs(e))
        compared += (ok & (c < channels)).to(tl.int32)
    # A token without a finite pair has no largest error; its sums are 0.
    tl.store(out + t, tl.sum(yy, axis=0))
    tl.store(out + tokens + t, tl.sum(qq, axis=0))
    tl.store(out + 2 * tokens + t, tl.sum(yq, axis=0))
    tl.store(out + 3 * tokens + t, tl.sum(ee, axis=0))
    largest = tl.where(tl.sum(compared, axis=0) > 0, tl.max(peak, axis=0), float("nan"))
    tl.store(out + 4 * tokens + t, largest)
