"""Frozen records of jobs and what belongs to them, read from the database: they need no open session.

Times are timezone-aware UTC. Job ids are 32 hexadecimal characters that sort by the time of submission.
"""

import secrets
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pydantic import ValidationError

from service.contracts.audits.resolution import Terms
from service.contracts.progress import Failed, Progress
from service.contracts.request import JobRequest, SizeClass
from service.errors import JobUnreadable
from service.store.statuses import Status
from service.store.tables import ArtifactRow, EventRow, JobRow


@dataclass(frozen=True)
class Job:
    """One request to analyze one model, and its state."""

    id: str
    """Also the id of its report."""
    owner: str
    """Whose it is; empty: nobody's."""
    status: Status
    request: JobRequest
    created_at: datetime
    started_at: datetime | None
    """When the present or last attempt began."""
    finished_at: datetime | None
    attempts: int
    """How often a worker has begun it."""
    dispatch: int
    """Number of the message that may start it."""
    size: SizeClass
    fence: int
    """Number of the claim that may write to it."""
    worker: str | None
    lease_expires_at: datetime | None
    cancel_requested: bool
    error: Failed | None
    progress: Progress | None
    queue_position: int | None
    """Queued jobs of its owner and size that are taken before it, at most 1000. None in lists, and unless queued."""
    report_expired_at: datetime | None
    """When its report went; None while it has one, and where it never had."""

    @property
    def has_report(self) -> bool:
        """Whether it left a report that is still kept."""
        return self.status is Status.succeeded and self.report_expired_at is None


@dataclass(frozen=True)
class Event:
    """One entry of a job's history."""

    job_id: str
    sequence: int
    """From 1, without gaps, for every job."""
    at: datetime
    kind: str
    """`queued started resolved progress warning requeued cancel_requested succeeded failed cancelled`. A `warning` of
    the code `no-worker` comes while the job waits; the others are the measurement's."""
    data: dict[str, Any]


@dataclass(frozen=True)
class Claim:
    """A worker's hold on a running job. Every write it makes is valid only while `fence` is the job's."""

    job_id: str
    fence: int
    request: JobRequest
    attempt: int
    """From 1; never given twice for one job."""
    terms: Terms | None = None
    """Of an audit's job; None for any other."""


@dataclass(frozen=True)
class Artifact:
    """One file of a report."""

    job_id: str
    name: str
    """`report.json`, `figures/error_growth.svg`, `tables/sites.parquet`, `bundle.zip`, ..."""
    sha256: str
    size: int
    """Bytes."""
    media_type: str


@dataclass(frozen=True)
class Dispatch:
    """One message that is to start a job."""

    job_id: str
    number: int
    size: SizeClass = "small"
    """Of the job: which workers the message is to wake."""


@dataclass(frozen=True)
class Page:
    """Part of a list of jobs, newest first."""

    jobs: list[Job]
    next_page_token: str | None
    """Asks for the next part; None at the end."""


def new_id(now: datetime) -> str:
    """Return 32 hexadecimal characters: the milliseconds since 1970 in 12 of them, then 80 random bits."""
    return f"{int(now.timestamp() * 1000):012x}{secrets.token_hex(10)}"


def job_of(row: JobRow, queue_position: int | None) -> Job:
    """Return the record of a row. Raises JobUnreadable where a document in it is of another version or damaged."""
    try:
        return _job_of(row, queue_position)
    except ValidationError as error:
        raise unreadable(row.id, error) from error


def unreadable(job_id: str, error: ValidationError) -> JobUnreadable:
    """Return the error for a stored job with a document that is not valid."""
    return JobUnreadable(
        f"job {job_id} was stored by another version of the service, or is damaged: {first_problem(error)}; "
        f"to remove it: DELETE /v1/jobs/{job_id}"
    )


def first_problem(error: ValidationError) -> str:
    """Return where a document is not valid, and why."""
    first = error.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(map(str, first['loc'])) or error.title}: {first['msg']}"


def _job_of(row: JobRow, queue_position: int | None) -> Job:
    return Job(
        id=row.id,
        owner=row.owner,
        status=row.status,
        request=JobRequest.model_validate(row.request),
        created_at=row.created_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
        attempts=row.attempts,
        dispatch=row.dispatch,
        size=row.size,
        fence=row.fence,
        worker=row.worker,
        lease_expires_at=row.lease_expires_at,
        cancel_requested=row.cancel_requested,
        error=Failed.model_validate(row.error) if row.error else None,
        progress=Progress.model_validate(row.progress) if row.progress else None,
        queue_position=queue_position,
        report_expired_at=row.report_expired_at,
    )


def event_of(row: EventRow) -> Event:
    """Return the record of a row."""
    return Event(row.job_id, row.sequence, row.at, row.kind, row.data)


def artifact_of(row: ArtifactRow) -> Artifact:
    """Return the record of a row."""
    return Artifact(row.job_id, row.name, row.sha256, row.size, row.media_type)
