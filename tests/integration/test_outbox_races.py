"""No message overtakes an earlier one of its key: late commits, rejected messages, failovers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any

import pytest
from pydantic_core import from_json
from sqlalchemy import delete, func, select, text, update

from eventmesh import Service
from eventmesh.clock import SystemClock
from eventmesh.contracts.message import Event
from eventmesh.errors import Unreachable
from eventmesh.persistence import notifications, outbox, tables
from eventmesh.persistence.database import Database
from eventmesh.persistence.outbox import parked
from eventmesh.runtime.declaring.settings import Settings
from eventmesh.runtime.relaying import relay, sweep, watermark
from eventmesh.runtime.relaying.relay import Relay
from eventmesh.transports.base import PublishResult
from eventmesh.transports.memory import MemoryTransport
from tests.support import units
from tests.support.units import outgoing

TIMEOUT_SECONDS = 120.0
POLL_INTERVAL = 0.01


class Happened(Event, name="shop.happened", version=1, key="key"):
    key: str
    number: int = 0


class Broker(MemoryTransport):
    """A broker that rejects some keys, and records the messages it has accepted, in order."""

    def __init__(self) -> None:
        super().__init__(SystemClock())
        self.accepted: list[tuple[str | None, int]] = []
        self.rejected: set[str | None] = set()
        self._came = asyncio.Condition()
        self.publish_called, self.may_answer = asyncio.Event(), asyncio.Event()
        self.may_answer.set()

    async def publish(self, envelopes: Any) -> PublishResult:
        self.publish_called.set()
        await self.may_answer.wait()
        rejections = {each.id: "full" for each in envelopes if each.key in self.rejected}
        for each in envelopes:
            if each.id not in rejections:
                self.accepted.append((each.key, from_json(each.data)["number"]))
        async with self._came:
            self._came.notify_all()
        return PublishResult(rejections)

    async def until(self, *wanted: tuple[str, int]) -> None:
        async with asyncio.timeout(TIMEOUT_SECONDS), self._came:
            await self._came.wait_for(lambda: set(wanted) <= set(self.accepted))

    def of(self, key: str) -> list[int]:
        return [number for each, number in self.accepted if each == key]


@pytest.fixture(autouse=True)
def fast_watermarks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let watermarks advance within a fraction of a second."""
    monkeypatch.setattr(watermark, "SHORTEST_WAIT", 0.1)
    monkeypatch.setattr(watermark, "CHECKPOINT_INTERVAL", 0.0)


@pytest.fixture
def migrated(database_url: str) -> str:
    return database_url


@pytest.fixture
def migrated_postgres(migrated_postgres_url: str) -> str:
    return migrated_postgres_url


@pytest.fixture(params=["postgres", "mariadb"])
def migrated_server(request: pytest.FixtureRequest) -> str:
    """A new database on a server, where several transactions can write at a time."""
    url: str = request.getfixturevalue(f"migrated_{request.param}_url")
    return url


def shop(url: str, *, ordered: bool = False) -> Service:
    service = Service("shop", ordered_outbox=ordered)
    service.configure(Settings(database_urls={"shop": url}))
    service.publisher(Happened)
    return service


async def publish(service: Service, key: str, *numbers: int) -> None:
    async with service.transaction() as tx:
        for number in numbers:
            tx.publish(Happened(key=key, number=number))


@asynccontextmanager
async def relaying(url: str, broker: Broker) -> AsyncIterator[None]:
    """Run a relay with its own database connection, as in a separate process."""
    database = Database(url, service="shop")
    stop = asyncio.Event()
    running = Relay("shop", database, broker, SystemClock(), lease_time=30.0)
    task = asyncio.ensure_future(running.run(stop))
    try:
        yield
    finally:
        stop.set()
        await task
        await database.close()


@asynccontextmanager
async def stepping(url: str, broker: Broker) -> AsyncIterator[Relay]:
    """A relay that does not run by itself: the test calls its rounds and sweeps."""
    database = Database(url, service="shop")
    try:
        yield Relay("shop", database, broker, SystemClock(), lease_time=30.0)
    finally:
        await database.close()


async def until_behind_watermark(each: Relay, service: Service) -> None:
    """Publish messages of another key until the watermark has passed all existing messages."""
    async with asyncio.timeout(TIMEOUT_SECONDS):
        await publish(service, "other", 0)
        await each.round()
        async with (await service.database()).reading() as connection:
            last, _ = await connection.run_sync(outbox.ahead, outbox.START, SystemClock().now())
        while last == 0 or watermark_of(each) < last:
            await publish(service, "other", 0)
            await each.round()


def watermark_of(each: Relay) -> int:
    return each.watermark.position.seq


async def rounds_until(each: Relay, broker: Broker, key: str, number: int) -> None:
    async with asyncio.timeout(TIMEOUT_SECONDS):
        while number not in broker.of(key):
            if not (await each.round()).confirmed:
                await each.sweep.once()


