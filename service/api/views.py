"""The JSON documents that the API sends for a job, a report and an event."""

from datetime import datetime
from typing import Any, Self

from fastapi import Response
from pydantic import BaseModel, ConfigDict

from service.contracts.progress import Failed, Progress
from service.contracts.report import SchemeVerdict
from service.contracts.request import JobRequest
from service.store.job_records import Job
from service.store.statuses import Status


class JobView(BaseModel):
    """A job."""

    id: str
    owner: str
    """Owner of the key that submitted it; empty for the bootstrap key."""
    status: Status
    request: JobRequest
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    attempts: int
    """How often a worker has started it."""
    queue_position: int | None
    """Queued jobs of its owner and size that are taken before it, at most 1000; null in lists, and unless queued."""
    cancel_requested: bool
    progress: Progress | None
    """The latest progress event."""
    error: Failed | None
    report: str | None
    """Path of its report; null until it has one, and after that has expired."""
    report_expired_at: datetime | None
    """When its report went; null while it has one, and if it never had."""
    verdicts: dict[str, SchemeVerdict] | None
    """The verdict on each scheme; null without a report."""

    @classmethod
    def of(cls, job: Job, verdicts: dict[str, SchemeVerdict] | None = None) -> Self:
        """Return the view of `job`, with the verdicts of its report if it has one."""
        report = f"/v1/reports/{job.id}" if job.has_report else None
        return cls.model_validate(vars(job) | {"report": report, "verdicts": verdicts})


def sent(view: BaseModel) -> Response:
    """Return the answer with a document, written in the thread of its route: FastAPI would check it once more."""
    return Response(view.model_dump_json(), media_type="application/json")


class JobPage(BaseModel):
    """A page of jobs, newest first, and the token of the next page."""

    jobs: list[JobView]
    next_page_token: str | None


class EventView(BaseModel):
    """One event of a job."""

    model_config = ConfigDict(from_attributes=True)

    sequence: int
    """Number of the event: from 1 in each job, without gaps."""
    at: datetime
    kind: str
    data: dict[str, Any]


class EventList(BaseModel):
    """A job's events in order, and whether the job has ended."""

    events: list[EventView]
    ended: bool
    """True if the job has ended and the list has its last event."""


class ReportView(BaseModel):
    """A report that can be downloaded."""

    id: str
    """Id of the report and its job."""
    model: str
    schemes: tuple[str, ...]
    """The names of its variants."""
    created_at: datetime
    """When the job was submitted."""
    finished_at: datetime | None
    url: str
    """Path of its report.json; the paths of its other files begin with it."""
    verdicts: dict[str, SchemeVerdict] | None
    """The verdict on each scheme; null if the report cannot be read."""

    @classmethod
    def of(cls, job: Job, verdicts: dict[str, SchemeVerdict] | None) -> Self:
        """Return the view of the report of `job`, with its verdicts."""
        return cls(
            id=job.id,
            model=job.request.model,
            schemes=job.request.scheme_names,
            created_at=job.created_at,
            finished_at=job.finished_at,
            url=f"/v1/reports/{job.id}",
            verdicts=verdicts,
        )


class ReportPage(BaseModel):
    """A page of reports, newest first, and the token of the next page."""

    reports: list[ReportView]
    next_page_token: str | None
