"""What a measurement of a Llama of real size costs, beside the forward passes that it cannot avoid.

The floor is reading the weights, the reference's bare forward, quantizing to int8 and nf4, each scheme's forward on
its own stream and once more on the reference's inputs, and the output head of all three; as in
`tests/benchmarks/sweep_cost.py`. It is timed on some layers and part of the text, all layers being alike.

    N sequences of S tokens
"""

import argparse
import gc
import io
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from big_models import checkpoint, random_tokens
from step_correctness import request_of
from step_support import Context, quiet, run, tell_replaced

if TYPE_CHECKING:
    from layer_costs import LayerCosts


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    shape: tuple[int, int]
    """[N, S] of the whole measurement."""
    timed: int
    """Sequences of it with which layers are timed."""
    batch: int
    layers: int
    """Layers that are timed."""


SIZES = {
    "1b": Sizes((32, 2048), timed=32, batch=8, layers=6),
    "8b": Sizes((16, 2048), timed=16, batch=4, layers=4),
    "long": Sizes((128, 2048), timed=16, batch=8, layers=2),
    "dry": Sizes((4, 32), timed=4, batch=2, layers=1),
}
HOST_BYTES = 16 << 30
"""Enough for the hidden states of every stream, so that none lies in a file."""
GOAL_STREAM, GOAL_WHOLE, GOAL_SECONDS = 1.15, 1.25, 60.0
"""Statistics beside the bare forward; the measurement beside its floor; seconds of the long one on an H200."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what tells the costs' steps apart."""
    parser.add_argument("--shape", choices=["1b", "8b"], required=True)
    parser.add_argument("--long", action="store_true", help="128 sequences; layers are timed for the floor alone")


def tell_costs(context: Context) -> None:
    """Tell what layers cost, then what the whole measurement does."""
    quiet()
    import torch
    from layer_costs import head_seconds, layer_costs, open_decoder, read_seconds

    from service.contracts.request import schemes_for
    from workers.measurement.quantization.resolving import resolved

    sizes = SIZES["dry" if context.dry else "long" if context.given.long else context.given.shape]
    started = time.monotonic()
    path = checkpoint(context, context.given.shape)
    context.figure("making the checkpoint, where no step has before", time.monotonic() - started, "s")
    name = f"{context.given.shape}-{'long' if context.given.long else 'short'}"
    tokens = random_tokens(context, name, sizes.shape)
    settings = {"batch_sequences": sizes.batch, "memory_bytes": HOST_BYTES}
    request = request_of(path, tokens, sizes.shape, context.device, **settings)
    rows = tokens.read_text().splitlines()[: sizes.timed]
    token_ids = torch.tensor([json.loads(row)["token_ids"] for row in rows])
    decoder = open_decoder(path, context.device, context.scratch / f"{name}-offloaded")
    scratch = context.scratch / f"{name}-streams"
    schemes = [resolved(scheme, decoder.dtype) for scheme in schemes_for(request)]
    costs = layer_costs(decoder, token_ids, sizes.batch, schemes, sizes.layers, scratch)
    part = sizes.timed / sizes.shape[0]
    layers = len(decoder.layers)
    head = head_seconds(decoder, token_ids, sizes.batch) / part
    floor = {
        "reading": read_seconds(path, context.device),
        "quantizing": layers * costs.quantizing(),
        "forwards": layers * costs.forwards() / part,
        "heads": (1 + len(schemes)) * head,
    }
    context.detail("floor_seconds", floor)
    context.figure("bare bf16 forward without the head", layers * sum(costs.bare) / len(costs.bare) / part, "s")
    tell_streams(context, costs)
    if not context.given.long:
        watch(context, decoder, token_ids, sizes, schemes)
    limit = memory_limit(decoder, request, sizes)
    del decoder
    gc.collect()  # bitsandbytes' modules and weights refer to each other
    tell_whole(context, request, sum(floor.values()), limit, context.scratch / f"{name}-out")


