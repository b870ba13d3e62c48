"""A lost connection is never blamed on a message: wherever it is cut, the error is Unreachable, and
not one that a handler could have raised.

The tests cut connections at every step of the protocol, in each direction; let the server
terminate them before each statement; and cancel a statement while the database is silent, after
which the next user of the connection pool must not get the answer to the cancelled statement."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from itertools import count
from typing import Any
from urllib.parse import urlsplit

import pytest
from sqlalchemy import Connection, Engine, event, func, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import Pool
from sqlalchemy.util import await_only

from eventmesh import Service
from eventmesh.clock import SystemClock
from eventmesh.contracts.message import Event
from eventmesh.errors import Unreachable
from eventmesh.persistence import inbox, notifications, tables
from eventmesh.persistence.database import Database
from eventmesh.persistence.transaction import Transaction
from eventmesh.runtime.declaring.retry import Retry
from eventmesh.runtime.declaring.settings import Settings
from eventmesh.runtime.relaying.relay import Relay
from eventmesh.transports.memory import MemoryTransport
from tests.integration.cancellation import request_after_a_cancelled_one
from tests.integration.one_handler import SUB, Do, send, until_settled, worker
from tests.support.cut_positions import cut_positions, every_position
from tests.support.proxy import Direction, Proxy, proxy_before
from tests.support.units import unit_of_work

TIMEOUT_SECONDS = 300.0
STEP = 47
"""Bytes between two cuts in the soak: fewer than most messages of either protocol have, and a prime
number."""

SILENT_STEPS = {"postgresql": 1171, "mariadb": 47}
"""Bytes. PostgreSQL gets fewer steps, as SQLAlchemy waits two seconds for a silent server."""

MIN_CUTS = 12
"""How many cuts must at least interrupt a scenario, before one comes too late to matter."""

DISCONNECT_SECONDS = 0.3
"""Seconds between the server's last message and the end of the connection: a client that closes
a connection waits so long for the server to close it too."""

DRIVER_STATES = ("switch to state", "connection_lost()")
"""What a driver says of its own state when a connection ends, and what tells a person nothing."""

Scenario = Callable[[str, str], Awaitable[None]]


class Happened(Event, name="shop.happened", version=1):
    name: str


async def handle(url: str, name: str) -> None:
    """What a group of messages does: connect, claim, query, commit."""
    database = Database(url, service="shop")
    try:
        await claim(database, name)
    finally:
        await database.close()


async def claim(database: Database, name: str) -> None:
    async with unit_of_work(database) as unit:
        with database.own_statements():
            new = (await inbox.claim(unit.session, "shop.do", [inbox.Entry(name, 1)])).fresh
        assert new == {name}
        with database.translated():
            await unit.commit()


async def publish(url: str, name: str) -> None:
    """What an application does."""
    service = shop(url)
    try:
        async with service.transaction() as tx:
            tx.publish(Happened(name=name))
    finally:
        await service.close()


async def relay(url: str, name: str) -> None:
    """A round of the relay, always with the same owner: another would have to wait for its
    leases."""
    del name
    database = Database(url, service="shop")
    round_of = Relay("shop", database, MemoryTransport(SystemClock()), SystemClock(), 60.0)
    round_of.leases.owner = "the only one"
    try:
        await round_of.round()
    finally:
        await database.close()


async def listen(url: str, name: str) -> None:
    """Listen until notifications are known to arrive."""
    del name
    database = Database(url, service="shop")
    notified = asyncio.Event()
    listening = asyncio.ensure_future(notifications.listen(database, notified.set))
    waiting_for_notice = asyncio.ensure_future(notified.wait())
    try:
        await asyncio.wait([listening, waiting_for_notice], return_when=asyncio.FIRST_COMPLETED)
        if listening.done():
            listening.result()
    finally:
        listening.cancel()
        waiting_for_notice.cancel()
        await asyncio.wait([listening, waiting_for_notice])
        await database.close()


def shop(url: str) -> Service:
    service = Service("shop")
    service.configure(Settings(database_urls={"shop": url}))
    service.publisher(Happened)
    return service


@pytest.fixture(params=["postgres", "mariadb"])
def url(request: pytest.FixtureRequest) -> str:
    """A database for this test only, with EventMesh's tables."""
    url: str = request.getfixturevalue(f"migrated_{request.param}_url")
    return url


