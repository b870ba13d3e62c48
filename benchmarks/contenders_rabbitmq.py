"""Who competes on RabbitMQ: EventMesh, aio-pika, aiormq beneath it, and FastStream.

All of them publish persistent messages with confirms, into a durable quorum queue of their own.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import aio_pika
import aiormq
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage
from aiormq.abc import AbstractChannel as RawChannel
from aiormq.abc import DeliveredMessage
from faststream.rabbit import Channel, QueueType, RabbitBroker, RabbitQueue

from benchmarks.measure import BATCH, Contender, Handle, Make
from benchmarks.messages import OrderPlaced
from benchmarks.ours import SUBSCRIPTION, ours
from eventmesh.transports.rabbitmq.topology import Exchange, Queue, Topology
from eventmesh.wire.cloudevents import to_headers
from eventmesh.wire.envelope import Envelope

PREFETCH = 2 * BATCH
"""EventMesh's default, and enough for one batch to arrive while another is handled."""

GET_TIMEOUT = 5.0
"""Seconds of silence after which a queue counts as read to its end."""

RETURN_TIME = 0.2
"""Seconds."""

_QUORUM: dict[str, Any] = {"x-queue-type": "quorum"}
_CONTENT_TYPE = "application/json"


class RabbitContenders:
    """The contenders on one RabbitMQ, each made anew for every run."""

    def __init__(self, url: str) -> None:
        self._url = url

    async def version(self) -> str:
        """Of the server."""
        connection = await aiormq.connect(self._url)
        try:
            properties: Any = connection.server_properties
            return f"RabbitMQ {_text(properties['version'])}, quorum queues"
        finally:
            await connection.close()

    def ours(self) -> Make:
        @asynccontextmanager
        async def make() -> AsyncIterator[Contender]:
            name = _fresh_name()
            topology = Topology(name)
            pieces = topology.for_subscription(SUBSCRIPTION)
            async with (
                _Place(
                    self._url,
                    topology.queue(SUBSCRIPTION),
                    others=[piece.name for piece in pieces if isinstance(piece, Queue)],
                    exchanges=[piece.name for piece in pieces if isinstance(piece, Exchange)],
                ) as place,
                ours(self._url, name, place) as contender,
            ):
                yield contender

        return make

    def aio_pika(self) -> Make:
        @asynccontextmanager
        async def make() -> AsyncIterator[Contender]:
            async with _fresh_queue(self._url) as place:
                connection = await aio_pika.connect(self._url)
                async with connection, connection.channel() as channel:
                    await channel.set_qos(prefetch_count=PREFETCH)
                    yield _AioPika(place, channel)

        return make

    def aiormq(self) -> Make:
        @asynccontextmanager
        async def make() -> AsyncIterator[Contender]:
            async with _fresh_queue(self._url) as place:
                connection = await aiormq.connect(self._url)
                try:
                    channel = await connection.channel(publisher_confirms=True)
                    await channel.basic_qos(prefetch_count=PREFETCH)
                    yield _Aiormq(place, channel)
                finally:
                    await connection.close()

        return make

    def faststream(self, *, publishing: str = "gather", prefetch: int = PREFETCH) -> Make:
        @asynccontextmanager
        async def make() -> AsyncIterator[Contender]:
            async with (
                _fresh_queue(self._url) as place,
                RabbitBroker(
                    self._url,
                    # Its own logging off: two lines a message would be its slowest part.
                    logger=None,
                    default_channel=Channel(prefetch_count=prefetch),
                ) as broker,
            ):
                yield _FastStream(place, broker, publishing)

        return make


class _Place:
    """A queue, and what else one contender makes; all of it is deleted on leaving."""

    def __init__(
        self, url: str, queue: str, *, others: Sequence[str] = (), exchanges: Sequence[str] = ()
    ) -> None:
        self.queue = queue
        self._url = url
        self._queues = {queue, *others}
        self._exchanges = exchanges

    async def __aenter__(self) -> _Place:
        self._connection = await aiormq.connect(self._url)
        self.channel = await self._connection.channel()
        return self

    async def __aexit__(self, *_: object) -> None:
        try:
            channel = await self._connection.channel()
            for queue in self._queues:
                await channel.queue_delete(queue)
            for exchange in self._exchanges:
                await channel.exchange_delete(exchange)
        finally:
            await self._connection.close()

    async def stored(self, count: int) -> list[bytes]:
        bodies: asyncio.Queue[bytes] = asyncio.Queue()

        async def take(message: DeliveredMessage) -> None:
            bodies.put_nowait(message.body)

        consuming = await self.channel.basic_consume(self.queue, take, no_ack=True)
        found: list[bytes] = []
        try:
            while len(found) < count:
                async with asyncio.timeout(GET_TIMEOUT):
                    found.append(await bodies.get())
        except TimeoutError:
            pass  # fewer than expected, as the caller will see
        await self.channel.basic_cancel(consuming.consumer_tag or "")
        await asyncio.sleep(0.05)  # for more than expected, which the caller must see too
        return found + [bodies.get_nowait() for _ in range(bodies.qsize())]

    async def count(self) -> int:
        """How many messages wait here."""
        return (await self.channel.queue_declare(self.queue, passive=True)).message_count or 0

    async def unsettled(self) -> int:
        # What a channel held when it was closed is back in the queue a moment later.
        await asyncio.sleep(RETURN_TIME)
        return await self.count()


