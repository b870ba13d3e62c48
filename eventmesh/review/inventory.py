"""Counting the messages in a running system by name and version.

Messages are in the outboxes of services, on the broker (waiting, delayed, in flight, unrouted), and
among the dead letters; and open sagas keep events that they may still read. A version can be
retired when none is left anywhere. Counting creates no queue, stream or database, and takes no
message away.

Outboxes are counted before the broker: a message that is sent in between is counted twice, while in
the other order it would be counted nowhere.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from eventmesh.clock import Clock
from eventmesh.errors import UsageError
from eventmesh.persistence import outbox, sagas
from eventmesh.persistence.database import Database
from eventmesh.persistence.database_url import is_file, parse_url
from eventmesh.runtime.declaring.service import DeclaredService as Service
from eventmesh.runtime.declaring.settings import Settings
from eventmesh.transports.census import Census, Hidden
from eventmesh.transports.factory import open_transport
from eventmesh.wire.envelope import Envelope

_PLACES = {
    "ready": "waiting",
    "delayed": "delayed for a retry",
    "in_flight": "in flight",
    "dead": "dead letters",
    "unrouted": "unrouted, kept for a first subscription",
}
_OUTBOX_PLACES = {
    "due": "outbox",
    "delayed": "outbox, due later",
    "parked": "outbox, parked",
}


@dataclass(frozen=True, slots=True)
class Stock:
    """Messages of one version in one place.

    They are in the outbox of `service`, or wait for its `subscription` or were dead-lettered by it;
    both are empty for unrouted messages. Services that share a database are named together.
    `oldest` is the time at which the oldest of them was created.
    """

    message: str
    version: int | None
    number: int
    place: str
    service: str
    subscription: str
    oldest: datetime | None

    @property
    def holder(self) -> str:
        """The subscription, or the service."""
        return self.subscription or self.service

    def __str__(self) -> str:
        made = f", the oldest from {self.oldest:%Y-%m-%d %H:%M:%S}" if self.oldest else ""
        holder = f" of {self.holder}" if self.holder else ""
        return f"{self.number} {self.place}{holder}{made}"


@dataclass(frozen=True, slots=True)
class Inventory:
    """The messages that were counted, and the places that could not be looked into."""

    stocks: tuple[Stock, ...]
    hidden: tuple[Hidden, ...]

    def of(self, message: str, version: int) -> list[str]:
        """The places where there are or may be messages of this version, in words."""
        found = [
            str(each) for each in self.stocks if (each.message, each.version) == (message, version)
        ]
        return [*found, *(describe_hidden(each) for each in self.hidden)]


async def take_inventory(
    services: Sequence[Service], settings: Settings, clock: Clock, *, strays: bool
) -> Inventory:
    """Count the messages that these services hold, and the unrouted ones that they own.

    With `strays`, subscriptions to these messages that no service here declares are counted too.
    Unreachable if the broker or a database does not answer, rather than a count that is too low.
    """
    owned = {model.__identity__.name for each in services for model in each.registry.owned()}
    inventory = await _take(services, settings, clock, owned, only=None)
    if strays:
        return inventory
    ours = {subscription for service in services for subscription in service.handlers}
    kept = (each for each in inventory.stocks if not each.subscription or each.subscription in ours)
    return replace(inventory, stocks=tuple(kept))


async def take_inventory_of(
    message: str, services: Sequence[Service], settings: Settings, clock: Clock
) -> Inventory:
    """Count one message in all services, also where open sagas keep it; Unreachable as above."""
    found = await _take(services, settings, clock, {message}, only=message)
    kept = [each async for each in _count_in_sagas(message, services, settings)]
    return replace(found, stocks=(*found.stocks, *kept))


def describe_hidden(hidden: Hidden) -> str:
    """A place that could not be looked into, in words: how many messages it may hold, and why their
    versions are unknown."""
    number = "an unknown number of messages" if hidden.number is None else str(hidden.number)
    holder = f" of {hidden.subscription}" if hidden.subscription else ""
    return f"{number} {_PLACES[hidden.state]}{holder}, not counted by version: {hidden.why}"


async def _take(
    services: Sequence[Service],
    settings: Settings,
    clock: Clock,
    messages: Collection[str],
    only: str | None,
) -> Inventory:
    if settings.broker_url.startswith("memory:"):
        raise UsageError(
            "The broker memory:// exists only inside its own process, so its messages cannot be "
            "counted from here. Set EVENTMESH_BROKER_URL to the broker of the running system."
        )
    # Outboxes before the broker; see the module's docstring.
    stocks = [each async for each in _count_outboxes(services, settings)]
    census = await _count_on_broker(services, settings, clock, messages, only)
    stocks += [
        Stock(
            kind.message,
            kind.version,
            lot.number,
            _PLACES[kind.state],
            kind.subscription.partition(".")[0],
            kind.subscription,
            lot.oldest,
        )
        for kind, lot in census.lots.items()
    ]
    wanted = [each for each in stocks if only is None or each.message == only]
    wanted.sort(key=lambda each: (each.message, each.version or 0, each.holder, each.place))
    return Inventory(tuple(wanted), tuple(census.hidden))


async def _count_on_broker(
    services: Sequence[Service],
    settings: Settings,
    clock: Clock,
    messages: Collection[str],
    only: str | None,
) -> Census:
    handled = [(service, handler) for service in services for handler in service.handlers.values()]
    subscriptions = [
        handler.subscription
        for _, handler in handled
        if only is None or only in handler.subscription.messages
    ]
    # A service without a database cannot count starts itself, so the broker's count is used to
    # detect poison messages.
    untouched = {
        handler.subscription.name for service, handler in handled if not service.needs_database
    }
    options = replace(settings.transport_options, create_missing=False)
    async with open_transport(settings.broker_url, clock, options) as transport:
        return await transport.census(subscriptions, messages, untouched=untouched)


def _databases(services: Sequence[Service], settings: Settings) -> dict[str, list[str]]:
    """The services that share each database, by its URL."""
    sharing: dict[str, list[str]] = {}
    for service in services:
        if service.needs_database:
            sharing.setdefault(settings.database_url(service.name), []).append(service.name)
    return sharing


async def _count_in_sagas(
    message: str, services: Sequence[Service], settings: Settings
) -> AsyncIterator[Stock]:
    with_sagas = [service for service in services if service.sagas]
    for url, names in _databases(with_sagas, settings).items():
        if not _database_exists(url, names[0]):
            continue
        database = Database(url, service=names[0])
        try:
            await database.connect()
            async with database.reading() as connection:
                lots = await sagas.census_of_kept(connection, message)
        finally:
            await database.close()
        for lot in lots:
            place, owner = "kept by open sagas", ", ".join(names)
            yield Stock(message, lot.version, lot.count, place, owner, "", lot.oldest)


async def _count_outboxes(services: Sequence[Service], settings: Settings) -> AsyncIterator[Stock]:
    for url, names in _databases(services, settings).items():
        for lot in await _count_outbox(url, names[0]):
            # A census of one entry, so that names and versions are parsed as those on the broker.
            census, place = Census(), _OUTBOX_PLACES[lot.state]
            attributes = {"type": lot.name, "dataschema": lot.dataschema, "time": lot.oldest}
            census.add("", Envelope(attributes, b""), "ready", lot.number)
            [(kind, counted)] = census.lots.items()
            owner = ", ".join(names)
            yield Stock(lot.name, kind.version, lot.number, place, owner, "", counted.oldest)


async def _count_outbox(url: str, service: str) -> list[outbox.OutboxLot]:
    if not _database_exists(url, service):
        return []
    database = Database(url, service=service)
    try:
        await database.connect()
        async with database.reading() as connection:
            return await outbox.census(connection, await database.time.ask(connection))
    finally:
        await database.close()


def _database_exists(url: str, service: str) -> bool:
    """False for a SQLite file that does not exist, which opening would create."""
    parsed = parse_url(url, service)
    return not is_file(parsed) or Path(parsed.database or "").is_file()
