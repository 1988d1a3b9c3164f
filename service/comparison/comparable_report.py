"""A report as comparisons and audits take it, read from a store, and the label of each report of a comparison."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from service.contracts.report import SCHEMA_VERSION, Report
from service.errors import NotComparable, NotFound, ReportUnreadable
from service.evaluation.scored import Rows
from service.evaluation.stored_report import read_report, row_reader

MIN_REPORTS, MAX_REPORTS = 2, 8
"""Reports in one comparison."""


class ComparableReport(NamedTuple):
    """One report, and how to read its tables."""

    name: str
    """The id, or the directory's name, by which the user knows it."""
    report: Report
    """As `restating` gives it: every error in it is by sequence."""
    read: Callable[[str, tuple[str, ...]], Rows | None]
    """From a table's name and columns to its rows; None where the report has no such table."""


def stored_report(report_id: str, path: Callable[[str], Path]) -> ComparableReport:
    """Return a report; its tables are read when they are needed, and may raise ReportUnreadable then.

    Args:
        report_id: Its id, which errors name.
        path: Returns where a file of the report lies, such as `report.json`; raises NotFound.

    Raises NotFound, SchemaVersionUnknown, ReportUnreadable.
    """
    name = f"report {report_id}"
    report_json = path("report.json")
    try:
        tokens: Path | None = path("tables/tokens.parquet")
    except NotFound:
        tokens = None
    try:
        report = read_report(report_json, tokens)
    except ReportUnreadable as error:
        raise type(error)(f"{name}: {error}") from error
    return ComparableReport(report_id, report, row_reader(name, report, path))


def check_schema_version(name: str, version: str) -> None:
    """Raise NotComparable for a report of another major version."""
    major = SCHEMA_VERSION.partition(".")[0]
    if str(version).partition(".")[0] != major:
        raise NotComparable(f"{name}: compare needs schema_version {major}.x; got {version!r}")


def check_count(count: int) -> None:
    """Raise NotComparable for too few reports, or too many."""
    if not MIN_REPORTS <= count <= MAX_REPORTS:
        raise NotComparable(f"compare needs {MIN_REPORTS} to {MAX_REPORTS} reports; got {count}")


def labels(sides: Sequence[ComparableReport]) -> list[str]:
    """Return the label of each report: its model, and where that is not unique the end of its id, and a number."""
    plain = [_model_name(side.report) for side in sides]
    called = [
        model if plain.count(model) == 1 else f"{model} ({_short(side.name)})"
        for model, side in zip(plain, sides, strict=True)
    ]
    return [
        label if called.count(label) == 1 else f"{label} #{called[: place + 1].count(label)}"
        for place, label in enumerate(called)
    ]


def _model_name(report: Report) -> str:
    model = report.model
    return f"{model.source}@{model.revision[:8]}" if model.revision else model.source


def _short(name: str) -> str:
    """Return the end of an id, whose beginning is the time and much like that of others; any other name whole."""
    return name[-8:] if re.fullmatch(r"[0-9a-f]{32}", name) else name
