"""A connection to RabbitMQ: opened on first use, to whichever node answers, and opened again after
a loss.

The library is aiormq, on which aio-pika is built. aio-pika's robust connections reconnect by
themselves and do not notify the holders of deliveries of the lost channel. Here, a loss is
Unreachable at once for all who use the connection, and the next call connects again.

aiormq reports a lost connection in several ways: by its own errors, by cancelling its futures, or
by never answering. `guard` turns all of them into Unreachable.
"""

from __future__ import annotations

import asyncio
import random
import ssl
from collections.abc import AsyncIterator, Coroutine, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar, cast

from aiormq.channel import Channel
from aiormq.connection import TCPTransportFactory, TLSTransportFactory, TransportFactory
from aiormq.exceptions import AMQPError, ChannelAccessRefused
from pamqp.exceptions import PAMQPException
from yarl import URL

from eventmesh.errors import Unreachable
from eventmesh.redact import redact, redact_error
from eventmesh.tracing.place import Peer
from eventmesh.transports.base import TransportOptions
from eventmesh.transports.rabbitmq.channels import ChannelConnection, in_background
from eventmesh.transports.rabbitmq.declaring import declare, declare_all
from eventmesh.transports.rabbitmq.frames import FrameStream, Tap
from eventmesh.transports.rabbitmq.topology import Entity
from eventmesh.transports.rabbitmq.url import nodes

_T = TypeVar("_T")

CONNECT_TIMEOUT = 10.0
LEAVE_TIMEOUT = 5.0
"""Seconds without an answer after which the broker counts as lost. Leaving is short: what is not
given back then goes back when the connection closes."""

MIN_NODE_TIMEOUT = 3.0
"""Seconds that each node has to answer, however many share CONNECT_TIMEOUT."""

DECLARED_ALONE, DECLARED_TOGETHER = 60, 20
"""Up to so many missing entities are declared one by one, more in groups of so many: a subscription
with an order has some hundred bindings."""

MAX_HELD = 65_535
"""How many messages a consumer can hold in AMQP: the largest prefetch count."""

MAX_CHANNELS = 16
"""How many channels may be in use at once over a connection that is made `for_many_channels`."""

MIN_HEARTBEAT = 5
"""Seconds. With less, RabbitMQ would take a worker with a busy event loop for dead."""

CONNECTION_ERRORS = (
    *(AMQPError, PAMQPException, OSError, EOFError),
    *(RuntimeError, StopAsyncIteration),
)
"""What aiormq raises when a connection or channel cannot be used."""


