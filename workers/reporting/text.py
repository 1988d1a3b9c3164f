"""Formats numbers and foreign text for a reader: digits, units and escapes.

Numbers are rounded to what a reader can use; the tables hold the full value. Foreign text (model names, tokens,
warnings) keeps its printable characters; anything that could hide, reorder or break a line is written as an escape.
"""

import re
from collections.abc import Iterable, Sequence

from rich.filesize import pick_unit_and_suffix

from service.evaluation.numbers import ABSENT, claim, estimate, number, percent_estimate

__all__ = ["ABSENT", "claim", "counted", "data_size", "duration", "estimate", "listing", "number", "percent",
           "percent_estimate", "plain", "ranges", "short_name", "visible", "visible_lines"]  # fmt: skip


def visible(text: str) -> str:
    """Return `text` with every unprintable character (controls, bidirectional marks, newlines) as its escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def visible_lines(text: str) -> str:
    """Return `text` with its lines as they are, and every other unprintable character as its escape."""
    return "\n".join(visible(line) for line in text.split("\n"))


def plain(text: str, limit: int = 32) -> str:
    """Return `text` as at most `limit` ASCII characters, for use inside a figure, whose font knows few scripts."""
    ascii_text = text.encode("ascii", "backslashreplace").decode("ascii")
    printable = visible(ascii_text)
    return printable if len(printable) <= limit else printable[: limit - 3] + "..."


def percent(share: float, places: int = 1) -> str:
    """Return a share as a percentage."""
    return f"{100 * share:.{places}f}%"


def short_name(source: str) -> str:
    """Return the last component of a local directory's path; a hub id (`org/name`) or another name as it is."""
    parts = [part for part in re.split(r"[/\\]", source) if part not in ("", ".", "..", "~")]
    local = source.startswith(("/", ".", "~", "\\")) or "\\" in source or len(parts) > 2
    return parts[-1] if local and parts else source


def data_size(size: int) -> str:
    """Return a number of bytes in decimal units: `12.3 MB`."""
    unit, suffix = pick_unit_and_suffix(size, ["B", "kB", "MB", "GB", "TB"], 1000)
    return f"{size} B" if unit == 1 else f"{number(size / unit)} {suffix}"


def duration(seconds: float) -> str:
    """Return seconds as `4.2 s`, `3 min 20 s` or `2 h 5 min`."""
    if seconds < 60:
        return f"{number(seconds, 2)} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def listing(items: Iterable[str], limit: int = 12) -> str:
    """Join `items` with commas; after `limit` of them say only how many more there are."""
    names = list(items)
    more = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {more} more" if more > 0 else "")


def ranges(numbers: Sequence[int]) -> str:
    """Write ascending integers as ranges: `0-2, 5`."""
    runs: list[list[int]] = []
    for value in numbers:
        if runs and value == runs[-1][1] + 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    return ", ".join(f"{low}" if low == high else f"{low}-{high}" for low, high in runs)


def counted(count: int, singular: str, plural: str | None = None) -> str:
    """Return `1 layer`, `12 layers`."""
    return f"{count:,} {singular if count == 1 else plural or singular + 's'}"
