"""The tables of the database, as SQLAlchemy models. Migrations in `migrations/` make the same ones.

Times are timezone-aware UTC in Python whatever the database keeps. Structured values (the request, the progress,
an error) are stored as the JSON of their contracts.
"""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    DateTime,
    Dialect,
    Enum,
    ForeignKey,
    Index,
    MetaData,
    String,
    TypeDecorator,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from service.contracts.request import SizeClass
from service.store.statuses import Status

Document = dict[str, Any]
Documents = list[dict[str, Any]]
Sentences = list[str]


class UtcDateTime(TypeDecorator[datetime]):
    """A point in time: `timestamptz` on PostgreSQL, UTC without its name on SQLite, which knows no zones."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Give the database UTC. A naive time raises ValueError: nobody can say which moment it means."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"{value!r} has no timezone; a timezone-aware time is needed")
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        """Give Python an aware UTC time."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Base(DeclarativeBase):
    """Base of every model."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {  # noqa: RUF012
        datetime: UtcDateTime,
        Document: JSON(none_as_null=True),
        Documents: JSON(none_as_null=True),
        Sentences: JSON(none_as_null=True),
    }


def owned_text(length: int) -> String:
    """Return the type of a unique text with its owner before it.

    SQLite does not limit texts, and could not change the type without a copy of the table.
    """
    return String(length).with_variant(String(length + 65), "postgresql")


class JobRow(Base):
    """One job."""

    __tablename__ = "jobs"
    __table_args__ = (
        Index(None, "status", "queued_at", "id"),
        Index(None, "owner", "id"),
        Index("ix_jobs_queue", "status", "owner", "size", "queued_at", "id"),
    )

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    owner: Mapped[str] = mapped_column(String(64))
    """Whose it is; empty: nobody's, which administrators see."""
    request: Mapped[Document]
    model: Mapped[str] = mapped_column(String(1024), index=True)
    """The request's model again, to filter by."""
    status: Mapped[Status] = mapped_column(
        Enum(Status, name="status", native_enum=False, length=16, create_constraint=True)
    )
    created_at: Mapped[datetime]
    queued_at: Mapped[datetime]
    """When it last came into the queue."""
    size: Mapped[SizeClass] = mapped_column(String(16), default="small")
    started_at: Mapped[datetime | None]
    """When the present or last attempt began."""
    finished_at: Mapped[datetime | None]
    attempts: Mapped[int] = mapped_column(default=0)
    """How often a worker has begun it."""
    losses: Mapped[int] = mapped_column(default=0)
    """How often its worker was lost since somebody last asked for it."""
    dispatch: Mapped[int] = mapped_column(default=0)
    """Number of the dispatch that may start it; messages with another number are void."""
    fence: Mapped[int] = mapped_column(default=0)
    """Number of the claim that may write to it."""
    worker: Mapped[str | None] = mapped_column(String(255))
    lease_expires_at: Mapped[datetime | None]
    cancel_requested: Mapped[bool] = mapped_column(default=False)
    error: Mapped[Document | None]
    progress: Mapped[Document | None]
    events: Mapped[int] = mapped_column(default=0)
    """Number of its last event."""
    idempotency_key: Mapped[str | None] = mapped_column(owned_text(255), unique=True)
    """With the owner before it (`transactions.owned_key`), so that two owners may use the same."""
    terms: Mapped[Document | None]
    """What an audit asks of the worker besides the request; null for a job that no audit made."""
    resolution: Mapped[Document | None]
    """What the worker found the model to be, where there are terms."""
    expires_at: Mapped[datetime | None]
    """When its report goes, where the request says how long it stays."""
    report_expired_at: Mapped[datetime | None]
    """When its report went."""


class DeletedJobRow(Base):
    """A job that was deleted: what may still be said of it."""

    __tablename__ = "deleted_jobs"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    owner: Mapped[str] = mapped_column(String(64))
    """The job's."""
    deleted_at: Mapped[datetime]
    idempotency_key: Mapped[str | None] = mapped_column(owned_text(255), unique=True)


class EventRow(Base):
    """Something that happened to a job."""

    __tablename__ = "events"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    sequence: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    """From 1, without gaps, for every job."""
    at: Mapped[datetime]
    kind: Mapped[str] = mapped_column(String(32))
    data: Mapped[Document]


class DispatchRow(Base):
    """One message that is to start a job."""

    __tablename__ = "dispatches"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    created_at: Mapped[datetime]
    sent_at: Mapped[datetime | None] = mapped_column(index=True)
    """When it last went to the broker; null until then."""


class ArtifactRow(Base):
    """One file of a job's report."""

    __tablename__ = "artifacts"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    name: Mapped[str] = mapped_column(String(255), primary_key=True)
    sha256: Mapped[str] = mapped_column(String(64), index=True)
    size: Mapped[int] = mapped_column(BigInteger)
    media_type: Mapped[str] = mapped_column(String(255))


class FileRow(Base):
    """One uploaded file that jobs may name; it keeps its content in the artifact store until it expires."""

    __tablename__ = "files"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    owner: Mapped[str] = mapped_column(String(255), index=True)
    name: Mapped[str] = mapped_column(String(255))
    sha256: Mapped[str] = mapped_column(String(64), index=True)
    size: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime] = mapped_column(index=True)
    """It is forgotten then, unless it is uploaded again or a request names it before."""


class StoreRow(Base):
    """The artifact store that belongs to this database; one row at most."""

    __tablename__ = "artifact_store"

    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    """Always 1."""
    id: Mapped[str] = mapped_column(String(32))
    """Random; written in the store as well."""
    written: Mapped[bool]
    """Whether the store has been seen with it: a store without it is another one from then on."""
    collected_at: Mapped[datetime | None]
    """When a scheduler last began to remove expired reports and unneeded files."""


class HostRow(Base):
    """The host that uses this database, where that is SQLite; one row at most."""

    __tablename__ = "single_host"

    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    """Always 1."""
    name: Mapped[str] = mapped_column(String(255))
    boot: Mapped[str] = mapped_column(String(255))
    """Id of the kernel since it was booted."""
    seen_at: Mapped[datetime]
    """When a process there last wrote it."""


class WorkerRow(Base):
    """A worker that was there a while ago."""

    __tablename__ = "workers"

    name: Mapped[str] = mapped_column(String(255), primary_key=True)
    """`HOST:PID:DEVICE`, as its jobs show it."""
    sizes: Mapped[Sentences]
    """The classes of jobs that it takes."""
    seen_at: Mapped[datetime]
    """When it last wrote this row."""
