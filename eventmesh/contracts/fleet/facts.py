"""What the rules of the mesh are told: who publishes, reads and keeps what."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from eventmesh.contracts.locks.lock_file import Lock
from eventmesh.contracts.message import Message
from eventmesh.contracts.problem import Place


class Frozen(Protocol):
    """The lock files: `Locks`."""

    def of(self, name: str) -> Mapping[int, Sequence[Lock]]:
        """The versions of a message, each with its revisions, the oldest first."""
        ...

    def names(self) -> Iterable[str]:
        """The messages that have any."""
        ...


@dataclass(frozen=True, slots=True)
class Publication:
    """A service publishes an event of its own, or sends a command."""

    service: str
    model: type[Message]
    writes: int
    """The version that it writes, which a downcaster makes an older one than its model's."""
    place: Place | None = None


@dataclass(frozen=True, slots=True)
class Reading:
    """A service reads a message in one or more of its subscriptions."""

    service: str
    subscriptions: tuple[str, ...]
    model: type[Message]
    place: Place | None = None


@dataclass(frozen=True, slots=True)
class DatabaseUse:
    """Where a service keeps its state."""

    service: str
    database: str
    """One name for one database, without user and password; empty for one that nobody can share."""
    given: bool = True
    """Whether somebody has set it, so that it can be told from another one."""
    shares_with: tuple[str, ...] = ()
    tables: frozenset[str] = frozenset()
    metadata: int | None = None
    """The same number for services that have the very same SQLAlchemy MetaData."""
    place: Place | None = None


@dataclass(frozen=True, slots=True)
class Facts:
    """All that the rules need to know."""

    services: tuple[str, ...]
    """The name of each service that was found; twice if two have it."""
    frozen: Frozen
    publications: tuple[Publication, ...] = ()
    readings: tuple[Reading, ...] = ()
    databases: tuple[DatabaseUse, ...] = ()

    @property
    def declared(self) -> tuple[Publication | Reading, ...]:
        """Every use that a service makes of a message."""
        return (*self.publications, *self.readings)

    def unretired(self, name: str) -> list[Lock]:
        """The lock files of a message that say that it may still be sent."""
        versions = self.frozen.of(name).values()
        return [lock for each in versions for lock in each if lock.status != "retired"]
