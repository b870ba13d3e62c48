"""What the worker promises a handler, over the memory transport: on SQLite and PostgreSQL, and on
MariaDB where it concerns the effects of messages.

The testing kit's mesh is not used: nearly half of the tests drive one part of a worker alone, such
as a batch, a relay, or a broker that rejects, on the same service and database as the others. A
mesh runs whole workers only, so that these would need a second harness.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from sqlalchemy import func, select, text
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from eventmesh import (
    Command,
    Event,
    Reject,
    Retry,
    Saga,
    Service,
    Settings,
    Transaction,
    constant,
)
from eventmesh.clock import SystemClock
from eventmesh.errors import (
    DrainTimeout,
    MessageTooLarge,
    UndeclaredMessage,
    Unreachable,
    UsageError,
)
from eventmesh.persistence import sagas, starts, tables
from eventmesh.persistence.database import AsyncSession
from eventmesh.persistence.tables import inbox, start
from eventmesh.persistence.unit_of_work import UnitOfWork
from eventmesh.runtime.consuming.batch import BatchRunner
from eventmesh.runtime.consuming.lanes import lane_of
from eventmesh.runtime.consuming.poison import CAUTIOUS_AFTER, FIRST_DELIVERIES_TO_LEAVE
from eventmesh.runtime.consuming.worker import Worker
from eventmesh.runtime.declaring.handler import bind
from eventmesh.runtime.relaying.relay import Relay
from eventmesh.runtime.vitals import SubscriptionVitals
from eventmesh.testing.clock import ManualClock
from eventmesh.transports.base import (
    ALL_CONFIRMED,
    Consumer,
    DeadLetter,
    Delivery,
    PublishResult,
    Subscription,
    Transport,
    publish_or_raise,
)
from eventmesh.transports.memory import MemoryTransport
from eventmesh.transports.outcome import DONE, Dead, Outcome, RetryAfter
from eventmesh.wire.envelope import Envelope, seal
from tests.integration.conftest import HOLD_TIME
from tests.support.moved_time import MovedTime

SOON = Retry(attempts=3, backoff=constant("10ms"))

EVERYWHERE = pytest.mark.parametrize(
    "database_url", ["sqlite", "postgres", "mariadb"], indirect=True
)


class Base(DeclarativeBase):
    pass


class Effect(Base):
    """An effect that only the inbox prevents from happening twice."""

    __tablename__ = "effects"
    id: Mapped[int] = mapped_column(primary_key=True)
    number: Mapped[int]


class Do(Command, name="shop.do", version=1, key="key"):
    number: int
    key: str = "k"


class Done(Event, name="shop.done", version=1, key="key"):
    number: int
    key: str = "k"


class Heard(Event, name="shop.heard", version=1):
    number: int


class MovableClock(SystemClock):
    """The machine's clock, moved forward by the test."""

    def __init__(self) -> None:
        self.ahead = timedelta()

    def now(self) -> datetime:
        return super().now() + self.ahead


