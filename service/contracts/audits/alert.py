"""Alerts of an audit, and their announcements. `service/audits/alerts.py` defines when they open and close."""

from datetime import datetime
from typing import Literal

from service.contracts.audits.audit import Finding, RunVerdict
from service.contracts.record import Record

AlertStatus = Literal["open", "acknowledged", "dismissed", "closed"]
"""`open`: the figure breaks its limit and nobody has said anything. `acknowledged`: somebody has seen it. `dismissed`:
nothing is announced of it until the dismissal expires. `closed`: the figure is back, or has no limit anymore."""


class Acknowledgement(Record):
    """Somebody has seen an alert."""

    author: str
    at: datetime
    note: str = ""


class Dismissal(Record):
    """No messages about an alert are sent until a time."""

    author: str
    at: datetime
    reason: str
    until: datetime
    """When it expires."""


class Alert(Record):
    """A figure that broke its limit."""

    id: str
    audit_id: str
    figure: str
    """As in `Finding.figure`."""
    site: str
    """Where in the model the figure is taken: `model`, or `block.output`."""
    direction: Literal["above", "below", "worse", "gained"]
    """The side of its limit on which the figure is."""
    status: AlertStatus
    opened_at: datetime
    opened_run_id: str
    broken_run_id: str
    """The last run that failed on it."""
    closed_at: datetime | None = None
    closed_run_id: str | None = None
    """The run that passed it; None while it is open, and where its limit was removed."""
    finding: Finding
    """The last finding: of the run that failed on it, or passed it."""
    acknowledgement: Acknowledgement | None = None
    dismissal: Dismissal | None = None


class Announcement(Record):
    """The alerts that a run opened and closed, or its error: one message to every receiver, one entry of the feed."""

    id: str
    audit_id: str
    audit: str
    """The audit's name."""
    at: datetime
    kind: Literal["alerts", "error", "paused"]
    """`alerts`: some opened or closed. `error`: the run has no report; only the feed says so. `paused`: neither has it,
    and the audit pauses, after too many in a row: the model is watched no more until somebody resumes the audit."""
    run_id: str
    verdict: RunVerdict
    report_id: str | None = None
    baseline_report_id: str | None = None
    reasons: tuple[str, ...] = ()
    """Of the run's verdict."""
    opened: tuple[Alert, ...] = ()
    still_broken: tuple[Alert, ...] = ()
    """Those whose dismissal has expired."""
    closed: tuple[Alert, ...] = ()
