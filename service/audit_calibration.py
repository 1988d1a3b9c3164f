"""The calibration of an audit's limits: its baseline's model measured on several seeds, in jobs of the ordinary queue.

The jobs have idempotency keys that follow from the audit and from what they measure. They are thus found again whenever
somebody asks, and an edited limit is weighed on the reports that there are, without another measurement.
"""

import hashlib
from collections.abc import Sequence
from datetime import datetime

from service.audits import noise
from service.audits.definition import schedule_of
from service.audits.limits import parse_all
from service.audits.schedule import runs_per_year
from service.comparison.comparable_report import ComparableReport
from service.contracts.audits.audit import AuditDefinition, Calibration, NewestIn
from service.contracts.audits.resolution import Terms
from service.contracts.request import JobRequest
from service.contracts.sections.provenance import ModelFacts
from service.errors import InvalidRequest
from service.store.audit_records import Audit
from service.store.job_records import Job
from service.store.jobs import JobStore
from service.store.runs.starting import request_of
from service.store.statuses import Status
from service.submission import Send, send_message

FEWEST_SEEDS = noise.FEWEST_REPORTS - 1
MOST_SEEDS = 64
RUNS_WITHOUT_SCHEDULE = 365.0
"""Runs of a year where an audit has no schedule: one a day."""
_SEEDS = 2**63


def begin(store: JobStore, audit: Audit, seeds: int, baseline: ComparableReport | None, send: Send | None) -> None:
    """Put the jobs into the queue that are not there yet, and those that failed or were cancelled once more.

    Args:
        store: The jobs.
        audit: The audit.
        seeds: Further seeds, 2 to 64.
        baseline: The report that the next run would be compared with, whose model is measured; None where there is none
            yet: then it is the audit's model.
        send: Sends a job's message; None leaves it to the scheduler.

    Raises InvalidRequest for a number of seeds that is not allowed, and for an audit without limits.
    """
    if not FEWEST_SEEDS <= seeds <= MOST_SEEDS:
        raise InvalidRequest("seeds", seeds, f"{FEWEST_SEEDS} to {MOST_SEEDS} further seeds")
    if not audit.definition.limits:
        raise InvalidRequest("limits", [], "one limit or more, whose noise is measured")
    terms = _terms(audit.definition, baseline)
    for request in _requests(audit.definition, seeds, baseline):
        key, at_once = _key(audit, request, terms), send is not None
        job = store.submit(request, idempotency_key=key, terms=terms, needs_report=True, sent=at_once)
        if job.status in (Status.failed, Status.cancelled):
            store.retry(job.id)  # the scheduler sends its message
        elif send is not None:
            send_message(store, job, send)


def jobs_of(store: JobStore, audit: Audit, baseline: ComparableReport | None) -> list[Job]:
    """Return the jobs that `begin` has made for an audit as it is defined now, by their seeds; none where there are
    none.
    """
    terms = _terms(audit.definition, baseline)
    keys = [_key(audit, request, terms) for request in _requests(audit.definition, MOST_SEEDS, baseline)]
    jobs = store.keyed(keys)
    return [jobs[key] for key in keys if key in jobs]


def result(definition: AuditDefinition, reports: Sequence[ComparableReport], now: datetime) -> Calibration:
    """Return the noise of every limit of an audit.

    Args:
        definition: Of the audit.
        reports: Of the jobs, after the baseline where there is one.
        now: The year begins here whose false alarms are counted.

    Raises InvalidRequest for reports that cannot be taken together, such as of different weights.
    """
    limits = parse_all(definition.limits, definition.scheme_names)
    schedule = schedule_of(definition)
    rate = RUNS_WITHOUT_SCHEDULE if schedule is None else runs_per_year(schedule, now)
    return noise.calibrate(limits, reports, rate, definition.reruns)


def _requests(definition: AuditDefinition, seeds: int, baseline: ComparableReport | None) -> Sequence[JobRequest]:
    """Return what the jobs measure: the audit's seed, unless the baseline has it, and further ones."""
    first = 0 if baseline is None else 1
    model = {} if baseline is None else {"model": _model_of(baseline.report.model)}
    return [
        request_of(definition, seed=(definition.seed + place) % _SEEDS, **model) for place in range(first, seeds + 1)
    ]


def _terms(definition: AuditDefinition, baseline: ComparableReport | None) -> Terms | None:
    """Return how a worker finds the model; None where the request names it."""
    if baseline is None:
        return Terms(newest_in=True) if isinstance(definition.model, NewestIn) else None
    model = baseline.report.model
    return None if model.revision else Terms(fingerprint=model.fingerprint)


def _model_of(model: ModelFacts) -> str:
    return f"{model.source.partition('@')[0]}@{model.revision}" if model.revision else model.source


def _key(audit: Audit, request: JobRequest, terms: Terms | None) -> str:
    asked = f"{request.model_dump_json(exclude={'retention_days'})} {terms.model_dump_json() if terms else ''}"
    return f"calibration {audit.id} {hashlib.sha256(asked.encode()).hexdigest()}"
