"""Projections outside the decoder layers, as OPT-350m has before its first layer and after its last.

`from_pretrained` with a BitsAndBytesConfig quantises them too, so a scheme's stream begins and ends with their
quantised copies, which stay in memory.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from torch import nn

from service.contracts.schemes import Scheme
from workers.measurement.models.projections import weight_rows
from workers.measurement.quantization.kernels import quantise_projection


@dataclass(frozen=True)
class QuantisedOutside:
    """One scheme's copies of the projections outside the layers."""

    modules: Mapping[str, nn.Module]
    """By name inside the model."""
    saved_bytes: int
    """Bytes by which the quantised weights are smaller."""


def quantise_outside(model: nn.Module, names: Sequence[str], scheme: Scheme) -> QuantisedOutside:
    """Quantise the projections of these names.

    Raises:
        CannotQuantise: the scheme's kernel does not take one; says which and why.
    """
    quantised = {name: quantise_projection(model.get_submodule(name), scheme, name) for name in names}
    saved = sum(weight_rows(model.get_submodule(name)).nbytes - found.nbytes for name, found in quantised.items())
    return QuantisedOutside({name: found.module for name, found in quantised.items()}, saved)


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
