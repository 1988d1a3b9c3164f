"""The steps from the end of a run's jobs to its verdict, each one transaction.

    measuring --take--> judging --end--> ended
                        judging --rerun--> rerunning --take--> judging --end--> ended

A scheduler that takes a run holds it under a lease, and writes only while its fence is the run's. One that dies leaves
the run to another; a run that schedulers do not survive ends as `error`.
"""

from datetime import timedelta

from pydantic import ValidationError
from sqlalchemy import and_, exists, or_, select
from sqlalchemy.orm import Session

from service.audits.baseline import rule
from service.contracts.audits.audit import AuditDefinition, Finding
from service.errors import InvalidRequest
from service.store.audit_records import last_passed, past_run_of
from service.store.audit_tables import AuditRerunRow, AuditRow, AuditRunRow
from service.store.owners.access import access_of_owner
from service.store.owners.visibility import seeing
from service.store.runs.cases import Case, Ending, Measured, RerunJobs, has_ended, job_ends, reruns_of
from service.store.runs.rows import end_run, locked_run
from service.store.statuses import JOB_ENDED, RunState, Status
from service.store.tables import JobRow
from service.store.transactions import Transactions, insert_job

MOST_JUDGMENTS = 3
"""Schedulers that may be lost while they judge the same measurement."""
_UNREADABLE = "The run cannot be read by this version"


class Judging(Transactions):
    """Runs whose jobs have ended."""

    def ready_runs(self, limit: int = 10) -> list[str]:
        """Return the ids of the runs that can be judged, oldest first."""
        job_open = exists().where(JobRow.id == AuditRunRow.job_id, JobRow.status.not_in(JOB_ENDED))
        jobs = or_(JobRow.id == AuditRerunRow.job_id, JobRow.id == AuditRerunRow.baseline_job_id)
        rerun_open = exists().where(AuditRerunRow.run_id == AuditRunRow.id, jobs, JobRow.status.not_in(JOB_ENDED))
        ready = or_(
            and_(AuditRunRow.state == RunState.measuring, ~job_open),
            and_(AuditRunRow.state == RunState.rerunning, ~rerun_open),
            and_(AuditRunRow.state == RunState.judging, AuditRunRow.lease_expires_at < self._clock()),
        )
        with self._read() as session:
            return list(session.scalars(select(AuditRunRow.id).where(ready).order_by(AuditRunRow.id).limit(limit)))

    def take(self, run_id: str, lease_seconds: float) -> Case | None:
        """Hold a run to judge it. None where it cannot be judged now, and where it ended by this."""
        with self._write() as session:
            rows = locked_run(session, run_id)
            if rows is None:
                return None
            (audit, run), now = rows, self._clock()
            try:
                if not self._is_ready(session, run):
                    return None
            except (ValidationError, InvalidRequest) as error:
                end_run(session, audit, run, "error", [f"{_UNREADABLE}: {error}"], now)
                return None
            if run.state is not RunState.judging:
                run.judgments = 0
            elif run.judgments >= MOST_JUDGMENTS:
                reason = f"The scheduler process ended {run.judgments} times while it judged the reports."
                end_run(session, audit, run, "error", [reason], now)
                return None
            run.state, run.fence, run.judgments = RunState.judging, run.fence + 1, run.judgments + 1
            run.lease_expires_at = now + timedelta(seconds=lease_seconds)
            try:
                return _case(session, audit, run)
            except (ValidationError, InvalidRequest) as error:
                end_run(session, audit, run, "error", [f"{_UNREADABLE}: {error}"], now)
                return None

    def put_off(self, case: Case) -> None:
        """Leave a judgment to be repeated once the lease ends, without counting it: its reports could not be read."""
        with self._write() as session:
            rows = _held(session, case)
            if rows is not None:
                rows[1].judgments -= 1

    def rerun(self, case: Case, measured: Measured, jobs: tuple[RerunJobs, ...]) -> bool:
        """Keep what the first judgment found, and insert the jobs on other seeds. False where the run is not held."""
        with self._write() as session:
            rows = _held(session, case)
            if rows is None:
                return False
            (audit, run), now = rows, self._clock()
            _keep(run, case, measured)
            run.state, run.lease_expires_at = RunState.rerunning, None
            for one in jobs:
                inserted = [
                    None if asked is None else insert_job(session, asked[0], now, owner=audit.owner, terms=asked[1]).id
                    for asked in (one.candidate, one.baseline)
                ]
                session.add(
                    AuditRerunRow(run_id=run.id, seed=one.seed, job_id=inserted[0], baseline_job_id=inserted[1])
                )
            return True

    def end(self, case: Case, ending: Ending) -> bool:
        """Write a run's verdict. False where the run is not held."""
        with self._write() as session:
            rows = _held(session, case)
            if rows is None:
                return False
            audit, run = rows
            if ending.measured is not None:
                _keep(run, case, ending.measured)
            run.reruns = [one.model_dump(mode="json") for one in ending.reruns]
            end_run(session, audit, run, ending.verdict, ending.reasons, self._clock())
            return True

    def _is_ready(self, session: Session, run: AuditRunRow) -> bool:
        if run.state is RunState.measuring:
            return has_ended(job_ends(session, [run.job_id or ""])[run.job_id or ""])
        if run.state is RunState.rerunning:
            ends = reruns_of(session, run.id)
            return all(has_ended(end) for one in ends for end in (one.candidate, one.baseline))
        return (
            run.state is RunState.judging
            and run.lease_expires_at is not None
            and (run.lease_expires_at < self._clock())
        )


def _case(session: Session, audit: AuditRow, run: AuditRunRow) -> Case:
    definition = AuditDefinition.model_validate(run.definition)
    job_id, of = run.job_id or "", rule(definition.baseline)
    return Case(
        run_id=run.id,
        fence=run.fence,
        definition=definition,
        job=job_ends(session, [job_id])[job_id],
        passed=tuple(map(past_run_of, last_passed(session, run.audit_id, of.runs, run.definition))),
        findings=tuple(Finding.model_validate(one) for one in run.findings),
        baseline_report_id=run.baseline_report_id,
        reruns=reruns_of(session, run.id),
        baseline_hidden=of.report_id is not None and not _is_seen(session, audit.owner, of.report_id),
    )


def _is_seen(session: Session, owner: str, report_id: str) -> bool:
    """Return whether an owner may see a report."""
    with seeing(session, access_of_owner(owner)):
        return session.scalar(select(JobRow.id).where(JobRow.id == report_id)) is not None


def _held(session: Session, case: Case) -> tuple[AuditRow, AuditRunRow] | None:
    rows = locked_run(session, case.run_id)
    held = rows is not None and rows[1].state is RunState.judging and rows[1].fence == case.fence
    return rows if held else None


def _keep(run: AuditRunRow, case: Case, measured: Measured) -> None:
    run.report_id = case.job.id if case.job.status is Status.succeeded else None
    run.findings = [one.model_dump(mode="json") for one in measured.findings]
    run.baseline_report_id = measured.baseline_report_id
    run.figures, run.identity = measured.figures, measured.identity
