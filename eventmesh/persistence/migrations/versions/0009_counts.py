"""Counters of messages, for `eventmesh audit`. What is in the outbox already is counted as stored,
and what is in the inbox as handled."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0009"
down_revision = "0008"

_TIME = sa.DateTime(timezone=True).with_variant(mysql.DATETIME(fsp=6), "mariadb")
_OPTIONS = {
    "mariadb_engine": "InnoDB",
    "mariadb_row_format": "DYNAMIC",
    "mariadb_charset": "utf8mb4",
    "mariadb_collate": "utf8mb4_nopad_bin",
}
_COLUMNS = "owner, what, subscription, source, name, number, since, updated_at"
_SOURCES = {
    "postgresql": "substr(headers ->> 'source', 2, 63)",
    "sqlite": "substr(json_extract(headers, '$.source'), 2, 63)",
    "mariadb": "substr(json_value(headers, '$.source'), 2, 63)",
}
_NOW = {
    "postgresql": "clock_timestamp()",
    "sqlite": "(strftime('%Y-%m-%d %H:%M:%f', 'now') || '000')",
    "mariadb": "UTC_TIMESTAMP(6)",
}


def upgrade() -> None:
    """Create the table and begin the counters. On MariaDB, where each statement commits by itself,
    an upgrade that was killed can be run again."""
    op.create_table(
        "eventmesh_count",
        sa.Column("owner", sa.String(32), nullable=False),
        sa.Column("what", sa.String(20), nullable=False),
        sa.Column("subscription", sa.String(200), nullable=False),
        sa.Column("source", sa.String(63), nullable=False),
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("number", sa.BigInteger, nullable=False),
        sa.Column("since", _TIME, nullable=False),
        sa.Column("updated_at", _TIME, nullable=False),
        sa.PrimaryKeyConstraint(
            "owner", "what", "subscription", "source", "name", name="pk_eventmesh_count"
        ),
        if_not_exists=True,
        **_OPTIONS,
    )
    dialect = op.get_bind().dialect.name
    source, now = _SOURCES[dialect], _NOW[dialect]
    op.execute("DELETE FROM eventmesh_count WHERE owner = ''")
    op.execute(
        sa.text(
            f"INSERT INTO eventmesh_count ({_COLUMNS}) SELECT '', 'stored', '', "  # noqa: S608  # constants
            f"COALESCE({source}, ''), name, COUNT(*), {now}, {now} FROM eventmesh_outbox "
            f"GROUP BY COALESCE({source}, ''), name".replace(":", "\\:")
        )
    )
    op.execute(
        sa.text(
            f"INSERT INTO eventmesh_count ({_COLUMNS}) SELECT '', 'handled', subscription, "  # noqa: S608  # constants
            f"'', '', COUNT(*), {now}, {now} FROM eventmesh_inbox GROUP BY subscription".replace(
                ":", "\\:"
            )
        )
    )
