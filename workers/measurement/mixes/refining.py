"""Selects further mixes from what the first ones were measured to do.

A prediction that is off at the best mix is mostly off in its interactions, which few draws tell badly. So their weight
is chosen anew, such that the prediction is what was measured both for the uniform scheme and for the best mix:

    (D_S + w O_S) / (D_A + w O_A)  =  measured of the best mix / measured of the uniform scheme

with D the sum of harms and O that of interactions, over the modules that the mix quantizes (S) or all of them (A).
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from workers.measurement.mixes.controls import UNIFORM
from workers.measurement.mixes.plan import Plan, best_of_units, distinct, leaves
from workers.measurement.mixes.prediction import Bools, Prediction, predicted
from workers.measurement.mixes.units import units_of


def refined(plan: Plan, measured: Mapping[str, float], *, whole_groups: bool) -> Plan:
    """Return the plan with further mixes of the same bytes, by a prediction that fits the best mix.

    Args:
        plan: of what was measured.
        measured: mean KL divergence of its mixes and controls, nats; the same positions for all.
        whole_groups: keep q, k, v of a layer together, and gate, up.
    """
    if not plan.mixes:
        return plan
    best = min(plan.mixes, key=lambda name: measured[name])
    uniform = measured[UNIFORM]
    weight = fitting_weight(plan, plan.mixes[best], measured[best] / uniform if uniform else 1.0)
    units = units_of(plan.inputs.modules, whole_groups=whole_groups)
    of_weights = [
        predicted(plan.inputs.products, plan.inputs.positions, one).scaled(uniform)
        for one in (weight, weight / 2, (1 + weight) / 2)
    ]
    budget = plan.target.bytes - plan.inputs.uniform_bytes
    known = [kept.tobytes() for kept in plan.mixes.values()]
    selected = distinct(best_of_units(one, units, budget) for one in of_weights)
    fresh = [kept for kept in selected if kept.tobytes() not in known and leaves(plan.inputs, kept)]
    further = {f"mix-{number}": kept for number, kept in enumerate(fresh, len(plan.mixes) + 1)}
    return replace(
        plan,
        mixes={**plan.mixes, **further},
        later={**plan.later, **dict.fromkeys(further, of_weights[0])},
    )


def fitting_weight(plan: Plan, kept: Bools, ratio: float) -> float:
    """Return the weight of interactions, 0 to 1, with which a mix is predicted at `ratio` times the uniform scheme."""
    whole = predicted(plan.inputs.products, plan.inputs.positions, 1.0)
    harms = Prediction(np.diag(np.diag(whole.matrix)))
    diagonal_of_mix, diagonal = harms.divergence(kept), harms.uniform
    others_of_mix, others = whole.divergence(kept) - diagonal_of_mix, whole.uniform - diagonal
    slope = ratio * others - others_of_mix
    if slope == 0:
        return 0.0
    return float(np.clip((diagonal_of_mix - ratio * diagonal) / slope, 0, 1))
