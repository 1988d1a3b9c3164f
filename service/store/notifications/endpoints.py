"""The webhooks of audits: their secrets, and whether they want messages.

A secret has the form of Standard Webhooks, `whsec_` and 32 random bytes in base64. It is kept as it is, since messages
are signed with it. Replacing it leaves the former one valid for a while, in which messages carry both signatures.
"""

import base64
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from service.audits.receivers import receivers
from service.contracts.audits.audit import AuditDefinition
from service.errors import NotFound
from service.store.audit_records import audit_row
from service.store.audit_tables import AuditRow
from service.store.job_records import new_id
from service.store.notifications.tables import EndpointRow, MessageRow
from service.store.transactions import Transactions

_SECRET_BYTES = 32


@dataclass(frozen=True)
class Endpoint:
    """A webhook of an audit."""

    id: str
    audit_id: str
    url: str
    created_at: datetime
    former_secret_until: datetime | None
    """Until then messages are signed with the former secret too."""
    disabled_at: datetime | None
    """None while it gets messages."""
    disabled_reason: str | None


class Endpoints(Transactions):
    """The webhooks of all audits."""

    def webhooks(self, audit: str) -> Sequence[Endpoint]:
        """Return the webhooks of an audit, named by its name or id. Raises NotFound."""
        with self._read() as session:
            query = select(EndpointRow).where(EndpointRow.audit_id == audit_row(session, audit).id)
            return [_endpoint(row) for row in session.scalars(query.order_by(EndpointRow.id))]

    def secret(self, webhook_id: str) -> str:
        """Return the present secret of a webhook. Raises NotFound."""
        with self._read() as session:
            return _row(session, webhook_id).secret

    def rotate(self, webhook_id: str, overlap: timedelta) -> str:
        """Give a webhook a new secret and return it; the former one stays valid for `overlap`. Raises NotFound."""
        with self._write() as session:
            row = _row(session, webhook_id, lock=True)
            row.former_secret, row.former_until = row.secret, self._clock() + overlap
            row.secret = _new_secret()
            return row.secret

    def enable(self, webhook_id: str) -> Endpoint:
        """Let a webhook get messages again; those of the meantime can be replayed. Raises NotFound."""
        with self._write() as session:
            row = _row(session, webhook_id, lock=True)
            row.disabled_at = row.disabled_reason = None
            return _endpoint(row)


def keep_endpoints(session: Session, audit: AuditRow, definition: AuditDefinition, now: datetime) -> None:
    """Make the audit's webhooks those of its definition, and withhold what is owed to receivers that are gone."""
    wanted = receivers(definition.notify)
    urls = [one.address for one in wanted if one.channel == "webhook"]
    present = {row.url: row for row in session.scalars(select(EndpointRow).where(EndpointRow.audit_id == audit.id))}
    for url in urls:
        if url not in present:
            session.add(EndpointRow(id=new_id(now), audit_id=audit.id, url=url, secret=_new_secret(), created_at=now))
    for url, row in present.items():
        if url not in urls:
            session.delete(row)
    session.flush()
    owed = (MessageRow.audit_id == audit.id, MessageRow.state == "owed")
    known = select(MessageRow.channel, MessageRow.address).where(*owed).distinct()
    for channel, address in session.execute(known).all():
        if (channel, address) not in wanted:
            gone = (*owed, MessageRow.channel == channel, MessageRow.address == address)
            session.execute(update(MessageRow).where(*gone).values(state="withheld"))


def endpoint_of(session: Session, audit_id: str, url: str) -> EndpointRow | None:
    """Return the row of an audit's webhook; None where the audit no longer has it."""
    return session.scalars(
        select(EndpointRow).where(EndpointRow.audit_id == audit_id, EndpointRow.url == url)
    ).one_or_none()


def valid_secrets(row: EndpointRow, now: datetime) -> tuple[str, ...]:
    """Return the secrets to sign with, the present one first."""
    overlapping = row.former_secret is not None and row.former_until is not None and now < row.former_until
    return (row.secret, row.former_secret) if overlapping and row.former_secret else (row.secret,)


def disable(session: Session, row: EndpointRow, reason: str, now: datetime) -> None:
    """Send a webhook no more messages, until somebody enables it."""
    row.disabled_at, row.disabled_reason = now, reason
    owed = (MessageRow.audit_id == row.audit_id, MessageRow.address == row.url, MessageRow.state == "owed")
    session.execute(update(MessageRow).where(*owed).values(state="withheld"))


def _row(session: Session, webhook_id: str, *, lock: bool = False) -> EndpointRow:
    row = session.get(EndpointRow, webhook_id.replace("\0", ""), with_for_update=lock)
    if row is None:
        raise NotFound(
            f"webhook: {webhook_id!r} is not the id of a webhook; `headroom audits webhooks list NAME` lists them"
        )
    return row


def _endpoint(row: EndpointRow) -> Endpoint:
    return Endpoint(
        id=row.id,
        audit_id=row.audit_id,
        url=row.url,
        created_at=row.created_at,
        former_secret_until=row.former_until,
        disabled_at=row.disabled_at,
        disabled_reason=row.disabled_reason,
    )


def _new_secret() -> str:
    return "whsec_" + base64.b64encode(secrets.token_bytes(_SECRET_BYTES)).decode()
