"""Several dead letters of one message count as one.

A message that was published twice, for example by a relay that was killed before it recorded the
first confirmation, can be dead-lettered twice. The broker then holds two copies. They are listed as
one, the oldest; discarding one discards all copies, and replaying one delivers the message once and
deletes all copies.

Dead letters are copies when both the message id and the data are equal. A message without an id is
a copy of nothing. Different data under one id is a bug of the publisher, and each is shown, so that
nothing is deleted unseen.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Sequence

from eventmesh.transports.base import DeadLetter

Fingerprint = tuple[str, ...]
"""Equal for the dead letters of one message, and different for those of two."""


def fingerprint(letter: DeadLetter) -> Fingerprint:
    envelope = letter.envelope
    if not envelope.id:
        return (letter.id,)
    return envelope.unique_id, hashlib.sha256(envelope.data).hexdigest()


class UniqueDeadLetters:
    """Collects the first dead letter of each message, up to `limit` messages, and until their data
    have `most_bytes`; or those only that have the ids in `only`.

    Add them oldest first. Transports that read in pages stop once it `is_full`.
    """

    def __init__(
        self, limit: int, most_bytes: int | None = None, only: Collection[str] | None = None
    ) -> None:
        self.letters: list[DeadLetter] = []
        self._limit = limit
        self._most_bytes = most_bytes
        self._missing = None if only is None else set(only)
        self._seen: set[Fingerprint] = set()
        self._bytes = 0

    @property
    def is_full(self) -> bool:
        return (
            len(self.letters) >= self._limit
            or (self._most_bytes is not None and self._bytes >= self._most_bytes)
            or (self._missing is not None and not self._missing)
        )

    def add(self, letter: DeadLetter) -> None:
        if self.is_full:
            return
        if self._missing is not None:
            if letter.id not in self._missing:
                return
            self._missing.remove(letter.id)
        key = fingerprint(letter)
        if key not in self._seen:
            self._seen.add(key)
            self.letters.append(letter)
            self._bytes += len(letter.envelope.data)

    def add_all(self, letters: Iterable[DeadLetter]) -> list[DeadLetter]:
        """Add them until it is full; returns what was collected."""
        for letter in letters:
            if self.is_full:
                break
            self.add(letter)
        return self.letters


def group_copies(
    fingerprints: Iterable[tuple[str, Fingerprint]], ids: Collection[str]
) -> list[Sequence[str]]:
    """For each message with a dead letter among `ids`, the ids of all its copies, oldest first.

    `fingerprints` are all dead letters of the subscription by id, oldest first.
    """
    wanted = set(ids)
    groups: dict[Fingerprint, list[str]] = {}
    for letter_id, key in fingerprints:
        groups.setdefault(key, []).append(letter_id)
    return [group for group in groups.values() if not wanted.isdisjoint(group)]
