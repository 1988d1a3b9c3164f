"""Whatever a measurement is given, it says what is wrong, by name, and leaves nothing behind."""

import errno
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import CONFIGS, edit_config, request_for, save_checkpoint, words
from transformers import AutoModelForCausalLM, BertConfig, BertForMaskedLM, T5Config, T5ForConditionalGeneration

from workers.measurement.errors import BadCalibration, BadModel, BadRequest, MeasurementError, first_line
from workers.measurement.models.checkpoint import open_checkpoint
from workers.measurement.program import measure
from workers.measurement.runtime.progress import ProgressReporter
from workers.measurement.runtime.table_writer import TableWriter


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_checkpoint(tmp_path / "model", CONFIGS["llama"]())


def refused(kind: type[MeasurementError], tmp_path: Path, model: Path, text: Path, **settings: Any) -> str:
    """Measure, expect a refusal of this kind that leaves nothing, and return its message."""
    out = tmp_path / "out"
    before = sorted(tmp_path.iterdir())
    with pytest.raises(kind) as caught:
        measure(request_for(model, text, **settings), out, ProgressReporter(out=io.StringIO()))
    assert sorted(tmp_path.iterdir()) == before
    assert caught.value.bad_input
    return str(caught.value)


def truncate(file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])


def without_weights(model: Path) -> None:
    (model / "model.safetensors").unlink()


def pickles_only(model: Path) -> None:
    torch.save(load_file(model / "model.safetensors"), model / "pytorch_model.bin")
    (model / "model.safetensors").unlink()


def nan_in_a_layer(model: Path, name: str = "model.layers.2.mlp.up_proj.weight") -> None:
    weights = load_file(model / "model.safetensors")
    weights[name][3, 4] = float("nan")
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})


def stored_as(model: Path, dtype: torch.dtype) -> None:
    weights = load_file(model / "model.safetensors")
    weights["model.layers.2.mlp.up_proj.weight"] = weights["model.layers.2.mlp.up_proj.weight"].to(dtype)
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})


def pipe_for_a_config(model: Path) -> None:
    (model / "config.json").unlink()
    os.mkfifo(model / "config.json")


def nested(model: Path, name: str) -> None:
    """Make a file an object in an object, and so on, 10^6 deep."""
    (model / name).write_text('{"a":' * 10**6 + "1" + "}" * 10**6)


def nested_under_a_key(model: Path) -> None:
    """Nest so deep that the config can be read, and not be copied."""
    file = model / "config.json"
    file.write_text(f'{file.read_text().rstrip()[:-1]}, "extra": {"[" * 900 + "]" * 900}}}')


def indexed(model: Path, **changes: object) -> None:
    """Give the weights an index with keys changed; None leaves one out."""
    (model / "model.safetensors").rename(model / "weights.safetensors")
    names = load_file(model / "weights.safetensors")
    content = {"metadata": {}, "weight_map": dict.fromkeys(names, "weights.safetensors"), **changes}
    kept = {key: value for key, value in content.items() if value is not None}
    (model / "model.safetensors.index.json").write_text(json.dumps(kept))


def nan_in_the_embedding(model: Path) -> None:
    nan_in_a_layer(model, "model.embed_tokens.weight")


def drop_a_tensor(model: Path) -> None:
    weights = load_file(model / "model.safetensors")
    del weights["model.layers.1.self_attn.k_proj.weight"]
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})


