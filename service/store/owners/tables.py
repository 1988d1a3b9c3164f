"""The tables of API keys and of their owners."""

from datetime import date, datetime

from sqlalchemy import JSON, BigInteger, Index, String, text
from sqlalchemy.orm import Mapped, mapped_column

from service.store.tables import Base

_VALID = text("revoked_at IS NULL")


class KeyRow(Base):
    """One API key; only its hash is kept."""

    __tablename__ = "keys"
    __table_args__ = (
        Index("ix_keys_valid_name", "name", unique=True, sqlite_where=_VALID, postgresql_where=_VALID),
        Index("ix_keys_sha256", "sha256", unique=True),
    )

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    name: Mapped[str] = mapped_column(String(64))
    """Of all keys that are not revoked, one has it."""
    owner: Mapped[str] = mapped_column(String(64))
    """Whose what the key makes is; several keys may have the same."""
    prefix: Mapped[str] = mapped_column(String(16))
    """The key's first characters, to know it again by."""
    sha256: Mapped[str] = mapped_column(String(64))
    scopes: Mapped[list[str]] = mapped_column(JSON)
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]
    """To the minute."""
    revoked_at: Mapped[datetime | None]
    queued_jobs: Mapped[int | None]
    """This limit and the next three as `KeyLimits`; null: the service's."""
    running_jobs: Mapped[int | None]
    upload_bytes_per_day: Mapped[int | None] = mapped_column(BigInteger)
    requests_per_second: Mapped[float | None]


class OwnerRow(Base):
    """What an owner has used of the service."""

    __tablename__ = "owners"

    owner: Mapped[str] = mapped_column(String(64), primary_key=True)
    served: Mapped[float]
    """Seconds that workers spent on the owner's jobs, as `shares` counts them."""
    begun: Mapped[float]
    """`served` when a job of the owner last began."""
    begun_at: Mapped[datetime | None]
    """When that was."""
    upload_day: Mapped[date | None]
    """The day of the last upload, in UTC."""
    upload_bytes: Mapped[int] = mapped_column(BigInteger)
    """Bytes that were uploaded on that day."""
