"""Limits that an operator sets on PostgreSQL, and a worker whose machine is lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest
from sqlalchemy import select, text

from eventmesh import Service
from eventmesh.clock import SystemClock
from eventmesh.persistence import migration
from eventmesh.persistence.database import Database
from eventmesh.persistence.dialects.tcp import SILENCE
from eventmesh.persistence.transaction import Transaction
from eventmesh.runtime.declaring.retry import Retry, constant
from eventmesh.runtime.relaying.relay import Relay
from eventmesh.transports.memory import MemoryTransport
from tests.integration.one_handler import (
    SUB,
    TIMEOUT_SECONDS,
    Base,
    Do,
    Effect,
    send,
    until_settled,
    worker,
)


@pytest.fixture
async def database(postgres_url: str) -> AsyncIterator[Database]:
    database = Database(postgres_url, service="shop")
    await migration.upgrade(database, Base.metadata)
    yield database
    await database.close()


async def limit(database: Database, setting: str, milliseconds: int) -> None:
    """Set a limit for all new connections."""
    async with database.connection() as connection:
        name = await connection.scalar(text("SELECT current_database()"))
        await connection.execute(text(f'ALTER DATABASE "{name}" SET {setting} = {milliseconds}'))


def url_of(database: Database) -> str:
    return database.url.render_as_string(hide_password=False)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(TIMEOUT_SECONDS):
        while not condition():  # noqa: ASYNC110  # there is no event
            await asyncio.sleep(0.01)


async def test_a_relay_retries_after_a_statement_timeout(database: Database) -> None:
    await limit(database, "statement_timeout", 200)
    other = Database(url_of(database), service="shop")
    relay = Relay("shop", other, MemoryTransport(SystemClock()), SystemClock(), lease_time=3.0)
    stop = asyncio.Event()
    task = asyncio.ensure_future(relay.run(stop))
    async with database.connection() as connection:
        await connection.execute(text("SET LOCAL statement_timeout = 0"))
        await connection.execute(text("SELECT 1 FROM eventmesh_lease FOR UPDATE"))
        await until(lambda: task.done() or "statement timeout" in relay.vitals.trouble)
        assert not task.done()
    await until(lambda: task.done() or not relay.vitals.trouble)
    stop.set()
    await task
    await other.close()


async def test_a_message_whose_connection_the_database_ends_does_not_block_the_others(
    database: Database,
) -> None:
    service = Service("shop", metadata=Base.metadata)

    @service.subscriber(retry=Retry(attempts=2, backoff=constant("10ms")))
    async def do(command: Do, tx: Transaction) -> None:
        tx.session.add(Effect(number=command.number))
        await tx.session.flush()
        if command.number == 2:  # the only one that the limit is for, however slow the machine is
            await tx.session.execute(text("SET LOCAL idle_in_transaction_session_timeout = 200"))
            connection = await (await tx.session.connection()).get_raw_connection()
            await until(lambda: bool(connection.driver_connection.is_closed()))  # type: ignore[union-attr]

    async with worker(service, url_of(database)) as transport:
        await send(transport, *range(5))
        async with asyncio.timeout(TIMEOUT_SECONDS):
            while not (letters := await transport.dead_letters(SUB, limit=9)):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        await until_settled(transport)
    async with database.reading() as connection:
        found = list(await connection.scalars(select(Effect.number).order_by(Effect.number)))
    assert (len(letters), found) == (1, [0, 1, 3, 4])


async def test_the_server_ends_the_transaction_of_a_silent_worker(
    database: Database,
) -> None:
    """Otherwise its inbox rows would be locked for two hours, until TCP closes the connection."""
    async with database.connection() as connection:
        idle, interval, count, timeout = [
            int(await connection.scalar(text(f"SHOW {setting}")) or 0)
            for setting in (
                "tcp_keepalives_idle",
                "tcp_keepalives_interval",
                "tcp_keepalives_count",
                "tcp_user_timeout",
            )
        ]
    assert idle + interval * count == SILENCE
    assert timeout == SILENCE * 1000
