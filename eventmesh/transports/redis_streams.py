"""Redis Streams, 7.0 or later: a stream per message, a consumer group per subscription.

Under the prefix: `stream:<message>` is read by every subscription's group; `retry:<subscription>`
is a stream that only this subscription reads, `delayed:<subscription>` the sorted set of retries
that are not due, `dead:<subscription>` the stream of its dead letters.

What was sent to Redis is never sent again by the client library: an XADD whose answer got lost may
have been done. Whoever sees Unreachable decides, and knows that it may be a second time.
"""

from __future__ import annotations

import asyncio
import math
import os
import re
import socket
from collections import deque
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import hiredis
import orjson
from redis.asyncio import BlockingConnectionPool
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError
from redis.maint_notifications import MaintNotificationsConfig

from eventmesh.clock import Clock
from eventmesh.errors import PublishError, Unreachable, UsageError
from eventmesh.redact import redact
from eventmesh.transports import redis_scripts as scripts
from eventmesh.transports.base import (
    DeadLetter,
    Delivery,
    Subscription,
    SubscriptionStats,
    TransportOptions,
)
from eventmesh.transports.outcome import Dead, Done, Outcome, RetryAfter
from eventmesh.wire.cloudevents import from_fields, pack, to_fields, unpack
from eventmesh.wire.envelope import Envelope

RETURNED = "returned"
"""The consumer of every group under whose name is pending what was given back."""

LOOK_INTERVAL = 0.5
"""Seconds in which what was given back, or delayed by a process that died, is noticed."""

TIDY_INTERVAL = 5.0
"""Seconds between two trimmings of the streams by one consumer."""

FORGET_AFTER = 3600.0
"""Seconds of silence after which a consumer that holds nothing is deleted."""

ANSWER_TIMEOUT = 10.0
"""Seconds to wait for Redis to answer a batch. Well above LOOK_INTERVAL, the longest a read blocks.
"""

MOVE_LIMIT = 100
TRIM_LIMIT = 100_000
COUNT_LIMIT = 10_000

Command = tuple[str | bytes | int, ...]

_ENTRY_ID = re.compile(r"[0-9]{1,20}-[0-9]{1,20}")
_OURS = {
    "protocol": 2,  # the flat replies that this module reads, on every version of Redis
    "decode_responses": False,
    "retry": Retry(NoBackoff(), 0),  # see the module's docstring
    # ANSWER_TIMEOUT is for a batch; redis-py's would be for each answer, and its wait_for loses
    # cancellations on Python 3.11.
    "socket_timeout": None,
}


@dataclass(frozen=True, slots=True)
class _Keys:
    """Where a subscription lives. `streams` are all that it reads, the retry stream last."""

    group: str
    streams: tuple[str, ...]
    retry: str
    delayed: str
    dead: str


