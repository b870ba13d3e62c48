"""Pausing a subscription, and resuming it; both are recorded in the log of actions.

The pause is in the service's database, see `eventmesh.runtime.consuming.pausing`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from eventmesh.errors import UsageError
from eventmesh.operations.action_log import Action, recorded
from eventmesh.operations.reach import Reach
from eventmesh.persistence import pauses
from eventmesh.runtime.declaring.handler import Handler
from eventmesh.runtime.declaring.service import DeclaredService as Service

Deed = Literal["pause", "resume"]


def pausable(services: Sequence[Service], subscription: str) -> tuple[Service, Handler]:
    """The service and the handler of a subscription; UsageError where it is not declared."""
    for service in services:
        if handler := service.handlers.get(subscription):
            return service, handler
    declared = sorted(name for service in services for name in service.handlers)
    raise UsageError(
        f"There is no subscription {subscription!r}. Name one of: {', '.join(declared) or 'none'}."
    )


def why_not_pausable(service: Service, handler: Handler) -> str | None:
    """Why a subscription cannot be paused; None if it can."""
    if not service.needs_database:
        return (
            f"Service {service.name!r} has no database that could keep the pause of "
            f"{handler.subscription.name}: stop its workers instead."
        )
    return None


async def pause_or_resume(
    reach: Reach, service: Service, handler: Handler, deed: Deed, who: str, reason: str
) -> bool:
    """Do it; False if the subscription is paused, or running, already. UsageError where it cannot
    be paused; Unreachable or Drift where its database cannot be written."""
    place = reach.place_of(service.name)
    refusal = why_not_pausable(service, handler)
    if place is None or refusal is not None:
        raise UsageError(refusal or f"Service {service.name!r} has no database.")
    name = handler.subscription.name
    async with recorded(reach, Action(service.name, who, deed, name, reason)) as recording:
        async with reach.database(place) as database, database.connection() as connection:
            if deed == "pause":
                is_done = await pauses.pause(connection, name, who, reason)
            else:
                is_done = await pauses.resume(connection, name)
        recording.outcome = "done" if is_done else "nothing changed"
    return is_done