@dataclass
class Mesh:
    """One service over one memory broker, with its database."""

    service: Service
    settings: Settings
    transport: Transport
    clock: MovableClock

    async def send(self, *numbers: int, key: str = "k") -> list[Envelope]:
        envelopes = [
            seal(Do(number=number, key=key), source="test", clock=self.clock) for number in numbers
        ]
        await publish_or_raise(self.transport, envelopes)
        return envelopes

    async def effects(self) -> list[int]:
        database = await self.service.database()
        async with database.reading() as connection:
            return list(await connection.scalars(select(Effect.number).order_by(Effect.id)))

    async def dead(self, name: str) -> Sequence[DeadLetter]:
        return await self.transport.dead_letters(Subscription(name, ()), limit=100)

    async def outbox_is_empty(self) -> bool:
        database = await self.service.database()
        async with database.reading() as connection:
            query = select(func.count()).select_from(tables.outbox)
            return await connection.scalar(query) == 0

    @asynccontextmanager
    async def worker(self) -> AsyncIterator[asyncio.Event]:
        """A worker that runs during the body, and is drained after it."""
        stop = asyncio.Event()
        worker = Worker([self.service], self.transport, self.settings, self.clock)
        running = asyncio.ensure_future(worker.run(stop))
        try:
            yield stop
        finally:
            stop.set()
            await asyncio.wait_for(running, 60)


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Return once the condition holds. While its database is unreachable it does not hold yet."""

    async def holds() -> bool:
        try:
            return await condition()
        except Unreachable:
            return False

    async with asyncio.timeout(60):
        while not await holds():  # noqa: ASYNC110  # the condition is in a database
            await asyncio.sleep(0.01)


@pytest.fixture
async def mesh(database_url: str, tmp_path: Path) -> AsyncIterator[Mesh]:
    """A service with its tables created, whose handlers the test declares."""
    from eventmesh.persistence import migration
    from eventmesh.persistence.database import Database

    database = Database(database_url, service="shop")
    await migration.upgrade(database, Base.metadata)
    await database.close()
    settings = Settings(
        database_urls={"shop": database_url}, schemas=tmp_path / "schemas", lease_time=1.0
    )
    service, clock = Service("shop", metadata=Base.metadata), MovableClock()
    service.configure(settings)
    yield Mesh(service, settings, MemoryTransport(clock), clock)
    await service.close()


def effect(mesh: Mesh, number: int) -> Callable[[], Awaitable[bool]]:
    async def there() -> bool:
        return number in await mesh.effects()

    return there


async def at_rest(mesh: Mesh, name: str) -> bool:
    """Whether a subscription has no message left to handle."""
    stats = await mesh.transport.stats(Subscription(name, ()))
    return stats.ready == stats.delayed == stats.in_flight == 0


def effects(mesh: Mesh, count: int) -> Callable[[], Awaitable[bool]]:
    async def there() -> bool:
        return len(await mesh.effects()) >= count

    return there


@EVERYWHERE
async def test_a_message_that_is_delivered_several_times_takes_effect_once(mesh: Mesh) -> None:
    @mesh.service.subscriber(Do)
    async def do(command: Do, tx: Transaction) -> None:
        tx.session.add(Effect(number=command.number))

    async with mesh.worker():
        sent = await mesh.send(*range(20))
        await publish_or_raise(mesh.transport, [*sent, *sent])
        await mesh.send(99)
        await until(effect(mesh, 99))
    assert await mesh.effects() == [*range(20), 99]


@EVERYWHERE
async def test_messages_that_a_handler_returns_or_publishes_arrive_after_its_commit(
    mesh: Mesh,
) -> None:
    heard: list[tuple[str, int]] = []
    mesh.service.publisher(Heard)

    @mesh.service.subscriber(Do)
    async def do(command: Do, tx: Transaction) -> Done:
        tx.publish(Heard(number=command.number))
        return Done(number=command.number)

    @mesh.service.subscriber(Done, Heard)
    async def hear(event: Done | Heard, envelope: Envelope) -> None:
        heard.append((envelope.name, event.number))

    async def all_heard() -> bool:
        return len(heard) >= 20

    async with mesh.worker():
        await mesh.send(*range(10))
        await until(all_heard)
        await until(mesh.outbox_is_empty)
    assert [number for name, number in heard if name == "shop.done"] == list(range(10))
    assert sorted(heard) == sorted(
        (name, number) for name in ("shop.done", "shop.heard") for number in range(10)
    )


async def what_follows_from(cause: Envelope, mesh: Mesh) -> Envelope:
    """The message that the handler of this one publishes, as its own subscriber gets it."""
    seen: list[Envelope] = []

    @mesh.service.subscriber(Do)
    async def do(command: Do) -> Done:
        return Done(number=command.number)

    @mesh.service.subscriber(Done)
    async def see(event: Done, envelope: Envelope) -> None:
        seen.append(envelope)

    async def one_seen() -> bool:
        return bool(seen)

    async with mesh.worker():
        await publish_or_raise(mesh.transport, [cause])
        await until(one_seen)
        await until(mesh.outbox_is_empty)
    return seen[0]


async def test_a_published_message_carries_the_correlation_id_and_the_id_of_its_cause(
    mesh: Mesh,
) -> None:
    cause = seal(Do(number=1), source="test", clock=mesh.clock)
    effect = await what_follows_from(cause, mesh)
    assert effect.correlation_id == cause.id
    assert effect.attributes["causationid"] == cause.id
    assert effect.attributes["source"] == "/shop"


@EVERYWHERE
async def test_what_a_message_with_odd_attributes_causes_is_published(mesh: Mesh) -> None:
    """PostgreSQL stores JSON with a NUL, and fails on reading it."""
    sent = seal(Do(number=1), source="test", clock=mesh.clock)
    odd = {"id": "a\0", "correlationid": "b\0\ud800", "traceparent": "c\0", "partitionkey": "d\0"}
    effect = await what_follows_from(Envelope({**sent.attributes, **odd}, sent.data), mesh)
    assert effect.attributes["causationid"] == "a\\x00"
    assert effect.correlation_id == "b\\x00\\ud800"
    assert effect.attributes["traceparent"] == "c\\x00"


@EVERYWHERE
async def test_only_the_failing_message_of_a_group_is_retried(mesh: Mesh) -> None:
    tries: list[int] = []

    @mesh.service.subscriber(Do, retry=SOON)
    async def do(command: Do, session: AsyncSession) -> Done:
        tries.append(command.number)
        session.add(Effect(number=command.number))
        if command.number == 37 and tries.count(37) < 3:
            raise ValueError("not yet")
        return Done(number=command.number)

    async with mesh.worker():
        await mesh.send(*range(60))
        await until(effects(mesh, 60))
        await until(mesh.outbox_is_empty)
    assert sorted(await mesh.effects()) == list(range(60))
    assert tries.count(37) == 3


@EVERYWHERE
async def test_a_message_that_keeps_failing_is_dead_lettered_and_has_no_effect(
    mesh: Mesh,
) -> None:
    @mesh.service.subscriber(Do, retry=SOON)
    async def do(command: Do, tx: Transaction) -> Done:
        tx.session.add(Effect(number=command.number))
        await tx.session.flush()
        if command.number == 1:
            raise ValueError("never")
        return Done(number=command.number)

    async def dead() -> bool:
        return bool(await mesh.dead("shop.do"))

    async with mesh.worker():
        [doomed, _] = await mesh.send(1, 2)
        await until(dead)
        await until(effect(mesh, 2))
    [letter] = await mesh.dead("shop.do")
    assert letter.envelope == doomed
    assert letter.attempts == 3
    assert letter.reason == "failed 3 times: ValueError: never"
    assert "raise ValueError" in letter.error
    assert await mesh.effects() == [2]


async def test_a_replayed_dead_letter_takes_effect_once_the_handler_is_fixed(mesh: Mesh) -> None:
    broken = True

    @mesh.service.subscriber(Do)
    async def do(command: Do, tx: Transaction) -> None:
        tx.session.add(Effect(number=command.number))
        if broken:
            raise Reject("closed today")

    async def dead() -> bool:
        return bool(await mesh.dead("shop.do"))

    async with mesh.worker():
        await mesh.send(1)
        await until(dead)
        [letter] = await mesh.dead("shop.do")
        assert (letter.reason, letter.attempts) == ("closed today", 1)
        broken = False
        await mesh.transport.replay(Subscription("shop.do", ()), [letter.id])
        await until(effect(mesh, 1))
    assert await mesh.effects() == [1]


async def test_publishing_an_undeclared_message_rolls_the_handler_back_and_says_why(
    mesh: Mesh,
) -> None:
    @mesh.service.subscriber(Do)
    async def do(command: Do, tx: Transaction) -> None:
        tx.session.add(Effect(number=command.number))
        tx.publish(Heard(number=command.number))

    async def dead() -> bool:
        return bool(await mesh.dead("shop.do"))

    async with mesh.worker():
        await mesh.send(1)
        await until(dead)
    [letter] = await mesh.dead("shop.do")
    assert "without declaring it" in letter.reason
    assert await mesh.effects() == []
    assert await mesh.outbox_is_empty()


@EVERYWHERE
async def test_isolated_messages_do_not_share_a_transaction(mesh: Mesh) -> None:
    transactions: list[object] = []

    @mesh.service.subscriber(Do, isolated=True)
    async def do(command: Do, session: AsyncSession) -> None:
        transactions.append(session.sync_session.get_transaction())
        session.add(Effect(number=command.number))

    async with mesh.worker():
        await mesh.send(*range(12))
        await until(effects(mesh, 12))
    assert len(set(map(id, transactions))) == 12


@EVERYWHERE
async def test_a_slow_handler_does_not_keep_a_transaction_open_for_a_whole_group(
    mesh: Mesh,
) -> None:
    """A group begins no further message after its time is over, and unclaims the rest."""
    mesh.settings = mesh.settings.model_copy(update={"group_time": 0.03})
    await mesh.service.close()
    mesh.service.configure(mesh.settings)
    slow = False

    @mesh.service.subscriber(Do)
    async def do(command: Do, tx: Transaction) -> None:
        if slow:
            await asyncio.sleep(0.02)
        tx.session.add(Effect(number=command.number))

    async with mesh.worker():
        await mesh.send(*range(40))
        await until(effects(mesh, 40))
        slow = True
        await mesh.send(*range(40, 60))
        await until(effects(mesh, 60))
    assert await mesh.effects() == list(range(60))


@EVERYWHERE
async def test_a_transaction_outside_a_handler_commits_state_and_messages_together(
    mesh: Mesh,
) -> None:
    heard: list[int] = []
    done = mesh.service.publisher(Done)

    @mesh.service.subscriber(Done)
    async def hear(event: Done) -> None:
        heard.append(event.number)

    with pytest.raises(ZeroDivisionError):  # noqa: PT012  # the error comes after the work
        async with mesh.service.transaction() as tx:
            tx.session.add(Effect(number=1))
            tx.publish(Done(number=1))
            _ = 1 / 0
    assert await mesh.effects() == []
    assert await mesh.outbox_is_empty()
    async with mesh.service.transaction() as tx:
        tx.session.add(Effect(number=2))
        tx.publish(Done(number=2))
    await done.publish(Done(number=3))

    async def both() -> bool:
        return len(heard) == 2

    async with mesh.worker():
        await until(both)
    assert heard == [2, 3]


@EVERYWHERE
async def test_a_delayed_message_is_not_delivered_before_its_time(mesh: Mesh) -> None:
    arrived: dict[int, float] = {}

    @mesh.service.subscriber(Done)
    async def hear(event: Done) -> None:
        arrived[event.number] = mesh.clock.monotonic()

    done = mesh.service.publisher(Done)

    async with mesh.worker():
        asked_at = mesh.clock.monotonic()
        await done.publish(Done(number=1), delay="1h")
        await done.publish(Done(number=2), delay="3s")
        await done.publish(Done(number=3))
        await until_true(lambda: {2, 3} <= arrived.keys())
    assert arrived.keys() == {2, 3}
    assert arrived[2] - asked_at >= 3.0


async def test_publishing_a_too_large_message_raises_at_once_and_stores_nothing(mesh: Mesh) -> None:
    class Big(Event, name="shop.big", version=1):
        text: str

    big = mesh.service.publisher(Big)
    with pytest.raises(MessageTooLarge, match="EVENTMESH_MAX_MESSAGE_BYTES"):
        await big.publish(Big(text="x" * 5_000_000))
    assert await mesh.outbox_is_empty()


class Grouped:
    """Runs messages of the service's only handler in one group, however slow the machine is."""

    def __init__(self, mesh: Mesh) -> None:
        mesh.service.configure(mesh.settings.model_copy(update={"group_time": 1_000.0}))
        [handler] = mesh.service.handlers.values()
        vitals = SubscriptionVitals("shop", handler.subscription, mesh.clock)
        self.runner = BatchRunner(mesh.service, handler, vitals)
        self._clock = mesh.clock

    async def run(self, *numbers: int, attempts: int = 1) -> dict[int, Outcome]:
        """The outcomes of these messages. Others are handled first, so that the group size
        grows."""
        warming = itertools.count(WARMING)
        while self.runner.size < len(numbers):
            await self._run([next(warming) for _ in range(self.runner.size)], 1)
        return await self._run(numbers, attempts)

    async def _run(self, numbers: Sequence[int], attempts: int) -> dict[int, Outcome]:
        deliveries = {
            Delivery(seal(Do(number=number), source="x", clock=self._clock), attempts): number
            for number in numbers
        }
        settled = await self.runner.run(list(deliveries))
        return {deliveries[delivery]: outcome for delivery, outcome in settled}


