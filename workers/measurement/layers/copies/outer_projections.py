"""Quantizes projections outside the decoder layers, as OPT-350m has before its first layer and after its last.

`from_pretrained` with a BitsAndBytesConfig quantizes them too, so a scheme's stream begins and ends with their
quantized copies, which stay in memory.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from torch import nn

from service.contracts.schemes import Scheme
from workers.measurement.errors import CannotQuantize
from workers.measurement.layers.copies.quantize_projection import quantize_projection
from workers.measurement.models.projections import weight_rows


@dataclass(frozen=True)
class QuantizedOutside:
    """One scheme's copies of the projections outside the layers."""

    modules: Mapping[str, nn.Module]
    """By name inside the model."""
    saved_bytes: int
    """Bytes by which the quantized weights are smaller."""
    left: Mapping[str, str]
    """Projections that are as they were because the scheme has no way of replacing them, and why."""


def quantize_outside(model: nn.Module, names: Sequence[str], scheme: Scheme) -> QuantizedOutside:
    """Quantize the projections of these names that the scheme's kernel takes."""
    modules: dict[str, nn.Module] = {}
    left: dict[str, str] = {}
    saved = 0
    for name in names:
        projection = model.get_submodule(name)
        try:
            quantized = quantize_projection(projection, scheme)
        except CannotQuantize as error:
            left[name] = str(error)
            continue
        modules[name] = quantized.module
        saved += weight_rows(projection).nbytes - quantized.nbytes
    return QuantizedOutside(modules, saved, left)


@contextmanager
def in_place(model: nn.Module, modules: Mapping[str, nn.Module]) -> Iterator[None]:
    """Put modules in place of the model's own for as long as the context lasts."""
    own = {name: model.get_submodule(name) for name in modules}
    try:
        for name, module in modules.items():
            model.set_submodule(name, module)
        yield
    finally:
        for name, module in own.items():
            model.set_submodule(name, module)
