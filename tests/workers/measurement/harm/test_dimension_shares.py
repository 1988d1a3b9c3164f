"""Shares of dimensions, Holm's method and rank correlation against plain formulas and SciPy."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from service.contracts.harm.settings import HarmSettings
from workers.measurement.errors import BadRequest
from workers.measurement.harm.copies import Module
from workers.measurement.harm.estimates.agreement import less_floor, ratio, spearman
from workers.measurement.harm.estimates.dimensions import Division, Shares, significant
from workers.measurement.harm.plan import Room, Size, grouped, make_plan
from workers.measurement.harm.selection import by_estimate, of_component
from workers.measurement.harm.swaps import Swap
from workers.measurement.layers.streams import Layout, Volume
from workers.measurement.results.harm_parts import NAN, Part
from workers.measurement.results.harm_section import most_harmful

RANDOM = np.random.default_rng(11)


def test_shares_and_their_errors_are_those_of_a_ratio_of_sums() -> None:
    channels, others = RANDOM.normal(1, 1, (9, 5)), RANDOM.uniform(1, 2, 9)
    division = Division(channels, others)
    wholes = channels.sum(axis=1) + others
    shares = division.dimensions()
    assert shares.values == pytest.approx(channels.sum(axis=0) / wholes.sum())
    assert shares.values.sum() + division.other_inputs().values[0] == pytest.approx(1)
    together = division.together({4, 1})
    residuals = channels[:, [1, 4]].sum(axis=1) - together.values[0] * wholes
    # The residuals of a ratio sum to 0, so that this is their sample variance.
    assert together.errors[0] == pytest.approx(np.sqrt(9 * residuals.var(ddof=1)) / wholes.sum())
    assert np.isnan(Division(channels[:1], others[:1]).dimensions().errors).all()


def test_holm_leaves_what_its_steps_leave() -> None:
    p_values = np.array([0.30, 0.001, 0.012, 0.02, 0.9])
    t = stats.t.isf(p_values / 2, 7)
    flags = significant(Shares(t, np.ones(5)), sequences=8)
    # Against 0.05 / 5, / 4, / 3: the third is larger than 0.05 / 3, so that it and all after it stay.
    assert flags.tolist() == [False, True, True, False, False]
    assert not significant(Shares(t * 100, np.ones(5)), sequences=1).any()
    assert not significant(Shares(np.array([np.nan, 0.0]), np.array([np.nan, 0.0])), sequences=8).any()


def test_rank_correlation_is_scipys() -> None:
    measured = np.round(RANDOM.uniform(0, 5, 40))
    estimated = measured + RANDOM.normal(0, 2, 40)
    assert spearman(measured, estimated) == pytest.approx(stats.spearmanr(measured, estimated).statistic)
    assert spearman(measured[:2], estimated[:2]) is None
    assert spearman(np.zeros(5), estimated[:5]) is None


def test_figures_without_a_value_are_none_and_harms_never_negative() -> None:
    assert (ratio(3.0, 2.0), ratio(1.0, 0.0), ratio(float("nan"), 1.0)) == (1.5, None, None)
    assert less_floor(np.array([3.0, 1.0]), np.array([1.0, 2.0])).tolist() == [2.0, 0.0]


def test_the_most_harmful_are_chosen_and_others_drawn_by_the_seed() -> None:
    modules = [Module(layer, "m") for layer in range(20)]
    estimates = RANDOM.permutation(20).astype(float)
    settings = HarmSettings(exact="modules", top_modules=3, random_modules=4)
    top, drawn = by_estimate(settings, modules, estimates, seed=1)
    assert [estimates[module.layer] for module in top] == [19, 18, 17]
    assert len(set(drawn)) == 4
    assert not set(drawn) & set(top)
    assert by_estimate(settings, modules, estimates, seed=1)[1] == drawn
    assert by_estimate(settings, modules, estimates, seed=2)[1] != drawn
    nothing, instead = by_estimate(settings, modules, None, seed=1)
    assert (nothing, len(instead)) == ([], 7)


def test_a_component_that_is_not_there_is_refused_with_those_that_are() -> None:
    components = {Module(0, "a"): "attn.q", Module(1, "a"): "attn.q", Module(1, "b"): "mlp.up"}
    assert of_component("attn.q", components) == [Module(0, "a"), Module(1, "a")]
    with pytest.raises(BadRequest, match=r"'attn' is not allowed; allowed: attn\.q, mlp\.up"):
        of_component("attn", components)


def of_streams(stream: Volume) -> Size:
    return Size(layers=30, schemes=1, divided_schemes=0, modules=10, stream=stream, gradient=stream)


def test_memory_is_counted_as_a_device_pins_it(tmp_path: Path) -> None:
    """Torch rounds pinned memory up to a power of two, batch by batch."""
    layout = Layout(((1, 20, 72), (1, 10, 72)), torch.bfloat16)
    stored, held = 2 * 30 * 72, 4096 + 2048
    assert layout.volume(torch.device("cpu")) == (stored, stored)
    assert layout.volume(torch.device("cuda")) == (stored, held)
    settings = HarmSettings(exact="modules", top_modules=8, random_modules=2, draws=4)
    size = of_streams(Volume(stored, held))
    fits = make_plan(settings, size, Room(41 * held, 41 * held), tmp_path)
    assert (fits.states.budget_bytes, fits.working.budget_bytes) == (31 * held, 10 * held)
    assert (fits.group, fits.streams_bytes) == (10, 0)
    small = make_plan(settings, size, Room(34 * held, 34 * held), tmp_path)
    assert (small.states.budget_bytes, small.streams_bytes) == (0, 31 * stored)


@pytest.mark.parametrize(
    ("room", "group", "streams", "checkpoints"),
    [
        (Room(10**9, 10**9), 41, 0, 2 * 41 * 100),
        (Room(10**9, 31 * 100 + 20 * 100), 20, 0, 2 * 20 * 100),
        (Room(10**9, 20 * 100), 20, 31 * 100, 2 * 20 * 100),
        (Room(10**9, 0), 8, 31 * 100, 2 * 8 * 100),
        (Room(38 * 100, 38 * 100), 10, 10 * 100, 2 * 10 * 100),
        (Room(16 * 100, 16 * 100), 16, 31 * 100, 2 * 16 * 100),
        (Room(0, 0), 10, 31 * 100 + 10 * 100, 2 * 10 * 100),
    ],
)
def test_what_memory_cannot_hold_lies_on_disk(room: Room, group: int, streams: int, checkpoints: int, tmp_path) -> None:
    settings = HarmSettings(exact="modules", top_modules=8, random_modules=2, draws=4)
    plan = make_plan(settings, of_streams(Volume(100, 100)), room, tmp_path)
    assert (plan.swaps, plan.group, plan.streams_bytes, plan.checkpoint_bytes) == (41, group, streams, checkpoints)
    assert plan.disk_bytes == streams + checkpoints
    swaps = [Swap(layer, "rounding") for layer in range(30)]
    groups = list(grouped(swaps, 12))
    assert sorted(swap for of_group in groups for swap in of_group) == swaps
    assert [min(swap.layer for swap in of_group) for of_group in groups] == [18, 6, 0]


def test_measured_harms_rank_among_estimates_without_the_noise_floor() -> None:
    figures = {"unknown": (NAN, NAN), "small": (1.7, 0.2), "estimated": (NAN, 0.5), "large": (2.6, 1.0)}
    parts = [
        Part(0, name, name, harm, NAN, estimate, NAN, 1.6 if harm == harm else NAN, 0, False)
        for name, (harm, estimate) in figures.items()
    ]
    assert [part.module for part in most_harmful(parts)] == ["large", "estimated", "small", "unknown"]
    assert len(most_harmful(parts * 3)) == 10
    assert most_harmful([]) == []
