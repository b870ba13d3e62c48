"""Consumes a subscription: prefetches entries, delivers them to the worker and settles them.

One task reads (see `reader`): first entries that can be claimed, because a consumer returned them
when it left or has died, then new ones. It fills a buffer, which `receive` empties, so that
cancelling `receive` interrupts no read. Everything that was read and is not settled is pending
under this consumer's name, and is never more than `prefetch`.

Redis may have sent entries to a lost connection that never arrived, so those are returned first,
without counting as delivered. If Redis is unreachable, `receive` raises Unreachable.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

import structlog
from redis.exceptions import ResponseError

from eventmesh.clock import Clock
from eventmesh.transports.base import Delivery
from eventmesh.transports.outcome import Dead, Done, Outcome, RetryAfter
from eventmesh.transports.redis.connection import Connection, ConnectionLost, Redis, code_of
from eventmesh.transports.redis.entries import read_entry, read_parcel
from eventmesh.transports.redis.keys import Keys
from eventmesh.transports.redis.prefetch import Prefetch
from eventmesh.transports.redis.reader import LONGEST_WAIT, Reader, unique_consumer_name
from eventmesh.transports.redis.scripts.common import EVERYTHING, Command, call
from eventmesh.transports.redis.scripts.consuming import CLAIM, DECLARE, RETURN_PENDING
from eventmesh.transports.redis.settlement import SettlementCommands
from eventmesh.transports.redis.upkeep import Token, Upkeep

RETURNED = "returned"
"""A consumer of every group; entries that others returned are pending under its name."""

_CLAIM_INTERVAL = LONGEST_WAIT
"""Seconds until returned entries are noticed."""

REJECTED_DELAY = 30.0
"""Seconds until a message is delivered again that Redis could store neither as a dead letter nor
as a retry, because something else is at that key."""

_WRONG_WITH_A_KEY = ("WRONGTYPE", "ERR")
"""Errors that concern one key only. ERR is, for example, a stream that has used up its ids."""

Settlement = tuple[Delivery, Outcome]
Moved = tuple[Delivery, RetryAfter | Dead]

_HEALED_BY_DECLARING = ("NOGROUP", "UNBLOCKED", "WRONGTYPE")
"""Errors of a read that declaring the subscription repairs, as a stream or group is missing. If
something else is at a stream's key, declaring it raises an error that names the key."""


