"""Mixes of least predicted divergence, against exhaustive search and scipy's milp; units and controls."""

import itertools

import numpy as np
import pytest
from scipy.optimize import Bounds, LinearConstraint, milp

from workers.measurement.harm.estimates.estimate import predicted_divergence
from workers.measurement.mixes.controls import control_mixes
from workers.measurement.mixes.prediction import Prediction, predicted
from workers.measurement.mixes.selection import FrontierPoint, best_mix, budget_for, frontier, knee
from workers.measurement.mixes.units import QuantizedModule, Unit, members, units_of

POSITIONS = 20


def products(seed: int, modules: int, common: float = 0.0, draws: int = 40) -> np.ndarray:
    """Inner products [N, S, M] of modules of very different size, with something in common where asked for."""
    rng = np.random.default_rng(seed)
    size = rng.lognormal(0, 1, modules)
    return (rng.normal(size=(draws // 4, 4, modules)) + common * rng.normal(size=(draws // 4, 4, 1))) * size


def lowest(prediction: Prediction, extra_bytes: np.ndarray, budget: int) -> float:
    """The least prediction of all sets that fit."""
    sets = (np.array(kept) for kept in itertools.product([False, True], repeat=len(extra_bytes)))
    return min(prediction.divergence(kept) for kept in sets if extra_bytes[kept].sum() <= budget)


@pytest.mark.parametrize("common", [0.0, 1.0])
def test_selected_mixes_are_the_best_of_all(common: float) -> None:
    exact = 0
    for seed in range(40):
        prediction = predicted(products(seed, 10, common), POSITIONS, 1.0)
        extra_bytes = np.random.default_rng(seed).integers(1, 9, 10)
        budget = int(extra_bytes.sum() * (0.1 + 0.02 * (seed % 20)))
        kept = best_mix(prediction, extra_bytes, budget)
        assert extra_bytes[kept].sum() <= budget
        ratio = prediction.divergence(kept) / lowest(prediction, extra_bytes, budget)
        assert ratio <= 1.05
        exact += ratio < 1 + 1e-9
    assert exact >= 36


def test_without_interactions_it_is_a_knapsack() -> None:
    for seed in range(10):
        prediction = predicted(products(seed, 60), POSITIONS, 0.0)
        extra_bytes = np.random.default_rng(seed).integers(20, 99, 60)
        budget = int(extra_bytes.sum() // 5)
        solved = milp(
            -np.diag(prediction.matrix),
            constraints=LinearConstraint(extra_bytes[None].astype(float), ub=budget),
            integrality=np.ones(60),
            bounds=Bounds(0, 1),
        )
        best = prediction.divergence(solved.x > 0.5)
        assert best <= prediction.divergence(best_mix(prediction, extra_bytes, budget)) <= 1.01 * best


def test_predictions_are_those_of_the_inner_products() -> None:
    values = products(2, 7, 0.5)
    kept = np.array([True, False, True, False, False, True, False])
    whole = predicted(values, POSITIONS, 1.0)
    assert whole.divergence(kept) == pytest.approx(predicted_divergence(values, POSITIONS, ~kept).value)
    harms = np.square(values).mean(axis=(0, 1)) / (2 * POSITIONS)
    assert predicted(values, POSITIONS, 0.0).divergence(kept) == pytest.approx(harms[~kept].sum())
    assert whole.scaled(0.25).uniform == pytest.approx(0.25)
    units = [Unit((0, 2, 5), 3), Unit((1, 3), 2), Unit((4, 6), 2)]
    of_units = whole.of_units(units)
    assert of_units.divergence(np.array([True, False, False])) == pytest.approx(whole.divergence(kept))


def test_a_frontier_falls_to_nothing_and_has_a_knee() -> None:
    prediction = predicted(products(5, 12, 0.3), POSITIONS, 1.0)
    extra_bytes = np.random.default_rng(5).integers(1, 9, 12)
    points = frontier(prediction, extra_bytes)
    assert points[0] == (0, prediction.uniform)
    assert points[-1] == (extra_bytes.sum(), 0)
    assert all(b.extra_bytes > a.extra_bytes and b.predicted < a.predicted for a, b in itertools.pairwise(points))
    corner = [FrontierPoint(0, 1.0), FrontierPoint(10, 0.2), FrontierPoint(100, 0.0)]
    assert knee(corner) == (10, 0.2)
    assert knee(corner[:1]) == (0, 1.0)


def test_the_bytes_for_a_divergence_are_the_fewest() -> None:
    prediction = predicted(products(6, 10), POSITIONS, 0.0)
    extra_bytes = np.random.default_rng(6).integers(1, 9, 10)
    most = prediction.uniform / 3
    budget = budget_for(prediction, extra_bytes, most)
    assert prediction.divergence(best_mix(prediction, extra_bytes, budget)) <= most
    assert lowest(prediction, extra_bytes, budget - 1) > most
    assert budget_for(prediction, extra_bytes, prediction.uniform) == 0


def llama(layers: int) -> list[QuantizedModule]:
    sizes = {"attn.q": 9, "attn.k": 3, "attn.v": 3, "attn.o": 9, "mlp.gate": 20, "mlp.up": 20, "mlp.down": 20}
    return [QuantizedModule(layer, f"{layer}.{c}", c, size) for layer in range(layers) for c, size in sizes.items()]


def test_groups_are_whole() -> None:
    modules = llama(2)
    whole = units_of(modules, whole_groups=True)
    assert [unit.members for unit in whole] == [(0, 1, 2), (3,), (4, 5), (6,), (7, 8, 9), (10,), (11, 12), (13,)]
    assert [unit.extra_bytes for unit in whole[:4]] == [15, 9, 40, 20]
    assert [unit.members for unit in units_of(modules, whole_groups=False)] == [(place,) for place in range(14)]
    fused = QuantizedModule(0, "h.0.attn.c_attn", "attn.qkv", 15)
    assert [unit.members for unit in units_of([fused], whole_groups=True)] == [(0,)]


def names_of(modules: list[QuantizedModule], kept: np.ndarray) -> list[str]:
    return [module.name for module, own in zip(modules, kept, strict=True) if own]


def test_controls_fill_the_same_bytes_in_orders_of_their_own() -> None:
    modules = llama(5)
    errors = {"3.mlp.down": 0.9, "1.attn.k": 0.5}
    controls = control_mixes(modules, units_of(modules, whole_groups=True), 50, errors, seed=0)
    assert list(controls) == ["uniform", "first-last", "largest-error", "random", "attn-v"]
    assert names_of(modules, controls["uniform"]) == []
    assert names_of(modules, controls["first-last"]) == ["0.attn.q", "0.attn.k", "0.attn.v", "0.attn.o", "0.mlp.down"]
    groups = {f"{layer}.attn.{c}" for layer in (0, 1) for c in "qkv"}  # then no other fits
    assert {*names_of(modules, controls["largest-error"])} == {"3.mlp.down", *groups}
    values = [name for name in names_of(modules, controls["attn-v"]) if name.endswith("attn.v")]
    assert values == [f"{layer}.attn.v" for layer in range(5)]
    for kept in controls.values():
        assert sum(module.extra_bytes for module, own in zip(modules, kept, strict=True) if own) <= 50
    again = control_mixes(modules, units_of(modules, whole_groups=True), 50, errors, seed=0)
    assert all(np.array_equal(again[name], kept) for name, kept in controls.items())
    other = control_mixes(modules, units_of(modules, whole_groups=True), 50, errors, seed=1)
    assert not np.array_equal(other["random"], controls["random"])


def test_members_are_the_modules_of_the_units() -> None:
    assert members([Unit((0, 3), 5)], 5).tolist() == [True, False, False, True, False]
