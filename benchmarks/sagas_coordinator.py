"""A coordinator alone: how many waiting answers it applies in a second, against raw SQL.

No broker and no other service takes part. Sagas are started, their first commands are read from the
outbox, and the answers to these are sealed; then the runner of the coordinator's subscription gets
them as a worker would give them to it. For each answer, a saga's row is locked, read and updated,
and there is one more row in the inbox and in the saga's log, and two more in the outbox: the next
command and its time-out. One, the time-out of the answered command, is deleted.

Raw SQL does the same to a copy of the database as it was before: it writes the very rows that the
coordinator has written, from memory, in transactions of the same sizes, by six statements each. (A
worker gives its coordinator at most 100 messages, and fewer if they take longer than a transaction
may take.) Raw SQL decodes no message and decides nothing, so the ratio says how far the coordinator
is from what PostgreSQL can do.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import asyncpg  # type: ignore[import-untyped]

from benchmarks.measure import Broken, Mark, Rate, settle_memory
from benchmarks.sagas_programs import Servers, driven_by, fresh_services
from benchmarks.sagas_trips import NAME, BookTrip, RoomBooked, make_trips
from eventmesh.clock import SystemClock
from eventmesh.runtime.consuming.batch import BatchRunner
from eventmesh.runtime.vitals import SubscriptionVitals
from eventmesh.saga.coordinator import SUBSCRIPTION_SUFFIX
from eventmesh.transports.base import Delivery
from eventmesh.transports.outcome import DONE
from eventmesh.wire.envelope import Envelope, seal

TABLES = ("eventmesh_inbox", "eventmesh_saga", "eventmesh_saga_log", "eventmesh_outbox")
NUMBERED = ("eventmesh_saga_log", "eventmesh_outbox")
"""Those whose rows get a number from a sequence."""

Rows = Mapping[str, Sequence[Any]]
"""The rows of each table."""


@dataclass(frozen=True)
class Applied:
    """What the coordinator made of the answers: the tables before and after, and the answers that
    each of its transactions applied."""

    rate: Rate
    before: Rows
    after: Rows
    groups: Sequence[Sequence[Envelope]]


async def coordinator_rates(servers: Servers, answers: int) -> tuple[Rate, Rate]:
    """Answers a second, by the coordinator and by raw SQL."""
    applied = await _by_coordinator(servers, answers)
    return applied.rate, await _by_raw_sql(servers, applied)


async def _by_coordinator(servers: Servers, answers: int) -> Applied:
    trips, clock = make_trips(), SystemClock()
    async with fresh_services([trips], servers) as settings:
        trips.configure(settings)
        handler = trips.handlers[NAME + SUBSCRIPTION_SUFFIX]
        vitals = SubscriptionVitals(trips.name, handler.subscription, clock)
        runner = BatchRunner(trips, handler, vitals)
        async with trips, _connected(settings.database_url("trips")) as connection:
            begun = [BookTrip(trip=f"trip-{number}") for number in range(answers)]
            await _apply(runner, [seal(each, source="trips", clock=clock) for each in begun])
            sealed = await _answers(connection, clock)
            before = await _tables(connection)
            settle_memory()
            began = Mark()
            groups = await _apply(runner, sealed)
            ended = Mark()
            after = await _tables(connection)
    if len(after["eventmesh_saga_log"]) != 2 * answers:
        raise Broken(f"{len(after['eventmesh_saga_log']):,} lines in the logs of {answers:,} sagas")
    return Applied(began.rate(answers, until=ended), before, after, groups)


async def _apply(runner: BatchRunner, envelopes: Sequence[Envelope]) -> list[Sequence[Envelope]]:
    """Give the runner as many as it wants each time; returns these groups."""
    begun = 0
    groups: list[Sequence[Envelope]] = []
    while begun < len(envelopes):
        group = envelopes[begun : begun + runner.size]
        settled = await runner.run([Delivery(each) for each in group])
        if [outcome for _, outcome in settled] != [DONE] * len(group):
            raise Broken(f"answers were not applied: {settled[0]}")
        groups.append(group)
        begun += len(group)
    return groups


async def _answers(connection: Any, clock: SystemClock) -> list[Envelope]:
    """What hotels answers to all commands in the outbox."""
    query = "SELECT headers FROM eventmesh_outbox WHERE name = 'hotels.book_room' ORDER BY seq"
    commands = [Envelope(json.loads(row["headers"]), b"") for row in await connection.fetch(query)]
    return [
        seal(RoomBooked(trip=str(command.key)), source="hotels", clock=clock, cause=command)
        for command in commands
    ]


async def _by_raw_sql(servers: Servers, applied: Applied) -> Rate:
    trips = make_trips()
    async with (
        fresh_services([trips], servers) as settings,
        _connected(settings.database_url("trips")) as connection,
    ):
        for table in TABLES:
            rows = applied.before[table]
            await connection.copy_records_to_table(
                table, records=[tuple(row.values()) for row in rows], columns=list(rows[0].keys())
            )
            if table in NUMBERED:
                await connection.execute(
                    "SELECT setval(pg_get_serial_sequence($1, 'seq'), $2)",
                    table,
                    max(row["seq"] for row in rows),
                )
        await connection.execute("ANALYZE")
        groups = _written(applied)
        settle_memory()
        began = Mark()
        for group in groups:
            await group.write(connection)
        ended = Mark()
        written = await _tables(connection)
    for table in TABLES:
        if len(written[table]) != len(applied.after[table]):
            raise Broken(f"{len(written[table]):,} rows of {table} were written by raw SQL")
    if _by_id(written["eventmesh_saga"]) != _by_id(applied.after["eventmesh_saga"]):
        raise Broken("raw SQL has written other sagas than the coordinator")
    return began.rate(sum(len(group.ids) for group in groups), until=ended)


@dataclass(frozen=True)
class _Group:
    """What one transaction writes, by columns."""

    ids: list[str]
    inbox: list[list[Any]]
    sagas: list[list[Any]]
    log: list[list[Any]]
    cancelled: list[str]
    outbox: list[list[Any]]

    async def write(self, connection: Any) -> None:
        async with connection.transaction():
            await connection.fetch(_CLAIM, *self.inbox)
            await connection.fetch(_LOCK, NAME, self.ids)
            await connection.execute(_UPDATE, NAME, *self.sagas)
            await connection.execute(_LOG, NAME, *self.log)
            await connection.execute(_CANCEL, self.cancelled)
            await connection.execute(_SEND, *self.outbox)


_CLAIM = f"""
    INSERT INTO eventmesh_inbox (subscription, message_id, received_at, digest)
    SELECT '{NAME}{SUBSCRIPTION_SUFFIX}', id, now(), digest
    FROM unnest($1::text[], $2::bigint[]) AS row (id, digest)
    ON CONFLICT DO NOTHING RETURNING message_id
