"""The calibration of an audit's limits: starts its jobs, and shows the result once they have ended."""

from datetime import UTC, datetime
from functools import partial
from typing import Annotated

from fastapi import APIRouter, status
from pydantic import BaseModel, Field

from service import audit_calibration, queue
from service.api.audits.baseline import present_baseline
from service.api.audits.names import AuditName
from service.api.bodies import UniqueKeys
from service.api.dependencies import Backend, FromApp
from service.api.reports import comparisons
from service.contracts.audits.audit import Calibration
from service.contracts.record import Frozen, NoBoolean
from service.errors import InvalidRequest, NotFound, ReportUnreadable
from service.store.audit_records import Audit
from service.store.job_records import Job
from service.store.jobs import JobStore
from service.store.owners.access import access_of_owner
from service.store.statuses import Status

router = APIRouter(prefix="/v1/audits/{audit}/calibration", route_class=UniqueKeys)


class Asked(Frozen):
    """How much is measured."""

    seeds: Annotated[int, Field(ge=audit_calibration.FEWEST_SEEDS, le=audit_calibration.MOST_SEEDS), NoBoolean] = 4
    """Calibration seeds beside the audit's own."""


class CalibrationJob(BaseModel):
    """The measurement on one seed."""

    seed: int
    job: str
    """Id of the job, and of its report."""
    status: Status


class CalibrationView(BaseModel):
    """How far a calibration is, and what it says."""

    jobs: list[CalibrationJob]
    result: Calibration | None
    """Null until all jobs have succeeded, and where there is a problem."""
    problem: str | None
    """Why there is and will be no result; null while jobs run."""


_DEFAULT = Asked()


@router.post("", status_code=status.HTTP_202_ACCEPTED)
def begin(backend: FromApp, audit: AuditName, body: Asked = _DEFAULT) -> CalibrationView:
    """Measure the model of the present baseline on further calibration seeds; of an audit without one, its model.

    Jobs that are there already are not repeated, unless they failed or were cancelled.
    """
    of = backend.audits.get(audit)
    send = partial(queue.send, backend.broker) if backend.broker else None
    audit_calibration.begin(_jobs_for(backend, of), of, body.seeds, present_baseline(backend, of), send)
    return show(backend, audit)


@router.get("")
def show(backend: FromApp, audit: AuditName) -> CalibrationView:
    """Return the spread of every limited figure and the false alarms to expect, by the limits of today."""
    of = backend.audits.get(audit)
    baseline = present_baseline(backend, of)
    jobs = audit_calibration.jobs_of(_jobs_for(backend, of), of, baseline)
    result, problem = None, next(filter(None, map(_failure, jobs)), None)
    if jobs and all(job.status is Status.succeeded for job in jobs):
        try:
            sides = [*([baseline] if baseline else []), *(comparisons.stored(backend, job.id) for job in jobs)]
            result = audit_calibration.result(of.definition, sides, datetime.now(UTC))
        except (InvalidRequest, NotFound, ReportUnreadable) as error:
            problem = str(error)
    return CalibrationView(
        jobs=[CalibrationJob(seed=job.request.seed, job=job.id, status=job.status) for job in jobs],
        result=result,
        problem=problem,
    )


def _jobs_for(backend: Backend, audit: Audit) -> JobStore:
    """Return the jobs as the audit's owner sees them, who owns those of the calibration too, whoever asks for it."""
    mine = audit.owner == backend.store.owner
    return backend.store if mine else backend.store.seen_by(access_of_owner(audit.owner))


def _failure(job: Job) -> str | None:
    if job.status is Status.cancelled:
        return f"The job {job.id} on seed {job.request.seed} was cancelled."
    if job.status is not Status.failed or job.error is None:
        return None
    return f"The job {job.id} on seed {job.request.seed} failed: {job.error.message}"
