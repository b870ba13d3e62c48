"""One hop of a saga's message: how long it takes from before the transaction in which one service
publishes it until another service has committed its effects, at a steady 50 a second.

By hand is the shortest chain of the same servers, in asyncpg and redis-py: insert and commit, XADD,
XREADGROUP, insert and commit, XACK. It has neither outbox nor inbox, so a crash between two of
these loses the message or has its effects twice, and nothing polls or is woken.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from time import perf_counter
from typing import Any

import asyncpg  # type: ignore[import-untyped]
from redis.asyncio import Redis
from sqlalchemy import Column, MetaData, String, Table, insert

from benchmarks.measure import RUN_TIMEOUT, settle_memory
from benchmarks.sagas_programs import (
    Servers,
    check_count,
    commits_told_to,
    driven_by,
    fresh_services,
    workers,
)
from benchmarks.sagas_trips import Endings
from eventmesh import Event, Service, Transaction
from eventmesh.testing.servers import fresh_database

EVERY = 0.02
"""Seconds between messages: 50 a second."""

WARM_UP = 50
BLOCK_MS = 1_000
READ = 100

Send = Callable[[str], Awaitable[None]]
"""Returns once the effects of the message of this id are committed."""


class Hopped(Event, name="sender.hopped", version=1, key="number"):
    number: str


_metadata = MetaData()
_arrivals = Table("arrivals", _metadata, Column("number", String, primary_key=True))


async def our_hops(servers: Servers, messages: int) -> list[float]:
    """Milliseconds of each message, from a worker to a worker of another service."""
    arrived = Endings()
    sender, receiver = Service("sender"), Service("receiver", metadata=_metadata)
    hopped = sender.publisher(Hopped)

    @receiver.subscriber()
    async def record(event: Hopped, tx: Transaction) -> None:
        await tx.session.execute(insert(_arrivals), {"number": event.number})
        arrived.note(event.number)

    async def send(number: str) -> None:
        committed = arrived.wait_for(number)
        await hopped.publish(Hopped(number=number))
        await committed

    async with fresh_services([sender, receiver], servers) as settings:
        with commits_told_to(arrived.committed):
            async with workers([sender, receiver], settings):
                took = await _paced(send, messages)
        await check_count(settings.database_url("receiver"), "arrivals", messages + WARM_UP)
    return took


async def hops_by_hand(servers: Servers, messages: int) -> list[float]:
    """The same by the chain that is written by hand."""
    async with (
        fresh_database(servers.postgres) as here,
        fresh_database(servers.postgres) as there,
        _chain(servers.redis_url, driven_by("", here), driven_by("", there)) as send,
    ):
        took = await _paced(send, messages)
        await check_count(there, "messages", messages + WARM_UP)
    return took


@asynccontextmanager
async def _chain(redis_url: str, here: str, there: str) -> AsyncIterator[Send]:
    stream = f"bench{secrets.token_hex(4)}:hops"
    arrived: dict[str, asyncio.Future[None]] = {}
    async with AsyncExitStack() as stack:
        sending, receiving = [
            await stack.enter_async_context(asyncpg.create_pool(url, min_size=2, max_size=10))
            for url in (here, there)
        ]
        for pool in (sending, receiving):
            await pool.execute("CREATE TABLE messages (id text PRIMARY KEY, data text NOT NULL)")
        client: Any = await stack.enter_async_context(Redis.from_url(redis_url, protocol=2))
        await client.xgroup_create(stream, "receiver", id="0", mkstream=True)
        stack.push_async_callback(client.delete, stream)

        async def send(number: str) -> None:
            committed = arrived[number] = asyncio.get_running_loop().create_future()
            data = Hopped(number=number).model_dump_json()
            await sending.execute("INSERT INTO messages VALUES ($1, $2)", number, data)
            await client.xadd(stream, {"data": data})
            await committed

        async def receive() -> None:
            while True:
                answer = await client.xreadgroup(
                    "receiver", "one", {stream: ">"}, count=READ, block=BLOCK_MS
                )
                for _, entries in answer:
                    for entry, fields in entries:
                        event = Hopped.model_validate_json(fields[b"data"])
                        await receiving.execute(
                            "INSERT INTO messages VALUES ($1, $2)",
                            event.number,
                            fields[b"data"].decode(),
                        )
                        arrived.pop(event.number).set_result(None)
                        await client.xack(stream, "receiver", entry)

        tasks = await stack.enter_async_context(asyncio.TaskGroup())
        stack.callback(tasks.create_task(receive()).cancel)
        yield send


async def _paced(send: Send, messages: int) -> list[float]:
    """Milliseconds of each message, sent at the pace whatever the others take."""
    took: list[float] = []

    async def timed(number: int) -> None:
        began = perf_counter()
        await send(f"message-{number}")
        if number >= WARM_UP:
            took.append((perf_counter() - began) * 1000)

    settle_memory()
    began = perf_counter()
    async with asyncio.timeout(RUN_TIMEOUT), asyncio.TaskGroup() as tasks:
        for number in range(messages + WARM_UP):
            await asyncio.sleep(max(0.0, began + number * EVERY - perf_counter()))
            tasks.create_task(timed(number))
    return took
