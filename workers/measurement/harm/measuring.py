"""Measures and estimates the harm of replacing parts of a model alone.

record the reference's states at every depth
take gradients back through the layers, for the estimates
choose the parts that are swapped, and take these swaps through the layers
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from service.contracts.report import Estimate
from service.evaluation.additivity import adds_up
from workers.measurement.harm.copies import Module, components_of
from workers.measurement.harm.estimates.agreement import less_floor, measured_over_estimated, ratio
from workers.measurement.harm.estimates.estimate import estimated_harm
from workers.measurement.harm.estimation import estimate
from workers.measurement.harm.products import InnerProducts
from workers.measurement.harm.reference_states import ReferenceStates, record_states
from workers.measurement.harm.reverse_sweep import NoGradient
from workers.measurement.harm.selection import at_random, by_estimate, of_component
from workers.measurement.harm.swapping import measure_swaps
from workers.measurement.harm.swaps import Swap
from workers.measurement.harm.task import HarmTask


@dataclass
class SchemeHarm:
    """One scheme's harm."""

    components: Mapping[Module, str]
    """Of the modules that it replaces."""
    saved: Mapping[Module, int]
    """Of the same: bytes by which the quantized weight is smaller."""
    products: InnerProducts | None
    """What the estimates are made of; None without them."""
    modules: dict[Module, Estimate | None] = field(default_factory=dict)
    """Measured harm; None where no position has a finite one."""
    layers: dict[int, Estimate | None] = field(default_factory=dict)
    """The same of whole layers."""
    at_random: frozenset[Module] = frozenset()
    """Modules that were drawn at random to be measured."""
    apart: float | None = None
    """Additivity, by scaled estimates, because of which all modules were measured; None where they were not."""


@dataclass(frozen=True)
class HarmResults:
    """The harm of every scheme that replaces anything."""

    positions: int
    """Scored positions of each sequence."""
    schemes: Mapping[str, SchemeHarm]
    noise_floor: list[float] | None
    """By layer, nats; None where nothing was swapped."""
    of_nothing: float
    """Harm of the swap of nothing, which is 0 unless something is wrong, or the device does not repeat itself."""
    no_estimate: str | None
    """Why harm could not be estimated."""


def measure_harm(task: HarmTask) -> HarmResults:
    """Return the measured and estimated harm of every scheme, as the settings ask for it.

    Raises:
        BadRequest: no module has the component that was asked for.
    """
    components = components_of(task.state.decoder)
    harms = {
        scheme.name: SchemeHarm(
            {module: components[module] for module in task.replaced[scheme.name]}, task.replaced[scheme.name], None
        )
        for scheme in task.schemes
    }
    if task.settings.component and task.settings.exact == "modules":
        for harm in harms.values():
            of_component(task.settings.component, harm.components)  # refused before anything is computed
    reference = record_states(task.state.decoder, task.token_ids, task.plan.states, functools.partial(task.passed, 1))
    no_estimate = _estimate(task, reference, harms) if task.settings.estimates else None
    noise_floor, of_nothing = _swap(task, reference, harms)
    if task.complete and noise_floor is not None:
        _complete(task, reference, harms, np.array(noise_floor))
    positions = task.token_ids.shape[1] - 1 - task.first
    return HarmResults(positions, harms, noise_floor, of_nothing, no_estimate)


def _estimate(task: HarmTask, reference: ReferenceStates, harms: Mapping[str, SchemeHarm]) -> str | None:
    """Put the inner products into the schemes' harms; return the reason where there are none, else None."""
    try:
        products = estimate(task, reference)
    except NoGradient as error:
        task.passed(task.layers * task.plan.estimate_forwards)
        return str(error)
    for name, of_scheme in products.items():
        harms[name].products = of_scheme if of_scheme.modules else None  # none is used by the model
    return None


