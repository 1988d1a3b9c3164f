"""One audit through every real part: command, API, database, queue, worker, measurement, drawing, download."""

import hashlib
import json
import signal
from pathlib import Path

import psutil
import pytest
from conftest import until
from pyarrow import parquet

from service.contracts.report import Report
from service.contracts.tables import TABLES

SMALL = ("--sequences", "2", "--sequence-length", "64")


@pytest.mark.parametrize("place", ["machine", "redis_machine"])
def test_the_sample_model_gets_its_report(request, place, tmp_path):
    user = request.getfixturevalue(place)
    out = tmp_path / "out"
    ran = user.run("analyze", "sample", "--out", str(out), *SMALL, "--json")
    assert ran.returncode == 0, ran.stderr
    told = json.loads(ran.stdout)
    assert told["status"] == "succeeded"
    assert (user.home / "logs" / "broker.log").exists() == (place == "machine")

    report = Report.model_validate_json(Path(told["report"]).read_bytes())
    assert report.job_id == told["job_id"]
    assert report.calibration.tokens == 128
    assert set(report.schemes) == {"int8", "nf4"}
    assert told["schemes"]["nf4"]["kl_divergence"]["mean"] == report.schemes["nf4"].kl_divergence.mean
    for name, table in TABLES.items():
        read = parquet.read_table(out / "tables" / f"{name}.parquet")
        assert read.column_names == [column.name for column in table.columns_for(report.schemes)]
        # The sample has no activation that is massive by the thresholds in use.
        assert (read.num_rows > 0) == (name != "massive_activations")
    for entry in (*report.figures, *report.tables):
        assert entry.files
        assert all((out / file).stat().st_size > 0 for file in entry.files)
    assert (out / "report.html").read_text().startswith("<!")
    assert "8/8 layers" in ran.stderr

    again = tmp_path / "again"
    assert user.run("reports", "download", told["job_id"], "--out", str(again)).returncode == 0
    assert sums(again) == sums(out)
    listed = json.loads(user.run("jobs", "list", "--json").stdout)["jobs"]
    assert [(job["id"], job["status"], job["attempts"]) for job in listed] == [(told["job_id"], "succeeded", 1)]


def sums(directory):
    """Return the SHA-256 of every file."""
    files = (path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_a_model_that_is_none_is_the_user_s_fault(machine, tmp_path):
    (tmp_path / "model").mkdir()
    ran = machine.run("analyze", str(tmp_path / "model"), "--out", str(tmp_path / "out"), "--json")
    assert ran.returncode == 2
    error = json.loads(ran.stdout)["error"]
    assert error["code"] == "bad-model"
    assert "config.json" in error["message"]
    assert "Traceback" not in ran.stderr
    assert not (tmp_path / "out").exists()


def command(process):
    """Return the command line of a process, nothing when it has just gone."""
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def test_ctrl_c_cancels_the_job_and_stops_the_stack(machine, tmp_path):
    with machine.start("analyze", "sample", "--out", str(tmp_path / "out"), "--sequences", "64") as process:
        for line in process.stderr:
            if line.startswith("sweep"):
                break
        family = psutil.Process(process.pid).children(recursive=True)
        assert any("workers.measurement" in command(child) for child in family)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=240)
    assert process.returncode == 1
    assert "canceling job" in said
    assert "was canceled and has no report" in said
    assert psutil.wait_procs(family, timeout=120)[1] == []
    assert not (tmp_path / "out").exists()
    [job] = json.loads(machine.run("jobs", "list", "--json").stdout)["jobs"]
    assert job["status"] == "cancelled"


def test_a_second_command_joins_the_stack_of_the_first_which_ends_with_the_last(machine, tmp_path):
    with machine.start("analyze", "sample", "--out", str(tmp_path / "a"), "--sequences", "64") as first:
        for line in first.stderr:
            if line.startswith("sweep"):
                break
        family = psutil.Process(first.pid).children(recursive=True)
        with machine.start("analyze", "sample", "--out", str(tmp_path / "b"), *SMALL) as second:
            until(lambda: len(json.loads(machine.run("jobs", "list", "--json").stdout)["jobs"]) == 2)
            first.send_signal(signal.SIGINT)
            first.communicate(timeout=240)
            assert first.returncode == 1
            _, said = second.communicate(timeout=240)
    assert second.returncode == 0, said
    assert "starting the stack" not in said
    assert (tmp_path / "b" / "report.json").exists()
    assert psutil.wait_procs(family, timeout=120)[1] == []
