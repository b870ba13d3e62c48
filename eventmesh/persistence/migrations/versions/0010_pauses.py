"""The subscriptions that operators have paused; and an index by which old actions are deleted."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0010"
down_revision = "0009"

_TIME = sa.DateTime(timezone=True).with_variant(mysql.DATETIME(fsp=6), "mariadb")
_TEXT = sa.Text().with_variant(mysql.LONGTEXT(), "mariadb")
_OPTIONS = {
    "mariadb_engine": "InnoDB",
    "mariadb_row_format": "DYNAMIC",
    "mariadb_charset": "utf8mb4",
    "mariadb_collate": "utf8mb4_nopad_bin",
}


def upgrade() -> None:
    """Create the table and the index."""
    op.create_table(
        "eventmesh_pause",
        sa.Column("subscription", sa.String(255), nullable=False),
        sa.Column("at", _TIME, nullable=False),
        sa.Column("who", sa.String(255), nullable=False),
        sa.Column("reason", _TEXT, nullable=False),
        sa.PrimaryKeyConstraint("subscription", name="pk_eventmesh_pause"),
        if_not_exists=True,
        **_OPTIONS,
    )
    op.create_index("ix_eventmesh_action_at", "eventmesh_action", ["at"], if_not_exists=True)