def tell_streams(context: Context, costs: "LayerCosts") -> None:
    """Tell the streams beside their bare forwards."""
    for name, ratio in costs.ratios().items():
        if name == "reference":
            context.figure("reference stream with every statistic / bare forward", ratio, at_most=GOAL_STREAM)
        else:
            context.figure(f"{name} stream / its own bare forward, of which it needs two", ratio)
    context.detail("layer_seconds", vars(costs))


def watch(context: Context, decoder: Any, token_ids: Any, sizes: Sizes, schemes: Any) -> None:
    """Tell how busy the device is, and how often the host waits for it."""
    from device_watch import watch_device, watch_host
    from layer_costs import state_of

    few, many = (token_ids[: batches * sizes.batch] for batches in ((1, 2) if context.dry else (2, 4)))
    streams = context.scratch / "watched"
    for asked in ((), schemes):
        watch_host(context, decoder, *(state_of(decoder, ids, sizes.batch, asked, streams) for ids in (few, many)))
    watch_device(context, decoder, state_of(decoder, token_ids, sizes.batch, schemes, streams))


def memory_limit(decoder: Any, request: Any, sizes: Sizes) -> float:
    """Return the bytes of two layers, their copies, a batch, and what lies outside the layers.

    A batch is what enters and leaves every projection, of the reference and of one scheme.
    """
    from service.contracts.request import schemes_for

    weights = [parameter for parameter in decoder.layers[0].parameters() if parameter.ndim == 2]
    layer = sum(parameter.nbytes for parameter in decoder.layers[0].parameters())
    elements = sum(parameter.numel() for parameter in weights)
    copies = sum(scheme.weight_bits / 8 * elements + 4 * elements / 64 for scheme in schemes_for(request))
    outside = sum(p.nbytes for p in decoder.model.parameters() if p.device.type != "meta")
    batch = 2 * 2 * sizes.batch * sizes.shape[1] * sum(sum(parameter.shape) for parameter in weights)
    return 2 * layer + copies + outside + batch


def goal_seconds(device: str, *, long: bool) -> float | None:
    """Return what the whole measurement may take on a device of that name; None where no goal is set."""
    return GOAL_SECONDS if long and "H200" in device else None


def tell_whole(context: Context, request: Any, floor: float, limit: float, out: Path) -> None:
    """Measure with int8 and nf4, and tell what that took; how far it came is told on the way."""
    import torch

    from workers.measurement.program import measure
    from workers.measurement.runtime.progress import ProgressReporter

    class Telling(ProgressReporter):
        def _say(self, line: Any) -> None:
            if getattr(line, "stage", "") in ("sweep", "divergence"):
                context.detail("progress", f"{line.stage}: {line.done} of {line.total} after {self.elapsed:.1f} s")

    if context.on_cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(context.device)
    reporter = Telling(out=io.StringIO())
    measure(request, out, reporter)
    taken = reporter.elapsed
    tokens = request.sequences * request.sequence_length
    device = torch.cuda.get_device_name(context.device) if context.on_cuda else "cpu"
    goal = goal_seconds(device, long=context.given.long)
    context.figure(f"whole measurement with int8 and nf4, {tokens} tokens", taken, "s", goal)
    context.figure("whole measurement / forwards that cannot be avoided", taken / floor, at_most=GOAL_WHOLE)
    context.figure("tokens per second", tokens / taken)
    context.detail("stage_seconds", reporter.stage_seconds)
    context.detail("warnings", [warning.code for warning in reporter.warnings])
    tell_replaced(context)
    peak = torch.cuda.max_memory_allocated(context.device) / 1e9 if context.on_cuda else None
    context.figure("peak device memory", peak, "GB", limit / 1e9)
    reserved = torch.cuda.max_memory_reserved(context.device) / 1e9 if context.on_cuda else None
    context.figure("device memory that the allocator took for it", reserved, "GB")


if __name__ == "__main__":
    run(tell_costs, add_options)
