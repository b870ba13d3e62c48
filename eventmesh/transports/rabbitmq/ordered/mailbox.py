"""The messages of one partition that its worker holds, by their keys: what may be handled now?

| a key is         | because                                        | until                       |
|------------------|------------------------------------------------|-----------------------------|
| being handled    | some of its messages are with the handler      | all of them are settled     |
| postponed        | the first of its messages is to be retried     | that is due                 |
| held             | a dead letter holds it                         | no dead letter holds it     |
| free             | none of these                                  | its messages are taken      |

What waits first in its key, as a replayed dead letter does, is taken also if the key is held. This
module is pure: the caller tells the time.
"""

from __future__ import annotations

import heapq
from collections import deque
from dataclasses import dataclass, field
from typing import Generic, TypeVar

M = TypeVar("M")

_FAR_BEFORE = -(2**62)
"""The numbers of messages that come first are counted from here."""


@dataclass(slots=True, eq=False)
class Mail(Generic[M]):
    """A message with its key. `comes_first` if it comes before all others of its key that do
    not. `number` is its place among all messages of the mailbox."""

    key: str | None
    message: M
    comes_first: bool = False
    number: int = 0


@dataclass(slots=True)
class _Key(Generic[M]):
    waiting: deque[Mail[M]] = field(default_factory=deque)
    first: deque[Mail[M]] = field(default_factory=deque)
    taken: list[Mail[M]] = field(default_factory=list)
    postponed_until: float | None = None
    held_by: set[str] = field(default_factory=set)

    @property
    def queue(self) -> deque[Mail[M]]:
        """What may be taken next, if the key is neither being handled nor postponed."""
        return self.waiting if not (self.first or self.held_by) else self.first

    @property
    def is_free(self) -> bool:
        return not self.taken and self.postponed_until is None and bool(self.queue)

    @property
    def is_empty(self) -> bool:
        return not (self.first or self.waiting or self.taken or self.held_by) and (
            self.postponed_until is None
        )


class Mailbox(Generic[M]):
    """The messages of one partition."""

    def __init__(self) -> None:
        self._keys: dict[str | None, _Key[M]] = {}
        self._free: dict[str | None, int] = {}
        """The number of the first message of each free key."""
        self._oldest: list[tuple[int, str | None]] = []
        """The same as a heap, with entries that are not true any more among them."""
        self._last, self._last_first = 0, _FAR_BEFORE
        self._due: list[tuple[float, int, str | None]] = []
        self._postponements = 0

    def put(self, mail: Mail[M]) -> None:
        """Add a message behind the others of its key, or, if it comes first, behind those that do
        so as well."""
        key = self._keys.setdefault(mail.key, _Key())
        if mail.comes_first:
            self._last_first += 1
            mail.number = self._last_first
            key.first.append(mail)
        else:
            self._last += 1
            mail.number = self._last
            key.waiting.append(mail)
        self._note(mail.key, key)

    def take(self, limit: int, now: float) -> list[Mail[M]]:
        """Messages to handle, at most `limit`: the oldest whose keys are free, of each key as many
        as there are. If nothing is held back, these are the oldest of all, so that they can be
        acknowledged together."""
        self._end_postponements(now)
        taken: list[Mail[M]] = []
        while len(taken) < limit and self._oldest:
            number, name = heapq.heappop(self._oldest)
            if self._free.get(name) != number:
                continue
            key = self._keys[name]
            mail = key.queue.popleft()
            key.taken.append(mail)
            taken.append(mail)
            if queue := key.queue:
                self._free[name] = queue[0].number
                heapq.heappush(self._oldest, (queue[0].number, name))
            else:
                del self._free[name]
        for mail in taken:
            self._free.pop(mail.key, None)
        return taken

    def done(self, mail: Mail[M]) -> None:
        """This message, which was taken, is settled."""
        key = self._keys[mail.key]
        key.taken.remove(mail)
        self._note(mail.key, key)

    def take_back(self, failed: Mail[M], *, itself: bool) -> list[Mail[M]]:
        """Let those of its key that were taken after this message, and this one `itself`, wait
        again in their old order; returns these."""
        key = self._keys[failed.key]
        place = key.taken.index(failed) + (not itself)
        taken_back = key.taken[place:]
        del key.taken[place:]
        for mail in reversed(taken_back):
            (key.first if mail.comes_first else key.waiting).appendleft(mail)
        self._note(failed.key, key)
        return taken_back

    def postpone(self, name: str | None, until: float) -> None:
        """Give out nothing of this key before this time."""
        key = self._keys.setdefault(name, _Key())
        key.postponed_until = until
        self._postponements += 1
        heapq.heappush(self._due, (until, self._postponements, name))
        self._note(name, key)

    def hold(self, name: str | None, letter_id: str) -> None:
        """This dead letter holds its key."""
        key = self._keys.setdefault(name, _Key())
        key.held_by.add(letter_id)
        self._note(name, key)

    def release(self, name: str | None, letter_id: str) -> None:
        """This dead letter does not hold its key any more."""
        key = self._keys.get(name)
        if key is not None:
            key.held_by.discard(letter_id)
            self._note(name, key)

    def next_due(self) -> float | None:
        """When the next postponement ends; None if there is none."""
        return self._due[0][0] if self._due else None

    def has_taken(self) -> bool:
        """Whether anything is being handled."""
        return any(key.taken for key in self._keys.values())

    def _end_postponements(self, now: float) -> None:
        while self._due and self._due[0][0] <= now:
            until, _, name = heapq.heappop(self._due)
            key = self._keys.get(name)
            if key is not None and key.postponed_until == until:
                key.postponed_until = None
                self._note(name, key)

    def _note(self, name: str | None, key: _Key[M]) -> None:
        """Keep `_free` right after a change of this key."""
        if key.is_free:
            number = key.queue[0].number
            if self._free.get(name) != number:
                self._free[name] = number
                heapq.heappush(self._oldest, (number, name))
            return
        self._free.pop(name, None)
        if key.is_empty:
            self._keys.pop(name, None)
