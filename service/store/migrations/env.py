"""Alembic's entry: run the migrations inside the transaction of the connection that `database.upgrade` passes in."""

from alembic import context

from service.store.notifications import tables as notifications  # noqa: F401 - its tables are part of the schema
from service.store.owners import tables as owners  # noqa: F401 - likewise
from service.store.tables import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    render_as_batch=True,  # SQLite changes a table by copying it
)
with context.begin_transaction():
    context.run_migrations()
