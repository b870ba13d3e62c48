"""The inbox becomes a journal: what each message was, why it came, and how long it took."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Add the columns; they are NULL for messages that are in the inbox already. On MariaDB, an
    upgrade that was killed may have added some without recording that; SQLite undoes them with the
    rest, and has no IF NOT EXISTS here."""
    for column in (
        sa.Column("name", sa.String(255)),
        sa.Column("key", sa.String(255)),
        sa.Column("correlation_id", sa.String(255)),
        sa.Column("causation_id", sa.String(255)),
        sa.Column("attempt", sa.Integer),
        sa.Column("took", sa.Double),
    ):
        op.add_column(
            "eventmesh_inbox", column, if_not_exists=op.get_bind().dialect.name != "sqlite"
        )
    op.create_index(
        "ix_eventmesh_inbox_correlation_id",
        "eventmesh_inbox",
        ["correlation_id"],
        if_not_exists=True,
    )
