"""Dead letters of one message. A broker may hold several: a message that was published twice, by a
relay that was killed before it knew of the first time, dies twice, too. They are listed as one,
which is the oldest, are discarded together, and give the message back once.

They are of one message when the message's id and its data are the same. What has no id is of no
other's message, and other data under the same id is a mistake of whoever published it: nothing of
it is thrown away unseen.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Sequence

from eventmesh.transports.base import DeadLetter

Mark = tuple[str, ...]


def mark_of(letter: DeadLetter) -> Mark:
    """What the dead letters of one message have in common, and those of two have not."""
    envelope = letter.envelope
    if not envelope.id:
        return (letter.id,)
    return envelope.unique_id, hashlib.sha256(envelope.data).hexdigest()


class Listing:
    """One letter of each message, the oldest first, of letters that are read in their order."""

    def __init__(self, limit: int) -> None:
        self.letters: list[DeadLetter] = []
        self._limit = limit
        self._seen: set[Mark] = set()

    @property
    def is_full(self) -> bool:
        """Whether so many are listed as were asked for."""
        return len(self.letters) >= self._limit

    def add(self, letter: DeadLetter) -> None:
        """List this one, unless another of its message is listed."""
        mark = mark_of(letter)
        if mark not in self._seen and not self.is_full:
            self._seen.add(mark)
            self.letters.append(letter)


def listed(letters: Iterable[DeadLetter], limit: int) -> list[DeadLetter]:
    """One letter of each message, the oldest of it, up to so many messages."""
    listing = Listing(limit)
    for letter in letters:
        if listing.is_full:
            break
        listing.add(letter)
    return listing.letters


def copies(marks: Iterable[tuple[str, Mark]], ids: Collection[str]) -> list[Sequence[str]]:
    """The ids of all letters of each message of which one of these is a letter, the oldest first.
    `marks` are those of all letters with their ids, in their order."""
    wanted = set(ids)
    by_mark: dict[Mark, list[str]] = {}
    for letter_id, mark in marks:
        by_mark.setdefault(mark, []).append(letter_id)
    return [group for group in by_mark.values() if not wanted.isdisjoint(group)]
