"""The tables of EventMesh in a service's database. Checks make impossible rows impossible.

`migrations/` makes them; a test compares the two.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Double,
    Index,
    Integer,
    MetaData,
    SmallInteger,
    String,
    Table,
    false,
)

from eventmesh.persistence.dialects.sql import (
    TABLE_OPTIONS,
    Bytes,
    Json,
    LongText,
    Sequence,
    UtcDateTime,
)

BUCKETS = 16
"""The number of parts into which the outbox is divided by key, and of relays that can share it."""

metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
    }
)

outbox = Table(
    "eventmesh_outbox",
    metadata,
    Column("seq", Sequence, primary_key=True, autoincrement=True),
    Column("id", String(255), nullable=False),
    Column("name", String(255), nullable=False),
    Column("key", String(255)),
    Column("bucket", SmallInteger, nullable=False),
    Column("headers", Json, nullable=False),
    Column("data", Bytes, nullable=False),
    # NULL: due at once. Delayed rows have an index of their own, so that neither they nor a backlog
    # slow the other down.
    Column("due_at", UtcDateTime),
    Column("attempts", Integer, nullable=False, server_default="0"),
    Column("last_error", LongText),
    Column("parked", Boolean, nullable=False, server_default=false()),
    CheckConstraint(f"bucket >= 0 AND bucket < {BUCKETS}", name="bucket"),
    CheckConstraint("attempts >= 0", name="attempts"),
    CheckConstraint("NOT parked OR last_error IS NOT NULL", name="parked"),
    sqlite_autoincrement=True,
    **TABLE_OPTIONS,
)
Index(
    "ix_eventmesh_outbox_due_at",
    outbox.c.due_at,
    outbox.c.seq,
    postgresql_where=outbox.c.due_at.is_not(None),
    sqlite_where=outbox.c.due_at.is_not(None),
)
# Time-outs that are not needed any more are deleted by their ids. Of delayed messages only, so that
# the others do not pay for it. MariaDB has no partial index, and a whole one would let statements
# lock rows in another order than relays do: there no time-out is deleted.
Index(
    "ix_eventmesh_outbox_delayed_id",
    outbox.c.id,
    postgresql_where=outbox.c.due_at.is_not(None),
    sqlite_where=outbox.c.due_at.is_not(None),
).ddl_if(dialect=("postgresql", "sqlite"))  # type: ignore[arg-type]  # documented
Index(
    "ix_eventmesh_outbox_refused",
    outbox.c.key,
    postgresql_where=outbox.c.attempts > 0,
    sqlite_where=outbox.c.attempts > 0,
)

inbox = Table(
    "eventmesh_inbox",
    metadata,
    Column("subscription", String(255), primary_key=True),
    Column("message_id", String(255), primary_key=True),
    Column("received_at", UtcDateTime, nullable=False),
    # Of name and data; NULL where the row is older than this column.
    Column("digest", BigInteger),
    # The journal: NULL in rows of before 0007, and where it is switched off.
    Column("name", String(255)),
    Column("key", String(255)),
    Column("correlation_id", String(255)),
    Column("causation_id", String(255)),
    Column("attempt", Integer),
    # Seconds, of a handler that was slow; see `inbox`.
    Column("took", Double),
    **TABLE_OPTIONS,
)
Index("ix_eventmesh_inbox_received_at", inbox.c.received_at)
Index("ix_eventmesh_inbox_correlation_id", inbox.c.correlation_id)

start = Table(
    "eventmesh_start",
    metadata,
    Column("subscription", String(255), primary_key=True),
    Column("message_id", String(255), primary_key=True),
    Column("starts", Integer, nullable=False),
    Column("begun_at", UtcDateTime, nullable=False),
    CheckConstraint("starts >= 1", name="starts"),
    **TABLE_OPTIONS,
)
Index("ix_eventmesh_start_begun_at", start.c.begun_at)

count = Table(
    "eventmesh_count",
    metadata,
    # A connection, or nobody.
    Column("owner", String(32), primary_key=True),
    Column("what", String(20), primary_key=True),
    Column("subscription", String(200), primary_key=True),
    Column("source", String(63), primary_key=True),
    Column("name", String(255), primary_key=True),
    Column("number", BigInteger, nullable=False),
    Column("since", UtcDateTime, nullable=False),
    Column("updated_at", UtcDateTime, nullable=False),
    **TABLE_OPTIONS,
)

reaction = Table(
    "eventmesh_reaction",
    metadata,
    Column("subscription", String(255), primary_key=True),
    Column("key", String(255), primary_key=True),
    Column("status", String(20), nullable=False),
    # Of the event that was reacted to.
    Column("message_id", String(255)),
    Column("result", Json),
    Column("updated_at", UtcDateTime, nullable=False),
    CheckConstraint("status IN ('done', 'undone', 'cancelled')", name="status"),
    CheckConstraint("(message_id IS NULL) = (status = 'cancelled')", name="cancelled"),
    **TABLE_OPTIONS,
)
Index("ix_eventmesh_reaction_updated_at", reaction.c.updated_at)

relay = Table(
    "eventmesh_relay",
    metadata,
    Column("owner", String(255), primary_key=True),
    Column("expires_at", UtcDateTime, nullable=False),
    **TABLE_OPTIONS,
)

lease = Table(
    "eventmesh_lease",
    metadata,
    Column("bucket", SmallInteger, primary_key=True, autoincrement=False),
    Column("owner", String(255)),
    Column("expires_at", UtcDateTime),
    CheckConstraint(f"bucket >= 0 AND bucket < {BUCKETS}", name="bucket"),
    CheckConstraint("(owner IS NULL) = (expires_at IS NULL)", name="held"),
    **TABLE_OPTIONS,
)

saga = Table(
    "eventmesh_saga",
    metadata,
    # By the id first, and by the key first below: of a table without statistics, PostgreSQL takes
    # any index that begins with what it looks for, and most sagas have the same name.
    Column("id", String(255), primary_key=True),
    Column("name", String(255), primary_key=True),
    Column("version", Integer, nullable=False),
    Column("status", String(20), nullable=False),
    Column("state", Json, nullable=False),
    Column("steps", Json, nullable=False),
    Column("reason", LongText),
    Column("row_version", Integer, nullable=False),
    Column("started_at", UtcDateTime, nullable=False),
    Column("updated_at", UtcDateTime, nullable=False),
    Column("ended_at", UtcDateTime),
    # NULL in rows of before 0005: all about a saga but its state and its steps.
    Column("details", Json),
    Column("key", String(255)),
    # NULL once it has ended, so that another saga may have the key.
    Column("is_open", Boolean),
    Column("waiting_for", String(255)),
    Column("due_at", UtcDateTime),
    CheckConstraint(
        "status IN ('running', 'undoing', 'parked', 'completed', 'undone', 'cancelled')",
        name="status",
    ),
    CheckConstraint(
        "(ended_at IS NULL) = (status IN ('running', 'undoing', 'parked'))", name="ended"
    ),
    CheckConstraint("(ended_at IS NULL) = (is_open IS NOT NULL)", name="is_open"),
    CheckConstraint("row_version >= 1", name="row_version"),
    **TABLE_OPTIONS,
)
Index(
    "ix_eventmesh_saga_running",
    saga.c.name,
    saga.c.started_at,
    postgresql_where=saga.c.ended_at.is_(None),
    sqlite_where=saga.c.ended_at.is_(None),
)
Index(
    "ix_eventmesh_saga_ended_at",
    saga.c.ended_at,
    postgresql_where=saga.c.ended_at.is_not(None),
    sqlite_where=saga.c.ended_at.is_not(None),
)
# One open saga of a key. Rows with a NULL are never the same.
Index("uq_eventmesh_saga_key", saga.c.key, saga.c.name, saga.c.is_open, unique=True)

saga_log = Table(
    "eventmesh_saga_log",
    metadata,
    Column("seq", Sequence, primary_key=True, autoincrement=True),
    Column("saga_name", String(255), nullable=False),
    Column("saga_id", String(255), nullable=False),
    Column("at", UtcDateTime, nullable=False),
    Column("entry", Json, nullable=False),
    sqlite_autoincrement=True,
    **TABLE_OPTIONS,
)
Index("ix_eventmesh_saga_log_saga", saga_log.c.saga_name, saga_log.c.saga_id, saga_log.c.seq)

action = Table(
    "eventmesh_action",
    metadata,
    Column("seq", Sequence, primary_key=True, autoincrement=True),
    Column("at", UtcDateTime, nullable=False),
    Column("service", String(255), nullable=False),
    Column("who", String(255), nullable=False),
    Column("what", String(64), nullable=False),
    # A subscription, a saga, or a service.
    Column("subject", LongText, nullable=False),
    Column("reason", LongText, nullable=False),
    Column("details", Json, nullable=False),
    # NULL until it has ended.
    Column("outcome", LongText),
    sqlite_autoincrement=True,
    **TABLE_OPTIONS,
)
Index("ix_eventmesh_action_at", action.c.at)

pause = Table(
    "eventmesh_pause",
    metadata,
    Column("subscription", String(255), primary_key=True),
    Column("at", UtcDateTime, nullable=False),
    Column("who", String(255), nullable=False),
    Column("reason", LongText, nullable=False),
    **TABLE_OPTIONS,
)
