"""The outbox: messages are claimed under a lease, retried with growing delays, and kept for a while afterwards.

A message is a row from the transaction that gave rise to it. Whoever sends it claims it first, so that of several
schedulers one sends it; if that one dies, the lease runs out and the message is sent again, under the same id. Of
messages to one receiver only one is on its way at a time, so that a slow receiver holds up no others.
"""

import logging
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple, cast, get_args

from pydantic import ValidationError
from sqlalchemy import Select, delete, select
from sqlalchemy.orm import Session

from service.audits.receivers import Channel, Receiver, receivers
from service.contracts.audits.alert import Announcement
from service.contracts.audits.audit import AuditDefinition
from service.errors import Conflict, InvalidRequest, NotFound
from service.store.audit_records import audit_row
from service.store.audit_tables import AuditRow
from service.store.database import CLAIM_LOCK, wait_for_turn
from service.store.job_records import new_id
from service.store.notifications.attempts import Attempted, Result, next_delay
from service.store.notifications.endpoints import disable, endpoint_of, keep_endpoints, valid_secrets
from service.store.notifications.tables import AnnouncementRow, AttemptRow, MessageRow, MessageState
from service.store.transactions import Transactions

log = logging.getLogger(__name__)

_LOOKED_AT = 200
"""Due messages that one claim looks at."""
_ENDED = [state for state in get_args(MessageState) if state != "owed"]
_DETAIL = 2048


class Owed(NamedTuple):
    """A message to be attempted now."""

    id: str
    """The same at every attempt."""
    fence: int
    receiver: Receiver
    announcement: Announcement
    secrets: tuple[str, ...]
    """To sign a webhook with."""


@dataclass(frozen=True)
class Attempt:
    """One attempt to deliver a message."""

    number: int
    at: datetime
    seconds: float
    result: Result
    status: int | None
    detail: str


@dataclass(frozen=True)
class Delivery:
    """A message and its history."""

    id: str
    audit_id: str
    announcement_id: str
    channel: Channel
    address: str
    state: MessageState
    created_at: datetime
    due_at: datetime | None
    """When the next attempt is due; None unless it is owed."""
    attempts: tuple[Attempt, ...]

    @property
    def webhook_id(self) -> str:
        """The id that the receiver sees, the same at every attempt."""
        return webhook_id(self.id)


@dataclass(frozen=True)
class DeliveryPage:
    """Part of the list of an audit's messages, newest first."""

    deliveries: list[Delivery]
    next_page_token: str | None


def webhook_id(message_id: str) -> str:
    """Return the id that receivers see of a message."""
    return f"msg_{message_id}"


class Outbox(Transactions):
    """Messages to receivers, and the history of their delivery."""

    def claim(self, limit: int, lease: timedelta) -> list[Owed]:
        """Return up to `limit` due messages, no two to one receiver, held for `lease` by the caller alone."""
        with self._read() as session:
            if session.scalar(_due(self._clock()).limit(1)) is None:
                return []
        with self._write() as session:
            wait_for_turn(session, CLAIM_LOCK)  # what another claims is seen
            now = self._clock()
            leased = select(MessageRow.address).where(MessageRow.leased_until > now, MessageRow.state == "owed")
            busy = set(session.scalars(leased))
            owed: list[Owed] = []
            due = _due(now).where(MessageRow.address.not_in(busy)).limit(_LOOKED_AT)
            for row in session.scalars(due.with_for_update(skip_locked=True)):
                if len(owed) < limit and row.address not in busy and (one := _claimed(session, row, now)):
                    busy.add(row.address)
                    row.leased_until = now + lease
                    owed.append(one)
            return owed

    def record(self, owed: Owed, attempted: Attempted, began: datetime) -> None:
        """Write the attempt at a claimed message into its history, and what follows from it.

        A message that another has claimed since is left to that one; its history has this attempt too.
        """
        with self._write() as session:
            if attempted.result == "gone":
                # That writes to the webhook and to other messages too. An edit and a deletion of the audit write to the
                # same rows in another order, but lock the audit first.
                session.get(AuditRow, owed.announcement.audit_id, with_for_update=True)
            row = session.get(MessageRow, owed.id, with_for_update=True)
            if row is None:  # its audit was deleted
                return
            now = self._clock()
            row.attempts += 1
            session.add(
                AttemptRow(
                    message_id=row.id,
                    number=row.attempts,
                    at=began,
                    seconds=(now - began).total_seconds(),
                    result=attempted.result,
                    status=attempted.status,
                    detail=attempted.detail.replace("\0", "")[:_DETAIL],
                )
            )
            if row.fence != owed.fence or row.state != "owed":
                return
            row.leased_until = None
            row.tries += 1
            _follow(session, row, attempted, now)

    def deliveries(self, audit: str, *, page_size: int = 50, page_token: str | None = None) -> DeliveryPage:
        """Return up to `page_size` messages of an audit, newest first, after those of the page that gave `page_token`.

        Raises NotFound, and InvalidRequest for a token that is none.
        """
        if page_token is not None and not (len(page_token) == 32 and page_token.isalnum()):
            raise InvalidRequest("page_token", page_token, "a next_page_token of an earlier answer")
        with self._read() as session:
            query = select(MessageRow).where(MessageRow.audit_id == audit_row(session, audit).id)
            if page_token is not None:
                query = query.where(MessageRow.id < page_token)
            rows = session.scalars(query.order_by(MessageRow.id.desc()).limit(page_size + 1)).all()
            shown = [_delivery(session, row) for row in rows[:page_size]]
        return DeliveryPage(shown, shown[-1].id if len(rows) > page_size else None)

    def delivery(self, message_id: str) -> Delivery:
        """Return a message with its history. Raises NotFound."""
        with self._read() as session:
            return _delivery(session, _message(session, message_id))

    def prune(self, kept: timedelta, limit: int = 1000) -> int:
        """Remove up to `limit` messages, with their attempts, that ended longer than `kept` ago; return how many.

        Their announcements stay, which feeds show.
        """
        ended = (MessageRow.state.in_(_ENDED), MessageRow.due_at < self._clock() - kept)
        oldest = select(MessageRow.id).where(*ended).order_by(MessageRow.due_at, MessageRow.id).limit(limit)
        with self._write() as session:
            ids = session.scalars(oldest.with_for_update(skip_locked=True)).all()
            session.execute(delete(MessageRow).where(MessageRow.id.in_(ids)))
            return len(ids)

    def replay(self, message_id: str) -> Delivery:
        """Let a message be sent again now, under the same id, and tried as often as a new one.

        Raises NotFound, and Conflict where the audit no longer has the receiver, or the webhook is disabled.
        """
        with self._write() as session:
            row = _message(session, message_id, lock=True)
            _check_receiver(session, row)
            row.state, row.due_at, row.tries = "owed", self._clock(), 0
            session.flush()
            return _delivery(session, row)


