"""Reads the file of `headroom gate --limits`: one limit in a line, or YAML with a list of limits.

    # the int8 build that ships
    int8.kl_divergence.mean <= baseline * 1.2
    int8.perplexity_ratio <= 1.01

In YAML the list stands alone, or at the key `limits`. Empty lines and what follows ` #` are left out.
"""

import re
from pathlib import Path
from typing import Any, NamedTuple

from service.audits.limits import Limit, parse, parse_all
from service.cli.audits.yaml_lines import read
from service.cli.uploads import read_text
from service.errors import InvalidRequest

_COMMENT = re.compile(r"(^|\s)#.*")
_YAML = re.compile(r"(-\s|limits\s*:|\[|---)")
_KEY = "limits"
_FORMS = "one limit in a line, or YAML with a list of limits"


class LimitsFile(NamedTuple):
    """The limits of a file, as they were written."""

    path: str
    texts: tuple[str, ...]
    lines: tuple[int, ...]
    """Of each, from 1."""

    def parsed(self, schemes: tuple[str, ...]) -> tuple[Limit, ...]:
        """Return the limits, for a job that runs these schemes. Raises InvalidRequest with the line."""
        for text, line in zip(self.texts, self.lines, strict=True):
            try:
                parse(text, schemes)
            except InvalidRequest as error:
                raise _at(self.path, line, error) from error
        try:
            return parse_all(self.texts, schemes)
        except InvalidRequest as error:
            last = max(line for text, line in zip(self.texts, self.lines, strict=True) if text == error.value)
            raise _at(self.path, last, error) from error

    def by_text(self, limits: tuple[Limit, ...]) -> dict[str, int]:
        """Return the line of every limit by its text with single spaces."""
        return {limit.text: line for limit, line in zip(limits, self.lines, strict=True)}


def read_limits(path: Path, largest: int) -> LimitsFile:
    """Return the limits of a file of at most `largest` bytes. Raises InvalidRequest for a file without any."""
    text = read_text("--limits", path, largest)
    rows = [(number, _COMMENT.sub("", line).strip()) for number, line in enumerate(text.splitlines(), 1)]
    rows = [(number, line) for number, line in rows if line]
    if rows and _YAML.match(rows[0][1]):
        rows = _of_yaml(text, str(path))
    if not rows:
        raise InvalidRequest("--limits", str(path), _FORMS, problem="has no limit")
    return LimitsFile(str(path), tuple(line for _, line in rows), tuple(number for number, _ in rows))


def _of_yaml(text: str, path: str) -> list[tuple[int, str]]:
    document = read(text, path)
    content: Any = document.content
    place: tuple[str, ...] = ()
    if isinstance(content, dict):
        place = (_KEY,)
        for key in content:
            if key != _KEY:
                raise document.refusal((key,), content[key], _KEY, "is not a key of the file")
        content = content.get(_KEY)
    if not isinstance(content, list):
        raise document.refusal(place, content, _FORMS)
    for number, item in enumerate(content):
        if not isinstance(item, str):
            raise document.refusal((*place, number), item, "a limit, such as int8.perplexity_ratio <= 1.01")
    return [(document.line((*place, number)), item) for number, item in enumerate(content)]


def _at(path: str, line: int, error: InvalidRequest) -> InvalidRequest:
    where = f"{path}:{line}"
    return InvalidRequest(where, error.value, error.allowed, message=f"{where}: {error}")
