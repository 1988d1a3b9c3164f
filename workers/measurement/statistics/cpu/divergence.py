"""Computes log-sum-exp, KL divergence and the likeliest tokens of next-token distributions, in host memory.

A row of logits is read once into the cache, where its largest value is found and its exponentials are summed. Those are
computed in float64 by a polynomial, in loops that the compiler turns into vector instructions: the C library's
exponential takes longer than the matrix product that made the logit.

    exp(x) = 2^k * exp(r),  k = round(x / ln 2),  r = x - k ln 2,  |r| <= ln(2) / 2

where exp(r) is its Taylor series up to r^11 / 11!, off by less than 1e-14 of its value.

    n positions, V vocabulary
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from workers.measurement.statistics.cpu import threads
from workers.measurement.statistics.cpu.bit_patterns import INFINITY, Patterns, decode, patterns
from workers.measurement.statistics.cpu.compiling import compiled

_BLOCK = 1024
"""Logits among which the largest is looked for again once its value is known."""
_LEAST = np.int32(-0x80000000)
_LOWEST = -708.0
"""exp of this is the smallest normal float64; below it the exponent would wrap around."""
_LOG2_E = 1.4426950408889634
_LN2_HIGH, _LN2_LOW = 0.693147180369123816490, 1.90821492927058770002e-10
"""ln 2 in two parts: the first has trailing zeros, so that k times it is exact."""
_TO_INTEGER = 1.5 * 2.0**52
"""Added to a float64, leaves its nearest integer in the lowest bits of the pattern."""
_BIAS = 1023


def score_logits(logits: torch.Tensor, next_ids: torch.Tensor) -> torch.Tensor:
    """Return log-sum-exp, most likely token and logit of the next token, [3, n]; see `backends.score_logits`."""
    n, vocabulary = logits.shape
    out = np.empty((3, n))
    rows = patterns(logits)
    next_tokens = next_ids.numpy()

    def work(_: int, first: int, last: int) -> None:
        _score(*rows, next_tokens, vocabulary, first, last, out)

    threads.split_range(n, work)
    return torch.from_numpy(out)


def compare_logits(
    reference: torch.Tensor, log_sum_exp: torch.Tensor, scheme: torch.Tensor, next_ids: torch.Tensor
) -> torch.Tensor:
    """Return the scheme's three figures and its KL divergence, [4, n]; see `backends.compare_logits`."""
    n, vocabulary = reference.shape
    out = np.empty((4, n))
    reference_rows, scheme_rows = patterns(reference), patterns(scheme)
    next_tokens, known = next_ids.numpy(), log_sum_exp.numpy()

    def work(_: int, first: int, last: int) -> None:
        _compare(Patterns(*reference_rows), known, Patterns(*scheme_rows), next_tokens, vocabulary, first, last, out)

    threads.split_range(n, work)
    return torch.from_numpy(out)


@compiled()
def _score(
    flat: Any, kind: Any, strides: Any, next_ids: Any, vocabulary: Any, first: Any, last: Any, out: Any
) -> None:  # pragma: no cover - compiled
    """Put log-sum-exp, most likely token and the next token's logit of rows first..last into `out`."""
    row = np.empty(vocabulary, np.float32)
    for t in range(first, last):
        start = t * strides[0]
        top = _read_row(flat[start : start + vocabulary], kind, row)
        out[0, t] = _log_sum_exp(row, top)
        out[1, t] = top
        out[2, t] = row[next_ids[t]]


@compiled()
def _compare(
    reference: Any, known: Any, scheme: Any, next_ids: Any, vocabulary: Any, first: Any, last: Any, out: Any
) -> None:  # pragma: no cover - compiled
    """Put log-sum-exp, most likely token and next token's logit of `scheme`, and KL, of rows first..last into `out`."""
    p, q = np.empty(vocabulary, np.float32), np.empty(vocabulary, np.float32)
    for t in range(first, last):
        start = t * reference.strides[0]
        _read_row(reference.flat[start : start + vocabulary], reference.kind, p)
        start = t * scheme.strides[0]
        top = _read_row(scheme.flat[start : start + vocabulary], scheme.kind, q)
        log_sum_exp = _log_sum_exp(q, top)
        out[0, t] = log_sum_exp
        out[1, t] = top
        out[2, t] = q[next_ids[t]]
        # KL = mean of log P - log Q under P = mean of the logits' difference, less that of the log-sum-exps.
        out[3, t] = _mean_difference(p, q, known[t]) - (known[t] - log_sum_exp)


