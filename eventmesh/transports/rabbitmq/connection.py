"""One connection to RabbitMQ: opened when it is needed, to whichever node answers, and anew after
it was lost. The client library's errors become ours here.

The library is aiormq, on which aio-pika is built. aio-pika's robust connections are not used,
because they hide a loss from those who hold deliveries of the lost channel. Here a loss is
Unreachable at once, and the next call connects anew.
"""

from __future__ import annotations

import asyncio
import random
import ssl
from collections.abc import AsyncIterator, Coroutine, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar, cast

from aiormq import Connection
from aiormq.abc import AbstractChannel, ChannelFrame
from aiormq.channel import Channel
from aiormq.connection import TCPTransportFactory, TLSTransportFactory, TransportFactory
from aiormq.exceptions import AMQPError, ChannelPreconditionFailed
from pamqp import commands as spec
from pamqp.base import Frame
from pamqp.exceptions import PAMQPException
from pamqp.frame import marshal
from yarl import URL

from eventmesh.errors import Unreachable, UsageError
from eventmesh.redact import redact, redact_error
from eventmesh.transports.base import TransportOptions
from eventmesh.transports.rabbitmq.frames import FrameStream, Tap
from eventmesh.transports.rabbitmq.topology import Binding, Exchange, Forwarding, Piece, Queue
from eventmesh.transports.rabbitmq.url import nodes

_T = TypeVar("_T")

CONNECT_TIMEOUT = 10.0
LEAVE_TIMEOUT = 5.0
"""Seconds after which the broker counts as gone. Leaving is short: what is not given back in good
order goes back when the connection closes."""

SHORTEST_ATTEMPT = 3.0
"""Seconds that a node has to answer, however many others share CONNECT_TIMEOUT with it."""

MIN_HEARTBEAT = 5
"""Seconds; with less, a busy event loop would pass for a dead worker."""

CONNECTION_ERRORS = (
    *(AMQPError, PAMQPException, OSError, EOFError),
    *(RuntimeError, StopAsyncIteration),
)
"""What the client library raises when a connection or channel cannot be used."""


