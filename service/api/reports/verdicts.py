"""Reads the verdicts of stored reports, for the lists of jobs and reports.

A stored file never changes, so a process reads each file once.
"""

import logging
from collections.abc import Iterable
from functools import lru_cache

from service.api.dependencies import Backend
from service.contracts.report import SchemeVerdict
from service.errors import NotFound, ReportUnreadable, StoreFailed
from service.evaluation.restating import predates_intervals
from service.evaluation.stored_report import read_report
from service.store.artifacts import ArtifactStore
from service.store.job_records import Job

log = logging.getLogger(__name__)

Verdicts = dict[str, SchemeVerdict]
"""By scheme."""
_CACHED_REPORTS = 10_000


def verdicts_of(backend: Backend, jobs: Iterable[Job]) -> dict[str, Verdicts]:
    """Return the verdicts by the jobs' ids; a job without a report, or with one that cannot be read, has none."""
    done = [job.id for job in jobs if job.has_report]
    if not done:
        return {}
    tokens = backend.store.named("tables/tokens.parquet", done)
    verdicts: dict[str, Verdicts] = {}
    for job_id, sha256 in backend.store.named("report.json", done).items():
        try:
            verdicts[job_id] = _verdicts(backend.artifacts, sha256, tokens.get(job_id))
        except (ReportUnreadable, NotFound, StoreFailed) as error:
            log.warning("report %s: its verdicts cannot be read: %s", job_id, error)
    return verdicts


@lru_cache(maxsize=_CACHED_REPORTS)
def _verdicts(artifacts: ArtifactStore, report: str, tokens: str | None) -> Verdicts:
    """Return the verdicts of a report by the SHA-256 of its report.json and of its table `tokens`.

    The table is fetched only for a report whose version needs it.
    """
    path = artifacts.path(report)
    stored = read_report(path, None)
    if tokens is not None and predates_intervals(stored.schema_version):
        stored = read_report(path, artifacts.path(tokens))
    return {name: facts.verdict for name, facts in stored.schemes.items() if facts.verdict}
