"""Whole measurements of models that schemes leave alone, or cannot take."""

import io
import json
import re
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from architectures import CONFIGS, random_model, save_random
from test_other_decoders import OTHERS
from tiny_models import request_for, save_tokenizer

from service.contracts.report import SchemeFacts
from service.contracts.schemes import SCHEMES
from workers.measurement.program import measure
from workers.measurement.runtime.progress import ProgressReporter


def measured(path: Path, text: Path, out: Path, **settings: Any) -> dict[str, Any]:
    measure(
        request_for(path, text, sequences=2, sequence_length=16, **settings), out, ProgressReporter(out=io.StringIO())
    )
    return json.loads((out / "report.json").read_text())


def besides_guessing(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the warnings that are not due to the weights being random."""
    return [warning for warning in report["warnings"] if warning["code"] not in ("reference-guesses", "few-sequences")]


def test_a_scheme_that_replaces_nothing_is_said_to(tmp_path: Path, calibration_text: Path) -> None:
    path = save_random(tmp_path / "model", CONFIGS["falcon, one k and v"]())
    save_tokenizer(path)
    report = measured(path, calibration_text, tmp_path / "out", schemes=["nf4"])
    assert [(w["code"], w["where"]) for w in besides_guessing(report)] == [("nothing-quantized", "nf4")]
    assert report["schemes"]["nf4"]["compression"] == 1
    assert report["schemes"]["nf4"]["kl_divergence"]["max"] == 0
    assert report["schemes"]["nf4"]["worst_sites"] == []


def test_a_report_says_which_schemes_are_simulated(tmp_path: Path, calibration_text: Path) -> None:
    path = save_random(tmp_path / "model", CONFIGS["llama"]())
    save_tokenizer(path)
    report = measured(path, calibration_text, tmp_path / "out", schemes=["nf4", "w8a8-token"])
    assert {name: facts["simulated"] for name, facts in report["schemes"].items()} == {"nf4": False, "w8a8-token": True}


@pytest.mark.parametrize("name", SCHEMES)
def test_a_report_that_does_not_say_so_tells_by_its_settings(name: str) -> None:
    facts = dict.fromkeys(("perplexity", "perplexity_ratio", "kl_divergence", "same_top_token", "delta_p"))
    counts = {"model_bytes": 1, "compression": 1.0, "not_quantised": [], "worst_sites": []}
    stored = SchemeFacts.model_validate({**facts, **counts, "settings": SCHEMES[name].settings})
    assert stored.simulated == SCHEMES[name].simulated


def test_a_model_without_attention(tmp_path: Path, calibration_text: Path) -> None:
    path = save_random(tmp_path / "model", OTHERS["mamba"]())
    save_tokenizer(path)
    report = measured(path, calibration_text, tmp_path / "out", schemes=[])
    assert (report["model"]["heads"], report["model"]["kv_heads"], report["model"]["head_dim"]) == (None, None, None)
    assert report["heads"]["heads"] == 0
    assert [w["code"] for w in besides_guessing(report)] == ["unknown-architecture"]


@pytest.mark.parametrize("name", ["int8", "w8a8-token", "int4-group128"])
def test_what_a_layer_does_more_with_than_call_it_stays_as_it_is_and_is_named(
    name: str, tmp_path: Path, calibration_text: Path
) -> None:
    path = save_random(tmp_path / "model", OTHERS["mamba"]())
    save_tokenizer(path)
    report = measured(path, calibration_text, tmp_path / "out", schemes=[name])
    (warning,) = (w for w in report["warnings"] if w["where"] == name)
    assert warning["code"] == "left-unquantized"
    assert re.match(
        rf"{name} cannot quantize mixer.dt_proj in layers 0-1: the layer uses the weight directly", warning["message"]
    )
    assert warning["advice"] == "Deploy the model with this module in 16 bits, as it was here."
    scheme = report["schemes"][name]
    left = {name for name in scheme["not_quantised"] if name.endswith("_proj")}
    assert left == {f"backbone.layers.{layer}.mixer.dt_proj" for layer in (0, 1)}
    assert scheme["compression"] > 1
    rows = pq.read_table(tmp_path / "out/tables/errors.parquet").to_pylist()
    isolated = {row["component"] for row in rows if row["mode"] == "isolated"}
    assert isolated == {"mixer.in_proj", "mixer.x_proj", "mixer.out_proj"}


def test_a_weight_that_int8_does_not_take_is_named_with_its_layer(tmp_path: Path, calibration_text: Path) -> None:
    model = random_model(CONFIGS["llama"]())
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 4] = 70000.0
    model.save_pretrained(tmp_path / "model")
    save_tokenizer(tmp_path / "model")
    report = measured(tmp_path / "model", calibration_text, tmp_path / "out", schemes=["int8", "nf4"])
    (warning,) = (w for w in report["warnings"] if w["code"] == "left-unquantized")
    assert warning["where"] == "int8"
    assert re.match(r"int8 cannot quantize mlp.up_proj in layer 1: .*; at most 65504", warning["message"])
    named = {name: "model.layers.1.mlp.up_proj" in facts["not_quantised"] for name, facts in report["schemes"].items()}
    assert named == {"int8": True, "nf4": False}
