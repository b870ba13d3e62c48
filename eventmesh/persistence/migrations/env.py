"""Alembic's entry point: it runs on the connection, and in the transaction, of `migration`."""

from alembic import context

from eventmesh.persistence.migration import VERSION_TABLE
from eventmesh.persistence.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table=VERSION_TABLE,
    transactional_ddl=False,  # the caller's transaction is the only one
)
context.run_migrations()
