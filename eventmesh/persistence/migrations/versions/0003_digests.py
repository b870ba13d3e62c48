"""A digest of each message in the inbox, so that another one with the same id is noticed."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Add the column; it is NULL for messages that are in the inbox already. On MariaDB, an upgrade
    that was killed may have added it without recording that; SQLite undoes it with the rest, and
    has no IF NOT EXISTS here."""
    op.add_column(
        "eventmesh_inbox",
        sa.Column("digest", sa.BigInteger),
        if_not_exists=op.get_bind().dialect.name != "sqlite",
    )
