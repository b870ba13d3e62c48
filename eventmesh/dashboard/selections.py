"""What was seen: lists of dead letters as they were read, and selections that are acted upon.

A list that an operator looks at may be thousands of dead letters long, and more may come while they
look. So the list is kept as it was read, its pages and groups are made from it, and what is
replayed or discarded is a selection of its ids, frozen before the operator decides. Both are kept
in the memory of the process, the newest only, and are named by ids that cannot be guessed.
"""

from __future__ import annotations

import secrets
from collections import Counter, OrderedDict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from eventmesh.operations.dead_letters import LetterListing, LetterSummary

MOST_KEPT = 32

MOST_LETTERS_KEPT = 50_000
"""Dead letters on all that a shelf keeps: about 50 MB. The newest is kept in any case."""


class Sized(Protocol):
    """What has dead letters."""

    @property
    def letters(self) -> Sequence[LetterSummary]: ...


Kept = TypeVar("Kept", bound=Sized)


class Shelf(Generic[Kept]):
    """Keeps the newest of something by ids."""

    def __init__(self, most: int = MOST_KEPT, most_letters: int = MOST_LETTERS_KEPT) -> None:
        self._most = most
        self._most_letters = most_letters
        self._kept: OrderedDict[str, Kept] = OrderedDict()
        self._letters = 0

    def put(self, each: Kept) -> str:
        """Keep it; returns its id."""
        name = secrets.token_urlsafe(12)
        self._kept[name] = each
        self._letters += len(each.letters)
        while len(self._kept) > 1 and (
            len(self._kept) > self._most or self._letters > self._most_letters
        ):
            _, oldest = self._kept.popitem(last=False)
            self._letters -= len(oldest.letters)
        return name

    def get(self, name: str | None) -> Kept | None:
        """What was kept under this id, if it is still there."""
        return self._kept.get(name or "")


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
