"""A stored report is read whatever minor version wrote it, and refused where it is no report of this major version."""

import json
from pathlib import Path

import pytest

from service.contracts.variants import Variant
from service.errors import ReportUnreadable, SchemaVersionUnknown
from service.evaluation.stored_report import parse_report, read_report, row_reader

STORED = Path(__file__).parents[2] / "workers/reporting/stored/schema_1_0"


def changed(**keys):
    """Return the example's report.json with other keys."""
    return json.dumps(json.loads((STORED / "report.json").read_text()) | keys).encode()


def test_variants_of_schemes_that_are_not_known_are_left_out():
    analysis = json.loads((STORED / "report.json").read_text())["analysis"]
    labeled = {"name": "b", "scheme": "nf4"}
    analysis["schemes"] = ["nf4", {"scheme": "of-a-later-version"}, "int8:later=1", labeled, 5]
    report = parse_report(changed(analysis=analysis))
    assert report.analysis.schemes == (Variant(scheme="nf4"), Variant(scheme="nf4", name="b"))


def test_keys_of_a_later_version_are_kept():
    report = parse_report(changed(schema_version="1.9", later=5))
    assert (report.schema_version, report.model_extra["later"]) == ("1.9", 5)


@pytest.mark.parametrize("version", ["2.0", "0.9", "", None])
def test_another_major_version_is_refused(version):
    with pytest.raises(
        SchemaVersionUnknown, match=f"schema_version: {version!r} is not allowed; this program reads 1.x"
    ):
        parse_report(changed(schema_version=version))


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"schema_version": "1.0"}', b'{"a":' * 10**6])
def test_what_is_no_report_is_refused(content):
    with pytest.raises(ReportUnreadable, match=r"^report\.json: "):
        parse_report(content)


def test_a_wrong_value_is_named():
    with pytest.raises(ReportUnreadable, match=r"report\.json: timing\.wall_seconds: Input should be a valid number"):
        parse_report(changed(timing={"wall_seconds": "long"}))


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ReportUnreadable, match=r"report\.json: cannot be read: No such file or directory"):
        read_report(tmp_path / "report.json", None)


def test_tokens_that_the_report_does_not_list_give_no_intervals(tmp_path):
    tables = json.loads((STORED / "report.json").read_text())["tables"]
    (tmp_path / "report.json").write_bytes(changed(tables=[table for table in tables if table["name"] != "tokens"]))
    tokens = STORED / "tables/tokens.parquet"
    assert read_report(STORED / "report.json", tokens).schemes["nf4"].kl_divergence.interval is not None
    assert read_report(tmp_path / "report.json", tokens).schemes["nf4"].kl_divergence.interval is None


def test_rows_are_read_by_the_table_and_errors_name_it(tmp_path):
    report = parse_report(changed())
    read = row_reader("mine", report, STORED.joinpath)
    rows = read("sites", ("layer", "component"))
    assert list(rows) == ["layer", "component"]
    assert len(rows["layer"]) == len(rows["component"]) > 0
    assert read("later", ("layer",)) is None
    with pytest.raises(ReportUnreadable, match=r"mine: tables/sites\.parquet.* cannot be read"):
        row_reader("mine", report, tmp_path.joinpath)("sites", ("layer",))
    with pytest.raises(ReportUnreadable, match=r"mine: tables/sites\.parquet"):
        read("sites", ("later",))
