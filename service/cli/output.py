"""Standard output: one JSON document, or text for a person."""

import json
import sys
from typing import Any

from rich.console import Console
from rich.table import Table

PLAIN_WIDTH = 120
"""Columns where standard output is no terminal, so that tables are not folded in a log."""


def results() -> Console:
    """Return the console for results."""
    console = Console()
    return console if console.is_terminal else Console(width=PLAIN_WIDTH)


def document(content: Any) -> None:
    """Print one JSON document."""
    json.dump(content, sys.stdout, indent=2, ensure_ascii=False)
    sys.stdout.write("\n")
    sys.stdout.flush()


def line(console: Console, text: str) -> None:
    """Print a line as it is, however long."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def table(titles: tuple[str, ...], rows: list[tuple[Any, ...]]) -> None:
    """Print rows of values under their titles; None is shown as nothing."""
    shown = Table(box=None, pad_edge=False, header_style="bold")
    for title in titles:
        shown.add_column(title, overflow="fold")
    console = results()
    for row in rows:
        shown.add_row(
            *(console.render_str("" if value is None else str(value), markup=False, highlight=False) for value in row)
        )
    console.print(shown)
