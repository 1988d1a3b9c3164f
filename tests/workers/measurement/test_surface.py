"""The `surface` table against a search through the whole model's own hidden states."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracle import WholeModel, block
from safetensors.torch import load_file, save_file
from tiny_models import CONFIGS, request_for, save_checkpoint

from service.contracts.report import Report
from workers.measurement.program import measure
from workers.measurement.runtime.progress import ProgressReporter
from workers.measurement.statistics.surface import MAX_COLUMNS, MAX_ROWS, reduce_surface

BIN = 1 / 32
"""Relative width of a histogram bin: the stated error of the median."""


def run(out: Path, model: Path, text: Path, **settings: Any) -> tuple[Report, list[dict[str, Any]]]:
    measure(request_for(model, text, **settings), out, ProgressReporter(out=io.StringIO()))
    return Report.model_validate_json((out / "report.json").read_bytes()), pq.read_table(
        out / "tables/surface.parquet"
    ).to_pylist()


def streams(out: Path, report: Report, model: Path, architecture: str) -> list[np.ndarray]:
    """The output of every layer, [N, S, d], of the model run whole."""
    ids = pq.read_table(out / "tables/tokens.parquet", filters=[("scheme", "==", "nf4")])["token_id"].to_numpy()
    whole = WholeModel(model, torch.from_numpy(ids.reshape(report.calibration.sequences, -1).copy()))
    return [whole.outputs[block(architecture, layer)].float().numpy() for layer in range(report.model.layers)]


@pytest.mark.parametrize("architecture", list(CONFIGS))
def test_it_holds_the_sequence_that_stands_out_most(
    architecture: str, checkpoints: dict[str, Path], calibration_text: Path, tmp_path: Path
) -> None:
    model = checkpoints[architecture]
    report, rows = run(tmp_path / "out", model, calibration_text, schemes=["nf4"])
    outputs = streams(tmp_path / "out", report, model, architecture)
    ratios = [np.abs(x).max() / np.median(np.abs(x)) for x in outputs]
    facts = report.surface
    assert facts is not None
    assert ratios[facts.layer] >= max(ratios) * (1 - BIN) ** 2
    assert facts.max_to_median == pytest.approx(ratios[facts.layer], rel=BIN)
    x = outputs[facts.layer]
    assert facts.sequence == np.abs(x).max(axis=(1, 2)).argmax()
    assert facts.median_abs == pytest.approx(np.median(np.abs(x)), rel=BIN)
    # Small enough to be kept value by value.
    assert (facts.positions, facts.channels) == x.shape[1:]
    assert (facts.positions_per_cell, facts.channels_per_cell) == (1, 1)
    assert [(r["position"], r["channel"]) for r in rows] == list(np.ndindex(*x.shape[1:]))
    assert [r["value"] for r in rows] == x[facts.sequence].reshape(-1).tolist()


def test_a_planted_spike_decides_the_layer_and_the_sequence(tmp_path: Path) -> None:
    """A token that occurs once and gets a huge value in one channel: only its own sequence can be meant."""
    model = save_checkpoint(tmp_path / "model", CONFIGS["llama"]())
    weights = load_file(model / "model.safetensors")
    weights["model.embed_tokens.weight"][319, 17] = 3000.0
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    ids = np.random.default_rng(0).integers(2, 300, 240)
    ids[150] = 319
    text = tmp_path / "ids.jsonl"
    text.write_text(json.dumps({"token_ids": ids.tolist()}))
    report, rows = run(tmp_path / "out", model, text, schemes=["nf4"], bos="never")
    tokens = pq.read_table(tmp_path / "out/tables/tokens.parquet").to_pylist()
    spike = next(row for row in tokens if row["token_id"] == 319)
    facts = report.surface
    assert facts is not None
    assert facts.sequence == spike["sequence"]
    peak = max(rows, key=lambda row: abs(row["value"]))
    assert (peak["position"], peak["channel"]) == (spike["position"], 17)
    sites = pq.read_table(tmp_path / "out/tables/sites.parquet").to_pylist()
    by_layer = {r["layer"]: r["max_to_median"] for r in sites if (r["component"], r["port"]) == ("block", "output")}
    assert facts.layer == max(by_layer, key=by_layer.__getitem__)
    assert facts.max_to_median == by_layer[facts.layer] > 100


def test_batches_and_files_change_nothing(checkpoints: dict[str, Path], calibration_text: Path, tmp_path: Path) -> None:
    model, tables = checkpoints["gpt2"], []
    # In one and the same batch size the streams are equal bit for bit, wherever they lie.
    for number, settings in enumerate([{"batch_sequences": 2}, {"batch_sequences": 2, "memory_bytes": 0}]):
        report, rows = run(tmp_path / str(number), model, calibration_text, schemes=["nf4"], **settings)
        tables.append((report.surface, rows))
    assert tables[0] == tables[1]
    report, rows = run(tmp_path / "whole", model, calibration_text, schemes=["nf4"], batch_sequences=5)
    assert report.surface is not None
    assert tables[0][0] is not None
    assert (report.surface.layer, report.surface.sequence) == (tables[0][0].layer, tables[0][0].sequence)
    # One bfloat16 rounding of a matrix product may fall otherwise in another batch size.
    np.testing.assert_allclose([r["value"] for r in rows], [r["value"] for r in tables[0][1]], rtol=2**-6, atol=2**-6)


@given(
    st.integers(1, 3 * MAX_ROWS + 1),
    st.sampled_from([1, 5, MAX_COLUMNS - 1, MAX_COLUMNS, MAX_COLUMNS + 1, 1500]),
    st.integers(0, 9),
)
def test_every_cell_keeps_its_largest_magnitude_and_its_place(positions: int, channels: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.standard_t(2, (positions, channels)).astype(np.float32)
    x[rng.random(x.shape) < 0.02] = np.nan
    x[rng.random(x.shape) < 0.02] = -np.inf
    surface = reduce_surface(4, torch.from_numpy(x))
    down, across = surface.positions_per_cell, surface.channels_per_cell
    rows, columns = surface.value.shape
    assert (surface.sequence, surface.positions, surface.channels) == (4, positions, channels)
    assert rows == len(range(0, positions, down)) <= MAX_ROWS < rows * 2 or down == 1
    assert columns == len(range(0, channels, across)) <= MAX_COLUMNS < columns * 2 or across == 1
    finite = np.where(np.isfinite(x), np.abs(x), np.nan)
    for row in {0, rows // 2, rows - 1}:
        for column in {0, columns // 2, columns - 1}:
            cell = finite[row * down : (row + 1) * down, column * across : (column + 1) * across]
            place = surface.position[row, column], surface.channel[row, column]
            assert place[0] // down == row
            assert place[1] // across == column
            if np.isnan(cell).all():
                assert np.isnan(surface.value[row, column])
            else:
                assert abs(surface.value[row, column]) == np.nanmax(cell)
                assert x[place] == surface.value[row, column]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves_are_kept_exactly(dtype: torch.dtype) -> None:
    x = torch.tensor([[1.5, -300.25], [2.0, -300.25]]).to(dtype)
    surface = reduce_surface(0, x)
    assert surface.value.tolist() == x.float().tolist()
    assert surface.value.dtype == np.float32
