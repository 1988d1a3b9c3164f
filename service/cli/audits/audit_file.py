"""Reads the file of `headroom audits apply`: YAML with a list `audits`, whose entries have the keys of an audit.

`calibration` and `labelled` name files, and a `model` that begins with `.` or `~` a directory; all are relative to the
directory of the YAML file.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from service.audits import definition
from service.cli.audits.yaml_lines import Document, Place, read
from service.cli.uploads import read_text, upload
from service.contracts import refusals
from service.contracts.audits.audit import AuditSubmission
from service.contracts.refusals import nearest
from service.errors import InvalidRequest

FILES = ("calibration", "labelled")
"""Keys that name a file."""
_ROOT = "audits"
_LIST = "a list of entries that each have a name, a model, and other keys of an audit"


class Entry(NamedTuple):
    """One audit of a file."""

    document: Document
    place: Place
    """Where it stands in the document."""
    body: dict[str, Any]
    """What makes the audit, with its files."""

    @property
    def name(self) -> str:
        """The audit's name."""
        return str(self.body["name"])

    def refusal(self, field: str, value: object, allowed: str, message: str) -> InvalidRequest:
        """Return the error about a field of the audit, with the file and the line of that field before its message.

        Args:
            field: Dotted keys, such as `llm_int8.magnitude`.
            value: What was refused; of a list its item.
            allowed: What is allowed.
            message: The whole sentence.
        """
        place = (*self.place, *(int(part) if part.isdecimal() else part for part in field.split(".")))
        items = self.body.get(field)
        if isinstance(items, list) and value in items:
            place = (*place, items.index(value))
        where = f"{self.document.file}:{self.document.line(place)}"
        return InvalidRequest(f"{where}: {field}", value, allowed, message=f"{where}: {message}")


def read_audits(path: Path, largest_file: int) -> tuple[Entry, ...]:
    """Return the audits of a YAML file, in its order.

    Args:
        path: The file.
        largest_file: Bytes that this file, and each that it names, may have.

    Raises InvalidRequest, with the line, for what is no YAML, an unknown or doubled key, a doubled name, a value that
    is not allowed, and a file that cannot be read.
    """
    document = read(read_text("FILE", path, largest_file), str(path))
    entries: dict[str, Entry] = {}
    for place, content in _listed(document):
        entry = Entry(document, place, _body(document, place, content, path.parent, largest_file))
        _check(entry)
        other = entries.setdefault(entry.name, entry)
        if other is not entry:
            problem = f"is the name of the audit of line {document.line(other.place)} too"
            raise document.refusal((*place, "name"), entry.name, "each name once", problem)
    return tuple(entries.values())


def _listed(document: Document) -> Iterator[tuple[Place, Mapping[str, Any]]]:
    content = document.content
    if not isinstance(content, Mapping):
        raise document.refusal((), content, f"a key {_ROOT!r} with {_LIST}", "is not a mapping")
    for key in content:
        if key != _ROOT:
            raise document.refusal((key,), content[key], _ROOT + nearest(key, [_ROOT]), "is not a key of the file")
    if not isinstance(content.get(_ROOT), list):
        raise document.refusal((_ROOT,), content.get(_ROOT), _LIST)
    for number, item in enumerate(content[_ROOT]):
        if not isinstance(item, Mapping):
            raise document.refusal((_ROOT, number), item, _LIST)
        yield (_ROOT, number), item


def _body(
    document: Document, place: Place, content: Mapping[str, Any], directory: Path, largest_file: int
) -> dict[str, Any]:
    """Return an entry with its files read, and with absolute paths of directories."""
    body = dict(content)
    for key in FILES:
        if (name := body.get(key)) is None:
            continue
        if not isinstance(name, str):
            raise document.refusal((*place, key), name, "the path of a file")
        where = f"{document.file}:{document.line((*place, key))}: {key}"
        body[key] = upload(where, directory / Path(name).expanduser(), largest_file)
    model = body.get("model")
    if isinstance(model, str):
        body["model"] = _absolute(model, directory)
    elif isinstance(model, Mapping) and isinstance(model.get("newest_in"), str):
        body["model"] = {**model, "newest_in": _absolute(model["newest_in"], directory)}
    return body


def _absolute(model: str, directory: Path) -> str:
    if not model.startswith((".", "~")):
        return model
    return str((directory / Path(model).expanduser()).absolute().resolve())


def _check(entry: Entry) -> None:
    """Raise InvalidRequest for what no service takes."""
    try:
        definition.check(AuditSubmission.model_validate(entry.body))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        message = refusals.sentence(field, repr(first["input"]), first)
        if first["type"] == "extra_forbidden" and len(first["loc"]) == 1:
            message += nearest(field, AuditSubmission.model_fields)
        raise entry.refusal(field, first["input"], refusals.allowed(first), message) from error
    except InvalidRequest as error:
        raise entry.refusal(error.parameter, error.value, error.allowed, str(error)) from error
