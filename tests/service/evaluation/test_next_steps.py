"""What to do next follows from the verdicts, and says no more than they support."""

import json
from pathlib import Path

import pytest

from service.contracts.report import Report
from service.evaluation.next_steps import next_steps

STORED = Path(__file__).parents[2] / "workers/reporting/stored/schema_1_0/report.json"
RECOMMEND = "Measure which modules to keep in 16 bits: run headroom recommend with --scheme nf4."


def scheme(name, level, *, settled=True, deployable=True, share=1.0, mean_kl=0.05):
    """Return changes of the example's facts of a scheme: its name, and what the next step depends on."""
    size = 4 if name.startswith(("nf4", "fp4")) else 8
    return name, {
        "verdict": {"level": level, "reasons": [], "not_ruled_out": [] if settled else ["noticeable"]},
        "kl_divergence": {"mean": mean_kl, "interval": [0.9 * mean_kl, 1.1 * mean_kl]},
        "model_bytes": 1000 * size,
        "compression": 16 / size,
        "simulated": not deployable,
        "quantised_share": share,
    }


def steps(schemes, *, predictable=True, **calibration):
    """Return the next steps of the example report with these schemes and changes of its calibration."""
    content = content_of(schemes, **calibration)
    if not predictable:
        content["reference"]["perplexity"] = None
    return list(of(content))


def content_of(schemes, **calibration):
    """Return the example report with these schemes and changes of its calibration."""
    content = json.loads(STORED.read_text())
    content["schema_version"] = "1.2"
    content["analysis"] |= {"schemes": [name for name, _ in schemes], "sequences": 16}
    content["calibration"] |= {"sequences": 16} | calibration
    facts = content["schemes"]["int8"]
    content["schemes"] = {
        name: facts | changed | {"kl_divergence": facts["kl_divergence"] | changed["kl_divergence"]}
        for name, changed in schemes
    }
    return content


@pytest.mark.parametrize(
    ("schemes", "expected"),
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
          "Do not deploy nf4 as it is: its effect is severe.", RECOMMEND]),
        ([("int8", "noticeable"), ("nf4", "noticeable")],
         ["Test int8 and nf4 on your own task before you deploy them: their effects are noticeable."]),
    ],
)  # fmt: skip
def test_settled_verdicts_decide(schemes, expected):
    assert steps([scheme(*of) for of in schemes]) == expected


def test_the_bundled_text_alone_recommends_nothing_for_deployment():
    (step,) = steps([scheme("int8", "negligible")], source="sample")
    assert step.startswith("Measure int8 on a text of your own before you deploy it (--calibration FILE)")


@pytest.mark.parametrize("level", ["negligible", "noticeable", "severe"])
def test_a_level_that_is_not_settled_is_measured_again(level):
    schemes = [scheme("int8", level, settled=False)]
    assert steps(schemes) == ["Rerun with --sequences 64: the level of int8 is not settled."]
    (step,) = steps([*schemes, scheme("nf4", level, settled=False)], sequences=1)
    assert step == (
        "Rerun with a longer text (--calibration FILE) and --sequences 8: the levels of int8 and nf4 are not settled."
    )


@pytest.mark.parametrize("level", ["negligible", "noticeable"])
def test_what_cannot_be_deployed_is_never_recommended(level):
    (step,) = steps([scheme("mxfp4", level, deployable=False)])
    assert step == "Measure again on the kernel that you will deploy: mxfp4 is simulated or analysis only."


def test_a_severe_scheme_that_is_simulated_is_not_to_be_deployed():
    int4, mxfp4 = (scheme(name, "severe", deployable=False) for name in ("int4-group128", "mxfp4"))
    assert steps([int4]) == [
        "Do not deploy int4-group128 as it is: its effect is severe (measured as a simulation or for analysis only).",
    ]
    assert steps([int4, mxfp4]) == [
        "Do not deploy int4-group128 and mxfp4 as they are: their effects are severe (measured as a simulation or for "
        "analysis only).",
    ]


@pytest.mark.parametrize("deployable", [True, False])
@pytest.mark.parametrize("settled", [True, False])
@pytest.mark.parametrize("level", ["negligible", "noticeable", "severe", "unjudged"])
def test_every_outcome_has_a_next_step(level, settled, deployable):
    assert steps([scheme("nf4", level, settled=settled, deployable=deployable)])


def test_of_several_severe_schemes_the_mildest_is_to_be_improved():
    schemes = [scheme("fp4", "severe", mean_kl=0.9), scheme("nf4", "severe", mean_kl=0.3)]
    assert steps(schemes) == ["Do not deploy fp4 and nf4 as they are: their effects are severe.", RECOMMEND]


def test_the_trial_has_the_settings_that_were_measured_and_is_left_out_once_it_was_made():
    content = content_of([scheme("nf4-block-size-32", "severe")])
    content["analysis"]["schemes"] = ["nf4:block_size=32"]
    assert of(content)[-1].endswith("run headroom recommend with --scheme nf4:block_size=32.")
    content["recommendation"] = {"nf4-block-size-32": {"reason": "No mix is better."}}
    assert of(content) == ("Do not deploy nf4-block-size-32 as it is: its effect is severe.",)


def test_schemes_without_a_verdict_are_told_by_their_cause():
    unjudged = [scheme("int8", "unjudged"), scheme("nf4", "unjudged", share=0.0)]
    assert steps(unjudged) == [
        "Rerun with a text that the model predicts better than a guess (--calibration FILE).",
        "Choose another scheme than nf4: it replaces no weight of the decoder layers.",
    ]
    (step,) = steps(unjudged, predictable=False)
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


@pytest.mark.parametrize(
    ("target", "use_int8", "leave_nf4"),
    [({}, True, True), ({"max_bytes": 8000}, True, True), ({"max_bytes": 4000}, False, True),
     ({"max_kl": 0.3}, False, False)],
)  # fmt: skip
def test_the_steps_agree_with_what_was_decided(target, use_int8, leave_nf4):
    content = content_of([scheme("int8", "negligible"), scheme("nf4", "severe", mean_kl=0.2)])
    content["recommendation"] = {name: {"reason": "No mix is better."} for name in ("int8", "nf4")}
    content["analysis"] |= {"recommend": {"enabled": True} | target, "harm": {"estimate": True}}
    steps = of(content)
    assert any(step.startswith("Use int8") for step in steps) == use_int8
    assert any(step.startswith("Do not deploy nf4") for step in steps) == leave_nf4