@compiled()
def _read_row(encoded: Any, kind: Any, row: Any) -> Any:  # pragma: no cover - compiled
    """Write the float32 values of a row [V]; return the place of the first largest one, -1 where one is NaN or +inf."""
    bits = row.view(np.uint32)
    peak = decode(encoded, kind, bits)
    best, best_block = _LEAST, 0
    patterns_of_row = row.view(np.int32)
    for begin in range(0, len(row), _BLOCK):
        largest = _largest(patterns_of_row[begin : begin + _BLOCK])
        if largest > best:
            best, best_block = largest, begin
    # NaN has a larger pattern than infinity, and +inf stands for no distribution.
    if peak > INFINITY or best >= np.int32(INFINITY):
        return -1
    # The largest lies in the block that first reached it: look there for its place, which a vector loop cannot keep.
    for c in range(best_block, len(row)):
        if _ordered(patterns_of_row[c]) == best:
            return c
    return -1


@compiled()
def _largest(block: Any) -> Any:  # pragma: no cover - compiled
    """Return the largest of the ordered patterns of a block of float32 patterns."""
    # Over a slice of its own from 0 on, and without max(): only then does the compiler use vectors, 15 times as fast.
    largest = _LEAST
    for c in range(block.shape[0]):
        ordered = _ordered(block[c])
        largest = ordered if ordered > largest else largest
    return largest


@compiled()
def _ordered(pattern: Any) -> Any:  # pragma: no cover - compiled
    """Return an int32 that orders as the float32 value of a pattern does: those of negative values turned round."""
    sign = np.int32(pattern >> np.int32(31))
    return np.int32(pattern ^ np.int32(np.uint32(sign) >> np.uint32(1)))


@compiled(fastmath={"reassoc", "contract", "nsz"}, forceinline=True)
def _log_sum_exp(row: Any, top: Any) -> Any:  # pragma: no cover - compiled
    """Return log(sum(exp(row))); NaN where there is no largest value."""
    if top < 0:
        return np.nan
    # Less the largest logit, no exponential overflows.
    shift, total = np.float64(row[top]), 0.0
    for c in range(len(row)):
        total += _exponential(np.float64(row[c]) - shift)
    return shift + np.log(total)


@compiled(fastmath={"reassoc", "contract", "nsz"}, forceinline=True)
def _mean_difference(p: Any, q: Any, log_sum_exp: Any) -> Any:  # pragma: no cover - compiled
    """Return the mean of p - q under the distribution exp(p - log_sum_exp); a token of probability 0 counts nothing."""
    total = weight = 0.0
    for c in range(len(p)):
        logit = np.float64(p[c])
        probability = _exponential(logit - log_sum_exp)
        total += probability * (logit - np.float64(q[c]) if p[c] > -np.inf else 0.0)
        weight += probability
    return total / weight


@compiled(fastmath={"contract"}, forceinline=True)
def _exponential(x: Any) -> Any:  # pragma: no cover - compiled
    """Return exp(x) of an x not far above 0."""
    # k without a call to round: the sum's last bits are the integer. r is exact but for the low part of ln 2.
    x = x if x > _LOWEST else _LOWEST
    shifted = x * _LOG2_E + _TO_INTEGER
    k = shifted - _TO_INTEGER
    r = x - k * _LN2_HIGH - k * _LN2_LOW
    # Horner's scheme, from 1 / 11! down.
    series = 1 / 39916800
    series = series * r + 1 / 3628800
    series = series * r + 1 / 362880
    series = series * r + 1 / 40320
    series = series * r + 1 / 5040
    series = series * r + 1 / 720
    series = series * r + 1 / 120
    series = series * r + 1 / 24
    series = series * r + 1 / 6
    series = series * r + 0.5
    series = series * r + 1.0
    return (series * r + 1.0) * _power_of_two(shifted)


@intrinsic
def _power_of_two(_: Any, shifted: Any) -> tuple[Any, Callable[..., Any]]:  # pragma: no cover - compiled
    """Return 2^k as float64, of a float64 whose lowest bits hold k."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ARG001 - numba's order
        # The bits above k are shifted out, k itself into the exponent.
        integer = ir.IntType(64)
        biased = builder.add(builder.bitcast(arguments[0], integer), integer(_BIAS))
        return builder.bitcast(builder.shl(biased, integer(52)), ir.DoubleType())

    return types.float64(shifted), generate
