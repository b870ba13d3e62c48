"""What only the SQLite transport promises. See tests/conformance for what all promise."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from eventmesh.clock import Clock, SystemClock
from eventmesh.errors import UsageError
from eventmesh.testing.clock import ManualClock
from eventmesh.transports.base import (
    Consumer,
    DeadLetter,
    Delivery,
    Subscription,
    TransportOptions,
    publish_or_raise,
)
from eventmesh.transports.outcome import DONE, Dead, RetryAfter
from eventmesh.transports.sqlite import commit_watcher
from eventmesh.transports.sqlite import rows as sqlite_rows
from eventmesh.transports.sqlite.file import path_of
from eventmesh.transports.sqlite.transport import SqliteTransport
from eventmesh.wire.envelope import Envelope

PAID = Subscription("orders.note_payment", ("payments.paid",))


@pytest.fixture
async def transport(tmp_path: Path) -> AsyncIterator[SqliteTransport]:
    url = f"sqlite:///{tmp_path}/broker.db"
    transport = SqliteTransport(url, SystemClock(), TransportOptions())
    await transport.connect()
    await transport.declare([PAID])
    yield transport
    await transport.close()


async def dead_letter_message(transport: SqliteTransport, message_id: str) -> str:
    """Publish and dead-letter a message with this id; returns the id of the dead letter."""
    await publish_or_raise(transport, [Envelope({"id": message_id, "type": "payments.paid"}, b"")])
    async with transport.consume(PAID, prefetch=1) as consumer:
        [delivery] = await asyncio.wait_for(consumer.receive(1), 60)
        await consumer.settle([(delivery, Dead("no"))])
    [letter] = await transport.dead_letters(PAID, limit=9)
    return letter.id


async def test_a_dead_letter_given_twice_is_replayed_once(transport: SqliteTransport) -> None:
    letter = await dead_letter_message(transport, "1")
    assert await transport.replay(PAID, [letter, letter]) == [letter]
    stats = await transport.stats(PAID)
    assert (stats.ready, stats.dead) == (1, 0)


async def test_a_dead_letter_given_twice_is_discarded_once(transport: SqliteTransport) -> None:
    letter = await dead_letter_message(transport, "1")
    assert await transport.discard(PAID, [letter, letter]) == [letter]
    stats = await transport.stats(PAID)
    assert (stats.ready, stats.dead) == (0, 0)


@pytest.mark.parametrize("act", ["replay", "discard"])
async def test_only_the_dead_letters_of_the_given_messages_are_read(
    act: str, transport: SqliteTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Publishers cannot write while dead letters are read, so reading them all would block."""
    await publish_or_raise(transport, messages("1", "2", "3", "1", "4"))
    async with transport.consume(PAID, prefetch=9) as consumer:
        await consumer.settle([(each, Dead("no")) for each in await take(consumer, 5)])
    ids = {each.envelope.id: each.id for each in await transport.dead_letters(PAID, limit=9)}
    read, dead_letter = [], sqlite_rows.dead_letter

    def counted(*row: Any) -> DeadLetter:
        read.append(dead_letter(*row))
        return read[-1]

    monkeypatch.setattr(sqlite_rows, "dead_letter", counted)
    assert await getattr(transport, act)(PAID, [ids["1"], "other", "\udc80"]) == [ids["1"]]
    assert {each.envelope.id for each in read} == {"1"}
    stats = await transport.stats(PAID)
    assert (stats.ready, stats.dead) == (1 if act == "replay" else 0, 3)


@pytest.mark.parametrize(
    ("url", "path"), [("sqlite:///a/b.db", "a/b.db"), ("sqlite:////a/b.db", "/a/b.db")]
)
def test_a_url_has_a_relative_or_an_absolute_path(url: str, path: str) -> None:
    assert path_of(url) == Path(path)


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///", "sqlite:a.db"])
def test_a_url_without_a_file_is_rejected(url: str) -> None:
    with pytest.raises(UsageError, match="does not name a file: write sqlite:///"):
        path_of(url)


# Rows that other programs have written to the file

INVALID_ROWS: list[tuple[object, object, object]] = [
    # attributes, data, attempt
    (b"[1]", b"", 1),
    ("null", "text", 1),
    (b'{"id": 7}', b"\xff", 2),
    (b"\xff", 5, 1),
    ("", 1.5, 10**18),
    (b"{}", b"{}", "many"),
]


