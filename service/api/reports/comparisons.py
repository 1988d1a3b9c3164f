"""Compares stored reports: the numbers, computed for each request.

`headroom reports compare` draws the figures; this process has no drawing libraries.
"""

import hashlib
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from service.api.dependencies import Backend, FromApp
from service.api.reports import downloads
from service.comparison.comparable_report import MAX_REPORTS, ComparableReport, check_count, stored_report
from service.comparison.compare import compare
from service.contracts.comparison import Comparison
from service.contracts.request import JOB_ID
from service.errors import InvalidRequest, NotComparable, SchemaVersionUnknown

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
        differences = compare([stored(backend, report_id) for report_id in report], version("headroom"))
    except (NotComparable, SchemaVersionUnknown) as error:
        raise InvalidRequest("report", report, str(error), message=str(error)) from error
    content = differences.model_dump_json().encode()
    etag = f'"{hashlib.sha256(content).hexdigest()}"'
    if downloads.has_current(request, etag):
        return downloads.not_modified(etag)
    return Response(content, media_type="application/json", headers=downloads.headers(etag))


def stored(backend: Backend, report_id: str) -> ComparableReport:
    """Return a report of the store. Raises NotFound, SchemaVersionUnknown, ReportUnreadable."""
    return stored_report(report_id, partial(_path, backend, report_id))


def _path(backend: Backend, report_id: str, name: str) -> Path:
    return backend.artifacts.path(backend.store.artifact(report_id, name).sha256)
