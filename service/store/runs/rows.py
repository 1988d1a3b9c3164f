"""Inserts and ends runs of audits, inside the transaction of whoever does so."""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.contracts.audits.audit import RunVerdict, Trigger
from service.store.alerts import note_run
from service.store.audit_records import run_of
from service.store.audit_tables import AuditRerunRow, AuditRow, AuditRunRow
from service.store.job_records import new_id
from service.store.statuses import OPEN, RunState, Status
from service.store.tables import JobRow
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


def locked_run(session: Session, run_id: str) -> tuple[AuditRow, AuditRunRow] | None:
    """Return the rows of a run and of its audit, held until the transaction ends; None if they are gone.

    The audit comes first, as everywhere, so that two transactions never wait for each other.
    """
    audit_id = session.scalar(select(AuditRunRow.audit_id).where(AuditRunRow.id == run_id))
    audit = session.get(AuditRow, audit_id, with_for_update=True) if audit_id else None
    run = session.get(AuditRunRow, run_id, with_for_update=True) if audit else None
    return None if audit is None or run is None else (audit, run)


def skip(
    session: Session, audit: AuditRow, scheduled_at: datetime, reasons: Sequence[str], now: datetime
) -> AuditRunRow:
    """Insert a run that does not take place. The audit's row must be locked."""
    row = add_run(session, audit, "schedule", now, scheduled_at=scheduled_at)
    end_run(session, audit, row, "skipped", reasons, now)
    return row


def end_run(
    session: Session, audit: AuditRow, run: AuditRunRow, verdict: RunVerdict, reasons: Sequence[str], now: datetime
) -> None:
    """Write a run's verdict, and pause the audit after too many errors in a row. Both rows must be locked.

    A gate judges another model than the audit's, so its errors do not count, nor does its success end a series of them.
    What else belongs to the end of a run, such as its findings, must be in the row by then. NUL characters, which
    PostgreSQL does not store, are left out of the reasons.
    """
    reasons = [reason.replace("\0", "") for reason in reasons]
    run.state, run.verdict, run.reasons = RunState.ended, verdict, reasons
    run.finished_at, run.lease_expires_at = now, None
    paused_now = run.trigger != "gate" and _count_errors(audit, verdict, reasons)
    session.flush()
    note_run(session, audit, run_of(run), now, paused_now=paused_now)


def _count_errors(audit: AuditRow, verdict: RunVerdict, reasons: Sequence[str]) -> bool:
    """Count the errors in a row up to a run that ended; return whether they pause the audit."""
    if verdict not in ("error", "skipped"):
        audit.errors = 0
    if verdict != "error":
        return False
    audit.errors += 1
    if audit.paused or audit.errors < audit.definition["pause_after_errors"]:
        return False
    audit.paused, audit.next_run_at = True, None
    audit.pause_reason = f"{audit.errors} runs in a row ended as error; the last: {' '.join(reasons)}"[:1024]
    return True


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
