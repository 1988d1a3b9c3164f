"""A measurement that was killed goes on, and nothing in its tables tells."""

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import CONFIGS, request_for, save_checkpoint, words

from service.contracts.progress import Progress
from service.contracts.request import MeasurementRequest
from workers.measurement.errors import BadRequest
from workers.measurement.program import measure
from workers.measurement.runtime.progress import ProgressReporter


class Killed(KeyboardInterrupt):
    """Stands for the end of the process: the program leaves its work as it is, as it does at an interrupt."""


class Mortal(ProgressReporter):
    """Dies when a stage has come so far."""

    def __init__(self, stage: str, done: int) -> None:
        super().__init__(out=io.StringIO())
        self.death = (stage, done)

    def _say(self, line: Any) -> None:
        super()._say(line)
        if isinstance(line, Progress) and (line.stage, line.done) == self.death:
            raise Killed


def contents(out: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted((out / "tables").iterdir())}


def run(request: MeasurementRequest, out: Path) -> dict[str, bytes]:
    measure(request, out, ProgressReporter(out=io.StringIO()))
    return contents(out)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama that overflows somewhere, so that warnings must survive too."""
    path = save_checkpoint(tmp_path_factory.mktemp("resume") / "model", CONFIGS["llama"](), torch.float16)
    weights = load_file(path / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3] = 60000.0
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    return path


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("prompts") / "labelled.jsonl"
    records = [{"prompt": words(3 + i % 3, seed=i), "label": bool(i % 2)} for i in range(12)]
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return file


@pytest.fixture(scope="module")
def request_(model: Path, calibration_text: Path, prompts: Path) -> MeasurementRequest:
    asked = request_for(model, calibration_text, batch_sequences=2, checkpoint_seconds=0, label_depth=1)
    return MeasurementRequest.model_validate({**asked.model_dump(mode="json"), "labelled": {"path": str(prompts)}})


@pytest.fixture(scope="module")
def uninterrupted(request_: MeasurementRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("uninterrupted") / "out"
    run(request_, out)
    return out


def changed(request: MeasurementRequest, **settings: Any) -> MeasurementRequest:
    return request.model_copy(update=settings)


@pytest.mark.parametrize("memory_bytes", [2**31, 0], ids=["in memory", "in files"])
@pytest.mark.parametrize(
    ("stage", "done", "kept"),
    [("sweep", 0, 0), ("sweep", 1, 0), ("sweep", 2, 1), ("sweep", 4, 3), ("divergence", 3, 4), ("write", 0, 4)],
)
def test_tables_are_the_same_after_a_kill_anywhere(
    stage: str,
    done: int,
    kept: int,
    memory_bytes: int,
    request_: MeasurementRequest,
    uninterrupted: Path,
    tmp_path: Path,
) -> None:
    request = changed(request_, memory_bytes=memory_bytes)
    with pytest.raises(Killed):
        measure(request, tmp_path / "out", Mortal(stage, done))
    assert not (tmp_path / "out").exists()
    told = io.StringIO()
    measure(request, tmp_path / "out", ProgressReporter(out=told))
    assert contents(tmp_path / "out") == contents(uninterrupted)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert warnings_of(tmp_path / "out") == warnings_of(uninterrupted) != []
    lines = [json.loads(line) for line in told.getvalue().splitlines()]
    assert next(line["done"] for line in lines if line.get("stage") == "sweep") == kept
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["timing"]["resumed_at_layer"] == (kept or None)


def warnings_of(out: Path) -> list[dict[str, Any]]:
    return json.loads((out / "report.json").read_text())["warnings"]


def stopped_in_the_sweep(request: MeasurementRequest, out: Path, how: signal.Signals) -> tuple[int, str]:
    """Measure in a process of its own, and signal it after two layers; return its status and standard error."""
    file = out.with_name("request.json")
    file.write_text(request.model_dump_json())
    command = [sys.executable, "-m", "workers.measurement", str(file), str(out)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        progress = json.loads(line)
        if progress.get("stage") == "sweep" and progress["done"] == 2:
            process.send_signal(how)
            break
    _, errors = process.communicate()
    return process.returncode, errors


def test_a_killed_process_goes_on(request_: MeasurementRequest, uninterrupted: Path, tmp_path: Path) -> None:
    status, _ = stopped_in_the_sweep(request_, tmp_path / "out", signal.SIGKILL)
    assert status == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    assert run(request_, tmp_path / "out") == contents(uninterrupted)


def test_an_interrupted_process_says_so_and_goes_on(
    request_: MeasurementRequest, uninterrupted: Path, tmp_path: Path
) -> None:
    status, errors = stopped_in_the_sweep(request_, tmp_path / "out", signal.SIGINT)
    assert status == 130
    assert "interrupted; the same command goes on from the last checkpoint" in errors
    assert "Traceback" not in errors
    assert not (tmp_path / "out").exists()
    assert run(request_, tmp_path / "out") == contents(uninterrupted)


def test_the_same_twice(request_: MeasurementRequest, uninterrupted: Path, tmp_path: Path) -> None:
    assert run(request_, tmp_path / "out") == contents(uninterrupted)


def test_a_checkpoint_that_is_cut_off_is_an_error_and_is_removed(
    request_: MeasurementRequest, uninterrupted: Path, tmp_path: Path
) -> None:
    with pytest.raises(Killed):
        measure(request_, tmp_path / "out", Mortal("sweep", 3))
    (cut,) = tmp_path.glob(".out.unfinished/checkpoint.*/1.stream")
    os.truncate(cut, 100)
    with pytest.raises(ValueError, match="mmap length"):
        run(request_, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    assert run(request_, tmp_path / "out") == contents(uninterrupted)


@pytest.mark.parametrize("identity", [None, "", "[]"])
def test_what_has_lost_its_identity_is_not_gone_on_from(
    identity: str | None, request_: MeasurementRequest, uninterrupted: Path, tmp_path: Path
) -> None:
    """As when the removal of a measurement that failed is itself killed, or the machine loses power."""
    with pytest.raises(Killed):
        measure(request_, tmp_path / "out", Mortal("sweep", 3))
    signature = tmp_path / ".out.unfinished/identity.json"
    signature.unlink() if identity is None else signature.write_text(identity)
    (cut,) = tmp_path.glob(".out.unfinished/checkpoint.*/1.stream")
    cut.unlink()
    assert run(request_, tmp_path / "out") == contents(uninterrupted)


def test_another_request_does_not_go_on(request_: MeasurementRequest, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        measure(request_, tmp_path / "out", Mortal("sweep", 2))
    with pytest.raises(
        BadRequest, match=r"\.out\.unfinished holds an unfinished measurement of something else \(other request\)"
    ):
        run(changed(request_, seed=5), tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == [".out.unfinished"]
    run(changed(request_, job_id="another", checkpoint_seconds=60.0, memory_bytes=0), tmp_path / "out")


def test_another_model_or_text_does_not_go_on(tmp_path: Path) -> None:
    model = save_checkpoint(tmp_path / "model", CONFIGS["llama"](), torch.float16)
    text = tmp_path / "text.txt"
    text.write_text(words(3000, seed=8))
    request = request_for(model, text, checkpoint_seconds=0)
    with pytest.raises(Killed):
        measure(request, tmp_path / "out", Mortal("sweep", 1))
    text.write_text(words(3000, seed=9))
    with pytest.raises(BadRequest, match=r"of something else \(other files\)"):
        run(request, tmp_path / "out")
    text.write_text(words(3000, seed=8))
    weights = load_file(model / "model.safetensors")
    weights["model.layers.3.mlp.up_proj.weight"][0, 0] += 1
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BadRequest, match=r"of something else \(other model\)"):
        run(request, tmp_path / "out")


def test_two_at_once_do_not_meet(request_: MeasurementRequest, tmp_path: Path) -> None:
    class Twin(ProgressReporter):
        def _say(self, line: Any) -> None:
            super()._say(line)
            if isinstance(line, Progress) and (line.stage, line.done) == ("sweep", 1):
                with pytest.raises(BadRequest, match="another measurement is using"):
                    measure(request_, tmp_path / "out", ProgressReporter(out=io.StringIO()))

    measure(request_, tmp_path / "out", Twin(out=io.StringIO()))
    assert (tmp_path / "out/report.json").is_file()


def test_the_batch_size_changes_figures_by_rounding_alone(
    checkpoints: dict[str, Path], calibration_text: Path, tmp_path: Path
) -> None:
    figures = {}
    for batch in (1, 5):
        out = tmp_path / str(batch)
        run(request_for(checkpoints["gpt_neox"], calibration_text, batch_sequences=batch, schemes=["nf4"]), out)
        figures[batch] = pq.read_table(out / "tables/sites.parquet").to_pydict()
        report = json.loads((out / "report.json").read_text())
        assert report["calibration"]["batch_sequences"] == batch
    for name, values in figures[1].items():
        if name not in ("layer", "component", "port"):
            # One bfloat16 rounding of a matrix product may fall otherwise: 2^-8 of a value.
            np.testing.assert_allclose(
                np.array(figures[5][name], float), np.array(values, float), rtol=2**-7, atol=2**-9
            )
