"""The parameters of calls on audits, for FastAPI."""

import re
from typing import Annotated

from fastapi import Depends, Path

from service.errors import NotFound

NAME = r"[a-z0-9][a-z0-9-]{0,62}"
"""Names of audits; ids have the same form."""
SHOWN_CHARACTERS = 64


def _audit_name(audit: Annotated[str, Path(description="Name or id of the audit.")]) -> str:
    """Return the name or id. Raises NotFound for a malformed one."""
    if not re.fullmatch(NAME, audit):
        shown = audit[:SHOWN_CHARACTERS]
        raise NotFound(f"audit: {shown!r} is not the name or id of an audit; `headroom audits list` lists them")
    return audit


def _run_id(run_id: Annotated[str, Path(description="Id of the run.")]) -> str:
    return _checked("run", run_id)


def _alert_id(alert_id: Annotated[str, Path(description="Id of the alert.")]) -> str:
    return _checked("alert", alert_id)


def _delivery_id(delivery_id: Annotated[str, Path(description="Id of the delivery.")]) -> str:
    return _checked("delivery", delivery_id)


def _webhook_id(webhook_id: Annotated[str, Path(description="Id of the webhook.")]) -> str:
    return _checked("webhook", webhook_id)


def _checked(what: str, text: str) -> str:
    """Return the id. Raises NotFound for a malformed one."""
    if not re.fullmatch("[0-9a-f]{32}", text):
        raise NotFound(f"{what}: {text[:SHOWN_CHARACTERS]!r} is not an id; allowed: 32 hexadecimal digits")
    return text


AuditName = Annotated[str, Depends(_audit_name)]
RunId = Annotated[str, Depends(_run_id)]
AlertId = Annotated[str, Depends(_alert_id)]
DeliveryId = Annotated[str, Depends(_delivery_id)]
WebhookId = Annotated[str, Depends(_webhook_id)]
