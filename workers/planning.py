"""`python -m workers.planning`: say what a job would take, without making it; for `headroom recommend --plan`.

Standard input carries one JSON object: `job`, the body of `POST /v1/jobs` without its files; `calibration` and
`labelled`, paths or null; and what of a measurement's request is this machine's own, in `machine`. Standard output is
that of `python -m workers.measurement REQUEST.json --plan`, as is the exit status.
"""

import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from service.contracts.request import SAMPLE, CalibrationFile, LabelledFile, MeasurementRequest, ModelFiles
from workers.samples import CALIBRATION, LABELLED, MODEL


def main() -> int:
    """Run the program; returns its exit status."""
    request = request_of(json.load(sys.stdin))
    with TemporaryDirectory() as directory:
        file = Path(directory) / "request.json"
        file.write_text(request.model_dump_json(), encoding="utf-8")
        command = [sys.executable, "-P", "-m", "workers.measurement", str(file), "--plan"]
        return subprocess.run(command, check=False).returncode


def request_of(asked: dict[str, Any]) -> MeasurementRequest:
    """Return the measurement of a job whose model is `sample` or a directory."""
    job: dict[str, Any] = dict(asked["job"])
    model, labelled = job.pop("model"), asked["labelled"]
    if labelled is None and model == SAMPLE:
        labelled = LABELLED
    return MeasurementRequest.model_validate(
        job
        | asked["machine"]
        | {
            "model": ModelFiles(path=MODEL, source=SAMPLE) if model == SAMPLE else ModelFiles(path=Path(model)),
            "calibration": CalibrationFile(path=Path(asked["calibration"] or CALIBRATION)),
            "labelled": None if labelled is None else LabelledFile(path=Path(labelled)),
        }
    )


if __name__ == "__main__":
    sys.exit(main())
