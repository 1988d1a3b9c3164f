"""Reports: list them, and download their files."""

import os
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Path, Request, Response, status
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException

from service import queue, submission
from service.api.bodies import UniqueKeys
from service.api.dependencies import FromApp, IdempotencyKey, JobId, ModelFilter, PageSize, PageToken
from service.api.reports import downloads
from service.api.reports.verdicts import verdicts_of
from service.api.views import JobView, ReportPage, ReportView
from service.contracts.harm.earlier import RecommendSubmission
from service.errors import NotFound
from service.recommending import request_for_report

router = APIRouter(prefix="/v1/reports", route_class=UniqueKeys)

_NAME = r"^[A-Za-z0-9_-]{1,100}$"
Name = Annotated[str, Path(pattern=_NAME)]


@router.get("")
def list_reports(
    backend: FromApp, page_size: PageSize = 50, page_token: PageToken = None, model: ModelFilter = None
) -> ReportPage:
    """Return the reports that can be downloaded, newest first."""
    page = backend.store.list(model=model, page_size=page_size, page_token=page_token, with_report=True)
    verdicts = verdicts_of(backend, page.jobs)
    return ReportPage(
        reports=[ReportView.of(job, verdicts.get(job.id)) for job in page.jobs], next_page_token=page.next_page_token
    )


@downloads.route(router, "/{job_id}")
def report(backend: FromApp, request: Request, job_id: JobId) -> Response:
    """Return report.json."""
    return downloads.artifact(backend, request, job_id, "report.json")


@router.post("/{job_id}/recommend", status_code=status.HTTP_202_ACCEPTED)
def recommend(
    backend: FromApp,
    job_id: JobId,
    body: RecommendSubmission,
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> JobView:
    """Submit a job that recommends which modules of the report's model to keep in 16 bits.

    The job has the report's model, revision, texts and settings, and measures all of it again. It fails with the code
    `model-changed` if the model's weights are no longer the report's.
    """
    request = request_for_report(backend.store, backend.artifacts, job_id, body)
    send = partial(queue.send, backend.broker) if backend.broker else None
    job = submission.enqueue(backend.store, request, idempotency_key=idempotency_key, send=send)
    response.headers["Location"] = f"/v1/jobs/{job.id}"
    return JobView.of(job)


@downloads.route(router, "/{job_id}/report.html")
def page(backend: FromApp, request: Request, job_id: JobId) -> Response:
    """Return the report as one HTML file without external resources."""
    return downloads.artifact(backend, request, job_id, "report.html")


@downloads.route(router, "/{job_id}/summary.md")
def summary(backend: FromApp, request: Request, job_id: JobId) -> Response:
    """Return the report's summary in Markdown."""
    return downloads.artifact(backend, request, job_id, "summary.md")


@downloads.route(router, "/{job_id}/bundle.zip")
def bundle(backend: FromApp, request: Request, job_id: JobId) -> Response:
    """Return every file of the report in one archive."""
    return downloads.artifact(backend, request, job_id, "bundle.zip")


@downloads.route(router, "/{job_id}/figures/{name}.{form}")
def figure(backend: FromApp, request: Request, job_id: JobId, name: Name, form: str) -> Response:
    """Return a figure, as `svg` or `png`."""
    if form not in {"svg", "png"}:
        raise NotFound(f"figure: {form!r} is not a format; allowed: {name}.svg, {name}.png")
    return downloads.artifact(backend, request, job_id, f"figures/{name}.{form}")


@downloads.route(router, "/{job_id}/tables/{name}.{form}")
def table(backend: FromApp, request: Request, job_id: JobId, name: Name, form: str) -> Response:
    """Return a table, as `parquet` or `csv`."""
    if form == "parquet":
        return downloads.artifact(backend, request, job_id, f"tables/{name}.parquet")
    if form != "csv":
        raise NotFound(f"table: {form!r} is not a format; allowed: {name}.parquet, {name}.csv")
    row = backend.store.artifact(job_id, f"tables/{name}.parquet")
    etag = downloads.csv_tag(row.sha256)
    if downloads.has_current(request, etag):
        return downloads.not_modified(etag)
    written = downloads.write_csv(backend.artifacts.path(row.sha256))
    cleanup = BackgroundTask(os.unlink, written)
    try:
        return downloads.send(request, written, etag, "text/csv; charset=utf-8", f"{job_id}-{name}.csv", then=cleanup)
    except HTTPException:
        os.unlink(written)
        raise
