"""Models that ask for more memory or time than there is: each fails by name, before anything is allocated for it.

All are measured one after another by one process, which loads the libraries once.
"""

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
from safetensors.torch import load_file, save_file

from service.contracts.progress import Failed
from workers.measurement import __main__ as program
from workers.measurement.errors import BadModel
from workers.measurement.models.checkpoint import open_checkpoint
from workers.measurement.models.config import check_model_type
from workers.samples import CALIBRATION, MODEL

GIB = 1 << 30
MOST_RESIDENT = 2 * GIB
"""The libraries take 0.5 GiB; what was refused late took 6.8 GiB and more."""


def edit(file: Path, **changes: Any) -> None:
    """Change keys of a JSON file."""
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def config(**changes: object) -> Callable[[Path], None]:
    return lambda model: edit(model / "config.json", **changes)


def code_in_the_tokenizer(model: Path) -> None:
    edit(model / "tokenizer_config.json", deep=[{"auto_map": {"AutoTokenizer": ["code.Tokenizer", None]}}])


def more_tensors(model: Path) -> None:
    """Give the weights 2,000 more names, so that as many layers seem possible."""
    weights = load_file(model / "model.safetensors")
    one = next(iter(weights.values())).flatten()[:1]
    save_file(weights | {f"x{i}": one.clone() for i in range(2_000)}, model / "model.safetensors", {"format": "pt"})
    edit(model / "config.json", num_hidden_layers=1_000)


MODELS: dict[str, tuple[Callable[[Path], None], str]] = {
    "wide heads": (config(head_dim=2**30), "has the shape"),
    "a large vocabulary": (config(vocab_size=2_000_000_000), "has the shape"),
    "another width": (config(hidden_size=2**20), "config.json"),
    "a wide mlp": (config(intermediate_size=2**40), "has the shape"),
    "many heads": (config(num_attention_heads=2**30, num_key_value_heads=2**30), "config.json"),
    "a size beyond 64 bits": (config(vocab_size=2**70), "config.json"),
    "more layers than the weights can fill": (more_tensors, "config.json"),
    "code in a nested object": (
        config(extra={"list": [{"auto_map": {"AutoConfig": "code.Config"}}]}),
        "config.json has extra.list.0.auto_map",
    ),
    "trust asked for": (config(trust_remote_code=True), "config.json has trust_remote_code"),
    "attention from the hub": (
        config(attn_implementation="org/attention"),
        "config.json has attn_implementation",
    ),
    "code in the tokenizer": (code_in_the_tokenizer, "tokenizer_config.json has deep.0.auto_map"),
}


def replacing(model: Path) -> None:
    """Make every character a thousand, three times over."""
    rules = [{"type": "Replace", "pattern": {"Regex": "."}, "content": "ab" * 500} for _ in range(3)]
    edit(model / "tokenizer.json", normalizer={"type": "Sequence", "normalizers": rules})


def backtracking(model: Path) -> None:
    """Split by a pattern that takes time exponential in the text."""
    split = {"type": "Split", "pattern": {"Regex": "(a|a|aa)+$"}, "behavior": "Isolated", "invert": False}
    edit(model / "tokenizer.json", pre_tokenizer=split)


TOKENIZERS: dict[str, tuple[Callable[[Path], None], str]] = {
    "nested replacements": (replacing, "takes more than 2.0 GiB of memory, or crashes (SIGABRT)"),
    "a backtracking pattern": (backtracking, "has a tokenizer that fails: Onig: Regex search error: retry-limit"),
}
CASES = MODELS | TOKENIZERS


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What a measurement of every hostile model said and took."""
    directories = [tmp_path_factory.mktemp("hostile") for _ in CASES]
    for directory, (spoil, _) in zip(directories, CASES.values(), strict=True):
        spoil(Path(shutil.copytree(MODEL, directory / "model")))
        (directory / "text.txt").write_text("a" * 30 + "b " + CALIBRATION.read_text()[:20_000])
    program = Path(__file__).with_name("hostile_runs.py")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    ran = subprocess.run([sys.executable, program, *directories], env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return dict(zip(CASES, map(json.loads, ran.stdout.splitlines()), strict=True))


@pytest.mark.parametrize("name", CASES)
def test_a_hostile_model_is_refused_by_name_with_little_memory(outcomes: dict[str, dict[str, Any]], name: str) -> None:
    outcome = outcomes[name]
    peaks = f"peak {outcome['peak'] / GIB:.2f} GiB, of a tokenizer {outcome['child_peak'] / GIB:.2f} GiB at most"
    print(f"{name}: {outcome['seconds']:.2f} s, {peaks}: {outcome['message']}")
    assert outcome["code"] == "bad-model"
    assert CASES[name][1] in outcome["message"]
    assert outcome["peak"] < MOST_RESIDENT
    assert outcome["child_peak"] < 2 * MOST_RESIDENT
    assert [Path(path).name for path in outcome["left"]] == ["model", "text.txt"]


def test_only_model_types_that_were_shown_to_run_are_measured_where_that_is_set(tmp_path: Path) -> None:
    model = Path(shutil.copytree(MODEL, tmp_path / "model"))
    check_model_type(open_checkpoint(model))
    edit(model / "config.json", model_type="opt_of_nobody")
    with pytest.raises(BadModel, match=r"model_type is 'opt_of_nobody'; allowed on this worker: bamba, .*, llama, "):
        check_model_type(open_checkpoint(model))


def test_what_a_library_raises_beside_exceptions_ends_as_internal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A panic of a Rust library is a BaseException."""

    class PanicException(BaseException):
        pass

    def panic(*_: object) -> None:
        raise PanicException("called `Option::unwrap()` on a `None` value")

    said = io.StringIO()
    monkeypatch.setattr(program, "_private_stdout", lambda: said)
    monkeypatch.setattr(program, "quiet_libraries", lambda: None)
    monkeypatch.setattr(program, "measure", panic)
    texts = {"model": {"path": str(MODEL)}, "calibration": {"path": str(CALIBRATION)}}
    (tmp_path / "request.json").write_text(json.dumps(texts))
    assert program.main([str(tmp_path / "request.json"), str(tmp_path / "out")]) == 1
    message = "PanicException: called `Option::unwrap()` on a `None` value"
    failed = Failed.model_validate_json(said.getvalue().splitlines()[-1])
    assert (failed.code, failed.message, failed.bad_input) == ("internal", message, False)
