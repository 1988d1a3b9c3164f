"""Whole measurements of models that schemes leave alone, or cannot take."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from architectures import CONFIGS, save_random
from test_other_decoders import OTHERS
from tiny_models import request_for, save_tokenizer

from service.contracts.report import SchemeFacts
from service.contracts.schemes import SCHEMES
from workers.measurement.errors import CannotQuantise
from workers.measurement.program import measure
from workers.measurement.progress import Narrator


def measured(path: Path, text: Path, out: Path, **settings: Any) -> dict[str, Any]:
    measure(request_for(path, text, sequences=2, sequence_length=16, **settings), out, Narrator(out=io.StringIO()))
    return json.loads((out / "report.json").read_text())


def test_a_scheme_that_replaces_nothing_is_said_to(tmp_path: Path, calibration_text: Path) -> None:
    path = save_random(tmp_path / "model", CONFIGS["falcon, one k and v"]())
    save_tokenizer(path)
    report = measured(path, calibration_text, tmp_path / "out", schemes=["nf4"])
    assert [(w["code"], w["where"]) for w in report["warnings"]] == [("nothing-quantised", "nf4")]
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
    assert [w["code"] for w in report["warnings"]] == ["unknown-architecture"]
    with pytest.raises(CannotQuantise, match=r"^int8: layer 0"):
        measured(path, calibration_text, tmp_path / "quantised", schemes=["int8"])
    assert not (tmp_path / "quantised").exists()
