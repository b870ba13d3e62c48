"""The rig that a guarantee runs on, and the two ways in which it can fail."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import TypeVar

from eventmesh.clock import SystemClock
from eventmesh.transports.base import Order, Subscription, Transport
from eventmesh.wire.envelope import Envelope

T = TypeVar("T")

FOR_EVER = 600.0
"""A visibility timeout, in seconds, that does not expire while a guarantee runs."""


class GuaranteeBroken(AssertionError):
    """A transport did not keep a guarantee."""


class NotApplicable(Exception):
    """The rig lacks a fault that this guarantee needs. Nothing was proved: report it as skipped."""


@dataclass(frozen=True)
class Rig:
    """A broker, how to connect to it, and its faults.

    `connect` takes a visibility timeout in seconds and opens a transport, always to the same
    broker. `url` and `prefix` let another process open the same through
    `eventmesh.transports.factory`; `url` is None if no other process can.

    The faults return once they have happened, and are None if the broker cannot have them:

    - `restart` kills the broker and starts it again.
    - `lose_data` does the same, and deletes everything that the broker stored.
    - `lose_topology` deletes the exchange, bindings or consumer groups that route messages to these
      subscriptions, while the broker and all connections go on.
    - `cut` cuts all connections that `connect` has made; the broker goes on.
    - `refuse` makes the broker reject all messages of one name, inside a context.

    Something that does not happen within `patience` seconds counts as not happening. A process that
    stands still for `visibility_timeout` seconds loses what it holds, as if it had died, so a short
    one makes a slow machine look like a broken transport. Guarantees that need no expiry open their
    connections with FOR_EVER instead.
    """

    connect: Callable[[float], AbstractAsyncContextManager[Transport]]
    url: str | None = None
    prefix: str = "eventmesh"
    restart: Callable[[], Awaitable[None]] | None = None
    lose_data: Callable[[], Awaitable[None]] | None = None
    lose_topology: Callable[[Sequence[Subscription]], Awaitable[None]] | None = None
    cut: Callable[[], Awaitable[None]] | None = None
    refuse: Callable[[str], AbstractAsyncContextManager[None]] | None = None
    visibility_timeout: float = 3.0
    patience: float = 60.0
    name: str = field(default_factory=lambda: f"t{secrets.token_hex(5)}")

    def open(
        self, visibility_timeout: float | None = None
    ) -> AbstractAsyncContextManager[Transport]:
        """A new connection, with the rig's visibility timeout unless another is given."""
        return self.connect(
            self.visibility_timeout if visibility_timeout is None else visibility_timeout
        )

    def subscription(self, name: str, *messages: str, order: Order | None = None) -> Subscription:
        """A subscription with a name of this rig, to the message `happened` or those named."""
        return Subscription(
            f"{self.name}.{name}",
            tuple(f"{self.name}.{message}" for message in messages or ("happened",)),
            order,
        )

    def envelopes(self, count: int, message: str = "happened", *, key: str = "k") -> list[Envelope]:
        """New messages; the data of each is its number."""
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
    """The fault that a guarantee needs; NotApplicable if the rig lacks it."""
    if what is None:
        raise NotApplicable(f"the rig has no `{name}`")
    return what
