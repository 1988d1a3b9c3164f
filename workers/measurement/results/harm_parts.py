"""Lists the parts of a model that a scheme replaces, modules and layers, with their measured and estimated harms."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from service.contracts.report import Estimate
from workers.measurement.harm.copies import Module
from workers.measurement.harm.estimates.estimate import Estimated, estimated_harm, predicted_divergence
from workers.measurement.harm.measuring import HarmResults, SchemeHarm
from workers.measurement.harm.products import InnerProducts
from workers.measurement.models.projections import BLOCK

NAN = float("nan")
_NOTHING = Estimated(NAN, NAN)


class Part(NamedTuple):
    """A row of the table `harm`, but for the scheme; NaN where there is no such figure."""

    layer: int
    component: str
    module: str
    harm: float
    standard_error: float
    estimated_harm: float
    estimated_standard_error: float
    noise_floor: float
    bytes_saved: int
    at_random: bool

    @property
    def measured(self) -> bool:
        """Whether there is a measured harm."""
        return self.harm == self.harm

    @property
    def estimated(self) -> bool:
        """Whether there is an estimated harm."""
        return self.estimated_harm == self.estimated_harm


def full_name(prefix: str, module: Module) -> str:
    """Return a module's name in the model, whose layers' names begin with `prefix`."""
    return f"{prefix}{module.layer}.{module.name}"


def module_parts(harm: SchemeHarm, results: HarmResults, prefix: str) -> list[Part]:
    """Return every module that a scheme replaces."""
    estimates = _estimates(harm.products, results.positions)
    return [
        Part(
            module.layer,
            component,
            full_name(prefix, module),
            *_measured(harm.modules.get(module)),
            *estimates.get(module, _NOTHING),
            noise_floor=_floor(results, module.layer) if module in harm.modules else NAN,
            bytes_saved=harm.saved[module],
            at_random=module in harm.at_random,
        )
        for module, component in harm.components.items()
    ]


def layer_parts(harm: SchemeHarm, results: HarmResults, prefix: str) -> list[Part]:
    """Return every layer whose harm was measured; its estimate is that of its modules together."""
    return [
        Part(
            layer,
            BLOCK,
            f"{prefix}{layer}",
            *_measured(measured),
            *_together(harm.products, layer, results.positions),
            noise_floor=_floor(results, layer),
            bytes_saved=sum(size for module, size in harm.saved.items() if module.layer == layer),
            at_random=False,
        )
        for layer, measured in harm.layers.items()
    ]


def column(parts: Sequence[Part], name: str) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Return one figure of every part."""
    return np.array([getattr(part, name) for part in parts], dtype=np.float64)


def _estimates(products: InnerProducts | None, positions: int) -> dict[Module, Estimated]:
    if products is None:
        return {}
    return dict(zip(products.modules, estimated_harm(products.matrix(), positions), strict=True))


def _together(products: InnerProducts | None, layer: int, positions: int) -> Estimated:
    """Return the estimated harm of a layer's modules together."""
    if products is None:
        return _NOTHING
    chosen = np.array([module.layer == layer for module in products.modules])
    return predicted_divergence(products.matrix(), positions, chosen)


def _floor(results: HarmResults, layer: int) -> float:
    return NAN if results.noise_floor is None else results.noise_floor[layer]


def _measured(harm: Estimate | None) -> tuple[float, float]:
    """Return a measured harm and its standard error."""
    if harm is None:
        return NAN, NAN
    return harm.value, NAN if harm.standard_error is None else harm.standard_error
