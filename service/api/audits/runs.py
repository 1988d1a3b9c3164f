"""Runs of audits: ask for one, list, show."""

from fastapi import APIRouter, Response, status

from service.api.audits.names import AuditName, RunId
from service.api.audits.views import RunPage
from service.api.bodies import UniqueKeys
from service.api.dependencies import FromApp, PageSize, PageToken
from service.contracts.audits.audit import AuditRun
from service.errors import NotFound

router = APIRouter(prefix="/v1/audits/{audit}/runs", route_class=UniqueKeys)


@router.post("", status_code=status.HTTP_202_ACCEPTED)
def request(backend: FromApp, audit: AuditName, response: Response) -> AuditRun:
    """Ask for a run, also of a paused audit. It starts when the run before has ended.

    The header Location of the answer has the run's path.
    """
    run = backend.audits.request_run(audit)
    response.headers["Location"] = f"/v1/audits/{audit}/runs/{run.id}"
    return run


@router.get("")
def list_runs(backend: FromApp, audit: AuditName, page_size: PageSize = 50, page_token: PageToken = None) -> RunPage:
    """Return the runs of an audit, newest first."""
    page = backend.audits.runs(audit, page_size=page_size, page_token=page_token)
    return RunPage(runs=page.runs, next_page_token=page.next_page_token)


@router.get("/{run_id}")
def show(backend: FromApp, audit: AuditName, run_id: RunId) -> AuditRun:
    """Return one run: its verdict, what it says of every limit, and what was measured again."""
    run = backend.audits.run(run_id)
    if run.audit_id != backend.audits.get(audit).id:
        raise NotFound(f"run: {run_id!r} is not the id of a run of the audit {audit!r}")
    return run
