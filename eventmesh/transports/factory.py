"""From a broker URL to its transport. Each transport's client library is imported only when it is
the one asked for."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

from eventmesh.clock import Clock
from eventmesh.errors import UsageError
from eventmesh.redact import redact
from eventmesh.transports.base import Transport, TransportOptions

SCHEMES = ("sqlite", "redis", "rediss", "amqp", "amqps", "memory")


def make_transport(url: str, clock: Clock, options: TransportOptions) -> Transport:
    """The transport of this URL, not yet connected; UsageError for a URL of no known scheme."""
    scheme = _scheme(url)
    match scheme:
        case "memory":
            from eventmesh.transports.memory import MemoryTransport

            return MemoryTransport(clock)
        case "sqlite":
            from eventmesh.transports.sqlite import SqliteTransport

            return SqliteTransport(url, clock, options)
        case "redis" | "rediss":
            from eventmesh.transports.redis_streams import RedisStreamsTransport

            return RedisStreamsTransport(url, clock, options)
        case "amqp" | "amqps":
            from eventmesh.transports.amqp import AmqpTransport

            return AmqpTransport(url, clock, options)
        case _:
            raise UsageError(
                f"The broker URL {redact(url)!r} has the scheme {scheme!r}, which EventMesh does "
                f"not know. Set EVENTMESH_BROKER_URL to one of: "
                f"{', '.join(f'{known}://' for known in SCHEMES)}."
            )


@asynccontextmanager
async def open_transport(
    url: str, clock: Clock, options: TransportOptions
) -> AsyncIterator[Transport]:
    """The connected transport of this URL, closed on leaving."""
    transport = make_transport(url, clock, options)
    try:
        await transport.connect()
        yield transport
    finally:
        await transport.close()


def _scheme(url: str) -> str:
    """The scheme of a URL that names a host where its scheme needs one."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise UsageError(
            f"The broker URL {redact(url)!r} cannot be understood: {error}. Write it as "
            f"scheme://user:password@host:port/."
        ) from None
    if parts.scheme in ("amqp", "amqps") and not host:
        raise UsageError(
            f"The broker URL {redact(url)!r} names no host: write {parts.scheme}://user:password@"
            f"host:port/."
        )
    return parts.scheme
