"""Findings and verdicts of runs, against NumPy, SciPy and reports made to break a limit, or to break it by noise."""

import math

import numpy as np
import pytest
from made_reports import changed, made_up, report, template
from scipy import stats

from service.audits.assessment import identical
from service.audits.evidence import holm
from service.audits.judgment import combine, judge, to_measure_again
from service.audits.limits import parse_all
from service.contracts.audits.audit import Finding, Rerun

SCHEMES = ("int8", "nf4")


def judged(limits, candidate, baseline=None):
    return judge(parse_all(limits, SCHEMES), candidate, baseline)


def one(limit, candidate, baseline=None):
    [finding] = judged([limit], candidate, baseline)
    assert Finding.model_validate_json(finding.model_dump_json()) == finding
    return finding


def clustered(values):
    """Mean, standard error and one-sided p-value by the definition, of sequences as rows of one length."""
    count = len(values)
    residuals = values.sum(axis=1) - values.shape[1] * values.mean()
    error = math.sqrt(count / (count - 1) * (residuals**2).sum()) / values.size
    return values.mean(), error, stats.t.sf(values.mean() / error, count - 1)


def stacked(text, scheme, column):
    return np.array([getattr(one, column) for one in text[scheme]])


def noisy(text, scheme="nf4", seed=0, size=0.4, shift=0.0):
    """Return a text whose KL and predictions another model makes, `shift` higher in all."""
    random = np.random.default_rng(seed)
    return changed(
        text,
        scheme,
        kl=lambda of: of.kl * (1 + shift) * random.lognormal(-size * size / 2, size, len(of.kl)),
        nll=lambda of: of.nll + random.normal(shift / 20, 0.1, len(of.nll)),
        same_top=lambda of: np.where(random.random(len(of.kl)) < 0.1, 1 - of.same_top, of.same_top),
    )


MOVES = {
    "kl_divergence.mean": lambda text: stacked(text, "nf4", "kl"),
    "same_top_token": lambda text: stacked(text, "nf4", "same_top"),
    "delta_p.mean": lambda text: np.exp(-stacked(text, "nf4", "nll")) - np.exp(-stacked(text, "nf4", "nll_reference")),
}


@pytest.mark.parametrize("figure", MOVES)
@pytest.mark.parametrize(("relation", "sign"), [("<=", 1), (">=", -1)])
@pytest.mark.parametrize("factor", [0.8, 1.0, 1.3])
def test_a_mean_is_paired_with_the_baselines_position_by_position(figure, relation, sign, factor):
    before = made_up(1)
    after = noisy(before)
    finding = one(f"nf4.{figure} {relation} baseline * {factor}", report(after, weights="b"), report(before))
    x, b = MOVES[figure](after), MOVES[figure](before)
    value, error, p = clustered(sign * (x - factor * b))
    assert (finding.value, finding.baseline, finding.bound) == pytest.approx((x.mean(), b.mean(), factor * b.mean()))
    assert (finding.excess.value, finding.excess.standard_error) == pytest.approx((value, error), rel=1e-9)
    assert finding.p_value == pytest.approx(p, rel=1e-6, abs=1e-13)
    assert finding.verdict == ("pass" if value <= 0 else "broken" if p <= 0.05 else "warn")


def test_ratios_and_perplexities_are_tested_by_their_logarithms():
    before = made_up(1)
    after = noisy(before)
    limits = [
        "nf4.perplexity_ratio <= baseline * 1.02",
        "nf4.perplexity <= baseline * 1.02",
        "nf4.perplexity_ratio <= 1.3",
        "nf4.delta_p.rms <= baseline * 1.1",
        "nf4.delta_p.rms <= 0.01",
    ]
    found = judged(limits, report(after, weights="b"), report(before))
    x, b = (stacked(text, "nf4", "nll") for text in (after, before))
    reference = stacked(before, "nf4", "nll_reference")
    dx, db = MOVES["delta_p.mean"](after), MOVES["delta_p.mean"](before)
    expected = [
        x - b - math.log(1.02),
        x - b - math.log(1.02),
        x - reference - math.log(1.3),
        dx**2 - 1.21 * db**2,
        dx**2 - 1e-4,
    ]
    for finding, values in zip(found, expected, strict=True):
        value, error, p = clustered(values)
        assert (finding.excess.value, finding.excess.standard_error) == pytest.approx((value, error), rel=1e-9)
        assert finding.p_value == pytest.approx(p, rel=1e-6, abs=1e-13)
    assert found[0].value == pytest.approx(math.exp((x - reference).mean()))
    assert found[1].value == pytest.approx(math.exp(x.mean()))
    assert found[2].interval == pytest.approx(report(after).report.schemes["nf4"].perplexity_ratio.interval)


