"""Harm and mixes of the real model, in a float32 copy: in bf16 every swap also re-rounds the stream after it."""

import io
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from service.contracts.harm.recommendation import Recommendation
from service.contracts.report import Report
from service.contracts.request import MeasurementRequest
from workers.measurement.program import measure
from workers.measurement.runtime.progress import ProgressReporter
from workers.samples import CALIBRATION

pytestmark = pytest.mark.real

EXACT = 8
NF4_BYTES = 59_700_000
"""Of the quantized modules."""


@pytest.fixture(scope="module")
def recommended(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    """4 x 64 tokens with 4 draws, 8 modules measured, and mixes of +10% of nf4's bytes on 4 x 64 others."""
    root = tmp_path_factory.mktemp("harm")
    copy = root / "float32"
    AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).save_pretrained(copy)
    AutoTokenizer.from_pretrained(checkpoint).save_pretrained(copy)
    request = {
        "model": {"path": str(copy)},
        "calibration": {"path": str(CALIBRATION)},
        "schemes": ["nf4"],
        "sequences": 4,
        "sequence_length": 64,
        "harm": {"exact": "modules", "top_modules": 4, "random_modules": EXACT - 4, "draws": 4},
        "recommend": {"enabled": True},
    }
    measure(MeasurementRequest.model_validate(request), root / "out", ProgressReporter(out=io.StringIO()))
    return root / "out", Report.model_validate_json((root / "out/report.json").read_bytes())


def of_nf4(report: Report) -> Recommendation:
    assert report.recommendation is not None
    return report.recommendation["nf4"]


def test_estimates_rank_the_modules_as_measurements_do(recommended: tuple[Path, Report]) -> None:
    out, report = recommended
    rows = pq.read_table(out / "tables/harm.parquet").to_pylist()
    assert len(rows) == 210
    assert report.harm is not None
    check = report.harm["nf4"].check
    assert check is not None
    assert check.spearman is not None
    assert check.swaps >= EXACT
    assert check.spearman >= 0.8
    dearest = max(rows, key=lambda row: row["estimated_harm"])
    assert dearest["module"] == "model.layers.11.mlp.down_proj"  # it writes the massive activation


def test_the_swap_of_nothing_does_nothing(recommended: tuple[Path, Report]) -> None:
    assert "harm-of-nothing" not in {warning.code for warning in recommended[1].warnings}


def test_the_best_mix_is_below_every_control_of_its_size(recommended: tuple[Path, Report]) -> None:
    section = of_nf4(recommended[1])
    mixes = [mix.kl.value for mix in section.mixes if not mix.control]
    controls = [mix.kl.value for mix in section.mixes if mix.control]
    assert min(mixes) <= min(controls)
    assert section.config_verified
    if section.chosen is not None:
        assert section.mix(section.chosen).kl.value <= min(controls)
