"""Expiry of reports, deleted jobs, and the time of the last garbage collection.

Columns are added, not tables copied, as a batch would do on SQLite: what refers to a job would go with its row.
"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns and the table."""
    for table, name in (("jobs", "expires_at"), ("jobs", "report_expired_at"), ("artifact_store", "collected_at")):
        op.add_column(table, sa.Column(name, sa.DateTime(timezone=True), nullable=True))
    op.create_table(
        "deleted_jobs",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("deleted_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("idempotency_key", sa.String(length=255), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_deleted_jobs")),
        sa.UniqueConstraint("idempotency_key", name=op.f("uq_deleted_jobs_idempotency_key")),
    )


def downgrade() -> None:
    """Drop them."""
    op.drop_table("deleted_jobs")
    for table, name in (("artifact_store", "collected_at"), ("jobs", "report_expired_at"), ("jobs", "expires_at")):
        op.drop_column(table, name)