def test_the_references_perplexity_is_paired():
    before = made_up(1)
    random = np.random.default_rng(3)
    moves = {scheme: iter(random.normal(0.3, 0.2, (16, 40))) for scheme in SCHEMES}
    after = before
    for scheme in SCHEMES:
        after = changed(after, scheme, nll_reference=lambda of, scheme=scheme: of.nll_reference + next(moves[scheme]))
    finding = one("reference.perplexity <= baseline * 1.05", report(after, weights="b"), report(before))
    values = stacked(after, "int8", "nll_reference") - stacked(before, "int8", "nll_reference") - math.log(1.05)
    assert (finding.excess.value, finding.p_value) == pytest.approx((values.mean(), clustered(values)[2]), abs=1e-12)
    assert finding.verdict == "broken"


def test_the_same_weights_text_and_software_differ_exactly():
    text = made_up(1)
    side = report(text)
    for limit in (
        "nf4.kl_divergence <= baseline",
        "nf4.perplexity_ratio <= baseline",
        "int8.verdict no worse than baseline",
        "int8.same_top_token >= baseline",
        "block.abs_max <= baseline",
        "outliers.llm_int8 none gained",
    ):
        finding = one(limit, side, report(text))
        assert (finding.verdict, finding.p_value, finding.excess) == ("pass", None, None)
    worse = report(noisy(text, size=0.01, shift=0.001))  # such as another setting makes
    finding = one("nf4.kl_divergence <= baseline", worse, side)
    assert (finding.verdict, finding.p_value) == ("broken", None)
    assert finding.reason.endswith("Weights, text and software are the baseline's, so the difference is exact.")


@pytest.mark.parametrize("what", ["model", "environment", "headroom_version"])
def test_what_is_not_identical_is_tested(what):
    text = made_up(1)
    values = {
        "model": report(text, weights="b").report.model,
        "environment": template().environment.model_copy(update={"torch": "9.9"}),
        "headroom_version": "99",
    }
    before, after = report(text), report(text, **{what: values[what]})
    assert identical(before.report, report(text).report)
    assert not identical(after.report, before.report)
    finding = one("nf4.kl_divergence <= baseline", after, before)
    assert (finding.verdict, finding.p_value, finding.excess.value) == ("pass", 1.0, 0.0)


def test_texts_that_differ_are_never_compared():
    limits = [
        "nf4.kl_divergence <= baseline * 0.001",
        "block.abs_max <= baseline * 0.001",
        "nf4.kl_divergence.p99 <= baseline * 0.001",
        "int8.verdict no worse than baseline",
        "outliers.llm_int8 none gained",
    ]
    found = judged(limits, report(made_up(2), weights="b"), report(made_up(1)))
    assert [finding.verdict for finding in found] == ["not_judged"] * 5
    assert {finding.reason for finding in found} == {
        "The calibration texts differ, and texts that differ are never compared."
    }
    assert combine(found, []).verdict == "warn"
    assert len(combine(found, []).reasons) == 5
    # What does not depend on the text is held to its limit.
    assert (
        one("nf4.model_bytes <= baseline * 0.5", report(made_up(2), weights="b"), report(made_up(1))).verdict
        == "broken"
    )


def test_sequences_that_both_scored_are_compared():
    first, second = made_up(1), made_up(2)
    both = {scheme: first[scheme][:10] + second[scheme][:6] for scheme in SCHEMES}
    finding = one("nf4.kl_divergence <= baseline", report(noisy(both, shift=1.0), weights="b"), report(first))
    assert finding.excess.unit_count == 10
    assert finding.verdict == "broken"
    assert "Judged on the 10 sequences that both scored." in finding.reason


def test_without_a_baseline_only_absolute_limits_are_judged():
    found = judged(["nf4.kl_divergence <= baseline * 2", "nf4.kl_divergence <= 10"], report(made_up(1)))
    assert [finding.verdict for finding in found] == ["not_judged", "pass"]
    assert found[0].reason == "There is no baseline yet."
    assert found[0].value == pytest.approx(stacked(made_up(1), "nf4", "kl").mean())
    assert combine(found, []).verdict == "pass"


def test_figures_that_are_no_mean_act_on_effect_size_alone():
    text = made_up(1)
    sites = {"component": ["block"], "port": ["output"], "abs_max": [20.1]}
    finding = one("block.abs_max <= baseline * 2", report(text, weights="b", sites=sites), report(text))
    assert (finding.verdict, finding.value, finding.baseline, finding.bound) == ("broken", 20.1, 10.0, 20.0)
    assert (finding.p_value, finding.level_needed, finding.excess) == (None, None, None)
    assert finding.reason == "20.10 is over 20.00, 2 times the baseline's 10.00."


