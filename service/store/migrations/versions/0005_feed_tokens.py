"""A token of their own for the feeds of audits: the badge's is in public pages."""

import secrets

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Give every audit a feed token.

    The table is not copied, as a batch would do on SQLite: runs and alerts would go with its rows.
    """
    op.add_column("audits", sa.Column("feed_token", sa.String(length=64), nullable=False, server_default=""))
    audits = sa.table("audits", sa.column("id", sa.String), sa.column("feed_token", sa.String))
    connection = op.get_bind()
    for audit_id in connection.scalars(sa.select(audits.c.id)).all():
        token = secrets.token_urlsafe(24)
        connection.execute(sa.update(audits).where(audits.c.id == audit_id).values(feed_token=token))
    op.create_index(op.f("ix_audits_feed_token"), "audits", ["feed_token"], unique=True)


def downgrade() -> None:
    """Drop the column."""
    op.drop_index(op.f("ix_audits_feed_token"), table_name="audits")
    op.drop_column("audits", "feed_token")
