"""Reads the verdicts of stored reports, for the lists of jobs and reports.

They are in report.json. A report of an earlier version has none; they are computed from its `tokens` table. A stored
file never changes, so a process reads each file once.
"""

import json
import logging
from collections.abc import Iterable
from functools import lru_cache

from service.api.dependencies import Backend
from service.contracts.report import SchemeVerdict
from service.errors import NotFound, StoreFailed
from service.store.artifacts import ArtifactStore
from service.store.job_records import Job
from service.store.statuses import Status
from service.stored import read_report

log = logging.getLogger(__name__)

Verdicts = dict[str, SchemeVerdict]
"""By scheme."""
_REMEMBERED = 10_000
_UNREADABLE = (
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    RecursionError,
    OSError,
    NotFound,
    StoreFailed,
)


def verdicts_of(backend: Backend, jobs: Iterable[Job]) -> dict[str, Verdicts]:
    """Return the verdicts by the jobs' ids; a job without a report, or with one that cannot be read, has none."""
    done = [job.id for job in jobs if job.status is Status.succeeded]
    verdicts: dict[str, Verdicts] = {}
    for job_id, sha256 in backend.store.named("report.json", done).items():
        try:
            recorded = _recorded(backend.artifacts, sha256)
            verdicts[job_id] = _computed(backend, job_id, sha256) if recorded is None else recorded
        except _UNREADABLE as error:
            log.warning("report %s: its verdicts cannot be read: %s: %s", job_id, type(error).__name__, error)
    return verdicts


def _computed(backend: Backend, job_id: str, report: str) -> Verdicts:
    tokens = backend.store.named("tables/tokens.parquet", [job_id]).get(job_id)
    return _restated(backend.artifacts, report, tokens)


@lru_cache(maxsize=_REMEMBERED)
def _recorded(artifacts: ArtifactStore, report: str) -> Verdicts | None:
    """Return the verdicts in report.json, by its SHA-256; None unless every scheme has one."""
    schemes = json.loads(artifacts.path(report).read_bytes())["schemes"]
    if not all(facts.get("verdict") for facts in schemes.values()):
        return None
    return {name: SchemeVerdict.model_validate(facts["verdict"]) for name, facts in schemes.items()}


@lru_cache(maxsize=_REMEMBERED)
def _restated(artifacts: ArtifactStore, report: str, tokens: str | None) -> Verdicts:
    table = artifacts.path(tokens) if tokens else None
    schemes = read_report(artifacts.path(report), table).schemes
    return {name: facts.verdict for name, facts in schemes.items() if facts.verdict}
