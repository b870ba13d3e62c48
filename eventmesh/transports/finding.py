"""Finding a message that a broker holds, by its id, its correlation id or its key.

A search reads what the broker lets it read, and takes nothing. Where a broker shows a message only
by delivering it, the search leaves it alone and says so: `hidden` names the place, how many
messages it holds, and why it was not looked into.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from eventmesh.transports.census import Hidden, State
from eventmesh.wire.envelope import Envelope


@dataclass(frozen=True, slots=True)
class Located:
    """A message on the broker, without its data. `subscription` is empty for an unrouted one."""

    subscription: str
    state: State
    envelope: Envelope


@dataclass(frozen=True, slots=True)
class Found:
    """What a search has found, and the places that it could not look into."""

    messages: tuple[Located, ...] = ()
    hidden: tuple[Hidden, ...] = ()


def matches(envelope: Envelope, wanted: Collection[str]) -> bool:
    """Whether the id, the correlation id or the key of a message is one of these."""
    return (
        envelope.id in wanted
        or envelope.attributes.get("correlationid") in wanted
        or envelope.key in wanted
    )
