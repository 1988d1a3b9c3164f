"""The noise of limited figures over calibration seeds, against simulation and SciPy."""

import math

import numpy as np
import pytest
from made_reports import changed, made_up, report, template
from scipy import stats

from service.audits.limits import parse, parse_all
from service.audits.noise import calibrate, chance_to_break
from service.errors import InvalidRequest

SCHEMES = ("int8", "nf4")


def reports(count, **changes):
    calibration = template().calibration
    made = []
    for seed in range(count):
        side = report(made_up(seed, positions=20), f"r{seed}", **changes)
        seeded = side.report.calibration.model_copy(update={"seed": seed, "source": calibration.source})
        made.append(side._replace(report=side.report.model_copy(update={"calibration": seeded})))
    return made


@pytest.mark.parametrize("bound", [0.95, 1.0, 1.1, 1.5])
@pytest.mark.parametrize("relation", ["<=", ">="])
def test_the_chance_to_break_an_absolute_limit_is_that_of_a_new_value(bound, relation):
    values = [1.0, 1.2, 0.9, 1.05, 1.1, 0.97]
    limit = parse(f"int8.kl_divergence {relation} {bound}", SCHEMES)
    scale = np.std(values, ddof=1) * math.sqrt(1 + 1 / 6)
    over = stats.t.sf((bound - np.mean(values)) / scale, 5)
    assert chance_to_break(limit, bound, values) == pytest.approx(over if relation == "<=" else 1 - over, abs=1e-12)


@pytest.mark.parametrize(("relation", "factor"), [("<=", 1.0), ("<=", 1.1), ("<=", 1.3), (">=", 0.9)])
def test_the_chance_to_break_a_relative_limit_is_that_of_two_new_values(relation, factor):
    random = np.random.default_rng(5)
    limit = parse(f"int8.kl_divergence {relation} baseline * {factor}", SCHEMES)
    draws = random.normal(1.0, 0.1, (4000, 8))
    values, x, b = draws[:, :6], draws[:, 6], draws[:, 7]
    means = values.mean(axis=1)
    spreads = values.std(axis=1, ddof=1) * math.sqrt(1 + factor**2 + (1 - factor) ** 2 / 6)
    # What the chance rests on: how far the two new values lie off is Student's t.
    assert stats.kstest((x - factor * b - (1 - factor) * means) / spreads, stats.t(5).cdf).pvalue > 0.01
    for place in range(20):
        chance = stats.t.sf(limit.sign * (factor - 1) * means[place] / spreads[place], 5)
        assert chance_to_break(limit, factor, values[place].tolist()) == pytest.approx(chance, abs=1e-12)
    true = stats.norm.sf(limit.sign * (factor - 1) / (0.1 * math.sqrt(1 + factor**2)))
    many = random.normal(1.0, 0.1, 20_000)
    assert chance_to_break(limit, factor, many.tolist()) == pytest.approx(true, abs=0.01)


def test_figures_without_spread_break_always_or_never():
    limit = parse("int8.model_bytes <= 10", SCHEMES)
    assert [chance_to_break(limit, 10, [value] * 4) for value in (9.0, 10.0, 11.0)] == [0.0, 0.0, 1.0]


def test_tight_limits_are_pointed_out_with_one_that_is_not():
    limits = parse_all(
        ["nf4.kl_divergence <= baseline * 1.01", "nf4.kl_divergence <= 100", "nf4.model_bytes <= baseline",
         "nf4.same_top_token >= baseline * 0.999", "int8.kl_divergence <= 0.004"],
        SCHEMES,
    )  # fmt: skip
    sides = reports(5)
    made = calibrate(limits, sides, runs_per_year=365.0)
    assert made.seeds == (0, 1, 2, 3, 4)
    assert [one.tight for one in made.limits] == [True, False, False, True, True]
    for noise, limit in zip(made.limits, limits, strict=True):
        if not noise.tight:
            assert noise.suggestion is None
            continue
        suggested = parse(noise.suggestion, SCHEMES)
        assert (suggested.figure, suggested.relation, suggested.against_baseline) == limit[1:4]
        assert chance_to_break(suggested, suggested.bound, noise.values) <= 0.05
        closer = suggested.bound - suggested.sign * 0.011 * abs(suggested.bound)
        assert chance_to_break(suggested, closer, noise.values) > 0.05
    kl = [side.report.schemes["nf4"].kl_divergence.mean for side in sides]
    assert made.limits[0].values == tuple(kl)
    assert (made.limits[0].mean, made.limits[0].standard_deviation) == pytest.approx((np.mean(kl), np.std(kl, ddof=1)))


