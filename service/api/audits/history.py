"""The history of an audit, as a document and as a table; and two of its runs compared."""

import json
import logging
from collections.abc import Iterable
from functools import lru_cache
from itertools import dropwhile
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from service.api.audits.names import AuditName
from service.api.dependencies import Backend, FromApp
from service.api.reports import comparisons
from service.audits.history.measured_state import MeasuredState, measured_state
from service.audits.history.series import history
from service.audits.history.table import history_csv
from service.audits.limits import parse_all
from service.contracts.audits.audit import AuditRun
from service.contracts.audits.history import AuditHistory
from service.contracts.comparison import Comparison
from service.errors import InvalidRequest, NotFound

log = logging.getLogger(__name__)
router = APIRouter(prefix="/v1/audits/{audit}")

MOST_RUNS = 10_000
_PAGE = 1000
_REMEMBERED = 10_000
_COMPARED = 2

Runs = Annotated[int, Query(ge=1, le=MOST_RUNS, description="How many runs, the newest.")]
RunIds = Annotated[
    list[Annotated[str, Query(pattern=r"^[0-9a-f]{32}$")]],
    Query(description="Ids of 2 runs of the audit. The first is the baseline."),
]


@router.get("/history")
def show(backend: FromApp, audit: AuditName, runs: Runs = 365) -> AuditHistory:
    """Return every figure that has a limit, run by run, with its steps and what changed at them."""
    return _history(backend, audit, runs)


@router.get("/history.csv", response_class=Response, responses={200: {"content": {"text/csv": {}}}})
def table(backend: FromApp, audit: AuditName, runs: Runs = 365) -> Response:
    """Return the history as a table: one row for each figure, run and limit."""
    of = _history(backend, audit, runs)
    where = {"Content-Disposition": f'inline; filename="{of.audit}-history.csv"'}
    return Response(history_csv(of), media_type="text/csv; charset=utf-8", headers=where)


@router.get("/comparison", response_model=Comparison)
def comparison(backend: FromApp, request: Request, audit: AuditName, run: RunIds) -> Response:
    """Compare the reports of two runs; an unchanged run has the report of the run that it repeats."""
    if len(run) != _COMPARED:
        raise InvalidRequest("run", run, "the ids of 2 runs of the audit", problem=f"are {len(run)}")
    reports = [_report(backend, audit, run_id) for run_id in run]
    try:
        return comparisons.comparison(backend, request, reports)
    except InvalidRequest as error:
        raise InvalidRequest("run", run, error.allowed, message=error.message) from error


def _history(backend: Backend, name: str, count: int) -> AuditHistory:
    definition = backend.audits.get(name).definition
    runs = _newest(backend, name, count)
    states = _states(backend, {run.report_id for run in runs if run.report_id})
    return history(definition.name, parse_all(definition.limits, definition.scheme_names), runs, states)


def _newest(backend: Backend, name: str, count: int) -> list[AuditRun]:
    runs: list[AuditRun] = []
    token: str | None = None
    while len(runs) < count:
        page = backend.audits.runs(name, page_size=min(_PAGE, count - len(runs)), page_token=token)
        runs += page.runs
        token = page.next_page_token
        if token is None:
            break
    return runs


def _states(backend: Backend, report_ids: Iterable[str]) -> dict[str, MeasuredState]:
    """Return what each report was measured from; one that is gone, or cannot be read, is absent."""
    states = {}
    for report_id, sha256 in backend.store.named("report.json", report_ids).items():
        try:
            states[report_id] = _state(backend.artifacts.path(sha256))
        except (ValueError, TypeError, AttributeError, RecursionError, OSError, NotFound) as error:
            log.warning("report %s: its settings cannot be read: %s: %s", report_id, type(error).__name__, error)
    return states


@lru_cache(maxsize=_REMEMBERED)
def _state(report: Path) -> MeasuredState:
    """Return what a stored report was measured from. A stored file never changes, so it is read once."""
    return measured_state(json.loads(report.read_bytes()))


def _report(backend: Backend, audit: str, run_id: str) -> str:
    """Return the id of a run's report. Raises NotFound, and InvalidRequest for a run without one."""
    of = backend.audits.run(run_id)
    if of.audit_id != backend.audits.get(audit).id:
        raise NotFound(f"run: {run_id!r} is not the id of a run of the audit {audit!r}")
    if of.report_id is not None:
        return of.report_id
    if of.verdict == "unchanged":
        before = dropwhile(lambda run: run.id != run_id, _newest(backend, audit, MOST_RUNS))
        if repeated := next((run.report_id for run in before if run.report_id), None):
            return repeated
    ended = f"it ended as {of.verdict}" if of.verdict else "it has not ended"
    raise InvalidRequest("run", run_id, "runs that have a report", problem=f"has no report: {ended}")
