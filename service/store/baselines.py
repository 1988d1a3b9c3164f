"""Reads the candidates for the baselines of audits: runs that passed, and pinned reports."""

from typing import NamedTuple

from sqlalchemy import exists, or_, select
from sqlalchemy.orm import Session

from service.audits.baseline import Rule, changed_keys, check_pinned, mismatches, rule, text_mismatch
from service.contracts.audits.audit import AuditDefinition, PastRun
from service.contracts.files import StoredFile
from service.contracts.report import Report
from service.errors import InvalidRequest
from service.store.artifacts import ArtifactStore
from service.store.audit_records import last_passed, past_run_of
from service.store.audit_tables import AuditRerunRow, AuditRow, AuditRunRow
from service.store.job_records import job_of
from service.store.statuses import OPEN, RunState
from service.store.tables import ArtifactRow, JobRow

NO_REPORT = "There is no such report."


class PassedRuns(NamedTuple):
    """Runs of an audit that passed and have a report."""

    comparable: tuple[PastRun, ...]
    """The last of those with the audit's present settings, newest first: as many as its baseline is of."""
    outdated: str | None
    """How the newest of all differs from the audit's present settings, as a sentence; None where some are comparable,
    or none passed."""


def passed_runs(session: Session, audit: AuditRow) -> PassedRuns:
    """Return the runs that an audit's baseline is chosen from; none are needed for a pinned one."""
    runs = tuple(map(past_run_of, last_passed(session, audit.id, rule(audit.baseline).runs)))
    passed = (AuditRunRow.audit_id == audit.id, AuditRunRow.verdict == "pass", AuditRunRow.report_id.is_not(None))
    newest = select(AuditRunRow).where(*passed).order_by(AuditRunRow.finished_at.desc(), AuditRunRow.number.desc())
    last = None if runs else session.scalars(newest.limit(1)).one_or_none()
    if last is None:
        return PassedRuns(runs, None)
    keys = ", ".join(changed_keys(last.definition or {}, audit.definition))
    return PassedRuns(
        (),
        f"No run has passed since the audit was changed: the last that did, report {last.report_id}, had other {keys}.",
    )


class Pinned(NamedTuple):
    """What is stored of a report."""

    sha256: str
    """Of the file report.json."""
    calibration: StoredFile | None
    """The text that it was measured on; None for the bundled one."""


def pinned(session: Session, of: Rule) -> Pinned | None:
    """Return what is stored of a pinned report; None where there is none.

    Raises InvalidRequest for the report of a run that failed or erred, and JobUnreadable.
    """
    ended = (AuditRunRow.report_id == of.report_id, AuditRunRow.state == RunState.ended)
    check_pinned(of, [past_run_of(run) for run in session.scalars(select(AuditRunRow).where(*ended))])
    named = (ArtifactRow.job_id == of.report_id, ArtifactRow.name == "report.json")
    sha256 = session.scalar(select(ArtifactRow.sha256).where(*named))
    if sha256 is None:
        return None
    job = session.get(JobRow, of.report_id)
    return Pinned(sha256, None if job is None else job_of(job, None).request.calibration)


def hold(session: Session, of: Rule, why: tuple[str, ...]) -> None:
    """Keep a pinned report from being deleted, or expiring, before the transaction that pins it has ended.

    Raises InvalidRequest for one that went after `cautions`, which gave `why`, had looked at it.
    """
    if of.report_id is None or NO_REPORT in why:
        return
    job = session.get(JobRow, of.report_id, with_for_update=True)
    if job is None or job.report_expired_at is not None:
        allowed = "a report that is kept"
        raise InvalidRequest("baseline", f"report:{of.report_id}", allowed, problem="was removed in this moment")


def cautions(
    stored: Pinned | None, artifacts: ArtifactStore, definition: AuditDefinition, *, force: bool
) -> tuple[str, ...]:
    """Return in sentences why an audit's limits against its pinned report mean little; none where it fits.

    Raises InvalidRequest for a report that does not fit, unless `force`.
    """
    reasons: tuple[str, ...] = (NO_REPORT,)
    if stored is not None:
        content = artifacts.path(stored.sha256).read_bytes()
        report = Report.model_validate_json(content, extra="allow")
        reasons = (*mismatches(report, definition), *text_mismatch(stored.calibration, definition.calibration))
    if reasons and not force:
        raise InvalidRequest(
            "baseline",
            definition.baseline,
            "a report of these settings, or this one where you insist (force)",
            problem=f"does not fit: {' '.join(reasons).rstrip('.')}",
        )
    return reasons


def is_in_use(session: Session, report_id: str) -> bool:
    """Return whether a run that has not ended needs a report, as its own, its baseline or one of a rerun."""
    rerun = or_(AuditRerunRow.job_id == report_id, AuditRerunRow.baseline_job_id == report_id)
    needed = or_(
        AuditRunRow.baseline_report_id == report_id,
        AuditRunRow.job_id == report_id,
        exists().where(AuditRerunRow.run_id == AuditRunRow.id, rerun),
    )
    return session.scalar(select(AuditRunRow.id).where(needed, AuditRunRow.state.in_(OPEN)).limit(1)) is not None


def may_be_chosen(session: Session, report_id: str) -> bool:
    """Return whether a report is of one of the passing runs that an audit chooses its baseline from."""
    passed = select(AuditRunRow.audit_id).where(AuditRunRow.report_id == report_id, AuditRunRow.verdict == "pass")
    for row in session.scalars(select(AuditRow).where(AuditRow.id.in_(passed))):
        of = rule(row.baseline)
        if of.report_id is None and report_id in [run.report_id for run in last_passed(session, row.id, of.runs)]:
            return True
    return False
