"""Owners of jobs and audits, what they used, and sizes of jobs.

What there is belongs to nobody, and is thus the administrators'.
"""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

_OWNER = 65
"""Characters of an owner and what separates it from the text behind it."""


def upgrade() -> None:
    """Add the owners, and make room for them in the unique texts.

    The tables are not copied, as a batch would do on SQLite: what refers to their rows would go with them.
    """
    for table in ("jobs", "deleted_jobs", "audits"):
        op.add_column(table, sa.Column("owner", sa.String(length=64), nullable=False, server_default=""))
    op.add_column("jobs", sa.Column("size", sa.String(length=16), nullable=False, server_default="small"))
    op.create_index(op.f("ix_jobs_owner_id"), "jobs", ["owner", "id"])
    op.create_index("ix_jobs_queue", "jobs", ["status", "owner", "size", "queued_at", "id"])
    op.create_index(op.f("ix_audits_owner"), "audits", ["owner"])
    _rename("name", "owned_name")
    _resize(_OWNER)
    op.create_table(
        "owners",
        sa.Column("owner", sa.String(length=64), nullable=False),
        sa.Column("served", sa.Double(), nullable=False),
        sa.Column("begun", sa.Double(), nullable=False),
        sa.Column("begun_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("upload_day", sa.Date(), nullable=True),
        sa.Column("upload_bytes", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("owner", name=op.f("pk_owners")),
    )


def downgrade() -> None:
    """Drop the table and the columns. Names and idempotency keys of owners keep these before them."""
    op.drop_table("owners")
    _resize(0)
    _rename("owned_name", "name")
    op.drop_index(op.f("ix_audits_owner"), table_name="audits")
    op.drop_index("ix_jobs_queue", table_name="jobs")
    op.drop_index(op.f("ix_jobs_owner_id"), table_name="jobs")
    op.drop_column("jobs", "size")
    for table in ("jobs", "deleted_jobs", "audits"):
        op.drop_column(table, "owner")


def _rename(before: str, after: str) -> None:
    op.execute(sa.text(f"ALTER TABLE audits RENAME COLUMN {before} TO {after}"))


def _resize(more: int) -> None:
    if op.get_bind().dialect.name == "postgresql":  # SQLite does not limit texts
        for table in ("jobs", "deleted_jobs"):
            op.alter_column(table, "idempotency_key", type_=sa.String(length=255 + more))
        op.alter_column("audits", "owned_name", type_=sa.String(length=63 + more))
