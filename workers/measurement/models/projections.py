"""Lists the projections of a decoder layer: its Linear modules, by the names of the components they compute.

What the table of components does not name keeps its module name as its component, and so does a fused module whose
outputs are not as many as its layout says; a decoder that is not in the table is still measured whole.
"""

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from workers.measurement.models.components import ARCHITECTURES, Architecture, Rows, Split

ATTENTION_INPUT = ("attn.q", "attn.k", "attn.v")
MLP_INPUT = ("mlp.up", "mlp.gate")
BLOCK = "block"

_WHOLE = slice(None)
_UNKNOWN = Architecture(modules={})


@dataclass(frozen=True)
class Projection:
    """A Linear (or Conv1D) of a decoder layer."""

    name: str
    """Module name inside the layer."""
    parts: dict[str, Rows]
    """Component -> its output channels."""
    input_component: str
    """The component whose name the input tensor carries: q for q, k, v; up for gate, up; else its own."""
    quantized: bool
    """Schemes replace it. They leave what bitsandbytes leaves: Linears of a class of their own, as Falcon's."""


def is_projection(module: nn.Module) -> bool:
    """Tell whether bitsandbytes replaces the module: exactly a Linear, or GPT-2's Conv1D."""
    return type(module) is nn.Linear or isinstance(module, Conv1D)


def weight_rows(module: nn.Module) -> torch.Tensor:
    """Return a projection's weight as [out, in], whichever way it is stored: a Conv1D's is [in, out]."""
    weight = cast(torch.Tensor, module.weight).detach()
    return weight.T if isinstance(module, Conv1D) else weight


def projections(layer: nn.Module, config: Any) -> list[Projection]:
    """Return the projections of a decoder layer, in the order of its modules.

    A Linear of a class of its own is one if the table names it: others may return anything (Llama 4's router
    returns a pair).
    """
    architecture = ARCHITECTURES.get(config.model_type, _UNKNOWN)
    layer_projections = []
    for name, module in layer.named_modules():
        entry = architecture.modules.get(name)
        if is_projection(module) or (entry is not None and isinstance(module, nn.Linear)):
            parts = _parts(entry or name, name, len(weight_rows(module)), config)
            carries = architecture.inputs.get(name) or _shared_name(next(iter(parts)))
            layer_projections.append(Projection(name, parts, carries, quantized=is_projection(module)))
    return layer_projections


def _parts(entry: str | Split, name: str, width: int, config: Any) -> dict[str, Rows]:
    if isinstance(entry, str):
        return {entry: _WHOLE}
    parts = entry(config)
    described = sum(r.stop - r.start if isinstance(r, slice) else len(r) for r in parts.values())
    return parts if described == width else {name: _WHOLE}


def _shared_name(component: str) -> str:
    for shared in (ATTENTION_INPUT, MLP_INPUT):
        if component in shared:
            return shared[0]
    return component