DAMAGE: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "no config": (lambda m: (m / "config.json").unlink(), ("config.json",)),
    "config is no JSON": (lambda m: (m / "config.json").write_text("{"), ("config.json", "JSON")),
    "config is a list": (lambda m: (m / "config.json").write_text("[]"), ("config.json", "object")),
    "no weights": (without_weights, ("no weights", "model.safetensors")),
    "pickles only": (pickles_only, ("pytorch_model.bin", "pickle", "run any code", "safetensors")),
    "truncated weights": (
        lambda m: truncate(m / "model.safetensors"),
        ("model.safetensors", "not a complete safetensors file"),
    ),
    "empty weights": (lambda m: (m / "model.safetensors").write_bytes(b""), ("model.safetensors", "not a complete")),
    "custom code": (
        lambda m: edit_config(m, auto_map={"AutoModelForCausalLM": "modeling.Model"}),
        ("auto_map", "custom code is never run"),
    ),
    "sizes disagree in the layers": (
        lambda m: edit_config(m, intermediate_size=256),
        ("model.layers.0.mlp.gate_proj.weight", "[192, 128]", "[256, 128]"),
    ),
    "sizes disagree in the embedding": (lambda m: edit_config(m, vocab_size=999), ("[320, 128]", "[999, 128]")),
    "weights elsewhere": (
        lambda m: edit_config(m, transformers_weights="../other/model.safetensors"),
        ("config.json has transformers_weights, which is not allowed; weights are read from model.safetensors",),
    ),
    "weights elsewhere, within": (
        lambda m: edit_config(m, text_config={"transformers_weights": "other.safetensors.index.json"}),
        ("config.json has text_config.transformers_weights",),
    ),
    "a part of a distributed checkpoint": (
        lambda m: shutil.copy(m / "model.safetensors", m / "shard-00001-model-00001-of-00001.safetensors"),
        ("'shard-00001-model-00001-of-00001.safetensors', a part of a distributed checkpoint",),
    ),
    "a type that is not measured": (
        lambda m: edit_config(m, dtype="float64"),
        ("config.json: dtype 'float64' is not allowed; allowed: bfloat16, float16, float32",),
    ),
    "more layers than weights": (lambda m: edit_config(m, num_hidden_layers=6), ("model.layers.4",)),
    "more layers than tensors": (
        lambda m: edit_config(m, num_hidden_layers=10**9),
        ("1000000000 layers", "39 tensors"),
    ),
    "weights are integers": (
        lambda m: stored_as(m, torch.int8),
        ("model.layers.2.mlp.up_proj.weight is stored as I8; allowed are BF16, F16, F32",),
    ),
    "weights are float64": (lambda m: stored_as(m, torch.float64), ("stored as F64; allowed are BF16, F16, F32",)),
    "config is a pipe": (pipe_for_a_config, ("config.json is not a file",)),
    "a tensor is missing": (drop_a_tensor, ("model.layers.1.self_attn.k_proj.weight", "the weight files do not have")),
    "unknown architecture": (lambda m: edit_config(m, model_type="nosuch", architectures=["NoSuch"]), ("nosuch",)),
    "another head": (
        lambda m: edit_config(m, architectures=["LlamaForSequenceClassification"]),
        ("LlamaForSequenceClassification", "not a causal decoder", "LlamaForCausalLM"),
    ),
    "quantized already": (
        lambda m: edit_config(m, quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True}),
        ("already quantized",),
    ),
    "nested config": (lambda m: nested(m, "config.json"), ("config.json", "nested too deeply")),
    "deeply nested key": (nested_under_a_key, ("config.json", "nested too deeply")),
    "nested index": (
        lambda m: (indexed(m), nested(m, "model.safetensors.index.json")),
        ("model.safetensors.index.json", "nested too deeply"),
    ),
    "nested tokenizer": (lambda m: nested(m, "tokenizer.json"), ("tokenizer", "recursion")),
    "index without metadata": (
        lambda m: indexed(m, metadata=None),
        ("model.safetensors.index.json: metadata is missing; an object is needed",),
    ),
    "metadata is a list": (lambda m: indexed(m, metadata=[]), ("index.json: metadata is []; an object is needed",)),
    "index without weight_map": (lambda m: indexed(m, weight_map=None), ("index.json has no weight_map",)),
    "empty weight_map": (lambda m: indexed(m, weight_map={}), ("index.json: weight_map is empty",)),
    "a size is no number": (
        lambda m: edit_config(m, hidden_size="abc"),
        ("config.json: Validation error for field 'hidden_size': TypeError: ", "expected int, got str", "'abc'"),
    ),
    "no heads": (
        lambda m: edit_config(m, num_attention_heads=0),
        ("config.json: num_attention_heads is 0; allowed: 1 or more",),
    ),
    "no key heads": (
        lambda m: edit_config(m, num_key_value_heads=0),
        ("config.json: num_key_value_heads is 0; allowed: 1 or more",),
    ),
    "no heads within": (
        lambda m: edit_config(m, text_config={"num_attention_heads": 0}),
        ("config.json: text_config.num_attention_heads is 0; allowed: 1 or more",),
    ),
    "unknown activation": (
        lambda m: edit_config(m, hidden_act="nosuch"),
        (
            "config.json: transformers cannot build this model",
            "hidden_act is 'nosuch', which transformers does not know",
        ),
    ),
    "unknown kind of positions": (
        lambda m: edit_config(m, rope_scaling={"type": "nosuch"}),
        ("config.json", "rope_scaling.type is 'nosuch'"),
    ),
    "architectures is no list": (
        lambda m: edit_config(m, architectures="Llama"),
        ("config.json: architectures is 'Llama'; a list of names is needed",),
    ),
    "architectures is no list of names": (
        lambda m: edit_config(m, architectures=[3]),
        ("config.json: architectures is [3]; a list of names is needed",),
    ),
    "impossible sizes": (lambda m: edit_config(m, hidden_size=-5), ("config.json",)),
    "NaN in a layer": (nan_in_a_layer, ("model.layers.2.mlp.up_proj.weight", "NaN")),
    "NaN in the embedding": (nan_in_the_embedding, ("embed_tokens", "NaN")),
    "no tokenizer": (lambda m: [f.unlink() for f in m.glob("tokenizer*")], ("tokenizer",)),
}


