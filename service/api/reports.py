"""Reports: list them, and download any file of one."""

import os
from typing import Annotated

from fastapi import APIRouter, Path, Request, Response
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException

from service.api import csv_tables, downloads
from service.api.parameters import JobId, ModelFilter, PageSize, PageToken
from service.api.rooms import Within
from service.api.verdicts import verdicts_of
from service.api.views import ReportPage, ReportView
from service.errors import NotFound

router = APIRouter(prefix="/v1/reports")

_NAME = r"^[A-Za-z0-9_-]{1,100}$"
Name = Annotated[str, Path(pattern=_NAME)]


@router.get("")
def list_reports(
    rooms: Within, page_size: PageSize = 50, page_token: PageToken = None, model: ModelFilter = None
) -> ReportPage:
    """Return the reports that can be downloaded, newest first."""
    page = rooms.store.list(model=model, page_size=page_size, page_token=page_token, with_report=True)
    verdicts = verdicts_of(rooms, page.jobs)
    return ReportPage(
        reports=[ReportView.of(job, verdicts.get(job.id)) for job in page.jobs], next_page_token=page.next_page_token
    )


@router.get("/{job_id}", response_class=Response)
def report(rooms: Within, request: Request, job_id: JobId) -> Response:
    """Return report.json."""
    return downloads.artifact(rooms, request, job_id, "report.json")


@router.get("/{job_id}/report.html", response_class=Response)
def page(rooms: Within, request: Request, job_id: JobId) -> Response:
    """Return the report as a page that stands by itself."""
    return downloads.artifact(rooms, request, job_id, "report.html")


@router.get("/{job_id}/summary.md", response_class=Response)
def summary(rooms: Within, request: Request, job_id: JobId) -> Response:
    """Return the report's summary in Markdown."""
    return downloads.artifact(rooms, request, job_id, "summary.md")


@router.get("/{job_id}/bundle.zip", response_class=Response)
def bundle(rooms: Within, request: Request, job_id: JobId) -> Response:
    """Return every file of the report in one archive."""
    return downloads.artifact(rooms, request, job_id, "bundle.zip")


@router.get("/{job_id}/figures/{name}.{form}", response_class=Response)
def figure(rooms: Within, request: Request, job_id: JobId, name: Name, form: str) -> Response:
    """Return a figure, as `svg` or `png`."""
    if form not in {"svg", "png"}:
        raise NotFound(f"no such figure; it can be had as {name}.svg and {name}.png")
    return downloads.artifact(rooms, request, job_id, f"figures/{name}.{form}")


@router.get("/{job_id}/tables/{name}.{form}", response_class=Response)
def table(rooms: Within, request: Request, job_id: JobId, name: Name, form: str) -> Response:
    """Return a table, as `parquet` or `csv`."""
    if form == "parquet":
        return downloads.artifact(rooms, request, job_id, f"tables/{name}.parquet")
    if form != "csv":
        raise NotFound(f"no such table; it can be had as {name}.parquet and {name}.csv")
    row = rooms.store.artifact(job_id, f"tables/{name}.parquet")
    etag = csv_tables.entity_tag(row.sha256)
    if downloads.holds(request, etag):
        return downloads.not_modified(etag)
    written = csv_tables.write(rooms.artifacts.path(row.sha256))
    cleanup = BackgroundTask(os.unlink, written)
    try:
        return downloads.send(request, written, etag, "text/csv; charset=utf-8", f"{job_id}-{name}.csv", then=cleanup)
    except HTTPException:
        os.unlink(written)
        raise
