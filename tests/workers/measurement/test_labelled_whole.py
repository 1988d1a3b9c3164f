"""Labeled prompts and given token ids through a whole measurement, against models loaded whole."""

import io
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from oracle import WholeModel
from scipy.stats import mannwhitneyu, spearmanr
from tiny_models import CONFIGS, request_for, save_checkpoint, words
from transformers import AutoTokenizer

from service.contracts.report import Report
from workers.measurement.errors import BadLabelled, BadModel, BadRequest
from workers.measurement.program import measure
from workers.measurement.runtime.progress import ProgressReporter

VARIANTS = {"reference": None, "int8": "int8", "nf4": "nf4"}
RECORDS = [{"prompt": words(3 + i % 4, seed=i), "score": (i * 7) % 11 - 4.5} for i in range(24)]
THRESHOLD = 0.0


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("labelled") / "model", CONFIGS["llama"](), adds_bos=True)


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    path.write_text("\n".join(map(json.dumps, RECORDS)), encoding="utf-8")
    return path


def measured(model: Path, text: Path, out: Path, **settings: Any) -> tuple[Report, list[str]]:
    """The report, and the codes of its warnings."""
    request = request_for(model, text, sequences=2, sequence_length=24, **settings)
    measure(request, out, ProgressReporter(out=io.StringIO()))
    report = Report.model_validate_json((out / "report.json").read_bytes())
    return report, [warning.code for warning in report.warnings]


def last_vectors(model: Path, scheme: str | None, module: str) -> np.ndarray:
    """[R, d]: what leaves a module at every prompt's last token; prompts of one length go together."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    by_length: dict[int, list[int]] = defaultdict(list)
    ids = [tokenizer(str(record["prompt"])).input_ids for record in RECORDS]
    for index, row in enumerate(ids):
        by_length[len(row)].append(index)
    assert len(by_length) > 2
    found = np.empty((len(ids), 128), np.float32)
    for indices in by_length.values():
        whole = WholeModel(model, torch.tensor([ids[i] for i in indices]), scheme)
        found[indices] = whole.outputs[module][:, -1].float().numpy()
    return found


@pytest.mark.parametrize(("depth", "module"), [(None, "model.norm"), (1, "model.layers.1")])
def test_the_vectors_are_the_whole_models(
    depth: int | None, module: str, model: Path, prompts: Path, calibration_text: Path, tmp_path: Path
) -> None:
    settings = {"label_threshold": THRESHOLD, "label_depth": depth, "label_dimensions": 6}
    given = {"path": str(prompts)}
    report, warnings = measured(model, calibration_text, tmp_path / "out", labelled=given, **settings)
    section = report.labelled
    assert section is not None
    assert set(warnings) <= {"reference-guesses", "few-sequences"}
    assert (section.depth, section.adds_bos, section.source) == (depth, True, "prompts.jsonl")
    rows = pq.read_table(tmp_path / "out/tables/labelled.parquet")
    scores = np.asarray([record["score"] for record in RECORDS])
    assert rows["score"].to_pylist() == scores.tolist()
    assert rows["label"].to_pylist() == (scores > THRESHOLD).tolist()
    vectors = {variant: last_vectors(model, scheme, module) for variant, scheme in VARIANTS.items()}
    rho = np.abs([spearmanr(column, scores).statistic for column in vectors["reference"].T])
    assert [d.dimension for d in section.dimensions] == np.argsort(-rho, kind="stable")[:6].tolist()
    for d in section.dimensions:
        for variant, figures in {"reference": d.reference, **d.schemes}.items():
            column = vectors[variant][:, d.dimension]
            assert rows[f"{variant}_{d.dimension}"].to_pylist() == column.tolist()
            assert figures.spearman_rho == pytest.approx(spearmanr(column, scores).statistic, abs=1e-12)
            true, false = column[scores > THRESHOLD], column[scores <= THRESHOLD]
            auroc = mannwhitneyu(true, false).statistic / (len(true) * len(false))
            assert figures.auroc == pytest.approx(auroc, abs=1e-12)


def test_prompts_change_nothing_else(model: Path, prompts: Path, calibration_text: Path, tmp_path: Path) -> None:
    given = {"labelled": {"path": str(prompts)}, "label_threshold": THRESHOLD}
    with_prompts, _ = measured(model, calibration_text, tmp_path / "with", **given)
    without, _ = measured(model, calibration_text, tmp_path / "without")
    assert without.labelled is None
    assert with_prompts.labelled is not None
    assert not (tmp_path / "without/tables/labelled.parquet").exists()
    assert {t.name for t in with_prompts.tables} - {t.name for t in without.tables} == {"labelled"}
    for entry in without.tables:
        for file in entry.files:
            assert pq.read_table(tmp_path / "with" / file).equals(pq.read_table(tmp_path / "without" / file)), file


def test_a_depth_beyond_the_model_and_a_bad_prompt_are_refused(
    model: Path, prompts: Path, calibration_text: Path, tmp_path: Path
) -> None:
    given = {"labelled": {"path": str(prompts)}, "label_threshold": THRESHOLD}
    with pytest.raises(BadRequest, match="label_depth: 4 is not allowed; the model's layers are 0 to 3"):
        measured(model, calibration_text, tmp_path / "out", label_depth=4, **given)
    long = tmp_path / "long.jsonl"
    long.write_text(json.dumps({"prompt": words(300, seed=1), "score": 1}) + "\n" + json.dumps(RECORDS[0]))
    given["labelled"] = {"path": str(long)}
    with pytest.raises(BadLabelled, match=r"line 1: 'prompt' has \d+ tokens; the model takes at most 128"):
        measured(model, calibration_text, tmp_path / "out", **given)
    assert [path.name for path in tmp_path.iterdir()] == ["long.jsonl"]


def test_token_ids_need_no_tokenizer_in_the_model(calibration_text: Path, tmp_path: Path) -> None:
    model = save_checkpoint(tmp_path / "model", CONFIGS["llama"](), adds_bos=True)
    ids = AutoTokenizer.from_pretrained(model)(calibration_text.read_text(), add_special_tokens=False).input_ids
    with_text, _ = measured(model, calibration_text, tmp_path / "text", bos="never", schemes=())
    for file in model.glob("tokenizer*"):
        file.unlink()
    given = tmp_path / "ids.jsonl"
    given.write_text(json.dumps({"token_ids": ids}))
    report, _ = measured(model, given, tmp_path / "ids", schemes=())
    assert report.calibration.fingerprint == with_text.calibration.fingerprint
    assert not report.calibration.adds_bos
    assert (report.profile.token_id, report.profile.token) == (with_text.profile.token_id, None)
    assert with_text.profile.token is not None
    with pytest.raises(BadModel, match="no tokenizer that can be loaded"):
        measured(model, calibration_text, tmp_path / "again", schemes=())


@pytest.mark.parametrize(("bos", "adds"), [("auto", True), ("always", True), ("never", False)])
def test_the_effective_choice_of_bos_is_recorded(
    bos: str, adds: bool, model: Path, calibration_text: Path, tmp_path: Path
) -> None:
    report, _ = measured(model, calibration_text, tmp_path / "out", bos=bos, schemes=())
    assert (report.calibration.adds_bos, report.analysis.bos) == (adds, bos)
