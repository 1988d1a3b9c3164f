"""Measures for a gate and judges what comes out, as the scheduler does for an audit.

A limit that is broken beyond noise is measured again on other calibration seeds, the model and the baseline's both, and
fails the gate only if it is broken there too.
"""

import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from service.audits.judgment import combine, judge, to_measure_again
from service.audits.limits import Limit
from service.cli.analysis import check_succeeded, run_job
from service.cli.client import fetch
from service.cli.connection import Service
from service.cli.gating.baseline import side
from service.cli.output import Display
from service.cli.running import JobFailed
from service.comparison.comparable_report import ComparableReport
from service.contracts.audits.audit import AuditRun, Finding, Rerun
from service.contracts.report import Report

OTHER_TEXT = "The calibration texts differ, and texts that differ are never compared; --force judges all the same."
_GONE = "bad-model"
"""Code of a job's error where its model cannot be had; for good if the error is bad input."""
_SEEDS = 2**63


@dataclass
class Gauge:
    """Measures models with the settings of a gate, and keeps their reports below a directory."""

    service: Service
    shown: Display
    body: dict[str, Any]
    """Keys of a job but for its model."""
    directory: Path
    last_job: str | None = field(default=None, init=False)

    def measure(self, model: str, seed: int) -> ComparableReport:
        """Return the report of a model. Raises JobFailed and JobCancelled."""
        job = run_job(self.service, {**self.body, "model": model, "seed": seed}, self.shown)
        self.last_job = job["id"]
        check_succeeded(job)
        fetch(self.service.client, job["id"], self.directory / job["id"])
        return side(self.directory / job["id"], job["id"])


def gate(
    gauge: Gauge,
    model: str,
    limits: tuple[Limit, ...],
    baseline: ComparableReport | None,
    *,
    reruns: int,
    force: bool,
) -> AuditRun:
    """Measure a model and return the run that has judged it. Raises JobCancelled."""
    started = datetime.now(UTC)
    run = AuditRun(id=uuid.uuid4().hex, audit_id="", trigger="gate", scheduled_at=None, started_at=started)
    seed = int(gauge.body["seed"])
    try:
        candidate = gauge.measure(model, seed)
    except JobFailed as error:
        return _ended(run, verdict="error", reasons=(str(error),), job_id=error.job_id)
    facts: dict[str, Any] = {"job_id": candidate.name, "report_id": candidate.name}
    if baseline is not None:
        facts["baseline_report_id"] = baseline.report.job_id
        if not force and _other_text(candidate, baseline) and any(limit.against_baseline for limit in limits):
            return _ended(run, verdict="error", reasons=(OTHER_TEXT,), **facts)
    findings = judge(limits, candidate, baseline)
    again = to_measure_again(limits, findings)
    measured = tuple(
        _rerun(gauge, (seed + place) % _SEEDS, again, candidate.report, baseline.report if baseline else None)
        for place in range(1, reruns + 1 if again else 1)
    )
    outcome = combine(findings, measured)
    facts |= {"findings": findings, "reruns": measured}
    return _ended(run, verdict=outcome.verdict, reasons=outcome.reasons, **facts)


def _rerun(gauge: Gauge, seed: int, limits: tuple[Limit, ...], candidate: Report, baseline: Report | None) -> Rerun:
    """Return what a measurement of the candidate and the baseline's model on another seed says of broken limits."""
    needs_baseline = baseline is not None and any(limit.against_baseline for limit in limits)
    try:
        after = _again(gauge, candidate, seed)
        before = _again(gauge, baseline, seed) if baseline is not None and needs_baseline and after else None
    except JobFailed:
        return Rerun(seed=seed, status="failed")
    if after is None:
        return Rerun(seed=seed, status="failed")
    if needs_baseline and before is None:
        return Rerun(seed=seed, status="baseline_gone", report_id=after.name, findings=_absolute(limits, after))
    return Rerun(
        seed=seed,
        status="completed",
        report_id=after.name,
        baseline_report_id=before.name if before else None,
        findings=judge(limits, after, before),
    )


def _again(gauge: Gauge, report: Report, seed: int) -> ComparableReport | None:
    """Return the report of the very model of a report on another seed; None where that model is gone.

    Raises JobFailed where it fails for another reason.
    """
    model = report.model
    name = f"{model.source.partition('@')[0]}@{model.revision}" if model.revision else model.source
    try:
        measured = gauge.measure(name, seed)
    except JobFailed as error:
        if error.reason != _GONE or not error.bad_input:  # a hub that fails says nothing of the model
            raise
        return None
    return measured if measured.report.model.fingerprint == model.fingerprint else None


def _absolute(limits: tuple[Limit, ...], after: ComparableReport) -> tuple[Finding, ...]:
    return judge([limit for limit in limits if not limit.against_baseline], after, None)


def _other_text(candidate: ComparableReport, baseline: ComparableReport) -> bool:
    return candidate.report.calibration.fingerprint != baseline.report.calibration.fingerprint


def _ended(run: AuditRun, **facts: Any) -> AuditRun:
    return run.model_copy(update={"finished_at": datetime.now(UTC), **facts})
