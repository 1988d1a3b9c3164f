"""Import contracts: each holds, each refuses what it forbids, and the service starts without heavy libraries."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# For every contract in pyproject.toml: a module, and an import in it that the contract forbids.
FORBIDDEN = {
    "The service never imports the workers": ("service/scheduler/rounds.py", "import workers.app"),
    "Workers import no API, command line, local stack, scheduler or submission": (
        "workers/lease.py",
        "import service.submission",
    ),
    "The measurement knows no queue, database or network": ("workers/measurement/errors.py", "import service.queue"),
    "Drawing never measures": ("workers/reporting/text.py", "import torch"),
    "Contracts stand on pydantic alone": ("service/contracts/schemes.py", "import service.store.job_records"),
    "The measurement's folders form layers": (
        "workers/measurement/quantization/grid.py",
        "import workers.measurement.models.decoder",
    ),
    "Statistics and quantization know no model and open no file": (
        "workers/measurement/statistics/surface.py",
        "import pathlib",
    ),
    "The service's folders form layers": ("service/store/job_records.py", "import service.submission"),
}
HEAVY = ("torch", "transformers", "bitsandbytes", "accelerate", "numba", "matplotlib")


def contracts(tree):
    """Return what import-linter says of every contract: its name -> kept."""
    script = Path(sys.executable).with_name("lint-imports")
    wide = {**os.environ, "COLUMNS": "200"}  # else long names are folded
    done = subprocess.run([script, "--no-cache"], cwd=tree, env=wide, capture_output=True, text=True, timeout=300)
    lines = [line.strip() for line in done.stdout.splitlines()]
    kept = {line.removesuffix(" KEPT"): True for line in lines if line.endswith(" KEPT")}
    broken = {line.removesuffix(" BROKEN"): False for line in lines if line.endswith(" BROKEN")}
    assert kept or broken, done.stdout + done.stderr
    assert (done.returncode == 0) == (not broken)
    return {**kept, **broken}


@pytest.fixture
def tree(tmp_path):
    """A copy of the sources, to be spoilt."""
    ignored = shutil.ignore_patterns("__pycache__", "*.safetensors", "*.txt", "*.jsonl")
    for name in ("service", "workers"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_every_contract_holds():
    assert contracts(ROOT) == dict.fromkeys(FORBIDDEN, True)


@pytest.mark.parametrize("contract", FORBIDDEN)
def test_a_forbidden_import_breaks_its_contract(tree, contract):
    module, statement = FORBIDDEN[contract]
    source = tree / module
    source.write_text(f"{source.read_text()}\n\n{statement}\n")
    assert contracts(tree)[contract] is False


def loaded_by(statement):
    """Return the names of the modules that a fresh interpreter holds after a statement."""
    script = f"{statement}; import json, sys; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout))


def test_the_service_loads_no_numeric_library():
    modules = sorted(
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in (ROOT / "service").rglob("*.py")
        if "migrations" not in path.parts
    )
    assert "service.api.app" in modules
    loaded = loaded_by(f"import {', '.join(modules)}")
    assert loaded >= set(modules)
    assert loaded.isdisjoint(HEAVY)
    assert not any(name.split(".")[0] == "workers" for name in loaded)


def test_the_command_line_loads_nothing_that_its_help_does_not_need():
    loaded = loaded_by("import service.cli.main")
    assert loaded.isdisjoint({"httpx", "pydantic", "sqlalchemy", "celery", "fastapi", "pyarrow", "numpy", *HEAVY})


def test_the_api_loads_nothing_that_only_some_of_its_calls_or_starts_need():
    loaded = loaded_by("import service.api.app")
    assert loaded.isdisjoint({"alembic", "celery", "kombu", "redis", "pyarrow", "numpy", "ruptures", *HEAVY})
