"""Finds out which projections of a layer can be replaced, by a trial of the first layer of every kind.

A layer may do more with a projection than call it: multiply by its weight (Mamba), or bring the input into its
weight's type (the indexer of DeepSeek-V3.2). With a quantised module in that place it breaks off, or rounds to integers
without a word. Such a projection stays as it is, as whoever deploys the model has to leave it.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from service.contracts.schemes import Scheme
from workers.measurement.capture import capturing
from workers.measurement.errors import CannotQuantise, first_line
from workers.measurement.memory import ran_out
from workers.measurement.models.decoder import run_layer
from workers.measurement.models.projections import Projection
from workers.measurement.models.stand_ins import Arguments
from workers.measurement.quantization.layer import NOTHING, QuantisedLayer, quantise_layer


class Trials:
    """Quantises layers, and tries the first of every kind on a few tokens."""

    def __init__(self, hidden: torch.Tensor, arguments: Sequence[Arguments]) -> None:
        """Try nothing yet.

        Args:
            hidden: hidden states of a few tokens, [1, S, d].
            arguments: by layer, what the model would hand it besides them.
        """
        self._hidden = hidden
        self._arguments = arguments
        self._left: dict[tuple[object, ...], Mapping[str, str]] = {}

    def quantise(self, index: int, layer: nn.Module, parts: Sequence[Projection], scheme: Scheme) -> QuantisedLayer:
        """Return a copy of layer `index` in which every projection that can be replaced is quantised.

        Raises:
            CannotQuantise: the copy does not run, though it does with any one of them quantised; says how it fails.
        """
        kind = (scheme.name, type(layer), *(part.name for part in parts))
        if kind in self._left:
            return quantise_layer(layer, parts, scheme, self._left[kind])
        quantised = quantise_layer(layer, parts, scheme)
        self._left[kind] = NOTHING
        if self._fault(index, layer, quantised.module, parts):
            self._left[kind] = self._irreplaceable(index, layer, parts, scheme)
            quantised = quantise_layer(layer, parts, scheme, self._left[kind])
            if fault := self._fault(index, layer, quantised.module, parts):
                raise CannotQuantise(f"{scheme.name}: layer {index} does not run quantised: {fault}")
        return quantised

    def _irreplaceable(
        self, index: int, layer: nn.Module, parts: Sequence[Projection], scheme: Scheme
    ) -> Mapping[str, str]:
        """Return the projections without which the layer does not run, and how it fails."""
        alone = {part.name: quantise_layer(layer, [part], scheme).module for part in parts}
        faults = {name: self._fault(index, layer, module, parts) for name, module in alone.items()}
        return {name: f"the layer uses its weight itself ({fault})" for name, fault in faults.items() if fault}

    def _fault(self, index: int, layer: nn.Module, copied: nn.Module, parts: Sequence[Projection]) -> str | None:
        """Say how a copy of a layer fails to do what the layer does; None if it does not fail."""
        expected = self._types(index, layer, parts)
        try:
            found = self._types(index, copied, parts)
        except Exception as error:  # a model's code fails in as many ways as there are models
            if ran_out(error):
                raise
            return first_line(error)
        differing = (name for name, kind in expected.items() if found.get(name, kind) != kind)
        return next((f"{name} gives {found[name]} in place of {expected[name]}" for name in differing), None)

    def _types(self, index: int, module: nn.Module, parts: Sequence[Projection]) -> dict[str, torch.dtype]:
        """Return the type of what every projection that runs gives."""
        with capturing(module, parts) as captured:
            run_layer(module, self._hidden, self._arguments[index])
        return {name: output.dtype for name, output in captured.outputs.items()}
