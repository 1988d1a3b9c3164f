"""The script for a machine with a GPU, run on the CPU: every step works, and says what it is to say."""

import importlib.util
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from gpu_steps import HERE, STEPS, TOTAL_SECONDS
from step_correctness import ARCHITECTURES, EXACT
from step_kernels import CHECKS, DRY_SHAPES, DTYPES, LAYOUTS

from workers.measurement.statistics.backends import CUDA_KERNELS

ROOT = HERE.parents[1]
SUMMED = ("reduction", "token products", "channel products", "divergence")
"""Checks of kernels that add up in another order than plain torch."""
ABSENT = """
import sys
from importlib.machinery import ModuleSpec

ABSENT = {
    "alembic", "celery", "fastapi", "httpx", "hypothesis", "kombu", "psycopg", "pydantic_settings", "redis",
    "setuptools", "sqlalchemy", "typer", "uvicorn",
}


class Absent:
    def find_spec(self, name, path=None, target=None):
        return ModuleSpec(name, self) if name in ABSENT else None

    def create_module(self, spec):
        raise ModuleNotFoundError(f"No module named {spec.name!r}: it is not there on a bare machine", name=spec.name)

    def exec_module(self, module):
        pass


sys.meta_path.insert(0, Absent())
"""
"""What a bare machine lacks; a process that imports any of it fails."""


