"""Audits, their runs and reruns, and what an audit's job asks of the worker."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables of audits, and two columns of jobs."""
    op.add_column("jobs", sa.Column("terms", sa.JSON(), nullable=True))
    op.add_column("jobs", sa.Column("resolution", sa.JSON(), nullable=True))
    op.create_table(
        "audits",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("definition", sa.JSON(), nullable=False),
        sa.Column("baseline", sa.String(length=128), nullable=False),
        sa.Column("baseline_cautions", sa.JSON(), nullable=False),
        sa.Column("badge_token", sa.String(length=64), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("paused", sa.Boolean(), nullable=False),
        sa.Column("pause_reason", sa.String(length=1024), nullable=True),
        sa.Column("errors", sa.Integer(), nullable=False),
        sa.Column("runs", sa.Integer(), nullable=False),
        sa.Column("handled_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("next_run_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audits")),
        sa.UniqueConstraint("name", name=op.f("uq_audits_name")),
        sa.UniqueConstraint("badge_token", name=op.f("uq_audits_badge_token")),
    )
    op.create_index(op.f("ix_audits_baseline"), "audits", ["baseline"], unique=False)
    op.create_index(op.f("ix_audits_next_run_at"), "audits", ["next_run_at"], unique=False)
    _audit_runs()
    op.create_table(
        "audit_reruns",
        sa.Column("run_id", sa.String(length=32), nullable=False),
        sa.Column("seed", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("job_id", sa.String(length=32), nullable=False),
        sa.Column("baseline_job_id", sa.String(length=32), nullable=True),
        sa.ForeignKeyConstraint(["run_id"], ["audit_runs.id"], name=op.f("fk_audit_reruns_run_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("run_id", "seed", name=op.f("pk_audit_reruns")),
    )
    for column in ("job_id", "baseline_job_id"):
        op.create_index(op.f(f"ix_audit_reruns_{column}"), "audit_reruns", [column], unique=False)


def _audit_runs() -> None:
    op.create_table(
        "audit_runs",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("audit_id", sa.String(length=32), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("trigger", sa.String(length=16), nullable=False),
        sa.Column(
            "state",
            sa.Enum(
                "queued",
                "measuring",
                "judging",
                "rerunning",
                "ended",
                name="state",
                native_enum=False,
                create_constraint=True,
                length=16,
            ),
            nullable=False,
        ),
        sa.Column("definition", sa.JSON(), nullable=True),
        sa.Column("scheduled_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("verdict", sa.String(length=16), nullable=True),
        sa.Column("reasons", sa.JSON(), nullable=False),
        sa.Column("job_id", sa.String(length=32), nullable=True),
        sa.Column("report_id", sa.String(length=64), nullable=True),
        sa.Column("baseline_report_id", sa.String(length=64), nullable=True),
        sa.Column("findings", sa.JSON(), nullable=False),
        sa.Column("reruns", sa.JSON(), nullable=False),
        sa.Column("figures", sa.JSON(), nullable=False),
        sa.Column("identity", sa.String(length=71), nullable=True),
        sa.Column("fence", sa.Integer(), nullable=False),
        sa.Column("judgments", sa.Integer(), nullable=False),
        sa.Column("lease_expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["audit_id"], ["audits.id"], name=op.f("fk_audit_runs_audit_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit_runs")),
        sa.UniqueConstraint("audit_id", "scheduled_at", name=op.f("uq_audit_runs_audit_id_scheduled_at")),
        sa.UniqueConstraint("audit_id", "number", name=op.f("uq_audit_runs_audit_id_number")),
    )
    for column in ("state", "job_id", "report_id", "baseline_report_id"):
        op.create_index(op.f(f"ix_audit_runs_{column}"), "audit_runs", [column], unique=False)


def downgrade() -> None:
    """Drop the tables of audits, and the two columns of jobs."""
    op.drop_table("audit_reruns")
    op.drop_table("audit_runs")
    op.drop_table("audits")
    # Not as a batch, which on SQLite drops the old table of jobs, and with it every row that refers to one.
    op.drop_column("jobs", "resolution")
    op.drop_column("jobs", "terms")
