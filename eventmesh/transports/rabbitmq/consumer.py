"""Consuming a subscription's queue over a channel of its own, and settling what was delivered."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import suppress

from aiormq.abc import DeliveredMessage
from aiormq.channel import Channel

from eventmesh.clock import Clock
from eventmesh.errors import Unreachable
from eventmesh.transports.base import Delivery, Subscription
from eventmesh.transports.outcome import Dead, Done, Outcome, RetryAfter
from eventmesh.transports.rabbitmq.connection import (
    LEAVE_TIMEOUT,
    BrokerConnection,
    close_channel,
)
from eventmesh.transports.rabbitmq.frames import Deliveries
from eventmesh.transports.rabbitmq.headers import attempt_and_deliveries
from eventmesh.transports.rabbitmq.received import ReceivedMessage
from eventmesh.transports.rabbitmq.settlement import (
    ACK_TIME,
    ACKS_IN_FLIGHT,
    Original,
    Republisher,
    plan_acknowledgements,
)
from eventmesh.transports.rabbitmq.topology import Topology
from eventmesh.wire.cloudevents import from_headers


class AmqpConsumer:
    """One worker's consumer of a subscription.

    `_held` are the messages that were delivered and not acknowledged, by their tag and in its
    order; `_settling` are the tags of those that a call to `settle` is busy with.
    """

    def __init__(
        self,
        consuming: BrokerConnection,
        publishing: BrokerConnection,
        subscription: Subscription,
        topology: Topology,
        clock: Clock,
    ) -> None:
        self._connection = consuming
        self._republisher = Republisher[int](
            publishing, topology, subscription, clock, self._acknowledge
        )
        self._subscription = subscription
        self._queue = topology.queue(subscription)
        self._clock = clock
        self._channel: Channel | None = None
        self._arrived: deque[ReceivedMessage] = deque()
        self._held: dict[int, ReceivedMessage] = {}
        self._settling: set[int] = set()
        self._changed = asyncio.Event()
        self._acknowledging = asyncio.Lock()
        self._acks_sent, self._last_ack_at = 0, 0.0  # without a pause of ACK_TIME between two
        self._lost: str | None = None

    async def start(self, prefetch: int) -> None:
        """Let the broker deliver."""
        async with self._connection.guard():
            self._channel = channel = await self._connection.open_channel()
            channel.closing.add_done_callback(lambda _: self._lose("its channel is closed"))
            channel.on_consumer_cancel_callbacks.add(
                lambda _: self._lose("the broker cancelled the consumer: its queue is gone")
            )
            self._connection.tap(channel, Deliveries(self._arrive))
            await channel.basic_qos(prefetch_count=prefetch)
            await channel.basic_consume(self._queue, _ignore)

    async def receive(self, limit: int) -> Sequence[Delivery]:
        while self._lost is None and not self._arrived:
            self._changed.clear()
            await self._changed.wait()
        self._check_channel()
        # No await from here on, so that a cancellation cannot lose what was taken.
        count = min(limit, len(self._arrived))
        return [self._deliver(self._arrived.popleft()) for _ in range(count)]

    async def settle(self, settlements: Sequence[tuple[Delivery, Outcome]]) -> None:
        mine = {
            delivery.token.tag: (delivery, outcome)
            for delivery, outcome in reversed(settlements)  # the first outcome of each counts
            if self._may_settle(delivery)
        }
        if not mine:
            return
        self._check_channel()
        done: set[int] = set()
        to_republish: dict[int, tuple[Original, RetryAfter | Dead]] = {}
        for tag, (delivery, outcome) in mine.items():
            if isinstance(outcome, Done):
                done.add(tag)
            else:
                to_republish[tag] = _original_of(delivery), outcome
        self._settling |= mine.keys()
        try:
            # First, because republishing may have to wait for a broker that takes no messages.
            await self._acknowledge(done)
            await self._republisher.republish(dict(sorted(to_republish.items())))
        finally:
            self._settling -= mine.keys()

    async def leave(self) -> None:
        """Give back what is unsettled. Never fails: a lost broker has taken it back."""
        self._lose("its context was left")
        try:
            with suppress(Unreachable):
                async with self._connection.guard(LEAVE_TIMEOUT):
                    await self._give_back()
        finally:
            with suppress(Unreachable):
                async with self._connection.guard(LEAVE_TIMEOUT):
                    await self._republisher.close()

    async def _give_back(self) -> None:
        """Close the channel, without cancelling the consumer before: what is delivered during the
        cancellation would go back before what the consumer holds, and so out of order."""
        since = self._clock.monotonic() - self._last_ack_at
        if self._acks_sent > ACKS_IN_FLIGHT and since < ACK_TIME:
            # RabbitMQ would drop acknowledgements that it has postponed, and deliver their messages
            # again. Apart from cancelling, no command waits for them.
            await self._clock.sleep(ACK_TIME - since)
        channel, self._channel = self._channel, None
        self._held.clear()
        self._arrived.clear()
        if channel is not None:
            await close_channel(channel)

    def _arrive(self, message: ReceivedMessage) -> None:
        self._arrived.append(message)
        self._changed.set()

    def _lose(self, why: str) -> None:
        self._lost = self._lost or why
        self._changed.set()

    def _may_settle(self, delivery: Delivery) -> bool:
        """Whether it is unsettled, and no other call is settling it."""
        tag = delivery.token.tag
        return self._held.get(tag) is delivery.token and tag not in self._settling

    def _check_channel(self) -> Channel:
        """The channel; Unreachable once it is lost."""
        if self._lost is not None or self._channel is None:
            raise Unreachable(
                f"The broker at {self._connection.address} no longer delivers "
                f"{self._subscription.name}: {self._lost}. Open a new consumer."
            )
        return self._channel

    def _deliver(self, message: ReceivedMessage) -> Delivery:
        content_type, headers = message.essentials()
        attempt, deliveries = attempt_and_deliveries(headers)
        self._held[message.tag] = message
        return Delivery(
            from_headers(headers, content_type, message.body),
            attempt=attempt,
            deliveries=deliveries,
            token=message,
        )

    async def _acknowledge(self, tags: Iterable[int]) -> None:
        # One call at a time: an acknowledgement of many must not be overtaken by a later one.
        async with self._acknowledging, self._connection.guard():
            wanted = [tag for tag in tags if tag in self._held]
            if not wanted:
                return
            channel = self._check_channel()
            acknowledgements = plan_acknowledgements(self._held, set(wanted))
            for tag in wanted:
                del self._held[tag]
            now = self._clock.monotonic()
            if now - self._last_ack_at >= ACK_TIME:
                self._acks_sent = 0
            self._acks_sent += len(acknowledgements)
            self._last_ack_at = now
            for tag, multiple in acknowledgements:
                await channel.basic_ack(tag, multiple=multiple, wait=False)


def _original_of(delivery: Delivery) -> Original:
    message: ReceivedMessage = delivery.token
    _, headers = message.essentials()
    return Original(message.properties(), headers, message.body, delivery.attempt)


async def _ignore(_: DeliveredMessage) -> None:
    """The client library's callback; deliveries go to the tap instead."""
