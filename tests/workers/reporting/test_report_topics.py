"""Every section opens with a sentence that follows from the report's own numbers."""

import json
import math

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from workers.reporting.html.page import topic_of, topics
from workers.reporting.loading import load
from workers.reporting.topics.dynamic_range import runs_of
from workers.reporting.topics.reproduction import calibrated, identity, provenance


@pytest.fixture
def sections_of(make_report):
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


def test_the_widest_layer_is_told(make_report, edit_table, sections_of):
    directory = make_report(schemes=())
    edit_table(directory, "sites", lambda rows: next(
        row for row in rows if row["layer"] == 5 and row["component"] == "block"
    ).update(range_bits=13.31, abs_max=4500.0, max_to_median=9745.0))  # fmt: skip
    edit_table(directory, "sites", lambda rows: next(
        row for row in rows if row["layer"] == 2 and row["component"] == "mlp.down" and row["port"] == "input"
    ).update(range_bits=15.0, abs_max=777.0, nonfinite=3))  # fmt: skip
    section = sections_of(directory=directory)["range"]
    assert section.lead == (
        "The residual stream has its widest range after layer 5: the peak of 4,500 is 9,745 times the median "
        "magnitude. An int8 grid scaled to this peak rounds the typical value to zero."
    )
    assert (
        "The projection input with the widest range is at layer 2 mlp.down: 15.0 bits, with a peak of 777."
        in section.notes[0]
    )
    assert section.notes[-1].endswith("most of them at layer 2 mlp.down.input (3). All other figures exclude them.")


def test_a_stream_without_a_median_is_told(make_report, edit_table, sections_of):
    directory = make_report(schemes=())
    edit_table(directory, "sites", lambda rows: [row.update(range_bits=None, max_to_median=None) for row in rows])
    assert sections_of(directory=directory)["range"].lead.startswith(
        "No layer's output has a median magnitude above zero"
    )


def flag(name, *dimensions):
    def change(content):
        content["outliers"][name]["dimensions"] = [
            {"dimension": d, "layers_fraction": 0.5, "abs_max": 100.0 + d} for d in dimensions
        ]

    return change


def test_outlier_dimensions_stand_in_one_table_by_definition(sections_of):
    def change(content):
        flag("variance", 7, 201)(content)
        flag("massive_token", 7)(content)
        content["outliers"]["llm_int8"]["dimensions"][0] |= {"dimension": 201, "abs_max": 61.25}

    section = sections_of(change, outliers=1)["outliers"]
    assert section.lead == "1 of 256 dimensions meets LLM.int8()'s definition: 201."
    assert section.notes == (
        "massive_token flags 1 (7); variance flags 2 (7, 201); llm_int8_relative, massive_tensor and median_quantile "
        "flag none.",
    )
    table = grid(section, "Share of the layers")
    assert table.head == ("Dimension", "llm_int8", "llm_int8_relative", "massive_tensor", "massive_token",
                          "median_quantile", "variance", "abs max where flagged")  # fmt: skip
    assert table.caption == (
        "Share of the layers that flag each dimension; for llm_int8, also of all positions. Last column: the "
        "largest of the flagging definitions."
    )
    assert set(table.rows) == {
        ("201", "75%, 40%", "-", "-", "-", "-", "50%", "301"),
        ("7", "-", "-", "-", "50%", "-", "50%", "107"),
    }


def flag_most(content):
    """Let llm_int8 flag all but two dimensions, and its relative twin two."""
    one = content["outliers"]["llm_int8"]["dimensions"][0]
    every = [one | {"dimension": dimension} for dimension in range(254)]
    content["outliers"]["llm_int8"] |= {"dimensions": every, "discriminates": False}
    content["outliers"]["llm_int8_relative"]["dimensions"] = [one | {"dimension": d} for d in (3, 90)]


