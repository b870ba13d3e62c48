"""How many messages a consumer may hold, and which of the parts that it reads may fetch the next.

With one part, that is all there is to it: it fetches what is missing to the limit, once that is
worth a round trip. Several parts share the limit and take turns, so that each fetches as many
messages at once as if it were alone, and a batch comes from few parts. For example, with a limit of
100, two parts for which messages wait, and a third for which there are none:

| step                                     | held by a, b, c | whose turn it is               |
|------------------------------------------|-----------------|--------------------------------|
| a fetches 50, half of the limit          | 50, 0, 0        | b, then c                      |
| b fetches 50                             | 50, 50, 0       | c, once there is room for more |
| the worker settles 30 of a's             | 20, 50, 0       | c; it finds nothing and waits  |
| at once, a fetches 30                    | 50, 50, 0       | b                              |

At most half of the limit is fetched at once, so that other parts go on if the master of one does
not answer. A read that waits for messages has no turn and reserves no room; it brings a few
messages only. So a consumer may fetch a few more than its limit, but no more than the limit are
received and not settled.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

MOST_WHILE_WAITING = 2
"""How many entries of a stream a waiting read fetches where several parts share the limit: few, for
which no room is reserved, and more than one, so that a lone message does not look like the first of
many."""


class Holder(Protocol):
    """A consumer of one part."""

    @property
    def held(self) -> int:
        """How many messages it has fetched that are not settled."""
        ...

    @property
    def received(self) -> int:
        """How many of those the worker has received."""
        ...


class Prefetch:
    """The limit, whose turn it is, and the two events by which a consumer and the readers of its
    parts wait for each other: messages have arrived, and there may be room or a turn for more. Both
    may be set for no reason."""

    def __init__(self, limit: int) -> None:
        self.arrived = asyncio.Event()
        self.room_made = asyncio.Event()
        self._limit = limit
        self._holders: list[Holder] = []
        self._requested: dict[Holder, int] = {}
        self._waiting: list[Holder] = []
        """Those that want to fetch, in the order of their turns."""

    def add(self, holder: Holder) -> None:
        """Let this consumer share the limit."""
        self._holders.append(holder)

    @property
    def receivable(self) -> int:
        """How many more messages the worker may receive."""
        return self._limit - sum(each.received for each in self._holders)

    def may_fetch(self, holder: Holder) -> bool:
        """Whether it should fetch more now: there is enough room for a round trip, or the worker
        has run out; and it is its turn. If not, it is in the queue, and asks again after
        `room_made`."""
        if holder not in self._waiting:
            self._waiting.append(holder)
        if not self.has_room or self._waiting[0] is not holder:
            return False
        del self._waiting[0]
        if self._waiting:
            self.room_made.set()  # there may be enough for the next, too
        return True

    @property
    def has_room(self) -> bool:
        """Whether there is enough room for a round trip, or the worker has run out. A part for
        which nothing is there waits for messages then, whoever has the next turn."""
        has_some = any(each.held > each.received for each in self._holders)
        return self._unused > (self._limit // 4 if has_some else 0)

    def leave_queue(self, holder: Holder) -> None:
        """Let others have their turns while it has something else to do."""
        if holder in self._waiting:
            self._waiting.remove(holder)
            self.room_made.set()

    def room(self) -> int:
        """How many more messages may be fetched at once."""
        if len(self._holders) == 1:
            return self._unused
        return min(self._unused, -(-self._limit // 2))

    @contextmanager
    def fetching(self, holder: Holder, count: int) -> Iterator[None]:
        """Reserve room for so many messages while they are fetched."""
        self._requested[holder] = count
        try:
            yield
        finally:
            del self._requested[holder]
            self.room_made.set()  # for other parts, if there were fewer

    def while_waiting(self, streams: int) -> int:
        """How many messages of each of so many streams a read may fetch that waits for them."""
        count = max(1, self.room() // streams)
        return count if len(self._holders) == 1 else min(count, MOST_WHILE_WAITING)

    async def wait(self) -> None:
        """Wait until there may be something to receive, or a reader has ended."""
        self.arrived.clear()
        await self.arrived.wait()

    @property
    def _unused(self) -> int:
        return (
            self._limit - sum(each.held for each in self._holders) - sum(self._requested.values())
        )