def _swap(
    task: HarmTask, reference: ReferenceStates, harms: Mapping[str, SchemeHarm]
) -> tuple[list[float] | None, float]:
    """Put the measured harms into the schemes'; return the noise floor by layer, and the harm of nothing."""
    swaps = [swap for name, harm in harms.items() for swap in _swaps_of(task, name, harm)]
    if not swaps:
        return None, 0.0
    nothing = Swap(0, "nothing")
    rounding = [Swap(layer, "rounding") for layer in range(task.layers)]
    measured = measure_swaps(task, reference, [nothing, *rounding, *swaps])
    for swap in swaps:
        if swap.kind == "layer":
            harms[swap.scheme].layers[swap.layer] = measured[swap]
        else:
            harms[swap.scheme].modules[Module(swap.layer, swap.module)] = measured[swap]
    floor = [value_of(measured[swap]) for swap in rounding]
    return floor, value_of(measured[nothing])


def _complete(
    task: HarmTask, reference: ReferenceStates, harms: Mapping[str, SchemeHarm], floor: npt.NDArray[np.float64]
) -> None:
    """Measure all other modules of the schemes whose estimates do not add up to the whole scheme's divergence."""
    swaps = []
    for name, harm in harms.items():
        additivity = _additivity(task, name, harm, floor)
        if not adds_up(additivity):
            harm.apart = additivity
            missing = (module for module in harm.components if module not in harm.modules)
            swaps += [Swap(module.layer, "module", name, module.name) for module in missing]
    if not swaps:
        return
    task.extended(sum(task.layers - swap.layer for swap in swaps))
    for swap, harm_of_swap in measure_swaps(task, reference, swaps).items():
        harms[swap.scheme].modules[Module(swap.layer, swap.module)] = harm_of_swap


def _additivity(task: HarmTask, scheme: str, harm: SchemeHarm, floor: npt.NDArray[np.float64]) -> float | None:
    """Return the divergence of a whole scheme over the sum of its modules' scaled estimates."""
    if harm.products is None or not harm.products.modules or scheme not in task.whole:
        return None
    modules = harm.products.modules
    measured = np.array([value_of(harm.modules.get(module)) for module in modules])
    net = less_floor(measured, np.nan_to_num(floor[[module.layer for module in modules]]))
    estimated = np.array(_estimates(task, harm.products))
    at_random = np.array([module in harm.at_random for module in modules])
    scale = measured_over_estimated(net, estimated, at_random)
    return None if scale is None else ratio(task.whole[scheme], float(np.nansum(estimated)) * scale)


def _swaps_of(task: HarmTask, scheme: str, harm: SchemeHarm) -> list[Swap]:
    """Return the swaps of a scheme; where estimates cannot be had, layers take their place."""
    settings = task.settings
    if settings.exact == "modules":
        chosen, drawn = _modules(task, harm)
        harm.at_random = frozenset(drawn)
        return [Swap(module.layer, "module", scheme, module.name) for module in (*chosen, *drawn)]
    if settings.exact == "layers" or (settings.estimates and harm.products is None):
        layers = sorted({module.layer for module in harm.components})
        return [Swap(layer, "layer", scheme) for layer in layers]
    return []


def _modules(task: HarmTask, harm: SchemeHarm) -> tuple[list[Module], list[Module]]:
    """Return the modules to be measured, and those that were drawn at random among them."""
    settings, products = task.settings, harm.products
    modules = list(harm.components)
    if settings.component:
        chosen = of_component(settings.component, harm.components)
        others = [module for module in modules if module not in set(chosen)]
        return chosen, at_random(others, settings.random_modules, task.seed)
    if products is None:
        return by_estimate(settings, modules, None, task.seed)
    by_module = dict(zip(products.modules, _estimates(task, products), strict=True))
    return by_estimate(settings, modules, np.array([by_module.get(one, 0.0) for one in modules]), task.seed)


def value_of(harm: Estimate | None) -> float:
    """Return a measured harm; NaN where no position has a finite one."""
    return float("nan") if harm is None else harm.value


def _estimates(task: HarmTask, products: InnerProducts) -> list[float]:
    positions = task.token_ids.shape[1] - 1 - task.first
    return [harm.value for harm in estimated_harm(products.matrix(), positions)]
