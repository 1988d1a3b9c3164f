"""A further round selects by a prediction that fits what was measured, and tries nothing twice."""

import numpy as np
import pytest
from test_mix_plan import harm_of, settings

from workers.measurement.mixes.controls import UNIFORM
from workers.measurement.mixes.plan import Plan, plan_mixes
from workers.measurement.mixes.prediction import predicted
from workers.measurement.mixes.refining import fitting_weight, refined

TARGET = settings(max_bytes=14_000)


@pytest.fixture(scope="module")
def plan() -> Plan:
    rng = np.random.default_rng(11)
    common = rng.normal(size=(8, 4, 1))
    inputs = harm_of()
    return plan_mixes(harm_of(inputs.products + 0.8 * common), TARGET, seed=0)


def measured_as(plan: Plan, weight: float) -> dict[str, float]:
    """What would be measured if interactions counted with this weight."""
    true = predicted(plan.inputs.products, plan.inputs.positions, weight).scaled(0.4)
    kept = {**plan.mixes, **plan.controls}
    return {name: true.divergence(of) for name, of in kept.items()}


@pytest.mark.parametrize("weight", [0.0, 0.4, 1.0])
def test_the_weight_of_interactions_is_what_fits_the_best_mix(plan: Plan, weight: float) -> None:
    measured = measured_as(plan, weight)
    for name, kept in plan.mixes.items():
        assert fitting_weight(plan, kept, measured[name] / measured[UNIFORM]) == pytest.approx(weight, abs=1e-9)


def test_further_mixes_have_the_same_bytes_and_are_new(plan: Plan) -> None:
    measured = measured_as(plan, 1.0)
    further = refined(plan, measured, whole_groups=True)
    assert further.controls is plan.controls
    assert list(further.mixes)[: len(plan.mixes)] == list(plan.mixes)
    fresh = further.mixes.keys() - plan.mixes.keys()
    assert fresh == further.later.keys()
    assert fresh
    assert len({kept.tobytes() for kept in further.mixes.values()}) == len(further.mixes)
    assert all(further.extra_bytes(name) <= 4_000 for name in further.mixes)
    true = predicted(plan.inputs.products, plan.inputs.positions, 1.0).scaled(0.4)
    best = min(true.divergence(kept) for kept in plan.mixes.values())
    assert min(true.divergence(further.mixes[name]) for name in fresh) < best
    for name in fresh:
        assert further.later[name].divergence(further.mixes[name]) == pytest.approx(
            true.divergence(further.mixes[name])
        )


def test_a_plan_without_mixes_stays_as_it_is() -> None:
    nothing = plan_mixes(harm_of(np.zeros((8, 4, 21))), TARGET, seed=0)
    assert refined(nothing, {UNIFORM: 0.0}, whole_groups=True) is nothing
