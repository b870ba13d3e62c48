"""Makes the transport that a broker URL asks for.

A transport and its client library are imported only when the URL has their scheme, so that a
command line on SQLite does not wait for the import of RabbitMQ's client.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

from eventmesh.clock import Clock
from eventmesh.errors import UsageError
from eventmesh.redact import redact, redact_error
from eventmesh.tracing.place import Place
from eventmesh.transports.base import Transport, TransportOptions
from eventmesh.transports.hosts import split_hosts

_REDIS = tuple(f"redis{s}{form}" for s in ("", "s") for form in ("", "+sentinel", "+cluster"))
_RABBITMQ = ("amqp", "amqps")
_PORTS = {"redis": 6379, "rediss": 6379, "amqp": 5672, "amqps": 5671}
SCHEMES = ("sqlite", *_REDIS, *_RABBITMQ, "memory")


def make_transport(url: str, clock: Clock, options: TransportOptions) -> Transport:
    """The transport of this URL, not yet connected; UsageError if its scheme is unknown."""
    if "://" not in url:
        raise UsageError(
            f"The broker URL {redact(url)!r} has no scheme. Set EVENTMESH_BROKER_URL to one of: "
            f"{', '.join(f'{known}://…' for known in SCHEMES)}."
        )
    scheme = _scheme(url)
    match scheme:
        case "memory":
            from eventmesh.transports.memory import MemoryTransport

            return MemoryTransport(clock)
        case "sqlite":
            from eventmesh.transports.sqlite.transport import SqliteTransport

            return SqliteTransport(url, clock, options)
        case _ if scheme in _REDIS:
            from eventmesh.transports.redis.transport import RedisTransport

            return RedisTransport(url, clock, options)
        case _ if scheme in _RABBITMQ:
            from eventmesh.transports.rabbitmq.transport import AmqpTransport

            return AmqpTransport(url, clock, options)
        case _:
            raise UsageError(
                f"The broker URL {redact(url)!r} has the scheme "
                f"{redact_error(repr(scheme), url)}, which EventMesh does "
                f"not know. Set EVENTMESH_BROKER_URL to one of: "
                f"{', '.join(f'{known}://' for known in SCHEMES)}."
            )


def place_of(url: str, options: TransportOptions) -> Place:
    """How traces describe the broker of this URL. Whether the URL can be used is not checked: a
    program that only writes to its outbox does not need the broker."""
    try:
        parts, *others = map(urlsplit, split_hosts(url))
        # Which of several answers is known to the transport only.
        server = None if others or "+" in parts.scheme else parts
        address = (server and server.hostname) or ""
        port = server.port or _PORTS.get(parts.scheme) if server and address else None
    except ValueError:
        return Place("unknown")
    if parts.scheme in _REDIS:
        from eventmesh.transports.redis.keys import Layout

        layout = Layout(options.prefix, one_slot=parts.scheme.endswith("+cluster"))
        return Place("redis", address, port, before=layout.streams, has_groups=True)
    if parts.scheme in _RABBITMQ:
        from eventmesh.transports.rabbitmq.topology import Topology

        topology = Topology(options.prefix)
        exchange, queues = f"{topology.exchange}:", topology.queue_prefix
        return Place(
            "rabbitmq",
            address,
            port,
            before=exchange,
            queue_before=queues,
            has_routing_keys=True,
        )
    return Place(parts.scheme or "unknown")


@asynccontextmanager
async def open_transport(
    url: str, clock: Clock, options: TransportOptions
) -> AsyncIterator[Transport]:
    """The transport of this URL, connected; it is closed on leaving."""
    transport = make_transport(url, clock, options)
    try:
        await transport.connect()
        yield transport
    finally:
        await transport.close()


def _scheme(url: str) -> str:
    """The scheme of a URL that can be parsed. URLs with several hosts are checked by their
    transport."""
    try:
        parts = urlsplit(split_hosts(url)[0])
        if parts.scheme not in _RABBITMQ and "+" not in parts.scheme:
            _ = parts.port
    except ValueError as error:
        raise UsageError(
            f"The broker URL {redact(url)!r} is not valid: "
            f"{redact_error(error, url)}. Write it as "
            f"scheme://user:password@host:port/."
        ) from None
    return parts.scheme
