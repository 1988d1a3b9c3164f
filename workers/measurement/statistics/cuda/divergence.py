"""Computes log-sum-exp, KL divergence and the likeliest tokens of next-token distributions, on CUDA.

A program has a position of its own and reads its logits once, a block at a time: whenever a block holds a larger value
than all before it, the sum of exponentials so far is scaled to it. Exponentials and their sums are float64: rounded to
float32, the reference's probabilities alone would move a divergence of 30 nats by more than 1e-6.

    n positions, V vocabulary
"""

import torch
import triton
import triton.language as tl

from workers.measurement.statistics.cuda.decoding import float32
from workers.measurement.statistics.cuda.rows import contiguous_rows

_BLOCK = 2048
"""Logits that a program reads at a time."""


def score_logits(logits: torch.Tensor, next_ids: torch.Tensor) -> torch.Tensor:
    """Return log-sum-exp, most likely token and logit of the next token, [3, n]; see `backends.score_logits`."""
    logits = contiguous_rows(logits)
    n, vocabulary = logits.shape
    out = logits.new_empty((3, n), dtype=torch.float64)
    _score[(n,)](logits, next_ids, out, n, vocabulary, logits.stride(0), BLOCK=_BLOCK)
    return out


def compare_logits(
    reference: torch.Tensor, log_sum_exp: torch.Tensor, scheme: torch.Tensor, next_ids: torch.Tensor
) -> torch.Tensor:
    """Return the scheme's three figures and its KL divergence, [4, n]; see `backends.compare_logits`."""
    reference, scheme, log_sum_exp = contiguous_rows(reference), contiguous_rows(scheme), log_sum_exp.contiguous()
    n, vocabulary = scheme.shape
    out = scheme.new_empty((4, n), dtype=torch.float64)
    strides = reference.stride(0), scheme.stride(0)
    _compare[(n,)](reference, log_sum_exp, scheme, next_ids, out, n, vocabulary, *strides, BLOCK=_BLOCK)
    return out


@triton.jit
def _add_block(
    v: tl.tensor, first: tl.tensor, largest: tl.tensor, place: tl.tensor, total: tl.tensor, broken: tl.tensor
) -> tl.tensor:  # pragma: no cover - runs on the device
    """Add a block of logits to the largest value, its place, the sum of exponentials and the count of NaN and +inf."""
    # Where one is NaN or +inf there is no distribution.
    broken += tl.sum(((v != v) | (v == float("inf"))).to(tl.int32), axis=0)
    # The largest so far and its place; of equal ones the first.
    block_largest = tl.max(v, axis=0)
    place = tl.where(block_largest > largest, first + tl.argmax(v, axis=0), place)
    shift = tl.maximum(largest, block_largest)
    # Until a value is finite, nothing may be subtracted from -inf.
    known = tl.where(shift > float("-inf"), shift, 0.0).to(tl.float64)
    # What was summed about the largest value so far is carried over to the new one; so no exponential overflows.
    total = total * tl.exp(largest.to(tl.float64) - known) + tl.sum(tl.exp(v.to(tl.float64) - known), axis=0)
    return shift, place, total, broken


@triton.jit
def _score(
    logits: tl.tensor,
    next_ids: tl.tensor,
    out: tl.tensor,
    n: tl.tensor,
    vocabulary: tl.tensor,
    stride: tl.tensor,
    BLOCK: tl.constexpr,  # noqa: N803 - Triton's way to name a constant
) -> None:  # pragma: no cover - runs on the device
    """Put log-sum-exp, most likely token and next token's logit of one position into `out` [3, n]."""
    t = tl.program_id(0).to(tl.int64)
    largest, place, total, broken = tl.full([], float("-inf"), tl.float32), -1, tl.zeros([], tl.float64), 0
    for first in range(0, vocabulary, BLOCK):
        c = first + tl.arange(0, BLOCK)
        v = float32(tl.load(logits + t * stride + c, mask=c < vocabulary, other=float("-inf")))
        largest, place, total, broken = _add_block(v, first, largest, place, total, broken)
    # The sum was taken about the largest logit; NaN and -1 where there is no distribution.
    log_sum_exp = tl.where(broken > 0, float("nan"), largest.to(tl.float64) + tl.log(total))
    tl.store(out + t, log_sum_exp)
    tl.store(out + n + t, tl.where(broken > 0, -1, place).to(tl.float64))
    tl.store(out + 2 * n + t, float32(tl.load(logits + t * stride + tl.load(next_ids + t))).to(tl.float64))


@triton.jit
def _compare(
    reference: tl.tensor,
    reference_log_sum_exp: tl.tensor,
    scheme: tl.tensor,
    next_ids: tl.tensor,
    out: tl.tensor,
    n: tl.tensor,
    vocabulary: tl.tensor,
    reference_stride: tl.tensor,
    scheme_stride: tl.tensor,
    BLOCK: tl.constexpr,  # noqa: N803
) -> None:  # pragma: no cover - runs on the device
    """Put the scheme's three figures and its KL divergence at one position into `out` [4, n]."""
    t = tl.program_id(0).to(tl.int64)
    known = tl.load(reference_log_sum_exp + t)
    difference, weight = tl.zeros([], tl.float64), tl.zeros([], tl.float64)
    largest, place, total, broken = tl.full([], float("-inf"), tl.float32), -1, tl.zeros([], tl.float64), 0
    for first in range(0, vocabulary, BLOCK):
        c = first + tl.arange(0, BLOCK)
        p = float32(tl.load(reference + t * reference_stride + c, mask=c < vocabulary, other=float("-inf")))
        q = float32(tl.load(scheme + t * scheme_stride + c, mask=c < vocabulary, other=float("-inf")))
        largest, place, total, broken = _add_block(q, first, largest, place, total, broken)
        # KL by the difference of the logits, weighted with the reference's probabilities.
        probability = tl.exp(p.to(tl.float64) - known)
        # A token of probability 0 adds nothing, whatever the scheme gives it: -inf times 0 would be NaN.
        ruled_out = p == float("-inf")
        apart = tl.where(ruled_out, 0.0, p).to(tl.float64) - tl.where(ruled_out, 0.0, q).to(tl.float64)
        difference += tl.sum(probability * apart, axis=0)
        weight += tl.sum(probability, axis=0)
    # The sum was taken about the largest logit; NaN and -1 where there is no distribution.
    log_sum_exp = tl.where(broken > 0, float("nan"), largest.to(tl.float64) + tl.log(total))
    tl.store(out + t, log_sum_exp)
    tl.store(out + n + t, tl.where(broken > 0, -1, place).to(tl.float64))
    tl.store(out + 2 * n + t, float32(tl.load(scheme + t * scheme_stride + tl.load(next_ids + t))).to(tl.float64))
    # The mean difference of the logits, less that of the log-sum-exps. Dividing by the weight, which is 1 but for
    # rounding, takes the rounding of log_sum_exp out.
    tl.store(out + 3 * n + t, difference / weight - (known - log_sum_exp))
