"""Every section opens with a sentence that follows from the report's own numbers."""

import json

import numpy as np
import pytest

from workers.reporting.loading import load
from workers.reporting.page import topic_of, topics
from workers.reporting.topics.reproduction import calibrated, identity, provenance


@pytest.fixture
def told(make_report):
    """A function that gives a report's sections by name, after changes to its report.json."""

    def sections(change=None, directory=None, **recipe):
        directory = directory or make_report(**recipe)
        if change:
            path = directory / "report.json"
            content = json.loads(path.read_text())
            change(content)
            path.write_text(json.dumps(content))
        return {topic.name: topic for topic in topics(load(directory))}

    return sections


def grid(topic, start):
    return next(one for one in topic.grids if one.caption.startswith(start))


def test_the_widest_layer_is_told(make_report, edit_table, told):
    directory = make_report(schemes=())
    edit_table(directory, "sites", lambda rows: next(
        row for row in rows if row["layer"] == 5 and row["component"] == "block"
    ).update(range_bits=13.31, abs_max=4500.0, max_to_median=9745.0))  # fmt: skip
    edit_table(directory, "sites", lambda rows: next(
        row for row in rows if row["layer"] == 2 and row["component"] == "mlp.down" and row["port"] == "input"
    ).update(range_bits=15.0, abs_max=777.0, nonfinite=3))  # fmt: skip
    found = told(directory=directory)["range"]
    assert found.lead == (
        "The residual stream's peak stands out most after layer 5: 4,500 is 9,745 times its median magnitude, so that "
        "13.3 bits of a symmetric integer grid lie above the typical value."
    )
    assert "layer 2 mlp.down has the widest range: 15.0 bits, with a peak of 777." in found.notes[0]
    assert found.notes[-1].endswith("most at layer 2 mlp.down.input: 3.")


def test_a_stream_without_a_median_is_told(make_report, edit_table, told):
    directory = make_report(schemes=())
    edit_table(directory, "sites", lambda rows: [row.update(range_bits=None, max_to_median=None) for row in rows])
    assert told(directory=directory)["range"].lead.startswith("No layer's output has a median magnitude above zero")


def flag(name, *dimensions):
    def change(content):
        content["outliers"][name]["dimensions"] = [
            {"dimension": d, "layers_fraction": 0.5, "abs_max": 100.0 + d} for d in dimensions
        ]

    return change


def test_outlier_dimensions_stand_in_one_table_by_definition(told):
    def change(content):
        flag("variance", 7, 201)(content)
        flag("massive_token", 7)(content)
        content["outliers"]["llm_int8"]["dimensions"][0] |= {"dimension": 201, "abs_max": 61.25}

    found = told(change, outliers=1)["outliers"]
    assert found.lead == "1 of 256 dimensions meets LLM.int8()'s definition: 201."
    assert found.notes == (
        "By definition: massive_token flags 1: 7; variance flags 2: 7, 201; none meet "
        "llm_int8_relative, massive_tensor and median_quantile.",
    )
    table = grid(found, "Dimensions by definition")
    assert table.head == ("Dimension", "llm_int8", "llm_int8_relative", "massive_tensor", "massive_token",
                          "median_quantile", "variance", "abs max")  # fmt: skip
    assert set(table.rows) == {
        ("201", "75%, 40.0%", "-", "-", "-", "-", "50%", "301"),
        ("7", "-", "-", "-", "50%", "-", "50%", "107"),
    }


def flag_most(content):
    """Let llm_int8 flag all but two dimensions, and its relative twin two."""
    one = content["outliers"]["llm_int8"]["dimensions"][0]
    every = [one | {"dimension": dimension} for dimension in range(254)]
    content["outliers"]["llm_int8"] |= {"dimensions": every, "discriminates": False}
    content["outliers"]["llm_int8_relative"]["dimensions"] = [one | {"dimension": d} for d in (3, 90)]


@pytest.mark.parametrize("older", [False, True])
def test_a_definition_that_flags_most_names_none(told, older):
    def change(content):
        flag_most(content)
        if older:
            del content["outliers"]["llm_int8"]["discriminates"], content["outliers"]["llm_int8_relative"]

    found = told(change)["outliers"]
    silent = "llm_int8 flags 254 of 256 dimensions, so it does not discriminate; "
    if older:
        assert found.lead == f"{silent}None of the 256 hidden dimensions is an outlier by another definition."
        assert not [one for one in found.grids if one.caption.startswith(("Dimensions", "llm_int8"))]
        return
    assert (
        found.lead == f"{silent}2 of 256 dimensions meet LLM.int8()'s definition relative to the token's size: 3, 90."
    )
    table = grid(found, "Dimensions by definition")
    assert table.head[1] == "llm_int8_relative"
    assert "llm_int8" not in table.head
    assert {row[0] for row in table.rows} == {"3", "90"}
    assert "6 times the token's root mean square or more" in grid(found, "llm_int8_relative").caption
    assert not [one for one in found.grids if one.caption.startswith("llm_int8:")]
    assert dict(found.terms)["llm_int8_relative"].startswith(
        "at attn.q.input or mlp.up.input, 6 times the token's root"
    )


