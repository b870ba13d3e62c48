"""The broker and the databases that this environment names, as an operator reaches them.

Nothing is created, declared or migrated, and what was opened is kept open for the next question, so
that a command which asks every two seconds, or a page that is open all day, connects once. Each
question has a bounded time; what does not answer raises Unreachable and is opened again next time.
Others who use it at that moment go on with what they have.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Generic, Self, TypeVar

from eventmesh.clock import Clock
from eventmesh.errors import Busy, Unreachable
from eventmesh.persistence.database import Database
from eventmesh.persistence.existing import connect_existing, open_existing, refusals_as_unreachable
from eventmesh.redact import redact
from eventmesh.runtime.declaring.service import DeclaredService as Service
from eventmesh.runtime.declaring.settings import Settings
from eventmesh.transports.base import Transport, TransportOptions
from eventmesh.transports.factory import make_transport

ANSWER_TIMEOUT = 10.0
"""Seconds for all that is asked of one server at a time."""

OWN_PROCESS = (
    "The broker memory:// exists only inside its own process, so that it cannot be asked from "
    "here. Set EVENTMESH_BROKER_URL to the broker of the running services."
)


_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Place:
    """A database, and the services that keep their state in it."""

    url: str
    services: tuple[str, ...]


class _Shared(Generic[_T]):
    """What several questions use at the same time. It is closed once it is forgotten, because one
    of them failed, and no other uses it."""

    def __init__(self, opened: _T, close: Callable[[], Awaitable[None]]) -> None:
        self._opened = opened
        self._close = close
        self._users = 0
        self._is_forgotten = False

    @asynccontextmanager
    async def used(self) -> AsyncIterator[_T]:
        self._users += 1
        try:
            yield self._opened
        finally:
            self._users -= 1
            if self._is_forgotten and not self._users:
                await self._close()

    async def forget(self) -> None:
        was_forgotten, self._is_forgotten = self._is_forgotten, True
        if not was_forgotten and not self._users:
            await self._close()


class Reach:
    """Opens what is asked, and closes all of it on leaving.

    `transport` is a connected transport of the caller's own, for a program that has one already, or
    whose broker is in its memory. `answer_timeout` are the seconds for all that is asked of one
    server at a time.
    """

    def __init__(
        self,
        services: Sequence[Service],
        settings: Settings,
        clock: Clock,
        transport: Transport | None = None,
        answer_timeout: float = ANSWER_TIMEOUT,
    ) -> None:
        self.services = tuple(services)
        self.settings = settings
        self.clock = clock
        self._given = transport
        self._answer_timeout = answer_timeout
        self._transport: _Shared[Transport] | None = None
        self._databases: dict[str, _Shared[Database]] = {}
        self._opening: dict[str, asyncio.Lock] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._forget_transport(self._transport)
        for url, shared in list(self._databases.items()):
            await self._forget_database(url, shared)

    @property
    def shown_broker(self) -> str:
        """The broker's URL without its secrets."""
        return redact(self.settings.broker_url)

    @property
    def databases(self) -> tuple[Place, ...]:
        """The databases of these services, each once, in the order of the services."""
        found: dict[str, list[str]] = {}
        for service in self.services:
            if service.needs_database:
                url = self.settings.database_url(service.name)
                found.setdefault(url, []).append(service.name)
        return tuple(Place(url, tuple(names)) for url, names in found.items())

    def place_of(self, service: str) -> Place | None:
        """The database of a service; None for one that has none."""
        return next((place for place in self.databases if service in place.services), None)

    @asynccontextmanager
    async def broker(self, within: float | None = None) -> AsyncIterator[Transport]:
        """The connected broker, for so many seconds, or else for `answer_timeout`; Unreachable, or
        another EventMeshError, with the reason."""
        within = self._answer_timeout if within is None else within
        shared: _Shared[Transport] | None = None
        try:
            async with asyncio.timeout(within):
                if self._given is not None:
                    yield self._given
                    return
                shared = await self._connected()
                async with shared.used() as transport:
                    yield transport
        except TimeoutError:
            await self._forget_transport(shared)
            raise Unreachable(
                f"The broker at {self.shown_broker} did not answer within {within:g} s."
            ) from None
        except Busy:
            raise
        except Unreachable:
            await self._forget_transport(shared)
            raise

    @asynccontextmanager
    async def database(self, place: Place) -> AsyncIterator[Database]:
        """The open database, for `answer_timeout`. Unreachable; or Drift where its migration is not
        the one that this version needs."""
        service = place.services[0]
        shared: _Shared[Database] | None = None
        try:
            with refusals_as_unreachable(place.url, service):
                async with asyncio.timeout(self._answer_timeout):
                    shared = await self._opened(place)
                    async with shared.used() as database:
                        yield database
        except TimeoutError:
            await self._forget_database(place.url, shared)
            raise self._too_slow(place) from None
        except Unreachable:
            await self._forget_database(place.url, shared)
            raise

    @asynccontextmanager
    async def at_any_migration(self, place: Place) -> AsyncIterator[Database]:
        """As `database`, for this one question only, and whatever its migration is."""
        service = place.services[0]
        try:
            with refusals_as_unreachable(place.url, service):
                async with asyncio.timeout(self._answer_timeout):
                    database = await connect_existing(place.url, service)
                    try:
                        yield database
                    finally:
                        await database.close()
        except TimeoutError:
            raise self._too_slow(place) from None

    async def _opened(self, place: Place) -> _Shared[Database]:
        async with self._opening_of(place.url):
            if place.url not in self._databases:
                database = await open_existing(place.url, place.services[0])
                self._databases[place.url] = _Shared(database, database.close)
            return self._databases[place.url]

    async def _connected(self) -> _Shared[Transport]:
        if self.settings.broker_url.startswith("memory:"):
            raise Unreachable(OWN_PROCESS)
        async with self._opening_of(self.settings.broker_url):
            if self._transport is None:
                transport = make_transport(self.settings.broker_url, self.clock, self._options)
                try:
                    await transport.connect()
                except BaseException:
                    await transport.close()
                    raise
                self._transport = _Shared(transport, transport.close)
            return self._transport

    @property
    def _options(self) -> TransportOptions:
        return replace(
            self.settings.transport_options,
            create_missing=False,
            management_url=self.settings.rabbitmq_management_url,
        )

    def _opening_of(self, url: str) -> asyncio.Lock:
        """Held while a server is connected to, so that questions at the same time connect once."""
        return self._opening.setdefault(url, asyncio.Lock())

    async def _forget_transport(self, shared: _Shared[Transport] | None) -> None:
        if self._transport is shared:  # otherwise another question has forgotten it already
            self._transport = None
        if shared is not None:
            await shared.forget()

    async def _forget_database(self, url: str, shared: _Shared[Database] | None) -> None:
        if self._databases.get(url) is shared:
            self._databases.pop(url, None)
        if shared is not None:
            await shared.forget()

    def _too_slow(self, place: Place) -> Unreachable:
        return Unreachable(
            f"The database of service {place.services[0]!r} ({redact(place.url)}) did not answer "
            f"within {self._answer_timeout:g} s."
        )