@pytest.mark.parametrize("older", [False, True])
def test_a_definition_that_flags_most_names_none(sections_of, older):
    def change(content):
        flag_most(content)
        if older:
            del content["outliers"]["llm_int8"]["discriminates"], content["outliers"]["llm_int8_relative"]

    section = sections_of(change)["outliers"]
    silent = "llm_int8 flags 254 of 256 dimensions, so it does not discriminate. "
    if older:
        assert section.lead == f"{silent}None of the 256 hidden dimensions is an outlier by another definition."
        assert not [one for one in section.grids if one.caption.startswith(("Share", "Quartiles"))]
        return
    assert (
        section.lead == f"{silent}2 of 256 dimensions meet LLM.int8()'s definition relative to the token's size: 3, 90."
    )
    table = grid(section, "Share of the layers")
    assert table.head[1] == "llm_int8_relative"
    assert "llm_int8" not in table.head
    assert {row[0] for row in table.rows} == {"3", "90"}
    assert "; for llm_int8_relative, also of all positions." in table.caption
    quartiles = [one.caption for one in section.grids if one.caption.startswith("Quartiles")]
    assert quartiles == [
        "Quartiles of the values of magnitude 6 times the token's root mean square or more at the inputs of attn.q and "
        "mlp.up (llm_int8_relative)"
    ]
    of_positions = "in at least 25% of the layers; at least 6% of all positions have it in one layer or more"
    assert dict(section.terms)["llm_int8"] == f"inputs of attn.q and mlp.up: abs(x) of 6 or more {of_positions}"
    assert dict(section.terms)["llm_int8_relative"] == (
        f"inputs of attn.q and mlp.up: abs(x) of 6 times the token's root mean square or more {of_positions}"
    )


def test_half_of_the_dimensions_are_still_named(sections_of):
    def change(content):
        flag_most(content)
        content["outliers"]["llm_int8"] |= {"discriminates": True}
        content["outliers"]["llm_int8"]["dimensions"] = content["outliers"]["llm_int8"]["dimensions"][:128]

    assert sections_of(change)["outliers"].lead.startswith("128 of 256 dimensions meet LLM.int8()'s definition: 0, 1, ")


def test_dimensions_by_chance_are_told_first(sections_of):
    def change(content):
        content["labelled"] |= {"permutation_probability": 0.31, "permutations": 999}

    section = sections_of(change)["labelled"]
    assert section.lead.startswith(
        "No dimension separates better than chance: the probability that a dimension is as good as dimension 201 ("
    )
    assert section.lead.endswith(" by chance is 31.0% (999 permutations of the labels).")

    def beyond(content):
        content["labelled"] |= {"permutation_probability": 0.05, "permutations": 999}

    section = sections_of(beyond, name="beyond")["labelled"]
    assert section.lead.startswith("Dimension 201 best separates the ")
    assert section.notes[0].startswith("Permutation test without quantization: the probability that a dimension is as ")
    assert " by chance is 5.0% (999 permutations of the labels)" in section.notes[0]
    assert "Over 5%, the separation is not better than chance." in section.notes[0]


def test_a_stream_is_told_without_its_massive_dimensions(make_report, edit_table, sections_of):
    directory = make_report()
    edit_table(directory, "errors", lambda rows: [
        row.update(sqnr_db_typical=12.5) for row in rows
        if (row["scheme"], row["layer"], row["component"], row["mode"]) == ("nf4", 7, "block", "accumulated")
    ])  # fmt: skip
    without = sections_of(directory=directory)["errors"]
    assert not any("Massive dimensions" in note for note in without.notes)
    start = "Largest isolated error of each scheme"
    assert grid(without, start).head[-1] == "After last layer, dB"
    section = sections_of(flag("massive_token", 3, 90), directory)["errors"]
    assert section.notes[-1].endswith("The typical SQNR leaves them out (3, 90).")
    table = grid(section, start)
    assert table.caption.endswith("; typical: without the massive dimensions")
    assert table.head[-1] == "After last layer, typical, dB"
    assert {row[0]: row[-1] for row in table.rows}["nf4"] == "12.5"
    assert {len(row) for row in table.rows} == {len(table.head)} == {7}


def test_dimensions_of_other_definitions_alone_are_told(sections_of):
    section = sections_of(flag("median_quantile", 3, 4), outliers=0)["outliers"]
    assert (
        section.lead == "No dimension meets LLM.int8()'s definition. 2 of 256 dimensions meet another definition: 3, 4."
    )


def test_no_outlier_at_all_is_told(sections_of):
    section = sections_of(outliers=0)["outliers"]
    assert section.lead == "None of the 256 hidden dimensions is an outlier by any definition."
    assert not [one for one in section.grids if one.caption.startswith(("Share", "Quartiles"))]


def unknown(content):
    content["warnings"].append({"code": "unknown-architecture", "message": "it is not in the table", "where": None})


