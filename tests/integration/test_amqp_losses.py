"""Exchanges, bindings and queues are deleted while publishers and consumers run. Every published
message still reaches every subscription, without help from an operator."""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import aiormq
import pytest
from aiormq.exceptions import ChannelNotFoundEntity

from eventmesh.clock import SystemClock
from eventmesh.errors import Unreachable
from eventmesh.testing.servers import WAYS
from eventmesh.transports.base import Subscription, Transport, TransportOptions, publish_or_raise
from eventmesh.transports.factory import open_transport
from eventmesh.transports.outcome import DONE
from eventmesh.transports.rabbitmq import upkeep as amqp_upkeep
from eventmesh.transports.rabbitmq.rerouting import ForeignSearch
from eventmesh.transports.rabbitmq.topology import Topology
from eventmesh.transports.rabbitmq.transport import AmqpTransport
from eventmesh.transports.rabbitmq.upkeep import TopologyUpkeep
from eventmesh.wire.envelope import Envelope
from tests.support.moved_clock import MovedClock

if TYPE_CHECKING:
    from tests.conftest import Servers

TIMEOUT_SECONDS = 120.0
MOST_ROUNDS = 100
"""Rounds of upkeep within which a message arrives, whatever was deleted. On a fast machine these
are 24 s; a message waits at most for GRACE and FOREIGN_INTERVAL, 8 s in the test below."""
MESSAGE = "test.happened"
ONE, TWO = Subscription("test.one", (MESSAGE,)), Subscription("test.two", (MESSAGE,))

Operator = aiormq.abc.AbstractChannel
Deletion = Callable[[Operator, Topology], Awaitable[object]]


async def the_exchange(operator: Operator, topology: Topology) -> None:
    await operator.exchange_delete(topology.exchange)


async def the_exchange_of_a_message(operator: Operator, topology: Topology) -> None:
    await operator.exchange_delete(topology.message_exchange(MESSAGE))


async def a_binding(operator: Operator, topology: Topology) -> None:
    await operator.queue_unbind(topology.queue(ONE), topology.exchange, MESSAGE)


async def a_binding_of_the_message(operator: Operator, topology: Topology) -> None:
    await operator.queue_unbind(topology.queue(ONE), topology.message_exchange(MESSAGE))


async def the_exchange_of_unrouted_messages(operator: Operator, topology: Topology) -> None:
    await operator.exchange_delete(topology.unrouted_exchange)
    await the_exchange(operator, topology)


async def the_queue_of_unrouted_messages(operator: Operator, topology: Topology) -> None:
    await operator.queue_delete(topology.unrouted_queue(MESSAGE))
    await the_exchange(operator, topology)


async def the_exchange_of_foreign_messages(operator: Operator, topology: Topology) -> None:
    await operator.exchange_delete(topology.foreign)
    await operator.queue_delete(topology.foreign)
    await the_exchange(operator, topology)


async def every_exchange(operator: Operator, topology: Topology) -> None:
    await operator.exchange_delete(topology.message_exchange(MESSAGE))
    for name in (topology.exchange, topology.unrouted_exchange, topology.foreign):
        await operator.exchange_delete(name)


async def the_queue_of_a_subscription(operator: Operator, topology: Topology) -> None:
    await operator.queue_delete(topology.queue(ONE))


LOSSES: tuple[Deletion, ...] = (
    the_exchange,
    the_exchange_of_a_message,
    a_binding,
    a_binding_of_the_message,
    the_exchange_of_unrouted_messages,
    the_queue_of_unrouted_messages,
    the_exchange_of_foreign_messages,
)
"""After these, each of two subscriptions gets every message once."""

LOSSES_OF_ONE: tuple[Deletion, ...] = (
    every_exchange,
    the_queue_of_a_subscription,
    a_binding_of_the_message,
)
"""After these, the only subscription to a message gets everything at least once. Messages may be
stored as unrouted and rerouted later, also while another binding has already delivered them."""


@pytest.fixture(params=WAYS)
def url(request: pytest.FixtureRequest, servers: Servers) -> str:
    """A RabbitMQ of each generation that is available."""
    return servers.had_by("rabbitmq", request.param).url


