"""A coordinator whose database has 100,000 open sagas, against one with 1,000.

What is started, answered or timed out is one saga at a time, as a worker and its relay do it, in
turns with the other database; so the ratio says what the other open sagas cost. Looking at sagas is
measured by what `eventmesh saga list` executes: a page of those that wait for a step, and the
census, which counts all open ones and so takes longer the more there are.

The open sagas are copies of one that has been started: rows, their logs and their time-outs.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from time import perf_counter

from sqlalchemy import text

from benchmarks.measure import Broken, settle_memory
from benchmarks.sagas_programs import Servers, fresh_services
from benchmarks.sagas_trips import NAME, BookTrip, RoomBooked, make_trips
from eventmesh.clock import SystemClock
from eventmesh.persistence import outbox, sagas
from eventmesh.persistence.database import Database
from eventmesh.persistence.tables import BUCKETS
from eventmesh.runtime.consuming.batch import BatchRunner
from eventmesh.runtime.vitals import SubscriptionVitals
from eventmesh.saga.coordinator import SUBSCRIPTION_SUFFIX
from eventmesh.transports.base import Delivery
from eventmesh.transports.outcome import DONE
from eventmesh.wire.envelope import Envelope, seal

FEW, MANY = 1_000, 100_000
MOST_TURNS = 400
"""So many copies are answered at the most; those after them are timed out."""

BATCH = 1
"""Time-outs that are read at once: those of sagas that were just started may be due, too."""


@dataclass
class Open:
    """A service's database with so many open sagas, and what works on them."""

    runner: BatchRunner
    database: Database
    clock: SystemClock
    answer: Envelope
    """To the saga that the others are copies of."""
    done: int = 0
    took: dict[str, list[float]] = field(default_factory=dict)
    """Milliseconds of each turn."""

    async def turn(self) -> None:
        """Do each of these once."""
        self.done += 1
        saga_id = _copy(self.done)
        async with self.database.connection() as connection:
            due = f"{NAME}/{_copy(MOST_TURNS + self.done)}/room"
            await connection.exec_driver_sql(_MAKE_DUE, (due,))
        attributes = {
            **self.answer.attributes,
            "sagaid": f"{NAME}/{saga_id}",
            "id": _copy(-self.done),
        }
        begun = seal(BookTrip(trip=f"new-{self.done}"), source="trips", clock=self.clock)
        await self._timed("starting a saga", lambda: self._apply(begun))
        await self._timed("an answer", lambda: self._apply(Envelope(attributes, self.answer.data)))
        await self._timed("a time-out", self._relay_due)
        await self._timed("a page of sagas", self._list)
        await self._timed("counting sagas", self._count)

    async def _timed(self, what: str, work: Callable[[], Awaitable[None]]) -> None:
        began = perf_counter()
        await work()
        self.took.setdefault(what, []).append((perf_counter() - began) * 1000)

    async def _apply(self, envelope: Envelope) -> None:
        settled = await self.runner.run([Delivery(envelope)])
        if [outcome for _, outcome in settled] != [DONE]:
            raise Broken(f"not applied: {settled}")

    async def _relay_due(self) -> None:
        """What a relay does with a time-out, without the broker, and the coordinator after it."""
        async with self.database.queue("reads") as connection:
            now = await self.database.time.ask(connection)
            seen = outbox.Position(2**40, outbox.START.due_at)
            rows = await connection.run_sync(outbox.due, range(BUCKETS), now, BATCH, seen)
        if len(rows) != 1:
            raise Broken(f"{len(rows):,} time-outs are due")
        await self.database.write_to_queue(lambda sync: outbox.delete_untried(sync, rows))
        await self._apply(rows[0].envelope)

    async def _list(self) -> None:
        async with self.database.reading() as connection:
            found = await sagas.find(connection, names=[NAME], statuses=["running"], step="room")
        if len(found) != 100:
            raise Broken(f"{len(found)} sagas are listed")

    async def _count(self) -> None:
        async with self.database.reading() as connection:
            await sagas.census(connection)


async def open_saga_latencies(
    servers: Servers, turns: int
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Milliseconds of everything, with many open sagas and with few."""
    async with _opened(servers, MANY) as many, _opened(servers, FEW) as few:
        settle_memory()
        for number in range(turns):
            for each in (many, few) if number % 2 else (few, many):
                await each.turn()
        return many.took, few.took


@asynccontextmanager
async def _opened(servers: Servers, number: int) -> AsyncIterator[Open]:
    trips, clock = make_trips(), SystemClock()
    async with AsyncExitStack() as stack:
        trips.configure(await stack.enter_async_context(fresh_services([trips], servers)))
        handler = trips.handlers[NAME + SUBSCRIPTION_SUFFIX]
        runner = BatchRunner(
            trips, handler, SubscriptionVitals(trips.name, handler.subscription, clock)
        )
        await stack.enter_async_context(trips)
        database = await trips.database()
        begun = seal(BookTrip(trip="trip-0"), source="trips", clock=clock)
        await runner.run([Delivery(begun)])
        async with database.connection() as connection:
            query = text("SELECT headers FROM eventmesh_outbox WHERE name = 'hotels.book_room'")
            command = Envelope((await connection.execute(query)).scalar_one(), b"")
            for copying in _COPIES:
                await connection.exec_driver_sql(copying, (number, begun.id))
        async with database.engine.connect() as connection:
            await connection.execution_options(isolation_level="AUTOCOMMIT")
            await connection.execute(text("VACUUM ANALYZE"))
        answer = seal(RoomBooked(trip="trip-0"), source="hotels", clock=clock, cause=command)
        yield Open(runner, database, clock, answer)


def _copy(number: int) -> str:
    """The id of a copy, or with a negative number that of a message."""
    return f"00000000-0000-7000-{8000 if number > 0 else 9000}-{abs(number):012}"


# Constants are put into these statements.
# ruff: noqa: S608
_ID = "'00000000-0000-7000-8000-' || lpad(copy::text, 12, '0')"
_COPIES = [
    f"""
    INSERT INTO eventmesh_saga (id, key, name, version, status, state, steps, row_version,
        started_at, updated_at, details, is_open, waiting_for, due_at)
    SELECT {_ID}, 'copy-' || copy, name, version, status, state, steps, row_version,
        started_at, updated_at, details, is_open, waiting_for, due_at
    FROM eventmesh_saga, generate_series(1, $1::int) AS copy WHERE id = $2
    """,
    f"""
    INSERT INTO eventmesh_saga_log (saga_name, saga_id, at, entry)
    SELECT saga_name, {_ID}, at, entry
    FROM eventmesh_saga_log, generate_series(1, $1::int) AS copy WHERE saga_id = $2
    """,
    f"""
    INSERT INTO eventmesh_outbox (id, key, name, bucket, headers, data, due_at)
    SELECT replace(id, $2, {_ID}), {_ID}, name, copy % {BUCKETS},
        replace(headers::text, $2, {_ID})::json,
        convert_to(replace(convert_from(data, 'UTF8'), $2, {_ID}), 'UTF8'), now() + '1 hour'
    FROM eventmesh_outbox, generate_series(1, $1::int) AS copy WHERE id = '{NAME}/' || $2 || '/room'
    """,
]
_MAKE_DUE = "UPDATE eventmesh_outbox SET due_at = '2000-01-01' WHERE id = $1 AND due_at IS NOT NULL"
