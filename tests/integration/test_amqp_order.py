"""Ordered subscriptions on RabbitMQ: workers are killed and leave, order is declared and taken
away, the number of partitions changes. Each key stays in order, and nothing is lost."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import aiormq
import pytest
from aiormq.abc import DeliveredMessage
from aiormq.channel import Channel
from aiormq.exceptions import ChannelNotFoundEntity

from eventmesh.clock import SystemClock
from eventmesh.errors import PublishError, Unreachable, UsageError
from eventmesh.testing.conformance import Rig
from eventmesh.testing.conformance.observing import die_while_holding, running
from eventmesh.transports.base import (
    Consumer,
    Delivery,
    Order,
    Subscription,
    TransportOptions,
    publish_or_raise,
)
from eventmesh.transports.outcome import DONE, Dead, Outcome, RetryAfter
from eventmesh.transports.rabbitmq import (
    connection,
    inspection,
    relocation,
    rerouting,
    topology,
    upkeep,
)
from eventmesh.transports.rabbitmq.connection import BrokerConnection
from eventmesh.transports.rabbitmq.declaring import declare_all
from eventmesh.transports.rabbitmq.inspection import QueueCounts, count_messages
from eventmesh.transports.rabbitmq.messages import OutgoingMessage, new_message
from eventmesh.transports.rabbitmq.ordered import partition, workers
from eventmesh.transports.rabbitmq.ordered.consumer import OrderedConsumer
from eventmesh.transports.rabbitmq.ordered.notes import (
    Held,
    LastMoved,
    Note,
    Opened,
    Released,
    read,
    written,
)
from eventmesh.transports.rabbitmq.ordered.partition import SUSPECT_AFTER
from eventmesh.transports.rabbitmq.ordered.workers import Workers
from eventmesh.transports.rabbitmq.publishing import Batch, Publisher, Rejected
from eventmesh.transports.rabbitmq.relocation import Relocation
from eventmesh.transports.rabbitmq.topology import Entity, Exchange, Topology, partition_of
from eventmesh.transports.rabbitmq.transport import AmqpTransport
from eventmesh.wire.envelope import Envelope
from tests.support.promised_times import allowed
from tests.support.running_meshes import until

if TYPE_CHECKING:
    from tests.conftest import Servers

TAKEOVER_SECONDS = 5.0
KEYS = 60
TIMEOUT_SECONDS = 120.0


@pytest.fixture(params=["usual", pytest.param("private", marks=pytest.mark.soak)])
def url(request: pytest.FixtureRequest, servers: Servers) -> str:
    """The RabbitMQ that other tests use, too; in `make soak` also the one that this machine has
    installed, which may be of an older generation. The guarantees are checked on both every day, by
    tests/conformance."""
    if request.param == "usual":
        return servers.find("rabbitmq").url
    return servers.had_by("rabbitmq", "private").url


Opening = Callable[[], Awaitable[AmqpTransport]]


@pytest.fixture
def rig(url: str) -> Rig:
    prefix = f"order-{secrets.token_hex(5)}"

    @asynccontextmanager
    async def connect(visibility_timeout: float) -> AsyncIterator[AmqpTransport]:
        options = TransportOptions(prefix=prefix, visibility_timeout=visibility_timeout)
        transport = AmqpTransport(url, SystemClock(), options)
        await transport.connect()
        try:
            yield transport
        finally:
            await transport.close()

    return Rig(connect, url, prefix)


@pytest.fixture
async def opened(rig: Rig) -> AsyncIterator[Opening]:
    """Opens transports that are closed after the test."""
    async with AsyncExitStack() as stack:

        async def open_another() -> AmqpTransport:
            transport = await stack.enter_async_context(rig.open())
            assert isinstance(transport, AmqpTransport)
            return transport

        yield open_another


class Effects:
    """What took effect, each message once."""

    def __init__(self) -> None:
        self.ids: set[str] = set()
        self.by_key: dict[str, list[bytes]] = defaultdict(list)
        self.changed = asyncio.Event()

    def add(self, envelope: Envelope) -> None:
        if envelope.id not in self.ids:
            self.ids.add(envelope.id)
            self.by_key[envelope.key or ""].append(envelope.data)
            self.changed.set()

    async def until(self, number: int) -> None:
        async with asyncio.timeout(TIMEOUT_SECONDS):
            while len(self.ids) < number:
                self.changed.clear()
                await self.changed.wait()

    def check_order(self) -> None:
        numbers = {key: [int(each[10:-1]) for each in data] for key, data in self.by_key.items()}
        assert {key: sorted(each) for key, each in numbers.items()} == numbers


async def work(transport: AmqpTransport, subscription: Subscription, effects: Effects) -> None:
    async with transport.consume(subscription, prefetch=100) as consumer:
        while True:
            deliveries = await consumer.receive(100)
            for delivery in deliveries:
                effects.add(delivery.envelope)
            await consumer.settle([(delivery, DONE) for delivery in deliveries])


def of_each_key(rig: Rig, number: int) -> list[Envelope]:
    """So many messages of each key, in the order of their numbers."""
    of_key = [rig.envelopes(number, key=f"key-{each}") for each in range(KEYS)]
    return [each for some in zip(*of_key, strict=True) for each in some]


async def take(transport: AmqpTransport, subscription: Subscription, number: int) -> list[Delivery]:
    """So many deliveries, settled as done."""
    got: list[Delivery] = []
    async with (
        asyncio.timeout(TIMEOUT_SECONDS),
        transport.consume(subscription, prefetch=100) as consumer,
    ):
        while len(got) < number:
            deliveries = await consumer.receive(100)
            got += deliveries
            await consumer.settle([(delivery, DONE) for delivery in deliveries])
    return got


async def declare_and_publish(
    rig: Rig, subscription: Subscription, envelopes: Sequence[Envelope]
) -> None:
    """As by a process that has ended since: one that runs restores what it has declared, also while
    the number of partitions is changed."""
    async with rig.open() as transport:
        await transport.declare([subscription])
        await publish_or_raise(transport, envelopes)


async def receive(consumer: Consumer, number: int) -> list[Delivery]:
    """Exactly so many deliveries, unsettled; the broker may send them bit by bit."""
    got: list[Delivery] = []
    async with asyncio.timeout(TIMEOUT_SECONDS):
        while len(got) < number:
            got += await consumer.receive(number - len(got))
    return got


def numbers(deliveries: Sequence[Delivery]) -> list[int]:
    return [int(each.envelope.data[10:-1]) for each in deliveries]


async def cancel(change: Coroutine[object, object, object], reached: asyncio.Event) -> None:
    """Cancel this once it has reached the point where it is to be interrupted."""
    changing = asyncio.ensure_future(change)
    async with asyncio.timeout(TIMEOUT_SECONDS):
        await reached.wait()
    changing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await changing


def read_note(message: DeliveredMessage) -> Note:
    return read(message.header.properties.headers or {}, message.body)


def fail_once(
    monkeypatch: pytest.MonkeyPatch, kind: type[Held | Opened | Released], failure: type[Exception]
) -> None:
    """Let the next publication of a note of this kind fail."""
    publish = Publisher.publish
    failures = [failure("the connection was lost, or the queue is full")]

    async def publish_unless_noted(
        self: Publisher, batch: Batch, needs: Sequence[Entity]
    ) -> dict[int, BaseException]:
        noted = any(
            isinstance(read(each.properties.headers or {}, each.body), kind)
            for each in batch.messages
        )
        if not (noted and failures):
            return await publish(self, batch, needs)
        error = failures.pop()
        if isinstance(error, Unreachable):
            raise error
        return dict.fromkeys(range(len(batch.messages)), error)

    monkeypatch.setattr(Publisher, "publish", publish_unless_noted)


async def test_the_partitions_of_a_killed_worker_are_taken_over_in_time(
    rig: Rig, opened: Opening
) -> None:
    subscription = rig.subscription("ordered", order=Order())
    transport = await opened()
    await transport.declare([subscription])
    sent = of_each_key(rig, 200)
    effects = Effects()
    async with running(work(transport, subscription, effects)):
        dying = asyncio.create_task(die_while_holding(rig, transport, subscription, 5))
        published = 0
        while not dying.done():
            await publish_or_raise(transport, sent[published : published + KEYS])
            published += KEYS
            await asyncio.wait([dying], timeout=0.1)
        await dying
        killed = time.monotonic()
        await effects.until(published)
        assert time.monotonic() - killed < allowed(TAKEOVER_SECONDS)
    effects.check_order()


async def test_a_worker_that_leaves_hands_over_at_once(
    rig: Rig, opened: Opening, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "GONE_AFTER", 10 * TIMEOUT_SECONDS)  # nobody waits for its end
    subscription = rig.subscription("ordered", order=Order(partitions=3))
    first, second = await opened(), await opened()
    await first.declare([subscription])
    sent = of_each_key(rig, 4)
    await publish_or_raise(first, sent)
    effects = Effects()
    async with first.consume(subscription, prefetch=1000) as leaving:
        held: list[Delivery] = []
        while len(held) < len(sent):
            held += await leaving.receive(1000)
        async with running(work(second, subscription, effects)):
            await leaving.settle([(each, DONE) for each in held[:10]])
            for each in held[:10]:
                effects.add(each.envelope)
            await first.close()
            await effects.until(len(sent))
    effects.check_order()


async def test_the_last_worker_leaves_nothing_behind(rig: Rig, opened: Opening) -> None:
    """What it says to the others is not taken for a message."""
    subscription = rig.subscription("ordered", order=Order(partitions=3))
    transport = await opened()
    for _ in range(3):
        async with transport.consume(subscription, prefetch=10):
            pass
    await publish_or_raise(transport, rig.envelopes(1))
    async with transport.consume(subscription, prefetch=10) as consumer:
        [delivery] = await consumer.receive(10)
        await consumer.settle([(delivery, DONE)])
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await consumer.receive(10)


async def test_a_worker_whose_notes_others_have_read_opens_its_partition(
    rig: Rig, url: str, opened: Opening
) -> None:
    """RabbitMQ hands over the two queues of a partition one by one, and not always to the same
    worker, until they all know whose it is."""
    subscription = rig.subscription("ordered", order=Order(partitions=1))
    transport = await opened()
    await transport.declare([subscription])
    await publish_or_raise(transport, rig.envelopes(2))
    notes: asyncio.Queue[DeliveredMessage] = asyncio.Queue()
    connection = await aiormq.connect(url)
    try:
        other = await connection.channel()
        await other.basic_consume(Topology(rig.prefix).front_queue(subscription, 1, 0), notes.put)
        async with transport.consume(subscription, prefetch=10) as consumer:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                for _ in range(2):  # as it begins, and once the first message has arrived
                    note = await notes.get()
                    await other.basic_ack(note.delivery_tag or 0)
                await connection.close()
                assert numbers(await receive(consumer, 2)) == [0, 1]
    finally:
        await connection.close()


@pytest.mark.parametrize("loses_a_note", [True, False], ids=["lost", "read-by-others"])
async def test_a_partition_opens_once_all_that_others_have_noted_is_read(
    rig: Rig, url: str, opened: Opening, monkeypatch: pytest.MonkeyPatch, loses_a_note: bool
) -> None:
    subscription = rig.subscription("ordered", order=Order(partitions=1, after_dead="hold"))
    transport = await opened()
    await transport.declare([subscription])
    await publish_or_raise(transport, rig.envelopes(1, key="held"))
    await publish_or_raise(transport, rig.envelopes(1, key="other"))
    if loses_a_note:
        fail_once(monkeypatch, Opened, Unreachable)
    notes: asyncio.Queue[DeliveredMessage] = asyncio.Queue()
    front = Topology(rig.prefix).front_queue(subscription, 1, 0)
    held = written(Held("held", "letter", "message"), front)
    connection = await aiormq.connect(url)
    try:
        other = await connection.channel()
        await other.basic_consume(front, notes.put)
        async with (
            transport.consume(subscription, prefetch=10) as consumer,
            asyncio.timeout(TIMEOUT_SECONDS),
        ):
            await notes.get()  # that the partition begins; RabbitMQ takes it back below
            await other.basic_publish(held.body, routing_key=front, properties=held.properties)
            while not isinstance(read_note(await notes.get()), Held):
                pass
            await connection.close()
            assert [each.envelope.key for each in await consumer.receive(10)] == ["other"]
    finally:
        await connection.close()


async def test_another_number_of_partitions_is_an_error_with_the_way_out(
    rig: Rig, opened: Opening
) -> None:
    subscription = rig.subscription("ordered", order=Order(partitions=3))
    transport = await opened()
    await transport.declare([subscription])
    with pytest.raises(UsageError, match=f"partitions set {subscription.name} 5"):
        await transport.declare([replace(subscription, order=Order(partitions=5))])


async def test_the_next_worker_knows_the_attempt_and_when_it_is_due(
    rig: Rig, opened: Opening
) -> None:
    subscription = rig.subscription("ordered", order=Order(partitions=3))
    transport = await opened()
    await transport.declare([subscription])
    await publish_or_raise(transport, rig.envelopes(2))
    async with transport.consume(subscription, prefetch=100) as consumer:
        first, _ = await receive(consumer, 2)
        retried = time.time()
        await consumer.settle([(first, RetryAfter(1.5))])
    again, behind = await take(transport, subscription, 2)
    assert time.time() - retried >= 1.5
    assert (again.attempt, again.deliveries) == (2, 1)
    assert (behind.attempt, numbers([again, behind])) == (1, [0, 1])


async def test_the_next_worker_knows_which_keys_are_held(rig: Rig, opened: Opening) -> None:
    subscription = rig.subscription("ordered", order=Order(partitions=3, after_dead="hold"))
    transport = await opened()
    await transport.declare([subscription])
    await publish_or_raise(transport, rig.envelopes(3, key="held"))
    async with transport.consume(subscription, prefetch=100) as consumer:
        first, *_ = await consumer.receive(100)
        await consumer.settle([(first, Dead("no"))])
    await publish_or_raise(transport, rig.envelopes(1, key="other"))
    async with transport.consume(subscription, prefetch=100) as consumer:
        [other] = await consumer.receive(100)
        assert other.envelope.key == "other"
        await consumer.settle([(other, DONE)])
    [letter] = await transport.dead_letters(subscription, limit=10)
    await transport.replay(subscription, [letter.id])
    assert numbers(await take(transport, subscription, 3)) == [0, 1, 2]


@pytest.mark.parametrize("failure", [Unreachable, Rejected], ids=["lost", "rejected"])
async def test_no_dead_letter_is_written_whose_key_the_next_worker_would_not_hold(
    rig: Rig, opened: Opening, monkeypatch: pytest.MonkeyPatch, failure: type[Exception]
) -> None:
    subscription = rig.subscription("ordered", order=Order(partitions=3, after_dead="hold"))
    transport = await opened()
    await transport.declare([subscription])
    await publish_or_raise(transport, rig.envelopes(3, key="held"))
    fail_once(monkeypatch, Held, failure)
    async with transport.consume(subscription, prefetch=100) as consumer:
        first, *_ = await consumer.receive(100)
        with pytest.raises(Unreachable) if failure is Unreachable else nullcontext():
            await consumer.settle([(first, Dead("no"))])
        assert not await transport.dead_letters(subscription, limit=10)
    assert numbers(await take(transport, subscription, 3)) == [0, 1, 2]


async def test_a_dead_letter_can_be_settled_again_after_its_note_was_lost(
    rig: Rig, opened: Opening, monkeypatch: pytest.MonkeyPatch
) -> None:
    subscription = rig.subscription("ordered", order=Order(partitions=3, after_dead="hold"))
    transport = await opened()
    await transport.declare([subscription])
    await publish_or_raise(transport, rig.envelopes(2, key="held"))
    fail_once(monkeypatch, Held, Unreachable)
    async with asyncio.timeout(TIMEOUT_SECONDS):
        async with transport.consume(subscription, prefetch=1) as consumer:
            [first] = await consumer.receive(1)
            with pytest.raises(Unreachable):
                await consumer.settle([(first, Dead("no"))])
            await consumer.settle([(first, Dead("no"))])
            [letter] = await transport.dead_letters(subscription, limit=10)
            await transport.discard(subscription, [letter.id])
            assert numbers(await consumer.receive(1)) == [1]


async def test_a_dead_letter_is_only_discarded_if_it_can_be_noted_that_its_key_is_free(
    rig: Rig, opened: Opening, monkeypatch: pytest.MonkeyPatch
) -> None:
    subscription = rig.subscription("ordered", order=Order(partitions=3, after_dead="hold"))
    transport = await opened()
    await transport.declare([subscription])
    await publish_or_raise(transport, rig.envelopes(2, key="held"))
    async with transport.consume(subscription, prefetch=1) as consumer:
        [first] = await consumer.receive(1)
        await consumer.settle([(first, Dead("no"))])
    fail_once(monkeypatch, Released, Rejected)
    [letter] = await transport.dead_letters(subscription, limit=10)
    with pytest.raises(PublishError, match="the queue is full"):
        await transport.discard(subscription, [letter.id])
    assert [each.id for each in await transport.dead_letters(subscription, limit=10)] == [letter.id]
    await transport.discard(subscription, [letter.id])
    assert numbers(await take(transport, subscription, 1)) == [1]


async def note(transport: AmqpTransport, written_note: OutgoingMessage) -> None:
    assert not await transport._publisher.publish(Batch([written_note]), ())


@pytest.mark.parametrize("was", ["published", "replayed", "moved"])
async def test_a_key_is_not_held_by_a_dead_letter_whose_worker_died_before_it_was_written(
    rig: Rig, opened: Opening, was: str
) -> None:
    subscription = rig.subscription("ordered", order=Order(partitions=1, after_dead="hold"))
    front = Topology(rig.prefix).front_queue(subscription, 1, 0)
    transport = await opened()
    await transport.declare([subscription])
    await publish_or_raise(transport, rig.envelopes(3, key="held"))
    if was == "replayed":
        async with transport.consume(subscription, prefetch=1) as consumer:
            [first] = await consumer.receive(1)
            await consumer.settle([(first, Dead("no"))])
        [letter] = await transport.dead_letters(subscription, limit=10)
        await transport.replay(subscription, [letter.id])
    async with transport.consume(subscription, prefetch=1) as consumer:
        [first] = await consumer.receive(1)  # and the worker dies while it dead-letters it
    await note(transport, written(Held("held", "letter", first.envelope.id), front))
    if was == "moved":
        await transport.close()  # a process that runs restores the partitions that it has declared
        transport = await opened()
        subscription = replace(subscription, order=Order(partitions=2, after_dead="hold"))
        assert await transport.set_partitions(subscription, 2) == 1
    assert numbers(await take(transport, subscription, 3)) == [0, 1, 2]


async def nothing(_: object) -> None: ...


@pytest.mark.parametrize("answer", ["replay", "discard"])
async def test_a_dead_letter_of_another_program_releases_its_key(
    rig: Rig, url: str, opened: Opening, answer: str
) -> None:
    """Its messages have no bucket, so they are in partition 0, whatever their key."""
    subscription = rig.subscription("ordered", order=Order(partitions=8, after_dead="hold"))
    key = next(key for key in map(str, range(100)) if partition_of(key, 8))
    transport = await opened()
    await transport.declare([subscription])
    messages = [new_message(rig.prefix, each) for each in rig.envelopes(3, key=key)]
    for each in messages:
        del (each.properties.headers or {})["BCC"]
    assert not await transport._publisher.publish(Batch(messages), ())
    async with (
        asyncio.timeout(TIMEOUT_SECONDS),
        transport.consume(subscription, prefetch=1) as consumer,
    ):
        [first] = await consumer.receive(1)
        await consumer.settle([(first, Dead("no"))])
        [letter] = await transport.dead_letters(subscription, limit=10)
        if answer == "replay":
            await transport.replay(subscription, [letter.id])
            [again] = await consumer.receive(1)
            await consumer.settle([(again, DONE)])
            assert numbers([again]) == [0]
        else:
            await transport.discard(subscription, [letter.id])
        [second] = await consumer.receive(1)
        await consumer.settle([(second, DONE)])
    assert numbers([second, *await take(transport, subscription, 1)]) == [1, 2]


async def test_messages_that_a_worker_only_held_do_not_count_as_delivered(
    rig: Rig, opened: Opening, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message ends each of its workers, which hold others with it."""
    monkeypatch.setattr(OrderedConsumer, "_take_starts_back", nothing)  # as if they died
    subscription = rig.subscription("ordered", order=Order(partitions=1))
    transport = await opened()
    await transport.declare([subscription])
    neighbours = [f"neighbour-{each}" for each in range(3)]
    for key in ("poison", *neighbours):
        await publish_or_raise(transport, rig.envelopes(1, key=key))

    async def received(consumer: Consumer, number: int) -> dict[str | None, int]:
        deliveries = await receive(consumer, number)
        settleable.extend((each, DONE) for each in deliveries)
        return {each.envelope.key: each.deliveries for each in deliveries}

    together = dict.fromkeys(("poison", *neighbours), 1)
    again = dict.fromkeys(together, 2)
    alone = [{"poison": 3}, {"poison": 4}]
    for expected in [*[together] * (SUSPECT_AFTER + 1), again, *alone]:
        settleable: list[tuple[Delivery, Outcome]] = []
        async with (
            asyncio.timeout(TIMEOUT_SECONDS),
            transport.consume(subscription, prefetch=100) as consumer,
        ):
            assert await received(consumer, len(expected)) == expected
    async with (
        asyncio.timeout(TIMEOUT_SECONDS),
        transport.consume(subscription, prefetch=100) as consumer,
    ):
        for expected in [{"poison": 5}, *({key: 3} for key in neighbours)]:
            settleable = []
            assert await received(consumer, len(expected)) == expected
            await consumer.settle(settleable)


