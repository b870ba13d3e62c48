"""A handler that exceeds its timeout is cancelled, rolled back and retried."""

from __future__ import annotations

import asyncio

from sqlalchemy import text

from eventmesh import Service
from eventmesh.persistence.transaction import Transaction
from eventmesh.runtime.declaring.retry import Retry
from eventmesh.transports.base import Subscription
from tests.integration.one_handler import (
    SOON,
    Base,
    Do,
    Effect,
    effects,
    migrated,
    send,
    until_settled,
    worker,
)
from tests.support.proxy import proxy_before


async def test_a_handler_timeout_ends_the_statement_and_retries_only_its_message(
    postgres_url: str,
) -> None:
    await migrated(postgres_url)
    service = Service("shop", metadata=Base.metadata)
    attempts: list[int] = []
    backends: set[int] = set()

    @service.subscriber(retry=SOON, timeout="300ms")
    async def do(command: Do, tx: Transaction) -> None:
        # The others wait for nothing, so that they take no time, however slow the machine is.
        tx.session.add(Effect(number=command.number))
        if command.number == 2:
            attempts.append(command.number)
            raw = await (await tx.session.connection()).get_raw_connection()
            backends.add(raw.driver_connection.get_server_pid())  # type: ignore[union-attr]
            await tx.session.execute(text("SELECT pg_sleep(600)"))

    async with worker(service, postgres_url) as transport:
        await send(transport, 1, 2, 3)
        await until_settled(transport)
        [letter] = await transport.dead_letters(Subscription("shop.do", ()), limit=9)
        async with (await service.database()).reading() as connection:
            sleeping = await connection.scalar(
                text(
                    "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(600)%'"
                    " AND pid <> pg_backend_pid() AND state = 'active'"
                )
            )
    assert letter.reason == "failed 3 times: TimeoutError: the handler took longer than its 0.3 s"
    assert await effects(postgres_url) == [1, 3]
    assert len(attempts) >= 3
    assert len(backends) >= 3  # a connection on which a statement was cancelled is not used again
    assert sleeping == 0


async def test_a_silent_database_blocks_a_lane_no_longer_than_the_timeout(
    postgres_url: str,
) -> None:
    await migrated(postgres_url)
    service = Service("shop", metadata=Base.metadata)
    begun = asyncio.Event()

    async with proxy_before(postgres_url) as proxy:

        @service.subscriber(retry=SOON, timeout="300ms")
        async def do(command: Do, tx: Transaction) -> None:
            if not begun.is_set():
                begun.set()
                with proxy.silent():
                    await tx.session.execute(text("SELECT 1"))
            tx.session.add(Effect(number=command.number))

        async with worker(service, proxy.url) as transport:
            await send(transport, 1)
            await begun.wait()
            await until_settled(transport)
    assert await effects(postgres_url) == [1]


async def test_a_handler_without_a_transaction_has_a_timeout_too(sqlite_url: str) -> None:
    service = Service("shop")
    attempts: list[int] = []

    @service.subscriber(retry=SOON, timeout="50ms")
    async def do(command: Do) -> None:
        attempts.append(command.number)
        if len(attempts) < 3:
            await asyncio.Event().wait()

    async with worker(service, sqlite_url) as transport:
        await send(transport, 1)
        await until_settled(transport)
        assert await transport.dead_letters(Subscription("shop.do", ()), limit=9) == []
    assert attempts == [1, 1, 1]


async def test_a_timeout_error_of_the_handler_itself_is_not_mistaken_for_its_timeout(
    sqlite_url: str,
) -> None:
    service = Service("shop")

    @service.subscriber(retry=Retry(attempts=1), timeout="20s")
    async def do(command: Do) -> None:
        raise TimeoutError("somebody did not answer")

    async with worker(service, sqlite_url) as transport:
        await send(transport, 1)
        await until_settled(transport)
        [letter] = await transport.dead_letters(Subscription("shop.do", ()), limit=9)
    assert letter.reason == "failed 1 time: TimeoutError: somebody did not answer"
