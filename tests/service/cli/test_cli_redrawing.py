"""`headroom reports render`: the page anew from a report on this machine, by a program that the service only names."""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from service.cli.reports import drawing
from service.cli.reports.drawing import DrawingInterrupted

ROOT = Path(__file__).resolve().parents[3]
STORED = ROOT / "tests" / "workers" / "reporting" / "stored" / "schema_1_0"
COMMAND = "import sys; from service.cli.main import main; sys.argv[0] = 'headroom'; main()"


@pytest.fixture
def stored(tmp_path):
    return Path(shutil.copytree(STORED, tmp_path / "stored"))


def contents(directory):
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def labelled_caption(directory):
    figures = json.loads((directory / "report.json").read_text())["figures"]
    return next(figure["caption"] for figure in figures if figure["name"] == "labelled_activations")


def test_a_stored_report_is_drawn_anew(headroom, stored):
    ran = headroom("reports", "render", str(stored))
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.splitlines()[-1] == f"Report: {stored / 'report.html'}"
    assert (stored / "figures" / "error_growth.svg").is_file()
    assert "height: number of prompts" in labelled_caption(stored)
    ran = headroom("reports", "render", str(stored), "--density", "--json")
    report = json.loads((stored / "report.json").read_text())
    assert "height: density" in labelled_caption(stored)
    assert ran.document == {
        "directory": str(stored),
        "page": str(stored / "report.html"),
        "figures": [figure["name"] for figure in report["figures"]],
        "left_out": report["figures_left_out"],
    }


def test_what_cannot_be_drawn_is_named_and_stays_as_it_was(headroom, stored, tmp_path):
    ran = headroom("reports", "render", str(tmp_path / "none"))
    assert ran.code == 2
    assert "has no report.json; allowed: the directory of a report" in ran.err
    (stored / "tables" / "errors.parquet").write_bytes(b"PAR1")
    before = contents(stored)
    ran = headroom("reports", "render", str(stored), "--json")
    assert ran.code == 2
    assert ran.document["error"]["code"] == "not-drawable"
    assert ran.document["error"]["message"].startswith("tables/errors.parquet: not a whole Parquet file")
    assert contents(stored) == before


def test_without_the_drawing_libraries_the_message_says_what_to_install(headroom, stored, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "matplotlib" else find(name))
    ran = headroom("reports", "render", str(stored))
    assert ran.code == 2
    assert "without matplotlib: pip install 'headroom[draw]'" in ran.err


def test_neither_the_command_nor_the_program_imports_torch(stored, tmp_path):
    """A `torch` that refuses to be imported stands in for one that is not installed, here and in every child."""
    for name in ("torch", "transformers", "bitsandbytes", "numba"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('not to be imported here')")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    command = [sys.executable, "-c", COMMAND, "reports", "render", str(stored)]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_drawing_leaves_the_report_as_it_was(stored, number):
    before = contents(stored)
    command = [sys.executable, "-c", COMMAND, "reports", "render", str(stored)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while not list(stored.glob(".reporting-*/figures/*.svg")):
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.01)
        drawing = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "Traceback" not in said
    assert not psutil.wait_procs(drawing, timeout=10)[1]
    assert contents(stored) == before
    assert not list(stored.glob(".reporting-*"))


def test_an_interrupted_drawing_leaves_no_file_open(monkeypatch):
    started = []

    def spawn(*arguments, **options):
        started.append(subprocess.Popen(*arguments, start_new_session=True, stderr=options["stderr"]))
        return started[0]

    def interrupted(_process):
        raise KeyboardInterrupt

    monkeypatch.setattr(drawing, "spawn", spawn)
    monkeypatch.setattr(subprocess.Popen, "communicate", interrupted)
    with pytest.raises(DrawingInterrupted, match="stopped; nothing was changed"):
        drawing.run("http.server", ["--bind", "127.0.0.1", "0"])
    (process,) = started
    assert process.returncode == -signal.SIGTERM
    assert process.stderr.closed