WARMING = 1_000


@EVERYWHERE
async def test_the_journal_tells_where_a_message_came_from_its_attempt_and_a_slow_handlers_time(
    mesh: Mesh,
) -> None:
    mesh.service.clock = clock = ManualClock()

    @mesh.service.subscriber(Do)
    async def do(command: Do, tx: Transaction) -> None:
        if command.number == 7:
            await clock.advance(2.5)

    [handler] = mesh.service.handlers.values()
    vitals = SubscriptionVitals("shop", handler.subscription, mesh.clock)
    runner = BatchRunner(mesh.service, handler, vitals)
    cause = seal(Do(number=1), source="x", clock=clock)
    caused = seal(Do(number=7, key="k"), source="x", clock=clock, cause=cause)
    await runner.run([Delivery(cause), Delivery(caused, attempt=3)])
    columns = ("message_id", "name", "key", "correlation_id", "causation_id", "attempt", "took")
    database = await mesh.service.database()
    async with database.reading() as connection:
        rows = await connection.execute(select(*(tables.inbox.c[each] for each in columns)))
    first, second = sorted(rows, key=lambda row: row.attempt)
    assert first == (cause.id, "shop.do", "k", cause.id, None, 1, None)
    assert second == (caused.id, "shop.do", "k", cause.id, cause.id, 3, 2.5)


@EVERYWHERE
@pytest.mark.parametrize(("error", "times"), [(ValueError, 3), (Reject, 1)])
async def test_a_handler_that_always_fails_is_called_as_often_as_its_policy_says(
    mesh: Mesh, error: type[Exception], times: int
) -> None:
    """This holds in a group too, where the handler was once called twice for each attempt."""
    calls: list[int] = []

    @mesh.service.subscriber(Do, retry=SOON)
    async def do(command: Do, tx: Transaction) -> None:
        calls.append(command.number)
        tx.session.add(Effect(number=command.number))
        if command.number == 7:
            raise error("never")

    group = Grouped(mesh)
    for attempt in range(1, times + 1):
        outcomes = await group.run(7 - attempt, 7, 7 + attempt, attempts=attempt)
        assert isinstance(outcomes.pop(7), Dead if attempt == times else RetryAfter)
        assert set(outcomes.values()) == {DONE}
    assert calls.count(7) == times
    assert 7 not in await mesh.effects()


@EVERYWHERE
async def test_a_message_is_not_blamed_for_an_error_that_anothers_rows_cause(mesh: Mesh) -> None:
    """Message 5 adds an invalid row, and the first query of message 6 is what flushes it."""

    @mesh.service.subscriber(Do, retry=Retry(attempts=1))
    async def do(command: Do, tx: Transaction) -> None:
        if command.number == 6:
            await tx.session.scalar(select(func.count()).select_from(Effect))
        tx.session.add(Effect(number=None if command.number == 5 else command.number))

    outcomes = await Grouped(mesh).run(4, 5, 6, 7)
    assert isinstance(outcomes.pop(5), Dead)
    assert outcomes == dict.fromkeys((4, 6, 7), DONE)
    assert [number for number in await mesh.effects() if number < WARMING] == [4, 6, 7]


async def test_a_failure_caused_by_a_message_that_was_rolled_back_is_discarded(
    mesh: Mesh,
) -> None:
    """Message 6 rejects because of the row of message 5, which fails when it runs alone."""
    calls: list[int] = []

    @mesh.service.subscriber(Do, retry=Retry(attempts=1))
    async def do(command: Do, tx: Transaction) -> None:
        calls.append(command.number)
        if command.number == 5 and calls.count(5) > 1:
            raise ValueError("not this time")
        five = select(Effect).where(Effect.number == 5)
        if command.number == 6 and await tx.session.scalar(five):
            raise Reject("there is a five")
        tx.session.add(Effect(number=command.number))

    outcomes = await Grouped(mesh).run(4, 5, 6, 7)
    assert isinstance(outcomes.pop(5), Dead)
    assert outcomes == dict.fromkeys((4, 6, 7), DONE)
    assert [number for number in calls if number < WARMING] == [4, 5, 6, 4, 5, 6, 7]


async def test_a_worker_calls_a_handler_that_always_fails_as_often_as_its_policy_says(
    mesh: Mesh,
) -> None:
    calls: list[int] = []

    @mesh.service.subscriber(Do, retry=SOON)
    async def do(command: Do, tx: Transaction) -> None:
        calls.append(command.number)
        tx.session.add(Effect(number=command.number))
        if command.number == 37:
            raise ValueError("never")

    await mesh.transport.declare([handler.subscription for handler in mesh.service.worked])
    await mesh.send(*range(60))
    async with mesh.worker():
        await until(effects(mesh, 59))
        await until(partial(at_rest, mesh, "shop.do"))
    assert calls.count(37) == 3
    assert sorted(await mesh.effects()) == [number for number in range(60) if number != 37]


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        ("done", "it returned str"),
        ({"number": 1}, "it returned dict"),
        (5, "it returned int"),
        (["done", Done(number=1)], "it returned str"),
        (Done, "it returned the class Done"),
    ],
)
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_a_handler_that_returns_no_message_dead_letters_and_the_reason_names_what_to_return(
    mesh: Mesh, returned: Any, said: str
) -> None:
    @mesh.service.subscriber(Do)
    async def do(command: Do, tx: Transaction):  # type: ignore[no-untyped-def]
        return returned

    @mesh.service.subscriber(Heard)
    async def do_plainly(event: Heard):  # type: ignore[no-untyped-def]
        return returned

    async def all_dead() -> bool:
        return bool(await mesh.dead("shop.do") and await mesh.dead("shop.do_plainly"))

    async with mesh.worker():
        await mesh.send(1)
        await publish_or_raise(
            mesh.transport, [seal(Heard(number=1), source="shop", clock=mesh.clock)]
        )
        await until(all_dead)
    for name in ("shop.do", "shop.do_plainly"):
        [letter] = await mesh.dead(name)
        assert letter.attempts == 1
        assert f"the handler misuses the API: {said}" in letter.reason
        assert "a handler returns an Event or a Command" in letter.reason
        assert "publisher(" not in letter.reason


async def test_publishing_an_undeclared_message_outside_a_handler_is_an_error(mesh: Mesh) -> None:
    with pytest.raises(UndeclaredMessage, match=r"service\.publisher\(Heard\)"):
        async with mesh.service.transaction() as tx:
            tx.publish(Heard(number=1))


