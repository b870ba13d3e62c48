"""One process's hold on a subscription in Redis."""

from __future__ import annotations

import asyncio
import math
import os
import socket
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

import structlog
from redis.exceptions import ResponseError

from eventmesh.clock import Clock
from eventmesh.errors import Unreachable
from eventmesh.transports.base import Delivery
from eventmesh.transports.outcome import Dead, Done, Outcome, RetryAfter
from eventmesh.transports.redis import scripts
from eventmesh.transports.redis.connection import (
    Connection,
    ConnectionLost,
    Redis,
    Refused,
    code_of,
)
from eventmesh.transports.redis.entries import open_entry, open_parcel
from eventmesh.transports.redis.keys import Keys
from eventmesh.transports.redis.scripts import Command, call
from eventmesh.transports.redis.settlement import SettlementCommands
from eventmesh.transports.redis.upkeep import Token, Upkeep

RETURNED = "returned"
"""The consumer of every group under whose name is pending what was given back."""

LOOK_INTERVAL = 0.5
"""Seconds in which what was given back is noticed; also the longest that a read blocks."""

STABLE_AFTER = 1.0
"""Seconds that a connection must have served before its loss is mended without a word."""

REFUSED_DELAY = 30.0
"""Seconds after which a message comes again that Redis takes neither as a dead letter nor for a
retry, because of what is at the key."""

_WRONG_WITH_A_KEY = ("WRONGTYPE", "ERR")
"""How Redis answers where it could do the same with another key. ERR is, for one, a stream that has
had its last id."""

Settlement = tuple[Delivery, Outcome]
Moved = tuple[Delivery, RetryAfter | Dead]

_HEALED_BY_DECLARING = ("NOGROUP", "UNBLOCKED", "WRONGTYPE")
"""How Redis answers a read where a stream or a group is missing; where something else has the name
of a stream, declaring it says which."""


