"""Jobs: submit, list, look at, cancel, try again."""

from functools import partial
from typing import Annotated

from fastapi import APIRouter, Header, Query, Response, status

from service import queue, submission
from service.api.bodies import UniqueKeys
from service.api.parameters import PRINTABLE, JobId, ModelFilter, PageSize, PageToken
from service.api.rooms import Within
from service.api.verdicts import verdicts_of
from service.api.views import JobPage, JobView
from service.contracts.request import JobRequest, JobSubmission
from service.store.records import Job
from service.store.statuses import Status

router = APIRouter(prefix="/v1/jobs", route_class=UniqueKeys)


@router.post("", status_code=status.HTTP_202_ACCEPTED, response_model=JobView | JobRequest)
def submit(
    rooms: Within,
    wanted: JobSubmission,
    response: Response,
    idempotency_key: Annotated[
        str | None, Header(max_length=255, pattern=PRINTABLE, description="The same key never submits a second job.")
    ] = None,
    validate_only: Annotated[bool, Query(description="Check the request and submit nothing; answers 200.")] = False,
) -> JobView | JobRequest:
    """Submit a job; the answer's Location is where to watch it.

    Without `labelled`, the model `sample` uses the labeled prompts that are bundled with it.
    """
    accepted = submission.submit(
        rooms.store,
        rooms.artifacts,
        wanted,
        idempotency_key=idempotency_key,
        validate_only=validate_only,
        bell=partial(queue.send, rooms.broker) if rooms.broker else None,
    )
    if isinstance(accepted, JobRequest):
        response.status_code = status.HTTP_200_OK
        return accepted
    response.headers["Location"] = f"/v1/jobs/{accepted.id}"
    return JobView.of(accepted, verdicts_of(rooms, [accepted]).get(accepted.id))


@router.get("")
def list_jobs(
    rooms: Within,
    page_size: PageSize = 50,
    page_token: PageToken = None,
    status: Status | None = None,
    model: ModelFilter = None,
) -> JobPage:
    """Return jobs, newest first."""
    page = rooms.store.list(status=status, model=model, page_size=page_size, page_token=page_token)
    verdicts = verdicts_of(rooms, page.jobs)
    return JobPage(
        jobs=[JobView.of(job, verdicts.get(job.id)) for job in page.jobs], next_page_token=page.next_page_token
    )


@router.get("/{job_id}")
def show(rooms: Within, job_id: JobId) -> JobView:
    """Return one job."""
    job = rooms.store.get(job_id)
    return JobView.of(job, verdicts_of(rooms, [job]).get(job.id))


@router.post("/{job_id}/cancel")
def cancel(rooms: Within, job_id: JobId, response: Response) -> JobView:
    """Cancel a job: at once while it is queued (200), or ask its worker to stop (202)."""
    return _changed(rooms.store.cancel(job_id), response)


@router.post("/{job_id}/retry")
def retry(rooms: Within, job_id: JobId, response: Response) -> JobView:
    """Queue a failed or cancelled job once more (202)."""
    return _changed(rooms.store.retry(job_id), response)


def _changed(job: Job, response: Response) -> JobView:
    if job.status in {Status.queued, Status.running}:
        response.status_code = status.HTTP_202_ACCEPTED
    return JobView.of(job)
