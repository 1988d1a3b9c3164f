"""The real model: SmolLM2-135M-Instruct, measured once for all tests here."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from real_measurement import Measured

from service.contracts.report import Report
from service.contracts.request import MeasurementRequest
from workers.measurement.program import measure
from workers.measurement.runtime.progress import ProgressReporter
from workers.samples import CALIBRATION

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tests/workers/measurement"))  # where the definitions are written a second time


@pytest.fixture(scope="session")
def checkpoint() -> Path:
    """The directory of the checkpoint, which is stored in bf16."""
    script = ["bash", str(ROOT / "deploy/real_model.sh")]
    return Path(subprocess.run(script, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[-1])


@pytest.fixture(scope="session")
def measured(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Measured:
    """8 x 128 tokens of the bundled text, seed 0, under int8 and under nf4 in both types that it may compute in."""
    out = tmp_path_factory.mktemp("real") / "out"
    request = {"schemes": ["int8", "nf4", "nf4:compute_dtype=float32"], "sequences": 8, "sequence_length": 128}
    request |= {"model": {"path": str(checkpoint)}, "calibration": {"path": str(CALIBRATION)}, "seed": 0}
    measure(MeasurementRequest.model_validate(request), out, ProgressReporter(out=io.StringIO()))
    report = Report.model_validate_json((out / "report.json").read_bytes())
    ids = pq.read_table(out / "tables/tokens.parquet", filters=[("scheme", "==", "int8")])["token_id"].to_numpy()
    token_ids = torch.from_numpy(np.array(ids)).view(report.calibration.sequences, -1)
    return Measured(checkpoint, out, report, token_ids)
