"""Counting what a Redis holds, by pages: Redis reads a page at a time and answers with counts only,
so that it never stops for long, and no data of a message goes over the wire.

Of a stream is counted what was pending when counting began and has not been settled since, and
what was not delivered then. A message that is retried leaves for the set of the delayed, and comes
back into the retry stream; so that set is counted after the streams, and what has come back by then
after it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from eventmesh.transports.base import Subscription
from eventmesh.transports.census import Census, State
from eventmesh.transports.redis import scripts
from eventmesh.transports.redis.connection import Redis
from eventmesh.transports.redis.consumer import RETURNED
from eventmesh.transports.redis.keys import Keys, Layout
from eventmesh.wire.cloudevents import from_fields
from eventmesh.wire.envelope import Envelope

PAGE_BYTES = 4 * 1024 * 1024
"""About how much Redis reads for a page."""

LARGEST_PAGE = 500
SMALLEST_PAGE = 4


class Counting:
    """One census."""

    def __init__(self, redis: Redis, layout: Layout) -> None:
        self._redis = redis
        self._layout = layout
        self.found = Census()

    async def count(
        self, subscriptions: Sequence[Subscription], messages: Collection[str]
    ) -> Census:
        """Count what these subscriptions hold, then of these messages what others are to get."""
        takers = {each.name: set(each.messages) for each in subscriptions}
        for message in sorted(
            {*messages, *(name for each in subscriptions for name in each.messages)}
        ):
            stream = self._layout.stream(message)
            groups = await self._groups(stream)
            if message in messages:
                for group in groups:
                    takers.setdefault(group, set()).add(message)
                if not groups:
                    await self._range("", stream, "-", "unrouted")
            if not groups:
                for taken in takers.values():
                    taken.discard(message)
        for name in sorted(takers):
            await self._subscription(self._layout.of(Subscription(name, tuple(takers[name]))))
        return self.found

    async def _groups(self, stream: str) -> list[str]:
        names = await self._redis.run(scripts.GROUPS, (stream,))
        return [name.decode(errors="replace") for name in names]

    async def _subscription(self, keys: Keys) -> None:
        for stream in keys.streams:
            end = await self._stream(keys.group, stream)  # of the last one, the retry stream
        await self._delayed(keys)
        await self._range(keys.group, keys.retry, end, "ready")
        await self._range(keys.group, keys.dead, "-", "dead")

    async def _stream(self, group: str, stream: str) -> bytes | str:
        """Count what the group needs of a stream; returns where what comes later begins."""
        delivered, length = await self._redis.run(scripts.PLACE, (stream,), group)
        start: bytes | str = "-"
        pages = _Pages()
        while start:
            start, seen, counted = await self._redis.run(
                scripts.TALLY_PENDING, (stream,), group, RETURNED, start, delivered, pages.size
            )
            pages.learn(seen)
            self._add(group, counted)
        return await self._range(group, stream, b"(" + delivered, "ready", length)

    async def _range(
        self, group: str, stream: str, start: bytes | str, state: State, length: int | None = None
    ) -> bytes | str:
        """Count the stream from there on, up to as many as it has, so that it comes to an end while
        others publish; returns where it ended."""
        if length is None:
            _, length = await self._redis.run(scripts.PLACE, (stream,), group)
        pages = _Pages()
        while length > 0:
            start, seen, counted = await self._redis.run(
                scripts.TALLY_RANGE, (stream,), start, pages.size, state
            )
            if not seen[0]:
                break
            length -= seen[0]
            pages.learn(seen)
            self._add(group, counted)
        return start

    async def _delayed(self, keys: Keys) -> None:
        """By their times. With equal times a page begins after as many as were seen of the last."""
        pages = _Pages()
        due: bytes | str = "-inf"
        beyond = 0
        while due:
            due, beyond, seen, counted = await self._redis.run(
                scripts.TALLY_DELAYED, (keys.delayed,), due, beyond, pages.size
            )
            pages.learn(seen)
            self._add(keys.group, counted)

    def _add(self, group: str, counted: Sequence[Any]) -> None:
        for state, name, dataschema, made_at, number in counted:
            fields = [(b"type", name), (b"dataschema", dataschema), (b"time", made_at)]
            envelope = from_fields(field for field in fields if field[1])
            self.found.add(group, Envelope(envelope.attributes, b""), state.decode(), number)


class _Pages:
    """How many entries to ask for: few at first, then as many as have about PAGE_BYTES."""

    def __init__(self) -> None:
        self.size = SMALLEST_PAGE * 4

    def learn(self, seen: Sequence[int]) -> None:
        """`seen` are the entries and bytes of a page."""
        entries, size = seen
        if entries:
            fitting = PAGE_BYTES * entries // max(size, 1)
            self.size = min(max(fitting, SMALLEST_PAGE), LARGEST_PAGE)
