"""A count of the messages that a broker holds, by subscription, message, version and state.

It answers whether an old version of a message may still arrive somewhere, before the code that
reads it is removed. Only counts and the earliest time are kept, so that a census of a million
messages is as small as one of ten.
"""

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
"""How many kinds are counted separately. Anybody can publish any name, so there must be a limit;
messages of further kinds are reported as hidden."""


class Kind(NamedTuple):
    """Messages that are counted together. `subscription` is empty for unrouted messages, `version`
    None for messages that do not say theirs."""

    subscription: str
    message: str
    version: int | None
    state: State


@dataclass(slots=True)
class Lot:
    """The number of messages of one kind, and when the oldest was made, if any message says so."""

    number: int
    oldest: datetime | None


@dataclass(frozen=True, slots=True)
class Hidden:
    """Messages of a subscription that could not be inspected, or may be there unseen. `number` is
    None if unknown; `why` is for people."""

    subscription: str
    state: State
    number: int | None
    why: str


class Census:
    """The counts; a transport adds to them as it reads."""

    def __init__(self) -> None:
        self.lots: dict[Kind, Lot] = {}
        self.sources = Counter[tuple[str, str, str, State]]()
        """How many messages of a subscription, a name, a CloudEvents source and a state there
        are."""
        self._hidden: list[Hidden] = []
        self._beyond = Counter[tuple[str, State]]()

    @property
    def hidden(self) -> list[Hidden]:
        """Everything that was not counted by kind."""
        why = f"there are more than {MOST_KINDS:,} kinds of messages"
        beyond = (Hidden(*where, number, why) for where, number in self._beyond.items())
        return [*self._hidden, *beyond]

    def add(self, subscription: str, envelope: Envelope, state: State, number: int = 1) -> None:
        """Count `number` messages with the attributes of this envelope."""
        name, said = envelope.name, envelope.attributes
        kind = Kind(subscription, name, _version(name, said.get("dataschema", "")), state)
        if kind not in self.lots and len(self.lots) >= MOST_KINDS:
            self._beyond[subscription, state] += number
            return
        whence = subscription, name, said.get("source", ""), state
        if whence in self.sources or len(self.sources) < MOST_KINDS:
            self.sources[whence] += number
        lot = self.lots.setdefault(kind, Lot(0, None))
        lot.number += number
        since = made_at(envelope)
        if since is not None and (lot.oldest is None or since < lot.oldest):
            lot.oldest = since

    def hide(self, subscription: str, state: State, number: int | None, why: str) -> None:
        """Report messages that are not counted by kind."""
        self._hidden.append(Hidden(subscription, state, number, why))


@lru_cache(maxsize=1024)  # bounded, because anybody can send others
def _version(name: str, dataschema: str) -> int | None:
    try:
        return version_of(Envelope({"type": name, "dataschema": dataschema}, b""))
    except UnreadableMessage:
        return None


def made_at(envelope: Envelope) -> datetime | None:
    """The time in the envelope, if it has a valid one; a time without a zone is read as UTC."""
    try:
        moment = datetime.fromisoformat(envelope.attributes.get("time", ""))
    except ValueError:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
