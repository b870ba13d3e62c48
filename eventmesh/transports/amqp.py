"""RabbitMQ 3.10 and later, by AMQP 0-9-1, with no plugin.

aio-pika opens connections and channels; consuming and publishing go to the aiormq channel beneath,
which is part of aio-pika's interface: aio-pika's own message objects cost a third of the speed.
Its robust connections are not used, because they hide a loss from those who hold deliveries of the
lost channel. Here a loss is Unreachable at once, and the next call connects anew.

Publishing and consuming have a connection each: RabbitMQ stops reading from a connection that
publishes when it is short of memory or disk, and acknowledgements must still pass then.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import parse_qs, urlsplit

import aio_pika
from aio_pika.connection import make_url
from aio_pika.exceptions import CONNECTION_EXCEPTIONS
from aiormq.abc import DeliveredMessage
from aiormq.channel import Channel
from aiormq.exceptions import (
    ChannelNotFoundEntity,
    ChannelPreconditionFailed,
    DeliveryError,
)
from aiormq.exceptions import PublishError as Returned
from pamqp.commands import Basic

from eventmesh.clock import Clock
from eventmesh.errors import PublishError, Unreachable, UsageError
from eventmesh.redact import redact
from eventmesh.transports.amqp_topology import (
    ATTEMPT,
    DEAD_ID,
    Binding,
    Exchange,
    Piece,
    Queue,
    Topology,
    buried,
    copied,
    count_in,
    delay_step,
    letter_of,
    plan_acks,
    retried,
    waves,
)
from eventmesh.transports.base import (
    DeadLetter,
    Delivery,
    Subscription,
    SubscriptionStats,
    TransportOptions,
)
from eventmesh.transports.outcome import Dead, Done, Outcome, RetryAfter
from eventmesh.wire.cloudevents import from_headers, to_headers
from eventmesh.wire.envelope import Envelope

CONNECT_TIMEOUT = 10.0
PUBLISH_TIMEOUT = 30.0
LEAVE_TIMEOUT = 5.0
"""Seconds after which the broker counts as gone. Leaving is short: what is not given back in good
order goes back when the connection closes."""

PIPELINE = 500
"""Messages sent before their confirms are awaited: the client library looks through all that are
outstanding at each confirm, so more would be slower."""

MIN_HEARTBEAT = 5
"""Seconds; with less, a busy event loop would pass for a dead worker."""

IDLE_TURNS = 3
"""Turns of the event loop without an arrival after which nothing more is in the socket."""

_UNSENDABLE = (ValueError, TypeError, OverflowError)
"""What the client library raises for a message that it cannot encode; nothing of it was sent."""


class AmqpTransport:
    """One process's connections to a RabbitMQ broker."""

    atomic_batches = False

    def __init__(self, url: str, clock: Clock, options: TransportOptions) -> None:
        self._clock = clock
        self._topology = Topology(options.prefix)
        self._publishing = _Link(url, f"{options.prefix} publishing", options)
        self._consuming = _Link(url, f"{options.prefix} consuming", options)
        self._sender = _Sender(self._publishing)

    async def connect(self) -> None:
        await self._publishing.open()
        self._consuming.allow()

    async def close(self) -> None:
        await self._consuming.close()
        await self._publishing.close()

    async def declare(self, subscriptions: Sequence[Subscription]) -> None:
        pieces = [
            piece
            for subscription in subscriptions
            for piece in self._topology.for_subscription(subscription)
        ]
        self._publishing.forget(pieces)
        await self._publishing.ensure(pieces or self._topology.for_publishing())
        names = {name for subscription in subscriptions for name in subscription.messages}
        if names:
            try:
                async with self._publishing.call(None):
                    await self._route_again(names)
            except PublishError as error:
                raise Unreachable(f"Kept messages could not be routed again: {error}") from error

    async def publish(self, envelopes: Sequence[Envelope]) -> None:
        if not envelopes:
            return
        exchange = self._topology.exchange
        parcels = [
            _Parcel(exchange, envelope.name, envelope.data, _properties(envelope))
            for envelope in envelopes
        ]
        async with self._publishing.call(PUBLISH_TIMEOUT):
            needs = self._topology.for_publishing(envelope.name for envelope in envelopes)
            refused = await self._sender.send(parcels, needs)
        if refused:
            raise PublishError({envelopes[index].id: why for index, why in refused.items()})

    @asynccontextmanager
    async def consume(
        self, subscription: Subscription, *, prefetch: int
    ) -> AsyncIterator[_AmqpConsumer]:
        await self.declare([subscription])
        consumer = _AmqpConsumer(
            self._consuming, self._publishing, subscription, self._topology, self._clock
        )
        try:
            await consumer.start(prefetch)
            yield consumer
        finally:
            await consumer.leave()

    async def stats(self, subscription: Subscription) -> SubscriptionStats:
        async with self._publishing.call():
            ready = await self._count(self._topology.queue(subscription))
            dead = await self._count(self._topology.dead(subscription))
        return SubscriptionStats(ready, delayed=None, in_flight=None, dead=dead, oldest_age=None)

    async def dead_letters(self, subscription: Subscription, *, limit: int) -> Sequence[DeadLetter]:
        letters: list[DeadLetter] = []
        async with self._publishing.call(None), self._publishing.channel() as channel:
            async for message in _browse(channel, self._topology.dead(subscription), limit):
                properties = message.header.properties
                letters.append(
                    letter_of(
                        subscription,
                        properties.headers or {},
                        properties.content_type,
                        message.body,
                    )
                )
        return letters

    async def replay(self, subscription: Subscription, ids: Sequence[str]) -> Sequence[str]:
        queue = self._topology.queue(subscription)
        async with self._publishing.call(None), self._publishing.channel() as channel:
            found = await self._find(channel, subscription, ids)
            parcels = [_again(message, "", queue) for message in found.values()]
            await self._move(
                channel,
                list(found.values()),
                parcels,
                self._topology.for_subscription(subscription),
            )
        return [letter_id for letter_id in ids if letter_id in found]

    async def discard(self, subscription: Subscription, ids: Sequence[str]) -> Sequence[str]:
        async with self._publishing.call(None), self._publishing.channel() as channel:
            found = await self._find(channel, subscription, ids)
            for message in found.values():
                await channel.basic_ack(_tag(message))
        return [letter_id for letter_id in ids if letter_id in found]

    async def _count(self, queue: str) -> int:
        """How many messages are ready in the queue; none where there is no queue."""
        try:
            # Asking for a queue that is not there closes the channel, so it gets one of its own.
            async with self._publishing.channel() as channel:
                return (await channel.queue_declare(queue, passive=True)).message_count or 0
        except ChannelNotFoundEntity:
            return 0

    async def _find(
        self, channel: Channel, subscription: Subscription, ids: Iterable[str]
    ) -> dict[str, DeliveredMessage]:
        """The dead letters with these ids, held by the channel."""
        missing, found = set(ids), dict[str, DeliveredMessage]()
        async for message in _browse(channel, self._topology.dead(subscription), None):
            letter_id = (message.header.properties.headers or {}).get(DEAD_ID)
            if letter_id in missing and isinstance(letter_id, str):
                missing.remove(letter_id)
                found[letter_id] = message
            if not missing:
                break
        return found

    async def _route_again(self, names: Iterable[str]) -> None:
        """Bring what was kept for want of a subscription to those that take it now: through the
        exchange, so that all that are declared together get theirs."""
        needs = self._topology.for_publishing(names)
        for name in sorted(names):
            async with self._publishing.channel() as channel:
                kept = _browse(channel, self._topology.kept(name), None)
                while taken := [message async for message in _some(kept, PIPELINE)]:
                    parcels = [_again(message, self._topology.exchange, name) for message in taken]
                    await self._move(channel, taken, parcels, needs)

    async def _move(
        self,
        channel: Channel,
        messages: Sequence[DeliveredMessage],
        parcels: Sequence[_Parcel],
        needs: Sequence[Piece],
    ) -> None:
        """Acknowledge each message once its parcel is safe; PublishError for those refused."""
        if not messages:
            return
        refused = await self._sender.send(parcels, needs)
        for index, message in enumerate(messages):
            if index not in refused:
                await channel.basic_ack(_tag(message))
        if refused:
            raise PublishError(
                {
                    messages[index].header.properties.message_id or "": why
                    for index, why in refused.items()
                }
            )