@pytest.mark.parametrize(
    ("limit", "largest", "reason"),
    [
        ("block.abs_max <= 1.0001", 1.00012, "1.00012 is over 1.0001."),
        ("block.abs_max <= 1.0001", 1.0001, "1.0001 is not over 1.0001."),
        ("block.abs_max <= 1.0001", 2.0, "2.000 is over 1.0001."),
        ("block.abs_max <= 65504", 1.0, "1.000 is not over 65504."),
        ("block.abs_max >= 1e-7", 1.0, "1.000 is not under 1e-07."),
        (
            "block.abs_max <= baseline * 1.00001",
            10.00013,
            "10.00013 is over 10.00010, 1.00001 times the baseline's 10.00.",
        ),
        ("block.abs_max <= baseline * 1.0001", 10.002, "10.002 is over 10.001, 1.0001 times the baseline's 10.00."),
        ("block.abs_max <= baseline", 10.0, "10.00 is not over 10.00, 1 times the baseline's 10.00."),
    ],
)
def test_a_bound_is_named_as_it_was_written_and_told_apart_from_the_value(limit, largest, reason):
    text = made_up(1)
    sites = {"component": ["block"], "port": ["output"], "abs_max": [largest]}
    finding = one(limit, report(text, weights="b", sites=sites), report(text))
    assert finding.reason == reason


def test_outlier_dimensions_gained_are_named():
    text = made_up(1)
    base = template().outliers
    extra = base.llm_int8.dimensions[0].model_copy(update={"dimension": 5})
    grown = base.model_copy(
        update={"llm_int8": base.llm_int8.model_copy(update={"dimensions": (*base.llm_int8.dimensions, extra)})}
    )
    gained = one("outliers.llm_int8 none gained", report(text, weights="b", outliers=grown), report(text))
    assert (gained.verdict, gained.value, gained.reason) == ("broken", (5,), "1 gained: 5.")
    lost = one("outliers.llm_int8 none gained", report(text, weights="b"), report(text, outliers=grown))
    assert (lost.verdict, lost.value) == ("pass", ())
    other = base.model_copy(update={"llm_int8": base.llm_int8.model_copy(
        update={"thresholds": base.llm_int8.thresholds.model_copy(update={"magnitude": 5.0})})})  # fmt: skip
    finding = one("outliers.llm_int8 none gained", report(text, weights="b", outliers=other), report(text))
    assert finding.verdict == "not_judged"
    assert "different thresholds" in finding.reason


def scaled(kl, seed=1):
    """Return a text whose mean KL of int8 is `kl` nats, and whose predictions are else the reference's."""
    text = made_up(seed)
    factor = kl / stacked(text, "int8", "kl").mean()
    return changed(text, "int8", kl=lambda of: of.kl * factor, nll=lambda of: of.nll_reference + 0.0)


@pytest.mark.parametrize(
    ("kl", "limit", "verdict"),
    [
        (0.008, "negligible", "pass"),
        (0.0101, "negligible", "warn"),
        (0.02, "negligible", "broken"),
        (0.02, "noticeable", "pass"),
        (0.2, "noticeable", "broken"),
        (0.2, "severe", "pass"),
    ],
)
def test_a_verdict_is_held_to_a_level(kl, limit, verdict):
    finding = one(f"int8.verdict no worse than {limit}", report(scaled(kl)))
    assert (finding.verdict, finding.bound) == (verdict, limit)
    if limit == "negligible":
        values = stacked(scaled(kl), "int8", "kl") - 0.01
        # Of the ratio, which is 1 throughout, no excess is possible: the other of the two measures decides.
        assert finding.p_value == pytest.approx(min(1, 2 * clustered(values)[2]), abs=1e-12)


def test_a_verdict_worse_than_the_baselines_must_be_a_clear_change():
    before, after = report(scaled(0.0095)), report(noisy(scaled(0.0125), "int8", shift=0.0), weights="b")
    finding = one("int8.verdict no worse than baseline", after, before)
    assert (finding.value, finding.baseline, finding.bound) == ("noticeable", "negligible", "negligible")
    assert finding.verdict in ("warn", "broken")
    own = clustered(stacked(noisy(scaled(0.0125), "int8", shift=0.0), "int8", "kl") - 0.01)[2]
    change = clustered(stacked(noisy(scaled(0.0125), "int8"), "int8", "kl") - stacked(scaled(0.0095), "int8", "kl"))[2]
    assert finding.p_value == pytest.approx(min(1, 2 * max(own, change)), rel=1e-6)
    assert one("int8.verdict no worse than baseline", report(scaled(0.05), weights="b"), before).verdict == "broken"


