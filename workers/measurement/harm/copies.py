"""Makes the schemes' copies of a layer, with the facts about every module in them that harm needs.

M modules that a scheme replaces
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from service.contracts.schemes import BITSANDBYTES_4BIT, Scheme
from workers.measurement.layers.copies.quantize_layer import QuantizedLayer, copy_to_quantize
from workers.measurement.layers.sweep_state import SweepState
from workers.measurement.models.decoder import Decoder
from workers.measurement.models.projections import ATTENTION_INPUT, MLP_INPUT, Projection, projections, weight_rows

_STREAM_INPUTS = (ATTENTION_INPUT[0], MLP_INPUT[0])
"""Names of the inputs that are the residual stream after a norm."""


class Module(NamedTuple):
    """A module that a scheme replaces."""

    layer: int
    name: str
    """Inside the layer."""


@dataclass(frozen=True)
class LayerCopies:
    """A layer, and every scheme's copy of it."""

    index: int
    layer: nn.Module
    parts: list[Projection]
    copies: Mapping[str, QuantizedLayer]
    """By scheme."""

    def alone(self, scheme: str, name: str) -> nn.Module:
        """Return a copy of the layer in which the scheme replaces one module."""
        copied = copy_to_quantize(self.layer)
        copied.set_submodule(name, self.copies[scheme].replaced[name].module)
        return copied.eval()

    def weight_changes(self, scheme: Scheme, hidden_size: int) -> dict[str, torch.Tensor]:
        """Return Q(W) - W, [out, d] in the layer's type, of the modules that read the residual stream.

        A scheme that also rounds inputs has none: its errors are no sum over input channels.
        """
        if not weight_only(scheme):
            return {}
        reading = (part for part in self.parts if part.input_component in _STREAM_INPUTS)
        changes = {}
        for part in reading:
            quantized = self.copies[scheme.name].replaced.get(part.name)
            weight = weight_rows(self.layer.get_submodule(part.name))
            if quantized is not None and weight.shape[1] == hidden_size:
                stands_for = quantized.dequantized(slice(0, len(weight))).to(weight.device)
                changes[part.name] = (stands_for.float() - weight.float()).to(weight.dtype)
        return changes


def components_of(decoder: Decoder) -> dict[Module, str]:
    """Return the components of all modules of the layers that a scheme may replace."""
    return {
        Module(index, part.name): component_of(part)
        for index, layer in enumerate(decoder.layers)
        for part in projections(layer, decoder.layer_config(index))
    }


def copy_layer(state: SweepState, index: int, layer: nn.Module) -> LayerCopies:
    """Return every scheme's copy of a layer that is in memory."""
    parts = projections(layer, state.decoder.layer_config(index))
    copies = {
        scheme.name: state.replaceability.quantize(index, layer, state.replaceable(index, parts, scheme.name), scheme)
        for scheme in state.schemes
    }
    return LayerCopies(index, layer, parts, copies)


def weight_only(scheme: Scheme) -> bool:
    """Whether a scheme rounds weights alone, and takes inputs as they come."""
    return scheme.kernel == BITSANDBYTES_4BIT or (scheme.simulated and "input_format" not in scheme.settings)


def component_of(part: Projection) -> str:
    """Return the component that a module computes, or `attn.qkv` and the like of one that computes several."""
    if len(part.parts) == 1:
        return next(iter(part.parts))
    group = next(iter(part.parts)).partition(".")[0]
    return f"{group}.{('' if group == 'attn' else '_').join(name.partition('.')[2] for name in part.parts)}"
