"""The workers of a subscription, as they know each other.

Each says every second that it is there. One that was silent for some seconds counts as gone, until
it is heard again; one that stops says so. What they know decides only who consumes what: RabbitMQ
sees to it that two who disagree do not consume at the same time. So neither a worker that stands
still for a while nor a broker that takes no messages for a while can do harm.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import orjson
from aiormq.abc import DeliveredMessage
from aiormq.channel import Channel
from pamqp.commands import Basic

from eventmesh.clock import Clock
from eventmesh.errors import Unreachable
from eventmesh.transports.rabbitmq.connection import BrokerConnection
from eventmesh.transports.rabbitmq.messages import OutgoingMessage
from eventmesh.transports.rabbitmq.publishing import Batch, Publisher

INTERVAL = 1.0
"""Seconds between two heartbeats."""

GONE_AFTER = 3.5
"""Seconds of silence after which a worker counts as gone."""

ANSWERS = 1.0
"""Seconds for which a new worker waits at most to hear itself."""

_NEW, _HERE, _LEAVING = "new", "here", "leaving"


class Workers:
    """The workers of a subscription, of which `me` is one."""

    def __init__(
        self,
        me: str,
        exchange: str,
        publisher: Publisher,
        clock: Clock,
        changed: Callable[[], None],
        lost: Callable[[str], None],
    ) -> None:
        self._me = me
        self._exchange = exchange
        self._publisher = publisher
        self._clock = clock
        self._changed = changed
        self._lost = lost
        self.channel: Channel | None = None
        self._heard_at: dict[str, float] = {}
        self._heard_myself = asyncio.Event()
        self._saying: asyncio.Task[None] | None = None

    async def join(self, connection: BrokerConnection, counted: str) -> None:
        """Listen from now on, and return once the others know of us. `counted` is a queue of which
        each worker is a consumer."""
        self.channel = channel = await connection.open_channel(confirms=False)
        channel.closing.add_done_callback(lambda _: self._lost("its channel is closed"))
        own = await channel.queue_declare("", exclusive=True, auto_delete=True)
        await channel.queue_bind(own.queue or "", self._exchange)
        await channel.basic_consume(own.queue or "", self._hear, no_ack=True)
        await channel.basic_qos(prefetch_count=1)
        await channel.basic_consume(counted, self._ignore)
        self._say(_NEW)
        try:
            async with asyncio.timeout(ANSWERS):
                await self._heard_myself.wait()
        except TimeoutError:
            return  # RabbitMQ takes no messages at the moment: consume what nobody else does

    def present(self) -> list[str]:
        """Those that are there now."""
        now = self._clock.monotonic()
        gone = [each for each, at in self._heard_at.items() if now - at > GONE_AFTER]
        for each in gone:
            del self._heard_at[each]
        return sorted({self._me, *self._heard_at})

    def beat(self) -> None:
        """Say that we are there."""
        self._say(_HERE)

    async def leave(self) -> None:
        """Say that we are not there any more."""
        if self._saying is not None:
            self._saying.cancel()
            await asyncio.wait([self._saying])
        self._heard_at.clear()
        await self._publish(_LEAVING)
        await self._publisher.close()

    def _say(self, what: str) -> None:
        if self._saying is None or self._saying.done():
            self._saying = asyncio.create_task(self._publish(what))

    async def _publish(self, what: str) -> None:
        body = orjson.dumps([self._me, what])
        batch = Batch([OutgoingMessage(self._exchange, "", body, Basic.Properties())])
        try:
            rejected = await self._publisher.publish(batch, ())
        except Unreachable:
            return  # whoever consumes notices a lost connection as well
        if rejected and what != _LEAVING:
            self._lost("nobody hears its heartbeats: the exchange of its workers is gone")

    async def _hear(self, message: DeliveredMessage) -> None:
        try:
            worker, what = orjson.loads(message.body)
        except (ValueError, TypeError):
            return  # another program wrote it
        if worker == self._me:
            self._heard_myself.set()
            return
        was_there = worker in self._heard_at
        if what == _LEAVING:
            self._heard_at.pop(worker, None)
        else:
            self._heard_at[str(worker)] = self._clock.monotonic()
        if what == _NEW:
            self._say(_HERE)
        if was_there != (what != _LEAVING):
            self._changed()

    async def _ignore(self, _: DeliveredMessage) -> None:
        """Nobody publishes to the queue in which workers are counted."""