def test_half_of_the_dimensions_are_still_named(told):
    def change(content):
        flag_most(content)
        content["outliers"]["llm_int8"] |= {"discriminates": True}
        content["outliers"]["llm_int8"]["dimensions"] = content["outliers"]["llm_int8"]["dimensions"][:128]

    assert told(change)["outliers"].lead.startswith("128 of 256 dimensions meet LLM.int8()'s definition: 0, 1, ")


def test_dimensions_by_chance_are_told_first(told):
    def change(content):
        content["labelled"] |= {"permutation_probability": 0.31, "permutations": 999}

    found = told(change)["labelled"]
    assert found.lead.startswith("No dimension separates beyond chance: the best, dimension 201 (AUROC ")
    assert found.lead.endswith("is matched by the best dimension of 31.0% of 999 random orders of the labels.")

    def beyond(content):
        content["labelled"] |= {"permutation_probability": 0.05, "permutations": 999}

    found = told(beyond, name="beyond")["labelled"]
    assert found.lead.startswith("Dimension 201 separates the ")
    assert found.notes[0].startswith("Permutation test under the reference: the best, dimension 201 (AUROC ")
    assert "Above 5%, no dimension separates beyond chance." in found.notes[0]


def test_a_stream_is_told_without_its_massive_dimensions(make_report, edit_table, told):
    directory = make_report()
    edit_table(directory, "errors", lambda rows: [
        row.update(sqnr_db_typical=12.5) for row in rows
        if (row["scheme"], row["layer"], row["component"], row["mode"]) == ("nf4", 7, "block", "accumulated")
    ])  # fmt: skip
    assert not any("Massive dimensions" in note for note in told(directory=directory)["errors"].notes)
    note = told(flag("massive_token", 3, 90), directory)["errors"].notes[-1]
    assert note.startswith("Massive dimensions (3, 90) are most of the stream's signal")
    assert note.endswith("; nf4 12.5 dB.")


def test_dimensions_of_other_definitions_alone_are_told(told):
    found = told(flag("median_quantile", 3, 4), outliers=0)["outliers"]
    assert found.lead == "No dimension meets LLM.int8()'s definition; 2 of 256 meet another: 3, 4."


def test_no_outlier_at_all_is_told(told):
    found = told(outliers=0)["outliers"]
    assert found.lead == "None of the 256 hidden dimensions is an outlier by any definition."
    assert not [one for one in found.grids if one.caption.startswith(("Dimensions", "llm_int8"))]


def unknown(content):
    content["warnings"].append({"code": "unknown-architecture", "message": "it is not in the table", "where": None})


def test_a_definition_that_was_not_looked_for_is_not_said_to_flag_nothing(told, make_report):
    directory = make_report(outliers=0)
    lead = "LLM.int8()'s definition was not looked for; "
    none = "none of the 256 hidden dimensions is an outlier by another."
    assert told(unknown, directory)["outliers"].lead == lead + none
    assert told(flag("variance", 7), directory)["outliers"].lead == lead + "1 of 256 meets another: 7."


def test_very_many_dimensions_are_cut_and_counted(told):
    found = told(flag("variance", *range(100)), outliers=0)["outliers"]
    table = grid(found, "Dimensions by definition")
    assert [row[0] for row in table.rows] == [str(dimension) for dimension in range(99, 39, -1)]  # the largest first
    assert table.caption.endswith("the first 60 of 100")


def test_heads_are_counted_and_the_highest_come_first(make_report, told, rows_of):
    directory = make_report()
    rows = rows_of(directory, "heads")
    measured = sum(row["measured_outlier"] for row in rows)
    found = told(directory=directory)["heads"]
    assert found.lead.startswith(f"{measured} of the {len(rows)} attention heads are outliers")
    highest = max(rows, key=lambda row: row["relative_peak"])
    assert grid(found, "The heads").rows[0][0] == f"layer {highest['layer']}, head {highest['head']}"
    assert "None of the" in told(outlier_heads=False, name="calm")["heads"].lead


def test_a_model_without_heads_is_told(told):
    assert told(heads=0)["heads"].lead == (
        "No attention heads were measured: the architecture has none that are known."
    )