class BrokerConnection:
    """A connection for one purpose, which RabbitMQ shows as its name."""

    def __init__(self, url: str, purpose: str, options: TransportOptions) -> None:
        self._url = url
        self._options = options
        self.address = redact(url)
        self._nodes = nodes(url)
        # Workers that start together spread over a cluster.
        self._next_node = random.randrange(len(self._nodes))  # noqa: S311 - not for secrets
        self._purpose = purpose
        # RabbitMQ takes deliveries back from a silent client after at most two heartbeats.
        self._heartbeat = max(MIN_HEARTBEAT, int(options.visibility_timeout / 2))
        self._connection: ChannelConnection | None = None
        self.peer: Peer | None = None
        """Where the newest connection goes to."""
        self._taps: dict[int, Tap] = {}
        self._connecting = asyncio.Lock()
        self._allowed = False
        self._declared: set[Entity] = set()
        self._turns: dict[str, asyncio.Lock] = {}

    def allow(self) -> None:
        """Let the first call that needs the connection open it."""
        self._allowed = True

    async def open(self) -> None:
        """Connect now; Unreachable when that fails."""
        self.allow()
        async with self.guard(None):  # each node has its own timeout
            await self._connected()

    async def close(self) -> None:
        """Close the connection, if it is open."""
        self._allowed = False
        with suppress(Unreachable):
            async with self.guard(LEAVE_TIMEOUT), self._connecting:
                await self._disconnect()

    async def wait_until_unblocked(self) -> None:
        """Return once the broker reads from this connection, or has closed it: it stops reading
        from connections that publish while it is short of memory or disk."""
        connection = await self._connected()
        waits = [asyncio.ensure_future(connection.ready()), connection.closing]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    async def server_version(self) -> str:
        """The version that the broker reports."""
        said = (await self._connected()).server_properties.get("version", b"")
        return said.decode(errors="replace") if isinstance(said, bytes) else str(said)

    @asynccontextmanager
    async def guard(self, seconds: float | None = CONNECT_TIMEOUT) -> AsyncIterator[None]:
        """Within it, the errors of aiormq, and taking longer than this, become Unreachable."""
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
            # aiormq cancels its futures when a connection closes. Unless our own task is being
            # cancelled, this is such a loss.
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            raise self._unreachable(error) from error

    async def open_channel(self, *, confirms: bool = True) -> Channel:
        """A new channel, with publisher confirms unless told otherwise; connects if necessary."""
        connection = await self._connected()
        opening = in_background(connection.open_channel(confirms=confirms))
        # aiormq does not notify a channel that opens while its connection closes.
        closing = connection.closing
        closing.add_done_callback(lambda _: opening.cancel())
        opening.add_done_callback(lambda _: closing.cancel())
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                await asyncio.wait([opening])
        except BaseException:
            opening.add_done_callback(_close_late_channel)
            raise
        if opening.cancelled():
            raise ConnectionResetError("the connection was lost")
        channel = opening.result()
        self._taps.pop(channel.number, None)  # an earlier channel had the same number
        return channel

    def tap(self, channel: Channel, tap: Tap) -> None:
        """Offer the channel's frames to this tap first."""
        self._taps[channel.number] = tap

    @asynccontextmanager
    async def channel(self) -> AsyncIterator[Channel]:
        """A channel that is closed on leaving; after a cancellation, which does not wait, a moment
        later. What it holds unacknowledged goes back to its queue, in its order, because RabbitMQ
        returns it in one step. Rejecting it first mixes the order, and so does cancelling its
        consumer, so that is done only without an error, when all it got is settled."""
        channel = await self.open_channel()
        try:
            yield channel
        except asyncio.CancelledError:
            in_background(close_channel(channel))
            raise
        except Exception:
            with suppress(*CONNECTION_ERRORS):  # the first error says more
                await close_channel(channel)
            raise
        await _shielded(_leave(channel))

    @asynccontextmanager
    async def for_many_channels(self) -> AsyncIterator[BrokerConnection]:
        """Another connection to the same broker, for as long as the context: for MAX_CHANNELS
        channels at once, which others that use this one need not share it with."""
        other = BrokerConnection(self._url, self._purpose, self._options)
        await other.open()
        try:
            yield other
        finally:
            await other.close()

    async def ensure_declared(self, entities: Sequence[Entity]) -> None:
        """Declare what was not declared over this connection yet."""
        async with self.guard(None):  # each step has its own timeout: there may be hundreds
            await self._connected()  # a new connection has declared nothing
            missing = [each for each in dict.fromkeys(entities) if each not in self._declared]
            if not missing:
                return
            async with self.channel() as channel:
                if len(missing) <= DECLARED_ALONE:
                    for entity in missing:
                        async with asyncio.timeout(CONNECT_TIMEOUT):
                            await declare(channel, entity)
                        self._declared.add(entity)
                    return
                for start in range(0, len(missing), DECLARED_TOGETHER):
                    together = missing[start : start + DECLARED_TOGETHER]
                    async with asyncio.timeout(CONNECT_TIMEOUT):
                        await declare_all(channel, together)
                    self._declared.update(together)

    def turn(self, name: str) -> asyncio.Lock:
        """The lock by which tasks that share this connection take turns at something."""
        return self._turns.setdefault(name, asyncio.Lock())

    def forget_declared(self, entities: Iterable[Entity]) -> None:
        """Declare these again when they are needed next: somebody may have deleted them."""
        self._declared.difference_update(entities)

    async def _connected(self) -> ChannelConnection:
        async with self._connecting:
            if not self._allowed:
                raise self._not_open()
            if self._connection is None or not self._connection.is_opened:
                await self._disconnect()
                self._connection = await self._connect()
                if not self._allowed:  # `close` was called meanwhile, and did not wait
                    await self._disconnect()
                    raise self._not_open()
            return self._connection

    async def _connect(self) -> ChannelConnection:
        """A connection to the first node that answers, beginning with the one after the last node
        that was tried."""
        timeout = max(CONNECT_TIMEOUT / len(self._nodes), MIN_NODE_TIMEOUT)
        untried = len(self._nodes)
        while True:
            url = URL(self._nodes[self._next_node])
            self._next_node = (self._next_node + 1) % len(self._nodes)
            untried -= 1
            if "heartbeat" not in url.query:
                url = url.update_query(heartbeat=self._heartbeat)
            self._taps = {}  # taps of a lost connection must not see frames of this one
            socket = _Tapped(self._taps)
            connection = ChannelConnection(
                url,
                client_properties={"connection_name": self._purpose},
                transport_factory=socket,
            )
            try:
                async with asyncio.timeout(timeout):
                    try:
                        await connection.connect()
                    except BaseException:
                        await connection.close()
                        raise
                    self.peer = socket.peer
                    return connection
            except (TimeoutError, *CONNECTION_ERRORS):
                if not untried:
                    raise

    async def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        self._declared.clear()
        if connection is not None:
            with suppress(*CONNECTION_ERRORS):  # it may be lost
                await connection.close()

    def _not_open(self) -> Unreachable:
        return Unreachable(f"The broker at {self.address} is not connected: call connect() first.")

    def _unreachable(self, error: BaseException) -> Unreachable:
        why = redact_error(error, self._url).rstrip(".") or type(error).__name__
        if isinstance(error.__cause__, ssl.SSLError):
            return Unreachable(
                f"The broker at {self.address} cannot be used: {why}. Check that its certificate "
                f"is for this host and signed by an authority that is trusted here; name another "
                f"with ?cafile= in EVENTMESH_BROKER_URL."
            )
        if isinstance(error, ChannelAccessRefused):
            return Unreachable(
                f"The broker at {self.address} cannot be used: {why}. Give its user this right, as "
                f"by `rabbitmqctl set_permissions`."
            )
        if "Connection.Close object" in why:  # what aiormq says of a missing virtual host
            why = "it closed the connection at once, as for a virtual host that does not exist"
        return Unreachable(
            f"The broker at {self.address} cannot be used: {why}. Check that it runs and that "
            f"host, port, user, password and virtual host in EVENTMESH_BROKER_URL are right."
        )


