"""A decoder layer with every projection quantised; everything else of it is the layer's own."""

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
from workers.measurement.errors import CannotQuantise
from workers.measurement.memory import drop_file_pages
from workers.measurement.models.projections import Projection, weight_rows
from workers.measurement.quantization.kernels import quantise_projection
from workers.measurement.quantization.projection import QuantisedProjection, row_ranges
from workers.measurement.statistics.deviation import token_products

NOTHING: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True)
class QuantisedLayer:
    """One scheme's copy of a decoder layer."""

    module: nn.Module
    weight_errors: dict[str, float | None]
    """norm_F(W - Q(W)) / norm_F(W) by component; None where W is zero."""
    saved_bytes: int
    """Bytes by which the quantised weights are smaller than the layer's own."""
    paths: frozenset[str]
    """Code paths that compute the projections."""
    left: Mapping[str, str]
    """Projections that are as they were because the scheme has no way of replacing them, and why."""


def quantise_layer(
    layer: nn.Module, projections: Sequence[Projection], scheme: Scheme, leave: Mapping[str, str] = NOTHING
) -> QuantisedLayer:
    """Return a copy of the layer in which the projections are quantised; the copy shares all other tensors.

    Projections that no scheme replaces stay as they are, and so do those that no path of this scheme's kernel takes,
    and those of `leave`: from a name to the reason. Such have no weight error.
    """
    copied = copy_to_quantise(layer)
    errors: dict[str, float | None] = {}
    paths: set[str] = set()
    left = dict(leave)
    saved = 0
    for projection in projections:
        if not projection.quantised or projection.name in left:
            continue
        original = layer.get_submodule(projection.name)
        try:
            quantised = quantise_projection(original, scheme)
        except CannotQuantise as error:
            left[projection.name] = str(error)
            continue
        copied.set_submodule(projection.name, quantised.module)
        weight = weight_rows(original)
        errors |= _weight_errors(projection, weight, quantised)
        saved += weight.nbytes - quantised.nbytes
        paths.add(quantised.path)
        drop_file_pages(weight)
    return QuantisedLayer(copied.eval(), errors, saved, frozenset(paths), left)


def copy_to_quantise(layer: nn.Module) -> nn.Module:
    """Return a copy that shares the layer's tensors and is told that it is quantised.

    transformers tells the modules of a quantised model so by their configs, and a few heed it: Jamba's and
    Falcon-Mamba's call a projection then that they multiply with themselves otherwise.
    """
    shared = {id(tensor): tensor for tensor in itertools.chain(layer.parameters(), layer.buffers())}
    copied = copy.deepcopy(layer, memo=shared)
    for module in copied.modules():
        if isinstance(config := getattr(module, "config", None), PreTrainedConfig):
            config._is_quantized = True
    return copied


def _weight_errors(
    projection: Projection, weight: torch.Tensor, quantised: QuantisedProjection
) -> dict[str, float | None]:
    sums = torch.empty((2, len(weight)), dtype=torch.float64, device=weight.device)
    for rows in row_ranges(weight):
        stands_for = quantised.dequantised(rows).to(weight.device)
        sums[0, rows], _, _, sums[1, rows], _ = token_products(weight[rows], stands_for)
    signal, noise = sums.cpu().numpy()
    found: dict[str, float | None] = {}
    for component, part in projection.parts.items():
        whole = signal[part].sum()
        found[component] = float(np.sqrt(noise[part].sum() / whole)) if whole else None
    return found
