"""Advances a stream through one layer, a batch at a time.

B sequences of S tokens in a batch, d hidden dimensions
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from workers.measurement.errors import CannotQuantize, first_line
from workers.measurement.layers.capture import Capture, capturing
from workers.measurement.layers.streams import REFERENCE
from workers.measurement.layers.sweep_state import SweepState
from workers.measurement.models.decoder import run_layer
from workers.measurement.models.projections import Projection
from workers.measurement.runtime.memory import is_fatal


@dataclass(frozen=True)
class LayerStreams:
    """The streams before one layer, each with the module (the layer or a quantized copy) that advances it."""

    state: SweepState
    layer: int
    parts: Sequence[Projection]
    """The layer's projections, which are captured."""

    def advance(self, stream: str, module: nn.Module, batch: int) -> torch.Tensor:
        """Replace a stream's batch by the module's output for it, and return that, [B, S, d]."""
        hidden = self._run(stream, module, batch)
        self.state.streams.put(stream, batch, hidden)
        return hidden

    def advance_captured(self, stream: str, module: nn.Module, batch: int) -> tuple[Capture, torch.Tensor]:
        """Do the same, and capture the projections' inputs and outputs as they were, whatever the layer did to them.

        A layer that is seen to write into a captured tensor runs once more, with copies of those tensors.
        """
        with capturing(module, self.parts, self.state.overwritten) as captured:
            hidden = self._run(stream, module, batch)
        if overwritten := captured.overwritten():
            self.state.overwritten.update(overwritten)
            return self.advance_captured(stream, module, batch)
        self.state.streams.put(stream, batch, hidden)
        return captured, hidden

    def _run(self, stream: str, module: nn.Module, batch: int) -> torch.Tensor:
        arguments = self.state.arguments[batch][self.layer]
        try:
            return run_layer(module, self.state.streams.get(stream, batch), arguments)
        except RuntimeError as error:
            if stream == REFERENCE or is_fatal(error):
                raise
            # On a few tokens the first layer of its kind did.
            where = f"{stream}: layer {self.layer}"
            raise CannotQuantize(f"{where} does not run quantized: {first_line(error)}") from error