def test_a_definition_that_was_not_looked_for_is_not_said_to_flag_nothing(sections_of, make_report):
    directory = make_report(outliers=0)
    lead = "LLM.int8()'s definition was not applied, because Headroom does not know this architecture. "
    none = "None of the 256 hidden dimensions is an outlier by another definition."
    assert sections_of(unknown, directory)["outliers"].lead == lead + none
    assert (
        sections_of(flag("variance", 7), directory)["outliers"].lead
        == lead + "1 of 256 dimensions meets another definition: 7."
    )


def test_very_many_dimensions_are_cut_and_counted(sections_of):
    section = sections_of(flag("variance", *range(100)), outliers=0)["outliers"]
    table = grid(section, "Share of the layers")
    assert [row[0] for row in table.rows] == [str(dimension) for dimension in range(99, 87, -1)]  # the largest first
    assert table.caption.endswith(" The first 12 of 100.")


def test_heads_are_counted_and_the_highest_come_first(make_report, sections_of, rows_of):
    directory = make_report()
    rows = rows_of(directory, "heads")
    measured = sum(row["measured_outlier"] for row in rows)
    section = sections_of(directory=directory)["heads"]
    assert section.lead.startswith(f"{measured} of the {len(rows)} attention heads are outliers")
    highest = max(rows, key=lambda row: row["relative_peak"])
    assert grid(section, "The heads").rows[0][0] == f"layer {highest['layer']}, head {highest['head']}"
    assert "None of the" in sections_of(outlier_heads=False, name="calm")["heads"].lead


def test_a_model_without_heads_is_told(sections_of):
    assert sections_of(heads=0)["heads"].lead == (
        "No attention heads were measured: Headroom does not know where this architecture has its heads."
    )


def test_the_worst_module_and_its_streams_way_are_told(make_report, sections_of, rows_of):
    directory = make_report()
    rows = rows_of(directory, "errors")
    worst = max((row for row in rows if row["mode"] == "isolated"), key=lambda row: row["relative_l2"])
    stream = {
        row["layer"]: row["sqnr_db"]
        for row in rows
        if row["scheme"] == worst["scheme"] and row["component"] == "block" and row["mode"] == "accumulated"
    }
    section = sections_of(directory=directory)["errors"]
    assert section.lead == (
        f"Layer {worst['layer']} {worst['component']} under {worst['scheme']} has the largest error of a single "
        f"module: {100 * worst['relative_l2']:.1f}%. The SQNR of its residual stream is {stream[0]:.1f} dB after the "
        f"first layer and {stream[7]:.1f} dB after the last."
    )
    cells = grid(section, f"Largest isolated errors: {worst['scheme']}")
    assert cells.rows[0][1] == f"{100 * worst['relative_l2']:.1f}%"
    assert len(cells.rows) == 5


def test_a_single_layer_has_no_way_to_go(sections_of):
    assert sections_of(layers=1)["errors"].lead.lower().count("layer") == 1


def test_an_exact_stream_is_told(sections_of):
    section = sections_of(exact_layers=2, schemes=("int8",))["errors"]
    assert " is exact after the first layer and " in section.lead
    assert grid(section, "Largest isolated error of each").rows[0][4] == "exact"


def test_the_nearest_and_the_farthest_scheme_are_told(sections_of):
    section = sections_of()["divergence"]
    assert section.lead.startswith("int8 is closest to the reference: mean KL 0.000400")
    assert ". nf4 is farthest: mean KL 0.0324" in section.lead
    alone = sections_of(schemes=("nf4",), name="one")["divergence"]
    assert alone.lead.startswith("nf4: mean KL 0.0324")


def test_no_scheme_is_told(sections_of):
    section = sections_of(schemes=())
    assert section["errors"].lead == section["divergence"].lead == "No scheme was measured."


def test_the_best_dimension_and_its_weakest_scheme_are_told(make_report, sections_of):
    directory = make_report()
    labelled = json.loads((directory / "report.json").read_text())["labelled"]
    best = labelled["dimensions"][0]
    weakest = min(best["schemes"], key=lambda name: abs(best["schemes"][name]["auroc"] - 0.5))
    lead = sections_of(directory=directory)["labelled"].lead
    assert lead.startswith(
        f"Dimension {best['dimension']} best separates the {labelled['true_records']} true from the "
    )
    assert f"It is weakest under {weakest}: AUROC " in lead


