"""The broker, as OpenTelemetry's conventions describe it: its system, its server and what its
destinations are called."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol


class Peer(NamedTuple):
    """The address and the port at the other end of a connection: those of a proxy, if there is
    one in between."""

    address: str
    port: int


class KnowsPeers(Protocol):
    """A connected transport, as far as traces describe it."""

    def peer(self, *, publishing: bool) -> Peer | None:
        """Where the connection by which it publishes, or else consumes, goes to now; None where
        that is unknown, or no network is used."""
        ...


@dataclass(frozen=True, slots=True)
class Place:
    """One broker under one prefix.

    A message is published to the destination `<before><message>`, and consumed from there. Where
    each subscription has a queue of its own, `<queue_before><subscription>`, that is a part of what
    is consumed from. `address` and `port` are empty where the URL names no server, or several.
    """

    system: str
    address: str = ""
    port: int | None = None
    before: str = ""
    queue_before: str = ""
    has_groups: bool = False
    """Whether the broker calls a subscription a consumer group."""
    has_routing_keys: bool = False
    """Whether a message's name is its routing key."""

    def destination(self, message: str | None) -> str:
        """What messages of this name are published to; for None, what those of several names are,
        which is empty where that is not one thing, as RabbitMQ's exchange is."""
        if message is not None:
            return self.before + message
        return self.before.rstrip(":") if self.has_routing_keys else ""

    def source(self, subscription: str, message: str | None) -> str:
        """What this subscription takes messages of this name from, or, for None, those of several
        names; empty where that has no one name."""
        parts = [self.before + message] if message else []
        if self.queue_before:
            parts.append(self.queue_before + subscription)
        return ":".join(parts)