def test_a_verdict_that_cannot_be_told_is_not_judged():
    text = made_up(1)
    facts = {name: one.model_copy(update={"quantised_share": 0.0}) for name, one in report(text).report.schemes.items()}
    assert one("int8.verdict no worse than negligible", report(text, schemes=facts)).verdict == "not_judged"


def test_a_scheme_without_finite_predictions_breaks_every_limit_on_them():
    text = made_up(1)
    base = report(text)
    gone = {
        "perplexity": None,
        "perplexity_ratio": None,
        "kl_divergence": None,
        "same_top_token": None,
        "delta_p": None,
    }
    facts = {**base.report.schemes, "int8": base.report.schemes["int8"].model_copy(update=gone)}
    after = report(text, schemes=facts, weights="b")
    for limit in (
        "int8.kl_divergence <= 1",
        "int8.same_top_token >= baseline * 0.5",
        "int8.verdict no worse than baseline",
    ):
        assert one(limit, after, base).verdict == "broken"
    assert one("nf4.kl_divergence <= 1", after, base).verdict == "pass"
    assert one("int8.kl_divergence <= baseline", base, after).reason == "The baseline has no such figure."


def test_predictions_that_are_no_longer_finite_break_limits_against_the_baseline():
    text = made_up(1)
    after = changed(text, "int8", kl=lambda of: np.where(np.arange(len(of.kl)) == 7, np.nan, of.kl * 0.5))
    after = changed(after, "int8", nll=lambda of: np.where(np.arange(len(of.nll)) == 7, np.nan, of.nll))
    finding = one("int8.kl_divergence <= baseline", report(after, weights="b"), report(text))
    assert finding.verdict == "broken"
    assert finding.reason.startswith("16 predictions under int8 are no longer finite as in the baseline")
    assert one("int8.kl_divergence <= baseline * 3", report(text, weights="b"), report(after)).verdict == "pass"


def test_what_a_report_lacks_is_not_judged():
    text = made_up(1)
    no_int8 = report({"nf4": text["nf4"]}, weights="b")
    assert one("int8.kl_divergence <= 1", no_int8).reason == "The report has no scheme int8."
    assert (
        one("int8.kl_divergence <= baseline", report(text, weights="b"), no_int8).reason
        == "The baseline has no scheme int8."
    )
    assert one("nf4.fp16_columns.prefill <= 1", report(text)).verdict == "not_judged"
    other = report(text, definitions_version="2.0")
    assert one("int8.kl_divergence <= baseline", report(text, weights="b"), other).verdict == "not_judged"


def test_without_a_table_of_tokens_a_breach_is_within_the_noise():
    side = report(made_up(1))._replace(read=lambda *_: None)
    assert one("nf4.kl_divergence <= 10", side).verdict == "pass"
    finding = one("nf4.kl_divergence <= 0.001", side)
    assert (finding.verdict, finding.p_value) == ("warn", None)
    assert finding.reason.endswith("The positions at hand are too few to tell it from noise.")
    level = one("nf4.verdict no worse than negligible", side)
    assert (level.value, level.verdict, level.p_value) == ("noticeable", "warn", None)
    assert one("nf4.verdict no worse than noticeable", side).verdict == "pass"
    alone = report(made_up(1), schemes={})  # a job that runs no scheme has no rows of tokens
    [reference] = judge(parse_all(["reference.perplexity <= 1.5"], ()), alone, None)
    assert (reference.verdict, reference.excess) == ("warn", None)


def test_an_excess_without_noise_is_beyond_it():
    text = changed(made_up(1), "int8", kl=lambda of: np.full(len(of.kl), 0.5))
    assert one("int8.kl_divergence <= 0.49", report(text)).p_value == 0
    assert one("int8.kl_divergence <= 0.5", report(text)).p_value == 1


def test_holm_holds_the_smallest_to_the_strictest_level():
    assert holm([0.02, 0.001, 0.03, 0.04], 0.05) == [
        (pytest.approx(0.05 / 3), False), (pytest.approx(0.05 / 4), True), (0.025, False), (0.05, False),
    ]  # fmt: skip
    assert holm([0.01, 0.04], 0.05) == [(0.025, True), (0.05, True)]
    assert holm([], 0.05) == []
    # Against the definition by adjusted p-values: the running maximum of (m - i + 1) p_(i).
    random = np.random.default_rng(0)
    for count in range(1, 12):
        p = random.random(count) ** 3
        order = np.argsort(p)
        adjusted = np.empty(count)
        adjusted[order] = np.maximum.accumulate(p[order] * (count - np.arange(count)))
        assert [beyond for _, beyond in holm(p.tolist(), 0.05)] == (adjusted <= 0.05).tolist()


