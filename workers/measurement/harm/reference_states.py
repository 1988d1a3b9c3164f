"""Keeps the reference's hidden states before every layer and after the last, sequence by sequence.

Exact swaps leave the reference at these states, and gradients are taken at them, layer by layer from the last. They
take layers x tokens x hidden dimensions x bytes of the model's type, in host memory or in files.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from workers.measurement.harm.gradients.loss_scaling import gradient_type
from workers.measurement.layers.arguments import SharedTensors
from workers.measurement.layers.streams import Layout, Streams
from workers.measurement.models.decoder import Decoder, run_layer
from workers.measurement.models.stand_ins import Arguments


@dataclass(frozen=True)
class Storage:
    """Where streams of hidden states lie: in memory up to a budget, in files beyond it."""

    budget_bytes: int
    """Streams that are larger than this in all lie in files."""
    directory: Path
    """Where those files go; made when it is needed."""


@dataclass(frozen=True)
class ReferenceStates:
    """The reference at every depth, for N sequences of S tokens and d hidden dimensions."""

    decoder: Decoder
    token_ids: torch.Tensor
    """[N, S]."""
    arguments: list[list[Arguments]]
    """By sequence and layer: what the model hands the layer besides the hidden states."""
    states: Streams
    """One stream for each depth, one sequence a batch."""

    def at(self, depth: int, sequence: int) -> torch.Tensor:
        """Return the hidden states after `depth` layers, [1, S, d]; not to be changed."""
        return self.states.get(_name(depth), sequence)

    def streams(self, names: Sequence[str], storage: Storage) -> Streams:
        """Return streams over the same sequences, which hold nothing yet."""
        return self._streams(names, storage, self._layout())

    def gradient_streams(self, draws: int, storage: Storage) -> Streams:
        """Return empty streams for the gradients of every draw, named by their numbers."""
        layout = self._layout()
        wider = Layout(layout.shapes, gradient_type(layout.dtype))
        return self._streams([str(draw) for draw in range(draws)], storage, wider)

    def _layout(self) -> Layout:
        hidden = self.at(0, 0)
        return sequence_layout(self.token_ids.shape, hidden.shape[-1], hidden.dtype)

    def _streams(self, names: Sequence[str], storage: Storage, layout: Layout) -> Streams:
        return Streams(names, layout, self.decoder.device, storage.budget_bytes, storage.directory)


def record_states(
    decoder: Decoder, token_ids: torch.Tensor, storage: Storage, layer_done: Callable[[], None]
) -> ReferenceStates:
    """Take the reference through all layers, and keep its states at every depth.

    Args:
        decoder: the model.
        token_ids: [N, S].
        storage: of the states.
        layer_done: is called after every layer.
    """
    shared, arguments = SharedTensors(), []
    names = [_name(depth) for depth in range(len(decoder.layers) + 1)]
    states: Streams | None = None
    for number, sequence in enumerate(token_ids.split(1)):
        hidden, recorded = decoder.record(sequence)
        states = states or Streams(
            names,
            sequence_layout(token_ids.shape, hidden.shape[-1], hidden.dtype),
            decoder.device,
            storage.budget_bytes,
            storage.directory,
        )
        states.put(_name(0), number, hidden)
        arguments.append(shared.share(recorded))
    if states is None:
        raise ValueError("token_ids: no sequence is not allowed; at least 1 is needed")
    reference = ReferenceStates(decoder, token_ids, arguments, states)
    for index in range(len(decoder.layers)):
        with decoder.resident(index) as layer:
            for number in range(len(token_ids)):
                hidden = run_layer(layer, reference.at(index, number), arguments[number][index])
                states.put(_name(index + 1), number, hidden)
        layer_done()
    return reference


def _name(depth: int) -> str:
    return str(depth)


def sequence_layout(text: tuple[int, ...], width: int, dtype: torch.dtype) -> Layout:
    """Return the layout of the hidden states of a text of [N, S] tokens, one sequence a batch."""
    sequences, tokens = text
    return Layout(((1, tokens, width),) * sequences, dtype)