async def test_a_database_connection_lost_during_a_handler_costs_no_attempt(
    postgres_url: str, tmp_path: Path
) -> None:
    """The server terminates the handler's connection; the message is handled again."""
    settings = Settings(database_urls={"shop": postgres_url}, schemas=tmp_path / "schemas")
    service, clock = Service("shop", metadata=Base.metadata), MovableClock()
    mesh = Mesh(service, settings, MemoryTransport(clock), clock)
    await prepare(service, settings)
    cut: list[int] = []

    @service.subscriber(Do, retry=Retry(attempts=1))
    async def do(command: Do, tx: Transaction) -> Done:
        tx.session.add(Effect(number=command.number))
        await tx.session.flush()
        if not cut:
            cut.append(command.number)
            await tx.session.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))
        return Done(number=command.number)

    async with mesh.worker():
        await mesh.send(*range(10))
        await until(effects(mesh, 10))
        await until(mesh.outbox_is_empty)
    assert await mesh.effects() == list(range(10))
    assert await mesh.dead("shop.do") == []
    await service.close()


async def prepare(service: Service, settings: Settings) -> None:
    """Create all tables of a service in its database."""
    from eventmesh.persistence import migration
    from eventmesh.persistence.database import Database

    service.configure(settings)
    database = Database(settings.database_url(service.name), service=service.name)
    await migration.upgrade(database, service.metadata)
    await database.close()


async def test_a_drain_finishes_the_message_that_was_begun_and_gives_back_the_rest(
    mesh: Mesh,
) -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    @mesh.service.subscriber(Do)
    async def do(command: Do, tx: Transaction) -> None:
        begun.set()
        await go_on.wait()
        tx.session.add(Effect(number=command.number))

    async with mesh.worker() as stop:
        await mesh.send(*range(5))
        await begun.wait()
        stop.set()
        go_on.set()
    done = await mesh.effects()
    left = (await mesh.transport.stats(Subscription("shop.do", ()))).ready
    assert done
    assert done == list(range(len(done)))
    assert len(done) + left == 5


async def test_a_handler_that_does_not_finish_in_time_ends_the_drain_with_an_error(
    mesh: Mesh,
) -> None:
    begun = asyncio.Event()

    @mesh.service.subscriber(Do)
    async def do(command: Do, tx: Transaction) -> None:
        begun.set()
        tx.session.add(Effect(number=command.number))
        await asyncio.Event().wait()

    settings = mesh.settings.model_copy(update={"drain_timeout": 0.1})
    await mesh.service.close()
    stop = asyncio.Event()
    worker = Worker([mesh.service], mesh.transport, settings, mesh.clock)
    running = asyncio.ensure_future(worker.run(stop))
    await mesh.send(1)
    await begun.wait()
    stop.set()
    with pytest.raises(ExceptionGroup) as caught:
        await asyncio.wait_for(running, 60)
    assert caught.group_contains(DrainTimeout)
    assert (await mesh.transport.stats(Subscription("shop.do", ()))).ready == 1


class RejectingBroker(MemoryTransport):
    """A broker that rejects some messages and, like RabbitMQ, confirms the others of a batch."""

    atomic_batches = False

    def __init__(self, clock: SystemClock, rejects: Callable[[Envelope], bool]) -> None:
        super().__init__(clock)
        self.rejects = rejects
        self.published: list[Envelope] = []

    async def publish(self, envelopes: Sequence[Envelope]) -> PublishResult:
        confirmed = [envelope for envelope in envelopes if not self.rejects(envelope)]
        self.published.extend(confirmed)
        await super().publish(confirmed)
        return PublishResult(
            {each.id: "resource limit" for each in envelopes if self.rejects(each)}
        )


async def relay_of(mesh: Mesh, transport: Transport) -> Relay:
    database = await mesh.service.database()
    database.time = MovedTime(mesh.clock)
    return Relay("shop", database, transport, mesh.clock, lease_time=30.0)


async def fill(mesh: Mesh, *messages: Done) -> None:
    mesh.service.publisher(Done)
    async with mesh.service.transaction() as tx:
        for message in messages:
            tx.publish(message)


@EVERYWHERE
@pytest.mark.usefixtures("long_holds")
async def test_a_rejected_message_blocks_only_its_own_key(mesh: Mesh) -> None:
    rejecting = True
    broker = RejectingBroker(mesh.clock, lambda e: rejecting and e.data.startswith(b'{"number":1,'))
    relay = await relay_of(mesh, broker)
    await fill(mesh, *(Done(number=n, key=key) for n in (1, 2, 3) for key in "ab"))
    rejects_first = broker.rejects
    broker.rejects = lambda e: e.key == "a" and rejects_first(e)
    await relay.round()
    assert {envelope.key for envelope in broker.published} == {"b"}
    assert len(broker.published) == 3
    rejecting = False
    assert (await relay.round()).confirmed == 0
    mesh.clock.ahead += timedelta(seconds=HOLD_TIME)
    while (await relay.round()).confirmed:
        pass
    numbers = [e.data[10:11] for e in broker.published if e.key == "a"]
    assert numbers == [b"1", b"2", b"3"]
    assert await mesh.outbox_is_empty()


@EVERYWHERE
async def test_a_message_that_the_broker_keeps_rejecting_is_parked_with_its_key(mesh: Mesh) -> None:
    broker = RejectingBroker(mesh.clock, lambda e: e.key == "a")
    relay = await relay_of(mesh, broker)
    await fill(mesh, Done(number=1, key="a"), Done(number=2, key="a"))
    for _ in range(20):
        await relay.round()
        mesh.clock.ahead += timedelta(seconds=60)
    await fill(mesh, Done(number=3, key="b"))
    await relay.round()
    assert [envelope.key for envelope in broker.published] == ["b"]
    database = await mesh.service.database()
    async with database.reading() as connection:
        parked = select(tables.outbox.c.parked, tables.outbox.c.last_error)
        rows = list(await connection.execute(parked.order_by(tables.outbox.c.seq)))
    assert rows == [(True, "resource limit"), (False, None)]


@EVERYWHERE
async def test_what_was_confirmed_before_the_broker_was_lost_is_not_published_again(
    mesh: Mesh,
) -> None:
    broker = LostAfterConfirming(mesh.clock, 3)
    relay = await relay_of(mesh, broker)
    await fill(mesh, *(Done(number=n, key=f"k{n}") for n in range(10)))
    lost = await relay.round()
    assert lost.confirmed == 3
    assert lost.lost is not None
    assert (await relay.round()).confirmed == 7
    assert len({envelope.id for envelope in broker.published}) == len(broker.published) == 10
    assert await mesh.outbox_is_empty()


class LostAfterConfirming(MemoryTransport):
    """Confirms some messages of the first batch and is then lost; the next batch it confirms."""

    atomic_batches = False

    def __init__(self, clock: SystemClock, count: int) -> None:
        super().__init__(clock)
        self.count = count
        self.published: list[Envelope] = []

    async def publish(self, envelopes: Sequence[Envelope]) -> PublishResult:
        confirmed = envelopes[: self.count] if not self.published else envelopes
        self.published.extend(confirmed)
        if len(confirmed) < len(envelopes):
            return PublishResult.interrupted(envelopes[len(confirmed) :], Unreachable("lost"))
        return ALL_CONFIRMED


