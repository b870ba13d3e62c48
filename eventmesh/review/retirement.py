"""Retiring a version of a message, which is safe once nobody sends it and no message of it is left.

Subscribers need not read a retired version, and their upcasters for it can be deleted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from eventmesh.clock import Clock
from eventmesh.contracts.locks.lock_folder import read_locks
from eventmesh.contracts.message import Message
from eventmesh.errors import Drift
from eventmesh.review.inventory import take_inventory_of
from eventmesh.review.schema_lookup import find_revisions
from eventmesh.runtime.declaring.service import DeclaredService as Service
from eventmesh.runtime.declaring.settings import Settings


async def retire(
    message: str, version: int, services: Sequence[Service], settings: Settings, clock: Clock
) -> Sequence[Path]:
    """Mark a version as retired in its lock files, and return their paths.

    `services` must be all services of the project. Drift if one of them sends this version, or if
    there are messages of it in an outbox, on the broker, among the dead letters or kept by open
    sagas, or if that cannot be ruled out. UsageError if the version is not frozen.
    """
    locks = read_locks(settings.schemas)
    [lock, *_] = find_revisions(locks, message, version)
    if senders := list(_senders(message, version, services)):
        raise Drift(
            f"{message} v{version} cannot be retired, because {', '.join(senders)} still sends it. "
            f"Raise the version there, wait until the last messages are handled, and run this "
            f"again."
        )
    inventory = await take_inventory_of(message, services, settings, clock)
    if places := inventory.of(message, version):
        raise Drift(
            f"{message} v{version} cannot be retired, because there are or may be messages of it: "
            f"{'; '.join(places)}. Wait until they are handled, and such sagas have ended, or "
            f"replay or discard them with `eventmesh dlq`, and run this again."
        )
    return locks.retire(lock)


def _senders(message: str, version: int, services: Sequence[Service]) -> Iterator[str]:
    """The services that publish this version, or own the message and declare this version."""
    for service in services:
        registry = service.registry
        written = {registry.written(model) for model in registry.published() if _is(model, message)}
        current = {registry.written(model) for model in registry.owned() if _is(model, message)}
        if version in written | current:
            yield service.name


def _is(model: type[Message], message: str) -> bool:
    return model.__identity__.name == message
