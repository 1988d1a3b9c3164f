"""The plan of a scheme: the target's bytes, distinct mixes, and refusals."""

from dataclasses import replace

import numpy as np
import pytest

from service.contracts.harm.recommendation import RecommendSettings
from service.contracts.schemes import SCHEMES
from workers.measurement.errors import BadRequest
from workers.measurement.mixes.plan import MixInputs, plan_mixes
from workers.measurement.mixes.recommendation import uniform_suffices
from workers.measurement.mixes.units import QuantizedModule

SIZES = {"attn.q": 9, "attn.k": 3, "attn.v": 3, "attn.o": 9, "mlp.gate": 20, "mlp.up": 20, "mlp.down": 20}
MODULES = [
    QuantizedModule(layer, f"model.layers.{layer}.{c}", c, 100 * size)
    for layer in range(3)
    for c, size in SIZES.items()
]
EXTRA = sum(module.extra_bytes for module in MODULES)


def harm_of(products: np.ndarray | None = None) -> MixInputs:
    rng = np.random.default_rng(3)
    if products is None:
        products = rng.normal(size=(8, 4, len(MODULES))) * rng.lognormal(0, 1, len(MODULES))
    names = frozenset(module.name for module in MODULES)
    return MixInputs(SCHEMES["nf4"], MODULES, products, 31, 0.4, 10_000, 10_000 + EXTRA, {}, frozenset(), names)


def settings(**target: object) -> RecommendSettings:
    return RecommendSettings.model_validate({"enabled": True} | target)


def test_mixes_fill_the_bytes_that_are_allowed() -> None:
    plan = plan_mixes(harm_of(), settings(max_bytes=14_500), seed=0)
    assert (plan.target.kind, plan.target.value, plan.target.bytes) == ("max_bytes", 14_500, 14_500)
    assert 1 <= len(plan.mixes) <= 3
    assert len({plan.kept(name) for name in plan.mixes}) == len(plan.mixes)
    for name in (*plan.mixes, *plan.controls):
        assert plan.extra_bytes(name) <= 4_500
    predicted = [plan.prediction.divergence(kept) for kept in plan.mixes.values()]
    assert predicted == sorted(predicted)
    assert predicted[0] < min(plan.prediction.divergence(kept) for kept in plan.controls.values())
    assert plan.prediction.uniform == pytest.approx(0.4)
    assert plan.frontier[0].bytes == 10_000


def test_groups_stay_whole_unless_told_otherwise() -> None:
    for name in plan_mixes(harm_of(), settings(max_bytes=15_000), seed=0).mixes:
        kept = plan_mixes(harm_of(), settings(max_bytes=15_000), seed=0).kept(name)
        for layer in range(3):
            for group in (("attn.q", "attn.k", "attn.v"), ("mlp.gate", "mlp.up")):
                assert len({f"model.layers.{layer}.{c}" in kept for c in group}) == 1
    split = plan_mixes(harm_of(), settings(max_bytes=10_300, whole_groups=False), seed=0)
    assert all(split.extra_bytes(name) == 300 for name in split.mixes)  # a key or a value by itself


def test_a_divergence_is_reached_with_few_bytes() -> None:
    plan = plan_mixes(harm_of(), settings(max_kl=0.2), seed=0)
    assert min(plan.prediction.divergence(kept) for kept in plan.mixes.values()) <= 0.2
    smaller = plan_mixes(harm_of(), settings(max_bytes=plan.target.bytes - 1_000), seed=0)
    assert min(smaller.prediction.divergence(kept) for kept in smaller.mixes.values()) > 0.2


def test_without_a_target_it_is_the_knee() -> None:
    plan = plan_mixes(harm_of(), settings(), seed=0)
    assert (plan.target.kind, plan.target.value) == ("knee", None)
    assert plan.target.bytes in [point.bytes for point in plan.frontier]


@pytest.mark.parametrize("most", [9_999, 10_000 + EXTRA])
def test_a_target_that_no_mix_has_is_refused_with_the_smallest(most: int) -> None:
    with pytest.raises(
        BadRequest, match=r"the smallest mix of nf4 takes 10,000 bytes, and the model in 16 bits 35,200"
    ):
        plan_mixes(harm_of(), settings(max_bytes=most), seed=0)


def test_a_mix_that_quantizes_nothing_is_none() -> None:
    plan = plan_mixes(harm_of(), settings(max_kl=1e-12), seed=0)
    assert plan.target.bytes == 10_000 + EXTRA
    assert plan.mixes == {}
    assert [*plan.controls] == ["uniform"]
    outside = replace(harm_of(), quantized=harm_of().quantized | {"model.project_out"})
    assert len(plan_mixes(outside, settings(max_kl=1e-12), seed=0).mixes) == 1


def test_modules_without_harm_give_no_mix() -> None:
    plan = plan_mixes(harm_of(np.zeros((8, 4, len(MODULES)))), settings(max_bytes=14_000), seed=0)
    assert plan.mixes == {}
    assert "uniform" in plan.controls


@pytest.mark.parametrize(("measured", "meets"), [(0.1, True), (0.1001, False)])
def test_a_target_that_every_module_quantized_misses_held_out_is_not_called_met(measured: float, meets: bool) -> None:
    assert ("but not on held-out text" in uniform_suffices(0.1, measured)) != meets
