"""Reads the verdicts of stored reports, for the lists of jobs and reports.

They are in report.json. A report of an earlier version has none; they are computed from its `tokens` table. A stored
file never changes, so a process reads each file once.
"""

import json
import logging
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from service.api.dependencies import Backend
from service.contracts.report import SchemeVerdict
from service.errors import NotFound
from service.store.job_records import Job
from service.store.statuses import Status
from service.stored import read_report

log = logging.getLogger(__name__)

Verdicts = dict[str, SchemeVerdict]
"""By scheme."""
_REMEMBERED = 10_000


def verdicts_of(backend: Backend, jobs: Iterable[Job]) -> dict[str, Verdicts]:
    """Return the verdicts by the jobs' ids; a job without a report, or with one that cannot be read, has none."""
    done = [job.id for job in jobs if job.status is Status.succeeded]
    verdicts: dict[str, Verdicts] = {}
    for job_id, sha256 in backend.store.named("report.json", done).items():
        try:
            path = backend.artifacts.path(sha256)
            recorded = _recorded(path)
            verdicts[job_id] = _restated(path, _tokens(backend, job_id)) if recorded is None else recorded
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError, OSError, NotFound) as error:
            log.warning("report %s: its verdicts cannot be read: %s: %s", job_id, type(error).__name__, error)
    return verdicts


def _tokens(backend: Backend, job_id: str) -> Path | None:
    sha256 = backend.store.named("tables/tokens.parquet", [job_id]).get(job_id)
    return backend.artifacts.path(sha256) if sha256 else None


@lru_cache(maxsize=_REMEMBERED)
def _recorded(report: Path) -> Verdicts | None:
    """Return the verdicts in report.json; None unless every scheme has one."""
    schemes = json.loads(report.read_bytes())["schemes"]
    if not all(facts.get("verdict") for facts in schemes.values()):
        return None
    return {name: SchemeVerdict.model_validate(facts["verdict"]) for name, facts in schemes.items()}


@lru_cache(maxsize=_REMEMBERED)
def _restated(report: Path, tokens: Path | None) -> Verdicts:
    schemes = read_report(report, tokens).schemes
    return {name: facts.verdict for name, facts in schemes.items() if facts.verdict}