class Link:
    """A connection for one purpose."""

    def __init__(self, url: str, purpose: str, options: TransportOptions) -> None:
        self._url = url
        self.address = redact(url)
        self._nodes = nodes(url)
        # Workers that start together spread over a cluster.
        self._next_node = random.randrange(len(self._nodes))  # noqa: S311 - not for secrets
        self._purpose = purpose
        # The broker takes deliveries back from a silent peer after at most two heartbeats.
        self._heartbeat = max(MIN_HEARTBEAT, int(options.visibility_timeout / 2))
        self._connection: Connection | None = None
        self._taps: dict[int, Tap] = {}
        self._connecting = asyncio.Lock()
        self._allowed = False
        self._made: set[Piece] = set()

    def allow(self) -> None:
        """Let the connection be opened by who needs it first."""
        self._allowed = True

    async def open(self) -> None:
        """Connect now; Unreachable when that fails."""
        self.allow()
        async with self.call(None):  # each node has its own time
            await self._connected()

    async def close(self) -> None:
        """Close the connection; what is lost already is closed."""
        self._allowed = False
        with suppress(Unreachable):
            async with self.call(LEAVE_TIMEOUT), self._connecting:
                await self._disconnect()

    async def not_blocked(self) -> None:
        """Return once the broker takes messages on this connection, or has closed it: it stops
        reading from one that publishes when it is short of memory or disk."""
        connection = await self._connected()
        waits = [asyncio.ensure_future(connection.ready()), connection.closing]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    @asynccontextmanager
    async def call(self, seconds: float | None = CONNECT_TIMEOUT) -> AsyncIterator[None]:
        """The boundary at which the client library's errors become ours."""
        try:
            async with asyncio.timeout(seconds):
                yield
        except TimeoutError as error:
            within = "in time" if seconds is None else f"within {seconds:g} s"
            raise Unreachable(
                f"The broker at {self.address} did not answer {within}. Check that it runs, and "
                f"that it is not short of memory or disk."
            ) from error
        except CONNECTION_ERRORS as error:
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
        connection = await self._connected()
        opening = _start(connection.channel(publisher_confirms=True))
        # The client library does not tell a channel that comes while it closes.
        waits: list[asyncio.Future[Any]] = [opening, connection.closing]
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            if not opening.done():
                raise ConnectionResetError("the connection was lost")
            channel = cast(Channel, opening.result())
        except BaseException:
            opening.add_done_callback(_close_what_came)
            raise
        finally:
            for wait in waits:
                wait.cancel()
        self._taps.pop(channel.number, None)  # of a channel that had this number before
        return channel

    def tap(self, channel: Channel, tap: Tap) -> None:
        """Let this tap take its frames of the channel."""
        self._taps[channel.number] = tap

    @asynccontextmanager
    async def channel(self) -> AsyncIterator[Channel]:
        """A channel for one purpose. What it holds unacknowledged goes back to the queue; after a
        cancellation, which waits for nothing more, a moment later."""
        channel = await self.new_channel()
        try:
            yield channel
        except asyncio.CancelledError:
            _start(_leave(channel))
            raise
        except Exception:
            with suppress(*CONNECTION_ERRORS):  # that error says more than one of leaving
                await _untouched(_leave(channel))
            raise
        await _untouched(_leave(channel))

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

    async def _connected(self) -> Connection:
        async with self._connecting:
            if not self._allowed:
                raise self._not_open()
            if self._connection is None or not self._connection.is_opened:
                await self._disconnect()
                self._connection = await self._connect_to_any()
                if not self._allowed:  # it was closed meanwhile, and did not wait
                    await self._disconnect()
                    raise self._not_open()
            return self._connection

    async def _connect_to_any(self) -> Connection:
        """A connection to the first node that answers; after one that was lost or does not answer
        comes the next."""
        seconds = max(CONNECT_TIMEOUT / len(self._nodes), SHORTEST_ATTEMPT)
        for attempt in range(len(self._nodes)):
            node = self._nodes[self._next_node]
            self._next_node = (self._next_node + 1) % len(self._nodes)
            try:
                async with asyncio.timeout(seconds):
                    return await self._connect(node)
            except (TimeoutError, *CONNECTION_ERRORS):
                if attempt == len(self._nodes) - 1:
                    raise
        raise AssertionError("a URL has at least one node")

    async def _connect(self, node: str) -> Connection:
        url = URL(node)
        if "heartbeat" not in url.query:
            url = url.update_query(heartbeat=self._heartbeat)
        self._taps = {}  # what is left of a lost connection must not meet this one
        connection = Connection(
            url,
            client_properties={"connection_name": self._purpose},
            transport_factory=_Tapped(self._taps),
        )
        try:
            await connection.connect()
        except BaseException:
            await connection.close()
            raise
        return connection

    async def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        self._made.clear()
        if connection is not None:
            with suppress(*CONNECTION_ERRORS):  # it is lost, which is why it is closed
                await connection.close()

    def _not_open(self) -> Unreachable:
        return Unreachable(f"The broker at {self.address} is not open: connect first.")

    def _unreachable(self, error: BaseException) -> Unreachable:
        why = redact_error(error, self._url).rstrip(".") or type(error).__name__
        if isinstance(error.__cause__, ssl.SSLError):
            return Unreachable(
                f"The broker at {self.address} cannot be used: {why}. Check that its certificate "
                f"is for this host and signed by an authority that is trusted here; name another "
                f"with ?cafile= in EVENTMESH_BROKER_URL."
            )
        if "Connection.Close object" in why:  # the client library's words for a missing vhost
            why = "it closed the connection at once, as for a virtual host that is not there"
        return Unreachable(
            f"The broker at {self.address} cannot be used: {why}. Check that it runs and that "
            f"host, port, user, password and virtual host in EVENTMESH_BROKER_URL are right."
        )