def run(out: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHONPATH", "PYTEST"))}
    return subprocess.run(
        ["bash", str(HERE / "run.sh"), str(out), *arguments],
        cwd=out.parent,
        env=kept | {"HEADROOM_PYTHON": sys.executable} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def dry(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What every step said, by its name, and what else the run left."""
    directory = tmp_path_factory.mktemp("gpu")
    (directory / "bare").mkdir()
    (directory / "bare/sitecustomize.py").write_text(ABSENT)
    (directory / "temporary").mkdir()
    paths = {"PYTHONPATH": str(directory / "bare"), "TMPDIR": str(directory / "temporary")}
    done = run(directory / "out", "--dry", **paths)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [json.loads(line) for line in (directory / "out/gpu.jsonl").read_text().splitlines()]
    return {line["step"]: line for line in lines} | {
        "table": (directory / "out/gpu.md").read_text(),
        "left": list((directory / "temporary").iterdir()),
        "lines": len(lines),
    }


def figures(line: dict[str, Any]) -> dict[str, Any]:
    return {figure["figure"]: figure["value"] for figure in line["figures"]}


def test_every_step_is_ok(dry: dict[str, Any]) -> None:
    assert dry["lines"] == len(STEPS)
    for step in STEPS:
        skipped = step.name == "kernels" and importlib.util.find_spec("triton") is None
        assert dry[step.name]["status"] == ("skipped" if skipped else "ok"), dry[step.name]
        assert dry[step.name]["problems"] == []
        assert dry[step.name]["budget_seconds"] == step.budget_seconds
        assert f"| {step.title} | " in dry["table"]
    assert dry["left"] == []


def test_versions_are_told(dry: dict[str, Any]) -> None:
    headroom = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    versions = dry["device"]["details"]["versions"]
    assert versions["headroom"] == headroom
    assert versions["torch"] == importlib.import_module("torch").__version__
    assert dry["device"]["details"]["device"] in dry["table"]


def test_kernels_are_compared(dry: dict[str, Any]) -> None:
    if importlib.util.find_spec("triton") is None:
        assert "triton is not installed" in dry["kernels"]["error"]
        return
    said, tensors = figures(dry["kernels"]), (len(DRY_SHAPES) - 1 + len(LAYOUTS)) * len(DTYPES)
    for check in CHECKS:
        assert said[f"{check.name}: tensors compared"] == tensors
        used = said[f"{check.name}: used of what rounding allows"]
        assert 0 < used <= 1 if check.name in SUMMED else used == 0


def test_models_are_compared(dry: dict[str, Any]) -> None:
    line = dry["correctness"]
    for architecture in ARCHITECTURES:
        assert figures(line)[f"{architecture}: hidden states and logits equal to `from_pretrained`"] == "yes"
        assert line["details"][f"{architecture}: not equal to the whole model"] == []
        (counted,) = (name for name in figures(line) if name.startswith(f"{architecture}: largest difference of "))
        assert int(counted.split()[4]) > 300
        assert figures(line)[counted] <= EXACT


def test_a_kill_does_not_show(dry: dict[str, Any]) -> None:
    said = figures(dry["going-on"])
    assert said["killed by SIGKILL, went on at layer"] >= 3
    assert said["tables the same to the byte after going on"] == "yes"


def test_kernels_are_timed(dry: dict[str, Any]) -> None:
    said = figures(dry["speed"])
    beside = {"score_logits": "the head's matrix product", "compare_logits": "the head's matrix product"}
    inputs = {name: ["vocabulary 512"] if name in beside else ["d = 64", "d = 128"] for name in CUDA_KERNELS}
    for name, measured in inputs.items():
        for tensor in measured:
            timed = [figure for figure in said if re.match(rf"{tensor}: {name}\b", figure)]
            product = beside.get(name, "matrix product")
            assert any(figure.endswith(f" / {product}") for figure in timed), (tensor, name)
            assert any(figure.endswith(", read") for figure in timed), (tensor, name)
            assert all(said[figure] > 0 for figure in timed)


@pytest.mark.parametrize("step", ["costs-1b", "costs-8b", "long"])
def test_costs_are_told(step: str, dry: dict[str, Any]) -> None:
    line = dry[step]
    said, details = figures(line), line["details"]
    floor = sum(details["floor_seconds"].values())
    assert set(details["floor_seconds"]) == {"reading", "quantizing", "forwards", "heads"}
    assert all(part > 0 for part in details["floor_seconds"].values())
    taken = said["whole measurement with int8 and nf4, 128 tokens"]
    assert said["whole measurement / forwards that cannot be avoided"] == pytest.approx(taken / floor)
    assert said["tokens per second"] == pytest.approx(128 / taken)
    assert sum(details["stage_seconds"].values()) <= taken
    assert details["progress"].startswith("divergence: 4 of 4")
    assert said["reference stream with every statistic / bare forward"] > 0
    assert set(details["layer_seconds"]["own"]) == set(details["layer_seconds"]["added"]) == {"int8", "nf4"}
    if step != "long":
        assert 0 <= said["device idle, share of the time while profiled"] < 1
        operations = details["dearest_operations"]
        assert len(operations) == 10
        assert operations == sorted(operations, key=lambda one: one["milliseconds"], reverse=True)
        assert operations[0]["name"] in dry["table"]


def test_two_run_side_by_side(dry: dict[str, Any]) -> None:
    assert figures(dry["pair"])["two at once, seconds until both are done"] > 0


def test_the_table_says_that_it_is_of_no_gpu(dry: dict[str, Any]) -> None:
    assert "A dry run on a CPU" in dry["table"]
    assert ": missed" not in dry["table"]  # the goals are a GPU's
    assert "at most 1.15" in dry["table"]


def test_budgets_add_up() -> None:
    budgets = [step.budget_seconds for step in STEPS]
    assert sum(budgets) < TOTAL_SECONDS == 480
    assert budgets[-2:] == sorted(budgets)[-2:]
    assert [step.until_the_end for step in STEPS] == [False] * (len(STEPS) - 1) + [True]


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        (("--dry",), {}, "usage: bash tests/gpu/run.sh OUT"),
        (("out", "--dry"), {"WHEELS": "nowhere"}, "WHEELS: 'nowhere' is no folder"),
        (("out", "--often"), {}, "unrecognized arguments: --often"),
    ],
)
def test_what_is_asked_wrongly_is_refused(
    arguments: tuple[str, ...], environment: dict[str, str], message: str, tmp_path: Path
) -> None:
    kept = dict(os.environ) | {"HEADROOM_PYTHON": sys.executable} | environment
    command = ["bash", str(HERE / "run.sh"), *arguments]
    done = subprocess.run(command, cwd=tmp_path, env=kept, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert message in done.stderr
    assert not (tmp_path / "out").exists()
