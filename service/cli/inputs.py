"""Checks the arguments of `headroom analyze` and `headroom recommend`, and makes the job request from them."""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from service.cli.commands.analyze_options import AnalyzeOptions, RecommendOptions
from service.cli.uploads import upload
from service.contracts import refusals
from service.contracts.record import Frozen
from service.contracts.refusals import nearest
from service.contracts.request import SAMPLE, Analysis
from service.errors import InvalidRequest

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
    "retention_days",
)
"""What goes into the request as it was typed."""
HARM: Mapping[str, Mapping[str, Any]] = {
    "estimate": {"estimate": True},
    "layers": {"exact": "layers"},
    "modules": {"exact": "modules"},
    "dimensions": {"dimensions": True},
}
"""What each value of `--harm` sets."""
_IMPLIED: Mapping[str, Mapping[str, Any]] = {"recommend": {"enabled": True}}
"""Values of a group with which the others are checked."""
_MODELS = f"the directory of a checkpoint, a hub id org/name or org/name@revision, or {SAMPLE!r}"
_NUMBERS = {
    "int8_threshold": "a finite number, 0 or more",
    "label_threshold": "a finite number",
    "max_kl": "a finite number over 0",
}
"""Settings whose option also takes nan and inf, which JSON cannot carry, and what is allowed."""


def check(options: AnalyzeOptions) -> None:
    """Raise InvalidRequest for arguments that cannot be sent to any service."""
    check_out(options.out)
    check_values(options)


def check_values(options: AnalyzeOptions) -> None:
    """Raise InvalidRequest for an empty model, and for numbers that cannot be sent."""
    if isinstance(options, RecommendOptions) and options.report is not None:
        _check_report(options)
    elif not options.model:
        raise InvalidRequest("MODEL", options.model, _MODELS)
    for name, allowed in _NUMBERS.items():
        value = getattr(options, name, None)
        if value is not None and not math.isfinite(value):
            raise InvalidRequest(f"--{name.replace('_', '-')}", value, allowed)


def _check_report(options: RecommendOptions) -> None:
    """Raise InvalidRequest for an option beside --report that the report decides."""
    named = {"model": "MODEL"}
    decided = ("model", "scheme", "keep", "calibration", "labelled", *_SETTINGS)
    for name in decided:
        if (value := getattr(options, name)) not in (None, (), ""):
            option = named.get(name, f"--{name.replace('_', '-')}")
            allowed = "a report's model, texts and settings, with --report"
            raise InvalidRequest(option, value, allowed, problem="is given beside --report")


def check_out(out: Path) -> None:
    """Raise InvalidRequest unless `out` is new or empty, and can be created."""
    if os.path.lexists(out) and not (out.is_dir() and not any(out.iterdir())):
        raise InvalidRequest("--out", str(out), "a new or an empty directory", problem=_occupied(out))
    above = out.absolute().parent
    while not above.exists():
        above = above.parent
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise InvalidRequest(
            "--out", str(out), "a directory that you can write to", problem=f"cannot be created in {above}"
        )


def submission(options: AnalyzeOptions, *, on_this_machine: bool, largest_file: int) -> dict[str, Any]:
    """Return the body of `POST /v1/jobs`. Raises InvalidRequest for a file or a threshold that cannot be sent."""
    body: dict[str, Any] = {"model": model_name(options.model, on_this_machine=on_this_machine)}
    if options.scheme:
        body["schemes"] = list(options.scheme)
    if options.keep:
        body["keep"] = list(options.keep)
    if options.calibration is not None:
        body["calibration"] = upload("--calibration", options.calibration, largest_file)
    if options.labelled is not None:
        body["labelled"] = upload("--labelled", options.labelled, largest_file)
    body |= thresholds(options.thresholds or ())
    if options.harm:
        body["harm"] = body.get("harm", {}) | harm(options.harm)
    if isinstance(options, RecommendOptions):
        body["recommend"] = body.get("recommend", {}) | _recommend(options)
    elif body.get("recommend", {"enabled": True}).get("enabled") is not True:
        name = f"recommend.{next(iter(body['recommend']))}"
        raise InvalidRequest("--set", name, "settings of an analysis; those of mixes go with `headroom recommend`")
    for name in _SETTINGS:
        if (value := getattr(options, name)) is not None:
            body[name] = value
    return body


