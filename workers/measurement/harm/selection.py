"""Chooses the modules that are replaced alone: those of a component or the most harmful, and some at random."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from service.contracts.harm.settings import HarmSettings
from workers.measurement.errors import BadRequest
from workers.measurement.harm.copies import Module

F64 = npt.NDArray[np.float64]


def of_component(component: str, components: Mapping[Module, str]) -> list[Module]:
    """Return the modules of a component.

    Args:
        component: what was asked for.
        components: of the modules that a scheme replaces.

    Raises:
        BadRequest: there is none; names those that there are.
    """
    chosen = [module for module, own in components.items() if own == component]
    if not chosen:
        allowed = ", ".join(sorted(set(components.values())))
        raise BadRequest(f"harm.component: {component!r} is not allowed; allowed: {allowed}")
    return chosen


def by_estimate(
    settings: HarmSettings, modules: Sequence[Module], estimates: F64 | None, seed: int
) -> tuple[list[Module], list[Module]]:
    """Return the modules of the largest estimated harm, and others drawn at random.

    Args:
        settings: how many of each.
        modules: all that the scheme replaces.
        estimates: their harms; without, all are drawn at random.
        seed: of the draw.
    """
    places = np.arange(len(modules))
    top = places[:0] if estimates is None else np.argsort(-np.nan_to_num(estimates), kind="stable")
    top = top[: settings.top_modules]
    rest = [modules[place] for place in np.setdiff1d(places, top)]
    wanted = settings.random_modules + (settings.top_modules if estimates is None else 0)
    return [modules[place] for place in top], at_random(rest, wanted, seed)


def at_random(modules: Sequence[Module], count: int, seed: int) -> list[Module]:
    """Return modules that are drawn at random, in their order; all where there are no more than `count`."""
    drawn = np.random.default_rng(seed).permutation(len(modules))[:count]
    return [modules[place] for place in sorted(drawn)]
