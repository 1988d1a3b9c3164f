"""What the sandbox costs: for each program of a job, while it runs, and for compiled kernels.

    python tests/benchmarks/sandbox_cost.py [--runs 50] [--jobs]

Prints, as JSON, medians in milliseconds: a program that ends at once, started as it is and in the sandbox, in turn; and
one look of the watch, which takes place five times a second. With --jobs, the measurement of the sample model runs
three times with a new cache of compiled kernels: seconds, and files in the cache afterwards.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from service.contracts.request import CalibrationFile, MeasurementRequest, ModelFiles
from service.settings import Settings
from workers.children import run_child
from workers.samples import CALIBRATION, MODEL
from workers.sandbox.family import Family, settle_worker
from workers.sandbox.programs import Commands
from workers.sandbox.sandbox import Sandbox, open_sandbox

PROGRAM = ("/bin/true",)


def main() -> None:
    """Print the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--jobs", action="store_true", help="also measure the sample model three times")
    options = parser.parse_args()
    settle_worker()
    with tempfile.TemporaryDirectory() as directory:
        sandbox = open_sandbox(Settings(home=Path(directory)))
        figures = {"sandbox": sandbox.description(), **starts(sandbox, Path(directory), options.runs)}
        if options.jobs:
            figures["jobs"] = jobs(replace(sandbox, caches=Path(directory) / "kernels"), Path(directory))
    print(json.dumps(figures, indent=1))


def starts(sandbox: Sandbox, directory: Path, runs: int) -> dict[str, float]:
    """Start the program as it is and in the sandbox, in turn, and look at a running one."""

    def plain() -> None:
        run_child(PROGRAM, environment=dict(os.environ), check=_nothing, on_line=_ignore)

    def confined() -> None:
        sandbox.run(PROGRAM, "the program", directory, _nothing, _ignore)

    plain_ms, confined_ms = [], []
    for _ in range(runs):
        plain_ms.append(_milliseconds(plain))
        confined_ms.append(_milliseconds(confined))
    family = Family.begin()
    with subprocess.Popen(["/bin/sleep", "600"]) as process:
        looks = [_milliseconds(family.resident_bytes) for _ in range(runs)]
        process.kill()
    return {
        "plain, ms": round(statistics.median(plain_ms), 1),
        "in the sandbox, ms": round(statistics.median(confined_ms), 1),
        "a look of the watch, ms": round(statistics.median(looks), 2),
    }


def jobs(sandbox: Sandbox, directory: Path) -> list[dict[str, float]]:
    """Measure the sample model three times with one cache."""
    sandbox.caches.mkdir()
    calibration = CalibrationFile(path=CALIBRATION, source="sample")
    request = MeasurementRequest(
        job_id="0" * 32,
        model=ModelFiles(path=MODEL, source="sample"),
        calibration=calibration,
        device="cpu",
        sequences=4,
        sequence_length=64,
    )
    (directory / "request.json").write_text(request.model_dump_json())
    figures = []
    for number in range(3):
        command = [*Commands().measurement, str(directory / "request.json"), str(directory / f"out-{number}")]
        seconds = _milliseconds(lambda command=command: _measure(sandbox, command, directory)) / 1000
        files = sum(path.is_file() for path in sandbox.caches.rglob("*"))
        figures.append({"seconds": round(seconds, 1), "files in the cache": files})
    return figures


def _measure(sandbox: Sandbox, command: list[str], directory: Path) -> None:
    ended = sandbox.run(command, "the measurement", directory, _nothing, _ignore)
    if ended.status != 0:
        sys.exit("\n".join(ended.errors))


def _milliseconds(act: Callable[[], object]) -> float:
    began = time.perf_counter()
    act()
    return (time.perf_counter() - began) * 1000


def _nothing() -> None:
    """Let the program go on."""


def _ignore(_line: bytes) -> None:
    """Take a line."""


if __name__ == "__main__":
    main()
