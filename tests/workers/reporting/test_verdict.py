"""The plain word follows from the printed limits, and says when the text was too short to be sure."""

import json

import pytest

from service.contracts.report import Perplexity, ReferenceFacts, SchemeFacts
from workers.reporting.loading import load
from workers.reporting.verdict import KL, PERPLEXITY_RATIO, Level, judge

REFERENCE = ReferenceFacts(perplexity=Perplexity(value=10.0, standard_error=0.1, scored_tokens=100))


def scheme(kl=0.001, kl_error=0.0001, ratio=1.0, ratio_error=0.001):
    figures = dict.fromkeys(("median", "p90", "p95", "p99", "p99_9", "max"), kl)
    return SchemeFacts(
        settings={},
        perplexity=Perplexity(value=10 * ratio, standard_error=0.1, scored_tokens=100),
        perplexity_ratio={"value": ratio, "standard_error": ratio_error},
        kl_divergence={"mean": kl, "standard_error": kl_error, **figures},
        same_top_token={"value": 0.9, "standard_error": 0.01},
        delta_p={"mean": 0.0, "rms": 0.0},
        model_bytes=1,
        compression=2.0,
        not_quantised=(),
        worst_sites=(),
    )


@pytest.mark.parametrize(
    ("kl", "level"),
    [(0.0, Level.negligible), (0.00999, Level.negligible), (0.01, Level.noticeable), (0.0999, Level.noticeable),
     (0.1, Level.severe), (12.0, Level.severe), (float("nan"), Level.severe)],
)  # fmt: skip
def test_the_mean_divergence_is_judged_by_its_value(kl, level):
    assert judge(scheme(kl=kl), REFERENCE).level is level


@pytest.mark.parametrize(
    ("ratio", "error", "level"),
    [(0.98, 0.001, Level.negligible), (1.02, 0.02, Level.negligible), (1.02, 0.004, Level.noticeable),
     (1.08, 0.03, Level.noticeable), (1.08, 0.01, Level.severe), (1.02, None, Level.noticeable)],
)  # fmt: skip
def test_a_rise_of_perplexity_counts_as_far_as_its_interval_shows_it(ratio, error, level):
    assert judge(scheme(ratio=ratio, ratio_error=error), REFERENCE).level is level


def test_the_worse_measure_gives_the_word():
    assert judge(scheme(kl=0.2, ratio=1.0), REFERENCE).level is Level.severe
    assert judge(scheme(kl=0.001, ratio=1.2), REFERENCE).level is Level.severe


def test_what_is_not_ruled_out_is_said():
    assert judge(scheme(), REFERENCE).unsettled is None
    noisy = judge(scheme(ratio=1.02, ratio_error=0.03), REFERENCE)
    assert noisy.level is Level.negligible
    assert noisy.unsettled.startswith("Severe is not ruled out")
    assert judge(scheme(kl=0.009, kl_error=0.001), REFERENCE).unsettled.startswith("Noticeable is not ruled out")


def test_reasons_name_the_figures_and_the_limits():
    reasons = " ".join(judge(scheme(kl=0.034, ratio=1.02), REFERENCE).reasons)
    for part in ("0.0340", f"{KL.noticeable:g} to {KL.severe:g}", "1.020", "1.018", f"{PERPLEXITY_RATIO.noticeable:g}"):
        assert part in reasons


def test_a_scheme_that_leaves_no_prediction_is_severe_unless_the_reference_leaves_none():
    dead = scheme().model_copy(update={"kl_divergence": None, "perplexity_ratio": None, "perplexity": None})
    assert judge(dead, REFERENCE).level is Level.severe
    assert judge(dead, ReferenceFacts(perplexity=None)).level is Level.unjudged


def test_a_report_without_predictions_is_still_a_report(make_report):
    directory = make_report()
    path = directory / "report.json"
    content = json.loads(path.read_text())
    content["reference"]["perplexity"] = None
    absent = dict.fromkeys(("perplexity", "perplexity_ratio", "kl_divergence", "same_top_token", "delta_p"))
    for facts in content["schemes"].values():
        facts.update(absent)
    path.write_text(json.dumps(content))
    report = load(directory).report
    assert judge(report.schemes["nf4"], report.reference).level is Level.unjudged
