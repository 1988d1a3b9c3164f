"""Jobs: submit, list, show, cancel, retry, delete."""

from functools import partial
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response, status

from service import queue, submission
from service.api.bodies import UniqueKeys
from service.api.dependencies import (
    FileKey,
    FromApp,
    IdempotencyKey,
    JobId,
    ModelFilter,
    PageSize,
    PageToken,
    UploadedFiles,
)
from service.api.reports import downloads
from service.api.reports.verdicts import verdicts_of
from service.api.views import JobPage, JobView, sent
from service.contracts.request import JobRequest, JobSubmission
from service.store.job_records import Job
from service.store.statuses import Status

router = APIRouter(prefix="/v1/jobs", route_class=UniqueKeys)


@router.post(
    "",
    status_code=status.HTTP_202_ACCEPTED,
    response_model=JobView | JobRequest,
    responses={200: {"model": JobRequest, "description": "The request is valid; nothing was submitted."}},
)
def submit(
    backend: FromApp,
    uploaded: UploadedFiles,
    body: JobSubmission,
    response: Response,
    idempotency_key: IdempotencyKey = None,
    validate_only: Annotated[bool, Query(description="Check the request without submitting it; answers 200.")] = False,
) -> JobView | JobRequest:
    """Submit a job. The header Location of the answer has the job's path.

    Without `labelled`, the model `sample` uses its bundled labeled prompts.
    """
    if validate_only:
        response.status_code = status.HTTP_200_OK
        return submission.validate(body, uploaded, idempotency_key=idempotency_key)
    send = partial(queue.send, backend.broker) if backend.broker else None
    job = submission.submit(
        backend.store, backend.artifacts, body, uploaded, idempotency_key=idempotency_key, send=send
    )
    response.headers["Location"] = f"/v1/jobs/{job.id}"
    return JobView.of(job, verdicts_of(backend, [job]).get(job.id))


@router.get("")
def list_jobs(
    backend: FromApp,
    page_size: PageSize = 50,
    page_token: PageToken = None,
    status: Status | None = None,
    model: ModelFilter = None,
) -> JobPage:
    """Return jobs, newest first. Jobs that this version of the service cannot read are left out."""
    page = backend.store.list(status=status, model=model, page_size=page_size, page_token=page_token)
    verdicts = verdicts_of(backend, page.jobs)
    return JobPage(
        jobs=[JobView.of(job, verdicts.get(job.id)) for job in page.jobs], next_page_token=page.next_page_token
    )


@router.get("/{job_id}", response_model=JobView)
def show(backend: FromApp, job_id: JobId) -> Response:
    """Return one job. Answers 409 for one that this version of the service cannot read."""
    job = backend.store.get(job_id)
    return sent(JobView.of(job, verdicts_of(backend, [job]).get(job.id)))


@downloads.route(router, "/{job_id}/files/{key}")
def file(backend: FromApp, request: Request, job_id: JobId, key: FileKey) -> Response:
    """Return a file that the request brought: `calibration` or `labelled`."""
    return downloads.uploaded(backend, request, getattr(backend.store.get(job_id).request, key), key)


@router.post("/{job_id}/cancel", responses={202: {"model": JobView}})
def cancel(backend: FromApp, job_id: JobId, response: Response) -> JobView:
    """Cancel a job: a queued job at once (200), a running job when its worker stops (202)."""
    return _changed(backend.store.cancel(job_id), response)


@router.post("/{job_id}/retry", status_code=status.HTTP_202_ACCEPTED)
def retry(backend: FromApp, job_id: JobId) -> JobView:
    """Queue a failed or cancelled job again."""
    return JobView.of(backend.store.retry(job_id))


@router.delete("/{job_id}", status_code=status.HTTP_204_NO_CONTENT)
def delete(backend: FromApp, job_id: JobId) -> None:
    """Delete a job that is not running, with its report; a queued one is taken from the queue.

    Answers 409 while the job runs, and while an audit needs its report. Later requests for either answer 410.
    """
    backend.removals.delete(job_id)


def _changed(job: Job, response: Response) -> JobView:
    if job.status in {Status.queued, Status.running}:
        response.status_code = status.HTTP_202_ACCEPTED
    return JobView.of(job)
