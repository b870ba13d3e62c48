"""Taking the oldest messages out of a queue: some are acknowledged, the others go back in order.

This is harder than `basic.get` for each. When a channel is closed, RabbitMQ drops acknowledgements
that it has read but not yet passed on to the quorum queue
(https://github.com/rabbitmq/rabbitmq-server/issues/10327), so their messages are delivered again. A
channel has at most 33 commands on their way to a queue, and postpones further ones. For example, of
100 messages that were fetched by `basic.get`, acknowledged, and left by closing the channel, up to
67 came back. One acknowledgement with `multiple=True` does not help: each message fetched by
`basic.get` counts as a consumer of its own, and needs a command of its own.

So one consumer takes the messages, and is cancelled before the channel is closed: RabbitMQ passes
on everything that it has postponed for a consumer before it cancels it, and confirms the
cancellation only when the queue has processed both.

What is given back does not return to its place either. A quorum queue keeps such messages in a
queue of their own, which it delivers first, and puts what is given back behind all that were given
back before. For example, of the messages 1 to 500 somebody looks at the first 100, and then
somebody else at the first 50:

    looked at    given back before    and afterwards
    1 to 100     none                 1 … 100
    1 to 50      1 … 100              51 … 100, 1 … 50: what was the oldest is delivered later

The order stays if all that were given back before are held at the same time. RabbitMQ marks them as
redelivered, so before anything is given back, more is taken until a message comes that is not.

Whoever is cancelled or killed gives back by the end of its channel, which keeps the order of one
consumer's messages.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from itertools import groupby
from typing import Any

from aiormq.abc import DeliveredMessage
from aiormq.channel import Channel
from aiormq.exceptions import ChannelNotFoundEntity

from eventmesh.transports.rabbitmq.connection import (
    CONNECT_TIMEOUT,
    CONNECTION_ERRORS,
    MAX_HELD,
    BrokerConnection,
)
from eventmesh.transports.rabbitmq.messages import OutgoingMessage
from eventmesh.transports.rabbitmq.publishing import Batch, Publisher
from eventmesh.transports.rabbitmq.topology import Entity

QUIET = 0.15
"""Seconds without a delivery after which others must have taken the rest."""

RETURNED_AT_ONCE = 32
"""Messages that are given back by one command: of more, RabbitMQ does not keep the order. Nor does
it of those of several consumers."""

TAKEN_FURTHER = 1_000
"""Messages that are taken at once while more of those that were given back before are looked
for."""


class HeldMessages:
    """The oldest messages of a queue, held by a channel."""

    def __init__(self, channel: Channel, queue: str, limit: int) -> None:
        self._channel = channel
        self._queue = queue
        self._arrived: list[DeliveredMessage] = []  # and not returned by `next`
        self._unsettled: dict[int, int] = {}
        """The numbers of the messages, each with that of its consumer."""
        self._consumers = 0
        self._arrival = asyncio.Event()
        self._left = self._max_held = 0
        self._limit = limit
        self._untaken = 0  # of those that were in the queue at the start
        self._newest_was_given_back = False

    async def start(self, at_once: int) -> None:
        """Take them, but never hold more than `at_once`."""
        try:
            found = await self._channel.queue_declare(self._queue, passive=True)
        except ChannelNotFoundEntity:
            return
        self._untaken = found.message_count or 0
        if not self._untaken:
            await self._take_uncounted(min(self._limit, at_once))
            return
        self._left = min(self._limit, self._untaken)
        self._max_held = min(self._left, at_once)
        await self._consume(self._max_held, self._take)

    async def _take_uncounted(self, most: int) -> None:
        """Take messages of a queue that seems to be empty: RabbitMQ says so, too, if a quorum queue
        does not answer it within 250 ms, as on a busy machine. What is there arrives before the
        answer to a cancellation."""
        await self._consume(most, self._take)
        await self.stop()
        self._left = self._max_held = len(self._arrived)
        self._untaken = 0

    async def next(self, limit: int = MAX_HELD) -> list[DeliveredMessage]:
        """The next messages, up to `limit`: none after the last, or while too many of the earlier
        ones are unacknowledged."""
        held = len(self._unsettled) - len(self._arrived)
        number = min(limit, self._left, self._max_held - held)
        while len(self._arrived) < number and await self._more_arrive():
            pass
        batch = self._arrived[: max(number, 0)]
        del self._arrived[: len(batch)]
        self._left -= len(batch)
        return batch

    async def acknowledge(self, messages: Iterable[DeliveredMessage]) -> None:
        """Delete these from the queue; certain once the context is left."""
        wanted = sorted(_tag_of(message) for message in messages)
        oldest = list(self._unsettled)[: len(wanted)]
        if wanted and wanted == oldest:
            await self._channel.basic_ack(wanted[-1], multiple=True)
        else:
            for tag in wanted:
                await self._channel.basic_ack(tag)
        for tag in wanted:
            del self._unsettled[tag]

    async def stop(self) -> None:
        """Stop consuming. RabbitMQ passes on the acknowledgements that it has postponed."""
        for consumer in list(self._channel.consumers):
            await self._channel.basic_cancel(consumer)

    async def give_back(self) -> None:
        """Return everything unacknowledged to the front of the queue, in its order."""
        if self._unsettled:
            await self._take_all_that_were_given_back()
        await self.stop()
        for _, of_consumer in groupby(self._unsettled.items(), lambda each: each[1]):
            tags = [tag for tag, _ in of_consumer]
            for start in range(0, len(tags), RETURNED_AT_ONCE):
                last = tags[start : start + RETURNED_AT_ONCE][-1]
                await self._channel.basic_nack(last, multiple=True, requeue=True)
        self._unsettled.clear()

    async def _take_all_that_were_given_back(self) -> None:
        """Hold, without keeping their data, the messages behind ours that were given back before;
        see the module's docstring."""
        while self._newest_was_given_back and self._untaken > 0:
            await self.stop()  # each consumer takes its messages before the next does
            left = max(0, self._untaken - TAKEN_FURTHER)
            await self._consume(self._untaken - left, self._take_further)
            while self._untaken > left:
                if not await self._more_arrive():
                    return  # others have them

    async def _consume(
        self, number: int, take: Callable[[DeliveredMessage], Coroutine[Any, Any, None]]
    ) -> None:
        """Let a further consumer take so many messages."""
        self._consumers += 1
        await self._channel.basic_qos(prefetch_count=number)
        await self._channel.basic_consume(self._queue, take)

    async def _take(self, message: DeliveredMessage) -> None:
        self._arrived.append(message)
        self._hold(message)

    async def _take_further(self, message: DeliveredMessage) -> None:
        self._hold(message)

    def _hold(self, message: DeliveredMessage) -> None:
        self._unsettled[_tag_of(message)] = self._consumers
        self._untaken -= 1
        self._newest_was_given_back = bool(message.delivery.redelivered)  # type: ignore[union-attr]
        self._arrival.set()

    async def _more_arrive(self) -> bool:
        self._arrival.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(QUIET):
                await self._arrival.wait()
        if not self._arrival.is_set():
            # Whatever RabbitMQ has delivered until now arrives before its answer to this, even if
            # this process is too busy to read in time.
            await self._channel.basic_qos(prefetch_count=self._max_held)
        return self._arrival.is_set()