class RedisStreamsTransport:
    """One process's connections to a Redis."""

    atomic_batches = True

    def __init__(self, url: str, clock: Clock, options: TransportOptions) -> None:
        self._clock = clock
        self._options = options
        self._redis = _Redis(url)

    async def connect(self) -> None:
        try:
            await self._redis.ask("PING")
        except TypeError as error:  # redis-py's word on an option that it does not know
            raise UsageError(
                f"The broker URL has an option that cannot be used: {error}. See redis-py's "
                f"documentation of its connections for those that can."
            ) from None

    async def close(self) -> None:
        await self._redis.close()

    async def declare(self, subscriptions: Sequence[Subscription]) -> None:
        for subscription in subscriptions:
            keys = self._keys(subscription)
            await self._redis.run(scripts.DECLARE, keys.streams, keys.group)

    async def publish(self, envelopes: Sequence[Envelope]) -> None:
        if not envelopes:
            return
        stored = await self._redis.transaction(
            [
                ("XADD", self._stream(envelope.name), "*", *_flat(to_fields(envelope).items()))
                for envelope in envelopes
            ]
        )
        refused = {
            envelope.id: str(answer)
            for envelope, answer in zip(envelopes, stored, strict=True)
            if isinstance(answer, ResponseError)
        }
        if refused:
            raise PublishError(refused)

    @asynccontextmanager
    async def consume(
        self, subscription: Subscription, *, prefetch: int
    ) -> AsyncIterator[_RedisConsumer]:
        await self.declare([subscription])
        consumer = _RedisConsumer(
            self._redis,
            self._keys(subscription),
            prefetch,
            self._clock,
            self._options.visibility_timeout,
        )
        try:
            yield consumer
        finally:
            await consumer.leave()

    async def stats(self, subscription: Subscription) -> SubscriptionStats:
        keys = self._keys(subscription)
        counted, delayed, dead = await self._redis.batch(
            [
                _script(scripts.STATS, keys.streams, keys.group, RETURNED, COUNT_LIMIT),
                ("ZCARD", keys.delayed),
                ("XLEN", keys.dead),
            ]
        )
        ready, in_flight, oldest_ms = counted
        return SubscriptionStats(
            ready=ready,
            delayed=delayed,
            in_flight=in_flight,
            dead=dead,
            oldest_age=None if oldest_ms < 0 else oldest_ms / 1000,
        )

    async def dead_letters(self, subscription: Subscription, *, limit: int) -> Sequence[DeadLetter]:
        key = self._keys(subscription).dead
        entries = await self._redis.ask("XRANGE", key, "-", "+", "COUNT", limit)
        return [_dead_letter(subscription.name, entry) for entry in entries]

    async def replay(self, subscription: Subscription, ids: Sequence[str]) -> Sequence[str]:
        keys = self._keys(subscription)
        heads = _flat((id_, _head(1, self._clock)) for id_ in _possible(ids))
        found = await self._redis.run(scripts.REPLAY, (keys.dead, keys.retry), *heads)
        return [id_.decode() for id_ in found]

    async def discard(self, subscription: Subscription, ids: Sequence[str]) -> Sequence[str]:
        key = self._keys(subscription).dead
        possible = _possible(ids)
        deleted = await self._redis.batch([("XDEL", key, id_) for id_ in possible])
        return [id_ for id_, count in zip(possible, deleted, strict=True) if count]

    def _stream(self, message: str) -> str:
        return f"{self._options.prefix}:stream:{message}"

    def _keys(self, subscription: Subscription) -> _Keys:
        prefix, name = self._options.prefix, subscription.name
        retry = f"{prefix}:retry:{name}"
        return _Keys(
            group=name,
            streams=(*(self._stream(message) for message in subscription.messages), retry),
            retry=retry,
            delayed=f"{prefix}:delayed:{name}",
            dead=f"{prefix}:dead:{name}",
        )


