"""The outbox of a service, as operators see it: what waits, and what they do to parked messages,
which is recorded in the log of actions."""

from __future__ import annotations

import base64
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from eventmesh.errors import UsageError
from eventmesh.operations.action_log import LOGGED_IDS, Action, recorded
from eventmesh.operations.reach import Place, Reach
from eventmesh.persistence import outbox
from eventmesh.persistence.outbox import parked as queries
from eventmesh.persistence.outbox.parked import ParkedKey, Share, Waiting
from eventmesh.runtime.declaring.service import DeclaredService as Service


@dataclass(frozen=True, slots=True)
class OutboxCounts:
    """What waits, counted by name and state, and the keys that have been parked for longest.
    `oldest_age`, in seconds, is that of the oldest message that could have been published."""

    shares: tuple[Share, ...]
    keys: tuple[ParkedKey, ...]
    oldest_age: float | None


async def count_outbox(reach: Reach, service: Service, most_keys: int) -> OutboxCounts:
    """Read-only. Unreachable or Drift where the database cannot be read."""
    async with reach.database(_place(reach, service)) as database, database.reading() as connection:
        now = await database.time.ask(connection)
        oldest = await outbox.oldest(connection, now)
        return OutboxCounts(
            tuple(await queries.shares(connection, now)),
            tuple(await queries.parked_keys(connection, most_keys)),
            None if oldest is None else max((now - oldest).total_seconds(), 0.0),
        )


async def list_outbox(
    reach: Reach,
    service: Service,
    *,
    limit: int,
    parked: bool = False,
    key: str | None = None,
    name: str | None = None,
) -> Sequence[Waiting]:
    """The oldest messages, without their data; read-only. Unreachable or Drift."""
    async with reach.database(_place(reach, service)) as database, database.reading() as connection:
        now = await database.time.ask(connection)
        return await queries.listed(connection, now, limit=limit, parked=parked, key=key, name=name)


async def find_waiting(reach: Reach, service: Service, ids: Collection[str]) -> Sequence[Waiting]:
    """Those of these messages that are in the outbox, with their data, the oldest first."""
    async with reach.database(_place(reach, service)) as database, database.reading() as connection:
        return await queries.found(connection, await database.time.ask(connection), ids)


async def retry_parked(
    reach: Reach,
    service: Service,
    who: str,
    reason: str,
    *,
    ids: Sequence[str] | None = None,
    key: str | None = None,
) -> list[str]:
    """Publish parked messages again, and record that: those with these ids or this key, or else
    all; returns the ids of those that were parked."""
    details: dict[str, Any] = {"all": True}
    if ids is not None:
        details = {"number": len(ids), "ids": list(ids[:LOGGED_IDS])}
    elif key is not None:
        details = {"key": key}
    action = Action(service.name, who, "retry parked", service.name, reason, details)
    place = _place(reach, service)
    async with recorded(reach, action) as recording:
        async with reach.database(place) as database:
            async with database.connection() as connection:
                now = await database.time.ask(connection)
                retried = await queries.retry(connection, now, ids=ids, key=key)
            await database.notifier.notify()  # without NOTIFY, relays poll
        recording.outcome = f"{len(retried):,} to be published again"
    return retried


async def skip_parked(
    reach: Reach, service: Service, message: Waiting, who: str, reason: str
) -> bool:
    """Delete a parked message, and record that with a copy of it; False if it is not there, or not
    parked, any more."""
    details = {"id": message.envelope.id, "message": _copy_of(message)}
    action = Action(service.name, who, "skip parked", service.name, reason, details)
    place = _place(reach, service)
    async with recorded(reach, action) as recording:
        async with reach.database(place) as database:
            async with database.connection() as connection:
                gone = await queries.skip(connection, [message.seq])
            await database.notifier.notify()  # without NOTIFY, relays poll
        recording.outcome = "skipped" if gone else "it was not parked any more"
    return bool(gone)


def _copy_of(message: Waiting) -> dict[str, Any]:
    """All of a message, to be kept where it is deleted."""
    return {
        "attributes": dict(message.envelope.attributes),
        "data_base64": base64.b64encode(message.envelope.data).decode(),
    }


def _place(reach: Reach, service: Service) -> Place:
    place = reach.place_of(service.name)
    if place is None:
        raise UsageError(
            f"Service {service.name!r} has no outbox: it does not publish any message."
        )
    return place
