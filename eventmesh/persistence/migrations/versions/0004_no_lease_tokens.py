"""Leases lose their fencing token, which nothing read: a broker cannot check it, and rows of the
outbox are deleted only as they were read."""

from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Drop the column. On MariaDB, an upgrade that was killed may have done it without recording
    that; SQLite undoes it with the rest, and has no IF EXISTS here."""
    op.drop_column("eventmesh_lease", "token", if_exists=op.get_bind().dialect.name != "sqlite")