@asynccontextmanager
async def hold_messages(
    connection: BrokerConnection, queue: str, limit: int = MAX_HELD, *, at_once: int = MAX_HELD
) -> AsyncIterator[HeldMessages]:
    """Hold the oldest messages of the queue, up to `limit`, and never more than were there at the
    start, because what others give back meanwhile could come again and again. Holds nothing if the
    queue does not exist. What is not acknowledged goes back on leaving."""
    async with connection.guard(None), connection.channel() as channel:
        held = HeldMessages(channel, queue, limit)
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                await held.start(at_once)
            yield held
        except Exception:
            with suppress(*CONNECTION_ERRORS):  # the first error says more
                await held.give_back()
            raise
        if not channel.is_closed:  # as it is if the queue does not exist
            await held.give_back()


async def move(
    held: HeldMessages,
    groups: Sequence[Sequence[DeliveredMessage]],
    copies: Sequence[OutgoingMessage],
    publisher: Publisher,
    needs: Sequence[Entity],
) -> dict[int, BaseException]:
    """Publish the copy of each group of held messages, and delete the groups whose copy the broker
    has. Returns why copies were rejected, by their place."""
    if not groups:
        return {}
    batch = Batch(list(copies))
    try:
        return await publisher.publish(batch, needs)
    finally:
        await held.acknowledge(message for place in batch.confirmed for message in groups[place])


def _tag_of(message: DeliveredMessage) -> int:
    """The number of a delivery on its channel."""
    tag: int = message.delivery.delivery_tag  # type: ignore[union-attr, assignment]
    return tag
