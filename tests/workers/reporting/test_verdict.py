"""The verdict's sentences name the figures and the limits, and say when the text was too short to be sure."""

import json

import pytest
from made_up import error

from service.contracts.thresholds import VerdictLimits
from workers.reporting.loading import load
from workers.reporting.verdict import Level, verdict


@pytest.fixture
def verdict_on(make_report):
    """A function that gives the verdict on nf4 in a report where some of its figures are as asked for."""

    def judged(limits=None, reference=True, guesses=False, exhausted=False, **figures):
        directory = make_report(schemes=("nf4",))
        path = directory / "report.json"
        content = json.loads(path.read_text())
        content["schemes"]["nf4"] |= figures
        if limits is not None:
            content["analysis"]["verdict"] = limits
        if exhausted:
            content["calibration"]["sequences"] = content["analysis"]["sequences"] - 1
        if not reference:
            content["reference"]["perplexity"] = None
        if guesses:
            content["reference"]["perplexity"]["value"] = content["model"]["vocabulary"]
        path.write_text(json.dumps(content))
        report = load(directory).report
        return verdict(report, report.schemes["nf4"])

    return judged


def kl(mean, standard_error):
    quantiles = dict.fromkeys(("median", "p90", "p95", "p99", "p99_9", "max"), mean)
    return quantiles | {"mean": mean} | error(mean, standard_error)


def ratio(value, standard_error):
    return {"value": value} | error(value, standard_error)


def test_reasons_name_the_figures_and_the_limits(verdict_on):
    result = verdict_on(kl_divergence=kl(0.034, 0.001), perplexity_ratio=ratio(1.02, 0.001))
    assert result.level is Level.noticeable
    assert result.reasons == (
        "Mean KL divergence is 0.0340 nats (95% interval 0.0320 to 0.0360): noticeable (0.01 to 0.1).",
        "Perplexity ratio is 1.0200 (95% interval 1.0180 to 1.0220): noticeable (1.01 to 1.05).",
    )
    assert result.unsettled is None


def test_the_reports_own_limits_count(verdict_on):
    figures = {"kl_divergence": kl(0.034, 0.001), "perplexity_ratio": ratio(1.02, 0.001)}
    limits = VerdictLimits(kl_noticeable=0.05, kl_severe=0.5, ratio_noticeable=1.03, ratio_severe=1.06)
    result = verdict_on(limits.model_dump(), **figures)
    assert result.level is Level.negligible
    assert result.reasons[0].endswith(": negligible (under 0.05).")


def test_what_is_not_ruled_out_is_said(verdict_on):
    noisy = verdict_on(kl_divergence=kl(0.001, 0.0001), perplexity_ratio=ratio(1.02, 0.03))
    assert noisy.level is Level.negligible
    reason = "Perplexity ratio is 1.020 (95% interval 0.960 to 1.080): no significant increase"
    assert noisy.reasons[1] == f"{reason}, because the interval includes 1."
    assert noisy.unsettled == "The 95% intervals also allow severe; rerun with more --sequences."


def test_milder_and_worse_classes_that_are_not_ruled_out_are_said_together(verdict_on):
    above = verdict_on(kl_divergence=kl(0.02, 0.1), perplexity_ratio=ratio(1.0, 0.001))
    assert above.unsettled == "The 95% intervals also allow negligible and severe; rerun with more --sequences."


def test_where_the_text_is_used_up_a_longer_one_is_asked_for(verdict_on):
    noisy = verdict_on(exhausted=True, kl_divergence=kl(0.001, 0.0001), perplexity_ratio=ratio(1.02, 0.03))
    assert noisy.unsettled == "The 95% intervals also allow severe; rerun with a longer text (--calibration FILE)."


@pytest.mark.parametrize(
    ("reference", "level", "who"), [(True, Level.severe, "quantized model"), (False, Level.unjudged, "reference")]
)
def test_no_prediction_is_said(verdict_on, reference, level, who):
    absent = dict.fromkeys(("perplexity", "perplexity_ratio", "kl_divergence", "same_top_token", "delta_p"))
    result = verdict_on(reference=reference, **absent)
    assert result == (level, (), (f"The {who} has no finite prediction at any position.",), None, None)


def test_a_reference_that_guesses_leaves_no_word(verdict_on):
    result = verdict_on(kl_divergence=kl(0.5, 0.001), guesses=True)
    assert (result.level, result.unsettled) == (Level.unjudged, None)
    assert result.reasons[0].startswith(
        "The reference predicts this text no better than a random guess among its 4,096 tokens"
    )


@pytest.mark.parametrize(
    ("share", "level", "partial"),
    [(0.0, Level.unjudged, "none of the layers' weights quantized"),
     (0.0412, Level.noticeable, "only 4.1% of the layers' weights quantized"),
     (0.0004, Level.noticeable, "only 0.1% or less of the layers' weights quantized"),
     (0.97, Level.noticeable, None), (None, Level.noticeable, None)],
)  # fmt: skip
def test_how_little_a_scheme_replaces_is_told(verdict_on, share, level, partial):
    result = verdict_on(kl_divergence=kl(0.034, 0.001), quantised_share=share)
    assert (result.level, result.partial) == (level, partial)
    alone = [reason for reason in result.reasons if reason.endswith("of the decoder layers' weights are quantized.")]
    assert len(alone) == (0 < (share or 0) < 0.9)


def test_the_verdict_of_the_report_itself_is_shown(verdict_on):
    own = {"level": "severe", "reasons": ["It was judged so."], "not_ruled_out": ["negligible", "noticeable"]}
    result = verdict_on(verdict=own)
    assert (result.level, result.reasons) == (Level.severe, ("It was judged so.",))
    assert result.doubtful == (Level.negligible, Level.noticeable)


def test_figures_without_an_interval_rule_nothing_out(verdict_on):
    alone = {"value": 1.02, "standard_error": None}
    result = verdict_on(kl_divergence=kl(0.034, 0.001) | {"interval": None}, perplexity_ratio=alone)
    assert result.level is Level.noticeable
    assert result.reasons[-1] == "These values have no 95% interval, so other levels are possible."
