"""Outlier dimensions after LLM.int8(): a planted truth, and an independent computation from captured tensors."""

import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from oracle import WholeModel
from safetensors.torch import load_file, save_file
from tiny_models import CONFIGS, request_for, save_checkpoint

from service.contracts.report import Report
from workers.measurement.program import measure
from workers.measurement.runtime.progress import ProgressReporter

PLANTED = {5: 64.0, 77: -64.0, 100: 64.0}
"""Dimension -> factor on the norms' weights in the planted layers."""
LAYERS = (1, 2)


@pytest.fixture(scope="module", params=[torch.bfloat16, torch.float32], ids=str)
def planted(
    request: pytest.FixtureRequest, calibration_text: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Report, Path, list[np.ndarray]]:
    root = tmp_path_factory.mktemp("planted")
    path = save_checkpoint(root / "model", CONFIGS["llama"](), request.param)
    weights = load_file(path / "model.safetensors")
    for layer in LAYERS:
        for dimension, factor in PLANTED.items():
            weights[f"model.layers.{layer}.input_layernorm.weight"][dimension] *= factor
    weights["model.layers.3.post_attention_layernorm.weight"][9] *= 8.0
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    measure(request_for(path, calibration_text, schemes=[]), root / "out", ProgressReporter(out=io.StringIO()))
    report = Report.model_validate_json((root / "out/report.json").read_bytes())
    return report, root / "out", layer_inputs(path, request_for(path, calibration_text))


def layer_inputs(path: Path, request: Any) -> list[np.ndarray]:
    """[2, T, d] for each layer: what enters attention and MLP, of the same text as the report's."""
    from transformers import AutoTokenizer

    from workers.measurement.inputs.calibration import calibrate

    token_ids = calibrate(request, AutoTokenizer.from_pretrained(path), 10**9).token_ids
    whole = WholeModel(path, token_ids)
    ports = ("self_attn.q_proj", "mlp.up_proj")
    tensors = [[whole.inputs[f"model.layers.{i}.{p}"].float().numpy() for p in ports] for i in range(4)]
    return [np.stack(pair).reshape(2, token_ids.numel(), -1) for pair in tensors]


def test_exactly_the_planted_dimensions_are_found(planted: tuple[Report, Path, list[np.ndarray]]) -> None:
    report, _, inputs = planted
    found = report.outliers.llm_int8.dimensions
    assert {d.dimension for d in found} >= set(PLANTED)
    over = np.stack(inputs)
    over = np.abs(over) >= 6.0
    layers = over.any(axis=(1, 2)).mean(axis=0)
    positions = over.any(axis=(0, 1)).mean(axis=0)
    assert [d.dimension for d in found] == np.flatnonzero((layers >= 0.25) & (positions >= 0.06)).tolist()


def test_figures_of_the_found_dimensions(planted: tuple[Report, Path, list[np.ndarray]]) -> None:
    report, out, inputs = planted
    x = np.stack(inputs)
    # float32 values are counted by their top 20 bits: within 2^-11.
    exact = report.model.dtype == "bfloat16"
    rows = pq.read_table(
        out / "tables/outlier_dimensions.parquet", filters=[("definition", "==", "llm_int8")]
    ).to_pylist()
    assert [r["dimension"] for r in rows] == [d.dimension for d in report.outliers.llm_int8.dimensions]
    for d, row in zip(report.outliers.llm_int8.dimensions, rows, strict=True):
        column = x[..., d.dimension].astype(np.float64)
        over = np.abs(column) >= 6.0
        values = column[over]
        assert d.layers_fraction == over.any(axis=(1, 2)).mean()
        assert d.positions_fraction == pytest.approx(over.any(axis=(0, 1)).mean())
        assert d.abs_max == np.abs(values).max()
        assert d.one_sided is bool((values > 0).all() or (values < 0).all())
        quartiles = np.quantile(values, (0.25, 0.5, 0.75))
        assert d.quartiles == pytest.approx(quartiles, rel=1e-12 if exact else 2**-11)
        assert (row["q25"], row["q50"], row["q75"]) == d.quartiles
        assert (row["definition"], row["layer"]) == ("llm_int8", None)
        assert (row["layers_fraction"], row["positions_fraction"]) == (d.layers_fraction, d.positions_fraction)


