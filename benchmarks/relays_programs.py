"""Who relays a backlog from PostgreSQL to a broker: our relay, and `faststream-outbox`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from faststream_outbox import OutboxBroker, make_outbox_table
from sqlalchemy import MetaData, func, insert, select, text
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from benchmarks.effects_programs import migrated
from benchmarks.measure import Contender, Make
from benchmarks.messages import in_batches
from benchmarks.ours import Ours
from eventmesh.clock import SystemClock
from eventmesh.persistence import outbox
from eventmesh.persistence.database import Database
from eventmesh.persistence.outbox import Outgoing
from eventmesh.persistence.tables import outbox as outbox_table
from eventmesh.runtime.relaying.relay import Relay
from eventmesh.wire.envelope import Envelope

QUEUE = "orders_outbox"
FILL = 1_000
WORKERS = 8


class Relaying(Protocol):
    """A relay with a database of its own, and a place on the broker where the messages come to."""

    async def fill(self, envelopes: Sequence[Envelope], times: int) -> None:
        """Let these wait, so many times over."""
        ...

    async def run(self, until: asyncio.Event) -> None:
        """Relay until told to stop."""
        ...

    async def relayed(self) -> int:
        """How many messages have come to the broker so far."""
        ...

    async def left(self) -> int:
        """How many rows are in the database."""
        ...


MakeRelay = Callable[[str], AbstractAsyncContextManager[Relaying]]
"""From the URL of an empty database."""


def ours(make: Make) -> MakeRelay:
    """Our relay, as in a worker."""

    @asynccontextmanager
    async def enter(url: str) -> AsyncIterator[Relaying]:
        async with make() as contender:
            if not isinstance(contender, Ours):
                raise TypeError(contender)
            database = await migrated(url)
            try:
                yield _Ours(contender, database)
            finally:
                await database.close()

    return enter


class _Ours:
    def __init__(self, contender: Ours, database: Database) -> None:
        self._database = database
        self._relay = Relay("bench", database, contender.transport, SystemClock(), 3.0)

    async def fill(self, envelopes: Sequence[Envelope], times: int) -> None:
        for batch in in_batches(envelopes, FILL):
            async with self._database.connection() as connection:
                await connection.run_sync(outbox.store, [Outgoing(each) for each in batch])
        await _multiply(
            self._database.engine, outbox_table.name, "id, name, key, bucket, headers, data", times
        )

    async def run(self, until: asyncio.Event) -> None:
        await self._relay.run(until)

    async def relayed(self) -> int:
        return self._relay.vitals.relayed

    async def left(self) -> int:
        return await _count(self._database.engine, outbox_table)


def faststream_outbox(
    make: Make, relay_to: Callable[[Contender], tuple[Any, dict[str, Any]]], **options: Any
) -> MakeRelay:
    """Its relay as in its documentation: a subscriber of the table that publishes what it gets.

    `relay_to` tells FastStream's broker and where on it to publish.
    """

    @asynccontextmanager
    async def enter(url: str) -> AsyncIterator[Relaying]:
        engine = create_async_engine(make_url(url).set(drivername="postgresql+asyncpg"))
        async with make() as contender:
            metadata = MetaData()
            table = make_outbox_table(metadata, table_name="outbox")
            async with engine.begin() as connection:
                await connection.run_sync(metadata.create_all)
            broker, place = relay_to(contender)
            try:
                yield _FastStreamOutbox(contender, engine, table, broker, place, options)
            finally:
                await engine.dispose()

    return enter


@dataclass
class _FastStreamOutbox:
    contender: Contender
    engine: AsyncEngine
    table: Any
    broker: Any
    place: dict[str, Any]
    options: dict[str, Any]

    async def fill(self, envelopes: Sequence[Envelope], times: int) -> None:
        async with self.engine.begin() as connection:
            for batch in in_batches(envelopes, FILL):
                rows = [
                    {
                        "queue": QUEUE,
                        "payload": each.data,
                        "headers": {**each.attributes, "content-type": "application/json"},
                    }
                    for each in batch
                ]
                await connection.execute(insert(self.table), rows)
        await _multiply(self.engine, self.table.name, "queue, payload, headers", times)

    async def run(self, until: asyncio.Event) -> None:
        source = OutboxBroker(self.engine, outbox_table=self.table, logger=None)

        async def relay(body: dict[str, Any]) -> dict[str, Any]:
            return body

        subscribed = source.subscriber(QUEUE, max_workers=WORKERS, **self.options)(relay)
        self.broker.publisher(**self.place)(subscribed)
        await source.start()
        await until.wait()
        await source.stop()

    async def relayed(self) -> int:
        return await self.contender.place.count()  # type: ignore[attr-defined]

    async def left(self) -> int:
        return await _count(self.engine, self.table)


async def _multiply(engine: AsyncEngine, table: str, columns: str, times: int) -> None:
    """Let each row be there so many times, the copies after all of the originals."""
    async with engine.begin() as connection:
        if times > 1:
            await connection.execute(
                text(
                    f"INSERT INTO {table} ({columns}) SELECT {columns} FROM {table}, "  # noqa: S608
                    f"generate_series(2, :times) AS number ORDER BY number"
                ),
                {"times": times},
            )
    async with engine.connect() as connection:
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        await connection.execute(text(f"VACUUM ANALYZE {table}"))
        await connection.execute(text("CHECKPOINT"))


async def _count(engine: AsyncEngine, table: Any) -> int:
    async with engine.connect() as connection:
        return await connection.scalar(select(func.count()).select_from(table)) or 0
