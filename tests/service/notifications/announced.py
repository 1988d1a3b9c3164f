"""Announcements made by hand."""

from datetime import UTC, datetime, timedelta

from service.contracts.audits.alert import Alert, Announcement
from service.contracts.audits.audit import Finding

AT = datetime(2026, 5, 4, 3, 0, 1, 500000, tzinfo=UTC)
LIMIT = "int8.kl_divergence.mean <= baseline * 1.2"


def alert(number: int = 1, limit: str = LIMIT, reason: str = "0.03 is over 0.02.") -> Alert:
    """Return an open alert."""
    return Alert(
        id=f"{number:032x}",
        audit_id="a" * 32,
        figure="schemes.int8.kl_divergence.mean",
        site="model",
        direction="above",
        status="open",
        opened_at=AT,
        opened_run_id="b" * 32,
        broken_run_id="b" * 32,
        finding=Finding(
            limit=limit, figure="schemes.int8.kl_divergence.mean", value=0.03, verdict="broken", reason=reason
        ),
    )


def announcement(number: int = 1, **changed: object) -> Announcement:
    """Return one in which an alert opened, `number` hours after `AT`."""
    facts: dict[str, object] = {
        "id": f"{number:032x}",
        "audit_id": "a" * 32,
        "audit": "shipping-llama",
        "at": AT + timedelta(hours=number),
        "kind": "alerts",
        "run_id": "b" * 32,
        "verdict": "fail",
        "report_id": "c" * 32,
        "opened": (alert(),),
    }
    return Announcement.model_validate(facts | changed)