class _Tapped(TransportFactory):
    """Opens the socket, and lets taps see its frames before the client library."""

    def __init__(self, taps: dict[int, Tap]) -> None:
        self._taps = taps

    async def create(
        self, url: URL, **kwargs: Any
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        plain = TLSTransportFactory() if url.scheme == "amqps" else TCPTransportFactory()
        reader, writer = await plain.create(url, **kwargs)
        return cast(asyncio.StreamReader, FrameStream(reader, self._taps)), writer


async def close_channel(channel: Channel) -> None:
    """Close it, if it is open; this goes on when its caller is cancelled."""
    if not channel.is_closed:
        await _untouched(channel.close())


async def _leave(channel: Channel) -> None:
    if not channel.is_closed:
        for consumer in list(channel.consumers):
            # Or acknowledgements may be lost: see amqp_taking.
            await channel.basic_cancel(consumer)
        await channel.basic_nack(0, multiple=True, requeue=True)
        await channel.close()


async def _untouched(doing: Coroutine[Any, Any, None]) -> None:
    """Wait for it, in a task of its own that no cancellation reaches: where the client library has
    a `timeout`, as for closing, it waits by `asyncio.wait_for`, which may lose one on Python 3.11.
    So we give it none, either."""
    await asyncio.shield(_start(doing))


def _start(doing: Coroutine[Any, Any, _T]) -> asyncio.Task[_T]:
    """A task that may fail when nobody waits for it any more."""
    task = asyncio.ensure_future(doing)
    task.add_done_callback(_hear)
    return task


def _close_what_came(opening: asyncio.Task[AbstractChannel]) -> None:
    """Nobody waits for this channel any more."""
    if not opening.cancelled() and opening.exception() is None:
        _start(close_channel(cast(Channel, opening.result())))


def _hear(ended: asyncio.Future[Any]) -> None:
    """Take note of how it ended, so that nobody is told that its error was not asked for."""
    if not ended.cancelled():
        ended.exception()


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
            case Forwarding(exchange, source, routing_key):
                await channel.exchange_bind(exchange, source, routing_key)
    except ChannelPreconditionFailed as error:
        raise _another(error) from error


async def restore(channel: Channel, pieces: Sequence[Piece]) -> None:
    """Make all of these, of which most are there, by one write and one answer; UsageError where
    something else is there."""
    methods = b"".join(marshal(_unanswered(piece), channel.number) for piece in pieces)
    await channel.write_queue.put(ChannelFrame(methods, False))
    try:
        # The broker does what it is asked to in its order: with the answer to this, all are made.
        await channel.basic_qos(prefetch_count=1)
    except ChannelPreconditionFailed as error:
        raise _another(error) from error


def _another(error: BaseException) -> UsageError:
    return UsageError(
        f"RabbitMQ has another exchange or queue than EventMesh needs: {error}. Delete it there "
        f"once it is empty, or set another prefix."
    )


def _unanswered(piece: Piece) -> Frame:
    """The method that makes a piece, to which the broker answers only by closing the channel."""
    match piece:
        case Exchange(name, kind):
            return spec.Exchange.Declare(
                exchange=name,
                exchange_type=kind,
                durable=True,
                nowait=True,
                arguments=piece.arguments,
            )
        case Queue(name):
            return spec.Queue.Declare(
                queue=name, durable=True, nowait=True, arguments=piece.arguments
            )
        case Binding(queue, exchange, routing_key):
            return spec.Queue.Bind(
                queue=queue, exchange=exchange, routing_key=routing_key, nowait=True
            )
        case Forwarding(exchange, source, routing_key):
            return spec.Exchange.Bind(
                destination=exchange, source=source, routing_key=routing_key, nowait=True
            )
