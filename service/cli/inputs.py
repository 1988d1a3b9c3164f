"""What the user gives to `headroom analyze`, checked before anything is started."""

import base64
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from service.cli.connection import WorkerOptions
from service.cli.thresholds import thresholds
from service.contracts.files import PARQUET_MAGIC, format_of
from service.contracts.request import SAMPLE
from service.errors import InvalidRequest


@dataclass(frozen=True)
class Wanted:
    """What to analyze, and where the report goes. None leaves a setting to the service."""

    model: str
    out: Path
    schemes: tuple[str, ...]
    calibration: Path | None
    sequences: int | None
    sequence_length: int | None
    seed: int | None
    int8_threshold: float | None = None
    score: str | None = None
    bos: str | None = None
    text_field: str | None = None
    labelled: Path | None = None
    label_threshold: float | None = None
    label_depth: int | None = None
    label_dimensions: int | None = None
    thresholds: tuple[str, ...] = ()
    """NAME=VALUE each."""
    batch_sequences: int | None = None
    worker: WorkerOptions = field(default_factory=WorkerOptions)
    """For the worker, where it is the command's own."""


_SETTINGS = (
    "sequences",
    "sequence_length",
    "batch_sequences",
    "seed",
    "score",
    "bos",
    "text_field",
    "label_threshold",
    "label_depth",
    "label_dimensions",
    "int8_threshold",
)
"""What goes into the request as it was typed."""
_NUMBERS = {"int8_threshold": "a finite number, 0 or more", "label_threshold": "a finite number"}
"""Settings whose option also takes nan and inf, which JSON cannot carry, and what is allowed."""


def check(wanted: Wanted) -> None:
    """Raise InvalidRequest for what no service could be told: this is known before one is started."""
    check_out(wanted.out)
    if not wanted.model:
        raise InvalidRequest("MODEL", wanted.model, f"allowed: a directory, a hub id org/name, or {SAMPLE!r}")
    for name, allowed in _NUMBERS.items():
        value = getattr(wanted, name)
        if value is not None and not math.isfinite(value):
            raise InvalidRequest(f"--{name.replace('_', '-')}", value, f"allowed: {allowed}")


def check_out(out: Path) -> None:
    """Raise InvalidRequest unless `out` does not exist or is empty, and can be made."""
    if os.path.lexists(out) and not (out.is_dir() and not any(out.iterdir())):
        raise InvalidRequest("--out", str(out), "it must be a directory that does not exist yet, or an empty one")
    above = out.absolute().parent
    while not above.exists():
        above = above.parent
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise InvalidRequest("--out", str(out), f"{str(above)!r} must be a directory that can be written to")


def submission(wanted: Wanted, *, on_this_machine: bool, largest_file: int) -> dict[str, Any]:
    """Return the body of `POST /v1/jobs`. Raises InvalidRequest for a file or a threshold that cannot be sent."""
    body: dict[str, Any] = {"model": model_name(wanted.model, on_this_machine=on_this_machine)}
    if wanted.schemes:
        body["schemes"] = list(wanted.schemes)
    if wanted.calibration is not None:
        body["calibration"] = upload("--calibration", wanted.calibration, largest_file)
    if wanted.labelled is not None:
        body["labelled"] = {
            "name": wanted.labelled.name,
            "text": read_text("--labelled", wanted.labelled, largest_file),
        }
    body |= thresholds(wanted.thresholds)
    for name in _SETTINGS:
        if (value := getattr(wanted, name)) is not None:
            body[name] = value
    return body


def model_name(model: str, *, on_this_machine: bool) -> str:
    """Return the model as the service must be told it: a local directory becomes an absolute path."""
    if model == SAMPLE:
        return model
    path = Path(model).expanduser()
    if not path.exists() and not model.startswith(("/", ".", "~")):
        return model
    if on_this_machine and not path.is_dir():
        allowed = (
            f"it must be the directory of a checkpoint, a hub id org/name, or {SAMPLE!r}; there is no such directory"
        )
        raise InvalidRequest("MODEL", model, allowed)
    return str(path.absolute())


def upload(option: str, path: Path, largest: int) -> dict[str, str]:
    """Return the file that `option` names as an upload: text as it is, Parquet in base64. Raises InvalidRequest."""
    if format_of(path.name) != "parquet":
        return {"name": path.name, "text": read_text(option, path, largest)}
    content = _read(option, path, largest // 4 * 3, "a Parquet file")  # base64 makes four bytes of three
    if not content.startswith(PARQUET_MAGIC):
        raise InvalidRequest(option, str(path), "its name stands for Parquet; it must begin with the bytes PAR1")
    return {"name": path.name, "content_base64": base64.b64encode(content).decode()}


def read_text(option: str, path: Path, largest: int) -> str:
    """Return the text in the file that `option` names. Raises InvalidRequest.

    It must be UTF-8 and hold something, and have at most `largest` bytes.
    """
    content = _read(option, path, largest, "a file of UTF-8 text")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        allowed = f"it must be a file of UTF-8 text, of 1 to {largest} bytes; byte {error.start} is not UTF-8"
        raise InvalidRequest(option, str(path), allowed) from error


def _read(option: str, path: Path, largest: int, what: str) -> bytes:
    allowed = f"it must be {what}, of 1 to {largest} bytes"
    try:
        with path.open("rb") as file:
            content = file.read(largest + 1)
    except OSError as error:
        raise InvalidRequest(option, str(path), f"{allowed}; {error.strerror}") from error
    if not content.strip():
        raise InvalidRequest(option, str(path), f"{allowed}; it is empty")
    if len(content) > largest:
        raise InvalidRequest(option, str(path), f"{allowed}; it has more")
    return content
