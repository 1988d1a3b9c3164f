"""The forms that every topic is written in."""

from typing import NamedTuple

from service.contracts.report import SchemeFacts

Fact = tuple[str, str]
"""A label and its text."""

LONG = 14
"""Rows from which a table scrolls inside its own frame."""


class Grid(NamedTuple):
    """A table of finished text; the first cell of a row names it."""

    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    folded: bool = False
    """True for values that a figure shows already: the page keeps the table behind its caption until it is opened."""

    @property
    def wide(self) -> bool:
        """True when the table needs the page's whole width."""
        return len(self.head) > 3

    @property
    def crowded(self) -> bool:
        """True when the page's whole width may be too little for each cell to stand on one line."""
        return len(self.head) > 7

    @property
    def long(self) -> bool:
        """True when the table scrolls inside its own frame."""
        return len(self.rows) > LONG


class Topic(NamedTuple):
    """One section of the page."""

    name: str
    """Its anchor; also what figures name to stand in it."""
    title: str
    lead: str
    """The main result, in one or two sentences with its numbers."""
    notes: tuple[str, ...] = ()
    """Further sentences, one paragraph each."""
    terms: tuple[Fact, ...] = ()
    """Words that the section uses, and what each means."""
    grids: tuple[Grid, ...] = ()
    """Tables after the figures."""
    codes: tuple[tuple[str, str], ...] = ()
    """Text to copy as it is, each under its title."""


def without(table: str) -> str:
    """Say that the report has no such table, and what to do."""
    return f"This report has no table `{table}`. Measure the model again with this version of Headroom."


def marked(scheme: str, facts: SchemeFacts) -> str:
    """Return the scheme's name, with the mark of one that is simulated, or that no `from_pretrained` loads."""
    marks = [*(["simulated"] if facts.simulated else []), *(["analysis only"] if facts.analysis_only else [])]
    return f"{scheme} ({', '.join(marks)})" if marks else scheme


def joined(names: list[str]) -> str:
    """Join names as a sentence does: `a, b and c`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
