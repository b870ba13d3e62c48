"""Taking messages out of a queue of RabbitMQ: some are acknowledged, the others are given back.

When a channel is closed, RabbitMQ drops acknowledgements that it has read but not passed on to the
quorum queue (https://github.com/rabbitmq/rabbitmq-server/issues/10327): the messages are there once
more. A channel has at most 33 commands on their way to a queue, and puts off what comes after them.
For example, of 100 messages that were fetched by `basic.get`, acknowledged and left by closing the
channel, up to 67 came back. It does not help to acknowledge them by one `multiple=True`: each
message that `basic.get` fetches counts as a consumer of its own, and needs a command of its own.

So the messages are taken by one consumer, which is cancelled before the channel is closed: RabbitMQ
passes on everything that it has put off for a consumer before it cancels it, and confirms the
cancellation only when the queue has processed both. Only the first message is taken by `basic.get`,
which tells how many there are; its acknowledgement is the first command, and never put off.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress

from aiormq.abc import DeliveredMessage
from aiormq.channel import Channel
from aiormq.exceptions import ChannelNotFoundEntity
from pamqp.commands import Basic

from eventmesh.transports.rabbitmq.connection import CONNECT_TIMEOUT, CONNECTION_ERRORS, Link

MOST_HELD = 65_535
"""How many messages a consumer of AMQP can hold."""

QUIET = 0.15
"""Seconds without a delivery after which somebody else has taken the rest."""

RETURNED_AT_ONCE = 32
"""Messages that are given back by one command: RabbitMQ does not keep the order of more."""


class Taken:
    """The oldest messages of a queue, held by a channel."""

    def __init__(self, channel: Channel, first: DeliveredMessage | None, most: int) -> None:
        self._channel = channel
        self._arrived: list[DeliveredMessage] = []  # and not handed out by `next`
        self._unsettled: dict[int, None] = {}
        self._news = asyncio.Event()
        self._left = self._most_held = 0
        if first is not None:
            self._left = min(most, 1 + count_behind(first))
            self._see(first)

    async def start(self, queue: str, at_once: int) -> None:
        """Take the others, too; never more than `at_once` before some are acknowledged."""
        self._most_held = min(self._left, at_once)
        if self._most_held > 1:
            await self._channel.basic_qos(prefetch_count=self._most_held - 1)
            await self._channel.basic_consume(queue, self._take)

    async def next(self, most: int = MOST_HELD) -> list[DeliveredMessage]:
        """The next messages, up to `most`; none after the last, or while too many of those before
        are neither acknowledged nor given back."""
        held = len(self._unsettled) - len(self._arrived)
        number = min(most, self._left, self._most_held - held)
        while len(self._arrived) < number and await self._more_arrive():
            pass
        batch = self._arrived[: max(number, 0)]
        del self._arrived[: len(batch)]
        self._left -= len(batch)
        return batch

    async def acknowledge(self, messages: Iterable[DeliveredMessage]) -> None:
        """Delete these from the queue; certain when the context is left."""
        wanted = sorted(tag_of(message) for message in messages)
        oldest = list(self._unsettled)[: len(wanted)]
        if wanted and wanted == oldest:
            await self._channel.basic_ack(wanted[-1], multiple=True)
        else:
            for tag in wanted:
                await self._channel.basic_ack(tag)
        for tag in wanted:
            del self._unsettled[tag]

    async def stop(self) -> None:
        """Take no more; RabbitMQ passes on the acknowledgements that it has put off."""
        for consumer in list(self._channel.consumers):
            await self._channel.basic_cancel(consumer)

    async def give_back(self) -> None:
        """Let everything that is not acknowledged go back to the front of the queue, in its
        order."""
        await self.stop()
        tags = list(self._unsettled)
        for start in range(0, len(tags), RETURNED_AT_ONCE):
            last = tags[start : start + RETURNED_AT_ONCE][-1]
            await self._channel.basic_nack(last, multiple=True, requeue=True)
        self._unsettled.clear()

    async def _take(self, message: DeliveredMessage) -> None:
        self._see(message)

    def _see(self, message: DeliveredMessage) -> None:
        self._arrived.append(message)
        self._unsettled[tag_of(message)] = None
        self._news.set()

    async def _more_arrive(self) -> bool:
        self._news.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(QUIET):
                await self._news.wait()
        if not self._news.is_set():
            # What the channel has sent until now is here before its answer, however busy we are.
            await self._channel.basic_qos(prefetch_count=self._most_held - 1)
        return self._news.is_set()


@asynccontextmanager
async def taking(
    link: Link, queue: str, most: int = MOST_HELD, *, at_once: int = MOST_HELD
) -> AsyncIterator[Taken]:
    """Take the oldest messages of the queue, up to `most`, and never more than were there at the
    start, because what others give back meanwhile could come again and again. Takes nothing if the
    queue does not exist. Those that were not acknowledged go back when the context is left."""
    async with link.call(None), link.channel() as channel:
        taken = Taken(channel, await get(channel, queue), most)
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                await taken.start(queue, at_once)
            yield taken
        except Exception:
            with suppress(*CONNECTION_ERRORS):  # that error says more than one of giving back
                await taken.give_back()
            raise
        if not channel.is_closed:  # as it is where there is no such queue
            await taken.give_back()


async def get(channel: Channel, queue: str) -> DeliveredMessage | None:
    """The oldest message of the queue, held by the channel; None where there is none. It may be
    acknowledged only as one of few: see above."""
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT):
            message = await channel.basic_get(queue)
    except ChannelNotFoundEntity:
        return None
    return None if isinstance(message.delivery, Basic.GetEmpty) else message


def count_behind(message: DeliveredMessage) -> int:
    """How many messages waited behind one that was got. A passive declaration would not count what
    was given back just now."""
    return message.message_count or 0


def tag_of(message: DeliveredMessage) -> int:
    """The number of a delivery on its channel."""
    tag: int = message.delivery.delivery_tag  # type: ignore[union-attr, assignment]
    return tag
