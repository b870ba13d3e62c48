"""The outbox, the inbox, starts of possible poison messages, relays and their leases, sagas."""

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0001"
down_revision = None

_BIG = sa.BigInteger().with_variant(sa.Integer, "sqlite")
_TIME = sa.DateTime(timezone=True).with_variant(mysql.DATETIME(fsp=6), "mariadb")
_BYTES = sa.LargeBinary().with_variant(mysql.LONGBLOB(), "mariadb")
_TEXT = sa.Text().with_variant(mysql.LONGTEXT(), "mariadb")
_JSON = sa.JSON().with_variant(mysql.LONGTEXT(), "mariadb")
_BUCKETS = 16

# MariaDB commits after each statement, so an interrupted migration must be able to run again.
_AGAIN: dict[str, Any] = {
    "if_not_exists": True,
    "mariadb_engine": "InnoDB",
    "mariadb_row_format": "DYNAMIC",
    "mariadb_charset": "utf8mb4",
    "mariadb_collate": "utf8mb4_nopad_bin",
}


def upgrade() -> None:
    """Make the tables, and one lease row for each bucket."""
    _outbox()
    op.create_table(
        "eventmesh_inbox",
        sa.Column("subscription", sa.String(255), nullable=False),
        sa.Column("message_id", sa.String(255), nullable=False),
        sa.Column("received_at", _TIME, nullable=False),
        sa.PrimaryKeyConstraint("subscription", "message_id", name="pk_eventmesh_inbox"),
        **_AGAIN,
    )
    op.create_table(
        "eventmesh_start",
        sa.Column("subscription", sa.String(255), nullable=False),
        sa.Column("message_id", sa.String(255), nullable=False),
        sa.Column("starts", sa.Integer, nullable=False),
        sa.PrimaryKeyConstraint("subscription", "message_id", name="pk_eventmesh_start"),
        sa.CheckConstraint("starts >= 1", name=op.f("ck_eventmesh_start_starts")),
        **_AGAIN,
    )
    op.create_table(
        "eventmesh_relay",
        sa.Column("owner", sa.String(255), nullable=False),
        sa.Column("expires_at", _TIME, nullable=False),
        sa.PrimaryKeyConstraint("owner", name="pk_eventmesh_relay"),
        **_AGAIN,
    )
    lease = op.create_table(
        "eventmesh_lease",
        sa.Column("bucket", sa.SmallInteger, autoincrement=False, nullable=False),
        sa.Column("owner", sa.String(255)),
        sa.Column("token", _BIG, nullable=False, server_default="0"),
        sa.Column("expires_at", _TIME),
        sa.PrimaryKeyConstraint("bucket", name="pk_eventmesh_lease"),
        sa.CheckConstraint(
            f"bucket >= 0 AND bucket < {_BUCKETS}", name=op.f("ck_eventmesh_lease_bucket")
        ),
        sa.CheckConstraint(
            "(owner IS NULL) = (expires_at IS NULL)", name=op.f("ck_eventmesh_lease_held")
        ),
        **_AGAIN,
    )
    if not op.get_bind().scalar(sa.select(sa.func.count()).select_from(lease)):
        op.bulk_insert(lease, [{"bucket": bucket} for bucket in range(_BUCKETS)])
    _saga()


def _outbox() -> None:
    op.create_table(
        "eventmesh_outbox",
        sa.Column("seq", _BIG, autoincrement=True, nullable=False),
        sa.Column("id", sa.String(255), nullable=False),
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("key", sa.String(255)),
        sa.Column("bucket", sa.SmallInteger, nullable=False),
        sa.Column("headers", _JSON, nullable=False),
        sa.Column("data", _BYTES, nullable=False),
        sa.Column("due_at", _TIME),
        sa.Column("attempts", sa.Integer, nullable=False, server_default="0"),
        sa.Column("last_error", _TEXT),
        sa.Column("parked", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.PrimaryKeyConstraint("seq", name="pk_eventmesh_outbox"),
        sa.CheckConstraint(
            f"bucket >= 0 AND bucket < {_BUCKETS}", name=op.f("ck_eventmesh_outbox_bucket")
        ),
        sa.CheckConstraint("attempts >= 0", name=op.f("ck_eventmesh_outbox_attempts")),
        sa.CheckConstraint(
            "NOT parked OR last_error IS NOT NULL", name=op.f("ck_eventmesh_outbox_parked")
        ),
        *_refused_key(),
        sqlite_autoincrement=True,
        **_AGAIN,
    )
    op.create_index(
        "ix_eventmesh_outbox_due_at",
        "eventmesh_outbox",
        ["due_at"],
        if_not_exists=True,
        postgresql_where=sa.text("due_at IS NOT NULL"),
        sqlite_where=sa.text("due_at IS NOT NULL"),
    )
    op.create_index(
        "ix_eventmesh_outbox_refused",
        "eventmesh_outbox",
        ["refused_key", "attempts", "parked", "due_at"] if _on_mariadb() else ["key"],
        if_not_exists=True,
        postgresql_where=sa.text("attempts > 0"),
        sqlite_where=sa.text("attempts > 0"),
    )


def _refused_key() -> list[sa.Column[str]]:
    """Instead of a partial index of the rejected rows, which MariaDB does not have. Its index has
    all columns that are read of them."""
    refused = sa.Computed("CASE WHEN attempts > 0 THEN `key` END", persisted=False)
    return [sa.Column("refused_key", sa.String(255), refused)] if _on_mariadb() else []


def _on_mariadb() -> bool:
    return op.get_bind().dialect.name == "mariadb"


def _saga() -> None:
    op.create_table(
        "eventmesh_saga",
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("id", sa.String(255), nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("status", sa.String(20), nullable=False),
        sa.Column("state", _JSON, nullable=False),
        sa.Column("steps", _JSON, nullable=False),
        sa.Column("reason", _TEXT),
        sa.Column("row_version", sa.Integer, nullable=False),
        sa.Column("started_at", _TIME, nullable=False),
        sa.Column("updated_at", _TIME, nullable=False),
        sa.Column("ended_at", _TIME),
        sa.PrimaryKeyConstraint("name", "id", name="pk_eventmesh_saga"),
        sa.CheckConstraint(
            "status IN ('running', 'undoing', 'completed', 'undone')",
            name=op.f("ck_eventmesh_saga_status"),
        ),
        sa.CheckConstraint(
            "(ended_at IS NULL) = (status IN ('running', 'undoing'))",
            name=op.f("ck_eventmesh_saga_ended"),
        ),
        sa.CheckConstraint("row_version >= 1", name=op.f("ck_eventmesh_saga_row_version")),
        **_AGAIN,
    )
    op.create_index(
        "ix_eventmesh_saga_running",
        "eventmesh_saga",
        ["name", "started_at"],
        if_not_exists=True,
        postgresql_where=sa.text("ended_at IS NULL"),
        sqlite_where=sa.text("ended_at IS NULL"),
    )