async def test_invalid_rows_are_delivered_and_can_be_dead_lettered(
    transport: SqliteTransport, tmp_path: Path
) -> None:
    with closing(sqlite3.connect(tmp_path / "broker.db")) as file, file:
        file.executemany(
            "INSERT INTO queue (subscription, attributes, data, due_at, attempt)"
            " VALUES (?, ?, ?, 0, ?)",
            [(PAID.name, *row) for row in INVALID_ROWS],
        )
        file.executemany(
            "INSERT INTO dead_letter"
            " (id, subscription, attributes, data, reason, error, attempts, died_at)"
            " VALUES (?, ?, ?, ?, CAST(? AS TEXT), ?, ?, ?)",
            [
                (str(number), PAID.name, attributes, data, b"\xff", b"\xff", attempt, "never")
                for number, (attributes, data, attempt) in enumerate(INVALID_ROWS)
            ],
        )
    await publish_or_raise(transport, messages("1"))
    census = await transport.census([PAID], PAID.messages)
    assert sum(lot.number for lot in census.lots.values()) == 2 * len(INVALID_ROWS) + 1
    async with transport.consume(PAID, prefetch=10) as consumer:
        *invalid, good = await take(consumer, len(INVALID_ROWS) + 1)
        assert good.envelope.id == "1"
        assert [bool(delivery.unreadable) for delivery in invalid] == [True] * 5 + [False]
        await consumer.settle([(good, DONE), (invalid[0], RetryAfter(0.0))])
        await consumer.settle([(delivery, Dead("no")) for delivery in invalid[1:]])
        await consumer.settle([(each, Dead("no")) for each in await take(consumer, 1)])
    letters = await transport.dead_letters(PAID, limit=100)
    assert len(letters) == 2 * len(INVALID_ROWS)
    ids = [letter.id for letter in letters]
    assert await transport.replay(PAID, ids) == ids
    assert (await transport.stats(PAID)).ready == len(ids)


# Jumps of the wall clock

HOUR = 3600.0
JUMPS = [-HOUR, HOUR]


class JumpingClock(SystemClock):
    """The system clock with the wall clock set forward by `jump` seconds.

    With `uptime`, its monotonic clock is that of a machine which was booted that many seconds ago.
    """

    def __init__(self, jump: float = 0.0, uptime: float | None = None) -> None:
        self.jump = jump
        self._started = 0.0 if uptime is None else time.monotonic() - uptime

    def now(self) -> datetime:
        return super().now() + timedelta(seconds=self.jump)

    def monotonic(self) -> float:
        return super().monotonic() - self._started


@asynccontextmanager
async def opened(folder: Path, clock: Clock) -> AsyncIterator[SqliteTransport]:
    options = TransportOptions(visibility_timeout=60.0)  # more than a slow machine stands still for
    transport = SqliteTransport(f"sqlite:///{folder}/broker.db", clock, options)
    await transport.connect()
    try:
        await transport.declare([PAID])
        yield transport
    finally:
        await transport.close()


def messages(*ids: str) -> list[Envelope]:
    return [Envelope({"id": each, "type": "payments.paid"}, b"") for each in ids]


async def take(consumer: Consumer, count: int, seconds: float = 60.0) -> list[Delivery]:
    received: list[Delivery] = []
    async with asyncio.timeout(seconds):
        while len(received) < count:
            received += await consumer.receive(count - len(received))
    return received


async def take_ids(transport: SqliteTransport, count: int, seconds: float = 60.0) -> list[str]:
    """Receive and settle this many messages; their ids."""
    async with transport.consume(PAID, prefetch=count) as consumer:
        deliveries = await take(consumer, count, seconds)
        await consumer.settle([(delivery, DONE) for delivery in deliveries])
    return [delivery.envelope.id for delivery in deliveries]


async def receives_nothing(consumer: Consumer, seconds: float) -> bool:
    try:
        await take(consumer, 1, seconds)
    except TimeoutError:
        return True
    return False


@pytest.mark.parametrize("jump", JUMPS)
async def test_a_jump_of_the_wall_clock_does_not_delay_or_reorder_messages(
    jump: float, tmp_path: Path
) -> None:
    clock = JumpingClock()
    async with opened(tmp_path, clock) as transport:
        await publish_or_raise(transport, messages("1", "2"))
        clock.jump = jump
        await publish_or_raise(transport, messages("3"))
        async with opened(tmp_path, JumpingClock(jump)) as later:
            await publish_or_raise(later, messages("4"))
            assert await take_ids(later, 4) == ["1", "2", "3", "4"]
            assert (await transport.stats(PAID)).ready == 0


@pytest.mark.parametrize("jump", JUMPS)
async def test_a_jump_of_the_wall_clock_does_not_shorten_the_delay_of_a_retry(
    jump: float, tmp_path: Path
) -> None:
    clock = JumpingClock()
    async with opened(tmp_path, clock) as transport:
        await publish_or_raise(transport, messages("1"))
        async with transport.consume(PAID, prefetch=1) as consumer:
            retried_at = time.monotonic()
            await consumer.settle([(each, RetryAfter(0.5)) for each in await take(consumer, 1)])
            clock.jump = jump
        async with (
            opened(tmp_path, JumpingClock(jump)) as later,
            later.consume(PAID, prefetch=1) as consumer,
        ):
            await take(consumer, 1)
            assert time.monotonic() - retried_at >= 0.5


