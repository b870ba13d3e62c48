"""Unrouted messages in Redis: the streams that have no group.

The first subscription creates its group at the beginning of the stream, and so gets them. A purge
checks for groups in the script that deletes, so that it deletes nothing that a group should get.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from redis.exceptions import ResponseError

from eventmesh.transports.base import Unrouted
from eventmesh.transports.redis.connection import Redis, code_of
from eventmesh.transports.redis.keys import Layout
from eventmesh.transports.redis.scripts.common import call
from eventmesh.transports.redis.scripts.operations import PURGE_UNROUTED, UNROUTED

PAGE = 1_000
"""How many keys one command looks at: about a millisecond of Redis's time."""

PURGED_AT_ONCE = 10_000
"""Entries that one script deletes: a few milliseconds of Redis's time."""

_SPECIAL = re.compile(r"([\\*?\[\]^])")


class UnroutedStreams:
    """The unrouted messages under a prefix."""

    def __init__(self, redis: Redis, layout: Layout) -> None:
        self._redis = redis
        self._layout = layout

    async def count(self, messages: Collection[str], thorough: bool) -> list[Unrouted]:
        """See `Transport.unrouted`."""
        names = sorted({*messages, *(await self.names() if thorough else ())})
        found = []
        for start in range(0, len(names), PAGE):
            page = names[start : start + PAGE]
            answers = await self._redis.attempt(
                [call(UNROUTED, (self._layout.stream(name),)) for name in page]
            )
            for name, answer in zip(page, answers, strict=True):
                if isinstance(answer, ResponseError):
                    if code_of(answer) == "WRONGTYPE":  # another program's key
                        continue
                    raise self._redis.rejection(answer)
                number, age_ms = answer
                if number:
                    found.append(Unrouted(name, number, age_ms / 1000))
        return found

    async def purge(self, message: str, keep: int, older_than: float | None) -> int:
        """See `Transport.purge_unrouted`."""
        stream = self._layout.stream(message)
        older_ms = "" if older_than is None else int(older_than * 1000)
        purged, more = 0, True
        while more:
            number = await self._redis.run(
                PURGE_UNROUTED, (stream,), keep, older_ms, PURGED_AT_ONCE
            )
            purged, more = purged + number, number > 0
        return purged

    async def names(self) -> set[str]:
        """The messages that have a stream."""
        beginning = self._layout.streams
        pattern = _SPECIAL.sub(r"\\\1", beginning) + "*"
        names: set[str] = set()
        cursor: bytes | int = 0
        while True:
            cursor, keys = await self._redis.ask(
                "SCAN", cursor, "MATCH", pattern, "COUNT", PAGE, "TYPE", "stream"
            )
            for key in keys:
                name = key.decode(errors="replace").removeprefix(beginning)
                names.add(name)
            if int(cursor) == 0:
                return names
