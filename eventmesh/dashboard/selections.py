"""What was seen: lists of dead letters as they were read, and selections that are acted upon.

A list that an operator looks at may be thousands of dead letters long, and more may come while they
look. So the list is kept as it was read, its pages and groups are made from it, and what is
replayed or discarded is a selection of its ids, frozen before the operator decides. Both are kept
in the memory of the process, the newest only, and are named by ids that cannot be guessed.
"""

from __future__ import annotations

import secrets
from collections import Counter, OrderedDict
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

from eventmesh.operations.dead_letters import LetterListing, LetterSummary

MOST_KEPT = 32

Kept = TypeVar("Kept")


class Shelf(Generic[Kept]):
    """Keeps the newest of something by ids."""

    def __init__(self, most: int = MOST_KEPT) -> None:
        self._most = most
        self._kept: OrderedDict[str, Kept] = OrderedDict()

    def put(self, each: Kept) -> str:
        """Keep it; returns its id."""
        name = secrets.token_urlsafe(12)
        self._kept[name] = each
        while len(self._kept) > self._most:
            self._kept.popitem(last=False)
        return name

    def get(self, name: str | None) -> Kept | None:
        """What was kept under this id, if it is still there."""
        return self._kept.get(name or "")

    def newest(self) -> Iterable[tuple[str, Kept]]:
        return reversed(list(self._kept.items()))


@dataclass(frozen=True, slots=True)
class Selection:
    """Dead letters of one subscription that an operator has seen and chosen."""

    service: str
    subscription: str
    letters: tuple[LetterSummary, ...]

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(letter.id for letter in self.letters)


@dataclass(frozen=True, slots=True)
class Group:
    """How many dead letters have the same message and the same reason."""

    name: str
    reason: str
    number: int

    def holds(self, letter: LetterSummary) -> bool:
        return (letter.name, cause_of(letter)) == (self.name, self.reason)


def groups(letters: Collection[LetterSummary]) -> list[Group]:
    """By message and reason, the largest first."""
    counted = Counter((letter.name, cause_of(letter)) for letter in letters)
    return [Group(name, reason, number) for (name, reason), number in counted.most_common()]


def cause_of(letter: LetterSummary) -> str:
    """Why it was dead-lettered: the error, or else the reason."""
    return letter.error or letter.reason


def select(
    listing: LetterListing, group: Group | None, ids: Collection[str] = ()
) -> tuple[LetterSummary, ...]:
    """Those with these ids; or, if there are none, those of a group, or all."""
    wanted = set(ids)
    if wanted:
        return tuple(letter for letter in listing.letters if letter.id in wanted)
    return tuple(letter for letter in listing.letters if group is None or group.holds(letter))