def owe(session: Session, audit: AuditRow, announcement: Announcement) -> None:
    """Insert an announcement's message to every receiver of the audit, to be sent now. The announcement has a row.

    Of an audit that another version made and this one cannot read no receiver is known.
    """
    now = announcement.at
    try:
        definition = AuditDefinition.model_validate(audit.definition)
    except ValidationError:
        log.warning("audit %s: its definition cannot be read, so nobody is told of it", audit.id)
        return
    keep_endpoints(session, audit, definition, now)
    for receiver in receivers(definition.notify):
        endpoint = endpoint_of(session, audit.id, receiver.address) if receiver.channel == "webhook" else None
        session.add(
            MessageRow(
                id=new_id(now),
                announcement_id=announcement.id,
                audit_id=audit.id,
                channel=receiver.channel,
                address=receiver.address,
                state="withheld" if endpoint and endpoint.disabled_at else "owed",
                created_at=now,
                due_at=now,
            )
        )


def _due(now: datetime) -> Select[MessageRow]:
    free = MessageRow.leased_until.is_(None) | (MessageRow.leased_until <= now)
    return (
        select(MessageRow)
        .where(MessageRow.state == "owed", MessageRow.due_at <= now, free)
        .order_by(MessageRow.due_at, MessageRow.id)
    )


def _claimed(session: Session, row: MessageRow, now: datetime) -> Owed | None:
    """Return a due message under a new claim; None where its webhook wants none anymore."""
    secrets: tuple[str, ...] = ()
    if row.channel == "webhook":
        endpoint = endpoint_of(session, row.audit_id, row.address)
        if endpoint is None or endpoint.disabled_at is not None:
            row.state = "withheld"
            return None
        secrets = valid_secrets(endpoint, now)
    row.fence += 1
    announcement = session.get_one(AnnouncementRow, row.announcement_id)
    receiver = Receiver(cast(Channel, row.channel), row.address)
    return Owed(row.id, row.fence, receiver, Announcement.model_validate(announcement.content), secrets)


def _follow(session: Session, row: MessageRow, attempted: Attempted, now: datetime) -> None:
    """Write what follows from an attempt."""
    if attempted.result == "delivered":
        row.state = "delivered"
        return
    delay = next_delay(row.tries, attempted.wait) if attempted.result == "failed" else None
    if delay is None:
        row.state = "failed"
    else:
        row.due_at = now + delay
    if attempted.result == "gone" and (endpoint := endpoint_of(session, row.audit_id, row.address)):
        disable(session, endpoint, attempted.detail, now)


def _message(session: Session, message_id: str, *, lock: bool = False) -> MessageRow:
    row = session.get(MessageRow, message_id.replace("\0", ""), with_for_update=lock)
    if row is None:
        raise NotFound(
            f"delivery: {message_id!r} is not the id of a delivery; "
            "`headroom audits webhooks deliveries NAME` lists them"
        )
    return row


def _check_receiver(session: Session, row: MessageRow) -> None:
    """Raise Conflict unless a message's receiver is still to be told."""
    definition = AuditDefinition.model_validate(session.get_one(AuditRow, row.audit_id).definition)
    if (row.channel, row.address) not in receivers(definition.notify):
        raise Conflict(f"delivery {row.id}: {row.address} is no longer in `notify` of the audit")
    if row.channel != "webhook":
        return
    endpoint = endpoint_of(session, row.audit_id, row.address)
    if endpoint is not None and endpoint.disabled_at is not None:
        raise Conflict(
            f"delivery {row.id}: the webhook {endpoint.id} is disabled; "
            f"enable it first (`headroom audits webhooks enable {endpoint.id}`)"
        )


def _delivery(session: Session, row: MessageRow) -> Delivery:
    attempts = session.scalars(select(AttemptRow).where(AttemptRow.message_id == row.id).order_by(AttemptRow.number))
    return Delivery(
        id=row.id,
        audit_id=row.audit_id,
        announcement_id=row.announcement_id,
        channel=cast(Channel, row.channel),
        address=row.address,
        state=cast(MessageState, row.state),
        created_at=row.created_at,
        due_at=row.due_at if row.state == "owed" else None,
        attempts=tuple(
            Attempt(one.number, one.at, one.seconds, cast(Result, one.result), one.status, one.detail)
            for one in attempts
        ),
    )
