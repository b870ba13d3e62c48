"""The broker and the databases that this environment names, as an operator reaches them.

Nothing is created, declared or migrated, and what was opened is kept open for the next question, so
that a command which asks every two seconds, or a page that is open all day, connects once. Each
question has a bounded time; what does not answer raises Unreachable and is opened again next time.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self

from eventmesh.clock import Clock
from eventmesh.errors import Unreachable
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


@dataclass(frozen=True, slots=True)
class Place:
    """A database, and the services that keep their state in it."""

    url: str
    services: tuple[str, ...]


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
        self._transport: Transport | None = None
        self._databases: dict[str, Database] = {}
        self._opening: dict[str, asyncio.Lock] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._forget_transport()
        for url in list(self._databases):
            await self._forget_database(url)

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
        try:
            async with asyncio.timeout(within):
                yield self._given or await self._connected()
        except TimeoutError:
            await self._forget_transport()
            raise Unreachable(
                f"The broker at {self.shown_broker} did not answer within {within:g} s."
            ) from None
        except Unreachable:
            await self._forget_transport()
            raise

    @asynccontextmanager
    async def database(self, place: Place) -> AsyncIterator[Database]:
        """The open database, for `answer_timeout`. Unreachable; or Drift where its migration is not
        the one that this version needs."""
        service = place.services[0]
        try:
            with refusals_as_unreachable(place.url, service):
                async with asyncio.timeout(self._answer_timeout):
                    yield await self._opened(place)
        except TimeoutError:
            await self._forget_database(place.url)
            raise self._too_slow(place) from None
        except Unreachable:
            await self._forget_database(place.url)
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

    async def _opened(self, place: Place) -> Database:
        async with self._opening_of(place.url):
            if place.url not in self._databases:
                self._databases[place.url] = await open_existing(place.url, place.services[0])
            return self._databases[place.url]

    async def _connected(self) -> Transport:
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
                self._transport = transport
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

    async def _forget_transport(self) -> None:
        transport, self._transport = self._transport, None
        if transport is not None:
            await transport.close()

    async def _forget_database(self, url: str) -> None:
        database = self._databases.pop(url, None)
        if database is not None:
            await database.close()

    def _too_slow(self, place: Place) -> Unreachable:
        return Unreachable(
            f"The database of service {place.services[0]!r} ({redact(place.url)}) did not answer "
            f"within {self._answer_timeout:g} s."
        )
