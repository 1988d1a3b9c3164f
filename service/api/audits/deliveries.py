"""Deliveries: the messages of an audit to its receivers, with the history of every attempt."""

from datetime import datetime
from typing import Self

from fastapi import APIRouter, status
from pydantic import BaseModel

from service.api.audits.names import AuditName, DeliveryId
from service.api.dependencies import FromApp, PageSize, PageToken
from service.audits.receivers import Channel
from service.store.notifications.attempts import Result
from service.store.notifications.outbox import Delivery
from service.store.notifications.tables import MessageState

router = APIRouter(prefix="/v1")


class AttemptView(BaseModel):
    """One attempt to deliver a message."""

    number: int
    """From 1."""
    at: datetime
    seconds: float
    """How long it took."""
    result: Result
    status: int | None
    """HTTP status of a webhook's answer, or code of the mail server's; null where there was none."""
    detail: str
    """What happened."""


class DeliveryView(BaseModel):
    """A message to one receiver."""

    id: str
    webhook_id: str
    """The header `webhook-id` of every attempt at a webhook; the Message-ID of an e-mail begins with it."""
    audit_id: str
    announcement_id: str
    channel: Channel
    address: str
    state: MessageState
    created_at: datetime
    due_at: datetime | None
    """When the next attempt is due; null unless `state` is `owed`."""
    attempts: list[AttemptView]

    @classmethod
    def of(cls, delivery: Delivery) -> Self:
        """Return the view of `delivery`."""
        return cls(
            id=delivery.id,
            webhook_id=delivery.webhook_id,
            audit_id=delivery.audit_id,
            announcement_id=delivery.announcement_id,
            channel=delivery.channel,
            address=delivery.address,
            state=delivery.state,
            created_at=delivery.created_at,
            due_at=delivery.due_at,
            attempts=[AttemptView(**vars(attempt)) for attempt in delivery.attempts],
        )


class DeliveryPage(BaseModel):
    """A page of deliveries, newest first, and the token of the next page."""

    deliveries: list[DeliveryView]
    next_page_token: str | None


@router.get("/audits/{audit}/deliveries")
def list_deliveries(
    backend: FromApp, audit: AuditName, page_size: PageSize = 50, page_token: PageToken = None
) -> DeliveryPage:
    """Return the messages of an audit, newest first."""
    page = backend.alerts.deliveries(audit, page_size=page_size, page_token=page_token)
    shown = [DeliveryView.of(delivery) for delivery in page.deliveries]
    return DeliveryPage(deliveries=shown, next_page_token=page.next_page_token)


@router.get("/deliveries/{delivery_id}")
def show(backend: FromApp, delivery_id: DeliveryId) -> DeliveryView:
    """Return one message."""
    return DeliveryView.of(backend.alerts.delivery(delivery_id))


@router.post("/deliveries/{delivery_id}/replay", status_code=status.HTTP_202_ACCEPTED)
def replay(backend: FromApp, delivery_id: DeliveryId) -> DeliveryView:
    """Send a message again, under the same id; it is tried as often as a new one."""
    return DeliveryView.of(backend.alerts.replay(delivery_id))
