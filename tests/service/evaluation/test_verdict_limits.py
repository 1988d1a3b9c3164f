"""The word on a scheme follows from two figures and the limits that the job was given."""

import pytest
from pydantic import ValidationError

from service.contracts.report import Estimate
from service.contracts.request import Analysis
from service.contracts.thresholds import VerdictLimits
from service.evaluation.verdict import Grounds, Level, judge, recorded

DEFAULTS = VerdictLimits()
FIRM = Grounds(perplexity=20.0, vocabulary=4096, quantised_share=1.0)


def judged(kl=0.001, kl_error=0.0001, ratio=1.0, ratio_error=0.001, limits=DEFAULTS, grounds=FIRM):
    return judge(figure(kl, kl_error), figure(ratio, ratio_error), limits, grounds)


def figure(value, error):
    """A figure over so many sequences that the interval reaches 1.96 standard errors."""
    interval = None if error is None else (value - 1.96 * error, value + 1.96 * error)
    return Estimate(value=value, standard_error=error, interval=interval)


@pytest.mark.parametrize(
    ("kl", "error", "shown"),
    [(0.0041, 0.001, "0.0041 nats"), (0.00999, 0.001, "0.00999 nats"), (0.00999, None, "0.009990 nats"),
     (0.0099999, None, "0.0099999 nats"), (0.0099999, 0.002, "0.0099999 nats")],
)  # fmt: skip
def test_a_value_is_written_with_the_digits_that_tell_it_from_the_limits(kl, error, shown):
    first = recorded(figure(kl, error), figure(1.0, 0.001), DEFAULTS, FIRM).reasons[0]
    assert first.startswith(f"Mean KL divergence is {shown}")
    assert first.endswith("negligible (under 0.01).")


@pytest.mark.parametrize(
    ("kl", "level"),
    [(0.0, Level.negligible), (0.00999, Level.negligible), (0.01, Level.noticeable), (0.0999, Level.noticeable),
     (0.1, Level.severe), (12.0, Level.severe), (float("nan"), Level.severe)],
)  # fmt: skip
def test_the_mean_divergence_is_judged_by_its_value(kl, level):
    assert judged(kl=kl).level is level


@pytest.mark.parametrize(
    ("ratio", "error", "level"),
    [(0.98, 0.001, Level.negligible), (1.02, 0.02, Level.negligible), (1.02, 0.004, Level.noticeable),
     (1.014, 0.0023, Level.noticeable), (1.08, 0.03, Level.severe), (1.08, 0.05, Level.negligible),
     (1.02, None, Level.noticeable), (float("nan"), None, Level.severe)],
)  # fmt: skip
def test_a_rise_of_perplexity_counts_once_its_interval_excludes_none(ratio, error, level):
    assert judged(ratio=ratio, ratio_error=error).level is level


def test_the_worse_measure_gives_the_word():
    assert judged(kl=0.2, ratio=1.0).level is Level.severe
    assert judged(kl=0.001, ratio=1.2).level is Level.severe


def test_the_worst_class_within_the_intervals_is_told():
    assert judged().possible is Level.negligible
    assert judged(ratio=1.02, ratio_error=0.03).possible is Level.severe
    assert judged(kl=0.009, kl_error=0.001).possible is Level.noticeable
    assert judged(kl=0.5, ratio=1.0).possible is Level.severe


def test_the_mildest_class_within_the_intervals_is_told():
    assert judged().doubtful == ()
    assert judged(ratio=1.0141, ratio_error=0.0023).doubtful == (Level.negligible,)
    assert judged(ratio=1.08, ratio_error=0.0408).doubtful == (Level.negligible,)
    assert judged(kl=0.05, ratio=1.08, ratio_error=0.0408).doubtful == (Level.noticeable,)
    assert judged(kl=0.02, kl_error=0.1).doubtful == (Level.negligible, Level.severe)
    assert judged(kl=0.5).doubtful == ()


def test_the_limits_are_settings():
    strict = VerdictLimits(kl_noticeable=0.0001, kl_severe=0.0005)
    assert judged(kl=0.001, limits=strict).level is Level.severe
    lax = VerdictLimits(ratio_noticeable=1.5, ratio_severe=2)
    assert judged(ratio=1.4, limits=lax).level is Level.negligible


def test_without_predictions_the_reference_decides():
    assert judge(None, None, DEFAULTS, FIRM).level is Level.severe
    assert judge(None, None, DEFAULTS, FIRM._replace(perplexity=None)).level is Level.unjudged


@pytest.mark.parametrize(
    ("lacks", "message"),
    [({"perplexity": 4096.0}, "no better than a random guess among its 4,096 tokens"),
     ({"quantised_share": 0.0}, "quantizes none of the decoder layers' weights"),
     ({"perplexity": None}, "no finite prediction at any position")],
)  # fmt: skip
def test_figures_that_cannot_tell_give_no_word(lacks, message):
    grounds = FIRM._replace(**lacks)
    judgment = judged(kl=0.5, ratio=1.2, grounds=grounds)
    assert (judgment.level, judgment.doubtful) == (Level.unjudged, ())
    assert message in grounds.lacking()


@pytest.mark.parametrize("share", [None, 0.001, 1.0])
def test_a_scheme_that_replaces_anything_is_judged(share):
    assert judged(kl=0.5, grounds=FIRM._replace(quantised_share=share)).level is Level.severe
    assert judge(None, None, DEFAULTS, FIRM._replace(quantised_share=0.0)).level is Level.severe


@pytest.mark.parametrize(
    ("limits", "message"),
    [({"kl_noticeable": 0.2}, r"kl_severe \(0.1\) must be larger than kl_noticeable"),
     ({"ratio_noticeable": 1.05}, r"ratio_severe \(1.05\) must be larger than ratio_noticeable"),
     ({"ratio_noticeable": 0.9}, "greater than or equal to 1"),
     ({"kl_noticeable": 0}, "greater than 0"),
     ({"kl_severe": float("inf")}, "finite"),
     ({"kl": 1}, "Extra inputs are not permitted")],
)  # fmt: skip
def test_limits_that_make_no_sense_are_refused(limits, message):
    with pytest.raises(ValidationError, match=message):
        Analysis(verdict=limits)


def test_an_analysis_that_says_nothing_has_the_defaults():
    assert Analysis.model_validate({}).verdict == VerdictLimits(
        kl_noticeable=0.01, kl_severe=0.1, ratio_noticeable=1.01, ratio_severe=1.05
    )
