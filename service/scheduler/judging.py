"""Judges a run whose jobs have ended: assesses every limit, orders reruns, and writes the verdict."""

import logging
from collections.abc import Callable

from sqlalchemy.exc import SQLAlchemyError

from service.audits import judgment
from service.audits.baseline import choose, rule
from service.audits.figures import read
from service.audits.limits import Limit, compared_figures, parse_all
from service.comparison.comparable_report import ComparableReport
from service.contracts.audits.audit import Finding, Rerun
from service.contracts.audits.resolution import Terms
from service.contracts.report import Report
from service.contracts.request import JobRequest
from service.errors import HeadroomError, NotFound, StoreUnreachable
from service.store.runs.cases import Case, Ending, JobEnd, Measured, RerunEnd, RerunJobs
from service.store.runs.starting import request_of
from service.store.runs.store import RunStore
from service.store.statuses import Status

log = logging.getLogger(__name__)

Reports = Callable[[str], ComparableReport]
"""Reads a report by its id; raises a HeadroomError for one that cannot be read."""
UNCHANGED = (
    "Model, calibration, definitions, schemes, settings, software versions and hardware are those of the last "
    "completed run, so nothing was measured."
)
_SEEDS = 2**63


def advance(store: RunStore, reports: Reports, run_id: str, lease_seconds: float) -> bool:
    """Judge a run and write what follows; False where another scheduler has it, or it needs no judgment.

    Whatever is wrong with its reports ends the run as `error`; only a database or an artifact store that does not
    answer is tried again, once the lease ends. Raises SQLAlchemyError and StoreUnreachable for those.
    """
    case = store.take(run_id, lease_seconds)
    if case is None:
        return False
    try:
        decided = _decide(case, reports)
    except SQLAlchemyError:
        raise
    except StoreUnreachable:
        store.put_off(case)
        raise
    except Exception as error:  # the run must end, and say why, also when the fault is here
        log.error("run %s cannot be judged", run_id, exc_info=None if isinstance(error, HeadroomError) else error)
        decided = Ending("error", [f"The reports cannot be judged: {_sentence(error)}"])
    if isinstance(decided, Ending):
        return store.end(case, decided)
    return store.rerun(case, *decided)


def _decide(case: Case, reports: Reports) -> Ending | tuple[Measured, tuple[RerunJobs, ...]]:
    if case.job.unchanged:
        return Ending("unchanged", [UNCHANGED])
    if case.job.status is not Status.succeeded:
        return Ending("error", [case.job.reason])
    limits = parse_all(case.definition.limits, case.definition.scheme_names)
    return _last(case, limits, reports) if case.reruns else _first(case, limits, reports)


def _first(case: Case, limits: tuple[Limit, ...], reports: Reports) -> Ending | tuple[Measured, tuple[RerunJobs, ...]]:
    """Judge the first measurement; what is broken beyond noise is measured again, unless reruns are off."""
    candidate = reports(case.job.id)
    baseline = _baseline(case, limits, candidate, reports)
    findings = judgment.judge(limits, candidate, baseline)
    values = {one.figure.path: value for one in limits if isinstance(value := read(one.figure, candidate), float)}
    measured = Measured(findings, baseline.name if baseline else None, values, _identity(case.job, candidate.report))
    again = judgment.to_measure_again(limits, findings)
    if again and case.definition.reruns:
        needed = baseline.report if baseline and any(limit.against_baseline for limit in again) else None
        jobs = (
            RerunJobs(seed, _pinned(case, candidate.report, seed), _pinned(case, needed, seed) if needed else None)
            for seed in _seeds(case)
        )
        return measured, tuple(jobs)
    outcome = judgment.combine(findings, ())
    return Ending(outcome.verdict, outcome.reasons, measured)


def _baseline(
    case: Case, limits: tuple[Limit, ...], candidate: ComparableReport, reports: Reports
) -> ComparableReport | None:
    """Return the report that a run is compared with; None where there is none yet.

    Raises NotFound for a pinned report that the audit's owner may not see.
    """
    of = rule(case.definition.baseline)
    if case.baseline_hidden:
        raise NotFound(f"baseline: the audit's owner has no report {of.report_id!r}")
    return choose(of, case.passed, compared_figures(limits), reports, candidate.report.definitions_version)


def _last(case: Case, limits: tuple[Limit, ...], reports: Reports) -> Ending:
    """Weigh the first judgment against the measurements on other seeds."""
    again = judgment.to_measure_again(limits, case.findings)
    reruns = tuple(_rerun(one, again, reports) for one in case.reruns)
    outcome = judgment.combine(case.findings, reruns)
    return Ending(outcome.verdict, outcome.reasons, reruns=reruns)


def _rerun(ended: RerunEnd, limits: tuple[Limit, ...], reports: Reports) -> Rerun:
    """Return what a measurement on another seed says of the limits that were broken."""
    candidate, baseline = ended.candidate, ended.baseline
    gone = baseline is not None and baseline.model_gone
    has_baseline = baseline is None or gone or baseline.status is Status.succeeded
    failed = Rerun(seed=ended.seed, status="failed")
    if candidate.status is not Status.succeeded or not has_baseline:
        return failed
    before = None if baseline is None or gone else baseline.id
    try:
        findings: tuple[Finding, ...] = judgment.judge(
            limits, reports(candidate.id), reports(before) if before else None
        )
    except StoreUnreachable:
        raise
    except HeadroomError as error:
        log.warning("the rerun on seed %d cannot be judged: %s", ended.seed, error)
        return failed
    return Rerun(
        seed=ended.seed,
        status="baseline_gone" if gone else "completed",
        report_id=candidate.id,
        baseline_report_id=before,
        findings=findings,
    )


def _seeds(case: Case) -> list[int]:
    return [(case.definition.seed + place) % _SEEDS for place in range(1, case.definition.reruns + 1)]


def _pinned(case: Case, report: Report, seed: int) -> tuple[JobRequest, Terms]:
    """Return the job that measures the very model of a report on another seed, with the audit's settings."""
    model = report.model
    if model.revision:
        name = f"{model.source.partition('@')[0]}@{model.revision}"
        return request_of(case.definition, model=name, seed=seed), Terms()
    return request_of(case.definition, model=model.source, seed=seed), Terms(fingerprint=model.fingerprint)


def _identity(job: JobEnd, report: Report) -> str | None:
    """Return what was measured; None where the model's files were changed while the job ran."""
    resolution = job.resolution
    if resolution is None or (resolution.fingerprint or report.model.fingerprint) != report.model.fingerprint:
        return None
    return resolution.identity


def _sentence(error: Exception) -> str:
    said = str(error).strip() or type(error).__name__
    return f"{said if isinstance(error, HeadroomError) else f'{type(error).__name__}: {said}'}".rstrip(".") + "."
