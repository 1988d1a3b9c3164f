"""`headroom audits` but for `run` and `apply`: the API's audits, made, changed and shown."""

from typing import Any

from service.cli import output
from service.cli.audits import calibrating
from service.cli.audits.audit_path import path_of
from service.cli.audits.options import body
from service.cli.client import Document
from service.cli.commands.audit_options import AuditOptions
from service.cli.connection import connect
from service.cli.resources import more_entries, scheme_name, tokens_of
from service.cli.running import interruptible
from service.errors import InvalidRequest
from service.settings import settings


def create(
    name: str, model: str | None, options: AuditOptions, *, force: bool, seeds: int | None, as_json: bool
) -> None:
    """Make an audit, and print it; with `seeds` its limits' noise too, measured on that many further seeds."""
    sent = _body(name, model, options)
    if seeds is None:
        with connect(workers=False) as service:
            audit = service.client.change("POST", "/v1/audits", sent, force=force)
        show_audit(audit, as_json=as_json)
        return
    with interruptible(), connect(workers=True) as service:
        audit = service.client.change("POST", "/v1/audits", sent, force=force)
        calibration = calibrating.measure(service, path_of(audit["name"]), seeds)
    if as_json:
        output.document({**audit, "calibration": calibration.model_dump(mode="json")})
        return
    show_audit(audit, as_json=False)
    calibrating.show(calibration)


def edit(
    name: str, rename: str | None, model: str | None, options: AuditOptions, *, force: bool, as_json: bool
) -> None:
    """Change the keys of an audit that were typed, and print it."""
    path, sent = path_of(name), _body(rename, model, options)
    if not sent:
        raise InvalidRequest("edit", "", "one option or more", message="edit: no option says what to change")
    with connect(workers=False) as service:
        audit = service.client.change("PATCH", path, sent, force=force)
    show_audit(audit, as_json=as_json)


def list_audits(*, limit: int, token: str | None, as_json: bool) -> None:
    """Print audits by name."""
    with connect(workers=False) as service:
        page = service.client.get("/v1/audits", page_size=limit, page_token=token)
    if as_json:
        output.document(page)
        return
    rows = [
        (audit["name"], model_of(audit), audit["definition"]["schedule"], _state(audit), _last(audit))
        for audit in page["audits"]
    ]
    output.table(("name", "model", "schedule", "next run (UTC)", "last run"), rows)
    more_entries(page)


def show(name: str, *, as_json: bool) -> None:
    """Print one audit."""
    path = path_of(name)
    with connect(workers=False) as service:
        audit = service.client.get(path)
    show_audit(audit, as_json=as_json)


def pause(name: str, reason: str | None, *, as_json: bool) -> None:
    """Hold back an audit's scheduled runs, and print it."""
    path = path_of(name)
    with connect(workers=False) as service:
        audit = service.client.post(f"{path}/pause", {} if reason is None else {"reason": reason})
    show_audit(audit, as_json=as_json)


def resume(name: str, *, as_json: bool) -> None:
    """Let an audit's scheduled runs start again, and print it."""
    path = path_of(name)
    with connect(workers=False) as service:
        audit = service.client.post(f"{path}/resume")
    show_audit(audit, as_json=as_json)


def delete(name: str, *, as_json: bool) -> None:
    """Remove an audit with its runs."""
    path = path_of(name)
    with connect(workers=False) as service:
        service.client.change("DELETE", path)
    if as_json:
        output.document({"name": name, "deleted": True})
        return
    output.line(output.results(), f"{name} is removed with its runs; its reports stay")


def show_audit(audit: Document, *, as_json: bool) -> None:
    """Print an audit."""
    if as_json:
        output.document(audit)
        return
    definition = audit["definition"]
    console = output.results()
    rows = [
        ("audit", audit["name"]),
        ("id", audit["id"]),
        ("model", model_of(audit)),
        ("schemes", ", ".join(map(scheme_name, definition["schemes"]))),
        ("calibration", (definition["calibration"] or {}).get("name") or "bundled text"),
        ("tokens", tokens_of(definition)),
        ("schedule", definition["schedule"] and f"{definition['schedule']} ({definition['timezone']})"),
        ("next run", _state(audit)),
        ("baseline", definition["baseline"]),
        *(("", f"caution: {sentence}") for sentence in audit["baseline_cautions"]),
        *(("limit", limit) for limit in definition["limits"]),
        *(("notify", f"{kind} {address}") for entry in definition["notify"] for kind, address in entry.items()),
        ("last run", _last(audit)),
        ("badge", audit["badge"]),
        ("feed", audit["feed"]),
    ]
    for name, value in rows:
        if value:
            output.line(console, f"{name:<12} {value}")


def model_of(audit: Document) -> str:
    """Return an audit's model in a few words."""
    model = audit["definition"]["model"]
    return f"newest in {model['newest_in']}" if isinstance(model, dict) else str(model)


def _body(name: str | None, model: str | None, options: AuditOptions) -> dict[str, Any]:
    present = settings()
    return body(name, model, options, on_this_machine=not present.url, largest_file=present.max_upload_bytes)


def _state(audit: Document) -> str:
    if audit["paused"]:
        return f"paused: {audit['pause_reason']}"
    return (audit["next_run_at"] or "")[:19]


def _last(audit: Document) -> str:
    """Return the verdict and the time of the newest run."""
    run = audit["last_run"]
    if run is None:
        return ""
    when = run["finished_at"] or run["started_at"] or run["scheduled_at"]
    return " ".join(filter(None, (run["verdict"] or "has not ended", (when or "")[:19])))
