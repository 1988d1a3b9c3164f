"""Drawing anew from stored tables: reports of earlier versions, several processes, and what is left when one dies."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

from service.contracts.report import Report
from service.contracts.tables import Column
from service.errors import ReportUnreadable
from workers.reporting import loading
from workers.reporting.__main__ import main
from workers.reporting.figures import gallery
from workers.reporting.loading import load
from workers.reporting.render import render

STORED = Path(__file__).parent / "stored" / "schema_1_0"
"""A report of a five-layer Llama with two planted outlier dimensions, as schema version 1.0 stored it."""
ONLY_WHERE_ASKED_FOR = {"frontier", "harm_map", "harm_shares", "estimate_check"}
"""Figures of measurements that a job asks for: without those, nothing is left out."""


def contents(directory):
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@pytest.fixture
def stored(tmp_path):
    return Path(shutil.copytree(STORED, tmp_path / "stored"))


def test_a_report_of_an_earlier_version_is_drawn_as_far_as_its_tables_go(stored):
    assert json.loads((stored / "report.json").read_text())["schema_version"] == "1.0"
    before = contents(stored / "tables")
    report = render(stored)
    drawn = {figure.name for figure in report.figures}
    assert drawn >= {"error_growth", "component_heatmap_w8a8-tensor_relative_l2", "activation_profile"}
    modules = {draw.__module__.rpartition(".")[2] for draw in gallery.FIGURES} - ONLY_WHERE_ASKED_FOR
    absent = {figure.name: figure.reason for figure in report.figures_left_out}
    assert {name for name in modules if not any(figure.startswith(name) for figure in drawn)} == set(absent)
    assert all("of schema version 1.0, has no table" in reason for reason in absent.values())
    assert contents(stored / "tables") == before
    assert json.loads((stored / "report.json").read_text())["schema_version"] == "1.0"
    page = (stored / "report.html").read_text()
    assert "example/tiny-llama" in page
    assert all(f"<code>{name}</code>" in page for name in absent)


def test_a_figure_without_its_table_is_left_out_and_the_reason_stated(stored):
    content = json.loads((stored / "report.json").read_text())
    content["tables"] = [table for table in content["tables"] if table["name"] != "errors"]
    (stored / "report.json").write_text(json.dumps(content))
    report = render(stored)
    left_out = {figure.name: figure.reason for figure in report.figures_left_out}
    assert left_out["error_growth"] == "the report, of schema version 1.0, has no table 'errors'"
    assert "activation_profile" in {figure.name for figure in report.figures}
    assert Report.model_validate_json((stored / "report.json").read_bytes()).figures_left_out == report.figures_left_out
    page = (stored / "report.html").read_text()
    assert "<code>error_growth</code>: the report, of schema version 1.0, has no table &#39;errors&#39;" in page


def test_a_column_newer_than_the_report_reads_as_null(stored, monkeypatch):
    newer = [
        Column("loss", "float64", "", "1.4"),
        Column("word", "string", "", "1.4"),
        Column("flag", "bool", "", "1.4"),
    ]
    table = loading.TABLES["profile"]
    monkeypatch.setattr(
        loading, "TABLES", {**loading.TABLES, "profile": table._replace(columns=(*table.columns, *newer))}
    )
    columns = load(stored).tables["profile"]
    assert len(columns["value"]) == 64
    assert all(value != value for name in ("loss", "flag") for value in columns[name].tolist())
    assert columns["word"].tolist() == [None] * 64
    content = json.loads((stored / "report.json").read_text())
    of_profile = {"tables": [table for table in content["tables"] if table["name"] == "profile"]}
    (stored / "report.json").write_text(json.dumps(content | of_profile | {"schema_version": "1.4"}))
    with pytest.raises(ReportUnreadable, match=r"tables/profile\.parquet: column 'loss' is missing"):
        load(stored)


def test_strings_come_out_as_they_are_stored(stored):
    columns = load(stored).tables["sites"]
    rows = pq.read_table(stored / "tables" / "sites.parquet")
    assert columns["component"].tolist() == rows["component"].to_pylist()
    assert columns["port"].tolist() == rows["port"].to_pylist()


def test_several_processes_draw_the_same(stored, tmp_path):
    alone = Path(shutil.copytree(stored, tmp_path / "alone"))
    assert main([str(stored), "--processes", "2"]) == 0
    assert main([str(alone), "--processes", "1"]) == 0
    assert contents(stored) == contents(alone)


def test_damage_found_in_another_process_is_named_all_the_same(stored, capsys):
    path = stored / "tables" / "errors.parquet"
    rows = pq.read_table(path)
    layers = rows.column("layer").to_numpy().copy()
    layers[3] = 77
    pq.write_table(rows.set_column(rows.column_names.index("layer"), "layer", [layers]), path)
    before = contents(stored)
    assert main([str(stored), "--processes", "2"]) == 2
    assert "tables/errors.parquet: column 'layer' holds 77" in capsys.readouterr().err
    assert contents(stored) == before


@pytest.mark.parametrize("count", ["0", "-1", "many"])
def test_a_senseless_number_of_processes_is_refused(stored, capsys, count):
    with pytest.raises(SystemExit) as ended:
        main([str(stored), "--processes", count])
    assert ended.value.code == 2
    assert f"'{count}' is not allowed; 1 or more is" in capsys.readouterr().err


@pytest.fixture
def drawing(make_report):
    """A rendering in several processes, long enough to be interrupted: the process and its drawing children."""
    directory = make_report(layers=80)
    command = [sys.executable, "-m", "workers.reporting", str(directory), "--processes", "2"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        while len(drawers := helpers(process.pid)) < 2:
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.02)
        yield directory, process, drawers
        process.kill()


def helpers(pid):
    return [child for child in psutil.Process(pid).children() if "spawn_main" in " ".join(child.cmdline())]


def test_no_drawing_process_outlives_the_one_that_started_it(drawing):
    _, process, drawers = drawing
    process.send_signal(signal.SIGKILL)
    process.wait()
    gone, alive = psutil.wait_procs(drawers, timeout=60)
    assert (len(gone), alive) == (2, [])


def test_a_drawing_process_that_is_killed_fails_the_whole(drawing):
    directory, process, drawers = drawing
    before = contents(directory / "tables")
    drawers[0].kill()
    assert process.wait(timeout=60) == 1
    said = process.stderr.read()
    assert "a process that draws figures was ended" in said
    assert said.count("\n") == 1
    assert not (directory / "figures").exists()
    assert not list(directory.glob(".reporting-*"))
    assert contents(directory / "tables") == before
