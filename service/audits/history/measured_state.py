"""Describes the state a report was measured in (weights, text, software, device, settings), and compares two."""

import json
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

from service.contracts.audits.history import StateChange

Kind = Literal["model", "calibration", "software", "device", "settings"]
Part = Mapping[str, str | None]

_SHOWN = 12
"""Characters of a commit or a fingerprint that tell it from others."""
_LONGEST = 60
"""Characters of a value that are shown."""
_TOP = ("headroom_version", "definitions_version")
_NAMES = {"headroom_version": "headroom", "definitions_version": "definitions", "fingerprint": "weights"}
_TEXT_NAMES = {"fingerprint": "text"}


class MeasuredState(NamedTuple):
    """All that decides a report's figures, in words, by kind and name."""

    model: Part
    calibration: Part
    software: Part
    device: Part
    settings: Part


def measured_state(report: Mapping[str, Any]) -> MeasuredState:
    """Return what a report was measured from; of a key that it has not, None.

    Args:
        report: The content of report.json.
    """
    environment = dict(report.get("environment") or {})
    kernels = environment.pop("kernels", None) or {}
    device = environment.pop("device", None)
    software = {_NAMES[key]: _word(report.get(key)) for key in _TOP} | {k: _word(v) for k, v in environment.items()}
    software |= {f"kernel of {scheme}": _word(path) for scheme, path in kernels.items()}
    return MeasuredState(
        model=_part(report.get("model"), ("source", "revision", "fingerprint"), _NAMES),
        calibration=_part(report.get("calibration"), ("source", "fingerprint", "adds_bos"), _TEXT_NAMES),
        software=software,
        device={"device": _word(device)},
        settings={key: _word(value) for key, value in (report.get("analysis") or {}).items()},
    )


def changes(before: MeasuredState, after: MeasuredState) -> tuple[StateChange, ...]:
    """Return what differs, in the order of the state's parts."""
    return tuple(
        change for kind in _kinds() for change in _differing(kind, getattr(before, kind), getattr(after, kind))
    )


def _kinds() -> tuple[Kind, ...]:
    return ("model", "calibration", "software", "device", "settings")


def _differing(kind: Kind, before: Part, after: Part) -> Iterator[StateChange]:
    for name in dict.fromkeys((*before, *after)):
        old, new = before.get(name), after.get(name)
        if old != new:
            text = f"{name} {_short(old)} -> {_short(new)}"
            yield StateChange(kind=kind, name=name, before=old, after=new, text=text)


def _part(record: Any, keys: tuple[str, ...], names: Mapping[str, str]) -> Part:
    return {names.get(key, key): _word((record or {}).get(key)) for key in keys}


def _word(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value, sort_keys=True)


def _short(value: str | None) -> str:
    """Return a value as a reader needs it: fingerprints and commits by their beginning."""
    if value is None:
        return "none"
    digits = value.removeprefix("sha256:")
    if len(digits) in (40, 64) and set(digits) <= set("0123456789abcdef"):
        return digits[:_SHOWN]
    return value if len(value) <= _LONGEST else f"{value[: _LONGEST - 3]}..."