@pytest.fixture
async def proxy(url: str) -> AsyncIterator[Proxy]:
    """A proxy in front of a database that has all tables."""
    async with proxy_before(url) as proxy:
        yield proxy
    gc.collect()  # a connection that nobody closed fails this test, and not a later one


async def cuts_until_success(
    proxy: Proxy, direction: Direction, scenario: Scenario, positions: Iterator[int]
) -> int:
    """Run a scenario with a cut after more and more bytes, until it succeeds; returns how often it
    failed."""
    for lost, position in enumerate(positions):
        cutting = asyncio.ensure_future(proxy.cut_after(position, direction))
        await asyncio.sleep(0)  # the cut is set now
        said = ""
        try:
            await scenario(proxy.url, f"{direction.name}-{lost}")
        except Unreachable as error:
            said = str(error)
        else:
            cutting.cancel()
            return lost
        assert not any(words in said for words in DRIVER_STATES), said
        assert cutting.done(), "unreachable, but not because of the cut"
    raise AssertionError


async def positions_in(
    scenario: Scenario, proxy: Proxy, direction: Direction, *, every_position: bool
) -> Iterator[int]:
    return await cut_positions(
        proxy,
        direction,
        lambda: scenario(proxy.url, f"{direction.name} undisturbed"),
        step=STEP,
        every_position=every_position,
    )


@every_position
@pytest.mark.parametrize("direction", Direction)
@pytest.mark.parametrize("scenario", [handle, publish])
async def test_a_connection_cut_after_any_number_of_bytes_raises_unreachable(
    proxy: Proxy, direction: Direction, scenario: Scenario, *, every_position: bool
) -> None:
    async with asyncio.timeout(TIMEOUT_SECONDS):
        positions = await positions_in(scenario, proxy, direction, every_position=every_position)
        assert await cuts_until_success(proxy, direction, scenario, positions) > MIN_CUTS


@every_position
@pytest.mark.parametrize("direction", Direction)
async def test_a_relay_round_that_is_cut_raises_unreachable_and_loses_no_message(
    proxy: Proxy, url: str, direction: Direction, *, every_position: bool
) -> None:
    async with asyncio.timeout(TIMEOUT_SECONDS):
        await publish(url, "relayed undisturbed")
        positions = await positions_in(relay, proxy, direction, every_position=every_position)
        await publish(url, "to relay")
        assert await cuts_until_success(proxy, direction, relay, positions) > MIN_CUTS
    assert await waiting(url) == 0


class Termination:
    """Makes PostgreSQL terminate a connection just before the `at`th use of any connection. By
    then the client has received the server's last message, but not the end of the connection."""

    def __init__(self, proxy: Proxy, url: str, at: int) -> None:
        self.left = at
        self._proxy = proxy
        self._database = Database(url, service="shop")

    @asynccontextmanager
    async def armed(self) -> AsyncIterator[None]:
        watched = (
            (Pool, "checkout", self._checkout),
            (Engine, "before_cursor_execute", self._execute),
            (Engine, "commit", self._execute),
        )
        for watch in watched:
            event.listen(*watch)
        try:
            yield
        finally:
            for watch in watched:
                event.remove(*watch)
            await self._database.close()

    def _checkout(self, connection: Any, *_: object) -> None:
        self._use(connection.driver_connection)

    def _execute(self, connection: Connection, *_: object) -> None:
        self._use(connection.connection.driver_connection)

    def _use(self, used: Any) -> None:
        self.left -= 1
        if self.left == 0:
            await_only(self._terminate(used))

    async def _terminate(self, used: Any) -> None:
        before = self._proxy.passed[Direction.TO_CLIENT]
        async with self._database.reading() as own:
            await own.execute(select(func.pg_terminate_backend(used.get_server_pid())))
        while self._proxy.passed[Direction.TO_CLIENT] == before:  # noqa: ASYNC110  # no event
            await asyncio.sleep(0)
        await asyncio.sleep(0)  # here the driver reads what has arrived


