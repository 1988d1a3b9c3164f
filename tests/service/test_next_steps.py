"""What to do next follows from the verdicts, and says no more than they support."""

import json
from pathlib import Path

import pytest

from service.contracts.report import Report
from service.next_steps import MeasuredText, SchemeOutcome, next_steps, steps_after

STORED = Path(__file__).parents[1] / "workers/reporting/stored/schema_1_0/report.json"
OWN_TEXT = MeasuredText(sequences=16, exhausted=False, bundled=False, predictable=True)
BUNDLED = OWN_TEXT._replace(bundled=True)
V_SITES = ((12, "attn.v"), (3, "attn.v"), (1, "mlp.down"))
KEEP_V = "The largest errors of nf4 are at attn.v: rerun it with keep=attn.v, which leaves these modules in 16 bits."


def outcome(name, level, **changed):
    size = 4 if name.startswith(("nf4", "fp4")) else 8
    usual = SchemeOutcome(
        name=name, level=level, settled=True, mean_kl=0.05, model_bytes=1000 * size, compression=16 / size,
        deployable=True, replaces_nothing=False, worst_sites=V_SITES,
    )  # fmt: skip
    return usual._replace(**changed)


@pytest.mark.parametrize(
    ("schemes", "steps"),
    [
        ([], ["Rerun with --scheme int8 --scheme nf4 to measure what quantization does to this model."]),
        # the smallest that is negligible; what is larger and worse needs no word
        ([("int8", "negligible"), ("nf4", "negligible")],
         ["Use nf4: its effect on this text is negligible, and the model is 4.00 times smaller."]),
        ([("int8", "severe"), ("nf4", "negligible")],
         ["Use nf4: its effect on this text is negligible, and the model is 4.00 times smaller."]),
        ([("int8", "negligible"), ("nf4", "noticeable")],
         ["Use int8: its effect on this text is negligible, and the model is 2.00 times smaller.",
          "Test nf4 on your own task before you deploy it: its effect is noticeable."]),
        ([("int8", "noticeable"), ("nf4", "severe")],
         ["Test int8 on your own task before you deploy it: its effect is noticeable.",
          "Do not deploy nf4 as it is: its effect is severe.", KEEP_V]),
        ([("int8", "noticeable"), ("nf4", "noticeable")],
         ["Test int8 and nf4 on your own task before you deploy them: their effects are noticeable."]),
    ],
)  # fmt: skip
def test_settled_verdicts_decide(schemes, steps):
    assert list(steps_after([outcome(*scheme) for scheme in schemes], OWN_TEXT)) == steps


def test_the_bundled_text_alone_recommends_nothing_for_deployment():
    (step,) = steps_after([outcome("int8", "negligible")], BUNDLED)
    assert step.startswith("Measure int8 on a text of your own before you deploy it (--calibration FILE)")


@pytest.mark.parametrize("level", ["negligible", "noticeable", "severe"])
def test_a_level_that_is_not_settled_is_measured_again(level):
    schemes = [outcome("int8", level, settled=False)]
    assert steps_after(schemes, OWN_TEXT) == ("Rerun with --sequences 64: the level of int8 is not settled.",)
    few = OWN_TEXT._replace(sequences=1, exhausted=True)
    (step,) = steps_after([*schemes, outcome("nf4", level, settled=False)], few)
    assert step == (
        "Rerun with a longer text (--calibration FILE) and --sequences 8: the levels of int8 and nf4 are not settled."
    )


@pytest.mark.parametrize("level", ["negligible", "noticeable"])
def test_what_cannot_be_deployed_is_never_recommended(level):
    (step,) = steps_after([outcome("mxfp4", level, deployable=False)], OWN_TEXT)
    assert step == "Measure again on the kernel that you will deploy: mxfp4 is simulated or analysis only."


def test_of_several_severe_schemes_the_mildest_is_to_be_improved():
    schemes = [outcome("fp4", "severe", mean_kl=0.9), outcome("nf4", "severe", mean_kl=0.3)]
    assert steps_after(schemes, OWN_TEXT) == (
        "Do not deploy fp4 and nf4 as they are: their effects are severe.",
        KEEP_V,
    )


