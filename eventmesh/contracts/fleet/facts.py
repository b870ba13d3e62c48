"""The facts that the rules for all services use: publications, subscriptions and databases."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from eventmesh.contracts.locks.lock_file import Lock
from eventmesh.contracts.message import Message
from eventmesh.contracts.problem import Place


class Frozen(Protocol):
    """The lock files, as the rules use them; implemented by `Locks`."""

    def of(self, name: str) -> Mapping[int, Sequence[Lock]]:
        """The versions of a message, each with its revisions, oldest first."""
        ...

    def names(self) -> Iterable[str]:
        """The names of messages with lock files."""
        ...


@dataclass(frozen=True, slots=True)
class Publication:
    """A message that a service publishes or sends."""

    service: str
    model: type[Message]
    writes: int
    """The version in which it is sent; older than the model's if the service downcasts it."""
    place: Place | None = None


@dataclass(frozen=True, slots=True)
class Reading:
    """A message that a service receives, in one or more of its subscriptions."""

    service: str
    subscriptions: tuple[str, ...]
    model: type[Message]
    place: Place | None = None


@dataclass(frozen=True, slots=True)
class DatabaseUse:
    """The database of a service."""

    service: str
    database: str
    """Equal for the same database, without user and password; empty if it cannot be shared."""
    given: bool = True
    """Whether its URL is configured; otherwise it is a default, and says nothing."""
    shares_with: tuple[str, ...] = ()
    tables: frozenset[str] = frozenset()
    metadata: int | None = None
    """Equal for services that use the same SQLAlchemy MetaData object."""
    place: Place | None = None


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything that the rules need to know."""

    services: tuple[str, ...]
    """The name of each service; a name that two services have is in it twice."""
    frozen: Frozen
    publications: tuple[Publication, ...] = ()
    readings: tuple[Reading, ...] = ()
    databases: tuple[DatabaseUse, ...] = ()

    @property
    def declared(self) -> tuple[Publication | Reading, ...]:
        """Every message that a service publishes, sends or receives."""
        return (*self.publications, *self.readings)

    def unretired(self, name: str) -> list[Lock]:
        """The lock files of a message whose versions are not retired."""
        versions = self.frozen.of(name).values()
        return [lock for each in versions for lock in each if lock.status != "retired"]