class _AmqpConsumer:
    """One channel that the broker pushes deliveries to."""

    def __init__(
        self,
        consuming: _Link,
        publishing: _Link,
        subscription: Subscription,
        topology: Topology,
        clock: Clock,
    ) -> None:
        self._link = consuming
        self._sender = _Sender(publishing)
        self._subscription = subscription
        self._topology = topology
        self._clock = clock
        self._channel: Channel | None = None
        self._consumer_tag: str | None = None
        self._arrived: deque[DeliveredMessage] = deque()
        self._held: dict[int, DeliveredMessage] = {}
        self._changed = asyncio.Event()
        self._settling = asyncio.Lock()
        self._lost: str | None = None

    async def start(self, prefetch: int) -> None:
        """Let deliveries come."""
        async with self._link.call():
            self._channel = channel = await self._link.new_channel()
            channel.closing.add_done_callback(lambda _: self._lose("its channel is closed"))
            channel.on_consumer_cancel_callbacks.add(
                lambda _: self._lose("the broker cancelled the consumer: its queue is gone")
            )
            await channel.basic_qos(prefetch_count=prefetch)
            consuming = await channel.basic_consume(
                self._topology.queue(self._subscription), self._arrive
            )
            self._consumer_tag = consuming.consumer_tag

    async def receive(self, limit: int) -> Sequence[Delivery]:
        while self._lost is None and not self._arrived:
            self._changed.clear()
            await self._changed.wait()
        await self._gather(limit)
        self._working()
        # No await from here on: a cancellation cannot lose what was taken.
        count = min(limit, len(self._arrived))
        return [self._deliver(self._arrived.popleft()) for _ in range(count)]

    async def settle(self, settlements: Sequence[tuple[Delivery, Outcome]]) -> None:
        async with self._settling:
            mine = {
                _tag(delivery.token): (delivery, outcome)
                for delivery, outcome in reversed(settlements)  # the first word on each counts
                if self._holds(delivery)
            }
            if not mine:
                return
            self._working()
            async with self._link.call(PUBLISH_TIMEOUT):
                refused = await self._send_on(mine)
                await self._acknowledge(mine.keys() - refused.keys())
        if refused:
            raise Unreachable(
                f"The broker did not take {len(refused)} message(s) of {self._subscription.name} "
                f"for a retry or as dead letters, so they will come again: "
                f"{next(iter(refused.values()))}."
            )

    async def leave(self) -> None:
        """Give back what is unsettled. Never fails: a broker that is gone has taken it back."""
        self._lose("its context was left")
        with suppress(Unreachable):
            async with self._link.call(LEAVE_TIMEOUT):
                await self._give_back()
        with suppress(Unreachable):
            async with self._link.call(LEAVE_TIMEOUT):
                await self._sender.close()

    async def _gather(self, limit: int) -> None:
        """Let what the socket holds arrive too: the client library hands over three messages at a
        time, and batches that small would cost an acknowledgement and a commit each."""
        idle_turns = 0
        while len(self._arrived) < limit and idle_turns < IDLE_TURNS:
            before = len(self._arrived)
            await asyncio.sleep(0)
            idle_turns = idle_turns + 1 if len(self._arrived) == before else 0

    async def _give_back(self) -> None:
        channel, self._channel = self._channel, None
        self._held.clear()
        self._arrived.clear()
        if channel is None or channel.is_closed:
            return
        try:
            if self._consumer_tag is not None:
                await channel.basic_cancel(self._consumer_tag)
                await channel.basic_nack(0, multiple=True, requeue=True)  # 0: all there are
        finally:
            await channel.close()

    async def _arrive(self, message: DeliveredMessage) -> None:
        self._arrived.append(message)
        self._changed.set()

    def _lose(self, why: str) -> None:
        self._lost = self._lost or why
        self._changed.set()

    def _holds(self, delivery: Delivery) -> bool:
        return self._held.get(_tag(delivery.token)) is delivery.token

    def _working(self) -> Channel:
        """The channel; Unreachable once it is lost."""
        if self._lost is not None or self._channel is None:
            raise Unreachable(
                f"The broker at {self._link.address} no longer delivers "
                f"{self._subscription.name}: {self._lost}. Consume it anew."
            )
        return self._channel

    def _deliver(self, message: DeliveredMessage) -> Delivery:
        properties = message.header.properties
        headers = properties.headers or {}
        self._held[_tag(message)] = message
        return Delivery(
            from_headers(headers, properties.content_type, message.body),
            attempt=count_in(headers, ATTEMPT, 1),
            deliveries=1 + count_in(headers, "x-delivery-count", 0),
            token=message,
        )

    async def _send_on(self, mine: dict[int, tuple[Delivery, Outcome]]) -> dict[int, str]:
        """Store copies of what is to be retried or dead; the reasons by tag where that failed."""
        parcels: dict[int, _Parcel] = {}
        needs: list[Piece] = []
        for tag, (delivery, outcome) in sorted(mine.items()):
            match outcome:
                case Done():
                    continue
                case RetryAfter(delay):
                    step = delay_step(delay)
                    parcels[tag] = self._retry(delivery, step)
                    if step is not None:
                        needs += self._topology.for_delay(step)
                case Dead():
                    parcels[tag] = self._bury(delivery, outcome)
        if not parcels:
            return {}
        needs += self._topology.for_subscription(self._subscription)
        refused = await self._sender.send(list(parcels.values()), needs)
        tags = list(parcels)
        return {tags[index]: why for index, why in refused.items()}

    def _retry(self, delivery: Delivery, step: int | None) -> _Parcel:
        message: DeliveredMessage = delivery.token
        headers = retried(message.header.properties.headers, delivery.attempt + 1)
        exchange = "" if step is None else self._topology.delay(step)
        return _again(message, exchange, self._topology.queue(self._subscription), headers)

    def _bury(self, delivery: Delivery, dead: Dead) -> _Parcel:
        message: DeliveredMessage = delivery.token
        headers = buried(
            message.header.properties.headers,
            dead,
            attempts=delivery.attempt,
            letter_id=self._clock.new_id(),
            now=self._clock.now(),
        )
        return _again(message, "", self._topology.dead(self._subscription), headers)

    async def _acknowledge(self, tags: set[int]) -> None:
        channel, acks = self._working(), plan_acks(self._held, tags)
        for tag in tags:
            del self._held[tag]
        for tag, multiple in acks:
            await channel.basic_ack(tag, multiple=multiple, wait=False)


