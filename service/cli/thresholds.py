"""`--set NAME=VALUE`: thresholds of the definitions and limits of the verdict, too many for an option each."""

from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from service.contracts import refusals
from service.contracts.record import Frozen
from service.contracts.refusals import nearest
from service.contracts.request import Analysis
from service.errors import InvalidRequest


def thresholds(given: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return what `NAME=VALUE` texts set, as a job request has it: `{"llm_int8": {"magnitude": 5.0}}`.

    Raises InvalidRequest for an unknown or doubled name, and for a value that is not allowed.
    """
    fields = {name: field.default for name, field in Analysis.model_fields.items()}
    groups = {name: type(default) for name, default in fields.items() if isinstance(default, Frozen)}
    names = [f"{group}.{name}" for group, record in groups.items() for name in record.model_fields]
    chosen: dict[str, dict[str, str]] = {}
    for text in given:
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
    return {group: _read(groups[group], group, values) for group, values in chosen.items()}


def _read(record: type[Frozen], group: str, values: dict[str, str]) -> dict[str, Any]:
    try:
        return record.model_validate(values).model_dump(include=set(values))
    except ValidationError as error:
        first = error.errors()[0]
        # What several values make together has no place of its own.
        wrong = [str(part) for part in first["loc"]] or list(values)
        text = ", ".join(values[name] for name in wrong)
        names = " ".join(f"{group}.{name}" for name in wrong)
        message = refusals.sentence(f"--set {names}", repr(text), first)
        raise InvalidRequest(f"--set {names}", text, refusals.allowed(first), message=message) from error
