"""Indexes of the ages by which rows are purged: of the inbox, of starts, of ended sagas. And an
index of delayed messages in the order in which they are published."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0002"
down_revision = "0001"

_TIME = sa.DateTime(timezone=True).with_variant(mysql.DATETIME(fsp=6), "mariadb")


def upgrade() -> None:
    """Make the indexes; starts are counted from zero again, with their times."""
    op.drop_table("eventmesh_start", if_exists=True)
    op.create_table(
        "eventmesh_start",
        sa.Column("subscription", sa.String(255), nullable=False),
        sa.Column("message_id", sa.String(255), nullable=False),
        sa.Column("starts", sa.Integer, nullable=False),
        sa.Column("begun_at", _TIME, nullable=False),
        sa.PrimaryKeyConstraint("subscription", "message_id", name="pk_eventmesh_start"),
        sa.CheckConstraint("starts >= 1", name=op.f("ck_eventmesh_start_starts")),
        mariadb_engine="InnoDB",
        mariadb_row_format="DYNAMIC",
        mariadb_charset="utf8mb4",
        mariadb_collate="utf8mb4_nopad_bin",
    )
    op.create_index(
        "ix_eventmesh_start_begun_at", "eventmesh_start", ["begun_at"], if_not_exists=True
    )
    op.create_index(
        "ix_eventmesh_inbox_received_at", "eventmesh_inbox", ["received_at"], if_not_exists=True
    )
    op.create_index(
        "ix_eventmesh_saga_ended_at",
        "eventmesh_saga",
        ["ended_at"],
        if_not_exists=True,
        postgresql_where=sa.text("ended_at IS NOT NULL"),
        sqlite_where=sa.text("ended_at IS NOT NULL"),
    )
    op.drop_index("ix_eventmesh_outbox_due_at", "eventmesh_outbox", if_exists=True)
    op.create_index(
        "ix_eventmesh_outbox_due_at",
        "eventmesh_outbox",
        ["due_at", "seq"],
        postgresql_where=sa.text("due_at IS NOT NULL"),
        sqlite_where=sa.text("due_at IS NOT NULL"),
    )
