"""A checkpoint directory, looked at before anything of it is loaded.

What could run code (pickles, a config that names its own Python files) is refused here, and so is what cannot be
whole: every safetensors file is opened, which reads its header and holds it against the file's size.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from workers.measurement.errors import BadModel

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_CHUNK = 1 << 22


@dataclass(frozen=True)
class Checkpoint:
    """A directory whose config and weight files have been looked at."""

    path: Path
    config: dict[str, Any]
    weight_files: tuple[Path, ...]
    """In order of their names."""
    tensors: int
    """Tensors in all the weight files."""


def open_checkpoint(path: Path) -> Checkpoint:
    """Look at a checkpoint directory without loading it.

    Raises:
        BadModel: the directory, its config or its weight files cannot be used; says which, and what is allowed.
    """
    if not path.is_dir():
        raise BadModel(f"model: {str(path)!r} is no directory; give a directory with config.json and *.safetensors")
    config = _read_object(path / "config.json", "a model directory needs one")
    if "auto_map" in config:
        raise BadModel(
            f"model: {path / 'config.json'} has auto_map, so the model needs Python code of its own; "
            "custom code is never run, give a model of an architecture that transformers has"
        )
    files = _weight_files(path)
    return Checkpoint(path, config, files, tensors=sum(_count_tensors(file) for file in files))


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


def _weight_files(path: Path) -> tuple[Path, ...]:
    if (path / _INDEX).is_file():
        index = _read_object(path / _INDEX, "")
        weight_map = index.get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
            raise BadModel(f"model: {path / _INDEX} has no weight_map from tensor names to file names")
        names = sorted(set(weight_map.values()))
        for name in names:
            if Path(name).name != name or not (path / name).is_file():
                raise BadModel(f"model: {path / _INDEX} names the weight file {name!r}, which is not in {path}")
        return tuple(path / name for name in names)
    if (path / _SINGLE).is_file():
        return (path / _SINGLE,)
    pickles = sorted(file.name for pattern in _PICKLES for file in path.glob(pattern))
    if pickles:
        raise BadModel(
            f"model: {path} has its weights as pickles only ({', '.join(pickles[:3])}); loading a pickle can run any "
            "code, so only safetensors are allowed; save the model anew with save_pretrained"
        )
    raise BadModel(f"model: {path} has no weights; {_SINGLE}, or {_INDEX} and the files that it names, is needed")


def _read_object(file: Path, why: str) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadModel(f"model: there is no {file}; {why}") from None
    except (OSError, ValueError) as error:
        raise BadModel(f"model: {file} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise BadModel(f"model: {file} holds a JSON {type(content).__name__}; an object is needed")
    return content


def _count_tensors(file: Path) -> int:
    try:
        with safe_open(file, framework="pt") as weights:
            count = len(list(weights.keys()))
    except (SafetensorError, OSError, ValueError) as error:
        raise BadModel(f"model: {file} is no whole safetensors file: {error}") from error
    if count == 0:
        raise BadModel(f"model: {file} holds no tensors")
    return count
