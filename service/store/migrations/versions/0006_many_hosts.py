"""Several hosts: the one that uses an SQLite file, and a notification of every event on PostgreSQL."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the table of the host, and on PostgreSQL the trigger that sends the job's id of every new event."""
    op.create_table(
        "single_host",
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("boot", sa.String(length=255), nullable=False),
        sa.Column("seen_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_single_host")),
    )
    if op.get_bind().dialect.name != "postgresql":
        return
    op.execute(
        """
        CREATE FUNCTION notify_of_event() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            PERFORM pg_notify('headroom_events', NEW.job_id);
            RETURN NULL;
        END $$
        """
    )
    op.execute("CREATE TRIGGER notify_of_event AFTER INSERT ON events FOR EACH ROW EXECUTE FUNCTION notify_of_event()")


def downgrade() -> None:
    """Drop both."""
    if op.get_bind().dialect.name == "postgresql":
        op.execute("DROP TRIGGER notify_of_event ON events")
        op.execute("DROP FUNCTION notify_of_event()")
    op.drop_table("single_host")
