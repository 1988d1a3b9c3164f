"""Times every kernel beside the matrix product that its tensor feeds, and beside the memory's bandwidth."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from step_support import Context, median_seconds, run, tell_replaced

if TYPE_CHECKING:
    import torch

THRESHOLD = 6.0
FACTOR = 3.0
"""A token's limit is that many times its root mean square."""
WIDTHS = (2048, 4096, 14336)
SEQUENCES, TOKENS, INPUTS, ROUNDS = 2, 2048, 4, 20
Ways = Sequence[Callable[[], object]]
"""One kernel on different inputs."""


def notes(tokens: "torch.Tensor", limit: float) -> Callable[[], object]:
    """Return what notes the values of tokens [T, d] that reach a limit."""
    import torch

    from workers.measurement.statistics import backends

    reached = tokens.abs() >= limit
    dimensions, count = reached.any(dim=0).nonzero().flatten(), int(reached.sum())
    limits = torch.full((len(tokens),), limit, device=tokens.device)
    return lambda: backends.note_hits(tokens, dimensions, count, limits, 20)


def collects(tokens: "torch.Tensor") -> Callable[[], object]:
    """Return what collects the magnitudes in the bin of the median magnitude of tokens [T, d]."""
    import torch

    from workers.measurement.statistics import backends
    from workers.measurement.statistics.reduction import SHIFT

    bins = tokens.float().abs().view(torch.int32) >> SHIFT
    number = int(bins.flatten().median())
    count = int((bins == number).sum())
    return lambda: backends.magnitudes_in_bin(lambda: iter([tokens]), number, count)


def kernels_of(tensors: "list[torch.Tensor]") -> dict[str, tuple[Ways, float]]:
    """Return the kernels that read tensors [N, S, d], and how many times a tensor's bytes each reads.

    Their names begin with those of `backends.CUDA_KERNELS`.
    """
    from workers.measurement.statistics import backends
    from workers.measurement.statistics.reduction import PIVOT_TOKENS

    pivoted = [(x, backends.pivots(x)) for x in tensors]
    limited = [(x, backends.token_limits(x, FACTOR)) for x in tensors]
    pairs = [(x.flatten(0, 1), (x.float() * 1.01).bfloat16().flatten(0, 1)) for x in tensors]
    return {
        "reduce": ([lambda x=x, p=p: backends.reduce_sequences(x, p, THRESHOLD) for x, p in pivoted], 1),
        "pivots": ([lambda x=x: backends.pivots(x) for x in tensors], PIVOT_TOKENS / tensors[0].shape[1]),
        "histogram": ([lambda y=y: backends.histogram(y) for y, _ in pairs], 1),
        "magnitudes_in_bin": ([collects(y) for y, _ in pairs], 1),
        "token_products": ([lambda y=y, q=q: backends.token_products(y, q) for y, q in pairs], 2),
        "channel_products": ([lambda y=y, q=q: backends.channel_products(y, q) for y, q in pairs], 2),
        "token_limits": ([lambda x=x: backends.token_limits(x, FACTOR) for x in tensors], 1),
        "count_reaching": ([lambda x=x, m=m: backends.count_reaching(x, m) for x, m in limited], 1),
        "note_hits of all values": ([notes(y, 0.0) for y, _ in pairs], 1),
        "note_hits of 1 value in 16,000": ([notes(y, 4.0) for y, _ in pairs], 1),
    }


def time_width(context: Context, shape: tuple[int, int, int], rounds: int) -> None:
    """Time the kernels on bf16 tensors [N, S, d]; the product is [N * S, d] x [d, d]."""
    import torch

    width = shape[2]
    tensors = [torch.randn(shape, device=context.device).bfloat16() for _ in range(INPUTS)]
    weight = torch.randn(width, width, device=context.device).bfloat16()
    product = median_seconds([lambda x=x: x.flatten(0, 1) @ weight for x in tensors], context.device, rounds)
    context.figure(f"d = {width}: matrix product", product * 1e6, "microseconds")
    for name, (ways, tensors_read) in kernels_of(tensors).items():
        taken = median_seconds(ways, context.device, rounds)
        context.figure(f"d = {width}: {name} / matrix product", taken / product)
        context.figure(f"d = {width}: {name}, read", tensors_read * tensors[0].nbytes / taken / 1e9, "GB/s")


def time_logits(context: Context, shape: tuple[int, int, int], rounds: int) -> None:
    """Time the kernels of bf16 logits [n, V] beside the output head's product, [n, d] x [d, V]."""
    import torch

    from workers.measurement.statistics import backends

    positions, width, vocabulary = shape
    x, head = (
        torch.randn(size, device=context.device).bfloat16() for size in ((positions, width), (width, vocabulary))
    )
    next_ids = torch.arange(positions, device=context.device)
    logits = [(x @ head, (x * 1.01) @ head) for _ in range(2)]
    known = backends.score_logits(logits[0][0], next_ids)[0]
    kernels: dict[str, tuple[Ways, int]] = {
        "score_logits": ([lambda p=p: backends.score_logits(p, next_ids) for p, _ in logits], 1),
        "compare_logits": ([lambda p=p, q=q: backends.compare_logits(p, known, q, next_ids) for p, q in logits], 2),
    }
    product = median_seconds([lambda: x @ head], context.device, rounds)
    for name, (ways, tensors_read) in kernels.items():
        taken = median_seconds(ways, context.device, rounds)
        context.figure(f"vocabulary {vocabulary}: {name} / the head's matrix product", taken / product)
        read = tensors_read * logits[0][0].nbytes / taken / 1e9
        context.figure(f"vocabulary {vocabulary}: {name}, read", read, "GB/s")


def time_kernels(context: Context) -> None:
    """Time the kernels at the widths of a 1 B and of an 8 B model, those of logits at an 8 B model's vocabulary."""
    rounds = 3 if context.dry else ROUNDS
    for width in (64, 128) if context.dry else WIDTHS:
        time_width(context, (2, 16, width) if context.dry else (SEQUENCES, TOKENS, width), rounds)
    time_logits(context, (16, 64, 512) if context.dry else (TOKENS, 4096, 128256), rounds)
    tell_replaced(context)


if __name__ == "__main__":
    run(time_kernels)
