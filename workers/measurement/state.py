"""What a sweep works on: the model, the text, and the streams at their present depth."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import torch

from service.contracts.request import Analysis
from service.contracts.schemes import Scheme
from workers.measurement.memory import PageReturn
from workers.measurement.models.decoder import Arguments, Decoder
from workers.measurement.quantization.outside import QuantisedOutside, in_place
from workers.measurement.quantization.trial import Trials
from workers.measurement.streams import Streams


@dataclass(frozen=True)
class Batch:
    """Sequences of equal length that go through a layer together: B of them, S tokens each."""

    token_ids: torch.Tensor
    """[B, S]."""
    measured: bool = True
    """Whether statistics are taken; labelled prompts only pass through."""


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
    outside: Mapping[str, QuantisedOutside]
    """By scheme: what stands in place of the projections outside the layers."""
    trials: Trials
    """Makes the schemes' copies of the layers."""
    pages: PageReturn = field(default_factory=PageReturn)
    overwritten: set[str] = field(default_factory=set)
    """Projections into whose tensors the layers were seen to write afterwards, by name inside the layer."""

    def logits(self, stream: str, hidden: torch.Tensor) -> torch.Tensor:
        """Return the logits [B, S, V] of a stream's hidden states [B, S, d] after the last layer."""
        with self._ending(stream):
            return self.decoder.logits(hidden)

    def head_input(self, stream: str, hidden: torch.Tensor) -> torch.Tensor:
        """Return what enters the output head for a stream's hidden states after the last layer, [B, S, d] both."""
        with self._ending(stream):
            return self.decoder.head_input(hidden)

    def _ending(self, stream: str) -> AbstractContextManager[None]:
        return in_place(self.decoder.model, self.outside[stream].modules if stream in self.outside else {})

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
