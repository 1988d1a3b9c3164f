"""The map of columns in 16 bits is the table; the page, the summary and the cards say the same."""

import json
import re
from functools import partial

import numpy as np
import pytest

from service.evaluation.verdict import fp16_column_sentence, verdict_of
from workers.reporting.drawing.component_map import COMPONENTS
from workers.reporting.figures import fp16_columns
from workers.reporting.html.page import topic_of
from workers.reporting.loading import TableAbsent, load
from workers.reporting.summary import summary
from workers.reporting.topics.outcome import outcomes


@pytest.fixture
def draw(draw_with):
    return partial(draw_with, fp16_columns)


def mesh_of(drawing):
    return next(a for a in drawing.figure.axes[0].collections if a.get_gid() == "cells")


def test_cells_are_the_tables_rows(make_report, draw, rows_of):
    report = make_report(absent={"mlp.gate": (2, 3)}, extra=("mixer",))
    drawings = draw(report)
    assert set(drawings) == {"fp16_columns_int8"}
    drawing = drawings["fp16_columns_int8"]
    cells = mesh_of(drawing).get_array()
    for layer in range(8):
        for column, component in enumerate(COMPONENTS):
            rows = [row for row in rows_of(report, "fp16_columns")
                    if (row["layer"], row["component"]) == (layer, component)]  # fmt: skip
            assert bool(np.ma.getmaskarray(cells)[layer, column]) is (not rows)
            assert not rows or cells[layer, column] == rows[0]["prefill"]
    assert drawing.hover["cells"][0].startswith("layer 0, attn.q: 0.")
    assert mesh_of(drawing).norm.vmin == 0
    assert mesh_of(drawing).norm.vmax == max(row["prefill"] for row in rows_of(report, "fp16_columns"))
    assert "Hatched, n/a" in drawing.caption
    assert "Other components, with the largest share over layers: mixer (" in drawing.caption
    assert "threshold 6.0" in drawing.caption
    assert drawing.table == "fp16_columns"
    assert topic_of(drawing.name) == "outliers"


def test_a_report_without_int8_has_none_and_an_older_one_says_so(make_report, draw):
    assert draw(make_report(schemes=("nf4",))) == {}
    report = make_report("older")
    content = json.loads((report / "report.json").read_text())
    content["tables"] = [table for table in content["tables"] if table["name"] != "fp16_columns"]
    (report / "report.json").write_text(json.dumps(content))
    with pytest.raises(TableAbsent, match="has no table 'fp16_columns'"):
        draw(report)


def test_small_shares_are_pale(make_report, draw, edit_table):
    report = make_report()
    edit_table(report, "fp16_columns", lambda rows: [row.update(prefill=row["prefill"] / 100) for row in rows])
    norm = mesh_of(draw(report)["fp16_columns_int8"]).norm
    assert (norm.vmin, norm.vmax) == (0, 0.2)


def test_a_map_without_any_share_is_hatched(make_report, draw, edit_table):
    report = make_report()
    edit_table(report, "fp16_columns", lambda rows: rows.clear())
    drawing = draw(report)["fp16_columns_int8"]
    assert np.ma.getmaskarray(mesh_of(drawing).get_array()).all()
    assert "no share for any" in drawing.alt


def test_the_verdict_of_int8_states_the_columns(make_report):
    report = load(make_report()).report
    facts = report.schemes["int8"]
    most = facts.fp16_columns.largest
    shares = [facts.fp16_columns.prefill, facts.fp16_columns.decode, most.prefill]
    sentence = verdict_of(report, facts).reasons[-1]
    assert [float(text) / 100 for text in re.findall(r"([\d.]+)%", sentence)] == pytest.approx(shares, rel=0.05)
    assert sentence.startswith("On average, ")
    assert sentence.endswith(f"%, at layer {most.layer} {most.component}.")
    assert not any("16 bits" in reason for reason in verdict_of(report, report.schemes["nf4"]).reasons)
    none = facts.fp16_columns.model_copy(update={"largest": most.model_copy(update={"prefill": 0.0})})
    assert fp16_column_sentence(none) == "No input column is computed in 16 bits."


def test_page_and_summary_give_the_columns_among_the_reasons(make_report):
    source = load(make_report())
    sentence = fp16_column_sentence(source.report.schemes["int8"].fp16_columns)
    assert [sentence in one.verdict.reasons for one in outcomes(source.report)] == [True, False]
    assert sentence in summary(source, ()).replace("\\", "")
