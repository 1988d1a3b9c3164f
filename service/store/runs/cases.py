"""Records for judging a run: its ended jobs, and what the scheduler writes after judging."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.contracts.audits.audit import AuditDefinition, Finding, PastRun, Rerun, RunVerdict
from service.contracts.audits.resolution import Resolution, Terms
from service.contracts.progress import Failed
from service.contracts.request import JobRequest
from service.store.audit_tables import AuditRerunRow
from service.store.statuses import JOB_ENDED, Status
from service.store.tables import JobRow

GONE = ("bad-model", "model-changed")
"""Codes of the failures of a job whose model is not to be had."""


@dataclass(frozen=True)
class JobEnd:
    """How a job of a run ended."""

    id: str
    """Also its report's."""
    status: Status | None
    """None where the job is gone."""
    error: Failed | None = None
    resolution: Resolution | None = None
    terms: Terms | None = None

    @property
    def unchanged(self) -> bool:
        """Whether it ended because it would have measured what was measured before."""
        known = self.terms.unless_identity if self.terms else None
        return self.status is Status.cancelled and known is not None and known == self.identity

    @property
    def identity(self) -> str | None:
        """What it measured, or would have."""
        return self.resolution.identity if self.resolution else None

    @property
    def model_gone(self) -> bool:
        """Whether it failed because its model is not to be had anymore."""
        return self.error is not None and self.error.bad_input and self.error.code in GONE

    @property
    def reason(self) -> str:
        """Why there is no report, as a sentence."""
        if self.error is not None:
            return f"The measurement failed ({self.error.code}): {self.error.message.rstrip('.')}."
        return "The job was cancelled." if self.status is Status.cancelled else "The job was deleted."


@dataclass(frozen=True)
class RerunEnd:
    """How the jobs on another calibration seed ended."""

    seed: int
    candidate: JobEnd
    baseline: JobEnd | None
    """None where the baseline's model was not measured, since no limit needed it."""


@dataclass(frozen=True)
class Case:
    """A run to judge, held by one scheduler for the time of a lease."""

    run_id: str
    fence: int
    """Number of this judgment; writes are valid only while it is the run's."""
    definition: AuditDefinition
    job: JobEnd
    passed: tuple[PastRun, ...]
    """Runs that a baseline may be chosen from."""
    findings: tuple[Finding, ...]
    """Of the first measurement, where that has been judged."""
    baseline_report_id: str | None
    """Likewise."""
    reruns: tuple[RerunEnd, ...]
    """Empty before the first measurement has been judged."""
    baseline_hidden: bool = False
    """Whether the pinned report is not one that the audit's owner may see."""


@dataclass(frozen=True)
class RerunJobs:
    """The jobs to insert for another calibration seed."""

    seed: int
    candidate: tuple[JobRequest, Terms]
    baseline: tuple[JobRequest, Terms] | None


@dataclass(frozen=True)
class Measured:
    """What the first judgment found."""

    findings: tuple[Finding, ...]
    baseline_report_id: str | None
    figures: dict[str, float]
    """The report's numeric figures that have limits, by their paths."""
    identity: str | None


@dataclass(frozen=True)
class Ending:
    """The end of a run."""

    verdict: RunVerdict
    reasons: Sequence[str]
    measured: Measured | None = None
    """None where nothing was measured, or it was written before the reruns."""
    reruns: tuple[Rerun, ...] = ()


def job_ends(session: Session, ids: Sequence[str]) -> dict[str, JobEnd]:
    """Return how jobs stand, by their ids."""
    rows = {row.id: row for row in session.scalars(select(JobRow).where(JobRow.id.in_(ids)))}
    return {job_id: _job_end(job_id, rows.get(job_id)) for job_id in ids}


def reruns_of(session: Session, run_id: str) -> tuple[RerunEnd, ...]:
    """Return how the jobs of a run's reruns stand, by seed."""
    rows = session.scalars(select(AuditRerunRow).where(AuditRerunRow.run_id == run_id).order_by(AuditRerunRow.seed))
    listed = list(rows)
    ids = [job for row in listed for job in (row.job_id, row.baseline_job_id) if job is not None]
    ends = job_ends(session, ids)
    return tuple(
        RerunEnd(row.seed, ends[row.job_id], ends[row.baseline_job_id] if row.baseline_job_id else None)
        for row in listed
    )


def has_ended(end: JobEnd | None) -> bool:
    """Return whether a job will change no more by itself."""
    return end is None or end.status is None or end.status in JOB_ENDED


def _job_end(job_id: str, row: JobRow | None) -> JobEnd:
    if row is None:
        return JobEnd(job_id, None)
    return JobEnd(
        job_id,
        row.status,
        Failed.model_validate(row.error) if row.error else None,
        Resolution.model_validate(row.resolution) if row.resolution else None,
        Terms.model_validate(row.terms) if row.terms else None,
    )