def test_a_signal_that_no_scheme_weakens_is_told(sections_of):
    def change(content):
        best = content["labelled"]["dimensions"][0]
        for scheme in best["schemes"].values():
            scheme["auroc"] = best["reference"]["auroc"]

    assert sections_of(change)["labelled"].lead.endswith("without quantization. No scheme weakens it.")


@pytest.mark.parametrize(
    ("damaged", "damaged_outliers", "outliers", "note"),
    [
        (242, 20, 23, "242 of 270 heads (SQNR below 17.5 dB): 20 of 23 outlier heads and 222 of 247 others."
                      " The limit does not separate them."),
        (265, 23, 23, "265 of 270 heads (SQNR below 17.5 dB): 23 of 23 outlier heads and 242 of 247 others."),
        (270, 23, 23, "270 of 270 heads (SQNR below 17.5 dB): 23 of 23 outlier heads and 247 of 247 others."
                      " The limit does not separate them."),
        (0, 0, 23, "0 of 270 heads (SQNR below 17.5 dB)."),
        (12, 0, 0, "12 of 270 heads (SQNR below 17.5 dB)."),
        (1, 1, 1, "1 of 270 heads (SQNR below 17.5 dB): 1 of 1 outlier head and 0 of 269 others."),
        (12, 12, 270, "12 of 270 heads (SQNR below 17.5 dB)."),
    ],
)  # fmt: skip
def test_damaged_heads_are_counted_among_outlier_heads_and_others(
    sections_of, damaged, damaged_outliers, outliers, note
):
    def change(content):
        content["heads"] |= {
            "heads": 270,
            "measured_outliers": outliers,
            "thresholds": {"damaged_sqnr_db": 17.5},
            "schemes": {"nf4": {"damaged": damaged, "damaged_outliers": damaged_outliers}},
        }

    assert sections_of(change)["heads"].notes == (f"nf4 damages {note}",)


def test_without_counts_of_damaged_heads_nothing_is_said_of_them(sections_of):
    assert sections_of(lambda content: content["heads"].pop("schemes"))["heads"].notes == ()


def test_the_table_of_heads_has_the_ratio_under_every_scheme(sections_of, make_report, rows_of):
    report = make_report()
    table = grid(sections_of(directory=report)["heads"], "The heads with the highest peaks")
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
def test_labels_that_are_all_equal_are_told(sections_of, truth, word):
    def change(content):
        content["labelled"] |= {"true_records": truth, "ranked_by": None}
        for section in content["labelled"]["dimensions"]:
            for one in (section["reference"], *section["schemes"].values()):
                one |= {"spearman_rho": None, "auroc": None}

    section = sections_of(change)["labelled"]
    assert section.lead == (
        f"All 160 records are {word}, so no dimension can separate true from false. Give records of both kinds."
    )
    assert {cell for row in section.grids[0].rows for cell in row[1:]} == {"n/a (n/a)"}


def test_no_labelled_prompts_are_told(sections_of):
    assert sections_of(labelled=0)["labelled"].lead == "No labeled prompts were given."


def test_a_simulated_scheme_is_marked_wherever_it_is_named(sections_of):
    def change(content):
        content["schemes"]["w8a8-tensor"] = content["schemes"].pop("nf4") | {"simulated": True}
        for section in content["labelled"]["dimensions"]:
            section["schemes"]["w8a8-tensor"] = section["schemes"].pop("nf4")
        content["tables"] = [table for table in content["tables"] if table["name"] not in ("heads", "labelled")]

    section = sections_of(change, schemes=("nf4",))
    assert "w8a8-tensor (simulated)" in section["divergence"].lead
    assert "w8a8-tensor (simulated)" in grid(section["errors"], "Largest isolated error of each").rows[0][0]
    assert "w8a8-tensor (simulated)" in section["labelled"].grids[0].head


@pytest.mark.parametrize(("layer", "expected"), [(None, False), (3, True)])
def test_times_after_a_break_say_so(make_report, layer, expected):
    report = load(make_report()).report
    report = report.model_copy(update={"timing": report.timing.model_copy(update={"resumed_at_layer": layer})})
    cost = dict(dict(provenance(report))["Cost"])["Wall time"]
    for sentence in (calibrated(report), cost):
        assert ("not counting 3 layers before an interruption" in sentence) is expected


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
    assert " on cuda:1, NVIDIA H100 80GB HBM3." in calibrated(report)


