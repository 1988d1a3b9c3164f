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
from scipy import stats
from tiny_models import CONFIGS as TINY
from tiny_models import request_for, save_checkpoint, save_tokenizer

from service.contracts.report import Report
from service.evaluation.verdict import verdict_of
from workers.measurement.program import measure
from workers.measurement.results.report_warnings import warn_guessing
from workers.measurement.runtime.progress import ProgressReporter


def scored(path: Path, text: Path, out: Path, **settings: Any) -> tuple[Report, dict[str, list[Any]]]:
    """Measure five sequences of 24 tokens under int8; return the report and the columns of `tokens`."""
    request = request_for(path, text, sequences=5, sequence_length=24, schemes=["int8"], **settings)
    measure(request, out, ProgressReporter(out=io.StringIO()))
    report = Report.model_validate_json((out / "report.json").read_bytes())
    return report, pq.read_table(out / "tables/tokens.parquet").to_pydict()


@pytest.mark.parametrize("score", ["all", "second_half"])
def test_what_is_quantized_after_the_last_layer_is_given_whole_batches(
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


@pytest.fixture(scope="module", params=[12, 5])
def exact(
    request: pytest.FixtureRequest, calibration_text: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Report, dict[str, np.ndarray]]:
    """A report on a float32 model, and what it should say of each position by the whole models' logits in float64.

    In float32 the two differ by a few units of the last place of a logit.
    """
    root = tmp_path_factory.mktemp("exact")
    path = save_checkpoint(root / "model", TINY["llama"](), torch.float32)
    asked = request_for(path, calibration_text, sequences=request.param, sequence_length=48)
    measure(asked, root / "out", ProgressReporter(out=io.StringIO()))
    report = Report.model_validate_json((root / "out/report.json").read_bytes())
    rows = pq.read_table(root / "out/tables/tokens.parquet", filters=[("scheme", "==", "nf4")])
    ids = torch.tensor(rows["token_id"].to_pylist()).view(request.param, 48)
    following = ids[:, 1:].unsqueeze(-1)
    log_p = torch.log_softmax(WholeModel(path, ids).logits.double(), dim=-1)[:, :-1]
    found = {"reference": -log_p.gather(-1, following).squeeze(-1).numpy()}
    for scheme in ("int8", "nf4"):
        log_q = torch.log_softmax(WholeModel(path, ids, scheme).logits.double(), dim=-1)[:, :-1]
        found[f"{scheme} nll"] = -log_q.gather(-1, following).squeeze(-1).numpy()
        found[f"{scheme} kl"] = (log_p.exp() * (log_p - log_q)).sum(dim=-1).numpy()
        found[f"{scheme} same"] = (log_p.argmax(dim=-1) == log_q.argmax(dim=-1)).double().numpy()
    return report, found


def clustered(values: np.ndarray) -> tuple[float, float, int]:
    """Mean, standard error and degrees of freedom by the definition, from [N, n] of N sequences."""
    units = list(values) if len(values) >= 8 else [part for one in values for part in (one[:23], one[23:])]
    sums, counts = np.array([unit.sum() for unit in units]), np.array([len(unit) for unit in units])
    m, n = sums.sum() / counts.sum(), len(units)
    return m, np.sqrt(n / (n - 1) * ((sums - counts * m) ** 2).sum()) / counts.sum(), n - 1


@pytest.mark.parametrize("scheme", ["int8", "nf4"])
def test_the_divergence_is_that_of_whole_models(exact: tuple[Report, dict[str, np.ndarray]], scheme: str) -> None:
    report, found = exact
    facts = report.schemes[scheme]
    kl = found[f"{scheme} kl"]
    assert facts.kl_divergence is not None
    assert facts.kl_divergence.mean > 1e-5
    assert facts.kl_divergence.mean == pytest.approx(kl.mean(), rel=2e-4)
    assert facts.kl_divergence.max == pytest.approx(kl.max(), rel=2e-4)
    assert facts.kl_divergence.median == pytest.approx(np.median(kl), rel=4e-4)


@pytest.mark.parametrize("scheme", ["int8", "nf4"])
def test_errors_are_by_sequence_or_by_blocks_of_few(exact: tuple[Report, dict[str, np.ndarray]], scheme: str) -> None:
    report, found = exact
    facts, sequences = report.schemes[scheme], report.calibration.sequences
    log_ratio = found[f"{scheme} nll"] - found["reference"]
    for figure, value, values, exponential in (
        (facts.kl_divergence, facts.kl_divergence.mean, found[f"{scheme} kl"], False),
        (facts.same_top_token, facts.same_top_token.value, found[f"{scheme} same"], False),
        (facts.perplexity, facts.perplexity.value, found[f"{scheme} nll"], True),
        (facts.perplexity_ratio, facts.perplexity_ratio.value, log_ratio, True),
        (report.reference.perplexity, report.reference.perplexity.value, found["reference"], True),
    ):
        m, error, freedom = clustered(values)
        reach = stats.t.ppf(0.975, freedom) * error
        bounds = np.array([m, m - reach, m + reach])
        wanted = np.exp(bounds) if exponential else bounds
        assert [value, *figure.interval] == pytest.approx(wanted.tolist(), rel=1e-3, abs=1e-7)
        assert figure.standard_error == pytest.approx(error * (wanted[0] if exponential else 1), rel=1e-3)
        assert (figure.degrees_of_freedom, figure.unit_count) == (freedom, freedom + 1)
        assert figure.units == ("sequences" if sequences >= 8 else "blocks")


def test_the_verdict_is_part_of_the_report(exact: tuple[Report, dict[str, np.ndarray]]) -> None:
    report, _ = exact
    assert (report.schema_version, report.definitions_version) == ("1.2", "1.1")
    few = [warning.message for warning in report.warnings if warning.code == "few-sequences"]
    assert len(few) == (report.calibration.sequences < 8)
    known = (
        f"The calibration text has {report.calibration.sequences} sequences, so errors are estimated from 10 blocks."
    )
    assert all(message.startswith(known) for message in few)
    for facts in report.schemes.values():
        assert facts.verdict is not None
        assert facts.verdict.level == "unjudged"  # a model of random weights only guesses
        assert facts.verdict.reasons[0].startswith(
            "The reference predicts this text no better than a random guess among its"
        )
        knowing = report.model_copy(update={"model": report.model.model_copy(update={"vocabulary": 10**9})})
        judged = verdict_of(knowing, facts)
        kl, ratio = facts.kl_divergence.mean, facts.perplexity_ratio
        by_kl = 0 if kl < 0.01 else 1 if kl < 0.1 else 2
        by_ratio = 0 if ratio.interval[0] <= 1 or ratio.value < 1.01 else 1 if ratio.value < 1.05 else 2
        assert judged.level == ("negligible", "noticeable", "severe")[max(by_kl, by_ratio)]


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
    reporter = ProgressReporter(out=io.StringIO())
    warn_guessing(np.array(losses), 50, reporter)
    assert [warning.code for warning in reporter.warnings] == ["reference-guesses"] * said


def test_a_model_that_gives_every_token_the_same_chance_guesses(tmp_path: Path, calibration_text: Path) -> None:
    path = save_random(tmp_path / "model", CONFIGS["llama"]())
    save_tokenizer(path)
    weights = load_file(path / "model.safetensors")
    weights["lm_head.weight"].zero_()
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    report, _ = scored(path, calibration_text, tmp_path / "out")
    assert [warning.code for warning in report.warnings] == ["reference-guesses", "few-sequences"]
