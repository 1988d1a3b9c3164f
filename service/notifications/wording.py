"""Words an announcement as a title, as text and as the body of a webhook."""

import json
from collections.abc import Iterator

from service.contracts.audits.alert import Alert, Announcement

_TYPES = {"alerts": "audit.alerts.changed", "paused": "audit.paused"}
"""`type` of a webhook's body; errors are not sent."""


def title(announcement: Announcement) -> str:
    """Return one line: `shipping-llama: 1 alert opened, 2 closed`."""
    if announcement.kind == "error":
        return f"{announcement.audit}: the run ended in an error"
    if announcement.kind == "paused":
        return f"{announcement.audit}: paused, since its runs end in errors"
    counts = [
        (len(announcement.opened), "opened"),
        (len(announcement.still_broken), "still open after dismissal"),
        (len(announcement.closed), "closed"),
    ]
    parts = [f"{count} {'alert' if count == 1 else 'alerts'} {what}" for count, what in counts if count]
    return f"{announcement.audit}: {', '.join(parts)}"


def text(announcement: Announcement) -> str:
    """Return the whole announcement as lines of plain text."""
    return "\n".join(_lines(announcement)) + "\n"


def body(announcement: Announcement) -> str:
    """Return the body of a webhook: `type`, `timestamp` and `data`, as Standard Webhooks has it."""
    data = announcement.model_dump(mode="json")
    content = {
        "type": _TYPES[announcement.kind],
        "timestamp": data["at"],
        "data": {"title": title(announcement), **data},
    }
    return json.dumps(content, separators=(",", ":"))


def _lines(announcement: Announcement) -> Iterator[str]:
    yield title(announcement)
    for heading, alerts in (
        ("Opened", announcement.opened),
        ("Still broken after the dismissal's expiry", announcement.still_broken),
        ("Closed", announcement.closed),
    ):
        if alerts:
            yield ""
            yield f"{heading}:"
            yield from (f"- {_line(alert)}" for alert in alerts)
    if announcement.kind != "alerts":
        yield ""
        yield from announcement.reasons
    yield ""
    yield f"Run {announcement.run_id}: {announcement.verdict}"
    if announcement.report_id:
        yield f"Report {announcement.report_id}"
    if announcement.baseline_report_id:
        yield f"Baseline {announcement.baseline_report_id}"


def _line(alert: Alert) -> str:
    return f"{alert.finding.limit}: {alert.finding.reason} (alert {alert.id})"
