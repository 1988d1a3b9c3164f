"""Holds the state of a sweep: the model, the text, and the streams at their present depth."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from service.contracts.request import Analysis
from service.contracts.schemes import Scheme
from workers.measurement.layers.copies.outer_projections import QuantizedOutside, in_place
from workers.measurement.layers.copies.replaceability import ReplaceabilityProbe
from workers.measurement.layers.streams import Streams
from workers.measurement.models.decoder import Decoder
from workers.measurement.models.projections import Projection
from workers.measurement.models.stand_ins import Arguments
from workers.measurement.runtime.memory import PageReturn


@dataclass(frozen=True)
class Batch:
    """Sequences of equal length that go through a layer together: B of them, S tokens each."""

    token_ids: torch.Tensor
    """[B, S]."""
    measured: bool = True
    """Whether statistics are taken; labeled prompts only pass through."""


@dataclass(frozen=True)
class SweepState:
    """A sweep under way."""

    decoder: Decoder
    batches: Sequence[Batch]
    """Measured ones first."""
    schemes: Sequence[Scheme]
    analysis: Analysis
    arguments: Sequence[Sequence[Arguments]]
    """By batch and layer: what the model hands the layer besides the hidden states."""
    streams: Streams
    outside: Mapping[str, QuantizedOutside]
    """By scheme: what stands in place of the projections outside the layers."""
    replaceability: ReplaceabilityProbe
    """Makes the schemes' copies of the layers."""
    kept: Mapping[str, Collection[str]] = field(default_factory=dict)
    """By scheme: full names of the modules that it leaves as they are because its settings say so."""
    pages: PageReturn = field(default_factory=PageReturn)
    overwritten: set[str] = field(default_factory=set)
    """Projections into whose tensors the layers were seen to write afterwards, by name inside the layer."""

    def replaceable(self, layer: int, parts: Sequence[Projection], scheme: str) -> list[Projection]:
        """Return the projections of a layer that a scheme may replace: those that it does not keep."""
        kept, prefix = self.kept.get(scheme, ()), f"{self.decoder.prefix}{layer}"
        return [part for part in parts if f"{prefix}.{part.name}" not in kept]

    def head_input(self, stream: str, hidden: torch.Tensor) -> torch.Tensor:
        """Return the input of the output head, [B, S, e], for a stream's last hidden states [B, S, d].

        A scheme may round a batch's tokens together, so they should be whole batches.
        """
        with in_place(self.decoder.model, self._outside(stream)):
            return self.decoder.head_input(hidden)

    def scorer(self, stream: str, hidden: torch.Tensor) -> Callable[[int, slice], torch.Tensor]:
        """Return a function for the logits [n, V] at n positions of one of the sequences of last hidden states."""
        decoder = self.decoder
        if not self._outside(stream):
            return lambda sequence, chunk: decoder.logits(hidden[sequence, None, chunk])[0]
        entering = self.head_input(stream, hidden)
        return lambda sequence, chunk: decoder.logits_of(
            entering[sequence, None, chunk], hidden[sequence, None, chunk]
        )[0]

    def _outside(self, stream: str) -> Mapping[str, nn.Module]:
        """Return what stands in place of the projections outside the layers."""
        return self.outside[stream].modules if stream in self.outside else {}

    @property
    def measured(self) -> Sequence[Batch]:
        """The batches that are measured."""
        return [batch for batch in self.batches if batch.measured]

    @property
    def sequences(self) -> int:
        """Measured sequences, N."""
        return sum(len(batch.token_ids) for batch in self.measured)

    @property
    def positions(self) -> int:
        """Measured token positions, T."""
        return sum(batch.token_ids.numel() for batch in self.measured)
