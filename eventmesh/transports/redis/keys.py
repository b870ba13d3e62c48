"""Where everything of a subscription lives in Redis."""

from __future__ import annotations

from dataclasses import dataclass

from eventmesh.transports.base import Subscription


@dataclass(frozen=True, slots=True)
class Keys:
    """Where a subscription lives. `streams` are all that it reads, the retry stream last."""

    group: str
    streams: tuple[str, ...]
    retry: str
    delayed: str
    dead: str


class Layout:
    """The names of keys under a prefix.

    With `one_slot`, the prefix is their hash tag: a Redis Cluster then keeps all of them on one
    node, so that scripts and transactions over several of them remain possible.
    """

    def __init__(self, prefix: str, *, one_slot: bool) -> None:
        self._prefix = f"{{{prefix}}}" if one_slot else prefix

    def stream(self, message: str) -> str:
        """The stream of a message."""
        return f"{self._prefix}:stream:{message}"

    @property
    def streams(self) -> str:
        """What the names of all messages' streams begin with."""
        return self.stream("")

    def of(self, subscription: Subscription) -> Keys:
        """All that belongs to a subscription."""
        name = subscription.name
        retry = f"{self._prefix}:retry:{name}"
        return Keys(
            group=name,
            streams=(*(self.stream(message) for message in subscription.messages), retry),
            retry=retry,
            delayed=f"{self._prefix}:delayed:{name}",
            dead=f"{self._prefix}:dead:{name}",
        )
