"""What is still on its way in the running mesh, by message and version: in the outboxes of
services, on the broker, among the dead letters. Looking makes nothing and takes nothing away."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from eventmesh.clock import Clock
from eventmesh.errors import UsageError
from eventmesh.persistence import outbox
from eventmesh.persistence.database import Database, parse_url
from eventmesh.runtime.declaring.service import Service
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
    """Messages of one version in one place. They are in the outbox of `service`, or wait for its
    `subscription` or were dead-lettered by it; both are empty where they are unrouted. Services
    that share a database are named together. `oldest` is when the oldest of them was made."""

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
    """What was found, and what could not be looked into."""

    stocks: tuple[Stock, ...]
    hidden: tuple[Hidden, ...]

    def of(self, message: str, version: int) -> list[str]:
        """Where messages of this version are or may be, in words."""
        found = [
            str(each) for each in self.stocks if (each.message, each.version) == (message, version)
        ]
        return [*found, *(told(each) for each in self.hidden)]


async def take(
    services: Sequence[Service], settings: Settings, clock: Clock, *, strays: bool
) -> Inventory:
    """What these services hold, and what is unrouted of the messages that they own; with
    `strays`, also what subscriptions to these messages hold that no service here has.

    Unreachable when the broker or a database does not answer: what is not seen is never zero.
    """
    owned = {model.__identity__.name for each in services for model in each.registry.owned()}
    inventory = await _take(services, settings, clock, owned, only=None)
    if strays:
        return inventory
    ours = {subscription for service in services for subscription in service.handlers}
    kept = (each for each in inventory.stocks if not each.subscription or each.subscription in ours)
    return replace(inventory, stocks=tuple(kept))


async def take_of(
    message: str, services: Sequence[Service], settings: Settings, clock: Clock
) -> Inventory:
    """What there is of one message; Unreachable as in `take`."""
    return await _take(services, settings, clock, {message}, only=message)


def told(hidden: Hidden) -> str:
    """What could not be looked into, in words."""
    number = "an unknown number" if hidden.number is None else str(hidden.number)
    holder = f" of {hidden.subscription}" if hidden.subscription else ""
    return f"{number} {_PLACES[hidden.state]}{holder}, unseen: {hidden.why}"


async def _take(
    services: Sequence[Service],
    settings: Settings,
    clock: Clock,
    messages: Collection[str],
    only: str | None,
) -> Inventory:
    if settings.broker_url.startswith("memory:"):
        raise UsageError(
            "The broker memory:// is known to its own process only, so nobody else can count what "
            "it holds. Set EVENTMESH_BROKER_URL to the broker of the running mesh."
        )
    # First what sends and then what receives, so that nothing gets from one to the other unseen.
    stocks = [each async for each in _in_outboxes(services, settings)]
    census = await _on_broker(services, settings, clock, messages, only)
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


async def _on_broker(
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
    # Without a database to count its starts, the broker's count says what is deadly.
    untouched = {
        handler.subscription.name for service, handler in handled if not service.needs_database
    }
    options = replace(settings.transport_options, looking=True)
    async with open_transport(settings.broker_url, clock, options) as transport:
        return await transport.census(subscriptions, messages, untouched=untouched)


async def _in_outboxes(services: Sequence[Service], settings: Settings) -> AsyncIterator[Stock]:
    sharing: dict[str, list[str]] = {}
    for service in services:
        if service.needs_database:
            sharing.setdefault(settings.database_url(service.name), []).append(service.name)
    for url, names in sharing.items():
        for lot in await _outbox_of(url, names[0]):
            # The same reading of names and versions as on the broker.
            census, place = Census(), _OUTBOX_PLACES[lot.state]
            attributes = {"type": lot.name, "dataschema": lot.dataschema, "time": lot.oldest}
            census.add("", Envelope(attributes, b""), "ready", lot.number)
            [(kind, counted)] = census.lots.items()
            owner = ", ".join(names)
            yield Stock(lot.name, kind.version, lot.number, place, owner, "", counted.oldest)


async def _outbox_of(url: str, service: str) -> list[outbox.OutboxLot]:
    if not _is_made(url, service):
        return []
    database = Database(url, service=service)
    try:
        await database.connect()
        async with database.reading() as connection:
            return await outbox.census(connection, await database.time.ask(connection))
    finally:
        await database.close()


def _is_made(url: str, service: str) -> bool:
    """Whether there is such a database, where opening it would be to make it."""
    parsed = parse_url(url, service)
    return parsed.get_backend_name() != "sqlite" or Path(parsed.database or "").is_file()