@pytest.mark.parametrize("scenario", [handle, publish, relay, listen])
async def test_a_connection_that_the_server_terminates_before_any_use_raises_unreachable(
    migrated_postgres_url: str, scenario: Scenario
) -> None:
    async with proxy_before(migrated_postgres_url) as proxy, asyncio.timeout(TIMEOUT_SECONDS):
        for at in count(1):
            termination = Termination(proxy, migrated_postgres_url, at)
            async with termination.armed():
                running = asyncio.ensure_future(scenario(proxy.url, f"use {at}"))
                with proxy.keeping_ends():
                    await asyncio.wait([running], timeout=DISCONNECT_SECONDS)
                with suppress(Unreachable):
                    await running
            if termination.left > 0:
                break
    assert at > 2, "no use was interrupted"


@every_position
@pytest.mark.parametrize("direction", Direction)
async def test_a_cut_while_a_relay_listens_raises_unreachable(
    postgres_url: str, direction: Direction, *, every_position: bool
) -> None:
    async with proxy_before(postgres_url) as proxy, asyncio.timeout(TIMEOUT_SECONDS):
        positions = await positions_in(listen, proxy, direction, every_position=every_position)
        assert await cuts_until_success(proxy, direction, listen, positions) > MIN_CUTS


async def test_a_handlers_error_is_raised_even_if_the_connection_is_cut_during_the_rollback(
    proxy: Proxy,
) -> None:
    database = Database(proxy.url, service="shop")
    with pytest.raises(ZeroDivisionError):  # noqa: PT012  # raised inside, cut outside
        async with unit_of_work(database) as unit:
            await unit.session.execute(text("SELECT 1"))
            cutting = asyncio.ensure_future(proxy.cut_after(1))  # during the rollback
            await asyncio.sleep(0)
            raise ZeroDivisionError
    assert cutting.done()
    async with asyncio.timeout(TIMEOUT_SECONDS), database.connection() as connection:
        assert await connection.scalar(text("SELECT 1")) == 1
    await database.close()


@pytest.mark.parametrize("queries_again", [False, True])
async def test_a_handler_that_catches_the_error_of_a_cut_costs_no_attempt(
    proxy: Proxy, *, queries_again: bool
) -> None:
    service, handled = Service("shop"), 0

    @service.subscriber(retry=Retry(attempts=1))
    async def do(command: Do, tx: Transaction) -> None:
        nonlocal handled
        handled += 1
        await tx.session.execute(text("SELECT 1"))
        if handled == 1:
            proxy.cut()
            with suppress(DBAPIError):
                await tx.session.execute(text("SELECT 1"))
            if queries_again:
                await tx.session.execute(text("SELECT 1"))

    async with worker(service, proxy.url) as transport:
        await send(transport, 1)
        await until_settled(transport)
        stats = await transport.stats(SUB)
    assert (handled, stats.dead, stats.delayed) == (2, 0, 0)


async def waiting(url: str) -> int:
    database = Database(url, service="shop")
    async with database.reading() as connection:
        counted = await connection.scalar(select(func.count()).select_from(tables.outbox))
    await database.close()
    return counted or 0


@pytest.mark.parametrize("direction", Direction)
async def test_the_next_user_of_a_pooled_connection_gets_its_own_answers(
    proxy: Proxy, direction: Direction
) -> None:
    step = SILENT_STEPS[urlsplit(proxy.url).scheme.partition("+")[0]]
    async with asyncio.timeout(TIMEOUT_SECONDS):
        for silences in count():
            database = Database(proxy.url, service="shop")
            name = f"{direction.name}-{silences}"
            try:
                was_done = await request_after_a_cancelled_one(
                    *(proxy, 1 + silences * step, direction),
                    claim(database, name),
                    claim(database, f"after {name}"),
                )
            finally:
                await database.close()
            if was_done:
                break
    assert silences > 1