@pytest.mark.parametrize(
    ("sites", "said"),
    [((), None), (((7, "attn.o"),), "layer 7 attn.o: rerun it with keep=layers.7.attn.o,"),
     (((7, "attn.o"), (2, "attn.v")), "layer 7 attn.o: rerun it with keep=layers.7.attn.o,"), (V_SITES, "attn.v: ")],
)  # fmt: skip
def test_the_largest_errors_are_named_as_keep_takes_them(sites, said):
    _, *kept = steps_after([outcome("nf4", "severe", worst_sites=sites)], OWN_TEXT)
    assert [step for step in kept if said and f"are at {said}" in step] == kept
    assert len(kept) == (said is not None)


def test_schemes_without_a_verdict_are_told_by_their_cause():
    unjudged = [outcome("int8", "unjudged"), outcome("nf4", "unjudged", replaces_nothing=True)]
    assert steps_after(unjudged, OWN_TEXT) == (
        "Rerun with a text that the model predicts better than a guess (--calibration FILE).",
        "Choose another scheme than nf4: it replaces no weight of the decoder layers.",
    )
    (step,) = steps_after(unjudged, OWN_TEXT._replace(predictable=False))
    assert step == "Check the model's weights: no position has a finite prediction even without quantization."


def stored(**changed):
    """The example report, with a reference that knows the text; changes go to its calibration."""
    content = json.loads(STORED.read_text())
    content["reference"]["perplexity"]["value"] = 2.0
    content["calibration"] |= changed
    interval = {"int8": [0.001, 0.002], "nf4": [0.02, 0.03], "w8a8-tensor": [0.02, 0.03]}
    for name, facts in content["schemes"].items():
        facts["kl_divergence"] |= {"mean": sum(interval[name]) / 2, "interval": interval[name]}
        facts["perplexity_ratio"] |= {"value": 1.0, "interval": [0.999, 1.001]}
    return content


def of(content):
    return next_steps(Report.model_validate(content))


def test_a_report_is_read_scheme_by_scheme():
    content = stored()
    smaller = content["schemes"]["int8"]["compression"]
    assert of(content) == (
        f"Use int8: its effect on this text is negligible, and the model is {smaller:.2f} times smaller.",
        "Test nf4 on your own task before you deploy it: its effect is noticeable.",
        "Measure again on the kernel that you will deploy: w8a8-tensor is simulated or analysis only.",
    )


def test_the_bundled_text_is_a_text_of_the_bundled_sample():
    content = stored(source="sample")
    assert of(content)[0].startswith("Measure int8 on a text of your own")
    content["model"]["source"] = "sample"
    assert of(content)[0].startswith("Use int8: ")


def test_a_value_without_an_interval_is_not_settled():
    content = stored(sequences=16)
    content["analysis"]["sequences"] = 16
    content["schemes"] = {"int8": content["schemes"]["int8"]}
    content["schemes"]["int8"]["kl_divergence"]["interval"] = None
    assert of(content) == ("Rerun with --sequences 64: the level of int8 is not settled.",)
    content["analysis"]["sequences"] = 20
    assert of(content)[0].startswith("Rerun with a longer text (--calibration FILE) and --sequences 64:")
    content["schemes"]["int8"]["kl_divergence"]["interval"] = [0.001, 0.02]
    assert of(content)[0].endswith("the level of int8 is not settled.")


def test_predictions_that_are_all_destroyed_are_severe():
    content = stored()
    content["schemes"] = {"int8": content["schemes"]["int8"]}
    content["schemes"]["int8"] |= {"kl_divergence": None, "perplexity_ratio": None, "worst_sites": []}
    assert of(content) == ("Do not deploy int8 as it is: its effect is severe.",)
    content["reference"]["perplexity"] = None
    assert of(content)[0].startswith("Check the model's weights: ")