class Writer:
    """A transaction that has inserted its messages, and commits when the test calls `commit`."""

    def __init__(self, service: Service, key: str, *numbers: int) -> None:
        self._stored, self._go = asyncio.Event(), asyncio.Event()
        self._task = asyncio.ensure_future(self._write(service, key, numbers))

    async def _write(self, service: Service, key: str, numbers: tuple[int, ...]) -> None:
        messages = outgoing(service, *(Happened(key=key, number=number) for number in numbers))
        async with (await service.database()).connection() as connection:
            await units.store(connection, messages, ordered=True)
            self._stored.set()
            await self._go.wait()

    async def stored(self) -> None:
        await self._stored.wait()

    async def commit(self) -> None:
        self._go.set()
        await self._task


async def publish_others(service: Service, broker: Broker, seconds: float = 1.0) -> None:
    """Publish messages of another key for some time, so that watermarks advance."""
    loop = asyncio.get_running_loop()
    end, number = loop.time() + seconds, 0
    while loop.time() < end:
        number += 1
        await publish(service, "other", number)
        await broker.until(("other", number))


@contextmanager
def rejecting(broker: Broker, key: str) -> Iterator[None]:
    broker.rejected.add(key)
    yield
    broker.rejected.discard(key)


class TestLateCommits:
    async def test_in_an_ordered_outbox_a_later_writer_of_the_key_does_not_overtake_a_slow_commit(
        self, migrated_postgres: str
    ) -> None:
        broker = Broker()
        async with (
            relaying(migrated_postgres, broker),
            shop(migrated_postgres, ordered=True) as service,
        ):
            first = Writer(service, "k", 1)
            await first.stored()
            second = asyncio.ensure_future(publish(service, "k", 2))
            await publish_others(service, broker)
            await first.commit()
            await second
            await broker.until(("k", 1), ("k", 2))
        assert broker.of("k") == [1, 2]

    async def test_a_commit_between_two_distant_rounds_is_not_overtaken_by_a_later_one(
        self, migrated_server: str
    ) -> None:
        broker = Broker()
        async with stepping(migrated_server, broker) as each, shop(migrated_server) as service:
            first = Writer(service, "k", 1)
            await first.stored()
            await publish(service, "other", 1)
            await each.round()
            await first.commit()
            # Time alone must not advance the watermark.
            await asyncio.sleep(2 * watermark.SHORTEST_WAIT)
            await publish(service, "k", 2)
            await rounds_until(each, broker, "k", 1)
        assert broker.of("k") == [1, 2]

    async def test_a_large_late_commit_is_relayed_in_order_without_waiting_for_a_sweep(
        self, migrated_server: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sweep, "SWEEP_INTERVAL", TIMEOUT_SECONDS)
        broker, numbers = Broker(), range(1, 3_001)
        async with relaying(migrated_server, broker), shop(migrated_server) as service:
            late = Writer(service, "k", *numbers)
            await late.stored()
            await publish_others(service, broker)
            await late.commit()
            await publish(service, "k", 3_001)
            await broker.until(("k", 3_000), ("k", 3_001))
        assert broker.of("k") == [*numbers, 3_001]


