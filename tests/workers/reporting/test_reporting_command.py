"""`python -m workers.reporting DIR`: whole results or none, the same bytes every time, and one line when it fails."""

import errno
import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from service.contracts.report import Report
from workers.reporting.__main__ import main
from workers.reporting.render import render


def contents(directory):
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def edit_report(directory, **changes):
    path = directory / "report.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def fails(directory, capsys, status=2):
    """Run the command, see it fail cleanly with an exit status, and return its one line."""
    before = contents(directory)
    assert main([str(directory)]) == status
    assert contents(directory) == before
    assert not list(directory.glob(".reporting-*"))
    error = capsys.readouterr().err
    assert error.endswith("\n")
    assert error.count("\n") == 1
    return error


def test_the_command_as_a_process(make_report, drawn_report):
    directory = make_report()
    run = subprocess.run(
        [sys.executable, "-m", "workers.reporting", str(directory)], capture_output=True, text=True, check=False
    )
    assert (run.returncode, run.stderr) == (0, "")
    report = Report.model_validate_json((directory / "report.json").read_bytes())
    assert [figure.name for figure in report.figures] == [
        "divergence",
        "error_growth",
        "component_heatmap_range_bits",
        "component_heatmap_crest_db",
        "component_heatmap_abs_max",
        "component_heatmap_int8_weight_error",
        "component_heatmap_int8_relative_l2",
        "component_heatmap_nf4_weight_error",
        "component_heatmap_nf4_relative_l2",
        "outlier_dimensions",
        "fp16_columns_int8",
        "activation_profile",
        "channel_surface",
        "range_by_layer",
        "head_severity_int8",
        "head_severity_nf4",
        "head_agreement_int8",
        "head_agreement_nf4",
        "labelled_activations",
    ]
    assert {file for figure in report.figures for file in figure.files} == {
        f"figures/{path.name}" for path in (directory / "figures").iterdir()
    }
    assert contents(directory) == contents(drawn_report)


@pytest.mark.usefixtures("one_figure")
def test_nothing_else_in_the_report_changes(make_report):
    directory = make_report(schemes=())
    edit_report(directory, something_newer=[{"layer": 1, "value": 123.5}])
    whole = Report.model_validate_json((directory / "report.json").read_bytes(), extra="allow").model_dump(mode="json")
    whole["analysis"]["variance"]["newer"] = 7
    (directory / "report.json").write_text(json.dumps(whole))
    before = json.loads((directory / "report.json").read_text())
    render(directory)
    after = json.loads((directory / "report.json").read_text())
    assert after.pop("figures")
    before.pop("figures")
    assert after == before


def test_text_in_svg_can_be_searched(drawn_report):
    found = "".join(ElementTree.parse(drawn_report / "figures" / "activation_profile.svg").getroot().itertext())
    rows = pq.read_table(drawn_report / "tables" / "profile.parquet").to_pylist()
    largest = max(rows, key=lambda row: abs(row["value"]))
    for part in ("Neuron Activation Distribution", "Neuron Indexes", f"index {largest['dimension']}", "-20"):
        assert part in found
    heatmap = ElementTree.parse(drawn_report / "figures" / "component_heatmap_nf4_weight_error.svg")
    found = "".join(heatmap.getroot().itertext())
    assert "mlp. gate" in found


def test_png_is_144_dots_an_inch(drawn_report):
    for path in drawn_report.glob("figures/*.png"):
        with Image.open(path) as image:
            assert image.info["dpi"] == pytest.approx((144, 144), abs=0.1)
            points = float(ElementTree.parse(path.with_suffix(".svg")).getroot().attrib["width"].removesuffix("pt"))
            assert image.width == pytest.approx(2 * points, abs=1)


def test_rendering_again_gives_the_same_bytes(make_report):
    directory = make_report()
    render(directory)
    first = contents(directory)
    render(directory)
    assert contents(directory) == first


def test_figures_of_an_earlier_rendering_do_not_stay(make_report):
    directory = make_report()
    render(directory)
    schemes = json.loads((directory / "report.json").read_text())["schemes"]
    edit_report(directory, schemes={"nf4": schemes["nf4"]})
    render(directory)
    assert not list(directory.glob("figures/*int8*"))


