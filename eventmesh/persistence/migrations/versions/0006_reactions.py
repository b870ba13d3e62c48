"""What reactions have done, so that it can be undone."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0006"
down_revision = "0005"

_TIME = sa.DateTime(timezone=True).with_variant(mysql.DATETIME(fsp=6), "mariadb")
_JSON = sa.JSON().with_variant(mysql.LONGTEXT(), "mariadb")
_OPTIONS = {
    "mariadb_engine": "InnoDB",
    "mariadb_row_format": "DYNAMIC",
    "mariadb_charset": "utf8mb4",
    "mariadb_collate": "utf8mb4_nopad_bin",
}


def upgrade() -> None:
    """Create the table."""
    op.create_table(
        "eventmesh_reaction",
        sa.Column("subscription", sa.String(255), nullable=False),
        sa.Column("key", sa.String(255), nullable=False),
        sa.Column("status", sa.String(20), nullable=False),
        sa.Column("message_id", sa.String(255)),
        sa.Column("result", _JSON),
        sa.Column("updated_at", _TIME, nullable=False),
        sa.PrimaryKeyConstraint("subscription", "key", name="pk_eventmesh_reaction"),
        sa.CheckConstraint(
            "status IN ('done', 'undone', 'cancelled')", name=op.f("ck_eventmesh_reaction_status")
        ),
        sa.CheckConstraint(
            "(message_id IS NULL) = (status = 'cancelled')",
            name=op.f("ck_eventmesh_reaction_cancelled"),
        ),
        if_not_exists=True,
        **_OPTIONS,
    )
    op.create_index(
        "ix_eventmesh_reaction_updated_at",
        "eventmesh_reaction",
        ["updated_at"],
        if_not_exists=True,
    )
