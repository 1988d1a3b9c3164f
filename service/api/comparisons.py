"""Compares stored reports: the numbers, computed for each request.

`headroom reports compare` draws the figures; this process has no drawing libraries.
"""

import hashlib
import json
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from pyarrow import ArrowException, parquet

from service.api import downloads
from service.api.dependencies import Backend, FromApp
from service.comparison.comparable_report import (
    MAX_REPORTS,
    ComparableReport,
    check_count,
    check_schema_version,
)
from service.comparison.compare import compare
from service.contracts.comparison import Comparison
from service.contracts.report import Report
from service.contracts.request import JOB_ID
from service.errors import InvalidRequest, NotComparable, ReportDamaged
from service.evaluation.restating import restated
from service.evaluation.scored import COLUMNS, Rows

router = APIRouter(prefix="/v1/comparisons")

ReportIds = Annotated[
    list[Annotated[str, Query(pattern=rf"^{JOB_ID}$")]],
    Query(description=f"Ids of 2 to {MAX_REPORTS} reports. The first is the baseline."),
]


@router.get("", response_model=Comparison)
def comparison(backend: FromApp, request: Request, report: ReportIds) -> Response:
    """Compare reports: range, outlier dimensions, and every shared scheme, with 95% intervals."""
    try:
        check_count(len(report))
        sides = [_side(backend, report_id) for report_id in report]
        differences = compare(sides, version("headroom"))
    except NotComparable as error:
        raise InvalidRequest("report", report, str(error), message=str(error)) from error
    content = differences.model_dump_json().encode()
    etag = f'"{hashlib.sha256(content).hexdigest()}"'
    if downloads.holds(request, etag):
        return downloads.not_modified(etag)
    return Response(content, media_type="application/json", headers=downloads.headers(etag))


def _side(backend: Backend, report_id: str) -> ComparableReport:
    report = _report(backend, report_id)
    listed = {table.name for table in report.tables}

    @cache
    def read(table: str, columns: tuple[str, ...]) -> Rows | None:
        name = f"tables/{table}.parquet"
        if table not in listed:
            return None
        try:
            rows: Rows = parquet.read_table(_path(backend, report_id, name), columns=list(columns)).to_pydict()
        except (ArrowException, OSError) as error:
            raise ReportDamaged(f"report {report_id}: {name} cannot be read: {error}") from error
        if missing := [column for column in columns if column not in rows]:
            raise ReportDamaged(f"report {report_id}: {name}: column {missing[0]!r} is missing")
        return rows

    return ComparableReport(report_id, restated(report, lambda: read("tokens", COLUMNS)), read)


def _report(backend: Backend, report_id: str) -> Report:
    """Return report.json. Raises NotFound, NotComparable for another major version, ReportDamaged."""
    content = _path(backend, report_id, "report.json").read_bytes()
    try:
        check_schema_version(f"report {report_id}", json.loads(content)["schema_version"])
        return Report.model_validate_json(content, extra="allow")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ReportDamaged(f"report {report_id}: report.json cannot be read") from error


def _path(backend: Backend, report_id: str, name: str) -> Path:
    return backend.artifacts.path(backend.store.artifact(report_id, name).sha256)
