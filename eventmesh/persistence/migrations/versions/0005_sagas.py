"""Sagas that can be parked, found by a key and listed by what they wait for; their log; and the
index by which their time-outs are cancelled."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0005"
down_revision = "0004"

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

_CHECKS = {
    "status": "status IN ('running', 'undoing', 'parked', 'completed', 'undone', 'cancelled')",
    "ended": "(ended_at IS NULL) = (status IN ('running', 'undoing', 'parked'))",
    "is_open": "(ended_at IS NULL) = (is_open IS NOT NULL)",
}
_OLD = (
    "name, id, version, status, state, steps, reason, row_version, started_at, updated_at, ended_at"
)


def upgrade() -> None:
    """Add the columns, the index and the log. On MariaDB, where each statement commits by itself,
    an upgrade that was killed can be run again."""
    if op.get_bind().dialect.name == "sqlite":
        _rebuild_saga()
    else:
        _alter_saga()
    op.create_index(
        "uq_eventmesh_saga_key",
        "eventmesh_saga",
        ["key", "name", "is_open"],
        unique=True,
        if_not_exists=True,
    )
    op.create_table(
        "eventmesh_saga_log",
        sa.Column("seq", _SEQUENCE, primary_key=True, autoincrement=True),
        sa.Column("saga_name", sa.String(255), nullable=False),
        sa.Column("saga_id", sa.String(255), nullable=False),
        sa.Column("at", _TIME, nullable=False),
        sa.Column("entry", _JSON, nullable=False),
        sa.PrimaryKeyConstraint("seq", name="pk_eventmesh_saga_log"),
        if_not_exists=True,
        sqlite_autoincrement=True,
        **_OPTIONS,
    )
    op.create_index(
        "ix_eventmesh_saga_log_saga",
        "eventmesh_saga_log",
        ["saga_name", "saga_id", "seq"],
        if_not_exists=True,
    )
    if op.get_bind().dialect.name != "mariadb":  # which has no partial index
        op.create_index(
            "ix_eventmesh_outbox_delayed_id",
            "eventmesh_outbox",
            ["id"],
            if_not_exists=True,
            postgresql_where=sa.text("due_at IS NOT NULL"),
            sqlite_where=sa.text("due_at IS NOT NULL"),
        )


def _new_columns() -> list[sa.Column[object]]:
    return [
        sa.Column("details", _JSON),
        sa.Column("key", sa.String(255)),
        sa.Column("is_open", sa.Boolean),
        sa.Column("waiting_for", sa.String(255)),
        sa.Column("due_at", _TIME),
    ]


def _alter_saga() -> None:
    for column in _new_columns():
        op.add_column("eventmesh_saga", column, if_not_exists=True)
    op.execute("UPDATE eventmesh_saga SET is_open = TRUE WHERE ended_at IS NULL")
    for name, condition in _CHECKS.items():
        constraint = f"ck_eventmesh_saga_{name}"
        op.execute(f"ALTER TABLE eventmesh_saga DROP CONSTRAINT IF EXISTS {constraint}")
        op.create_check_constraint(op.f(constraint), "eventmesh_saga", condition)
    if op.get_bind().dialect.name == "postgresql":
        old, new = "CONSTRAINT pk_eventmesh_saga", "CONSTRAINT pk_eventmesh_saga PRIMARY KEY"
    else:
        old, new = "PRIMARY KEY", "PRIMARY KEY"
    op.execute(f"ALTER TABLE eventmesh_saga DROP {old}, ADD {new} (id, name)")


def _rebuild_saga() -> None:
    """SQLite cannot change the checks of a table."""
    op.rename_table("eventmesh_saga", "eventmesh_saga_old")
    for index in ("ix_eventmesh_saga_running", "ix_eventmesh_saga_ended_at"):
        op.drop_index(index, "eventmesh_saga_old")
    op.create_table(
        "eventmesh_saga",
        sa.Column("id", sa.String(255), nullable=False),
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("status", sa.String(20), nullable=False),
        sa.Column("state", _JSON, nullable=False),
        sa.Column("steps", _JSON, nullable=False),
        sa.Column("reason", _TEXT),
        sa.Column("row_version", sa.Integer, nullable=False),
        sa.Column("started_at", _TIME, nullable=False),
        sa.Column("updated_at", _TIME, nullable=False),
        sa.Column("ended_at", _TIME),
        *_new_columns(),
        sa.PrimaryKeyConstraint("id", "name", name="pk_eventmesh_saga"),
        *(
            sa.CheckConstraint(condition, name=op.f(f"ck_eventmesh_saga_{name}"))
            for name, condition in _CHECKS.items()
        ),
        sa.CheckConstraint("row_version >= 1", name=op.f("ck_eventmesh_saga_row_version")),
    )
    op.execute(
        f"INSERT INTO eventmesh_saga ({_OLD}, is_open) "  # noqa: S608  # constants
        f"SELECT {_OLD}, CASE WHEN ended_at IS NULL THEN 1 END FROM eventmesh_saga_old"
    )
    op.drop_table("eventmesh_saga_old")
    op.create_index(
        "ix_eventmesh_saga_running",
        "eventmesh_saga",
        ["name", "started_at"],
        sqlite_where=sa.text("ended_at IS NULL"),
    )
    op.create_index(
        "ix_eventmesh_saga_ended_at",
        "eventmesh_saga",
        ["ended_at"],
        sqlite_where=sa.text("ended_at IS NOT NULL"),
    )
