"""What a broker says about itself as a whole, beside the messages of single subscriptions.

Each transport fills in what its broker can tell; `unknown` says why the rest is missing. The facts
are only measured here. What is good and what is bad about them is decided elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class KnownSubscription:
    """A subscription that the broker has, whoever declared it, and how many messages wait for it;
    None if that is not known.

    `by_message` are the names of messages that the broker gives to it, each with how many wait; it
    is empty where the broker does not tell.
    """

    name: str
    waiting: int | None
    by_message: Mapping[str, int | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StreamFacts:
    """A stream of messages. `needed` is how many of its entries some group has not acknowledged,
    None if Redis does not know."""

    message: str
    length: int
    needed: int | None
    groups: int


@dataclass(frozen=True, slots=True)
class RedisFacts:
    """How a Redis keeps its data. `saves` and `append_fsync` are None where CONFIG is forbidden."""

    role: str
    append_only: bool
    append_fsync: str | None
    saves: str | None
    """The points at which it saves a snapshot; empty for never."""
    last_write_ok: bool
    """Whether its last snapshot and its last write to the append-only file succeeded."""
    max_memory: int
    """In bytes; 0 is no limit."""
    used_memory: int
    eviction_policy: str


@dataclass(frozen=True, slots=True)
class RabbitmqQueue:
    """A queue of ours, with the policy that applies to it and what that sets."""

    name: str
    kind: str
    policy: str
    definition: Mapping[str, Any]
    state: str


@dataclass(frozen=True, slots=True)
class RabbitmqFacts:
    """A RabbitMQ cluster, by its management API. `alarms` are in words, as are `partitions`."""

    queues: tuple[RabbitmqQueue, ...]
    alarms: tuple[str, ...]
    stopped_nodes: tuple[str, ...]
    partitions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FileFacts:
    """A broker file, and the space that is left on its disk."""

    path: str
    is_writable: bool
    free_bytes: int


@dataclass(frozen=True, slots=True)
class BrokerFacts:
    """What is known of a broker; None where it was not told, for the reason in `unknown`."""

    version: str | None = None
    clock_ahead: float | None = None
    """By how many seconds the broker's clock is ahead of this machine's; negative if it is behind.
    As exact as half the time that the answer took."""
    delayed_together: int | None = None
    """Retries that are not due, of all subscriptions, on a broker that keeps them together."""
    unknown: Mapping[str, str] = field(default_factory=dict)
    """Why a fact is None, by its name, in words for people. A fact that such a broker does not have
    is None, and is not in here."""

    # Only of a thorough examination:

    subscriptions: tuple[KnownSubscription, ...] | None = None
    forbidden: tuple[str, ...] | None = None
    """What our user may not do, in the broker's words."""
    streams: tuple[StreamFacts, ...] | None = None
    redis: RedisFacts | None = None
    rabbitmq: RabbitmqFacts | None = None
    file: FileFacts | None = None