class TestBlockedKeys:
    @pytest.mark.parametrize(
        "other_rejected", [(), ("rejected",)], ids=["alone", "other_rejected another"]
    )
    async def test_messages_behind_a_rejected_one_keep_their_order_once_it_is_accepted(
        self, migrated: str, monkeypatch: pytest.MonkeyPatch, other_rejected: tuple[str, ...]
    ) -> None:
        monkeypatch.setattr(relay, "pause_after_rejections", lambda _attempts: 1.0)
        monkeypatch.setattr(relay, "PARK_AFTER", 1_000)
        broker = Broker()
        broker.rejected.update(other_rejected)
        async with stepping(migrated, broker) as each, shop(migrated) as service:
            with rejecting(broker, "k"):
                for key in ("k", *other_rejected):
                    await publish(service, key, 1)
                await each.round()
                await publish(service, "k", 2)
                await until_behind_watermark(each, service)
            last = 2
            async with asyncio.timeout(TIMEOUT_SECONDS):
                while not broker.of("k"):
                    last += 1
                    await publish(service, "k", last)
                    await each.round()
            await rounds_until(each, broker, "k", 2)
            await rounds_until(each, broker, "k", last)
        assert broker.of("k") == [*range(1, last + 1)]

    async def test_messages_behind_a_parked_one_keep_their_order_once_it_is_skipped(
        self, migrated: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(relay, "PARK_AFTER", 1)
        broker = Broker()
        async with stepping(migrated, broker) as each, shop(migrated) as service:
            with rejecting(broker, "k"):
                await publish(service, "k", 1)
                await each.round()
            await publish(service, "k", 2, 3)
            await until_behind_watermark(each, service)
            async with (await service.database()).connection() as connection:
                assert await parked.skip(connection, [1]) == [1]
            await publish(service, "k", 4)
            await rounds_until(each, broker, "k", 3)
            await rounds_until(each, broker, "k", 4)
        assert broker.of("k") == [2, 3, 4]

    async def test_messages_behind_one_that_a_stalled_relay_published_keep_their_order(
        self, migrated: str
    ) -> None:
        """The relay stalled after publishing, until lease expiry."""
        slow, broker = Broker(), Broker()
        slow.may_answer.clear()
        async with (
            stepping(migrated, slow) as first,
            stepping(migrated, broker) as second,
            shop(migrated) as service,
        ):
            await publish(service, "k", 1)
            stalled = asyncio.ensure_future(first.round())
            async with asyncio.timeout(TIMEOUT_SECONDS):
                await slow.publish_called.wait()
            await expire_leases(service)
            with rejecting(broker, "k"):
                await second.round()
                await publish(service, "k", 2)
                await until_behind_watermark(second, service)
            slow.may_answer.set()
            await stalled
            await publish(service, "k", 3)
            await rounds_until(second, broker, "k", 2)
            await rounds_until(second, broker, "k", 3)
        assert slow.of("k") == [1]
        assert broker.of("k") == [2, 3]


async def expire_leases(service: Service) -> None:
    """Let all leases expire now."""
    async with (await service.database()).connection() as connection:
        await connection.execute(update(tables.lease).values(owner=None, expires_at=None))
        await connection.execute(delete(tables.relay))


RESTART = text("ALTER SEQUENCE eventmesh_outbox_seq_seq RESTART WITH 1")
TERMINATE = text(
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
    " WHERE datname = current_database() AND pid <> pg_backend_pid()"
)


async def fail_over(service: Service) -> None:
    """Simulate a failover to a replica that has neither the last rows nor their sequence numbers,
    so that it assigns these numbers again, from the first connection on."""
    database = await service.database()
    async with asyncio.timeout(TIMEOUT_SECONDS):
        while await rows_left(database):  # noqa: ASYNC110  # the condition is in a database
            await asyncio.sleep(POLL_INTERVAL)
    # Two transactions: the sequence must be reset before anyone can reconnect.
    for statement in (RESTART, TERMINATE):
        async with database.connection() as connection:
            await connection.execute(statement)


async def rows_left(database: Database) -> int:
    async with database.reading() as connection:
        return await connection.scalar(select(func.count()).select_from(tables.outbox)) or 0


async def publish_with_retries(service: Service, key: str, number: int) -> None:
    async with asyncio.timeout(TIMEOUT_SECONDS):
        while True:
            with suppress(Unreachable):
                return await publish(service, key, number)


async def test_a_failover_that_assigns_sequence_numbers_again_loses_and_reorders_no_message(
    migrated_postgres: str,
) -> None:
    broker = Broker()
    async with relaying(migrated_postgres, broker), shop(migrated_postgres) as service:
        await publish(service, "k", *range(1, 101))
        await publish_others(service, broker)
        await fail_over(service)
        for number in range(101, 301):
            await publish_with_retries(service, "k", number)
        await broker.until(*(("k", number) for number in range(101, 301)))
    assert broker.of("k") == list(range(1, 301))


async def use_lost_connection(database: Database) -> None:
    """Use a lost connection, as a handler may."""
    with pytest.raises(Unreachable):
        async with database.connection() as connection:
            await connection.execute(text("SELECT 1"))


async def listen(database: Database) -> None:
    """Listen until NOTIFY arrives, through every lost connection."""
    notified = asyncio.Event()

    async def try_again() -> None:
        while True:
            with suppress(Unreachable):
                await notifications.listen(database, notified.set)

    listening = asyncio.ensure_future(try_again())
    try:
        async with asyncio.timeout(TIMEOUT_SECONDS):
            await notified.wait()
    finally:
        listening.cancel()
        await asyncio.wait([listening])


@pytest.mark.parametrize("notice", [use_lost_connection, listen])
async def test_a_failover_that_another_user_of_the_pool_notices_first_loses_no_message(
    migrated_postgres: str, notice: Callable[[Database], Awaitable[None]]
) -> None:
    """The relay then gets a new connection from the pool, and sees no error."""
    broker = Broker()
    async with stepping(migrated_postgres, broker) as each, shop(migrated_postgres) as service:
        await publish(service, "k", *range(1, 101))
        async with asyncio.timeout(TIMEOUT_SECONDS):
            while watermark_of(each) < 100:
                await publish(service, "other", 0)
                await each.round()
        await fail_over(service)
        await notice(each._database)
        for number in range(101, watermark_of(each) + 150):
            await publish_with_retries(service, "k", number)
        while (await each.round()).confirmed:
            pass
    assert broker.of("k") == list(range(1, len(broker.of("k")) + 1))
    assert len(broker.of("k")) > 200