async def test_a_partition_waits_before_dead_letters_that_hold_keys_fill_its_front(
    rig: Rig, opened: Opening, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RabbitMQ delivers no more than MAX_HELD messages of its front."""
    monkeypatch.setattr(partition, "MAX_HELD", 20)
    monkeypatch.setattr(partition, "MOST_HOLDERS", 15)
    subscription = rig.subscription("ordered", order=Order(partitions=1, after_dead="hold"))
    transport = await opened()
    await transport.declare([subscription])
    for each in range(30):
        await publish_or_raise(transport, rig.envelopes(1, key=f"key-{each}"))
    dead = 0
    async with (
        asyncio.timeout(TIMEOUT_SECONDS),
        transport.consume(subscription, prefetch=5) as consumer,
    ):
        while dead < 15:
            deliveries = await consumer.receive(5)
            await consumer.settle([(each, Dead("no")) for each in deliveries])
            dead += len(deliveries)
        more = asyncio.ensure_future(consumer.receive(5))
        letters = [each.id for each in await transport.dead_letters(subscription, limit=100)]
        assert not more.done()
        await transport.discard(subscription, letters[:1])
        handled = await more
        await consumer.settle([(each, DONE) for each in handled])
    await transport.discard(subscription, letters[1:])
    left = 15 - len(handled)
    assert len(await take(transport, subscription, left)) == left


async def test_more_replayed_messages_than_can_be_held_do_not_stop_a_partition(
    rig: Rig, opened: Opening, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partition, "MAX_HELD", 20)
    subscription = rig.subscription("ordered", order=Order(partitions=1))
    transport = await opened()
    await transport.declare([subscription])
    await publish_or_raise(transport, rig.envelopes(30, key="key"))
    dead = 0
    async with (
        asyncio.timeout(TIMEOUT_SECONDS),
        transport.consume(subscription, prefetch=100) as consumer,
    ):
        while dead < 30:
            deliveries = await consumer.receive(1)
            await consumer.settle([(each, Dead("no")) for each in deliveries])
            dead += len(deliveries)
    letters = [each.id for each in await transport.dead_letters(subscription, limit=100)]
    await transport.replay(subscription, letters)
    later = rig.envelopes(2, key="key")
    await publish_or_raise(transport, later)
    got = await take(transport, subscription, 32)
    assert numbers(got[:30]) == list(range(30))
    assert [each.envelope.id for each in got[30:]] == [each.id for each in later]


async def test_order_can_be_declared_and_taken_away_while_messages_wait(
    rig: Rig, opened: Opening
) -> None:
    plain = rig.subscription("reader")
    ordered = replace(plain, order=Order(partitions=3))
    sent = of_each_key(rig, 4)
    first = await opened()
    await first.declare([plain])
    await publish_or_raise(first, sent[:KEYS])
    second = await opened()
    await second.declare([ordered])
    await publish_or_raise(second, sent[KEYS : 2 * KEYS])
    effects = Effects()
    for delivery in await take(second, ordered, KEYS + 1):
        effects.add(delivery.envelope)
    third = await opened()
    await third.declare([plain])
    await publish_or_raise(third, sent[2 * KEYS : 3 * KEYS])
    fourth = await opened()
    await fourth.declare([ordered])
    await publish_or_raise(fourth, sent[3 * KEYS :])
    async with running(work(fourth, ordered, effects)):
        await effects.until(len(sent))


@pytest.mark.parametrize("interrupted_after", [None, 3, 5])
async def test_order_is_declared_for_all_messages_of_a_subscription_in_one_moment(
    rig: Rig, opened: Opening, monkeypatch: pytest.MonkeyPatch, interrupted_after: int | None
) -> None:
    """Messages of two types are published after each step by which the old queue is cut off."""
    plain = rig.subscription("reader", "placed", "cancelled")
    ordered = replace(plain, order=Order(partitions=2))
    pairs = zip(rig.envelopes(60, "placed"), rig.envelopes(60, "cancelled"), strict=True)
    sent = [pair[number % 2] for number, pair in enumerate(pairs)]
    publisher, worker = await opened(), await opened()
    await publisher.declare([plain])
    await publish_or_raise(publisher, sent[:20])
    published, steps = 20, 0

    def publishing_after(step: Callable[..., Awaitable[object]]) -> Callable[..., Awaitable[None]]:
        async def take_step(*arguments: object) -> None:
            nonlocal published, steps
            await step(*arguments)
            await publish_or_raise(publisher, sent[published : published + 2])
            published += 2
            steps += 1
            if steps == interrupted_after:
                raise Unreachable("the connection was lost")

        return take_step

    with monkeypatch.context() as patched:
        for name in ("queue_unbind", "exchange_delete"):
            patched.setattr(Channel, name, publishing_after(getattr(Channel, name)))
        with pytest.raises(Unreachable) if interrupted_after else nullcontext():
            await worker.declare([ordered])
        if interrupted_after:
            await worker.declare([ordered])
    assert 20 < published < 50
    await publish_or_raise(publisher, sent[published:])
    effects = Effects()
    async with running(work(worker, ordered, effects)):
        await effects.until(len(sent))
    effects.check_order()


async def test_retries_that_are_delayed_when_order_is_declared_come_when_they_are_due(
    rig: Rig, opened: Opening, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "INTERVAL", 0.2)
    plain = rig.subscription("reader")
    ordered = replace(plain, order=Order(partitions=3))
    async with rig.open() as before, before.consume(plain, prefetch=100) as consumer:
        await publish_or_raise(before, rig.envelopes(40))
        failed: list[Delivery] = []
        while len(failed) < 40:
            failed += await consumer.receive(100)
        await consumer.settle([(each, RetryAfter(3.0)) for each in failed])
    transport = await opened()
    await transport.declare([ordered])
    await publish_or_raise(transport, rig.envelopes(1, key="other"))
    got = await take(transport, ordered, 41)
    assert sorted(each.attempt for each in got) == [1, *[2] * 40]
    assert {each.envelope.id for each in got} >= {each.envelope.id for each in failed}


async def test_a_process_that_has_left_a_subscription_does_not_restore_it_without_the_order_it_got(
    rig: Rig, opened: Opening, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It drains other subscriptions, or this one is paused."""
    monkeypatch.setattr(upkeep, "INTERVAL", 10 * TIMEOUT_SECONDS)
    plain = rig.subscription("reader")
    ordered = replace(plain, order=Order(partitions=2))
    old, new = await opened(), await opened()
    async with old.consume(plain, prefetch=10):
        pass
    await new.declare([ordered])
    await old._upkeep.restore()
    await publish_or_raise(new, rig.envelopes(10))
    late = Topology(rig.prefix).late_queue(ordered)
    assert (await count_messages(new._consuming, [late]))[late].ready == 0
    assert len(await take(new, ordered, 10)) == 10


async def test_a_process_that_has_left_a_subscription_does_not_restore_the_order_it_lost(
    rig: Rig, opened: Opening, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "INTERVAL", 10 * TIMEOUT_SECONDS)
    plain = rig.subscription("reader")
    ordered = replace(plain, order=Order(partitions=2))
    old, new = await opened(), await opened()
    async with old.consume(ordered, prefetch=10):
        pass
    await new.declare([plain])
    await old._upkeep.restore()
    await publish_or_raise(new, rig.envelopes(10))
    partitions = Topology(rig.prefix).queues(ordered)
    assert not await count_messages(new._consuming, partitions)
    assert len(await take(new, plain, 10)) == 10


@pytest.mark.parametrize("had_order", [False, True], ids=["got-an-order", "lost-its-order"])
@pytest.mark.parametrize("is_consumed", [True, False], ids=["consumed", "paused"])
async def test_a_process_does_not_go_on_with_a_subscription_whose_order_others_have_changed(
    rig: Rig,
    opened: Opening,
    monkeypatch: pytest.MonkeyPatch,
    had_order: bool,
    is_consumed: bool,
) -> None:
    """It was paused, or had lost the broker. The others may be paused, too."""
    monkeypatch.setattr(upkeep, "INTERVAL", 10 * TIMEOUT_SECONDS)
    plain = rig.subscription("reader")
    ordered = replace(plain, order=Order(partitions=2))
    before, after = (ordered, plain) if had_order else (plain, ordered)
    old, new = await opened(), await opened()
    async with old.consume(before, prefetch=10):
        pass
    await new.declare([after])
    async with new.consume(after, prefetch=10) if is_consumed else nullcontext():
        with pytest.raises(UsageError, match="another version of its service"):
            async with old.consume(before, prefetch=10):
                pass
    await publish_or_raise(new, rig.envelopes(10))
    names = Topology(rig.prefix)
    others = names.queues(ordered) if had_order else [names.late_queue(ordered)]
    counts = await count_messages(new._consuming, others)
    assert sum(each.ready for each in counts.values()) == 0
    assert len(await take(new, after, 10)) == 10


async def test_a_deleted_queue_of_workers_is_not_taken_for_a_subscription_without_order(
    rig: Rig, url: str, opened: Opening, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Messages would be moved while workers consume them."""
    monkeypatch.setattr(upkeep, "INTERVAL", 10 * TIMEOUT_SECONDS)
    ordered = rig.subscription("ordered", order=Order(partitions=2))
    moves: list[object] = []

    async def note_move(*arguments: object) -> None:
        moves.append(arguments)

    monkeypatch.setattr(Relocation, "_move", note_move)
    one, two = await opened(), await opened()
    await one.declare([ordered])
    connection = await aiormq.connect(url)
    try:
        operator = await connection.channel()
        async with one.consume(ordered, prefetch=10):
            await operator.queue_delete(Topology(rig.prefix).workers(ordered))
            await two.declare([ordered])
        await operator.queue_delete(Topology(rig.prefix).workers(ordered))
        await publish_or_raise(one, rig.envelopes(10))
        assert numbers(await take(one, ordered, 10)) == list(range(10))
    finally:
        await connection.close()
    assert not moves


async def test_a_queue_without_order_that_was_bound_again_is_cut_off_and_overtakes_nothing(
    rig: Rig, opened: Opening, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by a process that looked before order was switched on, and binds it afterwards."""
    monkeypatch.setattr(upkeep, "INTERVAL", 10 * TIMEOUT_SECONDS)
    plain = rig.subscription("reader")
    ordered = replace(plain, order=Order(partitions=2))
    sent = rig.envelopes(10, key="key")
    old, new = await opened(), await opened()
    await old.declare([plain])
    await new.declare([ordered])
    await publish_or_raise(new, sent[:4])
    with old._upkeep.consumed(plain):
        await old._upkeep.restore()
    await publish_or_raise(new, sent[4:8])
    late = Topology(rig.prefix).late_queue(ordered)
    assert (await count_messages(new._consuming, [late]))[late].ready == 4
    await new._upkeep.restore()
    await publish_or_raise(new, sent[8:])
    assert (await count_messages(new._consuming, [late]))[late].ready == 0
    assert numbers(await take(new, ordered, 14)) == [*range(8), *range(4, 10)]


async def test_a_process_that_looks_for_late_retries_leaves_a_subscription_that_has_lost_its_order(
    rig: Rig, opened: Opening, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stood still between the round of its upkeep and this."""
    monkeypatch.setattr(upkeep, "INTERVAL", 10 * TIMEOUT_SECONDS)
    plain = rig.subscription("reader")
    ordered = replace(plain, order=Order(partitions=2))
    old, new = await opened(), await opened()
    await old.declare([ordered])
    await new.declare([plain])
    await publish_or_raise(new, rig.envelopes(2))
    await old._relocation.bring_late_retries(ordered)
    await publish_or_raise(new, rig.envelopes(2))
    assert numbers(await take(new, plain, 4)) == [0, 1, 0, 1]


async def test_retries_from_the_time_without_order_are_counted_while_no_worker_runs(
    rig: Rig, opened: Opening, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "INTERVAL", 10 * TIMEOUT_SECONDS)
    plain = rig.subscription("reader")
    ordered = replace(plain, order=Order(partitions=2))
    async with rig.open() as before, before.consume(plain, prefetch=100) as consumer:
        await publish_or_raise(before, rig.envelopes(1))
        [delivery] = await consumer.receive(1)
        await consumer.settle([(delivery, RetryAfter(1.0))])
    transport = await opened()
    await transport.declare([ordered])

    async def it_is_due() -> bool:
        return (await transport.stats(ordered)).ready == 1 + 2 * 2  # and the notes

    await until(it_is_due)
    found = await transport.census([ordered])
    assert [(kind.state, lot.number) for kind, lot in found.lots.items()] == [("ready", 1)]


async def test_order_that_was_declared_in_part_is_in_order_once_it_is_declared(
    rig: Rig, opened: Opening, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = rig.subscription("reader")
    ordered = replace(plain, order=Order(partitions=2))
    sent = rig.envelopes(60)
    async with rig.open() as before:
        await before.declare([plain])
        await publish_or_raise(before, sent[:40])
    reached = asyncio.Event()
    publish = Relocation._publish

    async def stop_after_a_portion(self: Relocation, copies: Sequence[OutgoingMessage]) -> None:
        if len(copies) == 5 and reached.is_set():
            await asyncio.Event().wait()
        await publish(self, copies)
        if len(copies) == 5:
            reached.set()

    with monkeypatch.context() as patched:
        patched.setattr(Relocation, "_publish", stop_after_a_portion)
        patched.setattr(relocation, "AT_ONCE", 5)
        async with rig.open() as interrupted:
            await cancel(interrupted.declare([ordered]), reached)
            await publish_or_raise(interrupted, sent[40:])
    with pytest.raises(UsageError, match="switched on"):
        await (await opened()).set_partitions(replace(plain, order=Order(partitions=5)), 5)
    transport = await opened()
    await transport.declare([ordered])
    effects = Effects()
    async with running(work(transport, ordered, effects)):
        await effects.until(len(sent))
    effects.check_order()


async def test_order_that_was_taken_away_in_part_can_be_declared_again(
    rig: Rig, opened: Opening, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = rig.subscription("reader")
    ordered = replace(plain, order=Order(partitions=3))
    sent = of_each_key(rig, 2)
    async with rig.open() as before:
        await before.declare([ordered])
        await publish_or_raise(before, sent[:KEYS])
    reached = asyncio.Event()
    publish = Relocation._publish

    async def publish_one_portion(self: Relocation, copies: Sequence[OutgoingMessage]) -> None:
        if reached.is_set():
            await asyncio.Event().wait()
        await publish(self, copies)
        if copies:
            reached.set()

    with monkeypatch.context() as patched:
        patched.setattr(Relocation, "_publish", publish_one_portion)
        patched.setattr(relocation, "AT_ONCE", 5)
        async with rig.open() as interrupted:
            await cancel(interrupted.declare([plain]), reached)
    many = replace(plain, order=Order(partitions=5))
    with pytest.raises(UsageError, match="switched off"):
        await (await opened()).set_partitions(many, 5)
    another = await opened()
    await another.declare([many])
    await publish_or_raise(another, sent[KEYS:])
    effects = Effects()
    async with running(work(another, many, effects)):
        await effects.until(len(sent))
    effects.check_order()
    late = Topology(rig.prefix).late_queue(many)
    counts = await count_messages(another._consuming, [late])
    assert counts[late].ready == 0  # it is not bound any more


async def test_workers_that_start_together_keep_the_order_of_unrouted_messages(
    rig: Rig, opened: Opening, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rerouting, "MOVE_BATCH", 100)
    subscription = rig.subscription("ordered", order=Order(partitions=3))
    workers = [await opened() for _ in range(3)]
    sent = rig.envelopes(600)
    await publish_or_raise(workers[0], sent)
    await asyncio.gather(*(worker.declare([subscription]) for worker in workers))
    got = await take(workers[0], subscription, len(sent))
    assert numbers(got) == list(range(len(sent)))


async def test_order_cannot_be_declared_while_workers_without_it_consume(
    rig: Rig, opened: Opening
) -> None:
    plain = rig.subscription("reader")
    ordered = replace(plain, order=Order(partitions=3))
    one, two = await opened(), await opened()
    await one.declare([plain])
    async with one.consume(plain, prefetch=10):
        with pytest.raises(UsageError, match=r"1 worker without order .* start this one again"):
            await two.declare([ordered])
        async with one.consume(plain, prefetch=10):
            with pytest.raises(UsageError, match="2 workers without order still consume"):
                await two.declare([ordered])


async def test_workers_are_noticed_whose_queue_does_not_answer_rabbitmq_at_once(
    rig: Rig, opened: Opening, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RabbitMQ says 0 then."""
    few = rig.subscription("ordered", order=Order(partitions=2))
    one, two = await opened(), await opened()
    count, silent = inspection.count_messages, [True]

    async def count_late(
        connection: BrokerConnection, names: Iterable[str]
    ) -> dict[str, QueueCounts]:
        counts = await count(connection, names)
        return dict.fromkeys(counts, QueueCounts(0, 0)) if silent and silent.pop() else counts

    async with one.consume(few, prefetch=10):
        monkeypatch.setattr(inspection, "count_messages", count_late)
        with pytest.raises(UsageError, match="1 worker with order still consumes"):
            await two.set_partitions(replace(few, order=Order(partitions=5)), 5)


async def test_whoever_waits_for_a_change_of_partitions_learns_what_goes_on(
    rig: Rig, opened: Opening, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relocation, "PATIENCE", 0.0)
    few = rig.subscription("ordered", order=Order(partitions=2))
    one, two = await opened(), await opened()
    async with one._relocation._lock(few).held():
        with pytest.raises(Unreachable, match=f"changing the order .* of {few.name}: wait until"):
            await two.set_partitions(few, 5)


async def test_the_number_of_partitions_changes_while_messages_wait_and_are_published(
    rig: Rig, opened: Opening
) -> None:
    few = rig.subscription("ordered", order=Order(partitions=2))
    many = replace(few, order=Order(partitions=5))
    sent = of_each_key(rig, 8)
    await declare_and_publish(rig, few, sent[: len(sent) // 2])
    first, second = await opened(), await opened()

    async def publish_the_rest() -> None:
        for start in range(len(sent) // 2, len(sent), KEYS // 2):
            await publish_or_raise(first, sent[start : start + KEYS // 2])

    publishing = asyncio.create_task(publish_the_rest())
    assert await second.set_partitions(many, 5) == 2
    await publishing
    third = await opened()
    effects = Effects()
    async with running(work(third, many, effects)):
        await effects.until(len(sent))
    effects.check_order()


async def test_moved_messages_come_in_portions_before_what_was_published_since(
    rig: Rig, opened: Opening, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More of them than a worker holds, and workers that leave in the middle."""
    monkeypatch.setattr(topology, "MOST_HELD", 40)
    few = rig.subscription("ordered", order=Order(partitions=2))
    many = replace(few, order=Order(partitions=5))
    sent = of_each_key(rig, 8)
    await declare_and_publish(rig, few, sent[:360])
    publisher, worker = await opened(), await opened()
    assert await worker.set_partitions(many, 5) == 2
    await publish_or_raise(publisher, sent[360:])
    effects = Effects()

    async def all_are_counted() -> bool:
        return (await worker.stats(many)).ready == len(sent) + 2 * 5  # and the notes

    async def none_is_counted() -> bool:
        return (await worker.stats(many)).ready == 0

    async def nothing_is_left() -> bool:
        return not await count_messages(worker._consuming, Topology(rig.prefix).moved_queues(many))

    await until(all_are_counted)
    for _ in range(2):
        for delivery in await take(worker, many, 60):
            effects.add(delivery.envelope)
    async with running(work(worker, many, effects)):
        await effects.until(len(sent))
        effects.check_order()
        await until(nothing_is_left)
    await until(none_is_counted)


@pytest.mark.parametrize(
    "failure", [None, Unreachable("the connection was lost")], ids=["cancelled", "lost"]
)
async def test_an_interrupted_change_of_partitions_keeps_the_order(
    rig: Rig, opened: Opening, monkeypatch: pytest.MonkeyPatch, failure: Unreachable | None
) -> None:
    monkeypatch.setattr(relocation, "AT_ONCE", 100)
    few = rig.subscription("ordered", order=Order(partitions=1))
    many = replace(few, order=Order(partitions=2))
    sent = rig.envelopes(300)
    await declare_and_publish(rig, few, sent)
    transport = await opened()
    publish = Relocation._publish
    reached = asyncio.Event()

    async def stop_at_a_portion(self: Relocation, copies: Sequence[OutgoingMessage]) -> None:
        if len(copies) > 1:
            if failure is not None:
                raise failure
            reached.set()
            await asyncio.Event().wait()
        await publish(self, copies)

    with monkeypatch.context() as patched:
        patched.setattr(Relocation, "_publish", stop_at_a_portion)
        if failure is None:
            await cancel(transport.set_partitions(many, 2), reached)
        else:
            with pytest.raises(Unreachable):
                await transport.set_partitions(many, 2)
    assert await (await opened()).set_partitions(many, 2) == 1
    assert numbers(await take(transport, many, len(sent))) == list(range(len(sent)))


async def test_interrupted_rerouting_keeps_the_order(
    rig: Rig, opened: Opening, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rerouting, "MOVE_BATCH", 100)
    subscription = rig.subscription("ordered", order=Order(partitions=1))
    sent = rig.envelopes(300)
    transport = await opened()
    await publish_or_raise(transport, sent)
    reached = asyncio.Event()

    async def never_move(*_: object) -> None:
        reached.set()
        await asyncio.Event().wait()

    with monkeypatch.context() as patched:
        patched.setattr(rerouting, "move", never_move)
        await cancel(transport.declare([subscription]), reached)
    another = await opened()
    await another.declare([subscription])
    assert numbers(await take(another, subscription, len(sent))) == list(range(len(sent)))


async def test_a_dead_letter_that_is_replayed_while_partitions_change_is_not_lost(
    rig: Rig, opened: Opening, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = rig.subscription("ordered", order=Order(partitions=1))
    many = replace(few, order=Order(partitions=2))
    monkeypatch.setattr(upkeep, "INTERVAL", 10 * TIMEOUT_SECONDS)  # as of one that only publishes
    transport = await opened()
    await transport.declare([few])
    await publish_or_raise(transport, rig.envelopes(2))
    async with transport.consume(few, prefetch=1) as consumer:
        [first] = await consumer.receive(1)
        await consumer.settle([(first, Dead("no"))])
    [letter] = await transport.dead_letters(few, limit=10)
    publish = Relocation._publish

    async def replay_at_the_end(self: Relocation, copies: Sequence[OutgoingMessage]) -> None:
        if copies and isinstance(
            read(copies[0].properties.headers or {}, copies[0].body), LastMoved
        ):
            assert await transport.replay(few, [letter.id]) == [letter.id]
        await publish(self, copies)

    monkeypatch.setattr(Relocation, "_publish", replay_at_the_end)
    assert await (await opened()).set_partitions(many, 2) == 1
    assert sorted(numbers(await take(await opened(), many, 2))) == [0, 1]


async def test_partitions_are_not_changed_while_somebody_holds_their_messages(
    rig: Rig, url: str, opened: Opening
) -> None:
    """Such as a command that looks into them, or a killed worker whose end RabbitMQ has not noticed
    in all queues."""
    few = rig.subscription("ordered", order=Order(partitions=1))
    many = replace(few, order=Order(partitions=2))
    await declare_and_publish(rig, few, rig.envelopes(20))
    held: asyncio.Queue[DeliveredMessage] = asyncio.Queue()
    connection = await aiormq.connect(url)
    try:
        other = await connection.channel()
        await other.basic_consume(Topology(rig.prefix).partition_queue(few, 1, 0), held.put)
        async with asyncio.timeout(TIMEOUT_SECONDS):
            await held.get()
        changing = asyncio.create_task((await opened()).set_partitions(many, 2))
        await asyncio.wait([changing], timeout=1.5)
        assert not changing.done()
    finally:
        await connection.close()
    assert await changing == 1
    assert numbers(await take(await opened(), many, 20)) == list(range(20))


async def test_partitions_are_not_changed_while_workers_consume(rig: Rig, opened: Opening) -> None:
    few = rig.subscription("ordered", order=Order(partitions=2))
    one, two = await opened(), await opened()
    async with one.consume(few, prefetch=10):
        with pytest.raises(UsageError, match="1 worker with order still consumes"):
            await two.set_partitions(few, 5)


@pytest.mark.parametrize("time", [1, 2], ids=["before-messages-are-moved", "after"])
async def test_an_old_process_that_restores_its_partitions_does_not_undo_a_change(
    rig: Rig, opened: Opening, monkeypatch: pytest.MonkeyPatch, time: int
) -> None:
    """It does so while the exchange that says the number is missing, which happens twice."""
    monkeypatch.setattr(upkeep, "INTERVAL", 10 * TIMEOUT_SECONDS)
    few = rig.subscription("ordered", order=Order(partitions=2))
    many = replace(few, order=Order(partitions=5))
    sent = of_each_key(rig, 3)
    old = await opened()
    await old.declare([few])
    await publish_or_raise(old, sent[:KEYS])
    delete = Channel.exchange_delete
    deleted = 0

    async def delete_and_restore(channel: Channel, exchange: str) -> None:
        nonlocal deleted
        await delete(channel, exchange)
        deleted += exchange == Topology(rig.prefix).workers(few)
        if deleted == time:
            deleted += 1
            await old._upkeep.restore()
            await publish_or_raise(old, sent[KEYS : 2 * KEYS])

    with monkeypatch.context() as patched:
        patched.setattr(Channel, "exchange_delete", delete_and_restore)
        assert await (await opened()).set_partitions(many, 5) == 2
    await publish_or_raise(old, sent[2 * KEYS :])
    assert not await count_messages(old._consuming, Topology(rig.prefix).queues(few))
    effects = Effects()
    async with running(work(await opened(), many, effects)):
        await effects.until(len(sent))
    effects.check_order()


async def leave_out(old: AmqpTransport, new: AmqpTransport, few: Subscription) -> None:
    """Let a round of the old process's upkeep leave it out, as while partitions are changed."""

    async def is_left_out() -> bool:
        return old._upkeep._known_changed == [few]

    exchange = new._relocation._workers_exchange
    await new._relocation._replace(exchange(few, is_moving=True))
    await until(is_left_out)
    await new._relocation._replace(exchange(few))


@pytest.mark.parametrize("when", ["starts", "restores", "restores after it has left it out"])
async def test_nothing_reaches_partitions_that_are_declared_after_their_number_has_changed(
    rig: Rig, opened: Opening, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """A process of the old version stands still for the whole change, after it has looked at the
    number and before it declares the partitions."""
    monkeypatch.setattr(upkeep, "INTERVAL", 0.2)
    monkeypatch.setattr(upkeep, "ROUNDS_BETWEEN_LOOKS", 1)
    few = rig.subscription("ordered", order=Order(partitions=2))
    many = replace(few, order=Order(partitions=5))
    names = Topology(rig.prefix)
    number = names.workers_exchange(few, Order(partitions=2))
    sent = rig.envelopes(30)
    await declare_and_publish(rig, few, sent[:10])
    old, new = await opened(), await opened()
    numbers_before: list[int | None] = []
    went_on = asyncio.Event()

    async def stand_still(channel: Channel, entities: Sequence[Entity]) -> None:
        if number not in entities or numbers_before:
            await declare_all(channel, entities)
            return
        looked = entities.index(number) + 1
        await declare_all(channel, entities[:looked])
        numbers_before.append(await new.set_partitions(many, 5))
        try:
            await declare_all(channel, entities[looked:])
        finally:
            went_on.set()

    async def old_ways_are_gone() -> bool:
        try:
            async with old._consuming.channel() as channel:
                await channel.exchange_declare(names.partitions_exchange(few, 2), passive=True)
        except ChannelNotFoundEntity:
            return went_on.is_set()
        return False

    if when == "restores after it has left it out":
        old._upkeep.cover([few])
        await leave_out(old, new, few)
    monkeypatch.setattr(connection if when == "starts" else upkeep, "declare_all", stand_still)
    if when == "starts":
        with pytest.raises(UsageError, match="another number"):
            await old.declare([few])
        assert await old_ways_are_gone()
    else:
        old._upkeep.cover([few])
        await until(old_ways_are_gone)
    assert numbers_before == [2]
    await publish_or_raise(new, sent[10:])
    counts = await count_messages(old._consuming, names.queues(few))
    assert not any(each.ready for each in counts.values())
    assert numbers(await take(new, many, len(sent))) == list(range(len(sent)))


async def test_changed_partitions_do_not_keep_a_process_from_restoring_other_subscriptions(
    rig: Rig, url: str, opened: Opening, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is paused, or drains others."""
    monkeypatch.setattr(upkeep, "INTERVAL", 10 * TIMEOUT_SECONDS)
    few = rig.subscription("ordered", order=Order(partitions=2))
    many = replace(few, order=Order(partitions=5))
    other = rig.subscription("other")
    names = Topology(rig.prefix)
    old, new = await opened(), await opened()
    await old.declare([few, other])
    assert await new.set_partitions(many, 5) == 2
    connection = await aiormq.connect(url)
    try:
        operator = await connection.channel()
        for message in other.messages:
            await operator.queue_unbind(names.queue(other), names.exchange, message)
            await operator.queue_unbind(names.queue(other), names.message_exchange(message))
    finally:
        await connection.close()
    await old._upkeep.restore()
    await publish_or_raise(new, rig.envelopes(10))
    assert len(await take(old, other, 10)) == 10
    assert not await count_messages(new._consuming, names.queues(few))


async def test_a_worker_that_starts_while_partitions_change_does_not_consume(
    rig: Rig, opened: Opening, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "INTERVAL", 10 * TIMEOUT_SECONDS)
    few = rig.subscription("ordered", order=Order(partitions=2))
    many = replace(few, order=Order(partitions=5))
    await declare_and_publish(rig, few, rig.envelopes(20))
    old, new = await opened(), await opened()
    join = Workers.join

    async def join_late(self: Workers, *arguments: Any) -> None:
        await new._relocation._replace(
            Topology(rig.prefix).workers_exchange(few, Order(partitions=5), is_moving=True)
        )
        await join(self, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(Workers, "join", join_late)
        with pytest.raises(UsageError, match="another number"):
            async with old.consume(few, prefetch=10):
                pass
    assert await new.set_partitions(many, 5) == 2
    assert numbers(await take(new, many, 20)) == list(range(20))


async def test_partitions_are_not_changed_if_a_worker_starts_in_that_moment(
    rig: Rig, opened: Opening, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = rig.subscription("ordered", order=Order(partitions=2))
    many = replace(few, order=Order(partitions=5))
    old, new = await opened(), await opened()
    await old.declare([few])
    await publish_or_raise(old, rig.envelopes(20))
    replace_exchange = Relocation._replace
    async with AsyncExitStack() as stack:
        started: list[Consumer] = []

        async def start_a_worker(self: Relocation, exchange: Exchange) -> None:
            if not started:
                started.append(await stack.enter_async_context(old.consume(few, prefetch=20)))
            await replace_exchange(self, exchange)

        monkeypatch.setattr(Relocation, "_replace", start_a_worker)
        with pytest.raises(UsageError, match="1 worker with order still consumes"):
            await new.set_partitions(many, 5)
        assert numbers(await receive(started[0], 20)) == list(range(20))
    assert await new.set_partitions(many, 5) == 2
    assert numbers(await take(new, many, 20)) == list(range(20))


async def test_deleted_ways_to_partitions_are_restored(
    rig: Rig,
    url: str,
    opened: Opening,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(upkeep, "INTERVAL", 0.2)
    monkeypatch.setattr(upkeep, "GRACE", 0.3)
    subscription = rig.subscription("ordered", order=Order(partitions=3))
    transport = await opened()
    await transport.declare([subscription])
    names = Topology(rig.prefix)
    effects = Effects()
    sent = of_each_key(rig, 2)
    connection = await aiormq.connect(url)
    try:
        operator = await connection.channel()
        async with running(work(transport, subscription, effects)):
            await publish_or_raise(transport, sent[:KEYS])
            await effects.until(KEYS)
            await operator.exchange_delete(names.partitions_exchange(subscription, 4))
            await operator.exchange_delete(names.exchange)
            await publish_or_raise(transport, sent[KEYS:])
            await effects.until(len(sent))
    finally:
        await connection.close()
