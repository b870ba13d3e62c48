"""Rigs: what the guarantees are tried on."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from eventmesh.clock import SystemClock
from eventmesh.testing.conformance import Rig
from eventmesh.testing.servers import ControlledServer, Server
from eventmesh.transports.base import Subscription, Transport, TransportOptions
from eventmesh.transports.factory import open_transport
from eventmesh.transports.memory import MemoryBroker, MemoryTransport
from eventmesh.transports.sqlite.file import path_of
from tests.conformance.losing import losing_topology
from tests.conformance.refusing import refusing
from tests.support.proxy import proxy_before


class RefusingBroker(MemoryBroker):
    """A broker in memory that can be told what to refuse."""

    def __init__(self) -> None:
        super().__init__()
        self.refused: set[str] = set()

    @asynccontextmanager
    async def refusing(self, message: str) -> AsyncIterator[None]:
        self.refused.add(message)
        try:
            yield
        finally:
            self.refused.remove(message)


def rig_in_memory(
    transport_at: Callable[[MemoryBroker], MemoryTransport] = lambda broker: MemoryTransport(
        SystemClock(), broker
    ),
    broker: MemoryBroker | None = None,
    *,
    patience: float = 60.0,
) -> Rig:
    """A rig of transports that are all made for one broker in memory."""
    broker = broker or MemoryBroker()
    opened: list[Transport] = []  # or what they hold would be given back when they are collected

    @asynccontextmanager
    async def connect(_visibility_timeout: float) -> AsyncIterator[Transport]:
        transport = transport_at(broker)
        opened.append(transport)
        await transport.connect()
        try:
            yield transport
        finally:
            await transport.close()

    async def restart() -> None:
        broker.stop()
        broker.start()

    async def lose_data() -> None:
        broker.lose_data()

    async def lose_topology(_: Sequence[Subscription]) -> None:
        broker.cut()  # as a broker does with the consumers of what somebody deleted

    async def cut() -> None:
        broker.cut()

    return Rig(
        connect,
        restart=restart,
        lose_data=lose_data,
        lose_topology=lose_topology,
        cut=cut,
        refuse=broker.refusing if isinstance(broker, RefusingBroker) else None,
        visibility_timeout=0.2,  # memory has none; it is only waited for in vain
        patience=patience,
    )


def rig_on_file(url: str) -> Rig:
    """A rig on a broker in a file: no connection to cut, and nothing to restart. Its data is lost
    when somebody deletes the file."""
    prefix = _new_prefix()

    async def lose_data() -> None:
        path = path_of(url)
        for each in (path, path.with_name(f"{path.name}-wal"), path.with_name(f"{path.name}-shm")):
            each.unlink()

    return Rig(_connecting_to(url, prefix), url, prefix, lose_data=lose_data)


@asynccontextmanager
async def rig_on_server(server: Server, slots: int = 1) -> AsyncIterator[Rig]:
    """A rig on this server, where all it makes has a name of its own. Only a controlled server can
    be restarted and lose its data. On Redis, its prefix may be spread over several slots; other
    processes find out by themselves."""
    prefix = _new_prefix()

    def refuse(message: str) -> AbstractAsyncContextManager[None]:
        return refusing(server.url, prefix, message, slots)

    async def lose_topology(subscriptions: Sequence[Subscription]) -> None:
        await losing_topology(server.url, prefix, subscriptions, slots)

    controlled = server if isinstance(server, ControlledServer) else None

    async def restart() -> None:
        assert controlled is not None
        try:
            await controlled.kill()
        finally:
            await controlled.start()  # whatever went wrong: others use it too

    async with proxy_before(server.url) as proxy:

        async def cut() -> None:
            proxy.cut()

        yield Rig(
            _connecting_to(f"{proxy.url}?slots={slots}" if slots > 1 else proxy.url, prefix),
            server.url,
            prefix,
            restart=restart if controlled else None,
            lose_data=controlled.lose_data if controlled else None,
            lose_topology=lose_topology,
            cut=cut,
            refuse=refuse,
            # RabbitMQ knows no visibility timeout; it is only waited for in vain.
            visibility_timeout=1.0 if server.url.startswith("amqp") else 3.0,
        )


def _new_prefix() -> str:
    return f"test-{secrets.token_hex(5)}"


def _connecting_to(
    url: str, prefix: str
) -> Callable[[float], AbstractAsyncContextManager[Transport]]:
    def connect(visibility_timeout: float) -> AbstractAsyncContextManager[Transport]:
        options = TransportOptions(visibility_timeout=visibility_timeout, prefix=prefix)
        return open_transport(url, SystemClock(), options)

    return connect
