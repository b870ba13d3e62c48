"""Consuming: one channel that the broker pushes deliveries to, and their settlement."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import structlog
from aiormq.abc import DeliveredMessage
from aiormq.channel import Channel

from eventmesh.clock import Clock
from eventmesh.errors import Unreachable
from eventmesh.transports.base import Delivery, Subscription
from eventmesh.transports.outcome import Dead, Done, Outcome, RetryAfter
from eventmesh.transports.rabbitmq.connection import LEAVE_TIMEOUT, Link, close_channel
from eventmesh.transports.rabbitmq.frames import Arrived, Deliveries
from eventmesh.transports.rabbitmq.parcels import Cut, Parcel, again
from eventmesh.transports.rabbitmq.publishing import (
    PUBLISH_TIMEOUT,
    Sender,
    Shipment,
    is_of_content,
)
from eventmesh.transports.rabbitmq.topology import (
    ATTEMPT,
    Piece,
    Topology,
    buried,
    count_in,
    delay_step,
    plan_acks,
    retried,
)
from eventmesh.wire.cloudevents import from_headers

REFUSED_DELAY = 30.0
"""Seconds after which a message comes again whose queue of retries or dead letters is full."""

_Settlements = dict[int, tuple[Delivery, Outcome]]
"""What became of deliveries, by their tags."""


@dataclass(frozen=True, slots=True)
class _Copy:
    """A copy of a delivered message, and the pieces of topology that it needs."""

    parcel: Parcel
    needs: Sequence[Piece]


PUT_OFF_AFTER = 32
"""Acknowledgements on their way after which RabbitMQ puts off the next: see `amqp_taking`."""

PASSED_ON = 0.5
"""Seconds after which it has passed them on; usually it takes a few milliseconds."""


class AmqpConsumer:
    """A worker's hold on one subscription's queue."""

    def __init__(
        self,
        consuming: Link,
        publishing: Link,
        subscription: Subscription,
        topology: Topology,
        clock: Clock,
    ) -> None:
        self._link = consuming
        self._sender = Sender(publishing)
        self._subscription = subscription
        self._topology = topology
        self._needs = topology.for_subscription(subscription)
        self._clock = clock
        self._channel: Channel | None = None
        self._arrived: deque[Arrived] = deque()
        self._held: dict[int, Arrived] = {}
        self._settling: set[int] = set()
        self._changed = asyncio.Event()
        self._acknowledging = asyncio.Lock()
        self._acks_sent, self._last_ack_at = 0, 0.0  # without a pause of PASSED_ON between two
        self._lost: str | None = None
        self._log: structlog.stdlib.BoundLogger = structlog.get_logger("eventmesh.rabbitmq")

    async def start(self, prefetch: int) -> None:
        """Let deliveries come."""
        async with self._link.call():
            self._channel = channel = await self._link.new_channel()
            channel.closing.add_done_callback(lambda _: self._lose("its channel is closed"))
            channel.on_consumer_cancel_callbacks.add(
                lambda _: self._lose("the broker cancelled the consumer: its queue is gone")
            )
            self._link.tap(channel, Deliveries(self._arrive))
            await channel.basic_qos(prefetch_count=prefetch)
            await channel.basic_consume(self._topology.queue(self._subscription), _not_called)

    async def receive(self, limit: int) -> Sequence[Delivery]:
        while self._lost is None and not self._arrived:
            self._changed.clear()
            await self._changed.wait()
        self._working()
        # No await from here on: a cancellation cannot lose what was taken.
        count = min(limit, len(self._arrived))
        return [self._deliver(self._arrived.popleft()) for _ in range(count)]

    async def settle(self, settlements: Sequence[tuple[Delivery, Outcome]]) -> None:
        mine = {
            delivery.token.tag: (delivery, outcome)
            for delivery, outcome in reversed(settlements)  # the first word on each counts
            if self._may_settle(delivery)
        }
        if not mine:
            return
        self._working()
        done = {tag for tag, (_, outcome) in mine.items() if isinstance(outcome, Done)}
        self._settling |= mine.keys()
        try:
            # First, because the others may have to wait for a broker that takes no messages.
            await self._acknowledge(done)
            await self._send_on({tag: mine[tag] for tag in mine if tag not in done})
        finally:
            self._settling -= mine.keys()

    async def leave(self) -> None:
        """Give back what is unsettled. Never fails: a broker that is gone has taken it back."""
        self._lose("its context was left")
        try:
            with suppress(Unreachable):
                async with self._link.call(LEAVE_TIMEOUT):
                    await self._give_back()
        finally:
            with suppress(Unreachable):
                async with self._link.call(LEAVE_TIMEOUT):
                    await self._sender.close()

    async def _give_back(self) -> None:
        """By closing the channel, and no more: what is pushed while a consumer is being cancelled
        would go back before what it holds, and come out of order."""
        since = self._clock.monotonic() - self._last_ack_at
        if self._acks_sent > PUT_OFF_AFTER and since < PASSED_ON:
            # RabbitMQ would drop those that it has put off, and deliver their messages again. It
            # has no command that waits for them, except for cancelling.
            await self._clock.sleep(PASSED_ON - since)
        channel, self._channel = self._channel, None
        self._held.clear()
        self._arrived.clear()
        if channel is not None:
            await close_channel(channel)

    def _arrive(self, message: Arrived) -> None:
        self._arrived.append(message)
        self._changed.set()

    def _lose(self, why: str) -> None:
        self._lost = self._lost or why
        self._changed.set()

    def _may_settle(self, delivery: Delivery) -> bool:
        """Whether it is unsettled, and nobody is settling it."""
        tag = delivery.token.tag
        return self._held.get(tag) is delivery.token and tag not in self._settling

    def _working(self) -> Channel:
        """The channel; Unreachable once it is lost."""
        if self._lost is not None or self._channel is None:
            raise Unreachable(
                f"The broker at {self._link.address} no longer delivers "
                f"{self._subscription.name}: {self._lost}. Consume it anew."
            )
        return self._channel

    def _deliver(self, message: Arrived) -> Delivery:
        content_type, headers = message.essentials()
        self._held[message.tag] = message
        return Delivery(
            from_headers(headers, content_type, message.body),
            attempt=count_in(headers, ATTEMPT, 1),
            deliveries=1 + count_in(headers, "x-delivery-count", 0),
            token=message,
        )

    async def _send_on(self, mine: _Settlements) -> None:
        """Store copies of what is to be retried or dead, and acknowledge it.

        What RabbitMQ does not take where it belongs must neither be lost nor block the others: a
        message that cannot be retried for what is in it becomes a dead letter, one whose queue
        refuses it (full by a policy, say) waits for REFUSED_DELAY and comes again as it was. Only
        where that is refused as well it goes to the end of its own queue, which is Unreachable, so
        that whoever consumes goes slowly.
        """
        refused = await self._store({tag: self._asked(*mine[tag]) for tag in sorted(mine)})
        if unwritable := [
            tag
            for tag, error in refused.items()
            if is_of_content(error) and isinstance(mine[tag][1], RetryAfter)
        ]:
            dead = {tag: _too_odd_for_a_retry(refused.pop(tag)) for tag in unwritable}
            refused |= await self._store(
                {tag: self._bury(mine[tag][0], dead[tag]) for tag in unwritable}
            )
        if not refused:
            return
        why = str(next(iter(refused.values())))
        self._log.warning(
            "message refused by its queue",
            subscription=self._subscription.name,
            messages=len(refused),
            reason=why,
            again_after=REFUSED_DELAY,
        )
        refused = await self._store(
            {tag: self._come_again(mine[tag], REFUSED_DELAY) for tag in refused}
        )
        if not refused:
            return
        left = await self._store({tag: self._come_again(mine[tag], 0.0) for tag in refused})
        raise Unreachable(
            f"The broker did not take {len(refused)} message(s) of {self._subscription.name} for a "
            f"retry or as dead letters, so they will come again: {why}. "
            + (
                f"Neither its queue for delays nor its own queue takes {len(left)} of them: see "
                f"which policies of RabbitMQ limit them."
                if left
                else "Nor does its queue for delays: see which policies of RabbitMQ limit them."
            )
        )

    async def _store(self, asked: Mapping[int, _Copy]) -> dict[int, BaseException]:
        """Publish these copies, and acknowledge their messages; the errors of those refused."""
        if not asked:
            return {}
        needs = [piece for copy in asked.values() for piece in copy.needs]
        needs += self._needs
        tags = list(asked)
        shipment = Shipment([copy.parcel for copy in asked.values()])
        try:
            async with self._link.call(PUBLISH_TIMEOUT):
                refused = await self._sender.send(shipment, needs)
        finally:
            # Also where the others were interrupted: these are safe, and need not come again.
            await self._acknowledge({tags[place] for place in shipment.confirmed})
        return {tags[place]: shipment.errors[place] for place in refused}

    def _asked(self, delivery: Delivery, outcome: Outcome) -> _Copy:
        match outcome:
            case RetryAfter(delay):
                return self._retry(delivery, delivery.attempt + 1, delay, "nothing")
            case Dead():
                return self._bury(delivery, outcome)
            case Done():
                raise AssertionError("what is done is acknowledged")

    def _come_again(self, settlement: tuple[Delivery, Outcome], delay: float) -> _Copy:
        """For what was refused: as the attempt that was asked for, or once more as it was."""
        delivery, outcome = settlement
        more = 1 if isinstance(outcome, RetryAfter) else 0
        return self._retry(delivery, delivery.attempt + more, delay, "headers")

    def _retry(self, delivery: Delivery, attempt: int, delay: float, may_be_cut: Cut) -> _Copy:
        message: Arrived = delivery.token
        _, came = message.essentials()
        step = delay_step(delay)
        parcel = again(
            message.properties(),
            message.body,
            "" if step is None else self._topology.delay(step),
            self._topology.queue(self._subscription),
            retried(came, attempt),
            may_be_cut=may_be_cut,
        )
        return _Copy(parcel, [] if step is None else self._topology.for_delay(step))

    def _bury(self, delivery: Delivery, dead: Dead) -> _Copy:
        message: Arrived = delivery.token
        _, came = message.essentials()
        headers = buried(
            came,
            dead,
            attempts=delivery.attempt,
            letter_id=self._clock.new_id(),
            now=self._clock.now(),
        )
        parcel = again(
            message.properties(),
            message.body,
            "",
            self._topology.dead(self._subscription),
            headers,
            may_be_cut="everything",
        )
        return _Copy(parcel, [])

    async def _acknowledge(self, tags: Iterable[int]) -> None:
        # One at a time: an acknowledgement of many must not be overtaken by a later one.
        async with self._acknowledging, self._link.call():
            wanted = [tag for tag in tags if tag in self._held]
            if not wanted:
                return
            channel, acks = self._working(), plan_acks(self._held, set(wanted))
            for tag in wanted:
                del self._held[tag]
            now = self._clock.monotonic()
            if now - self._last_ack_at >= PASSED_ON:
                self._acks_sent = 0
            self._acks_sent, self._last_ack_at = self._acks_sent + len(acks), now
            for tag, multiple in acks:
                await channel.basic_ack(tag, multiple=multiple, wait=False)


def _too_odd_for_a_retry(error: BaseException) -> Dead:
    return Dead("RabbitMQ does not take it for a retry", str(error))


async def _not_called(_: DeliveredMessage) -> None:
    """Deliveries go to the tap."""
