"""Opens a checkpoint directory, and checks it before anything of it is loaded.

What could run code (pickles, a config that names its own Python files) is refused here, and so is what cannot be
whole: every safetensors file is opened, which reads its header and compares it with the file's size.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from workers.measurement.errors import BadModel, shown
from workers.measurement.models.permitted import keys_that_load_code, keys_that_name_weights

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_DISTRIBUTED = re.compile(r"shard-[0-9]+-model-[0-9]+-of-[0-9]+\.safetensors")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_SIZES = (
    *("vocab_size", "hidden_size", "head_dim", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
    *("n_embd", "n_layer", "n_head"),
)
"""Fields of a config that some architecture divides by, or makes tensors of; none of them may be 0."""
_SETTINGS = ("generation_config.json", "tokenizer_config.json", "special_tokens_map.json")
"""Files beside config.json that transformers reads for settings."""
_CHUNK = 1 << 22


@dataclass(frozen=True)
class Checkpoint:
    """A directory whose config and weight files have been looked at."""

    path: Path
    config: dict[str, Any]
    weight_files: tuple[Path, ...]
    """In order of their names."""
    shapes: Mapping[str, tuple[int, ...]]
    """Of every tensor in the weight files, by name."""


def open_checkpoint(path: Path) -> Checkpoint:
    """Look at a checkpoint directory without loading it.

    Raises:
        BadModel: the directory, its config or its weight files cannot be used; says which, and what is allowed.
    """
    if not path.is_dir():
        raise BadModel(f"model: {str(path)!r} is not a directory; give a directory with config.json and *.safetensors")
    config = _read_object(path / "config.json", "a model directory needs one")
    _check_code(path / "config.json", config)
    for name in _SETTINGS:
        if (path / name).is_file():
            _check_code(path / name, _read_object(path / name, "one JSON object is needed"))
    _check_fields(path / "config.json", config)
    files = _weight_files(path)
    shapes = {name: shape for file in files for name, shape in _shapes(file).items()}
    return Checkpoint(path, config, files, shapes)


def fingerprint(files: Iterable[Path]) -> str:
    """Return `sha256:...` over the files' names and contents.

    The hash is over, for each file in order: its name in UTF-8, a zero byte, its size in bytes as decimal digits,
    a zero byte, its content.
    """
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name}\0{file.stat().st_size}\0".encode())
        with file.open("rb") as stream:
            while chunk := stream.read(_CHUNK):
                digest.update(chunk)
    return f"sha256:{digest.hexdigest()}"


def _check_code(file: Path, config: dict[str, Any]) -> None:
    for key in keys_that_load_code(config):
        raise BadModel(
            f"model: {file} has {key[-80:]}, so the model needs Python code of its own; "
            "custom code is never run; give a model whose architecture is part of transformers"
        )


def _check_fields(file: Path, config: dict[str, Any]) -> None:
    """Refuse what would load other weights than those looked at, or fail with an error that names no field."""
    for key in keys_that_name_weights(config):
        allowed = f"weights are read from {_SINGLE}, or from {_INDEX} and the files that it names"
        raise BadModel(f"model: {file} has {key[-80:]}, which is not allowed; {allowed}")
    named = config.get("architectures")
    if named is not None and not (isinstance(named, list) and _are_names(named)):
        raise BadModel(f"model: {file}: architectures is {shown(named)}; a list of names is needed")
    nested = config.get("text_config")
    for prefix, fields in (("", config), ("text_config.", nested if isinstance(nested, dict) else {})):
        for name in _SIZES:
            value = fields.get(name)
            if isinstance(value, (int, float)) and value < 1:
                raise BadModel(f"model: {file}: {prefix}{name} is {value}; allowed: 1 or more")


def _weight_files(path: Path) -> tuple[Path, ...]:
    """Return the files that transformers loads: a single one is taken before those that an index names."""
    if shards := sorted(file.name for file in path.iterdir() if _DISTRIBUTED.fullmatch(file.name)):
        raise BadModel(
            f"model: {path} holds {shards[0]!r}, a part of a distributed checkpoint, which transformers would load in "
            f"place of {_SINGLE}; remove it, or save the model again with save_pretrained"
        )
    if (path / _SINGLE).is_file():
        return (path / _SINGLE,)
    if (path / _INDEX).is_file():
        return _indexed_files(path, path / _INDEX)
    pickles = sorted(file.name for pattern in _PICKLES for file in path.glob(pattern))
    if pickles:
        raise BadModel(
            f"model: {path} has its weights only as pickle files ({', '.join(pickles[:3])}); loading a pickle can run "
            "any code, so only safetensors are allowed; save the model again with save_pretrained"
        )
    raise BadModel(f"model: {path} has no weights; it needs {_SINGLE}, or {_INDEX} and the files that it names")


def _indexed_files(path: Path, file: Path) -> tuple[Path, ...]:
    """Return the files in the directory `path` that an index names, in the order of their names."""
    index = _read_object(file, "one JSON object is needed")
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not _are_names(weight_map.values()):
        raise BadModel(f"model: {file} has no weight_map from tensor names to file names")
    if not weight_map:
        raise BadModel(f"model: {file}: weight_map is empty; it must name the file of every tensor")
    if not isinstance(index.get("metadata"), dict):
        metadata = shown(index["metadata"]) if "metadata" in index else "missing"
        raise BadModel(f"model: {file}: metadata is {metadata}; an object is needed, which may be empty")
    names = sorted(set(weight_map.values()))
    for name in names:
        if Path(name).name != name or not (path / name).is_file():
            raise BadModel(f"model: {file} names the weight file {name!r}, which is not in {path}")
    return tuple(path / name for name in names)


def _are_names(values: Iterable[object]) -> bool:
    return all(isinstance(value, str) for value in values)


def _read_object(file: Path, why: str) -> dict[str, Any]:
    if file.exists() and not file.is_file():
        raise BadModel(f"model: {file} is not a file; {why}")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadModel(f"model: there is no {file}; {why}") from None
    except (OSError, ValueError) as error:
        raise BadModel(f"model: {file} cannot be read as JSON: {error}") from error
    except RecursionError as error:
        raise BadModel(f"model: {file} cannot be read as JSON: it is nested too deeply") from error
    if not isinstance(content, dict):
        raise BadModel(f"model: {file} holds a JSON {type(content).__name__}; an object is needed")
    return content


def _shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a file's tensors by their names, from its header."""
    try:
        with safe_open(file, framework="pt") as weights:
            shapes = {name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise BadModel(f"model: {file} is not a complete safetensors file: {error}") from error
    if not shapes:
        raise BadModel(f"model: {file} holds no tensors")
    return shapes