def test_all_limits_of_a_run_are_weighed_together():
    before = made_up(1)
    after = report(noisy(before, shift=0.05), weights="b")
    alone = one("nf4.kl_divergence <= baseline", after, report(before))
    assert 0.005 < alone.p_value <= 0.05
    assert (alone.verdict, alone.level_needed) == ("broken", 0.05)
    others = [f"int8.kl_divergence <= {bound}" for bound in range(1, 10)]
    first = judged(["nf4.kl_divergence <= baseline", *others], after, report(before))[0]
    assert (first.verdict, first.level_needed, first.p_value) == ("warn", pytest.approx(0.005), alone.p_value)
    assert "That is within its noise" in first.reason
    # A limit that acts on effect size alone takes no part.
    beside = judged(["nf4.kl_divergence <= baseline", "block.abs_max <= baseline"], after, report(before))
    assert beside[0].level_needed == 0.05


def finding(verdict, limit="nf4.kl_divergence <= 1"):
    return Finding(
        limit=limit, figure="schemes.nf4.kl_divergence.mean", value=1.0, verdict=verdict, reason=f"It is {verdict}."
    )


def rerun(*verdicts, status="completed", seed=1, limit="nf4.kl_divergence <= 1"):
    return Rerun(seed=seed, status=status, findings=tuple(finding(verdict, limit) for verdict in verdicts))


@pytest.mark.parametrize(
    ("first", "reruns", "verdict"),
    [
        (["pass", "pass"], [], "pass"),
        ([], [], "pass"),
        (["pass", "not_judged"], [], "pass"),
        (["warn", "pass"], [], "warn"),
        (["broken"], [], "fail"),
        (["broken", "warn"], [rerun("broken")], "fail"),
        (["broken"], [rerun("pass")], "unconfirmed"),
        (["broken"], [rerun("warn")], "unconfirmed"),
        (["broken"], [rerun("not_judged")], "unconfirmed"),
        (["broken"], [rerun(status="failed")], "fail"),
        (["broken"], [rerun(status="baseline_gone")], "unconfirmed"),
        (["broken"], [rerun("broken", status="baseline_gone")], "fail"),
        (["broken"], [rerun("broken"), rerun("broken", seed=2)], "fail"),
        (["broken"], [rerun("broken"), rerun("pass", seed=2)], "unconfirmed"),
        (["broken"], [rerun(status="failed"), rerun("pass", seed=2)], "unconfirmed"),
        (["broken"], [rerun(status="failed"), rerun("broken", seed=2)], "fail"),
        (["broken"], [rerun("broken", limit="another <= 1")], "unconfirmed"),
    ],
)
def test_a_figure_fails_the_run_only_if_it_breaks_again(first, reruns, verdict):
    assert (
        combine([finding(one, f"nf4.kl_divergence <= {n}") for n, one in enumerate(first, 1)], reruns).verdict
        == verdict
    )


def test_what_could_not_be_compared_with_the_baseline_warns_unless_something_is_broken():
    lost = finding("not_judged").model_copy(update={"uncompared": True})
    assert combine([finding("pass"), lost], []).verdict == "warn"
    assert combine([finding("broken"), lost], [rerun("broken")]).verdict == "fail"
    assert combine([finding("broken"), lost], [rerun("pass")]).verdict == "unconfirmed"


def test_one_confirmed_figure_is_enough_and_each_has_its_reason():
    first = [finding("broken", "a <= 1"), finding("broken", "b <= 1"), finding("not_judged", "c <= 1")]
    outcome = combine(
        first, [Rerun(seed=9, status="completed", findings=(finding("broken", "a <= 1"), finding("pass", "b <= 1")))]
    )
    assert outcome.verdict == "fail"
    assert outcome.reasons == (
        "a <= 1: It is broken. Broken again on seed 9.",
        "b <= 1: It is broken. Not confirmed on seed 9: It is pass.",
        "c <= 1: not judged. It is not_judged.",
    )


def test_only_what_is_broken_is_measured_again():
    limits = parse_all(["int8.kl_divergence <= 1", "nf4.kl_divergence <= 1"], SCHEMES)
    first = [finding("warn", limits[0].text), finding("broken", limits[1].text)]
    assert to_measure_again(limits, first) == (limits[1],)
