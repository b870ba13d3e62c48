"""Finds the server that accepts writes: the one that the URL names, the master that a Sentinel
names, or the node of a Cluster that has our slot. It is looked up again after a failover."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.connection import SSLConnection, parse_url
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisClusterException, RedisError

from eventmesh.errors import UsageError
from eventmesh.redact import redact, redact_error
from eventmesh.transports.hosts import split_hosts
from eventmesh.transports.redis.keys import MOST_SLOTS

FINDING_TIMEOUT = 2.0
"""Seconds to wait for one Sentinel or Cluster node before asking the next, at least."""

FINDING_TIME = 8.0
"""Seconds that all of them share: fewer addresses may take longer to answer."""

_FORMS = {
    "redis": "redis://user:password@host:6379/0",
    "sentinel": "redis+sentinel://user:password@host1:26379,host2:26379/master-name/0",
    "cluster": "redis+cluster://user:password@host1:6379,host2:6379/",
}
_DEFAULT_PORTS = {"redis": 6379, "sentinel": 26379, "cluster": 6379}
_FILES = ("ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile")

Address = tuple[str, int]


@dataclass(frozen=True, slots=True)
class RedisUrl:
    """The parts of a broker URL.

    `kind` is "redis", "sentinel" or "cluster"; `addresses` are of the server, the Sentinels or some
    nodes. `options` are redis-py's, for a connection to a server. `wait_replicas` is how many
    replicas must have a message before it is confirmed. `slots` is over how many slots the prefix
    is spread, None if the URL does not say it.
    """

    kind: str
    addresses: tuple[Address, ...]
    options: Mapping[str, Any]
    master: str = ""
    sentinel_options: Mapping[str, Any] | None = None
    wait_replicas: int = 0
    slots: int | None = None


def parse_broker_url(url: str) -> RedisUrl:
    """The parts of a URL; UsageError if it is not valid."""
    scheme = url.partition(":")[0].lower()
    kind = scheme.partition("+")[2] or "redis"
    try:
        return _parts(url, kind, tls=scheme.startswith("rediss"))
    except (ValueError, LookupError) as error:
        raise UsageError(
            f"The broker URL {redact(url)!r} is not valid "
            f"({redact_error(error, url).rstrip('.')}). "
            f"Write it as {_FORMS.get(kind, _FORMS['redis'])}, or with "
            f"rediss{f'+{kind}' if kind != 'redis' else ''}:// for TLS."
        ) from error


def _parts(url: str, kind: str, *, tls: bool) -> RedisUrl:
    splits = [urlsplit(each) for each in split_hosts(url)]
    split = splits[0]
    user, at, _ = split.netloc.rpartition("@")
    master, database = _path(split.path, kind)
    # redis-py knows the user and all the options: it is given a URL as it understands it.
    options: dict[str, Any] = {
        **parse_url(f"redis{'s' if tls else ''}://{user}{at}host/{database}?{split.query}")
    }
    options.pop("host", None)
    wait_replicas = int(options.pop("wait_replicas", 0))
    slots = int(options.pop("slots")) if "slots" in options else None
    sentinel_login = {
        name: options.pop(f"sentinel_{name}")
        for name in ("username", "password")
        if f"sentinel_{name}" in options
    }
    addresses = tuple(
        (each.hostname or "localhost", each.port or _DEFAULT_PORTS[kind]) for each in splits
    )
    if kind == "redis" and len(addresses) > 1:
        raise ValueError("several hosts need redis+sentinel:// or redis+cluster://")
    if wait_replicas < 0:
        raise ValueError("wait_replicas must be 0 or more")
    if slots is not None and not 1 <= slots <= MOST_SLOTS:
        raise ValueError(f"slots must be a number from 1 to {MOST_SLOTS}")
    for name in _FILES:
        if name in options and not Path(options[name]).exists():
            raise ValueError(f"{name} names the file {options[name]}, which does not exist")
    return RedisUrl(
        kind=kind,
        addresses=addresses,
        options=options,
        master=master,
        sentinel_options=sentinel_login | {n: v for n, v in options.items() if n[:4] == "ssl_"},
        wait_replicas=wait_replicas,
        slots=slots,
    )


def _path(path: str, kind: str) -> tuple[str, str]:
    """The name of a Sentinel's master, and the database."""
    segments = [unquote(segment) for segment in path.split("/") if segment]
    if kind == "sentinel":
        if not segments:
            raise ValueError("it does not name a master")
        master, *segments = segments
    else:
        master = ""
    database = "/".join(segments)
    if kind != "redis" and not (database or "0").isdigit():
        raise ValueError(f"{database!r} is not the number of a database")
    if kind == "cluster" and database not in ("", "0"):
        raise ValueError("a Redis Cluster has only the database 0")
    return master, database


