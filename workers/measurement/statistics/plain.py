"""Computes the figures of every kernel in plain torch, one operation after another, on any device.

What the kernels are compared with, and what runs where no kernel does. It is written for clearness and holds
several float64 copies of a sequence at a time.

    N sequences of S tokens, d channels; T tokens; n positions, V vocabulary
"""

import torch
from torch.nn import functional

from workers.measurement.statistics.reduction import (
    BINS,
    FP16_MAX,
    SHIFT,
    SMALLEST,
    SPECIAL,
    Reduction,
    Stream,
    pivot_tokens,
)


def reduce(x: torch.Tensor, pivot: torch.Tensor, threshold: float) -> Reduction[torch.Tensor]:
    """Reduce sequences [N, S, d] about pivots [N, d]; see `backends.reduce_sequences`."""
    parts = [_reduce_one(sequence.float(), about, threshold) for sequence, about in zip(x, pivot, strict=True)]
    about_sequences = [torch.stack(part) for part in zip(*parts, strict=True)]
    return Reduction._make([pivot, *about_sequences[:-1], about_sequences[-1].sum(dim=0)])


def pivots(x: torch.Tensor) -> torch.Tensor:
    """Return a pivot of every channel of sequences [N, S, d], [N, d]; see `backends.pivots`."""
    few = x[:, pivot_tokens(x.shape[1])].float()
    few = torch.where(few.isfinite(), few, 0).unflatten(1, (3, 3))
    middle: torch.Tensor = few.median(dim=1).values.median(dim=1).values
    return middle


def histogram(x: torch.Tensor) -> torch.Tensor:
    """Return how many values of tokens [T, d] each bin holds, [16384]; see `backends.histogram`."""
    bins = (x.float().contiguous().view(torch.int32) >> SHIFT) & (BINS - 1)
    counts = torch.bincount(bins.flatten(), minlength=BINS)
    for special in SPECIAL:
        counts[special] = 0
    return counts


def magnitudes_in_bin(stream: Stream, number: int, count: int) -> torch.Tensor:
    """Return the `count` magnitudes of a stream that lie in a bin; see `backends.magnitudes_in_bin`."""
    every = (x.float().abs().contiguous() for x in stream())
    return torch.cat([magnitudes[magnitudes.view(torch.int32) >> SHIFT == number] for magnitudes in every])[:count]


def token_products(y: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """Return the five products of every token of y and q [T, d], [5, T]; see `backends.token_products`."""
    present = y.isfinite() & q.isfinite()
    y, q = (torch.where(present, part.double(), 0) for part in (y, q))
    e = y - q
    peak = torch.where(present.any(1), e.abs().amax(1), torch.nan)
    return torch.stack([(y * y).sum(1), (q * q).sum(1), (y * q).sum(1), (e * e).sum(1), peak])


def channel_products(y: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """Return |y|^2 and |y - q|^2 of every channel of y and q [T, d], [2, d]; see `backends.channel_products`."""
    present = y.isfinite() & q.isfinite()
    y, q = (torch.where(present, part.double(), 0) for part in (y, q))
    return torch.stack([(y * y).sum(0), ((y - q) ** 2).sum(0)])


def token_limits(x: torch.Tensor, factor: float) -> torch.Tensor:
    """Return `factor` times the root mean square of every token of x [N, S, d], [N, S]; see `backends.token_limits`."""
    finite = x.isfinite()
    squares = torch.where(finite, x.double() ** 2, 0).sum(dim=-1)
    factor = float(torch.tensor(factor, dtype=torch.float32))
    limits = (factor * (squares / finite.sum(dim=-1).clamp_min(1)).sqrt()).float()
    return torch.where(squares > 0, limits.clamp_min(SMALLEST), torch.inf)


def count_reaching(x: torch.Tensor, limits: torch.Tensor) -> torch.Tensor:
    """Return how many values of x [N, S, d] reach their token's limit, [N, d]; see `backends.count_reaching`."""
    return (x.isfinite() & (x.float().abs() >= limits[..., None])).sum(dim=1, dtype=torch.int32)


def note_hits(
    x: torch.Tensor, dimensions: torch.Tensor, count: int, limits: torch.Tensor, kept_bits: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Note the values of some dimensions of tokens [T, d] that reach a limit; see `backends.note_hits`."""
    columns = x[:, dimensions].float().T.contiguous()
    hit = columns.isfinite() & (columns.abs() >= limits)
    eights = functional.pad(hit, (0, -hit.shape[1] % 8)).unflatten(1, (-1, 8))
    positions = (eights << torch.arange(7, -1, -1, device=x.device)).sum(dim=2).to(torch.uint8)
    bits = columns.view(torch.int32).long() & 0xFFFFFFFF
    keys = dimensions[:, None] << kept_bits | bits >> (32 - kept_bits)
    return positions, torch.where(hit, columns.abs(), 0).amax(dim=1), keys[hit][:count]


def score_logits(logits: torch.Tensor, next_ids: torch.Tensor) -> torch.Tensor:
    """Return log-sum-exp, most likely token and logit of the next token, [3, n]; see `backends.score_logits`."""
    wide = logits.double()
    log_sum_exp = wide.logsumexp(dim=-1)
    top = wide.max(dim=-1).indices.double()
    broken = log_sum_exp.isnan() | log_sum_exp.isposinf()
    own = wide.gather(-1, next_ids[:, None]).squeeze(-1)
    return torch.stack([torch.where(broken, torch.nan, log_sum_exp), torch.where(broken, -1, top), own])


def compare_logits(
    reference: torch.Tensor, log_sum_exp: torch.Tensor, scheme: torch.Tensor, next_ids: torch.Tensor
) -> torch.Tensor:
    """Return the scheme's three figures and its KL divergence, [4, n]; see `backends.compare_logits`."""
    figures = score_logits(scheme, next_ids)
    log_p = reference.double() - log_sum_exp[:, None]
    log_q = scheme.double() - figures[0][:, None]
    kl = torch.where(log_p > -torch.inf, log_p.exp() * (log_p - log_q), torch.where(log_p.isnan(), log_p, 0.0))
    return torch.cat([figures, kl.sum(dim=-1)[None]])


def _reduce_one(x: torch.Tensor, pivot: torch.Tensor, threshold: float) -> tuple[torch.Tensor, ...]:
    finite = x.isfinite()
    magnitudes = torch.where(finite, x.abs(), 0)
    v = torch.where(finite, x.double() - pivot.double(), 0)
    return (
        torch.where(finite, x, torch.inf).amin(dim=0),
        torch.where(finite, x, -torch.inf).amax(dim=0),
        torch.stack([(v**power).sum(dim=0) for power in (1, 2, 3, 4)]),
        (finite & (magnitudes >= threshold)).sum(dim=0, dtype=torch.int32),
        (~finite).sum(dim=0, dtype=torch.int32),
        (magnitudes > FP16_MAX).sum(),
        torch.where(finite.any(dim=1), magnitudes.amax(dim=1), torch.nan),
        histogram(x),
    )
