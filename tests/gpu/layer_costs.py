"""What a few layers cost by hand and in the sweep, batch by batch and in turn, so that both meet the same machine.

By hand means: the layer's bare forward pass on every batch, and the bare pass of each quantized copy on its own stream,
without statistics. The sweep's are `LayerPass`, with every statistic: of the reference alone, and with one scheme.

    N sequences of S tokens
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import bitsandbytes as bnb
import torch
from safetensors import safe_open
from step_support import seconds

from service.contracts.request import Analysis
from service.contracts.schemes import Scheme
from workers.measurement.layers.copies.quantize_layer import quantize_layer
from workers.measurement.layers.layer_pass import LayerPass
from workers.measurement.layers.streams import REFERENCE
from workers.measurement.layers.sweep import prepare_sweep
from workers.measurement.layers.sweep_state import Batch, SweepState
from workers.measurement.models.checkpoint import open_checkpoint
from workers.measurement.models.decoder import Decoder, run_layer
from workers.measurement.models.loading import load_decoder
from workers.measurement.models.projections import projections, weight_rows

KEPT_ON_DEVICE = 2**36
READING_SECONDS = 0.7
"""More than reading one layer takes, once its file has been read or written."""


@dataclass
class LayerCosts:
    """Seconds of one layer for all batches, by layer."""

    bare: list[float] = field(default_factory=list)
    """The reference's bare forward."""
    stream: list[float] = field(default_factory=list)
    """The reference's pass in the sweep, with every statistic."""
    own: dict[str, list[float]] = field(default_factory=dict)
    """The bare forward of each scheme's copy."""
    added: dict[str, list[float]] = field(default_factory=dict)
    """What each scheme adds to the sweep's pass: its stream, its run on the reference's inputs, and all comparisons."""
    quantized: dict[str, list[float]] = field(default_factory=dict)
    """Quantizing the projections by bitsandbytes' functions alone."""
    copied: dict[str, list[float]] = field(default_factory=dict)
    """What a scheme's copy takes in the sweep, with weight errors."""

    def ratios(self) -> dict[str, float]:
        """Return the sweep's streams beside the bare passes; medians over layers."""
        found = {REFERENCE: median(a / b for a, b in zip(self.stream, self.bare, strict=True))}
        for name, added in self.added.items():
            found[name] = median(a / b for a, b in zip(added, self.own[name], strict=True))
        return found

    def forwards(self) -> float:
        """Return the seconds of a layer's forwards that no sweep avoids: each scheme's twice, on either inputs."""
        return median(self.bare) + 2 * sum(median(taken) for taken in self.own.values())

    def quantizing(self) -> float:
        """Return the seconds in which a layer is quantized to every scheme by hand."""
        return sum(median(taken) for taken in self.quantized.values())


def state_of(decoder: Decoder, token_ids: torch.Tensor, batch: int, schemes: Sequence[Scheme], at: Path) -> SweepState:
    """Return a sweep that is ready for the first layer; token_ids: [N, S]."""
    batches = [Batch(part) for part in token_ids.split(batch)]
    return prepare_sweep(decoder, batches, schemes, Analysis(), budget_bytes=KEPT_ON_DEVICE, directory=at)


def open_decoder(path: Path, device: str, scratch: Path) -> Decoder:
    """Return the decoder of a checkpoint."""
    return load_decoder(open_checkpoint(path), torch.device(device), scratch)


class _ByHand:
    """A stream that is advanced without the sweep."""

    def __init__(self, state: SweepState, device: str) -> None:
        self._device = device
        self._arguments = state.arguments
        self._hidden = [state.streams.get(REFERENCE, number).clone() for number in range(len(state.batches))]

    def seconds(self, layer: Any, index: int, *, advance: bool = True) -> float:
        """Return what a layer takes for all batches."""
        after: list[torch.Tensor] = []

        def run() -> None:
            for hidden, arguments in zip(self._hidden, self._arguments, strict=True):
                after.append(run_layer(layer, hidden, arguments[index]))

        taken = seconds(run, self._device)
        if advance:
            self._hidden = after
        return taken