@EVERYWHERE
async def test_concurrent_relays_publish_every_message_once(mesh: Mesh) -> None:
    broker = RejectingBroker(mesh.clock, lambda _: False)
    relays = [await relay_of(mesh, broker) for _ in range(3)]
    await fill(mesh, *(Done(number=n, key=f"k{n % 40}") for n in range(400)))
    stop = asyncio.Event()
    running = [asyncio.ensure_future(relay.run(stop)) for relay in relays]
    await until(mesh.outbox_is_empty)
    stop.set()
    await asyncio.gather(*running)
    assert len({envelope.id for envelope in broker.published}) == 400
    assert len(broker.published) == 400


async def test_another_relay_takes_over_the_buckets_of_a_dead_one_at_lease_expiry(
    mesh: Mesh,
) -> None:
    broker = RejectingBroker(mesh.clock, lambda _: False)
    database = await mesh.service.database()
    dead = Relay("shop", database, broker, mesh.clock, lease_time=0.5)
    await dead.round()  # it holds all leases now, and never runs again
    heir = Relay("shop", database, broker, mesh.clock, lease_time=0.5)
    await fill(mesh, *(Done(number=n) for n in range(10)))
    stop = asyncio.Event()
    running = asyncio.ensure_future(heir.run(stop))
    await until(mesh.outbox_is_empty)
    stop.set()
    await running
    assert [envelope.data[10:11] for envelope in broker.published] == [b"%d" % n for n in range(10)]


@EVERYWHERE
async def test_the_same_id_from_two_sources_is_two_messages(mesh: Mesh) -> None:
    """CloudEvents promises unique ids for each source only: a source may number its messages."""

    @mesh.service.subscriber(Do)
    async def do(command: Do, tx: Transaction) -> None:
        tx.session.add(Effect(number=command.number))

    def numbered(source: str, number: int) -> Envelope:
        envelope = seal(Do(number=number), source=source, clock=mesh.clock)
        return Envelope({**envelope.attributes, "id": "1"}, envelope.data)

    async with mesh.worker():
        await publish_or_raise(
            mesh.transport, [numbered("a", 1), numbered("b", 2), numbered("a", 1)]
        )
        await mesh.send(99)
        await until(effect(mesh, 99))
    assert await mesh.effects() == [1, 2, 99]


@EVERYWHERE
async def test_an_error_that_a_handler_swallows_never_rolls_a_group_back_silently(
    mesh: Mesh,
) -> None:
    """PostgreSQL then answers COMMIT with a rollback and raises no error."""

    @mesh.service.subscriber(Do, retry=SOON)
    async def do(command: Do, tx: Transaction) -> None:
        tx.session.add(Effect(number=command.number))
        await tx.session.flush()
        if command.number == 5:
            with suppress(DBAPIError):
                await tx.session.execute(text("INSERT INTO effects (id, number) VALUES (1, NULL)"))

    async def all_settled() -> bool:
        dead = len(await mesh.dead("shop.do"))
        return dead + len(await mesh.effects()) >= 12

    async with mesh.worker():
        await mesh.send(*range(12))
        await until(all_settled)
    dead = [letter.envelope.data[10:11] for letter in await mesh.dead("shop.do")]
    handled = await mesh.effects()
    assert sorted([*handled, *map(int, dead)]) == list(range(12))
    assert set(range(12)) - set(handled) <= {5}


@pytest.mark.parametrize("call", ["commit", "rollback", "close"])
async def test_a_handler_cannot_end_the_transaction_that_it_shares(mesh: Mesh, call: str) -> None:
    @mesh.service.subscriber(Do)
    async def do(command: Do, tx: Transaction) -> Done:
        tx.session.add(Effect(number=command.number))
        if command.number == 5:
            await getattr(tx.session, call)()
        return Done(number=command.number)

    async with mesh.worker():
        await mesh.send(*range(12))
        await until(effects(mesh, 11))
        await until(mesh.outbox_is_empty)
    [letter] = await mesh.dead("shop.do")
    assert f"tx.session.{call}() cannot be called by a handler" in letter.reason
    assert await mesh.effects() == [number for number in range(12) if number != 5]


@EVERYWHERE
async def test_a_failure_inside_a_savepoint_does_not_fail_the_handler(mesh: Mesh) -> None:
    @mesh.service.subscriber(Do)
    async def do(command: Do, tx: Transaction) -> None:
        tx.session.add(Effect(number=command.number))
        with suppress(DBAPIError):
            async with tx.session.begin_nested():
                await tx.session.execute(text("INSERT INTO effects (id, number) VALUES (1, NULL)"))

    async with mesh.worker():
        await mesh.send(*range(5))
        await until(effects(mesh, 5))
    assert await mesh.effects() == list(range(5))
    assert await mesh.dead("shop.do") == []


@pytest.mark.parametrize("database_url", ["postgres", "mariadb"], indirect=True)
async def test_a_locked_row_is_read_again_within_a_group(database_url: str, tmp_path: Path) -> None:
    """Another process changes the row between two messages of a group, while the identity map still
    has the old one."""
    settings = Settings(
        database_urls={"shop": database_url}, schemas=tmp_path / "s", group_time=10.0
    )
    service, clock = Service("shop", metadata=Base.metadata), MovableClock()
    mesh = Mesh(service, settings, MemoryTransport(clock), clock)
    await prepare(service, settings)
    grown, kept = False, []

    @service.subscriber(Do)
    async def do(command: Do, tx: Transaction) -> None:
        locked = select(Effect).where(Effect.id == 1).with_for_update()
        if not grown:
            return
        if command.number == 100:
            kept.append(await tx.session.get(Effect, 1))  # a reference keeps it in the identity map
            database = await service.database()
            async with database.connection() as other:
                await other.execute(text("UPDATE effects SET number = 1000 WHERE id = 1"))
            return
        row = (await tx.session.scalars(locked)).one()
        row.number += 90

    database = await service.database()
    async with database.connection() as connection:
        await connection.execute(text("INSERT INTO effects (id, number) VALUES (1, 0)"))

    async def inboxed() -> bool:
        async with database.reading() as connection:
            return (await connection.scalar(select(func.count()).select_from(inbox))) == 66

    async with mesh.worker():
        await mesh.send(*range(64))  # until groups have more than one message
        await until_count(mesh, 64)
        grown = True
        await mesh.send(100, 101)
        await until(inboxed)
    assert await mesh.effects() == [1090]
    await service.close()


async def until_count(mesh: Mesh, count: int) -> None:
    """Return once this many messages have been handled."""
    database = await mesh.service.database()

    async def there() -> bool:
        async with database.reading() as connection:
            return (await connection.scalar(select(func.count()).select_from(inbox))) == count

    await until(there)


async def test_a_cancellation_leaked_by_a_library_does_not_end_a_subscription(mesh: Mesh) -> None:
    @mesh.service.subscriber(Do, retry=SOON)
    async def do(command: Do, tx: Transaction) -> None:
        tx.session.add(Effect(number=command.number))
        if command.number == 3:
            broken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            broken.cancel()
            await broken

    async def one_dead() -> bool:
        return len(await mesh.dead("shop.do")) == 1

    async with mesh.worker():
        await mesh.send(*range(8))
        await until(effects(mesh, 7))
        await until(one_dead)
    assert sorted(await mesh.effects()) == [0, 1, 2, 4, 5, 6, 7]


async def test_a_handler_that_cancels_its_own_task_does_not_stop_its_lane(mesh: Mesh) -> None:
    cancelled: list[int] = []

    @mesh.service.subscriber(Do, concurrency=2, retry=SOON)
    async def do(command: Do, tx: Transaction) -> None:
        if not cancelled and (task := asyncio.current_task()):
            cancelled.append(command.number)
            task.cancel()
            await asyncio.sleep(0)
        tx.session.add(Effect(number=command.number))

    async with mesh.worker():
        await mesh.send(*range(8))
        await until(effects(mesh, 8))
    assert sorted(await mesh.effects()) == list(range(8))