def test_the_worst_module_and_its_streams_way_are_told(make_report, told, rows_of):
    directory = make_report()
    rows = rows_of(directory, "errors")
    worst = max((row for row in rows if row["mode"] == "isolated"), key=lambda row: row["relative_l2"])
    stream = {
        row["layer"]: row["sqnr_db"]
        for row in rows
        if row["scheme"] == worst["scheme"] and row["component"] == "block" and row["mode"] == "accumulated"
    }
    found = told(directory=directory)["errors"]
    assert found.lead == (
        f"The largest error of a single module is {100 * worst['relative_l2']:.1f}%, at layer {worst['layer']} "
        f"{worst['component']} under {worst['scheme']}; from the first layer to the last its stream goes from "
        f"{stream[0]:.1f} dB to {stream[7]:.1f} dB of signal over noise."
    )
    growth = grid(found, "Accumulated SQNR")
    assert [row[growth.head.index(worst["scheme"])] for row in growth.rows] == [f"{stream[n]:.1f}" for n in range(8)]
    cells = grid(found, f"Isolated relative_l2 / weight_error of {worst['scheme']}")
    assert f"{worst['relative_l2']:.3f}" in cells.rows[worst["layer"]][cells.head.index(worst["component"])]


def test_absent_components_are_never_zero(told):
    found = told(absent={"mlp.gate": None}, schemes=("nf4",))["errors"]
    cells = grid(found, "Isolated relative_l2")
    assert {row[cells.head.index("mlp.gate")] for row in cells.rows} == {"n/a"}


def test_a_single_layer_has_no_way_to_go(told):
    assert told(layers=1)["errors"].lead.count("layer") == 1


def test_an_exact_stream_is_told(told):
    growth = grid(told(exact_layers=2, schemes=("int8",))["errors"], "Accumulated SQNR")
    assert [row[1] for row in growth.rows[:2]] == ["exact", "exact"]


def test_the_nearest_and_the_farthest_scheme_are_told(told):
    found = told()["divergence"]
    assert found.lead.startswith("int8 stays nearest to the reference, with a mean KL of 0.000400")
    assert "; nf4 goes farthest, with a mean KL of 0.0324" in found.lead
    alone = told(schemes=("nf4",), name="one")["divergence"]
    assert alone.lead.startswith("nf4 has a mean KL of 0.0324")


def test_no_scheme_is_told(told):
    found = told(schemes=())
    assert found["errors"].lead == found["divergence"].lead == "No scheme was measured."


def test_the_best_dimension_and_its_weakest_scheme_are_told(make_report, told):
    directory = make_report()
    labelled = json.loads((directory / "report.json").read_text())["labelled"]
    best = labelled["dimensions"][0]
    weakest = min(best["schemes"], key=lambda name: abs(best["schemes"][name]["auroc"] - 0.5))
    lead = told(directory=directory)["labelled"].lead
    assert lead.startswith(f"Dimension {best['dimension']} separates the {labelled['true_records']} true from the ")
    assert lead.endswith(f"under {weakest}, where it is weakest.")


def test_a_signal_that_no_scheme_weakens_is_told(told):
    def change(content):
        best = content["labelled"]["dimensions"][0]
        for scheme in best["schemes"].values():
            scheme["auroc"] = best["reference"]["auroc"]

    assert told(change)["labelled"].lead.endswith("under the reference; no scheme weakens it.")


def test_damaged_heads_are_told(told):
    def change(content):
        content["heads"]["thresholds"] = {"damaged_sqnr_db": 17.5}
        content["heads"]["schemes"] = {
            "int8": {"damaged": 1, "damaged_outliers": 0},
            "nf4": {"damaged": 12, "damaged_outliers": 1},
        }

    assert told(change)["heads"].notes == (
        "int8 damages 1 head (SQNR below 17.5 dB), of them 0 outliers.",
        "nf4 damages 12 heads (SQNR below 17.5 dB), of them 1 outlier.",
    )


def test_without_counts_of_damaged_heads_nothing_is_said_of_them(told):
    assert told(lambda content: content["heads"].pop("schemes"))["heads"].notes == ()


def test_the_table_of_heads_has_the_ratio_under_every_scheme(told, make_report, rows_of):
    report = make_report()
    table = grid(told(directory=report)["heads"], "The heads with the highest peaks")
    assert table.head == ("Head", "Relative peak", "Outlier", "SQNR int8, dB", "SQNR nf4, dB", "abs max", "Crest, dB")
    highest = max(rows_of(report, "heads"), key=lambda row: row["relative_peak"])
    assert table.rows[0][0] == f"layer {highest['layer']}, head {highest['head']}"
    for shown, name in zip(table.rows[0][3:5], ("sqnr_db_int8", "sqnr_db_nf4"), strict=True):
        assert float(shown) == pytest.approx(highest[name], rel=0.01)


