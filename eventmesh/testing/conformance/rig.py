"""What a guarantee is tried on, and the ways in which that can end."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import TypeVar

from eventmesh.clock import SystemClock
from eventmesh.transports.base import Subscription, Transport
from eventmesh.wire.envelope import Envelope

T = TypeVar("T")

FOR_EVER = 600.0
"""Seconds of a visibility timeout that never ends while a guarantee is tried."""


class GuaranteeBroken(AssertionError):
    """A transport did not do what every transport does."""


class NotApplicable(Exception):
    """The rig cannot do what this guarantee needs, so nothing was proved: report it as skipped."""


@dataclass(frozen=True)
class Rig:
    """What a guarantee is tried on.

    `connect` gives a connected transport with the visibility timeout that it is told, in seconds;
    always to the same broker, closed on leaving. `url` and `prefix` let another process reach what
    `connect` reaches, by `eventmesh.transports.factory`; `url` is None when none can.

    What is done to the broker, each returning once it is done; None where it cannot be done, and
    the guarantees that need it are then NotApplicable:
    `restart` ends the broker, as a crash does, and starts it again;
    `lose_data` does so and has it lose all that it stored;
    `lose_topology` deletes the way of messages to these subscriptions (an exchange, bindings,
    consumer groups), while the broker and all connections run on;
    `cut` cuts all connections that `connect` has made, while the broker runs on;
    `refuse` has the broker refuse all messages of the name that it is told, inside a context.

    `patience` is the number of seconds after which what must happen counts as not happening.
    """

    connect: Callable[[float], AbstractAsyncContextManager[Transport]]
    url: str | None = None
    prefix: str = "eventmesh"
    restart: Callable[[], Awaitable[None]] | None = None
    lose_data: Callable[[], Awaitable[None]] | None = None
    lose_topology: Callable[[Sequence[Subscription]], Awaitable[None]] | None = None
    cut: Callable[[], Awaitable[None]] | None = None
    refuse: Callable[[str], AbstractAsyncContextManager[None]] | None = None
    visibility_timeout: float = 1.0
    patience: float = 20.0
    name: str = field(default_factory=lambda: f"t{secrets.token_hex(5)}")

    def open(
        self, visibility_timeout: float | None = None
    ) -> AbstractAsyncContextManager[Transport]:
        """A new connection, with the rig's visibility timeout unless another is given."""
        return self.connect(
            self.visibility_timeout if visibility_timeout is None else visibility_timeout
        )

    def subscription(self, name: str, *messages: str) -> Subscription:
        """A subscription of this rig; to the message `happened` unless others are named."""
        return Subscription(
            f"{self.name}.{name}",
            tuple(f"{self.name}.{message}" for message in messages or ("happened",)),
        )

    def envelopes(self, count: int, message: str = "happened", *, key: str = "k") -> list[Envelope]:
        """New messages, whose data is their number."""
        clock = SystemClock()
        return [
            Envelope(
                {
                    "specversion": "1.0",
                    "id": clock.new_id(),
                    "source": f"/{self.name}",
                    "type": f"{self.name}.{message}",
                    "dataschema": f"urn:eventmesh:{self.name}.{message}:1",
                    "datacontenttype": "application/json",
                    "subject": key,
                    "partitionkey": key,
                },
                b'{"number":%d}' % number,
            )
            for number in range(count)
        ]


Guarantee = Callable[[Rig], Awaitable[None]]


def needed(what: T | None, name: str) -> T:
    """The part of a rig that a guarantee needs; NotApplicable when the rig is without it."""
    if what is None:
        raise NotApplicable(f"the rig has no `{name}`")
    return what
