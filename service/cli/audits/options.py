"""The options of `headroom audits create` and `edit`, and the keys of an audit that they set."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.cli.audits.audit_file import FILES
from service.cli.audits.yaml_lines import read
from service.cli.inputs import model_name
from service.cli.uploads import upload
from service.errors import InvalidRequest

_AS_TYPED = ("name", "sequences", "sequence_length", "seed", "schedule", "timezone", "baseline", "reruns")


@dataclass(frozen=True)
class Keys:
    """What was typed; None and nothing leave a key as it is."""

    name: str | None = None
    model: str | None = None
    newest_in: Path | None = None
    schemes: Sequence[str] = ()
    calibration: Path | None = None
    labelled: Path | None = None
    sequences: int | None = None
    sequence_length: int | None = None
    seed: int | None = None
    schedule: str | None = None
    timezone: str | None = None
    baseline: str | None = None
    limits: Sequence[str] = ()
    reruns: int | None = None
    webhooks: Sequence[str] = ()
    emails: Sequence[str] = ()
    others: Sequence[str] = ()
    """KEY=VALUE each."""


def body(keys: Keys, *, on_this_machine: bool, largest_file: int) -> dict[str, Any]:
    """Return the keys of an audit that were typed. Raises InvalidRequest for what no service takes."""
    sent: dict[str, Any] = {key: value for key in _AS_TYPED if (value := getattr(keys, key)) is not None}
    sent |= _model(keys, on_this_machine=on_this_machine)
    for key in ("schemes", "limits"):
        if values := getattr(keys, key):
            sent[key] = list(values)
    for key in FILES:
        if (path := getattr(keys, key)) is not None:
            sent[key] = upload(f"--{key}", path, largest_file)
    notify = [{"webhook": url} for url in keys.webhooks] + [{"email": address} for address in keys.emails]
    if notify:
        sent["notify"] = notify
    for text in keys.others:
        _set(sent, text)
    return sent


def _model(keys: Keys, *, on_this_machine: bool) -> dict[str, Any]:
    if keys.model is not None and keys.newest_in is not None:
        raise InvalidRequest("--newest-in", str(keys.newest_in), "either MODEL or --newest-in")
    if keys.newest_in is not None:
        return {"model": {"newest_in": str(keys.newest_in.expanduser().absolute())}}
    if keys.model is not None:
        return {"model": model_name(keys.model, on_this_machine=on_this_machine)}
    return {}


def _set(sent: dict[str, Any], text: str) -> None:
    """Set the key that `KEY=VALUE` names; VALUE is read as YAML, and KEY may be dotted."""
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise InvalidRequest("--set", text, "KEY=VALUE, such as overlap=queue or llm_int8.magnitude=5")
    *groups, last = key.split(".")
    at: Any = sent
    for group in groups:
        if isinstance(at, dict):
            at = at.setdefault(group, {})
    if not isinstance(at, dict) or last in at:
        raise InvalidRequest("--set", text, "each key once", problem="sets a key that is set already")
    at[last] = read(value, f"--set {key}").content
