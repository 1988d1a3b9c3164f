"""`headroom audits alerts`: the API's alerts, listed, shown, acknowledged and dismissed."""

import getpass
from datetime import UTC, datetime

from service.cli import output
from service.cli.audits.audit_path import path_of
from service.cli.client import Document
from service.cli.connection import connect
from service.cli.resources import checked_id, more_entries
from service.errors import InvalidRequest

_TIME = "a date or a time such as 2027-01-31 or 2027-01-31T18:00+01:00"


def list_alerts(name: str | None, *, closed: bool, limit: int, token: str | None, as_json: bool) -> None:
    """Print alerts, newest first; of one audit, or of all."""
    if name is not None:
        path_of(name)
    with connect(workers=False) as service:
        page = service.client.get("/v1/alerts", audit=name, closed=closed, page_size=limit, page_token=token)
    if as_json:
        output.document(page)
        return
    rows = [(one["id"], one["status"], one["opened_at"][:19], one["finding"]["limit"]) for one in page["alerts"]]
    output.table(("id", "status", "opened (UTC)", "limit"), rows)
    more_entries(page)


def show(alert_id: str, *, as_json: bool) -> None:
    """Print one alert."""
    path = _path(alert_id)
    with connect(workers=False) as service:
        alert = service.client.get(path)
    _print(alert, as_json=as_json)


def acknowledge(alert_id: str, author: str | None, note: str, *, as_json: bool) -> None:
    """Acknowledge an alert, and print it."""
    path, body = _path(alert_id), {"author": _author(author), "note": note}
    with connect(workers=False) as service:
        alert = service.client.post(f"{path}/acknowledge", body)
    _print(alert, as_json=as_json)


def dismiss(alert_id: str, author: str | None, reason: str, until: str, *, as_json: bool) -> None:
    """Dismiss an alert, and print it."""
    path, body = _path(alert_id), {"author": _author(author), "reason": reason, "until": _time(until)}
    with connect(workers=False) as service:
        alert = service.client.post(f"{path}/dismiss", body)
    _print(alert, as_json=as_json)


def _path(alert_id: str) -> str:
    return f"/v1/alerts/{checked_id(alert_id)}"


def _author(author: str | None) -> str:
    if author is not None:
        return author
    try:
        return getpass.getuser()
    except (KeyError, OSError) as error:  # the system does not know its user, as in some containers
        raise InvalidRequest("--author", author, "a name, since this system knows none") from error


def _time(text: str) -> str:
    """Return a time as the service takes it; without a zone it is UTC. Raises InvalidRequest."""
    try:
        time = datetime.fromisoformat(text)
    except ValueError as error:
        raise InvalidRequest("--until", text, _TIME) from error
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).isoformat()


def _print(alert: Document, *, as_json: bool) -> None:
    if as_json:
        output.document(alert)
        return
    console, said, dismissed = output.results(), alert["acknowledgement"], alert["dismissal"]
    for name, value in (
        ("alert", alert["id"]),
        ("status", alert["status"]),
        ("limit", alert["finding"]["limit"]),
        ("", alert["finding"]["reason"]),
        ("figure", f"{alert['figure']} ({alert['direction']}, {alert['site']})"),
        ("opened", f"{alert['opened_at']} by run {alert['opened_run_id']}"),
        ("last broken", f"by run {alert['broken_run_id']}"),
        ("closed", alert["closed_at"]),
        ("acknowledged", said and f"by {said['author']}: {said['note']}".rstrip(": ")),
        ("dismissed", dismissed and f"by {dismissed['author']} until {dismissed['until']}: {dismissed['reason']}"),
    ):
        if value:
            output.line(console, f"{name:<12} {value}")