def for_report(options: RecommendOptions) -> dict[str, Any]:
    """Return the body of `POST /v1/reports/{job_id}/recommend`. Raises InvalidRequest."""
    body: dict[str, Any] = thresholds(options.thresholds or ())
    if others := sorted(body.keys() - {"harm", "recommend"}):
        raise InvalidRequest("--set", others[0], "harm.NAME and recommend.NAME with --report")
    if options.harm:
        body["harm"] = body.get("harm", {}) | harm(options.harm)
    return body | {"recommend": body.get("recommend", {}) | _recommend(options)}


def _recommend(options: RecommendOptions) -> dict[str, Any]:
    """Return the settings of a recommendation."""
    targets = {"max_bytes": options.max_bytes, "max_kl": options.max_kl}
    if None not in targets.values():
        message = "--max-bytes and --max-kl exclude each other; give one of them, or none"
        raise InvalidRequest("--max-bytes", options.max_bytes, "without --max-kl", message=message)
    chosen: dict[str, Any] = {"enabled": True} | {name: value for name, value in targets.items() if value is not None}
    return chosen | {"whole_groups": False} if options.split_groups else chosen


def model_name(model: str, *, on_this_machine: bool) -> str:
    """Return the model's name in the request: a local directory becomes an absolute path."""
    if model == SAMPLE:
        return model
    path = Path(model).expanduser()
    if not path.exists() and not model.startswith(("/", ".", "~")):
        if "/" not in model:
            raise InvalidRequest(
                "MODEL", model, _MODELS + _similar(path), problem="is neither a directory nor a hub id"
            )
        return model
    if on_this_machine and not path.is_dir():
        raise InvalidRequest("MODEL", model, _MODELS + _similar(path), problem="is not a directory")
    return str(path.absolute())


def _occupied(out: Path) -> str:
    return "is not empty" if out.is_dir() else "is not a directory"


def _similar(path: Path) -> str:
    """Return a sentence that names `sample` or the neighboring directory with the most similar name."""
    try:
        names = [SAMPLE, *(entry.name for entry in path.parent.iterdir() if entry.is_dir())]
    except OSError:
        names = [SAMPLE]
    return nearest(path.name, names)


def thresholds(texts: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return what the `NAME=VALUE` texts of `--set` give, as a job request has it: `{"llm_int8": {"magnitude": 5.0}}`.

    Raises InvalidRequest for an unknown or doubled name, and for a value that is not allowed.
    """
    fields = {name: field.default for name, field in Analysis.model_fields.items()}
    groups = {name: type(default) for name, default in fields.items() if isinstance(default, Frozen)}
    names = [f"{group}.{name}" for group, record in groups.items() for name in record.model_fields]
    chosen: dict[str, dict[str, str]] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or name not in names:
            allowed = (
                f"NAME=VALUE, where NAME is one of {', '.join(names)}{'' if name in names else nearest(name, names)}"
            )
            raise InvalidRequest("--set", text, allowed)
        group, _, field = name.partition(".")
        if field in chosen.setdefault(group, {}):
            raise InvalidRequest("--set", text, f"{name} once", problem="sets it twice")
        chosen[group][field] = value
    return {group: _read_group(groups[group], group, values) for group, values in chosen.items()}


def harm(names: Sequence[str]) -> dict[str, Any]:
    """Return what the values of `--harm` set. Raises InvalidRequest for an unknown one, and for layers with modules."""
    chosen: dict[str, Any] = {}
    for name in names:
        if name not in HARM:
            raise InvalidRequest("--harm", name, f"{', '.join(HARM)}{nearest(name, HARM)}")
        chosen |= HARM[name]
    if {"layers", "modules"} <= set(names):
        raise InvalidRequest("--harm", "layers and modules", "one of the two", problem="exclude each other")
    return chosen


def _read_group(record: type[Frozen], group: str, values: dict[str, str]) -> dict[str, Any]:
    try:
        return record.model_validate({**_IMPLIED.get(group, {}), **values}).model_dump(include=set(values))
    except ValidationError as error:
        first = error.errors()[0]
        # What several values make together has no place of its own.
        wrong = [str(part) for part in first["loc"]] or list(values)
        text = ", ".join(values[name] for name in wrong)
        names = " ".join(f"{group}.{name}" for name in wrong)
        message = refusals.sentence(f"--set {names}", repr(text), first)
        raise InvalidRequest(f"--set {names}", text, refusals.allowed(first), message=message) from error
