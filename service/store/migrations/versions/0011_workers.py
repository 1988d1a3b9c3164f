"""The workers that are there, and limits of single keys."""

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.types import TypeEngine

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

_LIMITS: dict[str, TypeEngine[Any]] = {
    "queued_jobs": sa.Integer(),
    "running_jobs": sa.Integer(),
    "upload_bytes_per_day": sa.BigInteger(),
    "requests_per_second": sa.Double(),
}


def upgrade() -> None:
    """Make the table and the columns."""
    op.create_table(
        "workers",
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("sizes", sa.JSON(), nullable=False),
        sa.Column("seen_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_workers")),
    )
    for name, kind in _LIMITS.items():
        op.add_column("keys", sa.Column(name, kind, nullable=True))


def downgrade() -> None:
    """Drop them."""
    for name in _LIMITS:
        op.drop_column("keys", name)
    op.drop_table("workers")
