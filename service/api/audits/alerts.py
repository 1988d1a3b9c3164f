"""Alerts: list, show, acknowledge, dismiss."""

from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import AwareDatetime, BaseModel, Field

from service.api.audits.names import NAME, AlertId
from service.api.bodies import UniqueKeys
from service.api.dependencies import PRINTABLE, FromApp, PageSize, PageToken
from service.contracts.audits.alert import Alert
from service.contracts.record import Frozen

router = APIRouter(prefix="/v1/alerts", route_class=UniqueKeys)

Author = Annotated[str, Field(min_length=1, max_length=255, pattern=PRINTABLE)]
LONGEST_TEXT = 2048


class Acknowledge(Frozen):
    """An acknowledgement: who has seen the alert."""

    author: Author
    note: Annotated[str, Field(max_length=LONGEST_TEXT, pattern=r"^[^\x00]*$")] = ""


class Dismiss(Frozen):
    """A dismissal: by whom, why and until when."""

    author: Author
    reason: Annotated[str, Field(min_length=1, max_length=LONGEST_TEXT, pattern=r"^[^\x00]*$")]
    until: AwareDatetime
    """When the dismissal expires."""


class AlertPage(BaseModel):
    """A page of alerts, newest first, and the token of the next page."""

    alerts: list[Alert]
    next_page_token: str | None


@router.get("")
def list_alerts(
    backend: FromApp,
    audit: Annotated[
        str | None, Query(pattern=f"^{NAME}$", description="Return only alerts of the audit with this name or id.")
    ] = None,
    closed: Annotated[bool, Query(description="Return closed alerts too.")] = False,
    page_size: PageSize = 50,
    page_token: PageToken = None,
) -> AlertPage:
    """Return alerts, newest first."""
    page = backend.alerts.alerts(audit=audit, closed=closed, page_size=page_size, page_token=page_token)
    return AlertPage(alerts=page.alerts, next_page_token=page.next_page_token)


@router.get("/{alert_id}")
def show(backend: FromApp, alert_id: AlertId) -> Alert:
    """Return one alert."""
    return backend.alerts.alert(alert_id)


@router.post("/{alert_id}/acknowledge")
def acknowledge(backend: FromApp, alert_id: AlertId, body: Acknowledge) -> Alert:
    """Note that somebody has seen an alert. It stays open, and a message goes out when it closes."""
    return backend.alerts.acknowledge(alert_id, body.author, body.note)


@router.post("/{alert_id}/dismiss")
def dismiss(backend: FromApp, alert_id: AlertId, body: Dismiss) -> Alert:
    """Send no messages about an alert, nor about a later alert on the same figure, until the dismissal expires.

    The first run after that which finds the figure still broken announces the alert again.
    """
    return backend.alerts.dismiss(alert_id, body.author, body.reason, body.until)