@dataclass(frozen=True, slots=True)
class _Parcel:
    """A message to publish."""

    exchange: str
    routing_key: str
    body: bytes
    properties: Basic.Properties


class _Sender:
    """Publishes with confirms, on a channel of its own, so that a channel that the broker closes
    for one sender's mistake is not another's."""

    def __init__(self, link: _Link) -> None:
        self._link = link
        self._channel: Channel | None = None
        self._opening = asyncio.Lock()

    async def close(self) -> None:
        channel, self._channel = self._channel, None
        if channel is not None and not channel.is_closed:
            await channel.close()

    async def send(self, parcels: Sequence[_Parcel], needs: Sequence[Piece]) -> dict[int, str]:
        """Return once the broker has them all safely but those refused: the reasons by place."""
        await self._link.ensure(needs)
        errors = await self._attempt(parcels, range(len(parcels)))
        if any(isinstance(error, Returned | ChannelNotFoundEntity) for error in errors.values()):
            # Somebody deleted what was there: make it again, and publish once more.
            self._link.forget(needs)
            await self._link.ensure(needs)
            errors = await self._attempt(parcels, list(errors))
        if any(isinstance(error, ChannelPreconditionFailed) for error in errors.values()):
            # One that the broker never takes (too large, say) closed the channel under the others.
            for index in list(errors):
                del errors[index]
                errors |= await self._attempt(parcels, [index])
        return {index: _refusal(error) for index, error in errors.items()}

    async def _attempt(
        self, parcels: Sequence[_Parcel], places: Sequence[int]
    ) -> dict[int, BaseException]:
        """Publish those at these places, pipelined and in order; what went wrong by place."""
        errors: dict[int, BaseException] = {}
        ids = [parcels[place].properties.message_id for place in places]
        for wave in waves(ids, PIPELINE):
            channel = await self._open_channel()
            results = await asyncio.gather(
                *(_publish(channel, parcels[places[index]]) for index in wave),
                return_exceptions=True,
            )
            for index, result in zip(wave, results, strict=True):
                if isinstance(result, BaseException):
                    errors[places[index]] = result
        return errors

    async def _open_channel(self) -> Channel:
        async with self._opening:
            if self._channel is None or self._channel.is_closed:
                self._channel = await self._link.new_channel()
            return self._channel