async def test_an_error_of_another_database_is_left_to_the_retry_policy(mesh: Mesh) -> None:
    """Only the service's own is waited for: another one may be lost for the message's fault."""
    calls: list[int] = []
    lost = OperationalError("SELECT 1", {}, Exception("cut"), connection_invalidated=True)

    @mesh.service.subscriber(Do, retry=Retry(attempts=2, backoff=constant(0)))
    async def do(command: Do, tx: Transaction) -> None:
        calls.append(command.number)
        raise lost

    async def one_dead() -> bool:
        return len(await mesh.dead("shop.do")) == 1

    async with mesh.worker():
        await mesh.send(1)
        await until(one_dead)
    [letter] = await mesh.dead("shop.do")
    assert letter.reason.startswith("failed 2 times: sqlalchemy.exc.OperationalError")
    assert calls == [1, 1]


async def test_a_session_that_is_used_after_its_handler_refuses_and_holds_no_connection(
    mesh: Mesh,
) -> None:
    """On SQLite, what it begins would lock the database of the service."""
    sessions: list[AsyncSession] = []

    @mesh.service.subscriber(Do)
    async def do(command: Do, tx: Transaction) -> None:
        sessions.append(tx.session)
        tx.session.add(Effect(number=command.number))

    async with mesh.worker():
        await mesh.send(1)
        await until(effects(mesh, 1))
        await mesh.send(2)
        await until(effects(mesh, 2))  # the first transaction has ended
        session = sessions[0]
        for _ in range(2):
            with pytest.raises(UsageError, match="used after its transaction had ended"):
                await session.execute(text("INSERT INTO effects VALUES (7)"))
        session.add(Effect(number=8))
        with pytest.raises(UsageError, match="used after its transaction had ended"):
            await session.flush()
        await mesh.send(3)
        await until(effects(mesh, 3))
    assert sorted(await mesh.effects()) == [1, 2, 3]


async def test_publishing_outside_the_handlers_own_transaction_is_an_error_at_once(
    mesh: Mesh,
) -> None:
    """It could commit without the handler, and on SQLite it would wait for the handler forever."""
    done = mesh.service.publisher(Done)

    @mesh.service.subscriber(Do)
    async def do(command: Do, tx: Transaction) -> None:
        await done.publish(Done(number=command.number))

    async def one_dead() -> bool:
        return len(await mesh.dead("shop.do")) == 1

    async with mesh.worker():
        await mesh.send(1)
        await until(one_dead)
    [letter] = await mesh.dead("shop.do")
    assert "use tx.publish" in letter.reason
    assert await mesh.outbox_is_empty()


async def test_a_handler_without_a_transaction_can_publish_in_a_new_one(mesh: Mesh) -> None:
    heard: list[int] = []
    done = mesh.service.publisher(Done)

    @mesh.service.subscriber(Do)
    async def do(command: Do) -> None:
        await done.publish(Done(number=command.number))

    @mesh.service.subscriber(Done)
    async def hear(event: Done) -> None:
        heard.append(event.number)

    async def all_heard() -> bool:
        return len(heard) == 3

    async with mesh.worker():
        await mesh.send(1, 2, 3)
        await until(all_heard)
    assert heard == [1, 2, 3]


@EVERYWHERE
async def test_only_the_poison_message_is_dead_lettered(mesh: Mesh) -> None:
    """All of these messages have a high redelivery count, as after lost workers; one is the
    cause."""

    @mesh.service.subscriber(Do)
    async def do(command: Do, tx: Transaction) -> None:
        tx.session.add(Effect(number=command.number))

    [handler] = mesh.service.handlers.values()
    vitals = SubscriptionVitals("shop", handler.subscription, mesh.clock)
    runner = BatchRunner(mesh.service, handler, vitals)
    envelopes = [seal(Do(number=number), source="test", clock=mesh.clock) for number in range(6)]
    database = await mesh.service.database()
    for _ in range(mesh.settings.max_deliveries):  # as if the process had ended after each
        async with database.connection() as connection:
            await starts.note(connection, "shop.do", envelopes[2].unique_id)
    deliveries = [Delivery(envelope, deliveries=50) for envelope in envelopes]
    settlements = await runner.run(deliveries)
    outcomes = {delivery.envelope.id: outcome for delivery, outcome in settlements}
    dead = outcomes.pop(envelopes[2].id)
    assert isinstance(dead, Dead)
    assert "may be killing its worker" in dead.reason
    assert "poison message: delivered 49 times" in dead.reason
    assert set(outcomes.values()) == {DONE}
    assert await mesh.effects() == [0, 1, 3, 4, 5]
    async with database.reading() as connection:
        assert await connection.scalar(select(func.count()).select_from(start)) == 0


async def test_only_the_poison_message_of_a_plain_handler_is_dead_lettered(mesh: Mesh) -> None:
    """The service has a database, which knows which of the redelivered messages were ever begun."""
    mesh.service.publisher(Done)
    handled: list[int] = []

    @mesh.service.subscriber(Do, retry=SOON)
    async def do(command: Do) -> None:
        handled.append(command.number)
        if command.number == 3:
            raise ValueError("no, but it comes to an end")

    [handler] = mesh.service.handlers.values()
    vitals = SubscriptionVitals("shop", handler.subscription, mesh.clock)
    runner = BatchRunner(mesh.service, handler, vitals)
    envelopes = [seal(Do(number=number), source="test", clock=mesh.clock) for number in range(6)]
    database = await mesh.service.database()
    for _ in range(mesh.settings.max_deliveries):  # as if the process had ended after each
        async with database.connection() as connection:
            await starts.note(connection, "shop.do", envelopes[2].unique_id)
    deliveries = [Delivery(envelope, deliveries=50) for envelope in envelopes]
    settlements = await runner.run(deliveries)
    outcomes = [outcome for _, outcome in settlements]
    assert isinstance(outcomes[2], Dead)
    assert isinstance(outcomes[3], RetryAfter)
    assert [outcomes[n] for n in (0, 1, 4, 5)] == [DONE] * 4
    assert handled == [0, 1, 3, 4, 5]
    async with database.reading() as connection:
        assert await connection.scalar(select(func.count()).select_from(start)) == 0


async def test_without_a_database_a_suspected_poison_message_is_fetched_alone() -> None:
    """The first consumer fetches one message at a time, as an earlier worker may have been killed;
    then as many as allowed, until a message is delivered for the third time; then one at a time."""
    clock, prefetches = SystemClock(), list[int]()
    service, settings = Service("shop"), Settings()
    handled: list[int] = []

    class Redelivering(MemoryTransport):
        """Reports that message 99 was delivered three times."""

        @asynccontextmanager
        async def consume(
            self, subscription: Subscription, *, prefetch: int
        ) -> AsyncIterator[Consumer]:
            prefetches.append(prefetch)
            async with super().consume(subscription, prefetch=prefetch) as consumer:
                receive = consumer.receive

                async def receive_with_counts(limit: int) -> Sequence[Delivery]:
                    return [
                        replace(each, deliveries=CAUTIOUS_AFTER + 1)
                        if b'"number":99' in each.envelope.data
                        else each
                        for each in await receive(limit)
                    ]

                consumer.receive = receive_with_counts  # type: ignore[method-assign]
                yield consumer

    @service.subscriber(Do, name="do")
    async def do(command: Do) -> None:
        handled.append(command.number)

    mesh = Mesh(service, settings, Redelivering(clock), MovableClock())
    async with mesh.worker():
        await mesh.send(*range(FIRST_DELIVERIES_TO_LEAVE))
        await until_true(lambda: len(prefetches) == 2)
        await mesh.send(99)
        await until_true(lambda: 99 in handled)
    assert prefetches == [1, settings.prefetch, 1]