class RedisConsumer:
    """Reads ahead into `_buffer` by one task, so that cancelling `receive` interrupts no read.

    `_mine` are the tokens of all that is pending under this consumer's name, of which those in
    `_buffer` were not handed out yet.

    A connection that is cut while Redis is well is replaced, and nobody notices. When Redis is
    away, the consumer ends: `receive` is Unreachable.
    """

    def __init__(
        self, redis: Redis, keys: Keys, prefetch: int, clock: Clock, visibility_timeout: float
    ) -> None:
        self._redis = redis
        self._keys = keys
        self._prefetch = prefetch
        self._clock = clock
        self._visibility_timeout = visibility_timeout
        self._name = f"{socket.gethostname()}-{os.getpid()}-{clock.new_id()}"
        self._commands = SettlementCommands(keys, self._name, clock)
        self._mine: set[Token] = set()
        self._buffer: deque[Delivery] = deque()
        self._busy: set[str] = set(keys.streams)
        self._turn = 0
        self._leaving = False
        self._client_id: int | None = None
        self._log: structlog.stdlib.BoundLogger = structlog.get_logger("eventmesh.redis")
        self._arrived = asyncio.Event()
        self._room_made = asyncio.Event()
        self._upkeep = Upkeep(redis, keys, self._name, self._mine, clock, visibility_timeout)
        self._reading = asyncio.create_task(self._read())
        self._tasks = [self._reading, *self._upkeep.start()]
        for task in self._tasks:
            task.add_done_callback(lambda _: self._arrived.set())

    async def receive(self, limit: int) -> Sequence[Delivery]:
        while True:
            for task in self._tasks:
                if task.done():
                    await task  # raises what ended it
            handed_out = len(self._mine) - len(self._buffer)
            count = min(limit, self._prefetch - handed_out, len(self._buffer))
            if count > 0:
                break
            self._arrived.clear()
            await self._arrived.wait()
        taken = [self._buffer.popleft() for _ in range(count)]
        self._room_made.set()
        return taken

    async def settle(self, settlements: Sequence[Settlement]) -> None:
        ours = [pair for pair in settlements if pair[0].token in self._mine]
        done = [delivery for delivery, outcome in ours if isinstance(outcome, Done)]
        moved = [(delivery, outcome) for delivery, outcome in ours if not isinstance(outcome, Done)]
        finishing = self._commands.finish(done)
        answers = await self._done_once_or_twice(
            [*finishing, *(self._commands.move(delivery, outcome) for delivery, outcome in moved)]
        )
        errors = [
            (pair, answer)
            for pair, answer in zip(moved, answers[len(finishing) :], strict=True)
            if isinstance(answer, ResponseError)
        ]
        for answer in answers[: len(finishing)]:
            if isinstance(answer, ResponseError):
                raise self._redis.refusal(answer)
        if errors:
            await self._put_off(errors)
        self._mine.difference_update(delivery.token for delivery, _ in ours)
        self._room_made.set()
        self._arrived.set()
        if errors or any(isinstance(outcome, RetryAfter) for _, outcome in moved):
            self._upkeep.delay_asked()

    async def _done_once_or_twice(self, commands: Sequence[Command]) -> list[Any]:
        """The answers to these commands. Settling is idempotent, so that it is tried again on a
        fresh connection when only the connection was lost."""
        try:
            return await self._redis.attempt(commands)
        except ConnectionLost:
            return await self._redis.attempt(commands)

    async def _put_off(self, errors: Sequence[tuple[Moved, ResponseError]]) -> None:
        """See that deliveries which Redis does not take as dead letters or for a retry are not in
        the way of others.

        Where something is wrong with the key that they should go to, they wait for REFUSED_DELAY
        among the delayed, and come again as they were. Where nothing helps, it is Refused.
        """
        for _, error in errors:
            if code_of(error) not in _WRONG_WITH_A_KEY:
                raise self._redis.refusal(error)
        refusal = self._redis.refusal(errors[0][1])
        self._log.warning(
            "messages put off",
            subscription=self._keys.group,
            messages=len(errors),
            error=str(refusal),
            again_after=REFUSED_DELAY,
        )
        answers = await self._done_once_or_twice(
            [
                self._commands.delay(
                    delivery,
                    delivery.attempt + isinstance(outcome, RetryAfter),
                    REFUSED_DELAY,
                )
                for (delivery, outcome), _ in errors
            ]
        )
        if any(isinstance(answer, ResponseError) for answer in answers):
            raise refusal

    async def leave(self) -> bool:
        """Stop reading and give back what is unsettled; False when Redis is away, and `give_back`
        is to be called once it is there again."""
        self._leaving = True
        self._room_made.set()
        try:
            await self._stop_reading()
        finally:
            for task in self._tasks:
                task.cancel()
        await asyncio.wait(self._tasks)
        try:
            await self.give_back()
        except Unreachable:
            return False
        finally:
            self._raise_mistakes()
        return True

    async def give_back(self) -> None:
        """Give back what is unsettled: others get it at once. Nothing is handed out any more."""
        held = self._mine.difference(delivery.token for delivery in self._buffer)
        await self._redis.run(*self._giving_back(held, leaving=True))
        self._mine.clear()
        self._buffer.clear()

    def _raise_mistakes(self) -> None:
        for task in self._tasks:
            error = None if task.cancelled() else task.exception()
            if error is not None and not isinstance(error, Unreachable):
                raise error  # a mistake of ours is never swallowed

    # Reading

    async def _read(self) -> None:
        """Keep the buffer full until leaving. All that takes messages is done by this one task, on
        a connection of its own, so that the room for them is counted right."""
        while not self._leaving:
            serving_since = math.inf
            try:
                async with self._redis.connection() as connection:
                    await self._introduce(connection)
                    serving_since = self._clock.monotonic()
                    await self._fill(connection)
            except ConnectionLost:
                if self._clock.monotonic() - serving_since < STABLE_AFTER:
                    raise  # Redis is away, or refuses us in its own way

    async def _introduce(self, connection: Connection) -> None:
        """Give back what was delivered to a connection before, and never arrived."""
        former, self._client_id = self._client_id, None
        if former is not None:
            await connection.exchange([("CLIENT", "UNBLOCK", former)])  # if Redis sees it still
            await connection.ask(*call(*self._giving_back(self._mine, leaving=False)))
        with suppress(Refused):  # it is for leaving quickly only
            self._client_id = await connection.ask("CLIENT", "ID")

    async def _fill(self, connection: Connection) -> None:
        now = self._clock.monotonic
        next_look = next_search = now()
        quiet = False
        while not self._leaving:
            if not self._worth_reading():
                self._room_made.clear()
                await self._room_made.wait()
                continue
            if now() >= next_look:
                searching = now() >= next_search
                room = self._room()
                if await self._claim(connection, searching) == room:
                    continue  # there may be more, and it comes before what is new
                next_look = now() + LOOK_INTERVAL
                if searching:
                    next_search = now() + self._visibility_timeout / 2
            elif quiet or not await self._read_once(connection):
                quiet = not await self._read_blocking(connection, next_look - now())

    def _room(self) -> int:
        return self._prefetch - len(self._mine)

    def _worth_reading(self) -> bool:
        """While something waits to be handed out, no round trip for little."""
        return self._room() > (self._prefetch // 4 if self._buffer else 0)

    async def _claim(self, connection: Connection, searching: bool) -> int:
        """Take over what was given back and, when searching, what dead consumers hold; returns
        how many."""
        silence = math.ceil(self._visibility_timeout * 1000) if searching else ""
        keys = self._keys
        claimed = await connection.ask(
            *call(
                scripts.CLAIM, keys.streams, keys.group, self._name, RETURNED, self._room(), silence
            )
        )
        for number, deliveries, entry in claimed:
            self._accept(keys.streams[number], [entry], deliveries)
        return len(claimed)

    async def _read_once(self, connection: Connection) -> int:
        """Read what is there, as far as there is room; returns how many."""
        shares = self._shares(self._room())
        answers = await connection.exchange(
            [self._reading_command(count, None, (stream,)) for stream, count in shares]
        )
        total = 0
        for (stream, count), answer in zip(shares, answers, strict=True):
            arrived = await self._take(answer)
            total += arrived
            if arrived < count:
                self._busy.discard(stream)
            else:
                self._busy.add(stream)
        return total

    def _shares(self, room: int) -> list[tuple[str, int]]:
        """How many to ask of each stream, in sum `room`, because COUNT is per stream: one of each,
        and the rest evenly of those that gave all they were asked for the last time."""
        streams = self._keys.streams
        self._turn = (self._turn + 1) % len(streams)
        chosen = (streams[self._turn :] + streams[: self._turn])[:room]
        busy = [stream for stream in chosen if stream in self._busy] or list(chosen)
        more, left = divmod(room - len(chosen), len(busy))
        extra = {stream: more + (place < left) for place, stream in enumerate(busy)}
        return [(stream, 1 + extra.get(stream, 0)) for stream in chosen]

    async def _read_blocking(self, connection: Connection, seconds: float) -> int:
        """Wait for the next message; returns how many came. With room for fewer than there are
        streams, and messages in several of them at the same instant, the buffer may get one of
        each."""
        streams = self._keys.streams
        count = max(1, self._room() // len(streams))
        wait_ms = max(1, min(math.ceil(seconds * 1000), int(LOOK_INTERVAL * 1000)))
        [answer] = await connection.exchange([self._reading_command(count, wait_ms, streams)])
        arrived = await self._take(answer)
        if arrived >= count:
            self._busy.update(streams)
        return arrived

    def _reading_command(self, count: int, wait_ms: int | None, streams: Sequence[str]) -> Command:
        block: Command = () if wait_ms is None else ("BLOCK", wait_ms)
        group = ("XREADGROUP", "GROUP", self._keys.group, self._name)
        return (*group, "COUNT", count, *block, "STREAMS", *streams, *[">"] * len(streams))

    async def _take(self, answer: Any) -> int:
        """Take in the answer to an XREADGROUP; heal the topology if that is what it says."""
        if isinstance(answer, ResponseError):
            refusal = self._redis.refusal(answer)
            if code_of(answer) not in _HEALED_BY_DECLARING:
                raise refusal
            await self._redis.run(scripts.DECLARE, self._keys.streams, self._keys.group)
            return 0
        for stream, entries in answer or ():
            self._accept(stream.decode(), entries, 1)
        return sum(len(entries) for _, entries in answer or ())

    def _accept(self, stream: str, entries: Iterable[Any], deliveries: int) -> None:
        retry = stream == self._keys.retry
        for entry_id, fields in entries:
            token = (stream, entry_id)
            if token in self._mine:
                continue  # claimed from ourselves, after a silence of this whole process
            opened, attempt = open_parcel(fields) if retry else (open_entry(fields), 1)
            self._mine.add(token)
            self._buffer.append(Delivery.of(opened, attempt, deliveries, token))
        self._arrived.set()

    # Leaving

    async def _stop_reading(self) -> None:
        """Let the reader end its read by itself: if its connection were cut, Redis could still
        deliver to it. Where CLIENT UNBLOCK is forbidden, the read ends after LOOK_INTERVAL."""
        while not self._reading.done():
            if self._client_id is not None:
                with suppress(Unreachable):
                    await self._redis.ask("CLIENT", "UNBLOCK", self._client_id)
            await asyncio.wait([self._reading], timeout=0.01)

    def _giving_back(self, held: Iterable[Token], *, leaving: bool) -> Any:
        keys = self._keys
        number = {stream: index for index, stream in enumerate(keys.streams)}
        return (
            scripts.GIVE_BACK,
            keys.streams,
            keys.group,
            self._name,
            RETURNED,
            scripts.EVERYTHING,
            "leaving" if leaving else "",
            *(b"%d %s" % (number[stream], entry_id) for stream, entry_id in held),
        )