class _Link:
    """One connection to the broker: opened when it is needed, and anew after it was lost."""

    def __init__(self, url: str, purpose: str, options: TransportOptions) -> None:
        self.address = redact(url)
        self._url = url
        self._purpose = purpose
        # The broker takes deliveries back from a silent peer after at most two heartbeats.
        self._heartbeat = max(MIN_HEARTBEAT, int(options.visibility_timeout / 2))
        self._connection: aio_pika.Connection | None = None
        self._connecting = asyncio.Lock()
        self._allowed = False
        self._made: set[Piece] = set()

    def allow(self) -> None:
        """Let the connection be opened by who needs it first."""
        self._allowed = True

    async def open(self) -> None:
        """Connect now; Unreachable when that fails."""
        self.allow()
        async with self.call(CONNECT_TIMEOUT):
            await self._connected()

    async def close(self) -> None:
        """Close the connection; what is lost already is closed."""
        self._allowed = False
        with suppress(Unreachable):
            async with self.call(LEAVE_TIMEOUT), self._connecting:
                await self._disconnect()

    @asynccontextmanager
    async def call(self, seconds: float | None = CONNECT_TIMEOUT) -> AsyncIterator[None]:
        """The boundary at which the client library's errors become ours."""
        try:
            async with asyncio.timeout(seconds):
                yield
        except TimeoutError as error:
            raise Unreachable(
                f"The broker at {self.address} did not answer within {seconds:g} s. Check that it "
                f"runs, and that it is not short of memory or disk."
                if seconds is not None
                else f"The broker at {self.address} did not answer in time."
            ) from error
        except CONNECTION_EXCEPTIONS as error:
            raise self._unreachable(error) from error
        except asyncio.CancelledError as error:
            # The client library cancels its futures when a connection closes; who was not
            # cancelled himself hears of the loss.
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            raise self._unreachable(error) from error

    async def new_channel(self) -> Channel:
        """A channel with publisher confirms, on a connection that is opened where it must be."""
        async with asyncio.timeout(CONNECT_TIMEOUT):
            connection = await self._connected()
            channel = connection.channel(publisher_confirms=True, on_return_raises=True)
            await channel.initialize()
            # The interface class does not know `wait` of `basic_publish`, which is worth a quarter.
            return cast(Channel, await channel.get_underlay_channel())

    @asynccontextmanager
    async def channel(self) -> AsyncIterator[Channel]:
        """A channel for one purpose. What it holds unacknowledged goes back to the queue."""
        channel = await self.new_channel()
        try:
            yield channel
        finally:
            if not channel.is_closed:
                await channel.basic_nack(0, multiple=True, requeue=True)
                await channel.close()

    async def ensure(self, pieces: Sequence[Piece]) -> None:
        """Make what has not been made over this connection yet."""
        async with self.call(None):  # each piece has its own time: there may be hundreds
            await self._connected()  # a new connection has made nothing
            missing = [piece for piece in dict.fromkeys(pieces) if piece not in self._made]
            if not missing:
                return
            async with self.channel() as channel:
                for piece in missing:
                    async with asyncio.timeout(CONNECT_TIMEOUT):
                        await _make(channel, piece)
                    self._made.add(piece)

    def forget(self, pieces: Iterable[Piece]) -> None:
        """Make these again when they are needed next."""
        self._made.difference_update(pieces)

    async def _connected(self) -> aio_pika.Connection:
        async with self._connecting:
            if not self._allowed:
                raise Unreachable(f"The broker at {self.address} is not open: connect first.")
            if self._connection is None or not self._connection.connected.is_set():
                await self._disconnect()
                self._connection = await self._connect()
            return self._connection

    async def _connect(self) -> aio_pika.Connection:
        query = parse_qs(urlsplit(self._url).query)
        heartbeat: dict[str, Any] = {} if "heartbeat" in query else {"heartbeat": self._heartbeat}
        try:
            connection = aio_pika.Connection(
                make_url(self._url, **heartbeat),
                client_properties={"connection_name": self._purpose},
            )
        except ValueError as error:
            raise UsageError(
                f"The broker URL {self.address} cannot be read: {error}. Write "
                f"amqp://user:password@host:5672/virtualhost."
            ) from error
        try:
            await connection.connect(timeout=CONNECT_TIMEOUT)
        except BaseException:
            await connection.close()  # or it would try to close itself when it is collected
            raise
        return connection

    async def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        self._made.clear()
        if connection is not None:
            with suppress(*CONNECTION_EXCEPTIONS):  # it is lost, which is why it is closed
                await connection.close()

    def _unreachable(self, error: BaseException) -> Unreachable:
        why = str(error).rstrip(".") or type(error).__name__
        if "Connection.Close object" in why:  # the client library's words for a missing vhost
            why = "it closed the connection at once, as for a virtual host that is not there"
        return Unreachable(
            f"The broker at {self.address} cannot be used: {why}. Check that it runs and that "
            f"host, port, user, password and virtual host in EVENTMESH_BROKER_URL are right."
        )