def test_a_single_file_is_read_rather_than_an_index_as_by_transformers(model: Path) -> None:
    indexed(model)
    altered = {name: tensor + 1 for name, tensor in load_file(model / "weights.safetensors").items()}
    save_file(altered, model / "model.safetensors", metadata={"format": "pt"})
    checkpoint = open_checkpoint(model)
    assert [file.name for file in checkpoint.weight_files] == ["model.safetensors"]
    whole = AutoModelForCausalLM.from_pretrained(model, dtype="auto")
    assert torch.equal(whole.get_input_embeddings().weight, altered["model.embed_tokens.weight"])


@pytest.mark.parametrize("name", DAMAGE)
def test_a_model_that_cannot_be_measured(name: str, model: Path, calibration_text: Path, tmp_path: Path) -> None:
    damage, named = DAMAGE[name]
    damage(model)
    message = refused(BadModel, tmp_path, model, calibration_text)
    assert message.startswith("model: ")
    assert "\n" not in message
    for words_of_it in named:
        assert words_of_it in message


@pytest.mark.parametrize(
    "make",
    [
        lambda: T5ForConditionalGeneration(T5Config(vocab_size=64, d_model=16, d_ff=16, num_layers=1, num_heads=2)),
        lambda: BertForMaskedLM(
            BertConfig(vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
        ),
    ],
    ids=["encoder-decoder", "masked"],
)
def test_an_architecture_that_is_no_causal_decoder(
    make: Callable[[], Any], tmp_path: Path, calibration_text: Path
) -> None:
    made = make()
    made.save_pretrained(tmp_path / "model")
    message = refused(BadModel, tmp_path, tmp_path / "model", calibration_text)
    assert type(made).__name__ in message
    assert "causal decoder" in message


def test_a_directory_that_is_not_there(tmp_path: Path, calibration_text: Path) -> None:
    assert "is not a directory" in refused(BadModel, tmp_path, tmp_path / "nowhere", calibration_text)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"", "is empty"),
        (b" \n\t ", "is empty"),
        (b"caf\xe9 " * 500, "is not UTF-8: byte 0xe9 at offset 3"),
        (words(12, seed=2).encode(), "fewer than one sequence; at least 47 are needed for sequence_length=48"),
    ],
    ids=["empty", "blank", "latin-1", "short"],
)
def test_a_text_that_cannot_be_used(content: bytes, named: str, tmp_path: Path, checkpoints: dict[str, Path]) -> None:
    text = tmp_path / "calibration.txt"
    text.write_bytes(content)
    message = refused(BadCalibration, tmp_path, checkpoints["llama"], text)
    assert named in message
    assert str(text) in message


def test_weights_with_an_index_are_measured(tmp_path: Path, model: Path, calibration_text: Path) -> None:
    indexed(model)
    measure(request_for(model, calibration_text), tmp_path / "out", ProgressReporter(out=io.StringIO()))


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("\n first \n second"), "first"),
        (ValueError("announced:\n\n  what\nmore"), "announced: what"),
        (ValueError("announced:"), "announced:"),
        (KeyError("key"), "KeyError: 'key'"),
        (ZeroDivisionError(), "ZeroDivisionError"),
    ],
)
def test_a_librarys_error_in_one_line(error: Exception, line: str) -> None:
    assert first_line(error) == line