def test_thresholds_are_the_jobs(planted: tuple[Report, Path, list[np.ndarray]], calibration_text: Path) -> None:
    _, out, _ = planted
    model = out.parent / "model"
    thresholds = {"magnitude": 6.0, "layers_fraction": 0.75, "positions_fraction": 0.06}
    request = request_for(model, calibration_text, schemes=[], llm_int8=thresholds)
    measure(request, out.parent / f"strict-{len(list(out.parent.iterdir()))}", ProgressReporter(out=io.StringIO()))
    strict = next(p for p in out.parent.iterdir() if p.name.startswith("strict"))
    outliers = Report.model_validate_json((strict / "report.json").read_bytes()).outliers.llm_int8
    assert outliers.thresholds.layers_fraction == 0.75
    assert not {d.dimension for d in outliers.dimensions} & set(PLANTED)


def relative(inputs: list[np.ndarray], layers_fraction: float = 0.25, positions_fraction: float = 0.06) -> list[int]:
    """Dimensions after the definition with every token's own root mean square."""
    x = np.stack(inputs).astype(np.float64)
    over = np.abs(x) >= (6 * np.sqrt((x**2).mean(axis=-1, keepdims=True))).astype(np.float32)
    layers, positions = over.any(axis=(1, 2)).mean(axis=0), over.any(axis=(0, 1)).mean(axis=0)
    return np.flatnonzero((layers >= layers_fraction) & (positions >= positions_fraction)).tolist()


def test_the_relative_definition_finds_the_planted_dimensions(planted: tuple[Report, Path, list[np.ndarray]]) -> None:
    report, out, inputs = planted
    found = report.outliers.llm_int8_relative
    assert found is not None
    assert [d.dimension for d in found.dimensions] == relative(inputs)
    assert {d.dimension for d in found.dimensions} == {*PLANTED, 9}  # 9 in one layer of four
    assert (found.discriminates, found.thresholds.magnitude) == (True, 6.0)
    rows = pq.read_table(out / "tables/outlier_dimensions.parquet").to_pylist()
    of_relative = [r["dimension"] for r in rows if r["definition"] == "llm_int8_relative"]
    assert of_relative == [d.dimension for d in found.dimensions]


def test_a_scaled_gain_changes_the_fixed_definition_alone(
    planted: tuple[Report, Path, list[np.ndarray]], calibration_text: Path, tmp_path: Path
) -> None:
    report, out, _ = planted
    shutil.copytree(out.parent / "model", tmp_path / "model")
    weights = load_file(tmp_path / "model/model.safetensors")
    for name in weights:
        if name.endswith("layernorm.weight"):
            weights[name] *= 16  # what reads it shrinks as much, so that the model stays the same
        elif name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight", "gate_proj.weight", "up_proj.weight")):
            weights[name] /= 16
    save_file(weights, tmp_path / "model/model.safetensors", metadata={"format": "pt"})
    reporter = ProgressReporter(out=io.StringIO())
    measure(request_for(tmp_path / "model", calibration_text, schemes=[]), tmp_path / "out", reporter)
    scaled = Report.model_validate_json((tmp_path / "out/report.json").read_bytes())
    before, after = report.outliers.llm_int8_relative, scaled.outliers.llm_int8_relative
    assert before is not None
    assert after is not None
    places = [[(d.dimension, d.layers_fraction, d.positions_fraction) for d in of.dimensions] for of in (before, after)]
    assert places[0] == places[1]
    assert [d.abs_max * 16 for d in before.dimensions] == [d.abs_max for d in after.dimensions]
    flagged = len(scaled.outliers.llm_int8.dimensions)
    assert flagged > scaled.model.hidden_size / 2
    assert (report.outliers.llm_int8.discriminates, scaled.outliers.llm_int8.discriminates) == (True, False)
    (warning,) = (w for w in scaled.warnings if w.code == "not-discriminating")
    assert warning.where == "llm_int8"
    assert f"llm_int8 flags {flagged} of {scaled.model.hidden_size} dimensions" in warning.message
    assert warning.advice == "Read llm_int8_relative instead, or rerun with a larger --set llm_int8.magnitude=VALUE."
    rows = pq.read_table(tmp_path / "out/tables/outlier_dimensions.parquet").to_pylist()
    assert sum(r["definition"] == "llm_int8" for r in rows) == flagged  # the table keeps them all