def test_labelled_prompts_have_their_fingerprint_beside_the_others(make_report):
    report = load(make_report()).report
    assert dict(identity(report))["Labeled prompts"] == report.labelled.fingerprint
    assert "Labeled prompts" not in dict(identity(report.model_copy(update={"labelled": None})))


@pytest.mark.parametrize(("truth", "word"), [(0, "false"), (160, "true")])
def test_labels_that_are_all_equal_are_told(told, truth, word):
    def change(content):
        content["labelled"] |= {"true_records": truth, "ranked_by": None}
        for found in content["labelled"]["dimensions"]:
            for one in (found["reference"], *found["schemes"].values()):
                one |= {"spearman_rho": None, "auroc": None}

    found = told(change)["labelled"]
    assert found.lead == f"All 160 records are {word}, so that no dimension can tell true from false."
    assert {cell for row in found.grids[0].rows for cell in row[1:]} == {"n/a (n/a)"}


def test_no_labelled_prompts_are_told(told):
    assert told(labelled=0)["labelled"].lead == "No labeled prompts were given."


def test_a_simulated_scheme_is_marked_wherever_it_is_named(told):
    def change(content):
        content["schemes"]["w8a8-tensor"] = content["schemes"].pop("nf4") | {"simulated": True}
        for found in content["labelled"]["dimensions"]:
            found["schemes"]["w8a8-tensor"] = found["schemes"].pop("nf4")
        content["tables"] = [table for table in content["tables"] if table["name"] not in ("heads", "labelled")]

    found = told(change, schemes=("nf4",))
    assert "w8a8-tensor (simulated)" in found["divergence"].lead
    assert "w8a8-tensor (simulated)" in grid(found["errors"], "The worst module").rows[0][0]
    assert "w8a8-tensor (simulated)" in found["labelled"].grids[0].head


@pytest.mark.parametrize(("layer", "expected"), [(None, False), (3, True)])
def test_times_after_a_break_say_so(make_report, layer, expected):
    report = load(make_report()).report
    report = report.model_copy(update={"timing": report.timing.model_copy(update={"resumed_at_layer": layer})})
    cost = dict(dict(provenance(report))["Cost"])["Wall time"]
    for sentence in (calibrated(report), cost):
        assert ("since it went on after a break, 3 layers done before" in sentence) is expected


def test_a_device_s_card_and_peak_memory_are_told(make_report):
    report = load(make_report()).report
    assert "Peak device memory" not in dict(dict(provenance(report))["Cost"])
    peak = report.timing.peak_memory_bytes.model_copy(update={"device": 12_345_000_000})
    report = report.model_copy(
        update={
            "environment": report.environment.model_copy(update={"device": "cuda:1, NVIDIA H100 80GB HBM3"}),
            "timing": report.timing.model_copy(update={"peak_memory_bytes": peak}),
        }
    )
    assert dict(dict(provenance(report))["Cost"])["Peak device memory"] == "12.3 GB"
    assert dict(dict(provenance(report))["Environment"])["Device"] == "cuda:1, NVIDIA H100 80GB HBM3"
    assert " went through the model on cuda:1, NVIDIA H100 80GB HBM3 in " in calibrated(report)


@pytest.mark.parametrize(
    ("figure", "topic"),
    [("component_heatmap_nf4_weight_error", "errors"), ("component_heatmap_crest_db", "range"),
     ("component_heatmap_abs_max_output", "range"), ("error_growth", "errors"), ("outlier_dimensions", "outliers"),
     ("divergence", "divergence"), ("head_severity_nf4", "heads"), ("of_a_later_version", "figures")],
)  # fmt: skip
def test_figures_stand_in_the_section_they_belong_to(figure, topic):
    assert topic_of(figure) == topic


def test_numbers_of_the_range_table_are_the_streams(make_report, told, rows_of):
    directory = make_report(schemes=(), layers=3)
    stream = [row for row in rows_of(directory, "sites") if row["component"] == "block"]
    table = told(directory=directory)["range"].grids[0]
    shown = np.array([[float(cell.replace(",", "")) for cell in row[1:8]] for row in table.rows])
    columns = ("abs_max", "p99_9_abs", "p99_abs", "median_abs", "max_to_median", "range_bits", "kurtosis")
    assert shown == pytest.approx(np.array([[row[name] for name in columns] for row in stream]), rel=6e-3)
