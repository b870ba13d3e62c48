"""What a Redis says about itself, and what our user may do.

Rights are tried with commands that would do nothing: on a key that does not exist, none of them
creates it. A command that a rule forbids is rejected before Redis looks at the key.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from redis.exceptions import ResponseError

from eventmesh.clock import Clock
from eventmesh.transports.base import Subscription
from eventmesh.transports.facts import BrokerFacts, KnownSubscription, RedisFacts, StreamFacts
from eventmesh.transports.redis.connection import CommandRejected, Redis, code_of
from eventmesh.transports.redis.keys import Layout
from eventmesh.transports.redis.scripts.common import READ, Command, call
from eventmesh.transports.redis.unrouted import UnroutedStreams

_ABSENT = "eventmesh.doctor"
"""A message that nobody has, whose stream is not there."""

_FORBIDDEN = "NOPERM"

_LAST_WRITES = ("rdb_last_bgsave_status", "aof_last_write_status")

_GROUPS = (
    READ
    + """
local groups = {}
for _, flat in ipairs(read('XINFO', 'GROUPS', KEYS[1]) or {}) do
  local group = {}
  for at = 1, #flat, 2 do group[flat[at]] = flat[at + 1] end
  groups[#groups + 1] = {group['name'], group['pending'], group['lag'] or -1}
end
return {redis.call('XLEN', KEYS[1]), groups}
"""
)
"""KEYS stream. Returns its length, and of each group the name, how many entries are pending, and
how many are undelivered, -1 where Redis does not know."""


class Facts:
    """Examines one Redis."""

    def __init__(self, redis: Redis, layout: Layout, clock: Clock) -> None:
        self._redis = redis
        self._layout = layout
        self._clock = clock

    async def examine(self, *, thorough: bool) -> BrokerFacts:
        """What `Transport.examine` promises. What our user may not ask is unknown."""
        before = self._clock.now()
        seconds, microseconds = await self._redis.ask("TIME")
        middle = before + (self._clock.now() - before) / 2
        ahead = int(seconds) + int(microseconds) / 1e6 - middle.timestamp()
        unknown: dict[str, str] = {}
        try:
            info = parse_info(await self._redis.ask("INFO"))
        except CommandRejected as error:
            info, unknown["version"], unknown["redis"] = {}, str(error), str(error)
        if not thorough:
            return BrokerFacts(info.get("redis_version"), ahead, unknown=unknown)
        streams, subscriptions = None, None
        try:
            names = await UnroutedStreams(self._redis, self._layout).names()
            streams, subscriptions = await self._streams(names)
        except CommandRejected as error:
            unknown["streams"] = unknown["subscriptions"] = str(error)
        return BrokerFacts(
            info.get("redis_version"),
            ahead,
            unknown=unknown,
            subscriptions=subscriptions,
            forbidden=await self._forbidden(),
            streams=streams,
            redis=redis_facts(info, await self._config()) if info else None,
        )

    async def _streams(
        self, messages: Collection[str]
    ) -> tuple[tuple[StreamFacts, ...], tuple[KnownSubscription, ...]]:
        """The streams, and the groups that they have: these are the subscriptions."""
        streams: list[StreamFacts] = []
        waiting: dict[str, dict[str, int | None]] = {}
        for message in sorted(messages):
            length, groups = await self._redis.run(_GROUPS, (self._layout.stream(message),))
            of_groups = [None if lag < 0 else pending + lag for _, pending, lag in groups]
            known = [number for number in of_groups if number is not None]
            needed = max(known, default=0) if len(known) == len(of_groups) else None
            streams.append(StreamFacts(message, length, needed, len(groups)))
            for (name, _, _), number in zip(groups, of_groups, strict=True):
                waiting.setdefault(name.decode(errors="replace"), {})[message] = number
        subscriptions = []
        for name, numbers in sorted(waiting.items()):
            keys = self._layout.of(Subscription(name, ()))
            in_mailboxes = int(await self._redis.ask("HGET", keys.order, "messages") or 0)
            all_known = None not in numbers.values()
            total = sum(filter(None, numbers.values())) + in_mailboxes if all_known else None
            subscriptions.append(KnownSubscription(name, total, numbers))
        return tuple(streams), tuple(subscriptions)

    async def _config(self) -> dict[str, str]:
        """The settings that tell how data is kept; empty where CONFIG is forbidden, as it is on
        most managed servers."""
        try:
            answer = await self._redis.ask("CONFIG", "GET", "save", "appendfsync")
        except CommandRejected:
            return {}
        return _pairs(answer)

    async def _forbidden(self) -> tuple[str, ...]:
        """The commands that our user may not use on our keys."""
        keys = self._layout.of(Subscription(_ABSENT, (_ABSENT,)))
        stream, delayed = keys.streams[0], keys.delayed
        commands: list[Command] = [
            ("XADD", stream, "NOMKSTREAM", "*", "a", "b"),
            ("XDEL", stream, "0-1"),
            ("XACK", stream, "g", "0-1"),
            ("XRANGE", stream, "-", "+", "COUNT", 1),
            ("XLEN", stream),
            ("XTRIM", stream, "MINID", "~", "0"),
            ("XPENDING", stream, "g"),
            ("XCLAIM", stream, "g", "c", 0, "0-1", "JUSTID"),
            ("XREADGROUP", "GROUP", "g", "c", "COUNT", 1, "STREAMS", stream, ">"),
            ("XGROUP", "CREATE", stream, "g", "$"),
            ("XINFO", "GROUPS", stream),
            ("XINFO", "CONSUMERS", stream, "g"),
            ("ZADD", delayed, "XX", 0, "a"),
            ("ZREM", delayed, "a"),
            ("ZCARD", delayed),
            ("ZSCORE", delayed, "a"),
            ("HGET", keys.order, "a"),
            ("HDEL", keys.order, "a"),
            ("HGETALL", keys.order),
            ("LINDEX", delayed, 0),
            ("LTRIM", delayed, 0, -1),
            ("LLEN", delayed),
            ("LRANGE", delayed, 0, -1),
            ("LSET", delayed, 0, "a"),
            ("DEL", delayed),
            ("XREAD", "COUNT", 1, "STREAMS", stream, "0"),
            ("XREVRANGE", stream, "+", "-", "COUNT", 1),
            ("XGROUP", "SETID", stream, "g", "$"),
            ("ZRANGEBYSCORE", delayed, 0, 0),
            call("return 1", (stream,)),
        ]
        answers = await self._redis.attempt(commands)
        return tuple(
            sorted(
                f"{command[0]!s}: {answer}"
                for command, answer in zip(commands, answers, strict=True)
                if isinstance(answer, ResponseError) and code_of(answer) == _FORBIDDEN
            )
        )


def parse_info(answer: bytes | str) -> dict[str, str]:
    """The lines `name:value` of an answer to INFO."""
    text = answer.decode(errors="replace") if isinstance(answer, bytes) else str(answer)
    lines = (line.partition(":") for line in text.splitlines() if not line.startswith("#"))
    return {name: value for name, colon, value in lines if colon}


def redis_facts(info: dict[str, str], config: dict[str, str]) -> RedisFacts:
    """The facts in answers to INFO and CONFIG, in which any may be missing."""
    return RedisFacts(
        role=info.get("role", "master"),
        append_only=info.get("aof_enabled", "0") == "1",
        append_fsync=config.get("appendfsync"),
        saves=config.get("save"),
        last_write_ok=all(
            info.get(name, "ok") == "ok"
            for name in ("rdb_last_bgsave_status", "aof_last_write_status")
        ),
        max_memory=_whole(info.get("maxmemory")),
        used_memory=_whole(info.get("used_memory")),
        eviction_policy=info.get("maxmemory_policy", ""),
    )


def _whole(text: str | None) -> int:
    return int(text) if text and text.isdigit() else 0


def _pairs(answer: Any) -> dict[str, str]:
    """An answer to CONFIG GET: a flat list, or with RESP 3 a mapping."""
    flat = (
        answer.items() if isinstance(answer, dict) else zip(answer[::2], answer[1::2], strict=False)
    )
    return {_text(name): _text(value) for name, value in flat}


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
