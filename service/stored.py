"""Reads stored reports for whoever shows, compares or judges them without drawing: report.json, and the tables."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

from service.comparison.comparable_report import ComparableReport, check_schema_version
from service.contracts.report import Report
from service.errors import ReportDamaged
from service.evaluation.restating import restated
from service.evaluation.scored import COLUMNS, Rows


def read_report(report: Path, tokens: Path | None) -> Report:
    """Return a report, with the errors and verdicts that today's have.

    Args:
        report: Its report.json.
        tokens: Its table `tokens`; None where it has none. One that cannot be read is as good as none.

    Raises ValueError for what is no report, and OSError.
    """
    return restated(Report.model_validate_json(report.read_bytes(), extra="allow"), lambda: _scored(tokens))


def _scored(tokens: Path | None) -> Rows | None:
    from pyarrow import ArrowException, parquet

    if tokens is None:
        return None
    try:
        rows: Rows = parquet.read_table(tokens, columns=list(COLUMNS)).to_pydict()
    except (ArrowException, OSError, ValueError):
        return None
    return rows if all(column in rows for column in COLUMNS) else None


def comparable(report_id: str, path_of: Callable[[str], Path]) -> ComparableReport:
    """Return a report as comparisons and audits take it; its tables are read when they are needed.

    Args:
        report_id: Its id, which errors name.
        path_of: Returns where a file of the report lies, such as `report.json`. Raises NotFound.

    Raises NotFound, NotComparable for another major version of the schema, and ReportDamaged, also later when a table
    cannot be read.
    """
    content = path_of("report.json").read_bytes()
    try:
        check_schema_version(f"report {report_id}", json.loads(content)["schema_version"])
        report = Report.model_validate_json(content, extra="allow")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ReportDamaged(f"report {report_id}: report.json cannot be read") from error
    listed = {table.name for table in report.tables}

    @cache
    def read(table: str, columns: tuple[str, ...]) -> Rows | None:
        name = f"tables/{table}.parquet"
        return _rows(f"report {report_id}: {name}", path_of(name), columns) if table in listed else None

    return ComparableReport(report_id, restated(report, lambda: read("tokens", COLUMNS)), read)


def _rows(what: str, path: Path, columns: tuple[str, ...]) -> Rows:
    from pyarrow import ArrowException, parquet

    try:
        rows: Rows = parquet.read_table(path, columns=list(columns)).to_pydict()
    except (ArrowException, OSError) as error:
        raise ReportDamaged(f"{what} cannot be read: {error}") from error
    if missing := [column for column in columns if column not in rows]:
        raise ReportDamaged(f"{what}: column {missing[0]!r} is missing")
    return rows