async def _make(channel: Channel, piece: Piece) -> None:
    """Make one piece of topology; UsageError where it is there already, but different."""
    try:
        match piece:
            case Exchange(name, kind):
                await channel.exchange_declare(
                    name, exchange_type=kind, durable=True, arguments=piece.arguments
                )
            case Queue(name):
                await channel.queue_declare(name, durable=True, arguments=piece.arguments)
            case Binding(queue, exchange, routing_key):
                await channel.queue_bind(queue, exchange, routing_key)
    except ChannelPreconditionFailed as error:
        raise UsageError(
            f"RabbitMQ has another {piece.__class__.__name__.lower()} than EventMesh needs: "
            f"{error}. Delete it there once it is empty, or set another prefix."
        ) from error


async def _publish(channel: Channel, parcel: _Parcel) -> None:
    """Return once the broker has confirmed it. Mandatory: what no queue takes comes back."""
    await channel.basic_publish(
        parcel.body,
        exchange=parcel.exchange,
        routing_key=parcel.routing_key,
        properties=parcel.properties,
        mandatory=True,
        wait=False,  # for the confirm only, not for the socket before each next message
    )


async def _browse(
    channel: Channel, queue: str, limit: int | None
) -> AsyncIterator[DeliveredMessage]:
    """The oldest messages of the queue, each held by the channel until it is acknowledged. At most
    as many as were there at the start, since what goes back could come round for ever."""
    taken, count = 0, 1
    while taken < count and (limit is None or taken < limit):
        try:
            message = await channel.basic_get(queue, timeout=CONNECT_TIMEOUT)
        except ChannelNotFoundEntity:
            return
        if isinstance(message.delivery, Basic.GetEmpty):
            return
        if not taken:
            # Not by a passive declare: its count does not see yet what was given back just now.
            count = 1 + (message.message_count or 0)
        taken += 1
        yield message


