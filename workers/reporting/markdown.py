"""Writes untrusted text in Markdown, so that none of it becomes markup, a link or a mention.

Characters that Markdown or HTML could read become character references or are escaped, so that the text looks as it
was written once it is rendered.
"""

import re
from collections.abc import Iterable, Sequence

from workers.reporting.text import visible, visible_lines

_REFERENCES = {character: f"&#{ord(character)};" for character in '&<`[]|$\\^~{}"'}
_BROKEN = {"@": "@<!-- -->", "#": "&#35;<!-- -->"}
"""An empty comment keeps a name after @ from becoming a mention, and a number after # from becoming a reference."""
_TABLE = str.maketrans(_REFERENCES | {"*": r"\*"} | _BROKEN)
_EMPHASIS = re.compile(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")
_LINE_START = re.compile(r"^(\s*)([-+=>]|\d+[.)](?=\s|$))")


def escaped(text: str) -> str:
    """Return `text` as Markdown that shows it and does nothing else, in a cell or inside a line."""
    safe = visible(text).translate(_TABLE).replace("://", "&#58;//").replace("www.", "www&#46;")
    return _EMPHASIS.sub(r"\_", safe)


def line(text: str) -> str:
    """Return `text` as a line of its own, or as the beginning of one."""
    return _LINE_START.sub(lambda match: f"{match[1]}{match[2][:-1]}\\{match[2][-1]}", escaped(text))


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table; the first column leans left, the others right."""
    rule = ["---", *["--:"] * (len(head) - 1)]
    lines = [map(escaped, head), rule, *(map(escaped, row) for row in rows)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def bullets(items: Iterable[str]) -> str:
    """Return a list of plain sentences."""
    return "".join(f"- {line(item)}\n" for item in items)


def code(text: str) -> str:
    """Return `text` as a block of code, whatever backticks it holds."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{visible_lines(text)}\n{fence}\n"