class Locator(Protocol):
    """Knows which server accepts writes."""

    async def locate(self) -> Address:
        """Its current address; an error of redis-py if it cannot be found. Leaves no connection
        open."""
        ...


def locator_for(url: RedisUrl, key: str) -> Locator:
    """The locator of this URL. `key` is any key that will be stored on the server."""
    match url.kind:
        case "sentinel":
            return _BySentinel(url)
        case "cluster":
            return _ByCluster(url, key)
        case _:
            return _Fixed(url.addresses[0])


class _Fixed:
    def __init__(self, address: Address) -> None:
        self._address = address

    async def locate(self) -> Address:
        return self._address


async def _first_answer(
    addresses: Iterable[Address], ask: Callable[[Address], Awaitable[Address]]
) -> tuple[Address, Address]:
    """Ask one address after another; returns the first that answers and its answer, or raises the
    last error. The time-out is ours, because `asyncio.wait_for`, which redis-py uses, may lose a
    cancellation on Python 3.11."""
    failure: RedisError = RedisConnectionError("the URL has no address")
    to_ask = list(addresses)
    limit = max(FINDING_TIMEOUT, FINDING_TIME / max(len(to_ask), 1))
    for address in to_ask:
        try:
            async with asyncio.timeout(limit):
                return address, await ask(address)
        except (OSError, TimeoutError) as error:
            why = str(error) or f"no answer in {limit:.0f} s"
            failure = RedisConnectionError(f"{address[0]}:{address[1]}: {why}")
        except RedisError as error:
            failure = error
    raise failure


async def _finished(closing: Coroutine[Any, Any, None]) -> None:
    """Wait until a client is closed, also if we are cancelled meanwhile: redis-py does not close
    twice, so whatever a cancellation left open would stay open. It matters to nobody if it fails:
    what was asked is known by then."""
    task = asyncio.ensure_future(closing)
    task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())  # retrieved
    try:
        await asyncio.wait([task], timeout=FINDING_TIMEOUT)
    except asyncio.CancelledError:
        await asyncio.wait([task], timeout=FINDING_TIMEOUT)
        raise


class _BySentinel:
    """Asks the Sentinels, first the one that answered last time."""

    def __init__(self, url: RedisUrl) -> None:
        self._master = url.master
        self._addresses = url.addresses
        self._options = {
            **(url.sentinel_options or {}),
            "ssl": url.options.get("connection_class") is SSLConnection,
            "socket_connect_timeout": FINDING_TIME,
            "retry": Retry(NoBackoff(), 0),
        }

    async def locate(self) -> Address:
        answered, master = await _first_answer(self._addresses, self._ask)
        self._addresses = tuple(dict.fromkeys((answered, *self._addresses)))
        return master

    async def _ask(self, address: Address) -> Address:
        sentinel = Sentinel(  # type: ignore[no-untyped-call]
            [address], sentinel_kwargs=self._options
        )
        try:
            host, port = await sentinel.discover_master(self._master)
        finally:
            await _finished(sentinel.aclose())
        return host, port


class _ByCluster:
    """Asks the nodes which of them has the slot: those of the URL, and those known from last
    time."""

    def __init__(self, url: RedisUrl, key: str) -> None:
        self._key = key
        self._named = url.addresses
        self._known: tuple[Address, ...] = ()
        self._options = {
            name: value for name, value in url.options.items() if name not in ("db", "protocol")
        }
        self._options["ssl"] = self._options.pop("connection_class", None) is SSLConnection

    async def locate(self) -> Address:
        _, owner = await _first_answer(dict.fromkeys(self._named + self._known), self._ask)
        return owner

    async def _ask(self, address: Address) -> Address:
        cluster = RedisCluster(
            startup_nodes=[ClusterNode(*address)],
            require_full_coverage=False,
            socket_connect_timeout=FINDING_TIME,
            retry=Retry(NoBackoff(), 0),
            **self._options,
        )
        try:
            await cluster.initialize()
            node = cluster.get_node_from_key(self._key)
            self._known = tuple((each.host, int(each.port)) for each in cluster.get_nodes())
        except RedisClusterException as error:  # not a subclass of RedisError
            raise RedisConnectionError(str(error)) from error
        finally:
            await _finished(cluster.aclose())
        if node is None:
            raise RedisConnectionError("no node of the cluster has the slot of our keys")
        return node.host, int(node.port)
