"""Measures models one after another in this process; prints a line of JSON for each: what was said and what it took.

    python tests/hostile/hostile_runs.py DIRECTORY...

Each directory holds a model in `model` and a text in `text.txt`.
"""

import io
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

from service.contracts.request import MeasurementRequest
from workers.measurement.errors import MeasurementError
from workers.measurement.program import measure
from workers.measurement.runtime.progress import ProgressReporter

SECONDS = 600
"""Of processor time for all of them."""
BYTES = 12 << 30
"""Of private memory: the system refuses more, so that a fault here harms nobody else."""


def main(directories: list[str]) -> None:
    """Measure each model."""
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    resource.setrlimit(resource.RLIMIT_DATA, (BYTES, BYTES))
    for directory in directories:
        print(json.dumps(_measured(Path(directory))), flush=True)


def _measured(directory: Path) -> dict[str, Any]:
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    began = time.perf_counter()
    outcome: dict[str, Any] = {"code": None, "message": None}
    try:
        request = MeasurementRequest.model_validate(
            {"model": {"path": directory / "model"}, "calibration": {"path": directory / "text.txt"}, "schemes": []}
            | {"sequences": 2, "sequence_length": 16}
        )
        measure(request, directory / "out", ProgressReporter(out=io.StringIO()))
    except MeasurementError as error:
        outcome = {"code": error.code, "message": str(error)}
    outcome |= {"seconds": time.perf_counter() - began, "peak": _peak(), "left": sorted(map(str, directory.iterdir()))}
    return outcome | {"child_peak": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss << 10}


def _peak() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:"))


if __name__ == "__main__":
    main(sys.argv[1:])
