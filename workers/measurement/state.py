"""What a sweep works on: the model, the text, and the streams at their present depth."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from service.contracts.request import Analysis
from service.contracts.schemes import Scheme
from workers.measurement.models.decoder import Arguments, Decoder
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

    @property
    def measured(self) -> Sequence[Batch]:
        """The batches that are measured."""
        return [batch for batch in self.batches if batch.measured]

    @property
    def positions(self) -> int:
        """Measured token positions, T."""
        return sum(batch.token_ids.numel() for batch in self.measured)
