"""The end of a version of a message: once nobody sends it, and none is on its way any more."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from eventmesh.clock import Clock
from eventmesh.contracts.locks.lock_folder import read_locks
from eventmesh.contracts.message import Message
from eventmesh.errors import Drift
from eventmesh.review.inventory import take_of
from eventmesh.review.schema_lookup import frozen
from eventmesh.runtime.declaring.service import Service
from eventmesh.runtime.declaring.settings import Settings


async def retire(
    message: str, version: int, services: Sequence[Service], settings: Settings, clock: Clock
) -> Sequence[Path]:
    """Say in the lock files of this version that it is not sent any more; returns their paths.

    Drift, saying where, while one of `services`, which are all, may send it, or while messages of
    it are on their way, or cannot be seen not to be. UsageError when the version is not frozen.
    """
    locks = read_locks(settings.schemas)
    [lock, *_] = frozen(locks, message, version)
    if senders := list(_senders(message, version, services)):
        raise Drift(
            f"{message} v{version} cannot be retired, because the code of {', '.join(senders)} has "
            f"it as the version to be sent. Raise the version there, let the last messages be "
            f"handled, and run this again."
        )
    inventory = await take_of(message, services, settings, clock)
    if places := inventory.of(message, version):
        raise Drift(
            f"{message} v{version} cannot be retired, because there are messages of it, or may be: "
            f"{'; '.join(places)}. Let them be handled, or replay or discard them by `eventmesh "
            f"dlq`, and run this again."
        )
    return locks.retire(lock)


def _senders(message: str, version: int, services: Sequence[Service]) -> Iterator[str]:
    """The services that write this version of the message, or own it as it is in the code."""
    for service in services:
        registry = service.registry
        written = {registry.written(model) for model in registry.published() if _is(model, message)}
        current = {registry.written(model) for model in registry.owned() if _is(model, message)}
        if version in written | current:
            yield service.name


def _is(model: type[Message], message: str) -> bool:
    return model.__identity__.name == message
