"""The check of a report that an audit pins as its baseline, against what is stored of it."""

from typing import NamedTuple

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.audits.baseline import Rule, check_pinned, mismatches, text_mismatch
from service.contracts.audits.audit import AuditDefinition
from service.contracts.files import StoredFile
from service.contracts.report import Report
from service.contracts.request import JobRequest
from service.errors import InvalidRequest
from service.store.artifacts import ArtifactStore
from service.store.audit_records import past_run_of
from service.store.statuses import RunState
from service.store.tables import ArtifactRow, AuditRunRow, JobRow

NO_REPORT = "There is no such report."


class Pinned(NamedTuple):
    """What is stored of a report."""

    sha256: str
    """Of the file report.json."""
    calibration: StoredFile | None
    """The text that it was measured on; None for the bundled one."""


def pinned(session: Session, of: Rule) -> Pinned | None:
    """Return what is stored of a pinned report; None where there is none.

    Raises InvalidRequest for the report of a run that failed or erred.
    """
    ended = (AuditRunRow.report_id == of.report_id, AuditRunRow.state == RunState.ended)
    check_pinned(of, [past_run_of(run) for run in session.scalars(select(AuditRunRow).where(*ended))])
    named = (ArtifactRow.job_id == of.report_id, ArtifactRow.name == "report.json")
    sha256 = session.scalar(select(ArtifactRow.sha256).where(*named))
    if sha256 is None:
        return None
    job = session.get(JobRow, of.report_id)
    return Pinned(sha256, None if job is None else JobRequest.model_validate(job.request).calibration)


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
