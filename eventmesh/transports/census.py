"""What a broker holds, counted by message and version: how many there are of each, where, and since
when. Only counts are kept, so that a census of a million messages is as small as one of ten."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Literal, NamedTuple

from eventmesh.errors import UnreadableMessage
from eventmesh.wire.envelope import Envelope, version_of

State = Literal["ready", "delayed", "in_flight", "dead", "unrouted"]

MOST_KINDS = 10_000
"""How many kinds are told apart, because anybody can send any name; what is of others is hidden."""


class Kind(NamedTuple):
    """What is counted as the same. `subscription` is empty for what no subscription takes yet,
    `version` None where the message names no version of itself."""

    subscription: str
    message: str
    version: int | None
    state: State


@dataclass(slots=True)
class Lot:
    """How many of a kind there are, and when the oldest was made, if they say so."""

    number: int
    oldest: datetime | None


@dataclass(frozen=True, slots=True)
class Hidden:
    """Messages of a subscription that are there, or may be, and could not be looked into; `number`
    is None where not even that is known. `why` is for people."""

    subscription: str
    state: State
    number: int | None
    why: str


class Census:
    """A count that grows while it is taken."""

    def __init__(self) -> None:
        self.lots: dict[Kind, Lot] = {}
        self._hidden: list[Hidden] = []
        self._beyond = Counter[tuple[str, State]]()

    @property
    def hidden(self) -> list[Hidden]:
        """What is there, or may be, and was not looked into."""
        why = f"there are more than {MOST_KINDS:,} kinds of messages"
        beyond = (Hidden(*where, number, why) for where, number in self._beyond.items())
        return [*self._hidden, *beyond]

    def add(self, subscription: str, envelope: Envelope, state: State, number: int = 1) -> None:
        """Count a message by its attributes, or so many like it."""
        name, said = envelope.name, envelope.attributes
        kind = Kind(subscription, name, _version(name, said.get("dataschema", "")), state)
        if kind not in self.lots and len(self.lots) >= MOST_KINDS:
            self._beyond[subscription, state] += number
            return
        lot = self.lots.setdefault(kind, Lot(0, None))
        lot.number += number
        since = made_at(envelope)
        if since is not None and (lot.oldest is None or since < lot.oldest):
            lot.oldest = since

    def hide(self, subscription: str, state: State, number: int | None, why: str) -> None:
        """Note what is not looked into."""
        self._hidden.append(Hidden(subscription, state, number, why))


@lru_cache(maxsize=1024)  # bounded, because anybody can send others
def _version(name: str, dataschema: str) -> int | None:
    try:
        return version_of(Envelope({"type": name, "dataschema": dataschema}, b""))
    except UnreadableMessage:
        return None


def made_at(envelope: Envelope) -> datetime | None:
    """When it was made, if it says so; a time without a zone is taken for UTC."""
    try:
        moment = datetime.fromisoformat(envelope.attributes.get("time", ""))
    except ValueError:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
