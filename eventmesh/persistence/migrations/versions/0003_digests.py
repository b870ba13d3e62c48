"""What each message in the inbox was, so that another one with the same id is noticed."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Add the column; of messages that are in the inbox already it is not known. On MariaDB, an
    upgrade that was killed may have added it and not said so; SQLite undoes it with the rest, and
    has no words for it."""
    op.add_column(
        "eventmesh_inbox",
        sa.Column("digest", sa.BigInteger),
        if_not_exists=op.get_bind().dialect.name != "sqlite",
    )