"""  # noqa: S608
_LOCK = "SELECT * FROM eventmesh_saga WHERE name = $1 AND id = ANY($2) ORDER BY id FOR UPDATE"
_SAGA_COLUMNS = ("id", "state", "steps", "details", "waiting_for", "row_version", "due_at")
_UPDATE = """
    UPDATE eventmesh_saga SET state = row.state::json, steps = row.steps::json,
        details = row.details::json, waiting_for = row.waiting_for,
        row_version = row.row_version, due_at = row.due_at, updated_at = now()
    FROM unnest($2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::int[],
        $8::timestamptz[]) AS row (id, state, steps, details, waiting_for, row_version, due_at)
    WHERE eventmesh_saga.name = $1 AND eventmesh_saga.id = row.id
"""
_LOG = """
    INSERT INTO eventmesh_saga_log (saga_name, saga_id, at, entry)
    SELECT $1, saga_id, now(), entry::json FROM unnest($2::text[], $3::text[])
    AS row (saga_id, entry)
"""
_CANCEL = "DELETE FROM eventmesh_outbox WHERE id = ANY($1) AND due_at IS NOT NULL"
_OUTBOX_COLUMNS = ("id", "name", "key", "bucket", "headers", "data", "due_at")
_SEND = """
    INSERT INTO eventmesh_outbox (id, name, key, bucket, headers, data, due_at)
    SELECT id, name, key, bucket, headers::json, data, due_at FROM unnest($1::text[], $2::text[],
        $3::text[], $4::smallint[], $5::text[], $6::bytea[], $7::timestamptz[])
    AS row (id, name, key, bucket, headers, data, due_at)
"""


def _written(applied: Applied) -> list[_Group]:
    """What the coordinator wrote in each of its transactions."""
    before, after = applied.before, applied.after
    sagas = {row["id"]: row for row in after["eventmesh_saga"]}
    claims = {row["message_id"]: row for row in after["eventmesh_inbox"]}
    log = {row["saga_id"]: row for row in after["eventmesh_saga_log"]}  # the last one of each
    was_there = {row["seq"] for row in before["eventmesh_outbox"]}
    is_left = {row["seq"] for row in after["eventmesh_outbox"]}
    cancelled = {
        row["key"]: row["id"] for row in before["eventmesh_outbox"] if row["seq"] not in is_left
    }
    sent: dict[str, list[Any]] = {}
    for row in after["eventmesh_outbox"]:
        if row["seq"] not in was_there:
            # A time-out has its saga's id as its key.
            saga = row["key"] if row["due_at"] else _saga_of(json.loads(row["headers"]))
            sent.setdefault(saga, []).append(row)
    written = []
    for group in applied.groups:
        ids = sorted(_saga_of(each.attributes) for each in group)
        written.append(
            _Group(
                ids,
                _columns([claims[each.unique_id] for each in group], ("message_id", "digest")),
                _columns([sagas[each] for each in ids], _SAGA_COLUMNS),
                _columns([log[each] for each in ids], ("saga_id", "entry")),
                [cancelled[each] for each in ids],
                _columns([row for each in ids for row in sent[each]], _OUTBOX_COLUMNS),
            )
        )
    return written


def _by_id(sagas: Sequence[Any]) -> dict[str, list[Any]]:
    return {row["id"]: [row[name] for name in _SAGA_COLUMNS] for row in sagas}


def _columns(rows: Sequence[Any], names: Sequence[str]) -> list[list[Any]]:
    return [[row[name] for row in rows] for name in names]


def _saga_of(attributes: Mapping[str, str]) -> str:
    return attributes.get("sagaid", "").partition("/")[2]


async def _tables(connection: Any) -> Rows:
    """All rows, numbered ones in order."""
    await connection.execute("ANALYZE")
    return {
        table: await connection.fetch(
            f"SELECT * FROM {table}" + (" ORDER BY seq" if table in NUMBERED else "")  # noqa: S608
        )
        for table in TABLES
    }


@asynccontextmanager
async def _connected(url: str) -> AsyncIterator[Any]:
    connection = await asyncpg.connect(driven_by("", url))
    try:
        yield connection
    finally:
        await connection.close()