class _Acknowledging:
    """Counts what was handled, and acknowledges every BATCH with one frame."""

    def __init__(self, handle: Handle, acknowledge: Callable[[Any], Awaitable[Any]]) -> None:
        self._handle = handle
        self._acknowledge = acknowledge
        self._count = 0
        self._last: Any = None

    async def take(self, body: bytes, token: Any) -> None:
        self._handle(OrderPlaced.model_validate_json(body))
        self._count += 1
        self._last = token
        if self._count % BATCH == 0:
            await self.rest()

    async def rest(self) -> None:
        """Acknowledge what has not been yet."""
        last, self._last = self._last, None
        if last is not None:
            await self._acknowledge(last)


class _AioPika:
    """Pushed messages with a prefetch; publishes by `gather`, each with its confirm."""

    def __init__(self, place: _Place, channel: AbstractChannel) -> None:
        self.place = place
        self._channel = channel

    async def publish(self, envelopes: Sequence[Envelope]) -> None:
        exchange = self._channel.default_exchange
        await asyncio.gather(
            *(
                exchange.publish(
                    aio_pika.Message(
                        envelope.data,
                        headers=dict(to_headers(envelope)),
                        content_type=_CONTENT_TYPE,
                        delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
                        message_id=envelope.id,
                    ),
                    routing_key=self.place.queue,
                )
                for envelope in envelopes
            )
        )

    async def consume(self, handle: Handle, until: asyncio.Event) -> None:
        acknowledging = _Acknowledging(handle, lambda message: message.ack(multiple=True))

        async def take(message: AbstractIncomingMessage) -> None:
            await acknowledging.take(message.body, message)

        queue = await self._channel.get_queue(self.place.queue, ensure=False)
        tag = await queue.consume(take)
        await until.wait()
        await queue.cancel(tag)
        await acknowledging.rest()
        await self._channel.close()  # what is not acknowledged now is seen in the queue


class _Aiormq:
    """The same on the layer below, without waiting for the socket before each next message."""

    def __init__(self, place: _Place, channel: RawChannel) -> None:
        self.place = place
        # Its interface does not know `wait` of `basic_publish`, which is worth a quarter.
        self._channel: Any = channel

    async def publish(self, envelopes: Sequence[Envelope]) -> None:
        await asyncio.gather(
            *(
                self._channel.basic_publish(
                    envelope.data,
                    routing_key=self.place.queue,
                    properties=aiormq.spec.Basic.Properties(
                        headers=dict(to_headers(envelope)),
                        content_type=_CONTENT_TYPE,
                        delivery_mode=2,
                        message_id=envelope.id,
                    ),
                    wait=False,
                )
                for envelope in envelopes
            )
        )

    async def consume(self, handle: Handle, until: asyncio.Event) -> None:
        acknowledging = _Acknowledging(
            handle, lambda tag: self._channel.basic_ack(tag, multiple=True, wait=False)
        )

        async def take(message: DeliveredMessage) -> None:
            await acknowledging.take(message.body, message.delivery_tag)

        consuming = await self._channel.basic_consume(self.place.queue, take)
        await until.wait()
        await self._channel.basic_cancel(consuming.consumer_tag)
        await acknowledging.rest()
        await self._channel.close()  # what is not acknowledged now is seen in the queue


class _FastStream:
    """A queue subscriber. It has no batches on RabbitMQ: one acknowledgement a message."""

    def __init__(self, place: _Place, broker: RabbitBroker, publishing: str) -> None:
        self.place = place
        self.broker = broker
        self._publishing = publishing

    @property
    def queue(self) -> RabbitQueue:
        return RabbitQueue(self.place.queue, queue_type=QueueType.QUORUM, durable=True)

    async def publish(self, envelopes: Sequence[Envelope]) -> None:
        if self._publishing == "gather":
            await asyncio.gather(*map(self._publish, envelopes))
        else:
            for envelope in envelopes:
                await self._publish(envelope)

    async def _publish(self, envelope: Envelope) -> None:
        await self.broker.publish(
            envelope.data,
            self.place.queue,
            headers=dict(to_headers(envelope)),
            content_type=_CONTENT_TYPE,
            message_id=envelope.id,
            persist=True,
        )

    async def consume(self, handle: Handle, until: asyncio.Event) -> None:
        async def take(event: OrderPlaced) -> None:
            if (waiting := handle(event)) is not None:
                await waiting

        self.broker.subscriber(self.queue)(take)
        await self.broker.start()
        await until.wait()
        await self.broker.stop()


def _fresh_name() -> str:
    return f"bench-{secrets.token_hex(6)}"


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes | bytearray) else str(value)


@asynccontextmanager
async def _fresh_queue(url: str) -> AsyncIterator[_Place]:
    async with _Place(url, _fresh_name()) as place:
        await place.channel.queue_declare(place.queue, durable=True, arguments=_QUORUM)
        yield place