class _Tapped(TransportFactory):
    """Opens the socket, and offers its frames to taps before aiormq reads them. `peer` is where the
    socket goes to."""

    peer: Peer | None = None

    def __init__(self, taps: dict[int, Tap]) -> None:
        self._taps = taps

    async def create(
        self, url: URL, **kwargs: Any
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        plain = TLSTransportFactory() if url.scheme == "amqps" else TCPTransportFactory()
        reader, writer = await plain.create(url, **kwargs)
        self.peer = Peer(*writer.get_extra_info("peername")[:2])
        return cast(asyncio.StreamReader, FrameStream(reader, self._taps)), writer


async def close_channel(channel: Channel) -> None:
    """Close it, if it is open. Closing goes on when the caller is cancelled."""
    if not channel.is_closed:
        await _shielded(channel.close())


async def _leave(channel: Channel) -> None:
    if not channel.is_closed:
        for consumer in list(channel.consumers):
            # Otherwise acknowledgements may be lost: see `held_messages`.
            await channel.basic_cancel(consumer)
        await channel.close()


async def _shielded(doing: Coroutine[Any, Any, None]) -> None:
    """Await it in a task of its own, which no cancellation reaches: where aiormq has a timeout, as
    for closing, it uses `asyncio.wait_for`, which on Python 3.11 may swallow a cancellation. For
    the same reason we pass it no timeout."""
    await asyncio.shield(in_background(doing))


def _close_late_channel(opening: asyncio.Task[Channel]) -> None:
    """Close a channel that opened after its caller had stopped waiting."""
    if not opening.cancelled() and opening.exception() is None:
        in_background(close_channel(opening.result()))
