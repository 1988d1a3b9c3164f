"""Lists the units of a mix: modules, or groups of modules that an inference server fuses.

vLLM and SGLang fuse q, k, v and gate, up of a layer into one matrix each, in one format. A mix that they shall load
keeps such a group in 16 bits as a whole, or quantizes it as a whole.

    M modules, U units
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

_GROUPS = (("attn.q", "attn.k", "attn.v"), ("mlp.gate", "mlp.up"))


class QuantizedModule(NamedTuple):
    """A module that a scheme quantizes."""

    layer: int
    name: str
    """In the model."""
    component: str
    """What it computes; `attn.qkv` and the like of a fused module."""
    extra_bytes: int
    """What it takes more in 16 bits than under the scheme."""


class Unit(NamedTuple):
    """Modules that a mix keeps or quantizes together."""

    members: tuple[int, ...]
    """Their places in the list of modules."""
    extra_bytes: int


def units_of(modules: Sequence[QuantizedModule], *, whole_groups: bool) -> list[Unit]:
    """Return the units of these modules, by their first module.

    Args:
        modules: all that the scheme quantizes.
        whole_groups: put q, k, v of a layer into one unit, and gate, up into another one.
    """
    groups: dict[object, list[int]] = {}
    for place, module in enumerate(modules):
        group = next((group for group in _GROUPS if module.component in group), None)
        key = (module.layer, group) if whole_groups and group is not None else place
        groups.setdefault(key, []).append(place)
    return [Unit(tuple(of), sum(modules[place].extra_bytes for place in of)) for of in groups.values()]


def members(units: Iterable[Unit], modules: int) -> npt.NDArray[np.bool_]:
    """Return which of M modules belong to the units, [M]."""
    chosen = np.zeros(modules, dtype=bool)
    for unit in units:
        chosen[list(unit.members)] = True
    return chosen
