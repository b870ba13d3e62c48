"""The log of what operators did on the dashboard."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0008"
down_revision = "0007"

_TIME = sa.DateTime(timezone=True).with_variant(mysql.DATETIME(fsp=6), "mariadb")
_TEXT = sa.Text().with_variant(mysql.LONGTEXT(), "mariadb")
_JSON = sa.JSON().with_variant(mysql.LONGTEXT(), "mariadb")
_SEQUENCE = sa.BigInteger().with_variant(sa.Integer, "sqlite")
_OPTIONS = {
    "mariadb_engine": "InnoDB",
    "mariadb_row_format": "DYNAMIC",
    "mariadb_charset": "utf8mb4",
    "mariadb_collate": "utf8mb4_nopad_bin",
}


def upgrade() -> None:
    """Create the table."""
    op.create_table(
        "eventmesh_action",
        sa.Column("seq", _SEQUENCE, primary_key=True, autoincrement=True),
        sa.Column("at", _TIME, nullable=False),
        sa.Column("service", sa.String(255), nullable=False),
        sa.Column("who", sa.String(255), nullable=False),
        sa.Column("what", sa.String(64), nullable=False),
        sa.Column("subject", _TEXT, nullable=False),
        sa.Column("reason", _TEXT, nullable=False),
        sa.Column("details", _JSON, nullable=False),
        sa.Column("outcome", _TEXT),
        sa.PrimaryKeyConstraint("seq", name="pk_eventmesh_action"),
        if_not_exists=True,
        sqlite_autoincrement=True,
        **_OPTIONS,
    )
