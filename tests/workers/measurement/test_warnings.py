"""Warnings are emitted when they hold and not otherwise, and say what to do next."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import CONFIGS, request_for, save_checkpoint
from transformers import AutoModelForCausalLM

from service.contracts.report import Estimate, Report
from service.contracts.request import Analysis, MeasurementRequest, schemes_for
from service.contracts.sections.outliers import DEFINITIONS, Outliers
from service.evaluation.restating import few_sequences
from workers.measurement.inputs.calibration import Calibration
from workers.measurement.layers.copies.quantize_projection import quantize_projection
from workers.measurement.program import measure
from workers.measurement.results.report_warnings import warn_calibration, warn_not_discriminating
from workers.measurement.runtime.progress import ProgressReporter

IN_FP16 = ("zero=int8:threshold=0", "half=nf4:compute_dtype=float16")
"""Schemes that cast every input of a replaced module to fp16."""


def narrated() -> ProgressReporter:
    return ProgressReporter(out=io.StringIO())


def only(reporter: ProgressReporter) -> tuple[str, str, str | None]:
    (warning,) = reporter.warnings
    return warning.message, str(warning.advice), warning.where


# What a short text, or the bundled one, is warned of
def warned_of_text(sequences: int, length: int, **changed: Any) -> ProgressReporter:
    request = MeasurementRequest.model_validate(
        {
            "model": {"path": "/models/llama"},
            "calibration": {"path": "/texts/own.txt"},
            "sequences": 16,
            "sequence_length": length,
            **changed,
        }
    )
    tokens = torch.zeros((sequences, length), dtype=torch.int64)
    text = Calibration(tokens, adds_bos=False, fingerprint="sha256:" + "0" * 64, documents=1, separator=None)
    reporter = narrated()
    warn_calibration(request, text, reporter)
    return reporter


def test_a_text_that_is_long_enough_is_not_warned_of() -> None:
    assert warned_of_text(16, 256).warnings == []


def test_a_short_text_is_warned_of_with_its_tokens_and_what_to_give() -> None:
    reporter = warned_of_text(5, 256)
    assert [warning.code for warning in reporter.warnings] == ["short-calibration"]
    message, advice, where = only(reporter)
    assert message == (
        "The calibration text has 5 sequences of 256 tokens, and 16 were asked for. The figures are over only 1,280 "
        "tokens, so their 95% intervals are wider."
    )
    assert advice == "Give a text of 4,096 tokens or more with --calibration FILE, or rerun with --sequence-length 80."
    assert where is None


@pytest.mark.parametrize(("sequences", "length"), [(15, 16), (1, 255), (2, 100)])
def test_no_very_short_sequences_are_proposed(sequences: int, length: int) -> None:
    assert only(warned_of_text(sequences, length))[1].endswith("tokens or more with --calibration FILE.")


@pytest.mark.parametrize(
    ("model", "text", "said"),
    [("/models/llama", "sample", True), ("org/name", "sample", True), ("sample", "sample", False),
     ("/models/llama", "own.txt", False)],
)  # fmt: skip
def test_the_bundled_text_is_warned_of_for_another_model_than_its_own(model: str, text: str, said: bool) -> None:
    reporter = warned_of_text(
        16, 256, model={"path": "/m", "source": model}, calibration={"path": "/c", "source": text}
    )
    assert [warning.code for warning in reporter.warnings] == ["sample-text"] * said
    if said:
        assert only(reporter) == (
            "The calibration text is the bundled sample: documentation of Python modules, not your traffic.",
            "Give a text of your own with --calibration FILE.",
            None,
        )


# Errors by blocks
@pytest.mark.parametrize(
    ("units", "count", "sequences", "message"),
    [("sequences", 8, 8, None),
     ("blocks", 8, 4, "The calibration text has 4 sequences, so errors are estimated from 8 blocks. The 95% intervals "
                      "may be too narrow."),
     ("blocks", 10, 1, "The calibration text has 1 sequence, so errors are estimated from 10 blocks. The 95% intervals "
                       "may be too narrow."),
     (None, None, 1, "The scored text is too short for 95% intervals, so no value has one.")],
)  # fmt: skip
def test_errors_that_are_not_by_sequence_are_warned_of(
    units: Any, count: int | None, sequences: int, message: str | None
) -> None:
    perplexity = Estimate(value=9.0, standard_error=None, units=units, unit_count=count)
    warnings = few_sequences(perplexity, sequences)
    assert [warning.message for warning in warnings] == ([message] if message else [])
    assert all(warning.advice == "Rerun with --sequences 8 or more." for warning in warnings)
    assert few_sequences(None, sequences) == ()


# Definitions that flag too much
@pytest.mark.parametrize("definition", DEFINITIONS)
def test_a_definition_that_flags_too_much_is_answered_with_settings_that_exist(definition: str) -> None:
    content = json.loads((Path(__file__).parents[1] / "reporting/stored/schema_1_0/report.json").read_text())
    found = content["outliers"]
    found.setdefault("llm_int8_relative", dict(found["llm_int8"]))
    found[definition]["discriminates"] = False
    reporter = narrated()
    warn_not_discriminating(Outliers.model_validate(found), 64, reporter)
    _, advice, where = only(reporter)
    assert where == definition
    settings = [word.removesuffix("=VALUE") for word in advice.rstrip(".").split() if "=VALUE" in word]
    assert settings
    for setting in settings:
        group, name = setting.split(".")
        assert name in type(getattr(Analysis(), group)).model_fields


# Values that fp16 cannot hold
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("value", [65519.0, 65520.0, 80000.0, -80000.0])
def test_bitsandbytes_makes_a_token_nan_or_infinite_from_65520_on(value: float, dtype: torch.dtype) -> None:
    """Only that token, and only where the module casts all of its input to fp16."""
    torch.manual_seed(0)
    linear = torch.nn.Linear(64, 32, bias=False).to(dtype)
    x = torch.randn(1, 5, 64)
    x[0, 2, 7] = value
    x = x.to(dtype)
    infinite = bool(x.abs().max() >= 65520)  # bfloat16 has no 65519: it holds 65536
    schemes = ["int8", *IN_FP16, "nf4:compute_dtype=bfloat16", "nf4:compute_dtype=float32"]
    for scheme in schemes_for(Analysis.model_validate({"schemes": schemes})):
        with torch.no_grad():
            y = quantize_projection(linear, scheme).module.eval()(x)
        finite = torch.isfinite(y).all(dim=-1)[0].tolist()
        harmed = infinite and scheme.name in ("zero", "half")
        assert finite == [True, True, not harmed, True, True], scheme.name
        if scheme.name == "zero" and harmed:
            assert torch.isnan(y[0, 2]).all()


@pytest.fixture(scope="module")
def overflowing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama whose layer 1 has values over 65504 at mlp.up's output and mlp.down's input."""
    path = save_checkpoint(tmp_path_factory.mktemp("overflow") / "model", CONFIGS["llama"](), torch.float32)
    weights = load_file(path / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3] *= 1e6
    weights["model.layers.1.mlp.down_proj.weight"][:, 3] *= 1e-6
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    return path