@pytest.mark.parametrize(
    ("figure", "topic"),
    [("component_heatmap_nf4_weight_error", "errors"), ("component_heatmap_crest_db", "range"),
     ("component_heatmap_abs_max_output", "range"), ("error_growth", "errors"), ("outlier_dimensions", "outliers"),
     ("divergence", "divergence"), ("head_severity_nf4", "heads"), ("of_a_later_version", "figures")],
)  # fmt: skip
def test_figures_stand_in_the_section_they_belong_to(figure, topic):
    assert topic_of(figure) == topic


def peaks(*values):
    """A change of the stream's peaks, layer by layer."""

    def change(rows):
        stream = [row for row in rows if row["component"] == "block"]
        for row, value in zip(stream, values, strict=True):
            row["abs_max"] = value

    return change


def test_a_peak_that_is_carried_through_the_layers_is_one_row(make_report, edit_table, sections_of, rows_of):
    directory = make_report(schemes=(), layers=6)
    edit_table(directory, "sites", peaks(40.0, 900.0, 940.0, 27776.0, 27776.0, 27520.0))
    stream = [row for row in rows_of(directory, "sites") if row["component"] == "block"]
    table = sections_of(directory=directory)["range"].grids[0]
    assert [row[:2] for row in table.rows] == [("0", "40.0"), ("1-2", "900 to 940"), ("3-5", "27,520 to 27,776")]
    for row, layers in zip(table.rows, (range(1), range(1, 3), range(3, 6)), strict=True):
        for cell, name in zip(row[2:5], ("median_abs", "range_bits", "kurtosis"), strict=True):
            values = [stream[layer][name] for layer in layers]
            shown = [float(part.replace(",", "")) for part in cell.split(" to ")]
            assert (shown[0], shown[-1]) == pytest.approx((min(values), max(values)), rel=6e-3)


def test_many_different_peaks_make_few_rows_and_the_caption_states_the_factor(make_report, edit_table, sections_of):
    directory = make_report(schemes=(), layers=30)
    edit_table(directory, "sites", peaks(*(2.0**layer for layer in range(30))))
    table = sections_of(directory=directory)["range"].grids[0]
    assert [row[0] for row in table.rows] == [f"{first}-{first + 2}" for first in range(0, 30, 3)]
    assert table.caption.endswith("within a factor of 4")


def test_layers_without_a_finite_peak_are_rows_of_their_own():
    assert runs_of([math.nan, math.nan, 3.0, 3.1, math.inf, 0.0, 0.0, 3.0])[1] == [[0, 1], [2, 3], [4, 5, 6], [7]]


@pytest.mark.parametrize(
    ("bits", "told_of"), [(3.7, "still represents"), (5.0, "int4 grid scaled"), (8.1, "int8 grid")]
)
def test_the_range_is_told_as_what_an_integer_grid_does_to_the_typical_value(
    make_report, edit_table, sections_of, bits, told_of
):
    directory = make_report(schemes=(), layers=1)
    edit_table(directory, "sites", lambda rows: [row.update(range_bits=bits) for row in rows])
    peak, median = 2.0**bits, 1.0
    rounded = {b: round(median / (peak / (2 ** (b - 1) - 1))) for b in (4, 8)}
    lead = sections_of(directory=directory)["range"].lead
    assert told_of in lead
    assert ("represents the typical" in lead) is (rounded[4] > 0)
    assert ("An int8 grid scaled to this peak rounds the typical value to zero" in lead) is (rounded[8] == 0)


def test_an_activation_that_is_carried_through_the_layers_is_one_row(make_report, sections_of, rows_of):
    directory = make_report(layers=6)

    def carry(rows):
        one = rows[0]
        carried = [
            one | {"layer": layer, "sequence": sequence, "value": 1000.0 + layer, "ratio_tensor": 50.0 * layer}
            for layer in (2, 3, 4)
            for sequence in (0, 1)
        ]
        rows[:] = [*carried, one | {"dimension": 9, "layer": 5, "value": -3000.0, "ratio_tensor": None}]

    path = directory / "tables" / "massive_activations.parquet"
    schema, rows = pq.read_schema(path), rows_of(directory, "massive_activations")
    carry(rows)
    pq.write_table(pa.Table.from_pylist(rows, schema), path)
    table = grid(sections_of(directory=directory)["outliers"], "Massive activations")
    assert table.rows == (
        ("9", "0", "5", "1", "“<s>”", "-3,000", "n/a"),
        ("1", "0", "2-4", "2", "“<s>”", "1,002 to 1,004", "200"),
    )
