"""Reads report.json as a `Report`, and columns of a report's tables as rows.

Reports of this major schema version are readable: those of schema 1.0 and 1.1 get the intervals and verdicts of today
(`restating`); keys that a newer version added are kept, and variants of schemes that it added are left out.
"""

import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from service.contracts.report import SCHEMA_VERSION, Report
from service.contracts.variants import is_variant
from service.errors import ReportUnreadable, SchemaVersionUnknown
from service.evaluation.restating import restated
from service.evaluation.scored import COLUMNS, Rows

_MAJOR = SCHEMA_VERSION.partition(".")[0]


def read_report(report: Path, tokens: Path | None) -> Report:
    """Return a stored report with 95% intervals by sequence and a verdict on every scheme.

    Args:
        report: Its report.json.
        tokens: Its table `tokens`, read only for a report of schema 1.0 or 1.1. Where it is None or cannot be read,
            such a report has no intervals.

    Raises:
        SchemaVersionUnknown: the report is of another major schema version.
        ReportUnreadable: report.json cannot be read, or is not a report.
    """
    try:
        content = report.read_bytes()
    except OSError as error:
        raise ReportUnreadable(f"report.json: cannot be read: {error.strerror}") from error
    parsed = parse_report(content)
    listed = any(table.name == "tokens" for table in parsed.tables)
    return restated(parsed, lambda: _scored(tokens) if tokens is not None and listed else None)


def _scored(tokens: Path) -> Rows | None:
    try:
        return read_rows(tokens, COLUMNS, tokens.name)
    except ReportUnreadable:
        return None


def parse_report(content: bytes) -> Report:
    """Return the report in `content`, the bytes of a report.json, as it was written. Raises as `read_report` does."""
    try:
        document = json.loads(content)
        version = document["schema_version"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ReportUnreadable(f"report.json: not a report: {error!r}") from error
    if str(version).partition(".")[0] != _MAJOR:
        raise SchemaVersionUnknown(
            f"report.json: schema_version: {version!r} is not allowed; this program reads {_MAJOR}.x"
        )
    _leave_out_unknown_variants(document.get("analysis"))
    try:
        return Report.model_validate(document, extra="allow")
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ReportUnreadable(f"report.json: {where}: {first['msg']}") from error


def _leave_out_unknown_variants(analysis: Any) -> None:
    """Remove the variants that this version cannot read from the settings of an analysis."""
    if isinstance(analysis, dict) and isinstance(analysis.get("schemes"), list):
        analysis["schemes"] = [variant for variant in analysis["schemes"] if is_variant(variant)]


def row_reader(name: str, report: Report, path: Callable[[str], Path]) -> Callable[[str, tuple[str, ...]], Rows | None]:
    """Return a function that reads columns of a table of `report` by its name, and keeps what it has read.

    It returns None for a table that the report does not list, and raises ReportUnreadable as `read_rows` does.

    Args:
        name: What errors call the report.
        report: The report.
        path: Returns where a file of the report lies, such as `tables/sites.parquet`.
    """
    listed = {table.name for table in report.tables}

    @cache
    def read(table: str, columns: tuple[str, ...]) -> Rows | None:
        if table not in listed:
            return None
        file = f"tables/{table}.parquet"
        return read_rows(path(file), columns, f"{name}: {file}")

    return read


def read_rows(table: Path, columns: Sequence[str], name: str) -> Rows:
    """Return columns of a Parquet file, which errors call `name`.

    Raises ReportUnreadable where it is missing or damaged, or lacks a column.
    """
    from pyarrow import ArrowException, parquet

    try:
        rows: Rows = parquet.read_table(table, columns=list(columns)).to_pydict()
    except (ArrowException, OSError) as error:
        raise ReportUnreadable(f"{name} cannot be read: {error}") from error
    if missing := [column for column in columns if column not in rows]:
        raise ReportUnreadable(f"{name}: column {missing[0]!r} is missing")
    return rows
