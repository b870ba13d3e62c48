"""The names of the keys in Redis."""

from __future__ import annotations

from dataclasses import dataclass

from eventmesh.transports.base import Subscription


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of one subscription. `streams` are all streams that it reads, the retry stream
    last."""

    group: str
    streams: tuple[str, ...]
    retry: str
    delayed: str
    dead: str
    ordering: tuple[str, ...]
    """What an ordered subscription needs besides, as the scripts in `scripts.ordering` expect it:
    order, mail, ready, held, consumers, leases, holding, wake, dead, retry, delayed, group."""

    @property
    def order(self) -> str:
        """The hash that exists if the subscription is ordered."""
        return self.ordering[0]

    @property
    def wake(self) -> str:
        """The stream that wakes consumers of an ordered subscription."""
        return self.ordering[7]

    @property
    def ordered(self) -> tuple[str, ...]:
        """The KEYS of the scripts for ordered subscriptions."""
        return (*self.ordering, *self.streams)


class Layout:
    """The keys under a prefix.

    With `one_slot`, the prefix is a hash tag: a Redis Cluster then keeps all keys on one node, so
    that scripts and transactions can use several of them.
    """

    def __init__(self, prefix: str, *, one_slot: bool) -> None:
        self._prefix = f"{{{prefix}}}" if one_slot else prefix

    def stream(self, message: str) -> str:
        """The stream of a message."""
        return f"{self._prefix}:stream:{message}"

    @property
    def streams(self) -> str:
        """The start of the names of all messages' streams."""
        return self.stream("")

    def of(self, subscription: Subscription) -> Keys:
        name = subscription.name
        retry = f"{self._prefix}:retry:{name}"
        delayed = f"{self._prefix}:delayed:{name}"
        dead = f"{self._prefix}:dead:{name}"
        own = ("order", "mail", "ready", "held", "consumers", "leases", "holding", "wake")
        return Keys(
            group=name,
            streams=(*(self.stream(message) for message in subscription.messages), retry),
            retry=retry,
            delayed=delayed,
            dead=dead,
            ordering=(*(f"{self._prefix}:{each}:{name}" for each in own), dead, retry, delayed),
        )
