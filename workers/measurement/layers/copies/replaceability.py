"""Probes which projections of a layer can be replaced: runs the first layer of every kind on a few tokens.

A layer may use a projection in other ways than to call it, and then its quantized module cannot replace it:

- it multiplies by the weight itself (Mamba): a bitsandbytes module raises an error there, and a simulated one would
  round the weight but never the input;
- it casts the input to the weight's dtype (the indexer of DeepSeek-V3.2): the activations become integers, without an
  error.

Such a projection stays in 16 bits, as it has to in a deployed model.

    S tokens, d hidden dimensions
"""

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import nn

from service.contracts.schemes import Scheme
from workers.measurement.errors import CannotQuantize, first_line
from workers.measurement.layers.capture import capturing
from workers.measurement.layers.copies.quantize_layer import QuantizedLayer, copy_to_quantize, quantize_layer
from workers.measurement.models.decoder import run_layer
from workers.measurement.models.projections import Projection
from workers.measurement.models.stand_ins import Arguments
from workers.measurement.runtime.memory import is_fatal


class _Run(NamedTuple):
    """The outputs of a layer and its projections on the probe's tokens."""

    hidden: torch.Tensor
    """The layer's output, [1, S, d]."""
    types: dict[str, torch.dtype]
    """The dtype of the output of every projection that the layer called."""


class ReplaceabilityProbe:
    """Quantizes layers, and probes the first layer of every kind on a few tokens for what can be replaced."""

    def __init__(self, hidden: torch.Tensor, arguments: Sequence[Arguments]) -> None:
        """Keep the probe's tokens; no layer is run yet.

        Args:
            hidden: hidden states of a few tokens, [1, S, d].
            arguments: by layer, the other arguments with which the model calls it.
        """
        self._hidden = hidden
        self._arguments = arguments
        self._left: dict[tuple[object, ...], dict[str, str]] = {}

    def quantize(self, index: int, layer: nn.Module, parts: Sequence[Projection], scheme: Scheme) -> QuantizedLayer:
        """Return a copy of layer `index` in which every projection that can be replaced is quantized.

        Raises:
            CannotQuantize: the copy fails, though it runs with any single one of them quantized; names the failure.
        """
        kind = (scheme.name, type(layer), *(part.name for part in parts))
        if kind in self._left:
            return quantize_layer(layer, parts, scheme, self._left[kind])
        expected = self._run(index, copy_to_quantize(layer), parts)
        self._left[kind] = self._uncalled(index, layer, parts, expected)
        quantized = quantize_layer(layer, parts, scheme, self._left[kind])
        if self._fault(index, quantized.module, parts, expected):
            self._left[kind] |= self._irreplaceable(index, layer, parts, scheme, expected)
            quantized = quantize_layer(layer, parts, scheme, self._left[kind])
            if fault := self._fault(index, quantized.module, parts, expected):
                raise CannotQuantize(f"{scheme.name}: layer {index} does not run quantized: {fault}")
        return quantized

    def _uncalled(self, index: int, layer: nn.Module, parts: Sequence[Projection], expected: _Run) -> dict[str, str]:
        """Return the projections that the layer does not call, though its output depends on their weights."""
        silent = [part.name for part in parts if part.quantized and part.name not in expected.types]
        if not silent or not self._matter(index, layer, silent, expected) or self._matter(index, layer, [], expected):
            return {}  # the last: two equal runs differ on this device, so that nothing can be concluded
        used = (name for name in silent if self._matter(index, layer, [name], expected))
        return dict.fromkeys(used, "the layer uses the weight directly and does not call the module")

    def _matter(self, index: int, layer: nn.Module, names: Sequence[str], expected: _Run) -> bool:
        """Whether NaN in place of the weights of some projections changes the layer's output."""
        copied = copy_to_quantize(layer)
        for name in names:
            module = copied.get_submodule(name)
            weight = cast(torch.Tensor, module.weight)
            module.weight = nn.Parameter(weight.new_tensor(torch.nan).expand_as(weight), requires_grad=False)
        try:
            hidden = self._run(index, copied, []).hidden
        except Exception as error:  # as below; a check inside the layer raised on NaN
            if is_fatal(error):
                raise
            return True
        return not torch.allclose(hidden, expected.hidden, rtol=0, atol=0, equal_nan=True)

    def _irreplaceable(
        self, index: int, layer: nn.Module, parts: Sequence[Projection], scheme: Scheme, expected: _Run
    ) -> dict[str, str]:
        """Return the projections that make the layer fail when they alone are quantized, and its failure."""
        alone = {part.name: quantize_layer(layer, [part], scheme).module for part in parts}
        faults = {name: self._fault(index, module, parts, expected) for name, module in alone.items()}
        return {name: f"the layer uses the weight directly ({fault})" for name, fault in faults.items() if fault}

    def _fault(self, index: int, copied: nn.Module, parts: Sequence[Projection], expected: _Run) -> str | None:
        """Return the error of a copy of a layer, or the projection whose output has another dtype; None if neither."""
        try:
            types = self._run(index, copied, parts).types
        except Exception as error:  # a model's code fails in as many ways as there are models
            if is_fatal(error):
                raise
            return first_line(error)
        differing = (name for name, kind in expected.types.items() if types.get(name, kind) != kind)
        return next((f"{name} gives {types[name]} instead of {expected.types[name]}" for name in differing), None)

    def _run(self, index: int, module: nn.Module, parts: Sequence[Projection]) -> _Run:
        with capturing(module, parts) as captured:
            hidden = run_layer(module, self._hidden, self._arguments[index])
        return _Run(hidden, {name: output.dtype for name, output in captured.outputs.items()})
