"""The tables of audits, as SQLAlchemy models: the audits, their runs and the jobs of their reruns."""

from datetime import datetime

from sqlalchemy import BigInteger, Enum, ForeignKey, String, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from service.store.statuses import RunState
from service.store.tables import Base, Document, Documents, Sentences, owned_text


class AuditRow(Base):
    """One audit."""

    __tablename__ = "audits"
    __table_args__ = (UniqueConstraint("owned_name", name="uq_audits_name"),)

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    owner: Mapped[str] = mapped_column(String(64), index=True)
    """Whose it is; empty: nobody's, which administrators see."""
    owned_name: Mapped[str] = mapped_column(owned_text(63))
    """The name with the owner before it (`audit_records.owned_name`), so that two owners may use the same."""
    definition: Mapped[Document]
    baseline: Mapped[str] = mapped_column(String(128), index=True)
    """The definition's baseline again, to find the audits that a report is pinned by."""
    baseline_cautions: Mapped[Sentences]
    """Why limits against the pinned baseline mean little, where somebody insisted on it."""
    badge_token: Mapped[str] = mapped_column(String(64), unique=True)
    feed_token: Mapped[str] = mapped_column(String(64), unique=True, index=True)
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]
    paused: Mapped[bool] = mapped_column(default=False)
    pause_reason: Mapped[str | None] = mapped_column(String(1024))
    errors: Mapped[int] = mapped_column(default=0)
    """Runs in a row that ended as `error`."""
    runs: Mapped[int] = mapped_column(default=0)
    """Number of its last run."""
    handled_at: Mapped[datetime]
    """Scheduled times up to here fire no more."""
    next_run_at: Mapped[datetime | None] = mapped_column(index=True)
    """When the next scheduled run starts; null without a schedule, and while paused."""


class AuditRunRow(Base):
    """One run of an audit."""

    __tablename__ = "audit_runs"
    __table_args__ = (UniqueConstraint("audit_id", "scheduled_at"), UniqueConstraint("audit_id", "number"))

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    audit_id: Mapped[str] = mapped_column(ForeignKey("audits.id", ondelete="CASCADE"))
    number: Mapped[int]
    """From 1, without gaps, for every audit."""
    trigger: Mapped[str] = mapped_column(String(16))
    state: Mapped[RunState] = mapped_column(
        Enum(RunState, name="state", native_enum=False, length=16, create_constraint=True), index=True
    )
    definition: Mapped[Document | None]
    """The audit's definition when the run started."""
    scheduled_at: Mapped[datetime | None]
    created_at: Mapped[datetime]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    verdict: Mapped[str | None] = mapped_column(String(16))
    reasons: Mapped[Sentences]
    job_id: Mapped[str | None] = mapped_column(String(32), index=True)
    report_id: Mapped[str | None] = mapped_column(String(64), index=True)
    baseline_report_id: Mapped[str | None] = mapped_column(String(64), index=True)
    findings: Mapped[Documents]
    reruns: Mapped[Documents]
    figures: Mapped[Document]
    """The report's numeric figures that have limits, by their paths."""
    identity: Mapped[str | None] = mapped_column(String(71))
    """What was measured, as the worker resolved it."""
    fence: Mapped[int] = mapped_column(default=0)
    """Number of the judgment that may write to it."""
    judgments: Mapped[int] = mapped_column(default=0)
    """How often a scheduler has begun to judge what was measured last."""
    lease_expires_at: Mapped[datetime | None]
    """When another scheduler may judge it."""


class AuditRerunRow(Base):
    """The jobs that measure a run's broken figures on another calibration seed."""

    __tablename__ = "audit_reruns"

    run_id: Mapped[str] = mapped_column(ForeignKey("audit_runs.id", ondelete="CASCADE"), primary_key=True)
    seed: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    job_id: Mapped[str] = mapped_column(String(32), index=True)
    """Of the candidate."""
    baseline_job_id: Mapped[str | None] = mapped_column(String(32), index=True)
    """Of the baseline's model; null where no limit against the baseline was broken."""
