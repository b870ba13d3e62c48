"""Outbox, inbox, starts of suspects, relays and their leases, sagas."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_BIG = sa.BigInteger().with_variant(sa.Integer, "sqlite")
_TIME = sa.DateTime(timezone=True)
_BUCKETS = 16


def upgrade() -> None:
    """Make the tables, and one lease row for each bucket."""
    _outbox()
    op.create_table(
        "eventmesh_inbox",
        sa.Column("subscription", sa.String(255), nullable=False),
        sa.Column("message_id", sa.String(255), nullable=False),
        sa.Column("received_at", _TIME, nullable=False),
        sa.PrimaryKeyConstraint("subscription", "message_id", name="pk_eventmesh_inbox"),
    )
    op.create_table(
        "eventmesh_start",
        sa.Column("subscription", sa.String(255), nullable=False),
        sa.Column("message_id", sa.String(255), nullable=False),
        sa.Column("starts", sa.Integer, nullable=False),
        sa.PrimaryKeyConstraint("subscription", "message_id", name="pk_eventmesh_start"),
        sa.CheckConstraint("starts >= 1", name=op.f("ck_eventmesh_start_starts")),
    )
    op.create_table(
        "eventmesh_relay",
        sa.Column("owner", sa.String(255), nullable=False),
        sa.Column("expires_at", _TIME, nullable=False),
        sa.PrimaryKeyConstraint("owner", name="pk_eventmesh_relay"),
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
    )
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
        sa.Column("headers", sa.JSON, nullable=False),
        sa.Column("data", sa.LargeBinary, nullable=False),
        sa.Column("due_at", _TIME),
        sa.Column("attempts", sa.Integer, nullable=False, server_default="0"),
        sa.Column("last_error", sa.Text),
        sa.Column("parked", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.PrimaryKeyConstraint("seq", name="pk_eventmesh_outbox"),
        sa.CheckConstraint(
            f"bucket >= 0 AND bucket < {_BUCKETS}", name=op.f("ck_eventmesh_outbox_bucket")
        ),
        sa.CheckConstraint("attempts >= 0", name=op.f("ck_eventmesh_outbox_attempts")),
        sa.CheckConstraint(
            "NOT parked OR last_error IS NOT NULL", name=op.f("ck_eventmesh_outbox_parked")
        ),
        sqlite_autoincrement=True,
    )
    op.create_index(
        "ix_eventmesh_outbox_due_at",
        "eventmesh_outbox",
        ["due_at"],
        postgresql_where=sa.text("due_at IS NOT NULL"),
        sqlite_where=sa.text("due_at IS NOT NULL"),
    )
    op.create_index(
        "ix_eventmesh_outbox_refused",
        "eventmesh_outbox",
        ["key"],
        postgresql_where=sa.text("attempts > 0"),
        sqlite_where=sa.text("attempts > 0"),
    )


def _saga() -> None:
    op.create_table(
        "eventmesh_saga",
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("id", sa.String(255), nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("status", sa.String(20), nullable=False),
        sa.Column("state", sa.JSON, nullable=False),
        sa.Column("steps", sa.JSON, nullable=False),
        sa.Column("reason", sa.Text),
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
    )
    op.create_index(
        "ix_eventmesh_saga_running",
        "eventmesh_saga",
        ["name", "started_at"],
        postgresql_where=sa.text("ended_at IS NULL"),
        sqlite_where=sa.text("ended_at IS NULL"),
    )
