"""How many messages a consumer may hold, divided among the parts of the prefix that it reads.

With one part, that is all there is to it: a part may fetch what is missing to the limit. Several
parts share the limit: those that do not wait for messages in vain get equal shares of it. For
example, with a limit of 90 and three parts, of which the third never has a message:

| step                                 | a holds | b holds | room of a | room of b    |
|--------------------------------------|---------|---------|-----------|--------------|
| nothing is fetched yet               | 0       | 0       | 30        | 30           |
| a has read 30, b has found nothing   | 30      | 0       | 60        | 45           |
| a has read 60                        | 90      | 0       | 0         | 1, see below |
| b has got one; 40 of a's are settled | 50      | 1       | 0         | 39           |
| b has read 39; 30 of a's are settled | 20      | 40      | 25        | 5            |

A part that holds nothing may always fetch one message, so that none waits for another part to come
to an end: with a prefetch of 1, parts take turns. A read that waits for messages does not reserve
room for them. So a consumer may fetch a few messages more than its limit; but no more than the
limit are received and not settled.
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
    """The limit, and the two events by which a consumer and the readers of its parts wait for each
    other: messages have arrived, and there is room for more. Both may be set for no reason."""

    def __init__(self, limit: int) -> None:
        self.arrived = asyncio.Event()
        self.room_made = asyncio.Event()
        self._limit = limit
        self._holders: list[Holder] = []
        self._requested: dict[Holder, int] = {}
        self._idle: set[Holder] = set()

    def add(self, holder: Holder) -> None:
        """Let this consumer have a share."""
        self._holders.append(holder)

    @property
    def receivable(self) -> int:
        """How many more messages the worker may receive."""
        return self._limit - sum(each.received for each in self._holders)

    def room(self, holder: Holder) -> int:
        """How many more messages it may fetch."""
        held = self._held(holder)
        unused = self._limit - sum(self._held(each) for each in self._holders)
        if len(self._holders) == 1:
            return unused
        return max(min(unused, self._share(holder) - held), 0 if held else 1)

    def is_worth_a_read(self, holder: Holder) -> bool:
        """Whether it should fetch more now: there is enough room, or the worker has run out."""
        has_some = any(each.held > each.received for each in self._holders)
        return self.room(holder) > (self._share(holder) // 4 if has_some else 0)

    @contextmanager
    def requesting(self, holder: Holder, count: int) -> Iterator[None]:
        """Reserve room for so many messages while they are fetched."""
        self._requested[holder] = count
        try:
            yield
        finally:
            del self._requested[holder]
            self.room_made.set()  # for other parts, if it got less

    @contextmanager
    def idle(self, holder: Holder) -> Iterator[None]:
        """Leave its share to others while it waits for messages."""
        self._idle.add(holder)
        try:
            yield
        finally:
            self._idle.remove(holder)

    def while_waiting(self, holder: Holder, streams: int) -> int:
        """How many messages of each of so many streams a read may fetch that waits for them."""
        count = max(1, self.room(holder) // streams)
        return count if len(self._holders) == 1 else min(count, MOST_WHILE_WAITING)

    async def wait(self) -> None:
        """Wait until there may be something to receive, or a reader has ended."""
        self.arrived.clear()
        await self.arrived.wait()

    def _share(self, holder: Holder) -> int:
        """How many messages it may hold while others want some too."""
        active = sum(
            each is holder or each not in self._idle or each.held > 0 for each in self._holders
        )
        return -(-self._limit // active)

    def _held(self, holder: Holder) -> int:
        return holder.held + self._requested.get(holder, 0)
