"""The reduction and the token products in plain torch, one operation after another, on any device.

What the kernels are compared with, and what runs where no kernel does. It is written for clearness and holds
several float64 copies of a sequence at a time.

    N sequences of S tokens, d channels; T tokens
"""

import torch

from workers.measurement.statistics.reduction import BINS, FP16_MAX, SHIFT, SPECIAL, Reduction, pivot_tokens


def reduce(x: torch.Tensor, pivot: torch.Tensor, threshold: float) -> Reduction:
    """Reduce sequences [N, S, d] about pivots [N, d]; see `backends.reduce_sequences`."""
    parts = [_reduce_one(sequence.float(), about, threshold) for sequence, about in zip(x, pivot, strict=True)]
    about_sequences = [torch.stack(part) for part in zip(*parts, strict=True)]
    return Reduction._make([pivot, *about_sequences[:-1], about_sequences[-1].sum(dim=0)])


def typical(x: torch.Tensor) -> torch.Tensor:
    """Return a typical value of every channel of sequences [N, S, d], [N, d]; see `backends.typical`."""
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


def magnitudes_in_bin(x: torch.Tensor, number: int) -> torch.Tensor:
    """Return the magnitudes of tokens [T, d] that lie in a bin; see `backends.magnitudes_in_bin`."""
    magnitudes = x.float().abs().contiguous()
    return magnitudes[magnitudes.view(torch.int32) >> SHIFT == number]


def token_products(y: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """Return the five products of every token of y and q [T, d], [5, T]; see `backends.token_products`."""
    present = y.isfinite() & q.isfinite()
    y, q = (torch.where(present, part.double(), 0) for part in (y, q))
    e = y - q
    peak = torch.where(present.any(1), e.abs().amax(1), torch.nan)
    return torch.stack([(y * y).sum(1), (q * q).sum(1), (y * q).sum(1), (e * e).sum(1), peak])


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
