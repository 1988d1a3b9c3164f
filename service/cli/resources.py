"""`headroom jobs` and `headroom reports`: the API's resources."""

import re
from collections.abc import Sequence
from pathlib import Path

from service.cli import inputs, output
from service.cli.client import Document, fetch
from service.cli.connection import connect
from service.contracts.request import JOB_ID
from service.errors import InvalidRequest


def list_jobs(*, status: str | None, model: str | None, limit: int, token: str | None, as_json: bool) -> None:
    """Print jobs, newest first."""
    with connect(workers=False) as service:
        page = service.client.get("/v1/jobs", status=status, model=model, page_size=limit, page_token=token)
    if as_json:
        output.document(page)
        return
    rows = [
        (job["id"], job["status"], job["request"]["model"], job["created_at"][:19], _where(job)) for job in page["jobs"]
    ]
    output.table(("id", "status", "model", "submitted (UTC)", ""), rows)
    more_entries(page)


def show_job(job_id: str, *, as_json: bool) -> None:
    """Print one job."""
    with connect(workers=False) as service:
        job = service.client.get(f"/v1/jobs/{checked_id(job_id)}")
    _print_job(job, as_json=as_json)


def change_job(job_id: str, change: str, *, as_json: bool) -> None:
    """Cancel or retry a job (`change`), and print it."""
    with connect(workers=False) as service:
        job = service.client.post(f"/v1/jobs/{checked_id(job_id)}/{change}")
    _print_job(job, as_json=as_json)


def delete_jobs(job_ids: Sequence[str], *, as_json: bool) -> None:
    """Delete jobs with their reports, and print their ids. Those before the first refusal are deleted."""
    paths = [f"/v1/jobs/{checked_id(job_id)}" for job_id in job_ids]
    with connect(workers=False) as service:
        for job_id, path in zip(job_ids, paths, strict=True):
            service.client.change("DELETE", path)
            if not as_json:
                output.line(output.results(), f"deleted {job_id}")
    if as_json:
        output.document({"deleted": list(job_ids)})


def list_reports(*, model: str | None, limit: int, token: str | None, as_json: bool) -> None:
    """Print the reports that can be downloaded, newest first."""
    with connect(workers=False) as service:
        page = service.client.get("/v1/reports", model=model, page_size=limit, page_token=token)
    if as_json:
        output.document(page)
        return
    rows = [
        (
            item["id"],
            item["model"],
            _effects(item.get("verdicts")) or ", ".join(item["schemes"]),
            item["finished_at"][:19],
        )
        for item in page["reports"]
    ]
    output.table(("id", "model", "effect of each scheme", "finished (UTC)"), rows)
    more_entries(page)


def download_report(report_id: str, out: Path, *, as_json: bool) -> None:
    """Download a report into the directory `out`."""
    inputs.check_out(out)
    with connect(workers=False) as service:
        fetch(service.client, checked_id(report_id), out)
    page = out.absolute() / "report.html"
    if as_json:
        output.document({"id": report_id, "directory": str(out.absolute()), "page": str(page)})
        return
    output.line(output.results(), f"Report: {page}")


def checked_id(resource_id: str, parameter: str = "ID", or_else: str = "") -> str:
    """Return an id that is safe in a URL's path. Raises InvalidRequest.

    The message names `parameter`, and what it may be besides an id (`or_else`).
    """
    if not re.fullmatch(JOB_ID, resource_id):
        raise InvalidRequest(parameter, resource_id, f"an id of 1 to 64 letters, digits, - and _{or_else}")
    return resource_id


def _print_job(job: Document, *, as_json: bool) -> None:
    if as_json:
        output.document(job)
        return
    request = job["request"]
    console = output.results()
    for name, value in (
        ("job", job["id"]),
        ("status", job["status"]),
        ("", _where(job)),
        ("model", request["model"]),
        ("schemes", ", ".join(map(scheme_name, request["schemes"]))),
        ("calibration", (request["calibration"] or {}).get("name") or "bundled text"),
        ("tokens", tokens_of(request)),
        ("submitted", job["created_at"]),
        ("started", job["started_at"]),
        ("finished", job["finished_at"]),
        ("attempts", job["attempts"]),
        ("report", job["report"]),
        ("expired", job.get("report_expired_at")),
    ):
        if value:
            output.line(console, f"{name:<12} {value}")


def scheme_name(scheme: str | Document) -> str:
    """Return the name of a scheme of a request, which is an object where it is a variant."""
    return scheme if isinstance(scheme, str) else str(scheme["name"])


def tokens_of(request: Document) -> str:
    """Return in a few words how much text a request measures."""
    return f"{request['sequences']} sequences of {request['sequence_length']}, seed {request['seed']}"


def _where(job: Document) -> str:
    """Return in a few words how far the job is, or what it found."""
    if job["status"] == "queued":
        ahead = job["queue_position"]  # which lists do not have
        return "" if ahead is None else f"{ahead} ahead of it"
    if job["status"] == "running" and job["progress"]:
        asked = "canceling, " if job["cancel_requested"] else ""
        return f"{asked}{job['progress']['stage']} {job['progress']['done']}/{job['progress']['total']}"
    if job.get("verdicts"):
        return _effects(job["verdicts"])
    return job["error"]["message"] if job["error"] else ""


def _effects(verdicts: Document | None) -> str:
    """Return the level of every scheme: `int8 negligible, nf4 noticeable`; empty for an older service."""
    return ", ".join(f"{name} {verdict['level']}" for name, verdict in (verdicts or {}).items())


def more_entries(page: Document) -> None:
    """Print how to get the next page, where there is one."""
    if page["next_page_token"]:
        output.line(output.results(), f"More entries: --page-token {page['next_page_token']}")