def layer_costs(
    decoder: Decoder, token_ids: torch.Tensor, batch: int, schemes: Sequence[Scheme], layers: int, scratch: Path
) -> LayerCosts:
    """Time the first layers; one more before them compiles and warms up, and does not count."""
    device, costs = str(decoder.device), LayerCosts()
    states = {s.name: state_of(decoder, token_ids, batch, [s], scratch / s.name) for s in schemes}
    reference = state_of(decoder, token_ids, batch, [], scratch / REFERENCE)
    hands = {name: _ByHand(reference, device) for name in (REFERENCE, *states)}
    for index in range(min(layers + 1, len(decoder.layers))):
        counted = costs if index else LayerCosts()
        with decoder.resident(index) as layer:
            _let_reading_end(hands[REFERENCE], layer, index, device)
            before = hands[REFERENCE].seconds(layer, index, advance=False)
            stream = _pass_seconds(reference, index, layer, device)[1]
            counted.stream.append(stream)
            counted.bare.append((before + hands[REFERENCE].seconds(layer, index)) / 2)
            for scheme in schemes:
                copied, whole = _pass_seconds(states[scheme.name], index, layer, device)
                _append(counted.copied, scheme.name, copied)
                _append(counted.added, scheme.name, whole - stream)
                _time_copy(decoder, index, layer, scheme, hands[scheme.name], counted)
    return costs


def _let_reading_end(hand: _ByHand, layer: Any, index: int, device: str) -> None:
    """Pass the time in which the next layer is fetched on CUDA: it would take the host's time from what is timed."""
    until = time.monotonic() + (READING_SECONDS if device != "cpu" else 0)
    while time.monotonic() < until:
        hand.seconds(layer, index, advance=False)


def _time_copy(decoder: Decoder, index: int, layer: Any, scheme: Scheme, hand: _ByHand, costs: LayerCosts) -> None:
    """Quantize the layer by hand, and time its copy's bare forward."""
    device, parts = str(decoder.device), projections(layer, decoder.layer_config(index))
    weights = [weight_rows(layer.get_submodule(part.name)) for part in parts if part.quantized]
    _append(costs.quantized, scheme.name, seconds(lambda: _quantize(weights, scheme.settings), device))
    copied = quantize_layer(layer, parts, scheme).module
    _append(costs.own, scheme.name, hand.seconds(copied, index))


def _quantize(weights: Sequence[torch.Tensor], settings: Mapping[str, Any]) -> None:
    for weight in weights:
        if "threshold" in settings:
            bnb.functional.int8_vectorwise_quant(weight.detach().half())
        else:
            bnb.functional.quantize_4bit(
                weight.detach(), blocksize=settings["block_size"], quant_type=settings["quant_type"]
            )


def _pass_seconds(state: SweepState, index: int, layer: Any, device: str) -> tuple[float, float]:
    """Return the seconds of making a layer's copies, and of the layer's pass in the sweep."""
    made: list[LayerPass] = []
    copied = seconds(lambda: made.append(LayerPass(state, index, layer)), device)
    return copied, seconds(made[0].run, device)


def _append(lists: dict[str, list[float]], name: str, value: float) -> None:
    lists.setdefault(name, []).append(value)


def head_seconds(decoder: Decoder, token_ids: torch.Tensor, batch: int) -> float:
    """Return the seconds that the output head takes for one variant's tokens [N, S], from those of one batch."""
    hidden, _ = decoder.record(token_ids[:batch])
    taken = [seconds(lambda: decoder.logits(hidden), str(decoder.device)) for _ in range(3)]
    return min(taken) * len(token_ids) / len(token_ids[:batch])


def read_seconds(path: Path, device: str) -> float:
    """Return the seconds in which all weight files come to the device, from those of a few."""
    files = sorted(path.glob("*.safetensors"))
    few = files[1:3] or files

    def read() -> None:
        for name, file in _tensors(few):
            file.get_tensor(name)

    def _tensors(paths: Sequence[Path]) -> Iterator[tuple[str, Any]]:
        for one in paths:
            with safe_open(one, framework="pt", device=device) as file:
                for name in file.keys():  # noqa: SIM118 - no mapping
                    yield name, file

    whole, part = (sum(file.stat().st_size for file in those) for those in (files, few))
    return seconds(read, device) * whole / part
