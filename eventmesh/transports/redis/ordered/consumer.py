"""Consumes an ordered subscription: leases keys, delivers what is in their mailboxes, settles it.

Publishers add messages to streams as for every subscription. Whichever consumer has room runs a
script that moves new entries of the streams to the mailboxes of their keys, and leases keys that
are ready: nobody needs to own anything but the keys whose messages it has. For example, the streams
hold a1 b1 a2, and two consumers have room for two:

| step                   | mailboxes     | leased                |
|------------------------|---------------|-----------------------|
| first consumer takes   | a: a1, b: b1  | a, b by the first     |
| second consumer takes  | a: a1 a2      | …: it gets nothing    |
| first settles a1 as done | a: a2       | b by the first        |
| second, woken, takes   | a: a2         | a by the second       |

One task reads (see `reader`). It fills a buffer, which `receive` empties, so that cancelling
`receive` interrupts nothing. While there is nothing to take, it waits for new entries of the
streams, or for a wake-up by a consumer that made a key ready.

A consumer that does not send heartbeats for the visibility timeout counts as dead, and the next to
take gives its keys back. When it wakes up it finds them gone, and settles nothing of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import structlog
from redis.exceptions import ResponseError

from eventmesh.clock import Clock
from eventmesh.transports.base import Delivery, Order
from eventmesh.transports.outcome import Dead, Outcome, RetryAfter
from eventmesh.transports.redis.connection import Connection, ConnectionLost, Redis
from eventmesh.transports.redis.entries import dead_letter_fields, read_record
from eventmesh.transports.redis.keys import Keys
from eventmesh.transports.redis.ordered.runs import Holdings, Run, Token
from eventmesh.transports.redis.ordered.upkeep import OrderedUpkeep
from eventmesh.transports.redis.prefetch import Prefetch
from eventmesh.transports.redis.reader import LONGEST_WAIT, Reader, unique_consumer_name
from eventmesh.transports.redis.scripts.common import Command, call
from eventmesh.transports.redis.scripts.consuming import DECLARE
from eventmesh.transports.redis.scripts.ordering import (
    ADOPT,
    DECLARE_ORDER,
    ENTER,
    LEAVE,
    SETTLE,
    TAKE,
)

REJECTED_DELAY = 30.0
"""Seconds until a message is delivered again that Redis could not store as a dead letter, because
something else is at that key."""

MOST_IN_MAILBOXES = 100_000
"""How many messages of a subscription are in mailboxes at most; others stay in the streams. If that
many wait behind failed ones, nothing else is delivered until some of these are settled."""

MOST_AT_ONCE = 1_000
"""How many messages a script moves or gives out: a few milliseconds of Redis's time."""


