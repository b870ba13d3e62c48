"""The census of a Redis: counting messages by page, inside Redis.

A script reads one page and returns only counts, so that Redis is never blocked for long and no
message's data is sent. In a stream, two ranges are counted: entries that were pending at the start
and are not settled yet, and entries that were not delivered then.

A retry moves from its stream to the delayed set and later to the retry stream. So that it is not
missed, the order is: streams, delayed set, then what was added to the retry stream meanwhile. It
may be counted twice. Mailboxes of an ordered subscription come last: its messages move to them.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from typing import Any, ClassVar

from eventmesh.transports.base import Subscription
from eventmesh.transports.census import Census, State
from eventmesh.transports.finding import Found, Located
from eventmesh.transports.redis.connection import Redis
from eventmesh.transports.redis.consumer import RETURNED
from eventmesh.transports.redis.keys import Keys, Layout
from eventmesh.transports.redis.scripts.common import call
from eventmesh.transports.redis.scripts.counting import (
    COUNT,
    FIND,
    GROUP_NAMES,
    GROUP_POSITION,
    PageScripts,
)
from eventmesh.transports.redis.scripts.ordering import TAGS
from eventmesh.wire.cloudevents import from_fields
from eventmesh.wire.envelope import Envelope

PAGE_BYTES = 4 * 1024 * 1024
"""About how many bytes Redis reads for a page."""

LARGEST_PAGE = 500
MAILBOXES_AT_ONCE = 50
SMALLEST_PAGE = 4


class _Walk(ABC):
    """Reads all that subscriptions hold, page by page, with `scripts` that do something with each
    message; their last arguments are `_last`."""

    scripts: ClassVar[PageScripts]

    def __init__(self, redis: Redis, layout: Layout) -> None:
        self._redis = redis
        self._layout = layout
        self._last: tuple[str, ...] = ()

    @abstractmethod
    def _add(self, group: str, order: Sequence[Any]) -> None:
        """Take in what a script has made of a page."""

    async def _groups(self, stream: str) -> list[str]:
        names = await self._redis.run(GROUP_NAMES, (stream,))
        return [name.decode(errors="replace") for name in names]

    async def _subscription(self, keys: Keys) -> None:
        for stream in keys.streams:
            end = await self._stream(keys.group, stream)  # of the last one, the retry stream
        await self._delayed(keys)
        await self._range(keys.group, keys.retry, end, "ready")
        await self._mailboxes(keys)

    async def _stream(self, group: str, stream: str) -> bytes | str:
        """Count the group's pending and undelivered entries of a stream; returns the id at which
        later entries start."""
        delivered, length = await self._redis.run(GROUP_POSITION, (stream,), group)
        start: bytes | str = "-"
        pages = _Pages()
        while start:
            start, seen, counted = await self._redis.run(
                self.scripts.pending,
                (stream,),
                group,
                RETURNED,
                start,
                delivered,
                pages.size,
                *self._last,
            )
            pages.learn(seen)
            self._add(group, counted)
        return await self._range(group, stream, b"(" + delivered, "ready", length)

    async def _range(
        self, group: str, stream: str, start: bytes | str, state: State, length: int | None = None
    ) -> bytes | str:
        """Count the stream from an id on, at most as many entries as it has now, so that counting
        ends although others publish; returns the id at which it ended."""
        if length is None:
            _, length = await self._redis.run(GROUP_POSITION, (stream,), group)
        pages = _Pages()
        while length > 0:
            start, seen, counted = await self._redis.run(
                self.scripts.range, (stream,), start, pages.size, state, *self._last
            )
            if not seen[0]:
                break
            length -= seen[0]
            pages.learn(seen)
            self._add(group, counted)
        return start

    async def _delayed(self, keys: Keys) -> None:
        """Count the delayed set in the order of its times. A page starts at the last time of the
        page before, and skips the members with that time which were counted."""
        pages = _Pages()
        due: bytes | str = "-inf"
        beyond = 0
        while due:
            due, beyond, seen, counted = await self._redis.run(
                self.scripts.delayed, (keys.delayed,), due, beyond, pages.size, *self._last
            )
            pages.learn(seen)
            self._add(keys.group, counted)

    async def _mailboxes(self, keys: Keys) -> None:
        """Count the mailboxes of an ordered subscription, many at once: most are short."""
        tags = await self._redis.run(TAGS, keys.ordered, keys.group)
        for start in range(0, len(tags), MAILBOXES_AT_ONCE):
            waiting, pages = (
                [(*each, 0) for each in tags[start : start + MAILBOXES_AT_ONCE]],
                _Pages(),
            )
            while waiting:
                size = max(1, pages.size // len(waiting))
                answers = await self._redis.batch(
                    [
                        call(self.scripts.mailbox, keys.ordering[1:2], *each, size, *self._last)
                        for each in waiting
                    ]
                )
                for _, seen, counted in answers:
                    pages.learn(seen)
                    self._add(keys.group, counted)
                waiting = [
                    (*each[:3], skip)
                    for each, (skip, _, _) in zip(waiting, answers, strict=True)
                    if skip >= 0
                ]


class _Pages:
    """The number of entries in the next page: few at first, then about PAGE_BYTES."""

    def __init__(self) -> None:
        self.size = SMALLEST_PAGE * 4

    def learn(self, seen: Sequence[int]) -> None:
        """Adapt to the number of entries and bytes that a page had."""
        entries, size = seen
        if entries:
            fitting = PAGE_BYTES * entries // max(size, 1)
            self.size = min(max(fitting, SMALLEST_PAGE), LARGEST_PAGE)


class RedisCensus(_Walk):
    """One census, or what one part adds to it."""

    scripts = COUNT

    def __init__(self, redis: Redis, layout: Layout, found: Census) -> None:
        super().__init__(redis, layout)
        self._found = found

    async def count(self, subscriptions: Sequence[Subscription], messages: Collection[str]) -> None:
        """Count the messages of these subscriptions and of others to `messages`, and the unrouted
        ones."""
        wanted = {each.name: set(each.messages) for each in subscriptions}
        for message in sorted(
            {*messages, *(name for each in subscriptions for name in each.messages)}
        ):
            stream = self._layout.stream(message)
            groups = await self._groups(stream)
            if message in messages:
                for group in groups:
                    wanted.setdefault(group, set()).add(message)
                if not groups:
                    await self._range("", stream, "-", "unrouted")
            if not groups:
                for taken in wanted.values():
                    taken.discard(message)
        for name in sorted(wanted):
            keys = self._layout.of(Subscription(name, tuple(wanted[name])))
            await self._subscription(keys)
            await self._range(name, keys.dead, "-", "dead")

    def _add(self, group: str, counted: Sequence[Any]) -> None:
        for state, name, dataschema, made_at, number, source in counted:
            fields = [
                (b"type", name),
                (b"dataschema", dataschema),
                (b"time", made_at),
                (b"source", source),
            ]
            envelope = from_fields(field for field in fields if field[1])
            self._found.add(group, Envelope(envelope.attributes, b""), state.decode(), number)


class RedisSearch(_Walk):
    """One search for messages by id, correlation id or key."""

    scripts = FIND

    def __init__(self, redis: Redis, layout: Layout, wanted: Collection[str]) -> None:
        super().__init__(redis, layout)
        self._last = (json.dumps(sorted(wanted)),)
        self._found: list[Located] = []

    async def find(self, subscriptions: Sequence[Subscription], messages: Collection[str]) -> Found:
        """Look through what these subscriptions hold, and the unrouted ones of these messages."""
        for message in sorted(messages):
            stream = self._layout.stream(message)
            if not await self._groups(stream):
                await self._range("", stream, "-", "unrouted")
        for subscription in subscriptions:
            await self._subscription(self._layout.of(subscription))
        return Found(tuple(self._found))

    def _add(self, group: str, order: Sequence[Any]) -> None:
        for state, *attributes in order:
            envelope = from_fields(zip(attributes[::2], attributes[1::2], strict=True))
            self._found.append(Located(group, state.decode(), envelope))