def test_a_text_that_is_not_there(tmp_path: Path, checkpoints: dict[str, Path]) -> None:
    assert "cannot be read" in refused(BadCalibration, tmp_path, checkpoints["llama"], tmp_path / "nowhere.txt")


def test_a_sequence_longer_than_the_model_takes(
    tmp_path: Path, checkpoints: dict[str, Path], calibration_text: Path
) -> None:
    message = refused(BadRequest, tmp_path, checkpoints["gpt2"], calibration_text, sequence_length=129)
    assert message == "sequence_length: 129 is not allowed; the model takes at most 128"


def test_a_device_that_is_not_there(tmp_path: Path, checkpoints: dict[str, Path], calibration_text: Path) -> None:
    assert "cuda:99" in refused(BadRequest, tmp_path, checkpoints["gpt2"], calibration_text, device="cuda:99")


def test_an_output_that_holds_something(tmp_path: Path, checkpoints: dict[str, Path], calibration_text: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep")
    assert "not an empty directory" in refused(BadRequest, tmp_path, checkpoints["gpt2"], calibration_text)
    assert (tmp_path / "out" / "mine.txt").read_text() == "keep"


def test_a_full_disk_leaves_nothing(
    tmp_path: Path, checkpoints: dict[str, Path], calibration_text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(TableWriter, "append_rows", full)
    with pytest.raises(OSError, match="No space left"):
        measure(
            request_for(checkpoints["gpt2"], calibration_text), tmp_path / "out", ProgressReporter(out=io.StringIO())
        )
    assert list(tmp_path.iterdir()) == []


def run(*arguments: str | Path) -> tuple[int, list[dict[str, Any]]]:
    """Run the program; returns its exit status and the lines of its standard output."""
    done = subprocess.run(
        [sys.executable, "-m", "workers.measurement", *map(str, arguments)], capture_output=True, text=True, check=False
    )
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]


def test_the_program_reports_a_bad_request(tmp_path: Path, checkpoints: dict[str, Path]) -> None:
    file = tmp_path / "request.json"
    content = {"model": {"path": str(checkpoints["gpt2"])}, "calibration": {"path": "x"}, "schemes": ["int3"]}
    file.write_text(json.dumps(content))
    status, lines = run(file, tmp_path / "out")
    assert status == 2
    assert [line["kind"] for line in lines] == ["failed"]
    assert (lines[0]["code"], lines[0]["bad_input"]) == ("bad-request", True)
    for named in ("schemes", "int3", "int8, nf4"):
        assert named in lines[0]["message"]
    assert not (tmp_path / "out").exists()


def test_the_program_says_what_it_does(tmp_path: Path, checkpoints: dict[str, Path], calibration_text: Path) -> None:
    file = tmp_path / "request.json"
    file.write_text(request_for(checkpoints["gpt_neox"], calibration_text, sequences=10**5).model_dump_json())
    status, lines = run(file, tmp_path / "out")
    assert status == 0
    assert lines[-1] == {"kind": "finished"}
    stages = [line["stage"] for line in lines if line["kind"] == "progress"]
    assert list(dict.fromkeys(stages)) == ["load", "calibrate", "sweep", "divergence", "write"]
    sweep = [line for line in lines if line.get("stage") == "sweep"]
    assert [(line["done"], line["total"]) for line in sweep] == [(0, 2), (1, 2), (2, 2), (2, 2)]
    elapsed = [line["elapsed_seconds"] for line in lines if line["kind"] == "progress"]
    assert elapsed == sorted(elapsed)
    warnings = [line["code"] for line in lines if line["kind"] == "warning"]
    assert set(warnings) == {"short-calibration", "reference-guesses"}
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [w["code"] for w in report["warnings"]] == warnings
    assert {n: line["batch_sequences"] for n, line in enumerate(lines) if "batch_sequences" in line} == {
        lines.index(sweep[0]): report["calibration"]["batch_sequences"]
    }
    assert report["timing"]["peak_memory_bytes"]["resident"] > 10**8
