"""The summary says what an engineer can act on."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from service.cli.reports import summary
from service.cli.reports.summary_text import show
from service.evaluation.restating import restated
from service.evaluation.stored_report import parse_report

STORED = Path(__file__).parents[2] / "workers/reporting/stored/schema_1_0/report.json"
LABELLED = json.loads(STORED.read_text())["labelled"]


def read(report):
    return restated(parse_report(json.dumps(report).encode()), lambda: None)


def summarize(report):
    return summary.summarize(read(report))


@pytest.fixture
def printed(report):
    """What is printed for the report, as it stands when this is called."""

    def lines():
        console = Console(file=io.StringIO(), width=120)
        show(console, read(report))
        return [line.rstrip() for line in console.file.getvalue().splitlines()]

    return lines


def test_the_figures_of_every_scheme_are_shown(printed):
    lines = printed()
    assert lines[0] == "sample: LlamaForCausalLM, 8 layers, 5.1 M parameters"
    assert lines[1] == "Perplexity without quantization: 20.00 (95% interval 19.20 to 20.80) over 100 tokens"
    [row] = [line.split() for line in lines if line.startswith("int8 ")]
    assert " ".join(row) == "int8 20.010 1.0004 0.00123 0.0456 98.76% 6.2 MB 1.64x"
    assert "Largest relative error of a component's output: int8 layer 3 mlp.up (1.14%)" in lines
    assert "Not quantized: lm_head" in lines


@pytest.mark.parametrize("mark", [{"simulated": True}, {"settings": {"weight_format": "e2m1"}}])
def test_a_simulated_scheme_is_marked_and_the_mark_explained(report, printed, mark):
    note = "(sim.): simulated, rounded numbers stand in for a low-precision kernel"
    assert not any("(sim.)" in line for line in printed())
    report["schemes"]["int4-group128-sym"] = report["schemes"]["int8"] | mark
    lines = printed()
    rows = [line for line in lines if line.endswith("1.64x")]
    assert [row.split("20.010")[0].strip() for row in rows] == ["int8", "int4-group128-sym (sim.)"]
    assert lines[lines.index(rows[-1]) + 1] == note
    assert [facts["simulated"] for facts in summarize(report)["schemes"].values()] == [False, True]


def test_a_scheme_for_analysis_only_is_marked_and_the_mark_explained(report, printed):
    note = "(a.o.): analysis only, no BitsAndBytesConfig loads a model with these settings"
    assert not any("a.o." in line for line in printed())
    report["schemes"]["nf4-block-size-128"] = report["schemes"]["int8"] | {"analysis_only": True}
    lines = printed()
    rows = [line for line in lines if line.endswith("1.64x")]
    assert [row.split("20.010")[0].strip() for row in rows] == ["int8", "nf4-block-size-128 (a.o.)"]
    assert lines[lines.index(rows[-1]) + 1] == note
    assert [facts["analysis_only"] for facts in summarize(report)["schemes"].values()] == [False, True]


def test_outlier_dimensions_and_warnings_are_shown(printed):
    lines = printed()
    assert "  llm_int8: 1 (46)" in lines
    assert "Warning nonfinite: NaN in [bold]weights[/bold] (layer 3)" in lines


def test_the_advice_of_a_warning_is_shown_and_in_the_document(report, printed):
    advised = {"code": "sample-text", "message": "It is bundled.", "where": None, "advice": "Give your own."}
    report["warnings"] = [advised]
    assert "Warning sample-text: It is bundled. Give your own." in printed()
    assert summarize(report)["warnings"] == [advised]


def test_dimensions_are_listed_by_the_share_of_the_layers_and_then_by_size(report, printed):
    dimensions = [
        {"dimension": 5, "layers_fraction": 0.5, "abs_max": 9.0},
        {"dimension": 7, "layers_fraction": 0.9, "abs_max": 8.0},
        {"dimension": 2, "layers_fraction": 0.9, "abs_max": 70.0},
        {"dimension": 1, "layers_fraction": 0.0, "abs_max": 0.0},
    ]
    report["outliers"]["massive_tensor"]["dimensions"] = dimensions
    assert "  massive_tensor: 4 (2, 7, 5, 1)" in printed()


def test_the_order_is_verdicts_warnings_figures_outliers_next(printed):
    lines = printed()
    begins = ("sample: ", "Perplexity ", "The effect of int8 ", "Warning nonfinite", "scheme ", "Outlier ", "Next: ")
    places = [next(number for number, line in enumerate(lines) if line.startswith(begin)) for begin in begins]
    assert places == sorted(places)
    assert places[-1] == len(lines) - 1


def test_what_to_do_next_is_shown_and_in_the_document(report, printed):
    step = "Use int8: its effect on this text is negligible, and the model is 1.64 times smaller."
    assert printed()[-1] == f"Next: {step}"
    assert summarize(report)["next_steps"] == [step]
    report["schemes"]["int8"]["verdict"] = {"level": "severe", "reasons": [], "not_ruled_out": []}
    assert printed()[-2:] == [
        "Next: Do not deploy int8 as it is: its effect is severe.",
        "      Measure which modules to keep in 16 bits: run headroom recommend with --scheme int8.",
    ]
    report["schemes"]["int8"]["verdict"] = {"level": "negligible", "reasons": [], "not_ruled_out": ["noticeable"]}
    report["calibration"] |= {"sequences": 12, "source": "sample"}
    report["analysis"]["sequences"] = 16
    rerun = "Rerun with a longer text (--calibration FILE) and --sequences 48"
    assert printed()[-1] == f"Next: {rerun}: the level of int8 is not settled."


def test_of_many_warnings_of_one_code_the_first_are_shown_and_the_rest_counted(report, printed):
    report["warnings"] = [{"code": "nonfinite", "message": f"{n} NaN", "where": None} for n in range(1, 13)]
    lines = [line for line in printed() if line.startswith("Warning")]
    assert lines == [
        "Warning nonfinite: 1 NaN",
        "Warning nonfinite: 2 NaN",
        "Warning nonfinite: 10 more in report.json.",
    ]
    assert len(summarize(report)["warnings"]) == 12


def test_figures_that_could_not_be_had_are_said_to_be_none(report, printed):
    for key in ("perplexity", "perplexity_ratio", "kl_divergence", "same_top_token"):
        report["schemes"]["int8"][key] = None
    report["reference"]["perplexity"] = None
    report["schemes"]["int8"]["worst_sites"] = []
    lines = printed()
    assert "Perplexity without quantization: none" in lines
    [row] = [line.split() for line in lines if line.startswith("int8")]
    assert row == ["int8", "none", "none", "none", "none", "none", "6.2", "MB", "1.64x"]


def test_a_report_without_outliers_or_schemes_says_so(report, printed):
    report["schemes"] = {}
    report["outliers"]["llm_int8"]["dimensions"] = []
    assert "No outlier dimensions found" in printed()


JUDGED = [
    "  Mean KL divergence is 0.001230 nats (95% interval 0.001210 to 0.001250): negligible (under 0.01).",
    "  Perplexity ratio is 1.00040 (95% interval 1.00020 to 1.00060): negligible (under 1.01).",
]


@pytest.mark.parametrize(
    ("share", "effect", "reasons"),
    [(None, "negligible", JUDGED), (0.97, "negligible", JUDGED),
     (0.2, "negligible", [*JUDGED, "  Only 20.0% of the decoder layers' weights are quantized."]),
     (0.0, "unjudged", ["  The scheme quantizes none of the decoder layers' weights, so these figures say nothing "
                        "about it."])],
)  # fmt: skip
def test_how_little_a_scheme_replaces_is_told(report, printed, share, effect, reasons):
    report["schemes"]["int8"]["quantised_share"] = share
    lines = printed()
    place = lines.index(f"The effect of int8 is {effect}.")
    assert lines[place + 1 : place + 1 + len(reasons)] == reasons
    assert lines[place + 1 + len(reasons)].startswith("Warning")
    assert summarize(report)["schemes"]["int8"]["quantised_share"] == share


def test_the_reports_own_verdict_is_told(report, printed):
    own = {"level": "severe", "reasons": ["It was judged so."], "not_ruled_out": ["noticeable"], "later": 1}
    report["schemes"]["int8"]["verdict"] = own
    place = (lines := printed()).index("The effect of int8 is severe.")
    assert lines[place + 1 : place + 3] == [
        "  It was judged so.",
        "  The 95% intervals also allow noticeable.",
    ]
    own.pop("later")
    assert summarize(report)["schemes"]["int8"]["verdict"] == own


def test_a_naive_error_of_an_older_service_is_not_shown(report, printed):
    for figure in ("kl_divergence", "perplexity_ratio"):
        report["schemes"]["int8"][figure].pop("interval")
    report["reference"]["perplexity"].pop("interval")
    lines = printed()
    assert lines[1] == "Perplexity without quantization: 20.00 over 100 tokens"
    assert "  Mean KL divergence is 0.001230 nats: negligible (under 0.01)." in lines
    assert "  These values have no 95% interval, so other levels are possible." in lines


def test_long_lists_are_cut(report, printed):
    report["schemes"]["int8"]["not_quantised"] = [f"m{n}" for n in range(100)]
    report["outliers"]["llm_int8"]["dimensions"] *= 30
    report["schemes"]["nf4"] = report["schemes"]["int8"] | {"not_quantised": ["lm_head"]}
    lines = printed()
    assert "Not quantized under int8: m0, m1, m2, m3, m4, m5 and 94 more" in lines
    assert "Not quantized under nf4: lm_head" in lines
    assert "  llm_int8: 30 (46, 46, 46, 46, 46, 46 and 24 more)" in lines


def test_the_verdict_and_its_limits_are_told(report, printed):
    assert "The effect of int8 is negligible." in printed()
    report["analysis"]["verdict"] = {"kl_noticeable": 0.001, "kl_severe": 0.00124, "of_a_later_version": 1}
    lines = printed()
    assert "The effect of int8 is noticeable." in lines
    assert "  The 95% intervals also allow severe." in lines
    assert any(line.endswith(": noticeable (0.001 to 0.00124).") for line in lines)
    assert summarize(report)["verdict_limits"]["kl_severe"] == 0.00124
    report["schemes"]["int8"]["kl_divergence"] = None
    assert "The effect of int8 is severe." in printed()


def test_a_definition_that_flags_most_is_said_to_and_lists_none(report, printed):
    size = report["model"]["hidden_size"]
    one = report["outliers"]["llm_int8"]["dimensions"][0]
    report["outliers"]["llm_int8"]["dimensions"] = [one | {"dimension": j} for j in range(size - 2)]
    report["outliers"]["llm_int8_relative"] = {"thresholds": {}, "dimensions": [one | {"dimension": 3}]}
    lines = printed()
    assert f"  llm_int8: {size - 2} of {size}, so it does not discriminate" in lines
    assert "  llm_int8_relative: 1 (3)" in lines
    summary = summarize(report)
    assert summary["not_discriminating"] == {"llm_int8": size - 2}
    assert set(summary["outlier_dimensions"]) >= {"llm_int8_relative"}
    assert "llm_int8" not in summary["outlier_dimensions"]


@pytest.mark.parametrize(("probability", "begins"), [
    (0.2, "no dimension separates beyond chance; best is dimension 9"), (0.001, "best separated by dimension 9"),
    (None, "best separated by dimension 9"),
])  # fmt: skip
def test_labelled_prompts_are_told_with_the_probability(report, printed, probability, begins):
    figures = {"auroc": 0.75, "spearman_rho": None}
    dimension = {"dimension": 9, "reference": figures, "schemes": {}}
    report["labelled"] = LABELLED | {"dimensions": [dimension], "permutation_probability": probability}
    (line,) = [line for line in printed() if line.startswith("Labeled prompts")]
    assert line.startswith(f"Labeled prompts: {begins} (AUROC 0.750)")
    assert ("permutation probability" in line) is (probability is not None)
    report["labelled"] = None
    assert not any(line.startswith("Labeled prompts") for line in printed())


def test_how_far_harms_can_be_trusted_is_shown(report, printed):
    check = {"of": "modules", "swaps": 36, "spearman": 0.94, "measured_over_estimated": 1.1}
    facts = {
        "whole": None, "predicted_whole": None, "scale_factor": None, "additivity": 0.93,
        "additivity_of": "estimates", "noise_floor": [0.001, None, 0.002], "check": check, "modules": [],
        "dimensions": None,
    }  # fmt: skip
    trusted = "Spearman 0.940 of estimates and 36 measured modules, additivity 0.930, noise floor up to 0.00200 nats"
    report["schema_version"] = "1.2"
    report["harm"] = {"nf4": facts, "int8": facts | {"check": None, "additivity": None, "noise_floor": None}}
    assert [line for line in printed() if line.startswith("Harm of ")] == [f"Harm of nf4: {trusted}"]
