"""Runs of audits as rows."""

from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.contracts.audit import Trigger
from service.store.job_records import new_id
from service.store.statuses import OPEN, RunState, Status
from service.store.tables import AuditRerunRow, AuditRow, AuditRunRow, JobRow
from service.store.transactions import end_cancelled, record


def add_run(
    session: Session, audit: AuditRow, trigger: Trigger, now: datetime, *, scheduled_at: datetime | None = None
) -> AuditRunRow:
    """Insert a run that waits to be started. The audit's row must be locked."""
    audit.runs += 1
    row = AuditRunRow(
        id=new_id(now),
        audit_id=audit.id,
        number=audit.runs,
        trigger=trigger,
        state=RunState.queued,
        scheduled_at=scheduled_at,
        created_at=now,
        reasons=[],
        findings=[],
        reruns=[],
        figures={},
        fence=0,
        judgments=0,
    )
    session.add(row)
    session.flush()
    return row


def cancel_jobs(session: Session, audit_id: str, now: datetime) -> None:
    """Stop the jobs that runs of an audit wait for."""
    runs = select(AuditRunRow.id).where(AuditRunRow.audit_id == audit_id, AuditRunRow.state.in_(OPEN))
    first = select(AuditRunRow.job_id).where(AuditRunRow.id.in_(runs))
    reruns = [
        select(column).where(AuditRerunRow.run_id.in_(runs))
        for column in (AuditRerunRow.job_id, AuditRerunRow.baseline_job_id)
    ]
    waited_for = {job for query in (first, *reruns) for job in session.scalars(query) if job is not None}
    present = JobRow.status.in_((Status.queued, Status.running))
    jobs = select(JobRow).where(JobRow.id.in_(waited_for), present).order_by(JobRow.id).with_for_update()
    for job in session.scalars(jobs):
        if job.status is Status.queued:
            end_cancelled(session, job, now)
        elif not job.cancel_requested:
            job.cancel_requested = True
            record(session, job, "cancel_requested", {}, now)
