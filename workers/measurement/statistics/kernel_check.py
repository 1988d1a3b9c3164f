"""Checks every CUDA kernel on a few numbers before a measurement relies on it.

A compiler or a device that has not been tested may compute a kernel wrongly without an error. So each kernel's output
is compared with that of plain torch on the same device. A kernel that differs is replaced by plain torch, as is one
that does not compile.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from workers.measurement.statistics import backends, plain
from workers.measurement.statistics.reduction import SHIFT

_THRESHOLD = 6.0
_KEPT_BITS = 20
_SUMS, _EXPONENTIALS = 1e-12, 1e-9
"""Largest differences, as parts of the largest figure: of sums, and of what stands on sums of exponentials."""


class Trial(NamedTuple):
    """A call of a kernel."""

    kernel: str
    arguments: Sequence[Any]
    tolerance: float = 0.0
    unordered: bool = False
    """Whether the last tensor that it gives has no certain order."""


def check_kernels(device: torch.device, dtype: torch.dtype) -> None:
    """Check the kernels of a CUDA device on elements of a type; `backends.replaced` lists those that failed."""
    run_trials(trials(device, dtype), device)


def trials(device: torch.device, dtype: torch.dtype) -> list[Trial]:
    """Return a call of every kernel, on tensors of a type with NaN, infinities, zeros and large values."""
    generator = torch.Generator().manual_seed(0)
    shape = (2, 200, 1100)  # more than a block of any kernel reads at a time, along both axes
    x = torch.randn(shape, generator=generator) * torch.exp(2 * torch.randn(shape, generator=generator))
    x.view(-1)[:7] = torch.tensor([torch.nan, torch.inf, -torch.inf, -0.0, 1e-40, 70000.0, -6.0])
    x = x.to(dtype).to(device)
    tokens = x[0]
    other = (tokens.float() * 1.01).to(dtype)
    magnitudes = tokens.float().abs()
    number = int(magnitudes[9, 9].view(torch.int32)) >> SHIFT
    in_bin = int((magnitudes.view(torch.int32) >> SHIFT == number).sum())
    reached = magnitudes.isfinite() & (magnitudes >= _THRESHOLD)
    dimensions = reached.any(dim=0).nonzero().flatten()
    limits = torch.full((200,), _THRESHOLD, device=device)
    logits = 3 * torch.randn(2, 20, 5000, generator=generator)
    logits[:, 0, 7], logits[:, 1, 7], logits[:, 2, 4000:] = torch.nan, torch.inf, -torch.inf
    logits[1] = logits[0] + 0.3 * logits[1].nan_to_num(0, 0, 0)
    reference, scheme = logits.to(dtype).to(device)
    next_ids = torch.arange(20, device=device)
    scores = plain.score_logits(reference, next_ids)
    return [
        Trial("pivots", (x,)),
        Trial("reduce", (x, plain.pivots(x), _THRESHOLD), _SUMS),
        Trial("histogram", (tokens,)),
        Trial("magnitudes_in_bin", (lambda: iter([tokens]), number, in_bin), unordered=True),
        Trial("token_products", (tokens, other), _SUMS),
        Trial("channel_products", (tokens, other), _SUMS),
        Trial("token_limits", (x, 2.5)),
        Trial("count_reaching", (x, plain.token_limits(x, 2.5))),
        Trial("note_hits", (tokens, dimensions, int(reached.sum()), limits, _KEPT_BITS), unordered=True),
        Trial("score_logits", (reference, next_ids), _EXPONENTIALS),
        Trial("compare_logits", (reference, scores[0], scheme, next_ids), _EXPONENTIALS),
    ]


def run_trials(calls: Sequence[Trial], device: torch.device) -> None:
    """Make the calls on a device, and have plain torch stand in for every kernel that fails or differs."""
    for trial in calls:
        computed = _tensors(backends.on_device(trial.kernel, device, *trial.arguments))
        if trial.kernel in backends.replaced():
            continue
        expected = _tensors(getattr(plain, trial.kernel)(*trial.arguments))
        if trial.unordered:
            computed[-1], expected[-1] = computed[-1].sort().values, expected[-1].sort().values
        if not all(_alike(*pair, trial.tolerance) for pair in zip(computed, expected, strict=True)):
            backends.replace_kernel(trial.kernel, "it gives other figures than plain torch")


def _tensors(answer: torch.Tensor | Sequence[torch.Tensor]) -> list[torch.Tensor]:
    return [answer] if isinstance(answer, torch.Tensor) else list(answer)


def _alike(computed: torch.Tensor, expected: torch.Tensor, tolerance: float) -> bool:
    """Whether two tensors are equal; float64 ones to a part of the largest finite figure of their row."""
    if (computed.shape, computed.dtype) != (expected.shape, expected.dtype):
        return False
    if computed.dtype != torch.float64:
        return bool(((computed == expected) | (computed != computed) & (expected != expected)).all())
    finite = expected.isfinite()
    scale = torch.where(finite, expected.abs(), 0).amax(dim=-1, keepdim=True)
    near = (computed - expected).abs() <= tolerance * scale
    return bool((torch.where(finite, near, (computed == expected) | computed.isnan() & expected.isnan())).all())
