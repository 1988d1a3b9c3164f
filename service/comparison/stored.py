"""Reads a stored report as comparisons and audits take it."""

from collections.abc import Callable
from pathlib import Path

from service.comparison.comparable_report import ComparableReport
from service.errors import NotFound, ReportUnreadable
from service.evaluation.stored_report import read_report, row_reader


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