def envelopes(count: int) -> list[Envelope]:
    clock = SystemClock()
    required = {"specversion": "1.0", "source": "/test", "type": MESSAGE}
    return [Envelope({**required, "id": clock.new_id()}, b"{}") for _ in range(count)]


async def consume(transport: Transport, subscription: Subscription, seen: Counter[str]) -> None:
    """Consume until cancelled, like a worker."""
    while True:
        try:
            async with transport.consume(subscription, prefetch=10) as consumer:
                while True:
                    got = await consumer.receive(10)
                    await consumer.settle([(delivery, DONE) for delivery in got])
                    seen.update(delivery.envelope.id for delivery in got)
        except Unreachable:
            await asyncio.sleep(0.05)


class UpkeepRounds:
    """Counts the rounds of upkeep that have ended, well or badly. What was deleted is restored in
    rounds, and these become slower where the machine is slow, so they are the limit here."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._ended: Counter[int] = Counter()
        self._running = 0
        self._may_begin = asyncio.Event()
        self._may_begin.set()
        restore = TopologyUpkeep.restore

        async def restore_and_count(upkeep: TopologyUpkeep) -> None:
            await self._may_begin.wait()
            self._running += 1
            try:
                await restore(upkeep)
            finally:
                self._running -= 1
                self._ended[id(upkeep)] += 1

        monkeypatch.setattr(TopologyUpkeep, "restore", restore_and_count)

    def ended(self, transport: Transport) -> int:
        assert isinstance(transport, AmqpTransport)
        return self._ended[id(transport._upkeep)]

    @asynccontextmanager
    async def paused(self) -> AsyncIterator[None]:
        """Have no round in the block."""
        self._may_begin.clear()
        while self._running:  # noqa: ASYNC110  # ends within a round
            await asyncio.sleep(0.01)
        try:
            yield
        finally:
            self._may_begin.set()


async def until(
    condition: Callable[[], bool],
    rounds: UpkeepRounds,
    transport: Transport,
    consuming: list[asyncio.Task[None]],
) -> None:
    """Return once the condition holds, which it must before MOST_ROUNDS more rounds of this
    transport have ended. Raises the error of a consumer that has ended meanwhile."""
    last = rounds.ended(transport) + MOST_ROUNDS
    while not condition():
        for task in consuming:
            if task.done():
                task.result()
        assert rounds.ended(transport) < last, f"not after {MOST_ROUNDS} rounds of upkeep"
        await asyncio.sleep(0.02)


async def check_survives(
    url: str,
    deletion: Deletion,
    subscriptions: list[Subscription],
    rounds: UpkeepRounds,
    *,
    once: bool,
) -> None:
    """Check that messages published right after this deletion and later reach these
    subscriptions."""
    options = TransportOptions(prefix=f"test-{secrets.token_hex(5)}")
    topology = Topology(options.prefix)
    connection = await aiormq.connect(url)
    seen: list[Counter[str]] = [Counter() for _ in subscriptions]
    try:
        async with (
            open_transport(url, SystemClock(), options) as publisher,
            open_transport(url, SystemClock(), options) as first,
            open_transport(url, SystemClock(), options) as second,
        ):
            tasks = [
                asyncio.ensure_future(consume(transport, subscription, ids))
                for transport, subscription, ids in zip(
                    (first, second), subscriptions, seen, strict=False
                )
            ]

            counted: set[str] = set()

            async def publish_until_seen() -> None:
                sent = {each.id: each for each in envelopes(3)}
                counted.update(sent)
                await publish_until_accepted(publisher, [*sent.values()])
                await until(
                    lambda: all(sent.keys() <= ids.keys() for ids in seen), rounds, first, tasks
                )

            async def publish_during_a_round() -> None:
                """So that the next messages are published when some of it may be restored."""
                before = rounds.ended(first)
                await publish_until_seen()
                await until(lambda: rounds.ended(first) > before, rounds, first, tasks)

            try:
                for each in subscriptions:
                    await first.declare([each])
                # What one queue rejects, another one may have taken.
                await publish_until_accepted(publisher, envelopes(1))
                await publish_until_seen()
                if deletion is the_queue_of_a_subscription:
                    # RabbitMQ 3.10 tells a consumer nothing if its queue is declared again within
                    # 10 ms of its deletion, and delivers to it no more; 4.0 tells it.
                    async with rounds.paused():
                        await deletion(await connection.channel(), topology)
                        await until_declared(connection, topology.queue(ONE))
                else:
                    await deletion(await connection.channel(), topology)
                for _ in range(3):
                    await publish_during_a_round()
                if once:
                    # No message is left that could be delivered again later.
                    assert await publisher.unrouted([MESSAGE]) == []
                    assert {ids[each] for ids in seen for each in counted} == {1}
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks)
    except AssertionError as error:
        raise AssertionError(f"{deletion.__name__}: {error}; delivered: {seen}") from error
    finally:
        await connection.close()


async def publish_until_accepted(transport: Transport, sent: Sequence[Envelope]) -> None:
    """Publish as relays do, again what RabbitMQ rejects: a quorum queue that was just declared has
    no leader for a moment, which is long on a busy machine."""
    async with asyncio.timeout(TIMEOUT_SECONDS):
        while True:
            result = await transport.publish(sent)
            if result.error is not None:
                raise result.error
            sent = [each for each in sent if each.id in result.rejected]
            if not sent:
                return
            await asyncio.sleep(0.02)


async def until_declared(connection: aiormq.abc.AbstractConnection, queue: str) -> None:
    """Return once the queue exists."""
    async with asyncio.timeout(TIMEOUT_SECONDS):
        while True:
            channel = await connection.channel()
            try:
                await channel.queue_declare(queue, passive=True)
            except ChannelNotFoundEntity:  # RabbitMQ has closed the channel
                await asyncio.sleep(0.02)
            else:
                return


@asynccontextmanager
async def operating(url: str) -> AsyncIterator[Operator]:
    """A channel of an operator who knows nothing about EventMesh."""
    connection = await aiormq.connect(url)
    try:
        yield await connection.channel()
    finally:
        await connection.close()


async def take_all(transport: Transport, subscription: Subscription, sent: list[Envelope]) -> None:
    """Consume until the subscription has received all of these."""
    missing = {each.id for each in sent}
    async with (
        asyncio.timeout(TIMEOUT_SECONDS),
        transport.consume(subscription, prefetch=100) as consumer,
    ):
        while missing:
            got = await consumer.receive(100)
            await consumer.settle([(delivery, DONE) for delivery in got])
            missing -= {delivery.envelope.id for delivery in got}


async def test_a_publisher_restores_the_bindings_of_subscriptions_whose_processes_are_stopped(
    url: str,
) -> None:
    options, sent = TransportOptions(prefix=f"test-{secrets.token_hex(5)}"), envelopes(10)
    async with operating(url) as operator, open_transport(url, SystemClock(), options) as publisher:
        await publish_or_raise(publisher, envelopes(1))  # the publisher has declared what it needs
        async with open_transport(url, SystemClock(), options) as stopped:
            await stopped.declare([ONE, TWO])
        await the_exchange(operator, Topology(options.prefix))
        await publish_or_raise(publisher, sent)
        assert await publisher.unrouted([MESSAGE]) == []
        for subscription in (ONE, TWO):
            await take_all(publisher, subscription, sent)


async def test_messages_of_an_existing_subscription_are_rerouted_before_anything_is_purged(
    url: str,
) -> None:
    """The messages are unrouted because the bindings of the subscription were deleted for a
    while."""
    options, sent = TransportOptions(prefix=f"test-{secrets.token_hex(5)}"), envelopes(10)
    topology = Topology(options.prefix)
    async with operating(url) as operator, open_transport(url, SystemClock(), options) as publisher:
        async with open_transport(url, SystemClock(), options) as stopped:
            await stopped.declare([ONE])
        for exchange in (topology.exchange, topology.message_exchange(MESSAGE)):
            await operator.queue_unbind(topology.queue(ONE), exchange, MESSAGE)
            await operator.queue_unbind(topology.queue(ONE), exchange, "")
        await publish_or_raise(publisher, sent)
        [waiting] = await publisher.unrouted([MESSAGE])
        assert waiting.number == 10
        await operator.queue_bind(topology.queue(ONE), topology.message_exchange(MESSAGE), "")
        assert await publisher.purge_unrouted(MESSAGE, [ONE], keep=4) == 0
        await take_all(publisher, ONE, sent)


async def everything(operator: Operator, topology: Topology) -> None:
    await every_exchange(operator, topology)
    for subscription in (ONE, TWO):
        await operator.queue_delete(topology.queue(subscription))
    for queue in (topology.unrouted_queue(MESSAGE), topology.foreign):
        await operator.queue_delete(queue)


async def test_after_everything_was_deleted_both_subscriptions_get_the_unrouted_messages(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(amqp_upkeep, "INTERVAL", 3600.0)  # the test calls it
    monkeypatch.setattr(amqp_upkeep, "REROUTING_INTERVAL", 3600.0)
    options, sent = TransportOptions(prefix=f"test-{secrets.token_hex(5)}"), envelopes(10)
    clock = MovedClock()
    async with (
        operating(url) as operator,
        open_transport(url, SystemClock(), options) as publisher,
        open_transport(url, clock, options) as first,
        open_transport(url, clock, options) as second,
    ):
        assert isinstance(first, AmqpTransport)
        for transport, subscription in ((first, ONE), (second, TWO)):
            await transport.declare([subscription])
            async with transport.consume(subscription, prefetch=1):
                pass
        await everything(operator, Topology(options.prefix))
        await publish_or_raise(publisher, sent)
        async with first.consume(ONE, prefetch=1):
            await first._upkeep.restore()
        async with second.consume(TWO, prefetch=1):
            pass
        clock.ahead += amqp_upkeep.GRACE
        await first._upkeep.restore()
        await take_all(second, TWO, sent)
        await take_all(first, ONE, sent)


async def test_foreign_messages_are_not_searched_while_another_process_inspects(
    url: str,
) -> None:
    options, sent = TransportOptions(prefix=f"test-{secrets.token_hex(5)}"), envelopes(3)
    topology = Topology(options.prefix)
    async with operating(url) as operator, open_transport(url, SystemClock(), options) as transport:
        assert isinstance(transport, AmqpTransport)
        await publish_or_raise(transport, envelopes(1))
        unrouted = topology.unrouted_queue(MESSAGE)
        search = transport._rerouter.search_foreign
        await operator.queue_unbind(unrouted, topology.unrouted_exchange, MESSAGE)
        await publish_or_raise(transport, sent)
        await operator.queue_declare(topology.inspection_lock, exclusive=True)
        assert await search([MESSAGE], known=0) is None
        await operator.queue_delete(topology.inspection_lock)
        assert await search([MESSAGE], known=3) == ForeignSearch(3, Counter())
        assert [each.number for each in await transport.unrouted([MESSAGE])] == [1, 3]
        await operator.queue_bind(unrouted, topology.unrouted_exchange, MESSAGE)
        found = await search([MESSAGE], known=0)
        assert found == ForeignSearch(3, Counter({MESSAGE: 3}))
        [waiting] = await transport.unrouted([MESSAGE])
        assert (waiting.message, waiting.number) == (MESSAGE, 4)


async def test_whatever_is_deleted_is_restored_and_no_message_is_lost(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(amqp_upkeep, "INTERVAL", 0.8)
    monkeypatch.setattr(amqp_upkeep, "REROUTING_INTERVAL", 0.3)
    # Within it, the other process restores its subscription, on a slow machine, too.
    monkeypatch.setattr(amqp_upkeep, "GRACE", 6.0)
    monkeypatch.setattr(amqp_upkeep, "FOREIGN_INTERVAL", 2.0)
    rounds = UpkeepRounds(monkeypatch)
    await asyncio.gather(
        *(check_survives(url, deletion, [ONE, TWO], rounds, once=True) for deletion in LOSSES),
        *(check_survives(url, deletion, [ONE], rounds, once=False) for deletion in LOSSES_OF_ONE),
    )
