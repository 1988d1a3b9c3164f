"""Reads YAML with the line of every value.

PyYAML follows YAML 1.1, in which `no` is false, `1:30` is 90 and `2026-01-01` is a date. As in YAML 1.2, true and false
are the only booleans here, and what is neither a decimal number nor null is text. A key that occurs twice in a mapping
is refused.
"""

import re
from collections.abc import Hashable
from typing import Any, NamedTuple

import yaml

from service.errors import InvalidRequest

Place = tuple[str | int, ...]
"""Keys and list positions from the root of a document."""
MOST_VALUES = 100_000
"""Values that a document may hold, with those that aliases repeat."""
_ALLOWED = "YAML, as in https://yaml.org/spec/1.2.2"
_TAG = "tag:yaml.org,2002:"
_PLAIN = (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?(0|[1-9][0-9]*)", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?", "-+.0123456789"),
    ("null", r"~|null|Null|NULL|", ("~", "n", "N", "")),
)
"""Plain scalars that are no text: kind, form, and the characters that begin them."""


class Document(NamedTuple):
    """The content of a YAML file."""

    file: str
    """Name, for messages."""
    content: Any
    lines: dict[Place, int]
    """Line of every value, from 1; of an entry of a mapping, the line of its key."""

    def line(self, place: Place) -> int:
        """Return the line of a place, or of the nearest one around it that there is."""
        while place and place not in self.lines:
            place = place[:-1]
        return self.lines.get(place, 1)

    def refusal(self, place: Place, value: object, allowed: str, problem: str = "is not allowed") -> InvalidRequest:
        """Return the error for a value at a place: `audits.yaml:7: limits: 5 is not allowed; allowed: a list`."""
        keys = [part for part in place if isinstance(part, str)]
        where = ": ".join((f"{self.file}:{self.line(place)}", *keys[-1:]))
        return InvalidRequest(where, value, allowed, problem=problem)


def read(text: str, file: str) -> Document:
    """Return the content of a YAML text.

    Raises InvalidRequest, with the line, for a text that is no YAML, for a key that occurs twice in a mapping, and for
    more than `MOST_VALUES` values.
    """
    reading = _Reading(file)
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            content = None if node is None else reading.value(loader, node, ())
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        raise _not_yaml(f"{file}:{_line(error)}", error.problem) from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a number with thousands of digits
        raise _not_yaml(file, str(error).splitlines()[0]) from error
    except RecursionError as error:
        raise _not_yaml(file, "is nested too deeply") from error
    return Document(file, content, reading.lines)


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - replaces the base's


for _kind, _form, _first in _PLAIN:
    _Loader.add_implicit_resolver(f"{_TAG}{_kind}", re.compile(rf"(?:{_form})\Z"), list(_first))


class _Reading:
    """Turns the nodes of a document into values, and notes their lines."""

    def __init__(self, file: str) -> None:
        self.lines: dict[Place, int] = {}
        self._file = file

    def value(self, loader: _Loader, node: yaml.Node, place: Place) -> Any:
        self.lines.setdefault(place, node.start_mark.line + 1)
        if len(self.lines) > MOST_VALUES:
            raise _not_yaml(self._file, f"has more than {MOST_VALUES:,} values")
        if isinstance(node, yaml.MappingNode) and node.tag == f"{_TAG}map":
            return self._mapping(loader, node, place)
        if isinstance(node, yaml.SequenceNode) and node.tag == f"{_TAG}seq":
            return [self.value(loader, item, (*place, number)) for number, item in enumerate(node.value)]
        if not isinstance(node, yaml.ScalarNode):
            raise yaml.constructor.ConstructorError(None, None, f"has the tag {node.tag!r}", node.start_mark)
        return loader.construct_object(node, deep=True)

    def _mapping(self, loader: _Loader, node: yaml.MappingNode, place: Place) -> dict[str, Any]:
        content: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = loader.construct_object(key_node, deep=True)
            line = key_node.start_mark.line + 1
            if not isinstance(key, str):
                raise _refused(self._file, line, key, "text", "is not a key")
            at = (*place, key)
            if key in content:
                problem = f"is there twice: it is the key of line {self.lines[at]} too"
                raise _refused(self._file, line, key, "each key once", problem)
            self.lines[at] = line
            content[key] = self.value(loader, value_node, at)
        return content


def _refused(file: str, line: int, key: Hashable, allowed: str, problem: str) -> InvalidRequest:
    return InvalidRequest(f"{file}:{line}", key, allowed, problem=problem)


def _not_yaml(where: str, problem: str | None) -> InvalidRequest:
    return InvalidRequest(where, None, _ALLOWED, message=f"{where}: {problem}; allowed: {_ALLOWED}")


def _line(error: yaml.MarkedYAMLError) -> int:
    mark = error.problem_mark or error.context_mark
    return mark.line + 1 if mark else 1
