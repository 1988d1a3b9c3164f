"""Keeps the inner products of gradients and isolated errors: layer by layer on disk, then of all layers together.

For module m, sequence n and draw s, a_m of `reverse_sweep`. Of modules that read the residual stream, a_m is also the
sum over input channels j of a_mj. Then the sum over these modules and the mean over draws of a_mj a_m is kept for
every channel, and of a_m^2 for the other modules: what the shares of dimensions are made of (`dimensions`).

A sequence is left out of all where a gradient is not finite in any layer.

    N sequences, S draws for each, M modules, d hidden dimensions
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from workers.measurement.harm.copies import LayerCopies, Module

F64 = npt.NDArray[np.float64]
Shape = tuple[int, int, int]
"""N, S, d."""


@dataclass
class InnerProducts:
    """One scheme's a_m."""

    modules: list[Module] = field(default_factory=list)
    values: list[F64] = field(default_factory=list)
    """By module: [N, S]."""
    channels: F64 | None = None
    """[N, d]: by sequence and dimension, the sum over modules that read the residual stream of the mean of a_mj a_m;
    None where it was not asked for."""
    others: F64 | None = None
    """[N]: by sequence, the sum over the other modules of the mean of a_m^2."""

    @property
    def sequences(self) -> int:
        """N."""
        return len(self.values[0]) if self.values else 0

    def matrix(self) -> F64:
        """Return the inner products as [N, S, M]."""
        return np.stack(self.values, axis=-1)


class LayerProducts:
    """The inner products of one layer's modules.

    A module that is not called on a sequence adds 0 there; one that is never called has none.
    """

    def __init__(self, layer: int, copies: LayerCopies, shape: Shape) -> None:
        self.layer = layer
        self._shape = shape
        self._names = {name: list(copied.replaced) for name, copied in copies.copies.items()}
        self._values: dict[str, dict[str, F64]] = {name: {} for name in copies.copies}
        self._channels: dict[str, dict[str, F64]] = {name: {} for name in copies.copies}
        self._usable = np.ones(shape[0], dtype=bool)

    def leave_out(self, sequence: int) -> None:
        """Leave a sequence out of what is loaded."""
        self._usable[sequence] = False

    def add(self, scheme: str, module: str, where: tuple[int, int], value: float) -> None:
        """Add a module's inner product at a sequence and draw."""
        self._values[scheme].setdefault(module, np.zeros(self._shape[:2]))[where] += value

    def add_channels(self, scheme: str, module: str, where: tuple[int, int], values: F64) -> None:
        """Add a module's inner products by input channel, [d], at a sequence and draw."""
        self._channels[scheme].setdefault(module, np.zeros(self._shape))[where] += values

    def save(self, file: Path) -> None:
        """Write them as a NumPy archive."""
        arrays: dict[str, npt.NDArray[np.generic]] = {_USABLE: self._usable}
        for scheme, values in self._values.items():
            names = [name for name in self._names[scheme] if name in values]
            arrays[f"{scheme}/names"] = np.array(names, dtype=str)
            arrays[f"{scheme}/values"] = np.array([values[name] for name in names]).reshape(-1, *self._shape[:2])
            arrays |= {f"{scheme}/{name}": array for name, array in self._of_channels(scheme).items()}
        unfinished = file.with_suffix(".unfinished.npz")
        np.savez(unfinished, **arrays)  # type: ignore[arg-type]
        unfinished.rename(file)

    def _of_channels(self, scheme: str) -> dict[str, F64]:
        """Return the fields `channels` and `others` of `InnerProducts`, of this layer."""
        by_module, values = self._channels[scheme], self._values[scheme]
        channels = np.zeros((self._shape[0], self._shape[2]))
        for of_module in by_module.values():
            channels += (of_module * of_module.sum(axis=-1, keepdims=True)).mean(axis=1)
        others = np.zeros(self._shape[0])
        for name in values.keys() - by_module.keys():
            others += np.square(values[name]).mean(axis=1)
        return {"channels": channels, "others": others}


def load_products(files: Sequence[Path], schemes: Sequence[str], divided: Sequence[str]) -> dict[str, InnerProducts]:
    """Return every scheme's inner products of all layers.

    Args:
        files: what `LayerProducts.save` wrote, by layer.
        schemes: names.
        divided: those of the schemes whose inner products were wanted by input channel.

    Returns:
        By scheme; N are the sequences whose gradients are finite in every layer.
    """
    products = {scheme: InnerProducts() for scheme in schemes}
    usable = np.logical_and.reduce([_usable(file) for file in files])
    for layer, file in enumerate(files):
        with np.load(file) as stored:
            for scheme, of_scheme in products.items():
                of_scheme.modules += [Module(layer, str(name)) for name in stored[f"{scheme}/names"]]
                of_scheme.values += list(stored[f"{scheme}/values"][:, usable])
                if scheme in divided:
                    of_scheme.channels = _sum(of_scheme.channels, stored[f"{scheme}/channels"][usable])
                    of_scheme.others = _sum(of_scheme.others, stored[f"{scheme}/others"][usable])
    return products


def _usable(file: Path) -> npt.NDArray[np.bool_]:
    with np.load(file) as stored:
        usable: npt.NDArray[np.bool_] = stored[_USABLE]
        return usable


def _sum(before: F64 | None, more: F64) -> F64:
    return more if before is None else before + more


_USABLE = "usable"
"""[N], beside the schemes' arrays, whose names have a slash."""