async def _some(
    messages: AsyncIterator[DeliveredMessage], count: int
) -> AsyncIterator[DeliveredMessage]:
    """The next of these, up to `count`; the others are left for the next call."""
    for _ in range(count):
        try:
            yield await anext(messages)
        except StopAsyncIteration:
            return


def _refusal(error: BaseException) -> str:
    """Why the broker did not take a message; raises where that is the connection's fault."""
    match error:
        case Returned():
            return f"no queue takes it ({error})"
        case DeliveryError():
            return f"its queue refused it ({error})"
        case ChannelPreconditionFailed():
            return str(error)
        case _ if isinstance(error, _UNSENDABLE):
            return f"it cannot be written as AMQP: {error}"
        case _:
            raise error


def _properties(envelope: Envelope) -> Basic.Properties:
    return Basic.Properties(
        content_type=envelope.attributes.get("datacontenttype"),
        headers=dict(to_headers(envelope)),
        delivery_mode=2,
        message_id=envelope.id,
    )


def _again(
    message: DeliveredMessage,
    exchange: str,
    routing_key: str,
    headers: dict[str, Any] | None = None,
) -> _Parcel:
    """The message as it came, to be published again. Its expiry is left out, or a dead letter
    would vanish, and its user, which the broker would compare with ours."""
    came = message.header.properties
    properties = Basic.Properties(
        content_type=came.content_type,
        content_encoding=came.content_encoding,
        headers=copied(came.headers) if headers is None else headers,
        delivery_mode=2,
        priority=came.priority,
        correlation_id=came.correlation_id,
        reply_to=came.reply_to,
        message_id=came.message_id,
        timestamp=came.timestamp,
        message_type=came.message_type,
        app_id=came.app_id,
    )
    return _Parcel(exchange, routing_key, message.body, properties)


def _tag(message: DeliveredMessage) -> int:
    """The number of a delivery on its channel."""
    tag: int = message.delivery.delivery_tag  # type: ignore[union-attr, assignment]
    return tag
