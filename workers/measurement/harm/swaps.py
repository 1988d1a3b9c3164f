"""Measures harm exactly: every swap is a stream that branches off the reference at its layer.

A swap replaces one part of the reference: a layer or a module by its quantized form, or a layer's output by the same
moved by one representable value. Everything else is the reference's own. Its harm is the mean KL divergence of its
next-token distributions from the reference's. Each layer is read once for all swaps of a group, and every layer
boundary is a place to go on from.

    N sequences of S tokens, n scored positions of each, d hidden dimensions
"""

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from workers.measurement.harm.copies import LayerCopies
from workers.measurement.harm.reference_states import ReferenceStates
from workers.measurement.layers.streams import Streams
from workers.measurement.models.decoder import run_layer
from workers.measurement.statistics.backends import compare_logits, score_logits

F64 = npt.NDArray[np.float64]
CopyLayer = Callable[[int, nn.Module], LayerCopies]


class Swap(NamedTuple):
    """One change of the reference."""

    layer: int
    """Where it leaves the reference."""
    kind: Literal["nothing", "rounding", "layer", "module"]
    scheme: str = ""
    """Of a layer or a module."""
    module: str = ""
    """Inside the layer."""

    @property
    def key(self) -> str:
        """A text that is different for every swap."""
        return ":".join(map(str, self))


def swap_layers(
    reference: ReferenceStates, swaps: Sequence[Swap], streams: Streams, copy_layer: CopyLayer, seed: int, done: int = 0
) -> Iterator[int]:
    """Advance the swaps' streams layer by layer, and yield how many layers they are through.

    Args:
        reference: its states at every depth.
        swaps: those of one group.
        streams: one for each, by its key; those of swaps before layer `done` are through `done` layers.
        copy_layer: makes the schemes' copies of a layer.
        seed: of the swaps that move what a layer gives.
        done: layers that the streams are through.
    """
    decoder = reference.decoder
    for index in range(max(done, min(swap.layer for swap in swaps)), len(decoder.layers)):
        with decoder.resident(index) as layer:
            before = [swap.key for swap in swaps if swap.layer < index]
            starts = _starts(reference, [swap for swap in swaps if swap.layer == index], layer, copy_layer, seed)
            for number in range(len(reference.token_ids)):
                arguments = reference.arguments[number][index]
                for key in before:
                    streams.put(key, number, run_layer(layer, streams.get(key, number), arguments))
                for key, start in starts.items():
                    streams.put(key, number, start(number))
        del layer, starts
        gc.collect()
        yield index + 1


def _starts(
    reference: ReferenceStates, swaps: Sequence[Swap], layer: nn.Module, copy_layer: CopyLayer, seed: int
) -> dict[str, Callable[[int], torch.Tensor]]:
    """Return what gives the hidden states of a sequence after the layer at which these swaps leave, by their keys."""
    if not swaps:
        return {}
    index = swaps[0].layer
    replacing = any(swap.scheme for swap in swaps)
    copies = copy_layer(index, layer) if replacing else None

    def through(module: nn.Module) -> Callable[[int], torch.Tensor]:
        return lambda number: run_layer(module, reference.at(index, number), reference.arguments[number][index])

    def moved() -> Callable[[int], torch.Tensor]:
        generator = torch.Generator().manual_seed(seed + index)
        return lambda number: rerounded(reference.at(index + 1, number), generator)

    starts = {}
    for swap in swaps:
        if swap.kind == "rounding":
            starts[swap.key] = moved()
        elif copies is None or swap.kind == "nothing":
            starts[swap.key] = through(layer)
        elif swap.kind == "layer":
            starts[swap.key] = through(copies.copies[swap.scheme].module)
        else:
            starts[swap.key] = through(copies.alone(swap.scheme, swap.module))
    return starts


def divergences(reference: ReferenceStates, streams: Streams, first: int, step: int) -> Iterator[Mapping[str, F64]]:
    """Yield, sequence by sequence, the KL divergence of every stream after the last layer, [n] nats by key.

    Args:
        reference: its states at every depth.
        streams: of the swaps.
        first: first scored position of each sequence.
        step: positions whose logits are held at a time.
    """
    decoder, length = reference.decoder, reference.token_ids.shape[1]
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
        yield {name: torch.cat(of_chunks).cpu().numpy() for name, of_chunks in parts.items()}


def rerounded(hidden: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return hidden states with each element moved one representable value up or down, with probability 1/2 each."""
    up = torch.rand(hidden.shape, generator=generator).to(hidden.device) < 0.5
    end = torch.where(up, torch.inf, -torch.inf).to(hidden.dtype)
    return torch.nextafter(hidden, end)
