"""Compares, for `headroom audits apply`, the audits of a file with those that the service has, key by key.

Both are the JSON of whole definitions, with their defaults, so that a key that is left out of the file counts as set
to its default.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

from service.contracts.audits.audit import AuditDefinition

Definition = Mapping[str, Any]
"""An audit's definition in JSON."""
Action = Literal["create", "change", "keep", "remove", "leave"]
"""`keep`: the two are equal. `remove` and `leave`: the audit is not in the file, and goes only where asked for."""
_MARKS: dict[Action, tuple[str, str]] = {
    "create": ("+", "will be created"),
    "change": ("~", "will be changed"),
    "keep": ("=", "is unchanged"),
    "remove": ("-", "will be removed"),
    "leave": ("!", "is not in the file; --prune removes it"),
}


class Change(NamedTuple):
    """One key whose value differs."""

    key: str
    """Dotted where the value is an object: `llm_int8.magnitude`."""
    before: Any
    """None where there is no such key, or no audit."""
    after: Any


class Difference(NamedTuple):
    """What becomes of one audit."""

    name: str
    action: Action
    changes: tuple[Change, ...] = ()
    """Of an audit that is made, what is not the default; of one that is removed, none."""


def differences(
    present: Mapping[str, Definition], wanted: Mapping[str, Definition], *, prune: bool
) -> list[Difference]:
    """Return what becomes of every audit: those of the file in its order, then the others by name.

    Args:
        present: What the service has, by name.
        wanted: What the file says, by name.
        prune: Whether audits that are not in the file are removed.
    """
    listed = []
    for name, definition in wanted.items():
        before = present.get(name)
        changes = tuple(_changes(_defaults(definition) if before is None else before, definition))
        action: Action = "create" if before is None else "change" if changes else "keep"
        listed.append(Difference(name, action, changes))
    listed += [Difference(name, "remove" if prune else "leave") for name in sorted(present.keys() - wanted.keys())]
    return listed


def written(listed: Iterable[Difference]) -> Iterator[str]:
    """Yield the lines that show differences to a person."""
    for one in listed:
        mark, words = _MARKS[one.action]
        yield f"{mark} {one.name} {words}"
        for change in one.changes:
            yield from _shown(change, new=one.action == "create")


def _defaults(definition: Definition) -> Definition:
    """Return a definition with nothing but defaults, beside which the keys of a new one are shown."""
    plain = AuditDefinition(name=definition["name"], model="none").model_dump(mode="json")
    return {**plain, "model": None}


def _changes(before: Definition, after: Definition, prefix: str = "") -> Iterator[Change]:
    for key in dict.fromkeys((*after, *before)):
        old, new = before.get(key), after.get(key)
        if old == new:
            continue
        if isinstance(old, Mapping) and isinstance(new, Mapping) and old.keys() == new.keys() and "sha256" not in new:
            yield from _changes(old, new, f"{prefix}{key}.")
        else:
            yield Change(f"{prefix}{key}", old, new)


def _shown(change: Change, *, new: bool) -> Iterator[str]:
    before, after = change.before, change.after
    if isinstance(before, list) and isinstance(after, list):
        yield f"    {change.key}:"
        yield from (f"      - {_text(item)}" for item in before if item not in after)
        yield from (f"      + {_text(item)}" for item in after if item not in before)
        if sorted(map(_text, before)) == sorted(map(_text, after)):
            yield "      in another order"
    elif new:
        yield f"    {change.key}: {_text(after)}"
    else:
        yield f"    {change.key}: {_text(before)} -> {_text(after)}"


def _text(value: Any) -> str:
    """Return a value as one line: a file by its name and the beginning of its SHA-256."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        if "sha256" in value:
            return f"{value['name']} ({value['sha256'][:12]})"
        return ", ".join(f"{key}: {_text(item)}" for key, item in value.items())
    return str(value)