def peaks(path: Path, token_ids: torch.Tensor) -> dict[tuple[int, str, str], float]:
    """Return the largest magnitude at every port of every projection, from the whole model's own run."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    found: dict[tuple[int, str, str], float] = {}

    def watch(layer: int, component: str, module: torch.nn.Module) -> None:
        def hook(_: Any, x: tuple[torch.Tensor, ...], y: torch.Tensor) -> None:
            for port, tensor in (("input", x[0]), ("output", y)):
                found[layer, component, port] = float(tensor.abs().max())

        module.register_forward_hook(hook)

    for number, layer in enumerate(model.model.layers):
        for kind, part in (("attn", layer.self_attn), ("mlp", layer.mlp)):
            for name, module in part.named_children():
                if name.endswith("_proj"):
                    watch(number, f"{kind}.{name.removesuffix('_proj')}", module)
    with torch.no_grad():
        model(token_ids)
    return found


def test_values_over_fp16_are_warned_of_for_the_schemes_and_modules_that_they_harm(
    overflowing: Path, calibration_text: Path, tmp_path: Path
) -> None:
    kept = "kept=nf4:compute_dtype=float16,keep=mlp.up,keep=layers.1.mlp.down"
    schemes = [*IN_FP16, kept, "int8", "nf4:compute_dtype=bfloat16", "w8a8-token"]
    request = request_for(overflowing, calibration_text, schemes=schemes)
    measure(request, tmp_path / "out", narrated())
    report = Report.model_validate_json((tmp_path / "out/report.json").read_bytes())
    warnings = {str(w.where).split(":")[0]: w for w in report.warnings if w.code == "over-fp16"}
    assert list(warnings) == ["zero", "half"]
    rows = np.unique(sequences_of(tmp_path / "out"), axis=0)
    over = {place: peak for place, peak in peaks(overflowing, torch.from_numpy(rows)).items() if peak >= 65520}
    assert set(over) == {(1, "mlp.up", "output"), (1, "mlp.down", "input")}
    down, up = over[1, "mlp.down", "input"], over[1, "mlp.up", "output"]
    assert warnings["zero"].message == (
        "zero casts inputs to fp16, in which values from 65520 on are infinite. 1 site has such values, up to "
        f"{down:,.0f} at layer 1 mlp.down input. There the outputs of the token are NaN."
    )
    assert warnings["zero"].where == "zero: layer 1 mlp.down input"
    assert warnings["zero"].advice == (
        "Rerun with a threshold over 0 (threshold=6), or keep these modules in 16 bits with keep=layers.1.mlp.down."
    )
    worst = ("mlp.up output", up) if up > down else ("mlp.down input", down)
    assert f"2 sites have such values, up to {worst[1]:,.0f} at layer 1 {worst[0]}." in warnings["half"].message
    places = set(str(warnings["half"].where).removeprefix("half: ").split(", "))
    assert places == {f"layer {layer} {component} {port}" for layer, component, port in over}
    assert warnings["half"].advice.startswith("Rerun with compute_dtype=bfloat16, or keep these modules in 16 bits")
    assert {"keep=layers.1.mlp.up", "keep=layers.1.mlp.down"} == set(
        warnings["half"].advice.removesuffix(".").rpartition(" with ")[2].split(",")
    )
    assert all(w.advice and w.advice.endswith(".") and w.message.endswith(".") for w in report.warnings)


def sequences_of(out: Path) -> np.ndarray:
    """Return the token ids that were measured, [N, S]."""
    rows = [row for row in pq.read_table(out / "tables/tokens.parquet").to_pylist() if row["scheme"] == "zero"]
    width = 1 + max(row["position"] for row in rows)
    return np.array([row["token_id"] for row in rows]).reshape(-1, width)
