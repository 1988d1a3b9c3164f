"""Lists the control mixes: choices that need no harm, which a recommended mix must beat at equal bytes.

Each control fills the bytes of the target in an order of its own, passing over what does not fit any more.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from workers.measurement.mixes.prediction import Bools
from workers.measurement.mixes.units import QuantizedModule, Unit, members

UNIFORM = "uniform"
VALUES_FIRST = "attn-v"
CONTROLS = (UNIFORM, "first-last", "largest-error", "random", VALUES_FIRST)
"""All that there are."""
_VALUES = "attn.v"


def control_mixes(
    modules: Sequence[QuantizedModule], units: Sequence[Unit], budget: int, errors: Mapping[str, float], seed: int
) -> dict[str, Bools]:
    """Return the controls by name, each as which modules it keeps, [M]; those that keep nothing but the uniform one
    are left out.

    Args:
        modules: all that the scheme quantizes.
        units: what is kept or quantized together.
        budget: bytes that the kept modules may take more, in all.
        errors: isolated relative_l2 of modules by name; others count as 0.
        seed: of the random control.
    """
    by_layer = _ends_first(modules, units)
    by_error = sorted(units, key=lambda unit: -max(errors.get(modules[m].name, 0.0) for m in unit.members))
    order = np.random.default_rng(seed).permutation(len(units))
    orders: dict[str, Sequence[Unit]] = {
        "first-last": by_layer,
        "largest-error": by_error,
        "random": [units[place] for place in order],
        VALUES_FIRST: _values_first(modules, by_layer),
    }
    controls = {name: _filled(ordered, budget, len(modules)) for name, ordered in orders.items()}
    nothing = {UNIFORM: np.zeros(len(modules), dtype=bool)}
    return nothing | {name: kept for name, kept in controls.items() if kept.any()}


def _ends_first(modules: Sequence[QuantizedModule], units: Sequence[Unit]) -> list[Unit]:
    """Return the units of the first layer, the last, the second, the last but one, and so on."""
    last = max((module.layer for module in modules), default=0)

    def depth(unit: Unit) -> tuple[int, bool]:
        layer = modules[unit.members[0]].layer
        return min(layer, last - layer), 2 * layer > last

    return sorted(units, key=depth)


def _values_first(modules: Sequence[QuantizedModule], rest: Iterable[Unit]) -> list[Unit]:
    """Return every attn.v by itself, also where its group would be kept whole, then the rest without them.

    Empty where no module computes attn.v alone.
    """
    values = {place for place, module in enumerate(modules) if module.component == _VALUES}
    if not values:
        return []
    alone = [Unit((place,), modules[place].extra_bytes) for place in sorted(values)]
    others = [tuple(m for m in unit.members if m not in values) for unit in rest]
    return [*alone, *(Unit(of, sum(modules[m].extra_bytes for m in of)) for of in others if of)]


def _filled(order: Iterable[Unit], budget: int, count: int) -> Bools:
    """Keep units in this order, as far as each fits."""
    kept, left = [], budget
    for unit in order:
        if unit.extra_bytes <= left:
            kept.append(unit)
            left -= unit.extra_bytes
    return members(kept, count)
