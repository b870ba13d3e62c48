"""PostgreSQL. Where a statement works on a whole group of messages, it takes rows as arrays, so
that one text, prepared once for a connection, serves every size of a group."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import cache
from typing import Any

from pydantic_core import to_json
from sqlalchemy import (
    BigInteger,
    Boolean,
    Connection,
    DateTime,
    Executable,
    Float,
    Insert,
    Integer,
    LargeBinary,
    SmallInteger,
    String,
    Table,
    TextualSelect,
    bindparam,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, insert
from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.types import TypeEngine

from eventmesh.persistence.dialects.base import Dialect, Parameters
from eventmesh.persistence.dialects.postgresql import url as urls

_LONGEST_NAME = 63  # bytes; longer names are cut
_MIGRATION_LOCK = 0x6576656E746D6573  # any number that nobody else locks: "eventmes" in ASCII
_KEY_LOCKS = 0x6F726472  # any space of numbers that nobody else locks: "ordr" in ASCII

_INBOX_TYPES: Mapping[str, TypeEngine[Any]] = {
    "message_id": String(),
    "digest": BigInteger(),
    "name": String(),
    "key": String(),
    "correlation_id": String(),
    "causation_id": String(),
    "attempt": Integer(),
}
_INBOX_NAMES = ", ".join(_INBOX_TYPES)

_CLAIM = text(
    f"""
    WITH fresh AS (
        INSERT INTO eventmesh_inbox (subscription, received_at, {_INBOX_NAMES})
        SELECT :subscription, statement_timestamp(), {_INBOX_NAMES}
        FROM unnest({", ".join(f":{name}" for name in _INBOX_TYPES)}) AS message ({_INBOX_NAMES})
        ON CONFLICT DO NOTHING RETURNING message_id
    ), counted AS (
        INSERT INTO eventmesh_count AS total
            (owner, what, subscription, source, name, number, since, updated_at)
        SELECT :count_owner, 'handled', :subscription, way.source, way.name, count(*),
            clock_timestamp(), clock_timestamp()
        FROM unnest(:message_id, :count_way) AS message (message_id, way)
        JOIN fresh USING (message_id)
        JOIN unnest(:way_source, :way_name) WITH ORDINALITY AS way (source, name, number)
            ON way.number = message.way
        GROUP BY way.source, way.name ORDER BY way.source, way.name
        ON CONFLICT (owner, what, subscription, source, name) DO UPDATE
        SET number = total.number + excluded.number, updated_at = excluded.updated_at
    )
    SELECT message_id FROM fresh
    """  # noqa: S608  # constants
).bindparams(
    bindparam("subscription", type_=String()),
    *(bindparam(name, type_=ARRAY(kind)) for name, kind in _INBOX_TYPES.items()),
    bindparam("count_owner", type_=String()),
    bindparam("count_way", type_=ARRAY(SmallInteger())),
    *(bindparam(f"way_{name}", type_=ARRAY(String())) for name in ("source", "name")),
)

_OUTBOX_TYPES: Mapping[str, TypeEngine[Any]] = {
    "id": String(),
    "name": String(),
    "key": String(),
    "bucket": SmallInteger(),
    "headers": String(),
    "data": LargeBinary(),
    "due_at": DateTime(timezone=True),
}
_NAMES = ", ".join(_OUTBOX_TYPES)
_DUE_AT = "coalesce(due_at, clock_timestamp() + delay * interval '1 second')"

_COUNT_TYPES: Mapping[str, TypeEngine[Any]] = {
    "count_what": String(),
    "count_subscription": String(),
    "count_source": String(),
    "count_name": String(),
    "count_number": BigInteger(),
}
_COUNTED = ", ".join(_COUNT_TYPES)

_INSERT_OUTBOX = text(
    # Sorted, because only then do sequence numbers surely follow the order of the arrays.
    f"""
    WITH counted AS (
        INSERT INTO eventmesh_count AS total
            (owner, what, subscription, source, name, number, since, updated_at)
        SELECT :count_owner, {_COUNTED}, clock_timestamp(), clock_timestamp()
        FROM unnest({", ".join(f":{name}" for name in _COUNT_TYPES)}) AS counter ({_COUNTED})
        ON CONFLICT (owner, what, subscription, source, name) DO UPDATE
        SET number = total.number + excluded.number, updated_at = excluded.updated_at
    )
    INSERT INTO eventmesh_outbox ({_NAMES})
    SELECT {_NAMES.replace("headers", "headers::json").replace("due_at", _DUE_AT)}
    FROM unnest({", ".join(f":{name}" for name in _OUTBOX_TYPES)}, :delay)
        WITH ORDINALITY AS message ({_NAMES}, delay, number)
    ORDER BY number
    RETURNING seq
    """.replace("::", r"\:\:")  # noqa: S608  # constants
).bindparams(
    *(bindparam(name, type_=ARRAY(kind)) for name, kind in _OUTBOX_TYPES.items()),
    bindparam("delay", type_=ARRAY(Float())),
    bindparam("count_owner", type_=String()),
    *(bindparam(name, type_=ARRAY(kind)) for name, kind in _COUNT_TYPES.items()),
)

_SAGA_TYPES: Mapping[str, TypeEngine[Any]] = {
    "saga_id": String(),
    "new_version": Integer(),
    "new_status": String(),
    "new_state": String(),
    "new_steps": String(),
    "new_reason": String(),
    "new_row_version": Integer(),
    "new_details": String(),
    "new_key": String(),
    "new_is_open": Boolean(),
    "new_waiting_for": String(),
    "new_due_at": DateTime(timezone=True),
}
_SAGA_JSON = ("new_state", "new_steps", "new_details")
_SAGA_VALUES = {
    name.removeprefix("new_"): f"{name}\\:\\:json" if name in _SAGA_JSON else name
    for name in _SAGA_TYPES
    if name != "saga_id"
} | {
    "updated_at": "clock_timestamp()",
    "ended_at": "CASE WHEN new_is_open THEN NULL ELSE clock_timestamp() END",
}

# Both tables may have been empty a moment ago, and be large now, which the statistics do not know.
# So an old saga is found as a conflict, which goes by the primary key, and messages are found each
# by its id. Joined to the tables, all of their rows might be read.
_STORE_SAGAS = text(
    f"""
    WITH logged AS (
        INSERT INTO eventmesh_saga_log (saga_name, saga_id, at, entry)
        SELECT :saga_name, saga_id, clock_timestamp(), entry\\:\\:json
        FROM unnest(:log_ids, :log_entries) WITH ORDINALITY AS log (saga_id, entry, number)
        ORDER BY number
    ), cancelled AS (
        DELETE FROM eventmesh_outbox WHERE ctid = ANY(ARRAY(
            SELECT found.place FROM unnest(:cancelled) AS wanted (id) CROSS JOIN LATERAL (
                SELECT ctid AS place FROM eventmesh_outbox
                WHERE id = wanted.id AND due_at IS NOT NULL OFFSET 0
            ) AS found
        ))
    )
    INSERT INTO eventmesh_saga AS saga (name, id, started_at, {", ".join(_SAGA_VALUES)})
    SELECT :saga_name, saga_id, clock_timestamp(), {", ".join(_SAGA_VALUES.values())}
    FROM unnest({", ".join(f":{name}" for name in _SAGA_TYPES)}) AS row ({", ".join(_SAGA_TYPES)})
    ON CONFLICT (name, id) DO UPDATE
    SET {", ".join(f"{column} = excluded.{column}" for column in _SAGA_VALUES)}
    WHERE excluded.row_version > saga.row_version
    """  # noqa: S608  # constants
).bindparams(
    *(bindparam(name, type_=ARRAY(kind)) for name, kind in _SAGA_TYPES.items()),
    bindparam("saga_name", type_=String()),
    bindparam("log_ids", type_=ARRAY(String())),
    bindparam("log_entries", type_=ARRAY(String())),
    bindparam("cancelled", type_=ARRAY(String())),
)

_DELETE_RELAYED = text(
    """
    WITH gone AS (
        DELETE FROM eventmesh_outbox WHERE seq = ANY(:seqs) AND attempts = :attempts
        RETURNING name, substr(headers ->> 'source', 2, 63) AS source
    ), counted AS (
        INSERT INTO eventmesh_count AS total
            (owner, what, subscription, source, name, number, since, updated_at)
        SELECT :owner, 'relayed', '', coalesce(source, ''), name, count(*),
            clock_timestamp(), clock_timestamp()
        FROM gone GROUP BY source, name ORDER BY source, name
        ON CONFLICT (owner, what, subscription, source, name) DO UPDATE
        SET number = total.number + excluded.number, updated_at = excluded.updated_at
    )
    SELECT count(*) FROM gone
    """
).bindparams(
    bindparam("seqs", type_=ARRAY(BigInteger())),
    bindparam("attempts", type_=Integer()),
    bindparam("owner", type_=String()),
)

_LOCK_KEYS = text("SELECT pg_advisory_xact_lock(:space, key) FROM unnest(:keys) AS key").bindparams(
    bindparam("space", _KEY_LOCKS, Integer()),
    bindparam("keys", type_=ARRAY(Integer())),
)

# Those prepared for a second phase are among them.
_OUTBOX_WRITERS = text(
    """
    SELECT virtualtransaction FROM pg_locks
    WHERE locktype = 'relation' AND relation = 'eventmesh_outbox'::regclass
        AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
        AND mode = 'RowExclusiveLock' AND granted
    """
)

# The JIT compiler too: it starts where costs are high, and a disabled plan counts as very dear.
_OFF = (
    *(f"enable_{plan}" for plan in ("seqscan", "bitmapscan", "sort", "material", "hashjoin")),
    "enable_mergejoin",
    "jit",
    "synchronous_commit",
)


class PostgreSQL(Dialect):
    name = "postgresql"
    driver = "postgresql+asyncpg"
    can_notify = True
    adds_delays = True
    autocommit_saves_trips = True
    counts_with_insert = True
    counts_with_claim = True
    maintenance_database = "postgres"
    # The outbox is empty at one moment and has a million rows at the next, and a plan that was made
    # for the empty table is kept. So only plans that follow an index, whatever the statistics say.
    # And the commit does not wait for the disk: what is lost in a crash is done again. A connection
    # of our own is set so once; behind a pooler, where others use it next, each transaction is.
    queue_settings = text(
        "SELECT " + ", ".join(f"set_config('{setting}', 'off', true)" for setting in _OFF)
    )

    def normal_url(self, url: URL, variable: str) -> URL:
        url = urls.normal(url, variable)
        urls.parameters(url, variable)  # refuses what is not understood
        return url

    def differ(self, ours: URL, theirs: URL) -> bool:
        return theirs.database is not None and ours.database != theirs.database

    def stored_name(self, name: str) -> str:
        return name.encode()[:_LONGEST_NAME].decode(errors="ignore")

    def sqlstate(self, error: BaseException | None) -> str:
        return str(getattr(error, "sqlstate", "") or "")

    def is_about_driver(self, error: BaseException | None) -> bool:
        from eventmesh.persistence.dialects.postgresql import connections  # imports asyncpg

        return connections.is_about_asyncpg(error)

    def make_engine(
        self, url: URL, variable: str, connect_timeout: float, options: Mapping[str, Any]
    ) -> AsyncEngine:
        from eventmesh.persistence.dialects.postgresql import engine  # imports asyncpg

        return engine.make_engine(url, variable, connect_timeout, options)

    def make_queue_engine(
        self, url: URL, variable: str, connect_timeout: float, options: Mapping[str, Any]
    ) -> AsyncEngine:
        from eventmesh.persistence.dialects.postgresql import engine  # imports asyncpg

        settings = dict.fromkeys(_OFF, "off")
        return engine.make_engine(url, variable, connect_timeout, options, settings)

    def keeps_queue_settings(self, connection: Connection) -> bool:
        raw: Any = connection.connection.driver_connection
        return bool(raw.has_session_settings)

    @asynccontextmanager
    async def migration_lock(self, connection: AsyncConnection) -> AsyncIterator[None]:
        lock = text("SELECT pg_advisory_xact_lock(:key)")  # until the transaction ends
        await connection.execute(lock, {"key": _MIGRATION_LOCK})
        yield

    async def create_database(self, connection: AsyncConnection, name: str) -> None:
        known = text("SELECT 1 FROM pg_database WHERE datname = :name")
        if await connection.scalar(known, {"name": name}) is None:
            quoted = connection.dialect.identifier_preparer.quote(name)
            await connection.execute(text(f"CREATE DATABASE {quoted}"))

    def prove(self, connection: Connection, *, is_proved: bool) -> None:
        """Its COMMIT raises; see `WatchedConnection`."""

    def insert_absent(self, table: Table) -> Insert:
        return insert(table).on_conflict_do_nothing()

    def upsert(
        self, table: Table, keys: Sequence[str], first: Mapping[str, Any], again: Mapping[str, Any]
    ) -> Insert:
        row = insert(table).values(first)
        return row.on_conflict_do_update(index_elements=keys, set_=again)

    def claim(
        self, inbox: Table, subscription: str, columns: Mapping[str, Sequence[Any]]
    ) -> tuple[Executable, Parameters]:
        return _CLAIM, {"subscription": subscription, **_without_nulls(columns)}

    def insert_outbox(
        self, outbox: Table, rows: list[dict[str, Any]]
    ) -> tuple[Executable, Parameters]:
        names = (*_OUTBOX_TYPES, "delay")
        columns: dict[str, Any] = {name: [row[name] for row in rows] for name in names}
        columns["headers"] = [_json(headers) for headers in columns["headers"]]
        return _INSERT_OUTBOX, _without_nulls(columns)

    def lock_sagas(self, saga: Table, columns: Sequence[str]) -> Executable:
        return _lock_sagas(saga, tuple(columns))

    def store_sagas(
        self,
        name: str,
        rows: list[dict[str, Any]],
        log: list[dict[str, Any]],
        cancelled: list[str],
    ) -> tuple[Executable, Parameters]:
        columns: dict[str, Any] = {name: [row[name] for row in rows] for name in _SAGA_TYPES}
        for column in _SAGA_JSON:
            columns[column] = [_json(value) for value in columns[column]]
        return _STORE_SAGAS, columns | {
            "saga_name": name,
            "log_ids": [entry["saga_id"] for entry in log],
            "log_entries": [_json(entry["entry"]) for entry in log],
            "cancelled": cancelled,
        }

    def lock_keys(self, connection: Connection, numbers: Sequence[int]) -> None:
        connection.execute(_LOCK_KEYS, {"keys": numbers})

    def delete_relayed(self, outbox: Table) -> Executable:
        return _DELETE_RELAYED

    def outbox_writers(self, connection: Connection) -> list[str]:
        return list(connection.scalars(_OUTBOX_WRITERS))


def _without_nulls(columns: Mapping[str, Sequence[Any]]) -> dict[str, Sequence[Any]]:
    """Columns of nothing but NULL as empty arrays, which unnest fills up with NULL: encoding an
    element costs as much as a short text."""
    return {
        name: () if values.count(None) == len(values) else values
        for name, values in columns.items()
    }


def _json(value: object) -> str:
    return to_json(value).decode()


@cache
def _lock_sagas(saga: Table, columns: tuple[str, ...]) -> TextualSelect:
    """One after another, in the order of their ids and by the primary key, whatever the statistics
    say: of a new table they would have all sagas of the name read."""
    statement = text(
        f"""
        SELECT {", ".join(f"saga.{column}" for column in columns)}
        FROM (
            SELECT id FROM unnest(:ids) AS id
            UNION
            SELECT keyed.id FROM unnest(:keys) AS wanted (key) CROSS JOIN LATERAL (
                SELECT id FROM eventmesh_saga
                WHERE name = :saga_name AND key = wanted.key
                ORDER BY is_open, started_at DESC, id DESC LIMIT 1 -- NULL, for an ended one, last
            ) AS keyed
            ORDER BY id
        ) AS wanted CROSS JOIN LATERAL (
            SELECT * FROM eventmesh_saga WHERE name = :saga_name AND id = wanted.id FOR UPDATE
        ) AS saga
        """  # noqa: S608  # names of columns
    ).bindparams(
        bindparam("saga_name", type_=String()),
        bindparam("ids", type_=ARRAY(String())),
        bindparam("keys", type_=ARRAY(String())),
    )
    return statement.columns(*(saga.c[column] for column in columns))
