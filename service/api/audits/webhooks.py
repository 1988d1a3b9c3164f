"""Webhooks of an audit: their state, and the secrets that their messages are signed with."""

from datetime import datetime, timedelta
from typing import Annotated, Self

from fastapi import APIRouter, Depends, Response
from pydantic import BaseModel, Field

from service.api.audits.names import AuditName, WebhookId
from service.api.bodies import UniqueKeys
from service.api.dependencies import FromApp
from service.api.keys.checking import requires
from service.contracts.record import Frozen, NoBoolean
from service.store.notifications.endpoints import Endpoint

router = APIRouter(prefix="/v1", route_class=UniqueKeys)


class WebhookView(BaseModel):
    """A webhook of an audit."""

    id: str
    audit_id: str
    url: str
    created_at: datetime
    former_secret_until: datetime | None
    """Until then messages are signed with the former secret too; null where there is none."""
    disabled_at: datetime | None
    """Since then it gets no messages; null while it does."""
    disabled_reason: str | None

    @classmethod
    def of(cls, endpoint: Endpoint) -> Self:
        """Return the view of `endpoint`."""
        return cls(**vars(endpoint))


class WebhookList(BaseModel):
    """The webhooks of an audit, the oldest first."""

    webhooks: list[WebhookView]


class Secret(BaseModel):
    """What the messages to a webhook are signed with."""

    secret: str
    """`whsec_` and 32 bytes in base64, as the libraries of Standard Webhooks take it."""


class Rotate(Frozen):
    """How the secret of a webhook is replaced."""

    overlap_seconds: Annotated[int, Field(ge=0, le=30 * 86400), NoBoolean] = 86400
    """So long messages are signed with the former secret too."""


_IN_A_DAY = Rotate()


@router.get("/audits/{audit}/webhooks")
def list_webhooks(backend: FromApp, audit: AuditName) -> WebhookList:
    """Return the webhooks of an audit, without their secrets."""
    return WebhookList(webhooks=[WebhookView.of(one) for one in backend.alerts.webhooks(audit)])


@router.get("/webhooks/{webhook_id}/secret", dependencies=[Depends(requires("submit"))])
def secret(backend: FromApp, webhook_id: WebhookId, response: Response) -> Secret:
    """Return the present secret of a webhook. Who has it can sign messages, so this needs the scope `submit`."""
    response.headers["Cache-Control"] = "no-store"
    return Secret(secret=backend.alerts.secret(webhook_id))


@router.post("/webhooks/{webhook_id}/rotate")
def rotate(backend: FromApp, webhook_id: WebhookId, response: Response, body: Rotate = _IN_A_DAY) -> Secret:
    """Replace the secret of a webhook, and return the new one."""
    response.headers["Cache-Control"] = "no-store"
    return Secret(secret=backend.alerts.rotate(webhook_id, timedelta(seconds=body.overlap_seconds)))


@router.post("/webhooks/{webhook_id}/enable")
def enable(backend: FromApp, webhook_id: WebhookId) -> WebhookView:
    """Send messages to a webhook again. Those of the meantime can be replayed."""
    return WebhookView.of(backend.alerts.enable(webhook_id))
