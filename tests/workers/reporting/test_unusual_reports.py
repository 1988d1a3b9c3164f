"""Small, flat and damaged reports: the page says what there is not, no picture is empty, errors name their place."""

import json
import re
from html import unescape
from xml.etree import ElementTree

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from service.contracts.tables import TABLES
from service.errors import ReportUnreadable
from workers.reporting.loading import load
from workers.reporting.render import render

LABELLED = (201, 14, 35, 67)


def drawn(directory):
    """Render a report and return the words of its page, with no picture empty."""
    report = render(directory)
    assert report.figures
    for figure in report.figures:
        svg, png = (directory / file for file in figure.files)
        words = [text for text in ElementTree.parse(svg).getroot().itertext() if text.strip()]
        assert len(words) > 3, f"{figure.name} has no words"
        with Image.open(png) as image:
            pixels = np.asarray(image.convert("L"))
        assert (pixels < 200).mean() > 0.002, f"{figure.name} is empty"
    page = (directory / "report.html").read_text(encoding="utf-8")
    return unescape(re.sub(r"<(style|svg).*?</\1>|<[^>]+>", "", page, flags=re.DOTALL))


def change(directory, edit):
    path = directory / "report.json"
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def test_one_layer_one_head_and_nothing_that_stands_out(make_report):
    directory = make_report(layers=1, heads=1, outliers=0, outlier_heads=False, schemes=("nf4",), labelled=0)
    words = drawn(directory)
    for told in (
        "LlamaForCausalLM, 1 layer ",
        "None of the 256 hidden dimensions is an outlier by any definition.",
        "The only attention head is not an outlier",
        "The residual stream has its widest range after layer 0",
        "No labeled prompts were given.",
    ):
        assert told in words


def test_labels_that_are_all_equal(make_report, edit_table):
    directory = make_report(layers=2, schemes=("nf4",))
    edit_table(directory, "labelled", lambda rows: [row.update(label=True) for row in rows])

    def all_true(content):
        content["labelled"] |= {"true_records": content["labelled"]["records"], "ranked_by": None}
        for found in content["labelled"]["dimensions"]:
            for one in (found["reference"], *found["schemes"].values()):
                one |= {"spearman_rho": None, "auroc": None}

    change(directory, all_true)
    assert "All 160 records are true, so no dimension can separate true from false." in drawn(directory)


def test_a_table_without_rows(make_report):
    directory = make_report(layers=2, schemes=("nf4",))
    for name in ("errors", "heads", "sites", "tokens"):
        path = directory / "tables" / f"{name}.parquet"
        pq.write_table(pq.read_table(path).slice(0, 0), path)
    words = drawn(directory)
    assert "No layer's output has a median magnitude above zero" in words


@pytest.fixture
def small(make_report):
    """A report that nothing has been drawn of."""
    return make_report(layers=2, schemes=("nf4",), labelled=12)


@pytest.mark.parametrize("name", [*TABLES, "labelled"])
def test_every_missing_column_is_named(small, name):
    content = json.loads((small / "report.json").read_text())
    (small / "report.json").write_text(json.dumps(content | {"schema_version": "1.99"}))  # newer than every column
    path = small / "tables" / f"{name}.parquet"
    whole = pq.read_table(path)
    for column in whole.column_names:
        pq.write_table(whole.drop_columns([column]), path)
        with pytest.raises(ReportUnreadable, match=rf"tables/{name}.parquet: column '{column}' is missing; found "):
            load(small)


@pytest.mark.parametrize("name", [*TABLES, "labelled"])
def test_every_truncated_table_is_named(small, name):
    path = small / "tables" / f"{name}.parquet"
    content = path.read_bytes()
    for kept in (0, 4, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:kept])
        with pytest.raises(ReportUnreadable, match=rf"tables/{name}.parquet: not a whole Parquet file"):
            load(small)


@pytest.mark.parametrize(("name", "column"), [("sites", "component"), ("errors", "scheme"), ("errors", "mode")])
def test_a_row_about_nothing_is_named(small, edit_table, name, column):
    edit_table(small, name, lambda rows: [row.update({column: None}) for row in rows[:3]])
    tables = load(small).tables
    with pytest.raises(ReportUnreadable, match=rf"tables/{name}.parquet: column '{column}' is null in 3 rows"):
        tables[name]


@pytest.mark.parametrize("version", ["0.9", "2.0", "10.1", "", None])
def test_another_major_version_is_named(small, version):
    change(small, lambda content: content.update(schema_version=version))
    with pytest.raises(ReportUnreadable, match=rf"schema_version: {version!r} is not allowed; this program reads 1.x"):
        load(small)


@pytest.mark.parametrize(
    ("limits", "told"),
    [({"kl_noticeable": 0.5}, r"analysis.verdict: Value error, kl_severe \(0.1\) must be larger than kl_noticeable"),
     ({"ratio_severe": "much"}, "analysis.verdict.ratio_severe: Input should be a valid number")],
)  # fmt: skip
def test_limits_of_the_verdict_that_make_no_sense_are_named(small, limits, told):
    change(small, lambda content: content["analysis"].update(verdict=limits))
    with pytest.raises(ReportUnreadable, match=f"report.json: {told}"):
        load(small)