class RedisConsumer:
    """See the module. `_pending` are the tokens of all entries pending under this consumer's name;
    the deliveries of some of them are still in `_buffer`."""

    def __init__(
        self, redis: Redis, keys: Keys, prefetch: Prefetch, clock: Clock, visibility_timeout: float
    ) -> None:
        self._redis = redis
        self._keys = keys
        self._prefetch = prefetch
        self._clock = clock
        self._visibility_timeout = visibility_timeout
        self._name = unique_consumer_name(clock)
        self._commands = SettlementCommands(keys, self._name, clock)
        self._pending: set[Token] = set()
        self._buffer: deque[Delivery] = deque()
        self._busy: set[str] = set(keys.streams)
        self._turn = 0
        self._has_been_connected = False
        self._log: structlog.stdlib.BoundLogger = structlog.get_logger("eventmesh.redis")
        self._upkeep = Upkeep(redis, keys, self._name, self._pending, clock, visibility_timeout)
        self._reader = Reader(redis, clock, prefetch, self._connected, self._fill)
        prefetch.add(self)
        self._reader.start(self._upkeep.start())

    async def receive(self, limit: int) -> Sequence[Delivery]:
        while True:
            self.check()
            if taken := self.take(limit):
                return taken
            await self._prefetch.wait()

    def check(self) -> None:
        """Raise what ended this consumer, if it has ended."""
        self._reader.check()

    def take(self, limit: int) -> list[Delivery]:
        """As `receive`, but without waiting; there may be none."""
        count = min(limit, self._prefetch.receivable, len(self._buffer))
        taken = [self._buffer.popleft() for _ in range(count)]
        if taken:
            self._reader.room_made.set()
        return taken

    @property
    def held(self) -> int:
        return len(self._pending)

    @property
    def received(self) -> int:
        return len(self._pending) - len(self._buffer)

    def own(self, settlements: Sequence[Settlement]) -> Sequence[Settlement]:
        """Those whose deliveries this consumer still has."""
        return [pair for pair in settlements if pair[0].token in self._pending]

    async def settle(self, settlements: Sequence[Settlement]) -> None:
        ours = self.own(settlements)
        done = [delivery for delivery, outcome in ours if isinstance(outcome, Done)]
        moved = [(delivery, outcome) for delivery, outcome in ours if not isinstance(outcome, Done)]
        finishing = self._commands.finish(done)
        answers = await self._settle_with_retry(
            [*finishing, *(self._commands.move(delivery, outcome) for delivery, outcome in moved)]
        )
        errors = [
            (pair, answer)
            for pair, answer in zip(moved, answers[len(finishing) :], strict=True)
            if isinstance(answer, ResponseError)
        ]
        for answer in answers[: len(finishing)]:
            if isinstance(answer, ResponseError):
                raise self._redis.rejection(answer)
        if errors:
            await self._delay_unsettleable(errors)
        self._pending.difference_update(delivery.token for delivery, _ in ours)
        self._reader.room_made.set()
        self._reader.arrived.set()
        if errors or any(isinstance(outcome, RetryAfter) for _, outcome in moved):
            self._upkeep.delay_asked()

    async def _settle_with_retry(self, commands: Sequence[Command]) -> list[Any]:
        """The answers to these commands. Settling is idempotent, so we retry once on a fresh
        connection."""
        try:
            return await self._redis.attempt(commands)
        except ConnectionLost:
            return await self._redis.attempt(commands)

    async def _delay_unsettleable(self, errors: Sequence[tuple[Moved, ResponseError]]) -> None:
        """Delay deliveries that Redis could not store as dead letters or retries, so that they do
        not block others.

        If the problem is the key that they should go to, they are retried after REJECTED_DELAY, and
        the attempt of a would-be dead letter does not count. Otherwise this raises CommandRejected.
        """
        for _, error in errors:
            if code_of(error) not in _WRONG_WITH_A_KEY:
                raise self._redis.rejection(error)
        rejection = self._redis.rejection(errors[0][1])
        self._log.warning(
            "messages could not be settled",
            subscription=self._keys.group,
            messages=len(errors),
            error=str(rejection),
            retry_after=REJECTED_DELAY,
        )
        answers = await self._settle_with_retry(
            [
                self._commands.delay(
                    delivery,
                    delivery.attempt + isinstance(outcome, RetryAfter),
                    REJECTED_DELAY,
                )
                for (delivery, outcome), _ in errors
            ]
        )
        if any(isinstance(answer, ResponseError) for answer in answers):
            raise rejection

    async def leave(self) -> bool:
        """Stop reading and return unsettled entries. False if Redis is unreachable: the caller then
        calls `return_pending` once it is back."""
        return await self._reader.leave(self.return_pending)

    async def return_pending(self) -> None:
        """Return all unsettled entries, which others can claim at once. Ends this consumer."""
        held = self._pending.difference(delivery.token for delivery in self._buffer)
        await self._redis.run(*self._returning(held, leaving=True))
        self._pending.clear()
        self._buffer.clear()

    # Reading

    async def _connected(self, connection: Connection) -> None:
        """Return entries that Redis sent to the previous connection and that never arrived."""
        if self._has_been_connected:
            await connection.ask(*call(*self._returning(self._pending, leaving=False)))
        self._has_been_connected = True

    async def _fill(self, connection: Connection) -> None:
        """Keep the buffer full until leaving. Only this task reads and claims entries, so that
        the room left under `prefetch` is counted correctly."""
        now = self._clock.monotonic
        next_claim = next_search = now()
        emptied = False
        while not self._reader.is_leaving:
            if not self._prefetch.may_fetch(self):
                await self._reader.wait_for_room()
                continue
            if now() >= next_claim:
                searching = now() >= next_search
                room = self._prefetch.room()
                if await self._claim(connection, room, searching) == room:
                    continue  # there may be more, and it comes before new entries
                next_claim = now() + _CLAIM_INTERVAL
                if searching:
                    next_search = now() + self._visibility_timeout / 2
            elif emptied:
                emptied = await self._read_blocking(connection, next_claim - now())
            else:
                emptied = await self._read_once(connection)

    async def _claim(self, connection: Connection, room: int, searching: bool) -> int:
        """Claim up to so many entries that were returned and, when searching, entries of dead
        consumers; returns how many."""
        silence = math.ceil(self._visibility_timeout * 1000) if searching else ""
        keys = self._keys
        with self._prefetch.fetching(self, room):
            claimed = await connection.ask(
                *call(CLAIM, keys.streams, keys.group, self._name, RETURNED, room, silence)
            )
        for number, deliveries, entry in claimed:
            self._buffer_entries(keys.streams[number], [entry], deliveries)
        return len(claimed)

    async def _read_once(self, connection: Connection) -> bool:
        """Read new entries without waiting, as far as there is room; returns whether the streams
        that it read had no more than that, so that the next read may wait."""
        room = self._prefetch.room()
        shares = self._shares(room)
        with self._prefetch.fetching(self, room):
            answers = await connection.exchange(
                [self._reading_command(count, None, (stream,)) for stream, count in shares]
            )
        emptied = True
        for (stream, count), answer in zip(shares, answers, strict=True):
            if await self._buffer_answer(answer) < count:
                self._busy.discard(stream)
            else:
                self._busy.add(stream)
                emptied = False
        return emptied

    def _shares(self, room: int) -> list[tuple[str, int]]:
        """How many entries to request from each stream, `room` in total, because COUNT applies to
        each stream: one from each, and the rest shared by the streams that were not exhausted by
        the last read. With room for 10 and three streams, of which only `b` was busy: a 1, b 8,
        c 1. With room for fewer than the streams, they take turns."""
        streams = self._keys.streams
        self._turn = (self._turn + 1) % len(streams)
        chosen = (streams[self._turn :] + streams[: self._turn])[:room]
        busy = [stream for stream in chosen if stream in self._busy] or list(chosen)
        more, left = divmod(room - len(chosen), len(busy))
        extra = {stream: more + (place < left) for place, stream in enumerate(busy)}
        return [(stream, 1 + extra.get(stream, 0)) for stream in chosen]

    async def _read_blocking(self, connection: Connection, seconds: float) -> bool:
        """Wait for the next entries; returns whether the streams had no more than arrived. Then we
        wait again at once, so that a lone message costs one read. If there is room for fewer
        entries than there are streams, and several streams get one at the same instant, `prefetch`
        may be exceeded by the difference."""
        streams = self._keys.streams
        count = self._prefetch.while_waiting(len(streams))
        wait_ms = max(1, min(math.ceil(seconds * 1000), int(_CLAIM_INTERVAL * 1000)))
        [answer] = await connection.exchange([self._reading_command(count, wait_ms, streams)])
        arrived = await self._buffer_answer(answer)
        if arrived >= count:
            self._busy.update(streams)
        return arrived < count

    def _reading_command(self, count: int, wait_ms: int | None, streams: Sequence[str]) -> Command:
        block: Command = () if wait_ms is None else ("BLOCK", wait_ms)
        group = ("XREADGROUP", "GROUP", self._keys.group, self._name)
        return (*group, "COUNT", count, *block, "STREAMS", *streams, *[">"] * len(streams))

    async def _buffer_answer(self, answer: Any) -> int:
        """Buffer the entries in an answer to XREADGROUP, or declare the subscription again if the
        answer is an error that this repairs."""
        if isinstance(answer, ResponseError):
            rejection = self._redis.rejection(answer)
            if code_of(answer) not in _HEALED_BY_DECLARING:
                raise rejection
            await self._redis.run(DECLARE, self._keys.streams, self._keys.group)
            return 0
        for stream, entries in answer or ():
            self._buffer_entries(stream.decode(), entries, 1)
        return sum(len(entries) for _, entries in answer or ())

    def _buffer_entries(self, stream: str, entries: Iterable[Any], deliveries: int) -> None:
        retry = stream == self._keys.retry
        for entry_id, fields in entries:
            token = (stream, entry_id)
            if token in self._pending:
                continue  # claimed from ourselves, after this whole process was suspended
            opened, attempt = read_parcel(fields) if retry else (read_entry(fields), 1)
            self._pending.add(token)
            self._buffer.append(Delivery.of(opened, attempt, deliveries, token))
        self._reader.arrived.set()

    def _returning(self, held: Iterable[Token], *, leaving: bool) -> Any:
        keys = self._keys
        number = {stream: index for index, stream in enumerate(keys.streams)}
        return (
            RETURN_PENDING,
            keys.streams,
            keys.group,
            self._name,
            RETURNED,
            EVERYTHING,
            "leaving" if leaving else "",
            *(b"%d %s" % (number[stream], entry_id) for stream, entry_id in held),
        )
