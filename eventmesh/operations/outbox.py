"""The outbox of a service, as operators see it: what waits, and what they do to parked messages."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from eventmesh.errors import UsageError
from eventmesh.operations.reach import Reach
from eventmesh.persistence.database import Database
from eventmesh.persistence.outbox import parked as queries
from eventmesh.persistence.outbox.parked import ParkedKey, Share, Waiting
from eventmesh.runtime.declaring.service import DeclaredService as Service

MOST_KEYS = 50


@dataclass(frozen=True, slots=True)
class OutboxListing:
    """What waits: counted by name and state, parked keys, and the oldest messages without their
    data. `is_cut` if there may be more of them."""

    shares: tuple[Share, ...]
    keys: tuple[ParkedKey, ...]
    messages: tuple[Waiting, ...]
    is_cut: bool


async def list_outbox(
    reach: Reach,
    service: Service,
    *,
    limit: int,
    parked: bool = False,
    key: str | None = None,
    name: str | None = None,
) -> OutboxListing:
    """Read-only. Unreachable or Drift where the database cannot be read."""
    async with _database(reach, service) as database, database.reading() as connection:
        now = await database.time.ask(connection)
        messages = await queries.listed(
            connection, now, limit=limit, parked=parked, key=key, name=name
        )
        return OutboxListing(
            tuple(await queries.shares(connection, now)),
            tuple(await queries.parked_keys(connection, MOST_KEYS)),
            tuple(messages),
            len(messages) >= limit,
        )


async def find_waiting(reach: Reach, service: Service, message_id: str) -> Waiting | None:
    """A message in the outbox, with its data; None if it is not there any more."""
    async with _database(reach, service) as database, database.reading() as connection:
        now = await database.time.ask(connection)
        found = await queries.found(connection, now, [message_id])
    return found[0] if found else None


async def retry_parked(reach: Reach, service: Service, ids: Sequence[str] | None) -> list[str]:
    """Publish parked messages again: those with these ids, or all; returns their ids."""
    async with _database(reach, service) as database:
        async with database.connection() as connection:
            now = await database.time.ask(connection)
            retried = await queries.retry(connection, now, ids=ids)
        await database.notifier.notify()  # without NOTIFY, relays poll
    return retried


async def skip_parked(reach: Reach, service: Service, message: Waiting) -> bool:
    """Delete a parked message; False if it is not there, or not parked, any more."""
    async with _database(reach, service) as database:
        async with database.connection() as connection:
            gone = await queries.skip(connection, [message.seq])
        await database.notifier.notify()  # without NOTIFY, relays poll
    return bool(gone)


def copy_of(message: Waiting) -> dict[str, Any]:
    """All of a message, to be kept where it is deleted."""
    return {
        "attributes": dict(message.envelope.attributes),
        "data_base64": base64.b64encode(message.envelope.data).decode(),
    }


@asynccontextmanager
async def _database(reach: Reach, service: Service) -> AsyncIterator[Database]:
    place = reach.place_of(service.name)
    if place is None:
        raise UsageError(
            f"Service {service.name!r} has no outbox: it does not publish any message."
        )
    async with reach.database(place) as database:
        yield database