async def test_a_suspected_message_whose_handler_raises_is_not_a_poison_message(mesh: Mesh) -> None:
    @mesh.service.subscriber(Do, retry=SOON)
    async def do(command: Do, tx: Transaction) -> None:
        raise ValueError("no, but it comes to an end")

    [handler] = mesh.service.handlers.values()
    vitals = SubscriptionVitals("shop", handler.subscription, mesh.clock)
    runner = BatchRunner(mesh.service, handler, vitals)
    envelope = seal(Do(number=1), source="test", clock=mesh.clock)
    for _ in range(20):
        [(_, outcome)] = await runner.run([Delivery(envelope, deliveries=50)])
        assert isinstance(outcome, RetryAfter)


@EVERYWHERE
async def test_a_suspect_does_not_become_poison_by_losses_of_the_database_alone(
    mesh: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each loss rolls the handling back, but no process has died: it is one start, which ends."""
    started: list[int] = []
    losses: list[str] = []
    commit = UnitOfWork.commit

    async def lose_the_database_at_first(unit: UnitOfWork) -> None:
        if len(losses) < 2 * mesh.settings.max_deliveries:
            raise Unreachable("the database is restarting")
        await commit(unit)

    async def wait_for_database(error: Unreachable) -> None:
        losses.append(str(error))
        async with (await mesh.service.database()).reading() as connection:
            started.append(await connection.scalar(select(start.c.starts)) or 0)

    @mesh.service.subscriber(Do)
    async def do(command: Do, tx: Transaction) -> None:
        tx.session.add(Effect(number=command.number))

    monkeypatch.setattr(UnitOfWork, "commit", lose_the_database_at_first)
    [handler] = mesh.service.handlers.values()
    vitals = SubscriptionVitals("shop", handler.subscription, mesh.clock)
    runner = BatchRunner(mesh.service, handler, vitals, wait_for_database=wait_for_database)
    envelope = seal(Do(number=1), source="test", clock=mesh.clock)
    [(_, outcome)] = await runner.run([Delivery(envelope, deliveries=50)])
    assert outcome == DONE
    assert set(losses) == {"the database is restarting"}
    assert set(started) == {1}
    assert await mesh.effects() == [1]
    async with (await mesh.service.database()).reading() as connection:
        assert await connection.scalar(select(func.count()).select_from(start)) == 0


async def test_a_worker_handles_one_suspect_at_a_time_so_that_its_death_accuses_one(
    mesh: Mesh,
) -> None:
    running: set[str] = set()
    together: set[int] = set()

    async def run(name: str) -> None:
        running.add(name)
        await asyncio.sleep(0.01)
        together.add(len(running))
        running.remove(name)

    @mesh.service.subscriber(Do)
    async def do(command: Do, tx: Transaction) -> None:
        await run(f"do {command.number}")

    @mesh.service.subscriber(Done)
    async def tell(event: Done) -> None:
        await run(f"tell {event.number}")

    suspects = asyncio.Lock()
    runners = [
        BatchRunner(
            mesh.service,
            handler,
            SubscriptionVitals("shop", handler.subscription, mesh.clock),
            suspects=suspects,
        )
        for handler in mesh.service.handlers.values()
    ]
    batches = [
        [
            Delivery(seal(model(number=number), source="shop", clock=mesh.clock), deliveries=4)
            for number in range(3)
        ]
        for model in (Do, Done)
    ]
    results = await asyncio.gather(
        *(runner.run(batch) for runner, batch in zip(runners, batches, strict=True))
    )
    assert [outcome for settled in results for _, outcome in settled] == [DONE] * 6
    assert together == {1}


async def test_messages_wait_while_the_database_is_unreachable_and_are_delivered_once(
    postgres_url: str, tmp_path: Path
) -> None:
    """However often their group is retried meanwhile, the broker delivers them once."""
    settings = Settings(database_urls={"shop": postgres_url}, schemas=tmp_path / "schemas")
    service, clock = Service("shop", metadata=Base.metadata), MovableClock()
    mesh = Mesh(service, settings, MemoryTransport(clock), clock)
    await prepare(service, settings)
    deliveries: list[int] = []

    class Counting(MemoryTransport):
        @asynccontextmanager
        async def consume(
            self, subscription: Subscription, *, prefetch: int
        ) -> AsyncIterator[Consumer]:
            async with super().consume(subscription, prefetch=prefetch) as consumer:
                deliveries.append(1)
                yield consumer

    mesh.transport = Counting(clock)

    @service.subscriber(Do)
    async def do(command: Do, tx: Transaction) -> None:
        tx.session.add(Effect(number=command.number))

    database = await service.database()

    async def allow(connections: int) -> None:
        async with database.maintenance() as connection:
            name = database.url.database
            await connection.execute(
                text(f'ALTER DATABASE "{name}" WITH CONNECTION LIMIT {connections}')
            )
            await connection.execute(
                text(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = :name"
                ),
                {"name": name},
            )

    async with mesh.worker():
        await mesh.send(1)
        await until(effect(mesh, 1))
        await allow(0)
        await mesh.send(*range(2, 10))
        await asyncio.sleep(1.5)  # several attempts
        await allow(-1)
        await until(effects(mesh, 9))
    assert sorted(await mesh.effects()) == list(range(1, 10))
    assert await mesh.dead("shop.do") == []
    assert deliveries == [1]
    await service.close()


async def test_a_statement_timeout_fails_only_its_own_message(
    postgres_url: str, tmp_path: Path
) -> None:
    settings = Settings(database_urls={"shop": postgres_url}, schemas=tmp_path / "schemas")
    service, clock = Service("shop", metadata=Base.metadata), MovableClock()
    mesh = Mesh(service, settings, MemoryTransport(clock), clock)
    await prepare(service, settings)

    @service.subscriber(Do, retry=SOON)
    async def do(command: Do, tx: Transaction) -> None:
        tx.session.add(Effect(number=command.number))
        if command.number == 2:
            await tx.session.execute(text("SET LOCAL statement_timeout = '20ms'"))
            await tx.session.execute(text("SELECT pg_sleep(5)"))

    async def one_dead() -> bool:
        return len(await mesh.dead("shop.do")) == 1

    async with mesh.worker():
        await mesh.send(*range(6))
        await until(effects(mesh, 5))
        await until(one_dead)
    assert sorted(await mesh.effects()) == [0, 1, 3, 4, 5]
    await service.close()


class Progress(BaseModel):
    number: int


def remembering(name: str, offset: int = 0) -> Saga[Progress]:
    """A saga of one step, which is started by Done."""
    saga = Saga(name, Progress)

    @saga.starts
    def begin(event: Done) -> Progress:
        return Progress(number=event.number)

    @saga.step(ok=Heard, timeout="1m", no_undo="it only hears")
    def hear(state: Progress) -> Do:
        return Do(number=state.number + offset)

    saga.flow(hear)
    return saga


@EVERYWHERE
async def test_two_sagas_that_one_event_starts_are_both_completed(mesh: Mesh) -> None:
    mesh.service.include(remembering("shop.remember"))
    mesh.service.include(remembering("shop.repeat", offset=100))
    done = mesh.service.publisher(Done)

    @mesh.service.subscriber(Do)
    async def do(command: Do) -> Heard:
        return Heard(number=command.number)

    async def both_completed() -> bool:
        database = await mesh.service.database()
        async with database.reading() as connection:
            return await sagas.count_by_status(connection) == {"completed": 2}

    async with mesh.worker():
        await done.publish(Done(number=1))
        await until(both_completed)


@EVERYWHERE
@pytest.mark.parametrize(
    ("saga_id", "attempts"),
    [("01900000-0000-7000-8000-0000000000aa", 20), ("no\0such saga", 1)],
)
async def test_a_reply_to_an_unknown_saga_is_dead_lettered(
    mesh: Mesh, saga_id: str, attempts: int
) -> None:
    mesh.service.include(remembering("shop.remember"))
    sealed = seal(Heard(number=1), source="shop", clock=mesh.clock)
    labels = {"sagaid": f"shop.remember/{saga_id}", "sagastep": "hear"}
    reply = Envelope({**sealed.attributes, **labels}, sealed.data)
    [handler] = mesh.service.handlers.values()
    vitals = SubscriptionVitals("shop", handler.subscription, mesh.clock)
    runner = BatchRunner(mesh.service, handler, vitals)
    for attempt in range(1, 1_000):
        [(_, outcome)] = await runner.run([Delivery(reply, attempt)])
        if isinstance(outcome, Dead):
            break
    assert isinstance(outcome, Dead)
    assert attempt == attempts
    assert "saga" in outcome.reason
    assert "sagaid" in outcome.reason


async def test_a_worker_leaves_the_handlers_of_a_faststream_app_alone(mesh: Mesh) -> None:
    """They run in the FastStream app of the same service; the worker only relays its outbox."""
    handled: list[int] = []
    heard: list[int] = []

    @mesh.service.subscriber(Heard)
    async def hear(event: Heard) -> None:
        heard.append(event.number)

    async def do(command: Do, tx: Transaction) -> None:
        handled.append(command.number)

    bound = bind(do, (), subscription="shop.do", retry=SOON)
    mesh.service.add_handler(replace(bound, elsewhere=True))
    publisher = mesh.service.publisher(Heard)
    await mesh.transport.declare([bound.subscription])
    async with mesh.worker():
        await mesh.send(1, 2)
        await publisher.publish(Heard(number=3))
        await until_true(lambda: heard == [3])
    assert not handled
    assert (await mesh.transport.stats(bound.subscription)).ready == 2


# Ids that are used twice


@EVERYWHERE
@pytest.mark.parametrize("in_one_group", [True, False], ids=["in one group", "later"])
async def test_the_same_id_with_other_data_is_dead_lettered_and_not_skipped_as_a_duplicate(
    mesh: Mesh, in_one_group: bool
) -> None:
    @mesh.service.subscriber(Do)
    async def do(command: Do, tx: Transaction) -> None:
        tx.session.add(Effect(number=command.number))

    first, second, third = (
        seal(Do(number=number), source="test", clock=mesh.clock) for number in range(3)
    )
    other = Envelope(first.attributes, second.data)
    bridged = Envelope({**first.attributes, "time": "2026-01-01T00:00:00Z"}, first.data)
    async with mesh.worker():
        if in_one_group:
            await publish_or_raise(mesh.transport, [first, other, bridged, third])
        else:
            await publish_or_raise(mesh.transport, [first])
            await until(effects(mesh, 1))
            await publish_or_raise(mesh.transport, [other, bridged, third])
        await until(effects(mesh, 2))

        async def dead() -> bool:
            return bool(await mesh.dead("shop.do"))

        await until(dead)
    assert sorted(await mesh.effects()) == [0, 2]
    [letter] = await mesh.dead("shop.do")
    assert letter.envelope.data == other.data
    assert "already used for a message with other data" in letter.reason


# Lanes


async def test_lanes_run_concurrently_and_handle_each_key_in_order(mesh: Mesh) -> None:
    all_running = asyncio.Barrier(4)  # only handlers that run at the same time get past it
    seen: dict[str, list[int]] = {}

    @mesh.service.subscriber(Do, concurrency=4)
    async def do(command: Do) -> None:
        if command.number == 0:
            async with asyncio.timeout(60):
                await all_running.wait()
        await asyncio.sleep(0)
        seen.setdefault(command.key, []).append(command.number)

    keys = ["k-0", "k-4", "k-1", "k-5"]
    assert {
        lane_of(seal(Do(number=0, key=key), source="t", clock=mesh.clock), 4) for key in keys
    } == {0, 1, 2, 3}
    async with mesh.worker():
        for number in range(25):
            for key in keys:
                await mesh.send(number, key=key)
        await until_true(lambda: sum(map(len, seen.values())) == 100)
    assert seen == {key: list(range(25)) for key in keys}


async def test_a_retried_message_comes_after_later_ones_of_its_key(mesh: Mesh) -> None:
    """As docs/ordering.md says, a retried message does not block its key."""
    seen: list[int] = []
    others_are_done = asyncio.Event()

    @mesh.service.subscriber(Do, retry=Retry(attempts=1_000, backoff=constant("10ms")))
    async def do(command: Do) -> None:
        if command.number == 3 and not others_are_done.is_set():
            raise ValueError("not yet")
        seen.append(command.number)
        if len(seen) == 9:
            others_are_done.set()

    async with mesh.worker():
        await mesh.send(*range(10))
        await until_true(lambda: len(seen) == 10)
    assert seen == [0, 1, 2, 4, 5, 6, 7, 8, 9, 3]


@EVERYWHERE
async def test_messages_of_transactional_lanes_take_effect_once_and_are_retried_alone(
    mesh: Mesh,
) -> None:
    failed: list[int] = []

    @mesh.service.subscriber(Do, concurrency=3, retry=SOON)
    async def do(command: Do, tx: Transaction) -> None:
        tx.session.add(Effect(number=command.number))
        if command.number % 10 == 0 and command.number not in failed:
            failed.append(command.number)
            raise ValueError("not yet")

    async with mesh.worker():
        for number in range(50):
            sent = await mesh.send(number, key=f"k{number % 5}")
            await publish_or_raise(mesh.transport, sent)
        await until(effects(mesh, 50))
    assert sorted(await mesh.effects()) == list(range(50))
    assert sorted(failed) == [0, 10, 20, 30, 40]


async def test_when_one_lane_loses_the_broker_the_others_finish(mesh: Mesh) -> None:
    mesh.transport = LosesTheFirstSettlement(mesh.transport)
    began = asyncio.Event()
    finished: list[int] = []

    @mesh.service.subscriber(Do, concurrency=2)
    async def do(command: Do) -> None:
        if command.number == 0:
            began.set()
            await mesh.transport.lost.wait()
            await asyncio.sleep(0.05)  # time for a cancellation that must not come
        finished.append(command.number)

    async with mesh.worker():
        await mesh.send(0, key="k-0")
        await asyncio.wait_for(began.wait(), 60)
        await mesh.send(1, key="k-4")
        await until_true(lambda: {0, 1} <= set(finished))
        assert finished[:2] == [1, 0]  # 0 did not run again: the broker was lost while it ran
        await mesh.send(2, key="k-0")
        await until_true(lambda: 2 in finished)


class LosesTheFirstSettlement:
    """A transport whose consumers lose the broker once, while settling."""

    def __init__(self, transport: Transport) -> None:
        self.lost = asyncio.Event()
        self._transport = transport

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    @asynccontextmanager
    async def consume(
        self, subscription: Subscription, *, prefetch: int
    ) -> AsyncIterator[Consumer]:
        async with self._transport.consume(subscription, prefetch=prefetch) as consumer:
            settle = consumer.settle

            async def settle_or_lose(settlements: Any) -> None:
                if not self.lost.is_set():
                    self.lost.set()
                    raise Unreachable("lost once")
                await settle(settlements)

            consumer.settle = settle_or_lose  # type: ignore[method-assign]
            yield consumer


async def until_true(condition: Callable[[], bool]) -> None:
    async def holds() -> bool:
        return condition()

    await until(holds)
