"""Copies a decoder layer with its projections quantized; the copy shares all other tensors with the layer."""

import copy
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedConfig

from service.contracts.schemes import Scheme
from workers.measurement.errors import CannotQuantize
from workers.measurement.layers.copies.quantize_projection import quantize_projection
from workers.measurement.models.projections import Projection, weight_rows
from workers.measurement.quantization.projection import QuantizedProjection, row_ranges
from workers.measurement.runtime.memory import drop_file_pages
from workers.measurement.statistics.deviation import token_products

NOTHING: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True)
class QuantizedLayer:
    """One scheme's copy of a decoder layer."""

    module: nn.Module
    weight_errors: dict[str, float | None]
    """norm_F(W - Q(W)) / norm_F(W) by component; None where W is zero."""
    replaced: Mapping[str, QuantizedProjection]
    """What stands in place of the layer's projections, by their names."""
    saved: Mapping[str, int]
    """By the same names: bytes by which the quantized weight is smaller than the layer's own."""
    paths: frozenset[str]
    """Code paths that compute the projections."""
    left: Mapping[str, str]
    """Projections that are as they were because the scheme has no way of replacing them, and why."""


def quantize_layer(
    layer: nn.Module, projections: Sequence[Projection], scheme: Scheme, leave: Mapping[str, str] = NOTHING
) -> QuantizedLayer:
    """Return a copy of the layer in which the projections are quantized; the copy shares all other tensors.

    Projections that no scheme replaces stay as they are, and so do those that no path of this scheme's kernel takes,
    and those of `leave`: from a name to the reason. Such have no weight error.
    """
    copied = copy_to_quantize(layer)
    errors: dict[str, float | None] = {}
    replaced: dict[str, QuantizedProjection] = {}
    saved: dict[str, int] = {}
    left = dict(leave)
    for projection in projections:
        if not projection.quantized or projection.name in left:
            continue
        original = layer.get_submodule(projection.name)
        try:
            quantized = quantize_projection(original, scheme)
        except CannotQuantize as error:
            left[projection.name] = str(error)
            continue
        copied.set_submodule(projection.name, quantized.module)
        weight = weight_rows(original)
        errors |= _weight_errors(projection, weight, quantized)
        replaced[projection.name] = quantized
        saved[projection.name] = weight.nbytes - quantized.nbytes
        drop_file_pages(weight)
    paths = frozenset(quantized.path for quantized in replaced.values())
    return QuantizedLayer(copied.eval(), errors, replaced, saved, paths, left)


def copy_to_quantize(layer: nn.Module) -> nn.Module:
    """Return a copy that shares the layer's tensors and is marked as quantized.

    transformers marks the modules of a quantized model in their configs, and a few read that mark: Jamba's and
    Falcon-Mamba's call a projection then that they multiply with themselves otherwise.
    """
    shared = {id(tensor): tensor for tensor in itertools.chain(layer.parameters(), layer.buffers())}
    copied = copy.deepcopy(layer, memo=shared)
    for module in copied.modules():
        if isinstance(config := getattr(module, "config", None), PreTrainedConfig):
            config._is_quantized = True
    return copied


def _weight_errors(
    projection: Projection, weight: torch.Tensor, quantized: QuantizedProjection
) -> dict[str, float | None]:
    sums = torch.empty((2, len(weight)), dtype=torch.float64, device=weight.device)
    for rows in row_ranges(weight):
        stands_for = quantized.dequantized(rows).to(weight.device)
        sums[0, rows], _, _, sums[1, rows], _ = token_products(weight[rows], stands_for)
    signal, noise = sums.cpu().numpy()
    errors: dict[str, float | None] = {}
    for component, part in projection.parts.items():
        whole = signal[part].sum()
        errors[component] = float(np.sqrt(noise[part].sum() / whole)) if whole else None
    return errors