class _RedisConsumer:
    """Reads ahead into `_buffer` by one task, so that cancelling `receive` interrupts no read.

    `_mine` are the tokens of all that is pending under this consumer's name, of which those in
    `_buffer` were not handed out yet.
    """

    def __init__(
        self, redis: _Redis, keys: _Keys, prefetch: int, clock: Clock, visibility_timeout: float
    ) -> None:
        self._redis = redis
        self._keys = keys
        self._prefetch = prefetch
        self._clock = clock
        self._visibility_timeout = visibility_timeout
        self._name = f"{socket.gethostname()}-{os.getpid()}-{clock.new_id()}"
        self._mine: set[tuple[str, bytes]] = set()
        self._buffer: deque[Delivery] = deque()
        self._busy: set[str] = set(keys.streams)
        self._turn = 0
        self._leaving = False
        self._client_id: int | None = None
        self._arrived = asyncio.Event()
        self._room_made = asyncio.Event()
        self._delay_asked = asyncio.Event()
        self._reading = asyncio.create_task(self._read())
        self._tasks = [
            self._reading,
            asyncio.create_task(self._keep()),
            asyncio.create_task(self._move_due()),
            asyncio.create_task(self._tidy()),
        ]
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

    async def settle(self, settlements: Sequence[tuple[Delivery, Outcome]]) -> None:
        ours = [pair for pair in settlements if pair[0].token in self._mine]
        await self._redis.batch(self._settling(ours))
        # Only now: a settlement that was cancelled or failed can be tried again, because what it
        # did to the broker it does not do twice.
        self._mine.difference_update(delivery.token for delivery, _ in ours)
        self._room_made.set()
        self._arrived.set()
        if any(isinstance(outcome, RetryAfter) for _, outcome in ours):
            self._delay_asked.set()

    async def leave(self) -> None:
        """Stop reading and give back what is unsettled; quietly, when the broker is gone."""
        self._leaving = True
        self._room_made.set()
        try:
            await self._stop_reading()
        finally:
            for task in self._tasks:
                task.cancel()
        await asyncio.wait(self._tasks)
        with suppress(Unreachable):
            await self._give_back()
        self._mine.clear()
        self._buffer.clear()
        for task in self._tasks:
            error = None if task.cancelled() else task.exception()
            if error is not None and not isinstance(error, Unreachable):
                raise error  # a mistake of ours is never swallowed

    # Settling

    def _settling(self, settlements: Sequence[tuple[Delivery, Outcome]]) -> list[Command]:
        """Commands each of which is one step by itself. Not a MULTI, which a Redis that is out of
        memory refuses whatever is in it: then above all consumers must be able to go on."""
        done: dict[str, list[bytes]] = {}
        others: list[Command] = []
        for delivery, outcome in settlements:
            stream, entry_id = delivery.token
            match outcome:
                case Done():
                    done.setdefault(stream, []).append(entry_id)
                case RetryAfter(delay):
                    others.append(self._retrying(delivery, delay))
                case Dead(reason, error):
                    others.append(self._burying(delivery, reason, error))
        commands: list[Command] = []
        for stream, ids in done.items():
            # Not guarded like the others: it was handled, so whoever has it now may be spared.
            if stream == self._keys.retry:
                commands.append(_script(scripts.FINISH, (stream,), self._keys.group, *ids))
            else:
                commands.append(("XACK", stream, self._keys.group, *ids))
        return commands + others

    def _retrying(self, delivery: Delivery, delay: float) -> Command:
        parcel = _head(delivery.attempt + 1, self._clock) + pack(delivery.envelope)
        if delay > 0:
            return self._resettling(
                delivery, self._keys.delayed, math.ceil(delay * 1000), (parcel,)
            )
        return self._resettling(delivery, self._keys.retry, "", ("parcel", parcel))

    def _burying(self, delivery: Delivery, reason: str, error: str) -> Command:
        fields: dict[str, str | bytes] = {
            "envelope": pack(delivery.envelope),  # first, as the script REPLAY expects
            "reason": _utf8(reason),
            "error": _utf8(error),
            "attempts": str(delivery.attempt),
            "diedat": self._clock.now().isoformat(),
        }
        return self._resettling(delivery, self._keys.dead, "", _flat(fields.items()))

    def _resettling(
        self, delivery: Delivery, target: str, delay_ms: int | str, content: Sequence[str | bytes]
    ) -> Command:
        stream, entry_id = delivery.token
        return _script(
            scripts.RESETTLE,
            (stream, self._keys.retry, target),
            self._keys.group,
            self._name,
            entry_id,
            delay_ms,
            *content,
        )

    # Reading

    async def _read(self) -> None:
        """Keep the buffer full until leaving. All that takes messages is done by this one task, on
        a connection of its own, so that the room for them is counted right."""
        now = self._clock.monotonic
        next_look = next_search = now()
        async with self._redis.connection() as connection:
            self._client_id = await connection.ask("CLIENT", "ID")
            while not self._leaving:
                if not self._worth_reading():
                    self._room_made.clear()
                    await self._room_made.wait()
                    continue
                if now() >= next_look:
                    searching = now() >= next_search
                    await self._claim(connection, searching)
                    next_look = now() + LOOK_INTERVAL
                    if searching:
                        next_search = now() + self._visibility_timeout / 2
                elif not await self._read_once(connection):
                    await self._read_blocking(connection, next_look - now())

    def _room(self) -> int:
        return self._prefetch - len(self._mine)

    def _worth_reading(self) -> bool:
        """While something waits to be handed out, no round trip for little."""
        return self._room() > (self._prefetch // 4 if self._buffer else 0)

    async def _claim(self, connection: _Connection, searching: bool) -> None:
        """Take over what was given back and, when searching, what dead consumers hold."""
        silence = math.ceil(self._visibility_timeout * 1000) if searching else ""
        keys = self._keys
        claimed = await connection.ask(
            *_script(
                scripts.CLAIM, keys.streams, keys.group, self._name, RETURNED, self._room(), silence
            )
        )
        for number, deliveries, entry in claimed:
            self._accept(keys.streams[number], [entry], deliveries)

    async def _read_once(self, connection: _Connection) -> int:
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

    async def _read_blocking(self, connection: _Connection, seconds: float) -> None:
        """Wait for the next message. With room for fewer than there are streams, and messages in
        several of them at the same instant, the buffer may get one of each."""
        streams = self._keys.streams
        count = max(1, self._room() // len(streams))
        wait_ms = max(1, min(math.ceil(seconds * 1000), int(LOOK_INTERVAL * 1000)))
        [answer] = await connection.exchange([self._reading_command(count, wait_ms, streams)])
        if await self._take(answer) >= count:
            self._busy.update(streams)

    def _reading_command(self, count: int, wait_ms: int | None, streams: Sequence[str]) -> Command:
        block: Command = () if wait_ms is None else ("BLOCK", wait_ms)
        group = ("XREADGROUP", "GROUP", self._keys.group, self._name)
        return (*group, "COUNT", count, *block, "STREAMS", *streams, *[">"] * len(streams))

    async def _take(self, answer: Any) -> int:
        """Take in the answer to an XREADGROUP; heal the topology if that is what it says."""
        if isinstance(answer, ResponseError):
            if not str(answer).startswith(("NOGROUP", "UNBLOCKED")):
                raise self._redis.refusal(answer)
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
            if retry:
                envelope, attempt = _open_parcel(fields)
            else:
                envelope, attempt = from_fields(zip(fields[::2], fields[1::2], strict=True)), 1
            self._mine.add(token)
            self._buffer.append(Delivery(envelope, attempt, deliveries, token))
        self._arrived.set()

    # Upkeep

    async def _keep(self) -> None:
        """Show a sign of life for all that is ours, three times per visibility timeout."""
        while True:
            await self._clock.sleep(self._visibility_timeout / 3)
            for stream in self._keys.streams:
                ids = [entry_id for key, entry_id in self._mine if key == stream]
                if ids:
                    await self._redis.run(
                        scripts.KEEP, (stream,), self._keys.group, self._name, *ids
                    )

    async def _move_due(self) -> None:
        """Move delayed retries to the retry stream as soon as they are due."""
        keys = self._keys
        while True:
            self._delay_asked.clear()
            next_ms = await self._redis.run(
                scripts.MOVE_DUE, (keys.delayed, keys.retry), MOVE_LIMIT
            )
            pause = LOOK_INTERVAL if next_ms < 0 else min(next_ms / 1000, LOOK_INTERVAL)
            waits = [
                asyncio.ensure_future(self._clock.sleep(pause)),
                asyncio.ensure_future(self._delay_asked.wait()),
            ]
            try:
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for wait in waits:
                    wait.cancel()

    async def _tidy(self) -> None:
        """Trim what every group has acknowledged; forget consumers that are long gone."""
        keys = self._keys
        silence_ms = int(FORGET_AFTER * 1000)
        while True:
            await self._clock.sleep(TIDY_INTERVAL)
            for stream in keys.streams:
                await self._redis.run(scripts.FORGET, (stream,), keys.group, silence_ms)
                if stream != keys.retry:
                    while await self._redis.run(scripts.TRIM, (stream,), TRIM_LIMIT):
                        pass

    # Leaving

    async def _stop_reading(self) -> None:
        """Let the reader end its read by itself: if its connection were cut, Redis could still
        deliver to it. Where CLIENT UNBLOCK is forbidden, the read ends after LOOK_INTERVAL."""
        while not self._reading.done():
            if self._client_id is not None:
                with suppress(Unreachable):
                    await self._redis.ask("CLIENT", "UNBLOCK", self._client_id)
            await asyncio.wait([self._reading], timeout=0.01)

    async def _give_back(self) -> None:
        keys = self._keys
        number = {stream: index for index, stream in enumerate(keys.streams)}
        unseen = [
            b"%d %s" % (number[stream], entry_id)
            for stream, entry_id in (delivery.token for delivery in self._buffer)
        ]
        await self._redis.run(
            scripts.GIVE_BACK,
            keys.streams,
            keys.group,
            self._name,
            RETURNED,
            scripts.EVERYTHING,
            *unseen,
        )


class _Redis:
    """The connections of a process; the one place where Redis's errors become ours."""

    def __init__(self, url: str) -> None:
        self._shown_url = redact(url)
        self._pool: Any  # for redis-py leaves its methods without types
        try:
            self._pool = BlockingConnectionPool.from_url(
                url,
                max_connections=16,
                socket_connect_timeout=ANSWER_TIMEOUT,
                # Off, because the pool that listens for notifications no longer checks whether the
                # server has closed a connection before handing it out.
                maint_notifications_config=MaintNotificationsConfig(enabled=False),
                **_OURS,
            )
        except ValueError as error:
            raise UsageError(
                f"The broker URL {self._shown_url!r} cannot be understood "
                f"({str(error).rstrip('.')}). Write it as redis://user:password@host:6379/0, or "
                f"with rediss:// for TLS."
            ) from error
        self._pool.connection_kwargs.update(_OURS)  # whatever the options in the URL say

    async def close(self) -> None:
        with suppress(Unreachable):  # closed is closed
            async with self.answering():
                await self._pool.disconnect()

    async def ask(self, *command: str | bytes | int) -> Any:
        """The answer to one command."""
        async with self._pooled() as connection:
            return await connection.ask(*command)

    async def run(self, script: str, keys: Sequence[str], *arguments: str | bytes | int) -> Any:
        """What a script returns."""
        return await self.ask(*_script(script, keys, *arguments))

    async def batch(self, commands: Sequence[Command]) -> list[Any]:
        """The answers to these commands, sent at once and done one by one."""
        if not commands:
            return []
        async with self._pooled() as connection:
            answers = await connection.exchange(commands)
        for answer in answers:
            if isinstance(answer, ResponseError):
                raise self.refusal(answer)
        return answers

    async def transaction(self, commands: Sequence[Command]) -> list[Any]:
        """The answers to these commands, done as one step; Unreachable when none was done.

        A command that Redis took and that failed in itself has its error as answer.
        """
        async with self._pooled() as connection:
            *queued, answers = await connection.exchange([("MULTI",), *commands, ("EXEC",)])
        if isinstance(answers, ResponseError):  # the cause is told where it was met first
            raise self.refusal(
                next((answer for answer in queued if isinstance(answer, ResponseError)), answers)
            )
        return list(answers)

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[_Connection]:
        """A connection outside the pool, for reads that block; cut on leaving."""
        connection = self._pool.make_connection()
        try:
            async with self.answering():
                await connection.connect()
            yield _Connection(self, connection)
        finally:
            await connection.disconnect(nowait=True)

    @asynccontextmanager
    async def _pooled(self) -> AsyncIterator[_Connection]:
        async with self.answering():
            connection = await self._pool.get_connection()
        try:
            yield _Connection(self, connection)
        finally:
            await asyncio.shield(self._pool.release(connection))

    @asynccontextmanager
    async def answering(self) -> AsyncIterator[None]:
        """What is inside takes no longer than ANSWER_TIMEOUT, and fails as Unreachable."""
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT):
                yield
        except ResponseError as error:
            raise self.refusal(error) from error
        except TimeoutError as error:
            raise self._silence(f"it took over {ANSWER_TIMEOUT:.0f} s") from error
        except (RedisError, OSError) as error:
            raise self._silence(str(error)) from error

    def _silence(self, why: str) -> Unreachable:
        return Unreachable(
            f"Redis at {self._shown_url} does not answer: {why.rstrip('.')}. Start it, or correct "
            f"EVENTMESH_BROKER_URL."
        )

    def refusal(self, error: ResponseError) -> Unreachable:
        """The error for a Redis that answers, and does not do what is asked."""
        return Unreachable(
            f"Redis at {self._shown_url} refuses: {str(error).rstrip('.')}. Correct its settings "
            f"or the rights of its user; its log tells more."
        )


class _Connection:
    """One connection, spoken to in batches below redis-py's client, whose packing of commands and
    handling of every single answer take half the throughput (measured: 43,000 XADD/s to 107,000).
    """

    def __init__(self, redis: _Redis, connection: AbstractConnection) -> None:
        self._redis = redis
        self._connection = connection

    async def ask(self, *command: str | bytes | int) -> Any:
        [answer] = await self.exchange([command])
        if isinstance(answer, ResponseError):
            raise self._redis.refusal(answer)
        return answer

    async def exchange(self, commands: Sequence[Command]) -> list[Any]:
        """The answers to these commands, in one round trip; an error is returned as the answer."""
        answers: list[Any] = []
        async with self._redis.answering():
            try:
                await self._connection.send_packed_command(
                    # The stub says: tuples of one.
                    b"".join(hiredis.pack_command(c) for c in commands)  # type: ignore[arg-type]
                )
                for _ in commands:
                    answers.append(await self._answer())
            except BaseException:
                # What is still to come must not be taken for the answer to the next command.
                await self._connection.disconnect(nowait=True)
                raise
        return answers

    async def _answer(self) -> Any:
        try:
            return await self._connection.read_response()
        except ResponseError as error:
            return error


def _script(script: str, keys: Sequence[str], *arguments: str | bytes | int) -> Command:
    # EVAL and not EVALSHA: Redis knows the text by its hash anyway, and there is no NOSCRIPT to
    # be met in the middle of a MULTI.
    return ("EVAL", script, len(keys), *keys, *arguments)


def _flat(pairs: Iterable[tuple[str, str | bytes]]) -> list[str | bytes]:
    return [part for pair in pairs for part in pair]


def _head(attempt: int, clock: Clock) -> bytes:
    """The first line of a parcel. The id makes it unlike any other in the set of the delayed."""
    return b"%d %s\n" % (attempt, clock.new_id().encode())


def _open_parcel(fields: Sequence[bytes]) -> tuple[Envelope, int]:
    """Envelope and attempt of an entry in the retry stream; garbage comes out as an envelope
    without attributes, so that it is kept as a dead letter."""
    parcel = fields[1]
    head, _, packed = parcel.partition(b"\n")
    try:
        return unpack(packed), int(head.split()[0])
    except (orjson.JSONDecodeError, ValueError, IndexError):
        return Envelope({}, parcel), 1


def _dead_letter(subscription: str, entry: Any) -> DeadLetter:
    entry_id, flat = entry
    fields = dict(zip(flat[::2], flat[1::2], strict=True))
    return DeadLetter(
        id=entry_id.decode(),
        subscription=subscription,
        envelope=unpack(fields[b"envelope"]),
        reason=fields[b"reason"].decode(),
        error=fields[b"error"].decode(),
        attempts=int(fields[b"attempts"]),
        died_at=datetime.fromisoformat(fields[b"diedat"].decode()),
    )


def _possible(ids: Sequence[str]) -> list[str]:
    """Those that are an entry's id at all, each once. Redis refuses a command with any other."""
    return [
        id_
        for id_ in dict.fromkeys(ids)
        if _ENTRY_ID.fullmatch(id_) and all(int(part) < 2**64 for part in id_.split("-"))
    ]


def _utf8(text: str) -> bytes:
    return text.encode(errors="backslashreplace")
