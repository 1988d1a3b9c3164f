"""Times every kernel beside the matrix product that its tensor feeds, and beside the memory's bandwidth."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from step_support import Context, median_seconds, run, tell_replaced

if TYPE_CHECKING:
    import torch

THRESHOLD = 6.0
WIDTHS = (2048, 4096, 14336)
SEQUENCES, TOKENS, INPUTS, ROUNDS = 2, 2048, 4, 40


def notes(tokens: "torch.Tensor", limit: float) -> Callable[[], object]:
    """Return what notes the values of tokens [T, d] that reach a limit."""
    import torch

    from workers.measurement.statistics import backends

    reached = tokens.abs() >= limit
    dimensions, count = reached.any(dim=0).nonzero().flatten(), int(reached.sum())
    limits = torch.full((len(tokens),), limit, device=tokens.device)
    return lambda: backends.note_hits(tokens, dimensions, count, limits, 20)


def time_width(context: Context, shape: tuple[int, int, int], rounds: int) -> None:
    """Time the kernels on bf16 tensors [N, S, d]; the product is [N * S, d] x [d, d]."""
    import torch

    from workers.measurement.statistics import backends

    width = shape[2]
    tensors = [torch.randn(shape, device=context.device).bfloat16() for _ in range(INPUTS)]
    pairs = [(x.flatten(0, 1), (x.float() * 1.01).bfloat16().flatten(0, 1)) for x in tensors]
    weight = torch.randn(width, width, device=context.device).bfloat16()
    kernels: dict[str, tuple[list[Callable[[], object]], int]] = {
        "reduction": ([lambda x=x: backends.reduce_sequences(x, backends.pivots(x), THRESHOLD) for x in tensors], 1),
        "token products": ([lambda y=y, q=q: backends.token_products(y, q) for y, q in pairs], 2),
        "histogram": ([lambda y=y: backends.histogram(y) for y, _ in pairs], 1),
        "notes of all values": ([notes(y, 0.0) for y, _ in pairs], 1),
        "notes of 1 value in 16,000": ([notes(y, 4.0) for y, _ in pairs], 1),
    }
    product = median_seconds([lambda y=y: y @ weight for y, _ in pairs], context.device, rounds)
    context.figure(f"d = {width}: matrix product", product * 1e6, "microseconds")
    for name, (ways, tensors_read) in kernels.items():
        taken = median_seconds(ways, context.device, rounds)
        context.figure(f"d = {width}: {name} / matrix product", taken / product)
        context.figure(f"d = {width}: {name}, read", tensors_read * tensors[0].nbytes / taken / 1e9, "GB/s")


def time_logits(context: Context, shape: tuple[int, int, int], rounds: int) -> None:
    """Time the divergence of two models' bf16 logits [n, V] beside the output head's product, [n, d] x [d, V]."""
    import torch

    from workers.measurement.statistics import backends

    positions, width, vocabulary = shape
    x, head = (
        torch.randn(size, device=context.device).bfloat16() for size in ((positions, width), (width, vocabulary))
    )
    next_ids = torch.arange(positions, device=context.device)
    logits = [(x @ head, (x * 1.01) @ head) for _ in range(2)]
    known = backends.score_logits(logits[0][0], next_ids)[0]
    ways = [lambda p=p, q=q: backends.compare_logits(p, known, q, next_ids) for p, q in logits]
    taken = median_seconds(ways, context.device, rounds)
    product = median_seconds([lambda: x @ head], context.device, rounds)
    context.figure(f"vocabulary {vocabulary}: divergence / the head's matrix product", taken / product)
    context.figure(f"vocabulary {vocabulary}: divergence, read", 2 * logits[0][0].nbytes / taken / 1e9, "GB/s")


def time_kernels(context: Context) -> None:
    """Time the kernels at the widths of a 1 B and of an 8 B model, and the divergence at an 8 B model's vocabulary."""
    rounds = 3 if context.dry else ROUNDS
    for width in (64, 128) if context.dry else WIDTHS:
        time_width(context, (2, 16, width) if context.dry else (SEQUENCES, TOKENS, width), rounds)
    time_logits(context, (16, 64, 512) if context.dry else (TOKENS, 4096, 128256), rounds)
    tell_replaced(context)


if __name__ == "__main__":
    run(time_kernels)