class OrderedConsumer:
    """See the module."""

    def __init__(
        self,
        redis: Redis,
        keys: Keys,
        order: Order,
        prefetch: Prefetch,
        clock: Clock,
        visibility_timeout: float,
    ) -> None:
        self._redis = redis
        self._keys = keys
        self._order = order
        self._prefetch = prefetch
        self._clock = clock
        self._visibility_timeout = visibility_timeout
        self._lifetime_ms = math.ceil(visibility_timeout * 1000)
        self._name = unique_consumer_name(clock)
        self._holdings = Holdings()
        self._epoch = 0
        self._lost = False
        self._has_warned = False
        self._alive_until = -math.inf
        self._log: structlog.stdlib.BoundLogger = structlog.get_logger("eventmesh.redis")
        self._reader = Reader(redis, clock, prefetch, self._connected, self._fill)
        self._upkeep = OrderedUpkeep(redis, keys, self._name, clock, visibility_timeout, self)
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
        # After a pause of this whole process, others may have our keys.
        if self._clock.monotonic() >= self._alive_until:
            return []
        taken = self._holdings.take(min(limit, self._prefetch.receivable))
        if taken:
            self._reader.room_made.set()
        return taken

    @property
    def held(self) -> int:
        return self._holdings.unsettled

    @property
    def received(self) -> int:
        return self._holdings.unsettled - self._holdings.buffered

    def own(
        self, settlements: Sequence[tuple[Delivery, Outcome]]
    ) -> Sequence[tuple[Delivery, Outcome]]:
        """Those whose deliveries this consumer still has."""
        return [pair for pair in settlements if self._holdings.has(pair[0])]

    async def settle(self, settlements: Sequence[tuple[Delivery, Outcome]]) -> None:
        runs = self._holdings.settle(settlements)
        if not runs:
            return
        told = [(run, run.settled, run.is_over) for run in runs]  # others settle meanwhile
        done = [run for run in runs if run.settled == run.size]
        command = self._script(
            SETTLE,
            self._name,
            math.ceil(REJECTED_DELAY * 1000),
            len(done),
            *(part for run in done for part in (run.tag, run.lease)),
            *(part for run in runs if run.settled < run.size for part in self._settlement(run)),
        )
        try:
            errors = await self._redis.ask(*command)
        except ConnectionLost:  # settling is idempotent, so we retry once on a fresh connection
            errors = await self._redis.ask(*command)
        for run, settled, is_over in told:
            self._holdings.forget(run, settled, is_over=is_over)
        self._reader.room_made.set()
        self._reader.arrived.set()
        if errors:
            self._log.warning(
                "messages could not be settled",
                subscription=self._keys.group,
                messages=len(errors),
                error=str(self._redis.rejection(ResponseError(errors[0].decode()))),
                retry_after=REJECTED_DELAY,
            )

    def _settlement(self, run: Run) -> list[str | bytes | int]:
        """The arguments of SETTLE for a run that is not done."""
        part: list[str | bytes | int] = [run.tag, run.lease, run.settled]
        match run.failed:
            case None:
                return [*part, "done", 0]
            case (_, RetryAfter(delay)):
                return [*part, "retry", 1, math.ceil(delay * 1000)]
            case (delivery, Dead() as death):
                fields = dead_letter_fields(delivery, death, self._clock)
                return [*part, "dead", len(fields), *fields]

    async def leave(self) -> bool:
        """Stop reading and give back what is unsettled. False if Redis is unreachable: the caller
        then calls `return_pending` once it is back."""
        return await self._reader.leave(self.return_pending)

    async def return_pending(self) -> None:
        """Give back everything, which others can take at once. Ends this consumer."""
        received = [
            part
            for run in self._holdings.runs()
            if run.received > run.settled
            for part in (run.tag, run.received)
        ]
        await self._redis.ask(*self._script(LEAVE, self._name, *received))
        self._holdings.keep_only([])

    def beaten(self, at: float, *, is_alive: bool) -> None:
        """Redis answered a heartbeat that was sent at this time."""
        if is_alive:
            self._alive_until = at + self._visibility_timeout
            self._reader.arrived.set()
        else:
            self._lost = True
            self._reader.room_made.set()

    def _script(self, script: str, *arguments: str | bytes | int) -> Command:
        return call(script, self._keys.ordered, self._keys.group, *arguments)

    # Reading

    async def _connected(self, connection: Connection) -> None:
        self._epoch += 1
        await self._enter(connection)

    async def _enter(self, connection: Connection) -> None:
        """Register this consumer, and forget keys that others have by now."""
        begun = self._clock.monotonic()
        kept = await connection.ask(
            *self._script(
                ENTER,
                self._name,
                self._epoch,
                "" if self._reader.client_id is None else self._reader.client_id,
                self._lifetime_ms,
                *(part for run in self._holdings.runs() for part in (run.tag, run.lease)),
            )
        )
        self._holdings.keep_only(kept)
        self._lost = False
        self.beaten(begun, is_alive=True)

    async def _fill(self, connection: Connection) -> None:
        """Keep the buffer full until leaving."""
        while not self._reader.is_leaving:
            if self._lost:
                self._prefetch.leave_queue(self)
                await self._enter(connection)
            if not self._prefetch.may_fetch(self):
                await self._reader.wait_for_room()
                continue
            begun = self._clock.monotonic()
            room = min(self._prefetch.room(), MOST_AT_ONCE)
            with self._prefetch.fetching(self, room):
                status, *answer = await connection.ask(
                    *self._script(
                        TAKE, self._name, self._epoch, room, self._lifetime_ms, MOST_IN_MAILBOXES
                    )
                )
            match status:
                case b"taken":
                    self._alive_until = begun + self._visibility_timeout
                    await self._taken(connection, *answer)
                case b"undeclared":
                    await self._declare(connection)
                case b"lost":
                    self._lost = True
                case b"old":
                    await self._adopt(connection)

    async def _taken(
        self,
        connection: Connection,
        lease: int,
        taken: Sequence[tuple[bytes, Sequence[bytes]]],
        more: int,
        due_ms: int,
        after: Sequence[bytes],
        woken: bytes,
    ) -> None:
        """Buffer what was taken; wait for more if there is room for it and none is there."""
        for tag, records in taken:
            run = Run(tag, lease, len(records))
            deliveries = []
            for place, record in enumerate(records):
                opened, attempt, before = read_record(record)
                deliveries.append(Delivery.of(opened, attempt, before + 1, Token(run, place)))
            self._holdings.add(run, deliveries)
        if taken:
            self._reader.arrived.set()
        if not more and self._prefetch.has_room:
            wait = LONGEST_WAIT if due_ms < 0 else min(due_ms / 1000, LONGEST_WAIT)
            await self._wait(connection, wait, after, woken)

    async def _wait(
        self, connection: Connection, seconds: float, after: Sequence[bytes], woken: bytes
    ) -> None:
        """Wait for an entry behind these ids, in the streams (or in none) and in `wake`."""
        streams = [*self._keys.streams[: len(after)], self._keys.wake]
        wait_ms = max(1, math.ceil(seconds * 1000))
        waiting: Command = ("XREAD", "COUNT", 1, "BLOCK", wait_ms, "STREAMS", *streams)
        [answer] = await connection.exchange([(*waiting, *after, woken)])
        if isinstance(answer, ResponseError):
            rejection = self._redis.rejection(answer)
            if rejection.code != "UNBLOCKED":
                raise rejection

    async def _adopt(self, connection: Connection) -> None:
        """Move messages from before the subscription was ordered to mailboxes."""
        if await connection.ask(*self._script(ADOPT, self._lifetime_ms, MOST_AT_ONCE)):
            return
        if not self._has_warned:
            self._has_warned = True
            self._log.warning(
                "waiting for a worker without order",
                subscription=self._keys.group,
                advice="stop all workers of the subscription that run the code without order",
            )
        await self._wait(connection, LONGEST_WAIT, (), b"$")

    async def _declare(self, connection: Connection) -> None:
        keys = self._keys
        await connection.ask(*call(DECLARE, keys.streams, keys.group))
        await connection.ask(*self._script(DECLARE_ORDER, self._order.after_dead))
