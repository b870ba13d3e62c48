"""Batch handlers are called once for all messages of a group, and after a failure for one at a
time."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import structlog
from sqlalchemy import select

from eventmesh import Event, Reject, Retry, Service, Settings, Transaction
from eventmesh.clock import SystemClock
from eventmesh.contracts.message import Message
from eventmesh.errors import UsageError
from eventmesh.integrations.faststream.redis import RedisMesh
from eventmesh.persistence import starts
from eventmesh.persistence.database import AsyncSession
from eventmesh.persistence.tables import outbox
from eventmesh.runtime.consuming.batch import BatchRunner
from eventmesh.runtime.consuming.poison import SUSPECT_AFTER
from eventmesh.runtime.consuming.worker import Worker
from eventmesh.runtime.vitals import SubscriptionVitals
from eventmesh.transports.base import Delivery
from eventmesh.transports.factory import open_transport
from eventmesh.transports.outcome import DONE, Dead, Outcome, RetryAfter
from eventmesh.wire.envelope import Envelope, seal
from tests.integration.one_handler import SOON, TIMEOUT_SECONDS, Base, Do, Effect, effects, migrated

EVERYWHERE = pytest.mark.parametrize(
    "database_url", ["sqlite", "postgres", "mariadb"], indirect=True
)


class Done(Event, name="shop.done", version=1):
    number: int


class Counted(Event, name="shop.counted", version=1):
    count: int


class Ordered(Event, name="shop.ordered", version=2):
    number: int
    currency: str


@Ordered.upcaster(from_version=1)
def add_currency(data: dict[str, Any]) -> dict[str, Any]:
    return data | {"currency": "USD"}


class Cancelled(Event, name="shop.cancelled", version=1):
    number: int


class Shop:
    """A service with one handler, which the test calls with the groups that it chooses."""

    def __init__(self, url: str) -> None:
        self.service = Service("shop", metadata=Base.metadata)
        # Only their size limits the groups, however slow the machine is.
        self.service.configure(Settings(database_urls={"shop": url}, group_time=1_000.0))
        self.stopping = asyncio.Event()
        self.runner: BatchRunner | None = None

    async def run(self, *deliveries: Delivery) -> list[Outcome]:
        """Handle these in one group; returns their outcomes in order."""
        if self.runner is None:
            [handler] = self.service.handlers.values()
            vitals = SubscriptionVitals("shop", handler.subscription, self.service.clock)
            self.runner = BatchRunner(self.service, handler, vitals, self.stopping.is_set)
        self.runner.size = len(deliveries)
        outcomes = dict(await self.runner.run(deliveries))
        return [outcomes[each] for each in deliveries if each in outcomes]

    async def outbox(self) -> list[Envelope]:
        database = await self.service.database()
        async with database.reading() as connection:
            rows = await connection.execute(select(outbox).order_by(outbox.c.seq))
            return [Envelope(row.headers, row.data) for row in rows]


@pytest.fixture
async def shop(database_url: str) -> AsyncIterator[Shop]:
    await migrated(database_url)
    shop = Shop(database_url)
    yield shop
    await shop.service.close()


def delivery(message: Message, **counts: int) -> Delivery:
    return Delivery(seal(message, source="shop", clock=SystemClock()), **counts)


def do(*numbers: int) -> list[Delivery]:
    return [delivery(Do(number=number)) for number in numbers]


@EVERYWHERE
async def test_a_batch_handler_is_called_once_with_the_new_messages_in_order(
    shop: Shop, database_url: str
) -> None:
    calls: list[list[int]] = []

    @shop.service.subscriber(Do)
    async def handle(commands: list[Do], tx: Transaction, envelopes: list[Envelope]) -> None:
        assert [b'{"number":%d}' % each.number for each in commands] == [
            each.data for each in envelopes
        ]
        calls.append([each.number for each in commands])
        tx.session.add_all(Effect(number=each.number) for each in commands)

    first = do(1, 2)
    assert await shop.run(*first) == [DONE] * 2
    assert await shop.run(first[1], *(group := do(5, 4, 3)), group[0], first[0]) == [DONE] * 6
    assert await shop.run(*group) == [DONE] * 3
    assert calls == [[1, 2], [5, 4, 3]]
    assert sorted(await effects(database_url)) == [1, 2, 3, 4, 5]


@EVERYWHERE
async def test_after_a_failure_it_is_called_for_each_message_and_only_the_failing_one_is_retried(
    shop: Shop, database_url: str
) -> None:
    calls: list[list[int]] = []

    @shop.service.subscriber(Do, retry=SOON)
    async def handle(commands: list[Do], session: AsyncSession) -> None:
        calls.append([each.number for each in commands])
        session.add_all(Effect(number=each.number) for each in commands)
        await session.flush()
        if any(each.number == 2 for each in commands):
            raise ValueError("not this one")

    with structlog.testing.capture_logs() as log:
        outcomes = await shop.run(*do(1, 2, 3))
    assert isinstance(outcomes.pop(1), RetryAfter)
    assert outcomes == [DONE] * 2
    assert calls == [[1, 2, 3], [1], [2], [3]]
    assert await effects(database_url) == [1, 3]
    [failed] = [line for line in log if line["event"].startswith("batch failed")]
    assert (failed["messages"], failed["error"]) == (3, "ValueError: not this one")
    assert shop.runner is not None
    assert shop.runner.size == 1


@EVERYWHERE
async def test_a_group_that_cannot_be_committed_is_handled_one_by_one(
    shop: Shop, database_url: str
) -> None:
    @shop.service.subscriber(Do, retry=SOON)
    async def handle(commands: list[Do], session: AsyncSession) -> None:
        session.add_all(Effect(number=each.number) for each in commands)

    assert await shop.run(*do(1)) == [DONE]
    outcomes = await shop.run(*do(3, 1, 2))  # the effect 1 exists already
    assert isinstance(outcomes.pop(1), RetryAfter)
    assert outcomes == [DONE] * 2
    assert await effects(database_url) == [1, 2, 3]


async def test_a_published_message_names_its_cause(shop: Shop) -> None:
    shop.service.publisher(Done)
    shop.service.publisher(Counted)

    @shop.service.subscriber(Do)
    async def handle(commands: list[Do], tx: Transaction) -> None:
        for command in reversed(commands):
            tx.publish(Done(number=command.number), cause=command)
        tx.publish(Counted(count=len(commands)))

    group = do(1, 2)
    await shop.run(*group)
    *done, counted = await shop.outbox()
    assert [each.attributes["causationid"] for each in done] == [
        group[1].envelope.id,
        group[0].envelope.id,
    ]
    assert [each.correlation_id for each in done] == [
        group[1].envelope.correlation_id,
        group[0].envelope.correlation_id,
    ]
    assert "causationid" not in counted.attributes
    assert counted.correlation_id == counted.id


async def test_returned_messages_are_published_and_have_a_cause_if_the_call_had_one_message(
    shop: Shop,
) -> None:
    @shop.service.subscriber(Do)
    async def handle(commands: list[Do]) -> list[Done]:
        return [Done(number=each.number) for each in commands]

    group = do(1, 2)
    await shop.run(*group)
    [alone] = do(3)
    await shop.run(alone)
    envelopes = await shop.outbox()
    assert [each.data for each in envelopes] == [b'{"number":%d}' % n for n in (1, 2, 3)]
    assert ["causationid" in each.attributes for each in envelopes] == [False, False, True]
    assert envelopes[2].attributes["causationid"] == alone.envelope.id


async def test_a_cause_that_the_handler_was_not_called_with_is_an_error(shop: Shop) -> None:
    shop.service.publisher(Done)

    @shop.service.subscriber(Do)
    async def handle(commands: list[Do], tx: Transaction) -> None:
        tx.publish(Done(number=1), cause=Do(number=commands[0].number))

    [outcome] = await shop.run(*do(1))
    assert isinstance(outcome, Dead)
    assert "cause=shop.do" in outcome.reason
    assert "give one of those the handler was called with" in outcome.reason


async def test_a_handler_of_single_messages_may_name_its_message_as_the_cause(shop: Shop) -> None:
    shop.service.publisher(Done)

    @shop.service.subscriber(Do)
    async def handle(command: Do, tx: Transaction) -> None:
        tx.publish(Done(number=command.number), cause=command)

    [only] = do(1)
    await shop.run(only)
    [done] = await shop.outbox()
    assert done.attributes["causationid"] == only.envelope.id


@pytest.mark.parametrize("names_cause", [True, False])
async def test_replies_to_a_saga_carry_its_attributes_even_without_a_named_cause(
    shop: Shop, names_cause: bool
) -> None:
    """Without a cause the batch fails, and each message is handled alone, where the cause is
    known."""
    calls: list[int] = []
    shop.service.publisher(Done)

    @shop.service.subscriber(Do)
    async def handle(commands: list[Do], tx: Transaction) -> None:
        calls.append(len(commands))
        for each in commands:
            tx.publish(Done(number=each.number), cause=each if names_cause else None)

    sealed = [each.envelope for each in do(1, 2)]
    saga_attributes = [{"sagaid": f"shop.saga/{number}", "sagastep": "do"} for number in (1, 2)]
    group = [
        Delivery(Envelope({**each.attributes, **saga_attribute}, each.data))
        for each, saga_attribute in zip(sealed, saga_attributes, strict=True)
    ]
    assert await shop.run(*group) == [DONE] * 2
    assert [each.attributes["sagaid"] for each in await shop.outbox()] == [
        "shop.saga/1",
        "shop.saga/2",
    ]
    assert calls == ([2] if names_cause else [2, 1, 1])


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_without_a_transaction_it_is_called_once_and_one_by_one_after_a_failure(
    shop: Shop,
) -> None:
    calls: list[list[int]] = []

    @shop.service.subscriber(Do, retry=SOON)
    async def note(commands: list[Do]) -> None:
        calls.append([each.number for each in commands])
        if any(each.number == 5 for each in commands):
            raise Reject("not this one")

    assert await shop.run(*do(1, 2, 3)) == [DONE] * 3
    outcomes = await shop.run(*do(4, 5, 6))
    assert isinstance(outcomes.pop(1), Dead)
    assert outcomes == [DONE] * 2
    assert calls == [[1, 2, 3], [4, 5, 6], [4], [5], [6]]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_messages_of_a_union_keep_their_order_and_old_versions_are_upcast(shop: Shop) -> None:
    seen: list[Ordered | Cancelled] = []

    @shop.service.subscriber()
    async def note(events: list[Ordered | Cancelled]) -> None:
        seen.extend(events)

    new = delivery(Ordered(number=1, currency="EUR"))
    old = Delivery(
        Envelope(
            {
                **delivery(Ordered(number=2, currency="EUR")).envelope.attributes,
                "dataschema": "urn:eventmesh:shop.ordered:1",
            },
            b'{"number": 2}',
        )
    )
    unreadable = Delivery(Envelope({**new.envelope.attributes, "id": "9"}, b"{}"))
    outcomes = await shop.run(new, delivery(Cancelled(number=1)), unreadable, old)
    assert isinstance(outcomes.pop(2), Dead)
    assert outcomes == [DONE] * 3
    assert seen == [
        Ordered(number=1, currency="EUR"),
        Cancelled(number=1),
        Ordered(number=2, currency="USD"),
    ]


@pytest.mark.parametrize("transactional", [True, False])
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_isolated_messages_are_passed_in_lists_of_one(
    shop: Shop, transactional: bool
) -> None:
    calls: list[int] = []

    async def handle(commands: list[Do], tx: Transaction) -> None:
        calls.append(len(commands))

    async def note(commands: list[Do]) -> None:
        calls.append(len(commands))

    shop.service.subscriber(Do, isolated=True)(handle if transactional else note)
    assert await shop.run(*do(1, 2, 3)) == [DONE] * 3
    assert calls == [1, 1, 1]


@pytest.mark.parametrize("transactional", [True, False])
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_the_timeout_applies_to_each_call(shop: Shop, transactional: bool) -> None:
    calls: list[list[int]] = []

    async def note(commands: list[Do]) -> None:
        calls.append([each.number for each in commands])
        if any(each.number == 2 for each in commands):
            await asyncio.Event().wait()

    async def handle(commands: list[Do], tx: Transaction) -> None:
        await note(commands)

    function = handle if transactional else note
    shop.service.subscriber(Do, retry=Retry(attempts=1), timeout="200ms")(function)
    outcomes = await shop.run(*do(1, 2, 3))
    dead = outcomes.pop(1)
    assert isinstance(dead, Dead)
    assert "took longer than its 0.2 s" in dead.reason
    assert outcomes == [DONE] * 2
    assert calls == [[1, 2, 3], [1], [2], [3]]


@pytest.mark.parametrize("transactional", [True, False])
async def test_a_suspected_message_is_handled_alone_and_dead_lettered_if_it_is_a_poison_message(
    shop: Shop, transactional: bool
) -> None:
    calls: list[list[int]] = []

    async def handle(commands: list[Do], tx: Transaction) -> None:
        calls.append([each.number for each in commands])

    async def note(commands: list[Do]) -> None:
        calls.append([each.number for each in commands])

    shop.service.publisher(Done)  # the service has a database either way
    shop.service.subscriber(Do, name="handle")(handle if transactional else note)
    suspect, poison = (
        delivery(Do(number=number), deliveries=SUSPECT_AFTER + 1) for number in (3, 4)
    )
    database = await shop.service.database()
    # As if the worker had been lost after each.
    for _ in range(shop.service.settings.max_deliveries):
        async with database.connection() as connection:
            await starts.note(connection, "shop.handle", poison.envelope.unique_id)
    outcomes = await shop.run(*do(1, 2), suspect, poison, *do(5, 6))
    dead = outcomes.pop(3)
    assert isinstance(dead, Dead)
    assert "poison message" in dead.reason
    assert outcomes == [DONE] * 5
    assert calls == [[1, 2], [3], [5, 6]]


@pytest.mark.parametrize("transactional", [True, False])
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_a_drain_finishes_the_call_that_was_begun_and_begins_no_other(
    shop: Shop, transactional: bool
) -> None:
    calls: list[list[int]] = []

    async def note(commands: list[Do]) -> None:
        calls.append([each.number for each in commands])
        shop.stopping.set()

    async def handle(commands: list[Do], tx: Transaction) -> None:
        await note(commands)

    shop.service.subscriber(Do, name="do")(handle if transactional else note)
    await shop.run()  # creates the runner
    assert shop.runner is not None
    group = do(1, 2, 3, 4, 5)
    shop.runner.size = 2
    assert [each for each, _ in await shop.runner.run(group)] == group[:2]
    assert calls == [[1, 2]]


@pytest.mark.parametrize("broker", ["memory", "sqlite", "redis", "amqp"])
async def test_a_worker_calls_a_batch_handler_with_groups_on_every_broker(
    broker: str, durable_url: Callable[[str], str], sqlite_url: str
) -> None:
    calls: list[int] = []
    plain: list[int] = []
    service, clock = Service("shop", metadata=Base.metadata), SystemClock()
    service.publisher(Done)

    @service.subscriber(Do)
    async def book(commands: list[Do], tx: Transaction) -> None:
        calls.append(len(commands))
        for command in commands:
            tx.session.add(Effect(number=command.number))
            tx.publish(Done(number=command.number), cause=command)

    @service.subscriber(Done)
    async def note(events: list[Done]) -> None:
        plain.extend(event.number for event in events)

    settings = Settings(
        broker_url="memory://" if broker == "memory" else durable_url(broker),
        broker_prefix=f"test-{uuid.uuid4().hex[:12]}",
        database_urls={"shop": sqlite_url},
        group_time=1_000.0,
    )
    await migrated(sqlite_url)
    numbers = list(range(60))
    async with open_transport(settings.broker_url, clock, settings.transport_options) as transport:
        await transport.declare([handler.subscription for handler in service.worked])
        await transport.publish(
            [seal(Do(number=number), source="t", clock=clock) for number in numbers]
        )
        stopping = asyncio.Event()
        running = asyncio.ensure_future(Worker([service], transport, settings, clock).run(stopping))
        async with asyncio.timeout(TIMEOUT_SECONDS):
            while not set(numbers) <= set(plain):
                await asyncio.wait([running], timeout=0.01)
                assert not running.done(), running
        stopping.set()
        await asyncio.wait_for(running, TIMEOUT_SECONDS)
    assert await effects(sqlite_url) == numbers
    assert sum(calls) == len(numbers)
    assert max(calls) > 1


def test_a_batch_handler_in_a_faststream_app_is_an_error_at_its_declaration() -> None:
    from faststream.redis import RedisBroker

    mesh = RedisMesh(Service("shop"), RedisBroker())

    async def handle(commands: list[Do]) -> None: ...

    with pytest.raises(UsageError, match="FastStream hands over one at a time"):
        mesh.subscriber(Do)(handle)