def test_false_alarms_of_a_year_follow_from_runs_and_reruns():
    sites = {"component": ["block"], "port": ["output"]}
    largest = (10.0, 11.0, 12.0, 11.5)
    sides = [
        side._replace(read=lambda table, _, at=at: {**sites, "abs_max": [at]} if table == "sites" else None)
        for side, at in zip(reports(4), largest, strict=True)
    ]
    limits = parse_all(["block.abs_max <= baseline * 1.1", "nf4.kl_divergence <= baseline * 1.01"], SCHEMES)
    for reruns in (0, 1, 2):
        made = calibrate(limits, sides, 365.0, reruns)
        first, second = made.limits
        assert 0.05 < first.chance < 0.5
        assert first.alarms_per_year == pytest.approx(365 * first.chance ** (1 + reruns))
        # A mean over positions is called broken in 5% at most, however often text moves it over its limit.
        assert 0.05 < second.chance <= 0.5
        assert second.alarms_per_year == pytest.approx(365 * 0.05 ** (1 + reruns))
        assert made.alarms_per_year == pytest.approx(first.alarms_per_year + second.alarms_per_year)


def test_a_limit_that_the_model_itself_breaks_is_no_matter_of_noise():
    [noise] = calibrate(parse_all(["nf4.kl_divergence <= 1e-6"], SCHEMES), reports(4), 12.0).limits
    assert noise.chance > 0.95
    assert noise.alarms_per_year == pytest.approx(12 * noise.chance**2)


def test_sets_and_verdicts_are_counted():
    sides = reports(3)
    base = template().outliers
    one = base.llm_int8.dimensions[0]
    sets = [base.model_copy(update={"llm_int8": base.llm_int8.model_copy(
        update={"dimensions": tuple(one.model_copy(update={"dimension": number}) for number in dimensions)})})
        for dimensions in ((1, 2), (1, 2), (1, 2, 3))]  # fmt: skip
    sides = [
        side._replace(report=side.report.model_copy(update={"outliers": of}))
        for side, of in zip(sides, sets, strict=True)
    ]
    limits = parse_all(["outliers.llm_int8 none gained", "int8.verdict no worse than negligible"], SCHEMES)
    outliers, verdict = calibrate(limits, sides, 1.0).limits
    assert outliers.values == (2.0, 2.0, 3.0)
    assert outliers.chance == pytest.approx(2 / 6)  # of the ordered pairs, those that end at the third
    assert verdict.chance == pytest.approx(np.mean([value != "negligible" for value in verdict.values]))
    assert (outliers.mean, outliers.tight) == (None, True)


def test_a_figure_that_a_report_lacks_has_no_chance():
    sides = reports(3)
    sides[1] = sides[1]._replace(read=lambda *_: None)
    [noise] = calibrate(parse_all(["block.abs_max <= 5"], SCHEMES), sides, 1.0).limits
    assert (noise.chance, noise.alarms_per_year, noise.tight) == (None, None, False)
    assert noise.values == (10.0, None, 10.0)


def test_verdicts_that_cannot_be_told_have_no_chance():
    sides = reports(3)
    facts = {name: one.model_copy(update={"quantised_share": 0.0}) for name, one in sides[0].report.schemes.items()}
    sides[0] = sides[0]._replace(report=sides[0].report.model_copy(update={"schemes": facts}))
    [noise] = calibrate(parse_all(["int8.verdict no worse than noticeable"], SCHEMES), sides, 1.0).limits
    assert (noise.chance, noise.alarms_per_year, noise.tight) == (None, None, False)


def test_too_few_reports_other_weights_and_one_text_twice_are_refused():
    limits = parse_all(["nf4.kl_divergence <= 1"], SCHEMES)
    with pytest.raises(InvalidRequest, match=r"calibrate: 1 is not allowed; allowed: 2 or more further seeds"):
        calibrate(limits, reports(2), 1.0)
    other = report(made_up(9, positions=20), weights="b")
    with pytest.raises(InvalidRequest, match="allowed: reports of the same weights"):
        calibrate(limits, [*reports(2), other], 1.0)
    with pytest.raises(InvalidRequest, match="holds one text twice; allowed: reports of different texts"):
        calibrate(limits, [*reports(2), reports(1)[0]], 1.0)


def test_text_on_which_verdicts_differ():
    text = made_up(1, positions=20)
    sides = reports(3)
    worse = changed(text, "int8", kl=lambda of: of.kl * 50)
    sides[0] = report(worse, "r0")
    [noise] = calibrate(
        parse_all(["int8.verdict no worse than baseline"], SCHEMES), sides[:1] + reports(4)[2:], 1.0
    ).limits
    ranks = [("negligible", "noticeable", "severe").index(value) for value in noise.values]
    assert len(set(ranks)) > 1
    expected = [after > before for a, before in enumerate(ranks) for b, after in enumerate(ranks) if a != b]
    assert noise.chance == pytest.approx(np.mean(expected))
