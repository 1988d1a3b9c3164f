"""Measures harm exactly: every swap is a stream that leaves the reference at its layer and goes on from there.

A swap replaces one part of the reference: a layer or a module by its quantized form, or a layer's output by the same
moved by one representable value. Everything else is the reference's own. Its harm is the mean KL divergence of its
next-token distributions from the reference's. Each layer is read once, for all swaps together.

    N sequences of S tokens, d hidden dimensions
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from workers.measurement.harm.reference_states import ReferenceStates
from workers.measurement.layers.streams import Streams
from workers.measurement.models.decoder import run_layer
from workers.measurement.statistics.backends import compare_logits, score_logits

F64 = npt.NDArray[np.float64]


def swap_sweep(
    reference: ReferenceStates,
    swaps: Mapping[int, Sequence[str]],
    modules: Callable[[int, nn.Module], Mapping[str, Callable[..., torch.Tensor]]],
    *,
    first: int,
    step: int,
    budget_bytes: int,
    directory: Path,
) -> dict[str, F64]:
    """Return every swap's KL divergence from the reference at the scored positions, [N, n] nats, by its name.

    Args:
        reference: its states at every depth.
        swaps: names of the swaps by the layer at which they leave the reference.
        modules: from a layer's number and the layer to what stands in its place, by swap; called once for each layer
            that has swaps.
        first: first scored position of each sequence.
        step: positions whose logits are held at a time.
        budget_bytes: hidden states that are larger than this in all lie in files.
        directory: where those files go; made when it is needed.
    """
    decoder, sequences = reference.decoder, range(len(reference.token_ids))
    names = [name for of_layer in swaps.values() for name in of_layer]
    streams = Streams(names, reference.layout, decoder.device, budget_bytes, directory)
    under_way: list[str] = []
    for index in range(len(decoder.layers)):
        with decoder.resident(index) as layer:
            starting = modules(index, layer) if swaps.get(index) else {}
            for number in sequences:
                arguments = reference.arguments[number][index]
                for name in under_way:
                    streams.put(name, number, run_layer(layer, streams.get(name, number), arguments))
                for name in swaps.get(index, ()):
                    hidden = run_layer(starting[name], reference.at(index, number), arguments)
                    streams.put(name, number, hidden)
        under_way += swaps.get(index, ())
    return _divergences(reference, streams, first, step)


def _divergences(reference: ReferenceStates, streams: Streams, first: int, step: int) -> dict[str, F64]:
    """Return the KL divergence of every stream after the last layer, [N, n], by name."""
    decoder, length = reference.decoder, reference.token_ids.shape[1]
    found: dict[str, list[F64]] = {name: [] for name in streams.names}
    for number, token_ids in enumerate(reference.token_ids):
        own = reference.at(len(decoder.layers), number)
        parts: dict[str, list[torch.Tensor]] = {name: [] for name in streams.names}
        for start in range(first, length - 1, step):
            chunk = slice(start, min(start + step, length - 1))
            logits = decoder.logits(own[:, chunk])[0]
            next_ids = token_ids[chunk.start + 1 : chunk.stop + 1].to(logits.device)
            log_sum_exp = score_logits(logits, next_ids)[0]
            for name in streams.names:
                swapped = decoder.logits(streams.get(name, number)[:, chunk])[0]
                parts[name].append(compare_logits(logits, log_sum_exp, swapped, next_ids)[3].clamp(min=0))
        for name, of_chunks in parts.items():
            found[name].append(torch.cat(of_chunks).cpu().numpy())
    return {name: np.stack(values) for name, values in found.items()}


def rerounded(hidden: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return hidden states with each element moved one representable value up or down, with probability 1/2 each."""
    up = torch.rand(hidden.shape, generator=generator).to(hidden.device) < 0.5
    end = torch.where(up, torch.inf, -torch.inf).to(hidden.dtype)
    return torch.nextafter(hidden, end)
