"""What stands in the table of tokens, where the end of the model or its predictions are out of the common."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from architectures import CONFIGS, save_random
from oracle import WholeModel
from safetensors.torch import load_file, save_file
from tiny_models import request_for, save_tokenizer

from service.contracts.report import Report
from workers.measurement.program import measure
from workers.measurement.progress import Narrator
from workers.measurement.remarks import warn_guessing


def scored(path: Path, text: Path, out: Path, **settings: Any) -> tuple[Report, dict[str, list[Any]]]:
    """Measure five sequences of 24 tokens under int8; return the report and the columns of `tokens`."""
    request = request_for(path, text, sequences=5, sequence_length=24, schemes=["int8"], **settings)
    measure(request, out, Narrator(out=io.StringIO()))
    report = Report.model_validate_json((out / "report.json").read_bytes())
    return report, pq.read_table(out / "tables/tokens.parquet").to_pydict()


@pytest.mark.parametrize("score", ["all", "second_half"])
def test_what_is_quantised_after_the_last_layer_is_given_whole_batches(
    score: str, tmp_path: Path, calibration_text: Path
) -> None:
    path = save_random(tmp_path / "model", CONFIGS["opt, projected"](), torch.float32)
    weights = load_file(path / "model.safetensors")
    for name in weights:
        if name.endswith("final_layer_norm.weight"):
            weights[name] *= 2.5  # some columns of what enters project_out reach 6, in some sequences
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    save_tokenizer(path)
    _, columns = scored(path, calibration_text, tmp_path / "out", score=score, batch_sequences=5)
    ids = torch.tensor(columns["token_id"]).view(5, 24)
    logits = WholeModel(path, ids, "int8").logits
    nll = -torch.log_softmax(logits.double(), dim=-1)[:, :-1].gather(-1, ids[:, 1:, None]).squeeze(-1)
    first = 12 if score == "second_half" else 0
    found = np.array(columns["nll_scheme"], np.float64).reshape(5, 24)
    assert np.isnan(found[:, :first]).all()
    np.testing.assert_allclose(found[:, first:-1], nll[:, first:], rtol=1e-6)


def test_where_a_prediction_is_not_finite_nothing_is_said_of_it(tmp_path: Path, calibration_text: Path) -> None:
    path = save_random(tmp_path / "model", CONFIGS["llama"](), torch.float32)
    weights = load_file(path / "model.safetensors")
    weights["lm_head.weight"][7, 0] = 3e38  # where that channel is over 1.13, a logit is infinite
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    save_tokenizer(path)
    report, columns = scored(path, calibration_text, tmp_path / "out")
    known = [value is not None for value in columns["kl_divergence"]]
    assert 0 < sum(known) < len(known) - 5
    assert [value is not None for value in columns["same_top"]] == known
    estimate = report.schemes["int8"].same_top_token
    assert estimate is not None
    assert estimate.value == np.mean([same for same in columns["same_top"] if same is not None])


@pytest.mark.parametrize(
    ("losses", "said"),
    [
        ([np.log(50)] * 4, True),
        ([9.0, np.nan, 0.1], True),
        ([np.log(50) - 1e-6] * 4, False),
        ([3.0, np.inf], False),
        ([np.nan], False),
    ],
)
def test_a_reference_that_only_guesses_is_said_to(losses: list[float], said: bool) -> None:
    narrator = Narrator(out=io.StringIO())
    warn_guessing(np.array(losses), 50, narrator)
    assert [warning.code for warning in narrator.warnings] == ["reference-guesses"] * said


def test_a_model_that_gives_every_token_the_same_chance_guesses(tmp_path: Path, calibration_text: Path) -> None:
    path = save_random(tmp_path / "model", CONFIGS["llama"]())
    save_tokenizer(path)
    weights = load_file(path / "model.safetensors")
    weights["lm_head.weight"].zero_()
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    report, _ = scored(path, calibration_text, tmp_path / "out")
    assert [warning.code for warning in report.warnings] == ["reference-guesses"]
