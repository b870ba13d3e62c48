"""Connections and channels of aiormq that bear cancellation.

A request may be cancelled at any moment, by a timeout for example. aiormq then closes its channel.
If the broker is closing it too, as it does when a queue that is asked for does not exist, the two
cross:

    broker → us    Channel.Close 5       the queue does not exist
    us → broker    Channel.Close 5       the request was cancelled
    us → broker    Channel.Open 5        the number is free, as far as aiormq knows
    broker → us    Channel.CloseOk 5     for our Close; aiormq takes it for the new channel's
    us → broker    Channel.Open 5        "second 'channel.open' seen": the connection is closed

aiormq also replaces the cancellation by the broker's error, so that a caller which expects the
error goes on although it was cancelled. So a request is never cancelled here once it is made: its
caller stops waiting, and closes the channel, which happens once the answer has arrived. And the
number of a channel is used again as late as possible.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from aiormq import Connection
from aiormq.abc import TimeoutType
from aiormq.channel import Channel
from pamqp.base import Frame

_T = TypeVar("_T")

MOST_NUMBERS = 65_535
"""Of the channels of a connection, where the broker sets no limit."""


class UncancelledChannel(Channel):
    """A channel whose requests are not cancelled with those who wait for them."""

    async def rpc(self, frame: Frame, timeout: TimeoutType = None) -> Any:  # noqa: ASYNC109  # as aiormq
        return await asyncio.shield(in_background(super().rpc(frame, timeout=timeout)))


class ChannelConnection(Connection):
    """A connection that opens such channels.

    aiormq does not answer that it knows of a closed channel if FRAME_BUFFER_SIZE frames wait to be
    sent, 10 by default: acknowledgements, for example. When the number of that channel is used
    again, RabbitMQ closes the connection. So any number may wait. They cannot pile up: a publisher
    waits until its frames are written, and there are never more acknowledgements than deliveries.
    """

    FRAME_BUFFER_SIZE = 0
    _last_number = 0

    async def open_channel(self, *, confirms: bool) -> Channel:
        """A new channel, with publisher confirms or without. ConnectionError if the connection is
        closed, or has as many as it may."""
        if self.is_closed:
            raise ConnectionResetError("the connection was lost")
        channel = UncancelledChannel(self, self._next_number(), publisher_confirms=confirms)
        self.channels[channel.number] = channel
        await channel.open()
        return channel

    def _next_number(self) -> int:
        most = self.connection_tune.channel_max or MOST_NUMBERS
        if len(self.channels) >= most:
            raise ConnectionError(f"all {most:,} channels of the connection are in use")
        while True:
            self._last_number = self._last_number % most + 1
            if self._last_number not in self.channels:
                return self._last_number


def in_background(doing: Coroutine[Any, Any, _T]) -> asyncio.Task[_T]:
    """A task that may fail after everybody has stopped waiting for it."""
    task = asyncio.ensure_future(doing)
    task.add_done_callback(_retrieve_error)
    return task


def _retrieve_error(ended: asyncio.Future[Any]) -> None:
    """Otherwise asyncio logs "Task exception was never retrieved"."""
    if not ended.cancelled():
        ended.exception()
