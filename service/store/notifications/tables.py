"""The tables of alerts, announcements, messages with their attempts, and webhooks."""

from datetime import datetime
from typing import Literal

from sqlalchemy import ForeignKey, Index, String, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column

from service.store.tables import Base, Document

MessageState = Literal["owed", "delivered", "failed", "withheld"]
"""`owed`: it is due now or later. `failed`: nobody tries anymore. `withheld`: its receiver was disabled or removed."""
_OPEN = text("closed_at IS NULL")


class AlertRow(Base):
    """One alert: a figure of an audit on one side of its limit, from one opening to one closing."""

    __tablename__ = "alerts"
    __table_args__ = (
        Index(
            "ix_alerts_open",
            "audit_id",
            "figure",
            "site",
            "direction",
            unique=True,
            sqlite_where=_OPEN,
            postgresql_where=_OPEN,
        ),
    )

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    audit_id: Mapped[str] = mapped_column(ForeignKey("audits.id", ondelete="CASCADE"), index=True)
    figure: Mapped[str] = mapped_column(String(512))
    site: Mapped[str] = mapped_column(String(64))
    direction: Mapped[str] = mapped_column(String(16))
    opened_at: Mapped[datetime]
    opened_run_id: Mapped[str] = mapped_column(String(32))
    broken: Mapped[bool]
    """Whether the last run that judged it failed on it."""
    broken_run_id: Mapped[str] = mapped_column(String(32))
    """The last run that failed on it."""
    told: Mapped[bool]
    """Whether its opening was announced, so that its closing is too."""
    closed_at: Mapped[datetime | None]
    closed_run_id: Mapped[str | None] = mapped_column(String(32))
    finding: Mapped[Document]
    """Of the last run that failed on it, or passed it."""
    acknowledgement: Mapped[Document | None]
    dismissal: Mapped[Document | None]


class AnnouncementRow(Base):
    """An announcement: alerts that opened or closed, or a run that ended in an error."""

    __tablename__ = "announcements"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    audit_id: Mapped[str] = mapped_column(ForeignKey("audits.id", ondelete="CASCADE"), index=True)
    content: Mapped[Document]
    """An `Announcement`."""


class MessageRow(Base):
    """An announcement on its way to one receiver."""

    __tablename__ = "messages"
    __table_args__ = (Index(None, "state", "due_at"),)

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    announcement_id: Mapped[str] = mapped_column(ForeignKey("announcements.id", ondelete="CASCADE"), index=True)
    audit_id: Mapped[str] = mapped_column(ForeignKey("audits.id", ondelete="CASCADE"), index=True)
    channel: Mapped[str] = mapped_column(String(16))
    address: Mapped[str] = mapped_column(String(2048))
    state: Mapped[str] = mapped_column(String(16))
    created_at: Mapped[datetime]
    due_at: Mapped[datetime]
    """When the next attempt is due, if it is owed."""
    tries: Mapped[int] = mapped_column(default=0)
    """Attempts since somebody last asked for it."""
    attempts: Mapped[int] = mapped_column(default=0)
    """All attempts."""
    fence: Mapped[int] = mapped_column(default=0)
    """Number of the claim that may write to it."""
    leased_until: Mapped[datetime | None]
    """Until then nobody else attempts it."""


class AttemptRow(Base):
    """One attempt to deliver a message."""

    __tablename__ = "attempts"

    message_id: Mapped[str] = mapped_column(ForeignKey("messages.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    """From 1, without gaps, for every message."""
    at: Mapped[datetime]
    seconds: Mapped[float]
    """How long it took."""
    result: Mapped[str] = mapped_column(String(16))
    status: Mapped[int | None]
    """HTTP status or SMTP code."""
    detail: Mapped[str] = mapped_column(String(2048))


class EndpointRow(Base):
    """A webhook of an audit, with the secret that its messages are signed with."""

    __tablename__ = "webhook_endpoints"
    __table_args__ = (UniqueConstraint("audit_id", "url"),)

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    audit_id: Mapped[str] = mapped_column(ForeignKey("audits.id", ondelete="CASCADE"))
    url: Mapped[str] = mapped_column(String(2048))
    secret: Mapped[str] = mapped_column(String(128))
    former_secret: Mapped[str | None] = mapped_column(String(128))
    former_until: Mapped[datetime | None]
    """Until then messages are signed with the former secret too."""
    created_at: Mapped[datetime]
    disabled_at: Mapped[datetime | None]
    disabled_reason: Mapped[str | None] = mapped_column(String(2048))