@pytest.mark.parametrize("jump", JUMPS)
async def test_a_jump_of_the_wall_clock_does_not_expire_the_lease_of_a_live_worker(
    jump: float, tmp_path: Path
) -> None:
    clock = JumpingClock()
    async with opened(tmp_path, clock) as transport:
        await publish_or_raise(transport, messages("1"))
        async with transport.consume(PAID, prefetch=1) as live:
            [held] = await take(live, 1)
            clock.jump = jump
            async with (
                opened(tmp_path, JumpingClock(jump)) as other,
                other.consume(PAID, prefetch=1) as consumer,
            ):
                assert await receives_nothing(consumer, 1.0)
                await live.settle([(held, DONE)])


@pytest.mark.parametrize("jump", JUMPS)
async def test_a_jump_of_the_wall_clock_does_not_keep_the_lease_of_a_dead_worker(
    jump: float, tmp_path: Path
) -> None:
    async with opened(tmp_path, JumpingClock()) as transport:
        await publish_or_raise(transport, messages("1"))
        await transport._connection.run(lambda store: store.lease(PAID.name, "dead", 1, 0.6))
    async with opened(tmp_path, JumpingClock(jump)) as later:
        assert await take_ids(later, 1) == ["1"]


@pytest.mark.parametrize("jump", [0.0, *JUMPS])
async def test_messages_are_delivered_after_a_reboot(jump: float, tmp_path: Path) -> None:
    """After a reboot, the monotonic clock starts at zero and the wall clock may be wrong."""
    async with opened(tmp_path, JumpingClock(uptime=1e6)) as transport:
        await publish_or_raise(transport, messages("1", "2", "3"))
        async with transport.consume(PAID, prefetch=1) as consumer:
            await consumer.settle([(each, RetryAfter(0.3)) for each in await take(consumer, 1)])
        await transport._connection.run(lambda store: store.lease(PAID.name, "dead", 1, 0.6))
    async with opened(tmp_path, JumpingClock(jump, uptime=10)) as later:
        await publish_or_raise(later, messages("4"))
        assert sorted(await take_ids(later, 4)) == ["1", "2", "3", "4"]


async def test_a_file_with_only_a_delayed_message_delivers_it_after_a_reboot(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path, JumpingClock(uptime=1e6)) as transport:
        await publish_or_raise(transport, messages("1"))
        async with transport.consume(PAID, prefetch=1) as consumer:
            await consumer.settle([(each, RetryAfter(0.3)) for each in await take(consumer, 1)])
    async with opened(tmp_path, JumpingClock(-HOUR, uptime=10)) as later:
        assert await take_ids(later, 1) == ["1"]


# Polling


class PollCounter(ManualClock):
    """Counts the sleeps that are as short as a poll."""

    polls = 0

    async def sleep(self, seconds: float) -> None:
        self.polls += seconds <= commit_watcher.LONGEST_POLL
        await super().sleep(seconds)


async def count_polls(clock: PollCounter, seconds: float) -> int:
    before = clock.polls
    await clock.advance(seconds)
    return clock.polls - before


async def test_five_consumers_share_one_poll_that_slows_down_while_nothing_changes(
    tmp_path: Path,
) -> None:
    clock = PollCounter()
    others = [Subscription(f"orders.{number}", ("orders.placed",)) for number in range(5)]
    async with opened(tmp_path, clock) as transport, asyncio.TaskGroup() as tasks:
        waiting = [tasks.create_task(wait_for_one(transport, each)) for each in others]
        watcher = transport._connection._watcher
        assert watcher is not None

        async def all_wait() -> None:
            """After a change, every consumer reads the file, which takes real time."""
            for _ in range(3):
                await clock.advance(commit_watcher.LONGEST_POLL)
                await until(lambda: len(watcher._waiting) == 5)

        await all_wait()
        assert await count_polls(clock, 0.5) >= 200
        await clock.advance(30.0)
        assert await count_polls(clock, 1.0) <= 1 / commit_watcher.LONGEST_POLL + 1
        await publish_or_raise(transport, messages("1"))
        await all_wait()
        assert await count_polls(clock, 0.5) >= 200
        for each in waiting:
            each.cancel()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110  # there is no event to wait for
            await asyncio.sleep(0.001)


async def wait_for_one(transport: SqliteTransport, subscription: Subscription) -> None:
    async with transport.consume(subscription, prefetch=1) as consumer:
        await consumer.receive(1)


async def test_messages_published_by_the_same_process_are_received_without_a_poll(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commit_watcher, "SHORTEST_POLL", 60.0)
    monkeypatch.setattr(commit_watcher, "LONGEST_POLL", 60.0)
    async with (
        opened(tmp_path, SystemClock()) as transport,
        transport.consume(PAID, prefetch=1) as consumer,
    ):
        for outcome in (RetryAfter(0.0), DONE):
            receiving = asyncio.ensure_future(take(consumer, 1))
            await asyncio.sleep(0.05)  # it has read the file once, and waits
            if outcome != DONE:
                await publish_or_raise(transport, messages("1"))
            await consumer.settle([(each, outcome) for each in await receiving])
