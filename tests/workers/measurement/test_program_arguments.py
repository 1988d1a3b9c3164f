"""What the measurement's command line hands to the measurement, and what it refuses."""

import io
import json
from pathlib import Path
from typing import Any

import pytest

from service.contracts.request import MeasurementRequest
from workers.measurement import __main__ as program

CONTENT = {"model": {"path": "/m"}, "calibration": {"path": "c.txt"}}


@pytest.fixture
def request_file(tmp_path: Path) -> Path:
    file = tmp_path / "request.json"
    file.write_text(json.dumps(CONTENT | {"memory_bytes": "1GiB"}))
    return file


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What goes to standard output."""
    lines = io.StringIO()
    monkeypatch.setattr(program, "_private_stdout", lambda: lines)
    return lines


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[tuple[MeasurementRequest, Path]]:
    """What the measurement, which is left out, was asked for."""
    asked: list[tuple[MeasurementRequest, Path]] = []
    monkeypatch.setattr(program, "measure", lambda request, out, _: asked.append((request, out)))
    return asked


def last(told: io.StringIO) -> Any:
    return json.loads(told.getvalue().splitlines()[-1])


@pytest.mark.usefixtures("told")
def test_memory_takes_the_place_of_the_request_s(request_file: Path, measured: list[Any]) -> None:
    assert program.main([str(request_file), "out"]) == 0
    assert program.main([str(request_file), "out", "--memory", "512MiB"]) == 0
    assert program.main(["--memory=0", str(request_file), "out"]) == 0
    assert [request.memory_bytes for request, _ in measured] == [2**30, 2**29, 0]
    assert {out for _, out in measured} == {Path("out")}


@pytest.mark.parametrize("size", ["lots", "-1", "", "nan", "4 apples"])
def test_a_memory_that_is_none_is_refused(
    size: str, request_file: Path, told: io.StringIO, measured: list[Any]
) -> None:
    assert program.main([str(request_file), "out", f"--memory={size}"]) == 2
    assert last(told)["code"] == "bad-request"
    assert last(told)["message"].startswith(f"--memory: {size!r} is not allowed; allowed: 0 or more bytes")
    assert measured == []


def test_a_request_s_memory_is_refused_by_name(request_file: Path, told: io.StringIO, measured: list[Any]) -> None:
    request_file.write_text(json.dumps(CONTENT | {"memory_bytes": "a little", "checkpoint_seconds": -1}))
    assert program.main([str(request_file), "out"]) == 2
    assert "memory_bytes: 'a little' is not allowed; allowed: 0 or more bytes" in last(told)["message"]
    assert "checkpoint_seconds: -1 is not allowed" in last(told)["message"]
    assert measured == []


@pytest.mark.parametrize("arguments", [[], ["r"], ["r", "o", "x"], ["r", "o", "--mem", "1"], ["r", "o", "--memory"]])
def test_other_arguments_are_refused(arguments: list[str], told: io.StringIO, measured: list[Any]) -> None:
    assert program.main(arguments) == 2
    assert last(told)["message"].startswith(
        "usage: python -m workers.measurement REQUEST.json OUT|--plan [--memory SIZE]; "
    )
    assert measured == []


def test_the_help_is_the_module_s(told: io.StringIO, capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main(["--help"]) == 0
    assert "--memory" in capsys.readouterr().out
    assert told.getvalue() == ""