def test_importing_loads_no_torch():
    code = (
        "import sys, workers.reporting.__main__\n"
        "print([name for name in ('torch', 'transformers', 'bitsandbytes', 'numba') if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


@pytest.mark.parametrize("table", ["errors", "sites", "profile", "outlier_dimensions", "tokens"])
def test_a_missing_table_is_named(make_report, capsys, table):
    directory = make_report()
    (directory / "tables" / f"{table}.parquet").unlink()
    assert f"tables/{table}.parquet: the file is missing" in fails(directory, capsys)


@pytest.mark.parametrize("keep", [0, 3, 0.5, 0.99])
def test_a_truncated_table_is_named(make_report, capsys, keep):
    directory = make_report()
    path = directory / "tables" / "errors.parquet"
    content = path.read_bytes()
    path.write_bytes(content[: keep if isinstance(keep, int) else int(len(content) * keep)])
    assert "tables/errors.parquet: not a whole Parquet file" in fails(directory, capsys)


def test_damage_inside_a_table_is_named(make_report, capsys):
    directory = make_report()
    path = directory / "tables" / "errors.parquet"
    content = path.read_bytes()
    path.write_bytes(content[:4] + bytes(200) + content[204:])
    assert "tables/errors.parquet" in fails(directory, capsys)


@pytest.mark.parametrize(("table", "column"), [("errors", "relative_l2"), ("tokens", "same_top"), ("profile", "value")])
def test_a_missing_column_is_named(make_report, capsys, table, column):
    directory = make_report()
    path = directory / "tables" / f"{table}.parquet"
    pq.write_table(pq.read_table(path).drop_columns([column]), path)
    assert f"tables/{table}.parquet: column '{column}' is missing" in fails(directory, capsys)


def test_a_column_of_another_type_is_named(make_report, capsys):
    directory = make_report()
    path = directory / "tables" / "profile.parquet"
    table = pq.read_table(path)
    words = pa.array(["many"] * table.num_rows)
    pq.write_table(table.set_column(1, "value", words), path)
    assert "tables/profile.parquet: column 'value' is string, expected float32" in fails(directory, capsys)


@pytest.mark.usefixtures("one_figure")
def test_another_major_version_is_refused_and_a_minor_one_read(make_report, capsys):
    directory = make_report(schemes=())
    edit_report(directory, schema_version="1.7")
    assert main([str(directory)]) == 0
    edit_report(directory, schema_version="2.0")
    assert "schema_version: '2.0' is not allowed; this program reads 1.x" in fails(directory, capsys)


@pytest.mark.parametrize("content", ["", "[]", "{", '{"schema_version": "1.0"}', '{"model": 1}'])
def test_what_is_no_report_is_refused(tmp_path, capsys, content):
    (tmp_path / "report.json").write_text(content)
    assert "report.json" in fails(tmp_path, capsys)


def test_a_report_that_is_nested_too_deeply_is_refused(tmp_path, capsys):
    (tmp_path / "report.json").write_text('{"a":' * 10**6 + "1" + "}" * 10**6)
    assert "report.json: not a report: RecursionError" in fails(tmp_path, capsys)


def test_a_directory_without_report_is_refused(tmp_path, capsys):
    assert "report.json: cannot be read" in fails(tmp_path, capsys)


@pytest.mark.parametrize("name", ["../../evil", "javascript:alert(1)", "a/b", "A b"])
def test_names_that_would_leave_the_report_are_refused(make_report, capsys, name):
    directory = make_report()
    content = json.loads((directory / "report.json").read_text())
    edit_report(directory, schemes={name: content["schemes"]["nf4"]})
    assert "schemes" in fails(directory, capsys)
    content["tables"][0]["files"] = [name]
    edit_report(directory, schemes={}, tables=content["tables"])
    assert "tables" in fails(directory, capsys)


@pytest.mark.parametrize("rendered", [False, True])
@pytest.mark.parametrize("victim", ["report.html", "summary.md", "report.json"])
@pytest.mark.usefixtures("one_figure")
def test_a_full_disk_leaves_everything_as_it_was(make_report, capsys, monkeypatch, victim, rendered):
    directory = make_report(schemes=())
    if rendered:
        render(directory)
    write = Path.write_text

    def full(path, *arguments, **options):
        if path.name == victim:
            write(path, "half")
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return write(path, *arguments, **options)

    monkeypatch.setattr(Path, "write_text", full)
    assert "No space left on device" in fails(directory, capsys, status=1)


@pytest.mark.parametrize("rendered", [False, True])
@pytest.mark.parametrize("victim", ["figures", "report.html", "summary.md", "report.json"])
@pytest.mark.usefixtures("one_figure")
def test_a_move_that_fails_is_undone(make_report, capsys, monkeypatch, victim, rendered):
    directory = make_report(schemes=())
    if rendered:
        render(directory)
    replace = Path.replace

    def refuse(path, target):
        if target == directory / victim and path.parent.name.startswith(".reporting-"):
            raise PermissionError(errno.EACCES, "Permission denied", str(target))
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", refuse)
    assert "Permission denied" in fails(directory, capsys, status=1)
