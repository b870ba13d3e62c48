"""What is particular to the SQLite transport. See tests/conformance for what all promise."""

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
from eventmesh.transports.sqlite import rows as sqlite_rows
from eventmesh.transports.sqlite import transport as sqlite
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


async def bury(transport: SqliteTransport, message_id: str) -> str:
    """Make a dead letter of a message of this id; returns its id as a dead letter."""
    await publish_or_raise(transport, [Envelope({"id": message_id, "type": "payments.paid"}, b"")])
    async with transport.consume(PAID, prefetch=1) as consumer:
        [delivery] = await asyncio.wait_for(consumer.receive(1), 60)
        await consumer.settle([(delivery, Dead("no"))])
    [letter] = await transport.dead_letters(PAID, limit=9)
    return letter.id


async def test_a_dead_letter_named_twice_is_replayed_once(transport: SqliteTransport) -> None:
    letter = await bury(transport, "1")
    assert await transport.replay(PAID, [letter, letter]) == [letter]
    stats = await transport.stats(PAID)
    assert (stats.ready, stats.dead) == (1, 0)


async def test_a_dead_letter_named_twice_is_discarded_once(transport: SqliteTransport) -> None:
    letter = await bury(transport, "1")
    assert await transport.discard(PAID, [letter, letter]) == [letter]
    stats = await transport.stats(PAID)
    assert (stats.ready, stats.dead) == (0, 0)


@pytest.mark.parametrize("act", ["replay", "discard"])
async def test_of_many_dead_letters_only_those_of_the_named_message_are_read(
    act: str, transport: SqliteTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every publisher waits while they are read."""
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
def test_a_url_names_a_path_from_here_or_an_absolute_one(url: str, path: str) -> None:
    assert path_of(url) == Path(path)


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///", "sqlite:a.db"])
def test_a_url_without_file_is_refused(url: str) -> None:
    with pytest.raises(UsageError, match="names no file: write sqlite:///"):
        path_of(url)


# --- what others have written to the file ---

ODD_ROWS: list[tuple[object, object, object]] = [
    # attributes, data, attempt
    (b"[1]", b"", 1),
    ("null", "text", 1),
    (b'{"id": 7}', b"\xff", 2),
    (b"\xff", 5, 1),
    ("", 1.5, 10**18),
    (b"{}", b"{}", "many"),
]


async def test_odd_rows_are_handed_out_and_dead_lettered(
    transport: SqliteTransport, tmp_path: Path
) -> None:
    with closing(sqlite3.connect(tmp_path / "broker.db")) as file, file:
        file.executemany(
            "INSERT INTO queue (subscription, attributes, data, due_at, attempt)"
            " VALUES (?, ?, ?, 0, ?)",
            [(PAID.name, *row) for row in ODD_ROWS],
        )
        file.executemany(
            "INSERT INTO dead_letter VALUES (?, ?, ?, ?, CAST(? AS TEXT), ?, ?, ?)",
            [
                (str(number), PAID.name, attributes, data, b"\xff", b"\xff", attempt, "never")
                for number, (attributes, data, attempt) in enumerate(ODD_ROWS)
            ],
        )
    await publish_or_raise(transport, messages("1"))
    census = await transport.census([PAID], PAID.messages)
    assert sum(lot.number for lot in census.lots.values()) == 2 * len(ODD_ROWS) + 1
    async with transport.consume(PAID, prefetch=10) as consumer:
        *odd, good = await take(consumer, len(ODD_ROWS) + 1)
        assert good.envelope.id == "1"
        assert [bool(delivery.unreadable) for delivery in odd] == [True] * 5 + [False]
        await consumer.settle([(good, DONE), (odd[0], RetryAfter(0.0))])
        await consumer.settle([(delivery, Dead("no")) for delivery in odd[1:]])
        await consumer.settle([(each, Dead("no")) for each in await take(consumer, 1)])
    letters = await transport.dead_letters(PAID, limit=100)
    assert len(letters) == 2 * len(ODD_ROWS)
    ids = [letter.id for letter in letters]
    assert await transport.replay(PAID, ids) == ids
    assert (await transport.stats(PAID)).ready == len(ids)


# --- the wall clock is set ---

HOUR = 3600.0
JUMPS = [-HOUR, HOUR]


class SetClock(SystemClock):
    """The machine's clock, as if somebody had set it by `jump` seconds, and as if the machine had
    been started `uptime` seconds ago, if that is given."""

    def __init__(self, jump: float = 0.0, uptime: float | None = None) -> None:
        self.jump = jump
        self._started = 0.0 if uptime is None else time.monotonic() - uptime

    def now(self) -> datetime:
        return super().now() + timedelta(seconds=self.jump)

    def monotonic(self) -> float:
        return super().monotonic() - self._started


@asynccontextmanager
async def opened(folder: Path, clock: Clock) -> AsyncIterator[SqliteTransport]:
    options = TransportOptions(visibility_timeout=0.6)
    transport = SqliteTransport(f"sqlite:///{folder}/broker.db", clock, options)
    await transport.connect()
    try:
        await transport.declare([PAID])
        yield transport
    finally:
        await transport.close()


def messages(*ids: str) -> list[Envelope]:
    return [Envelope({"id": each, "type": "payments.paid"}, b"") for each in ids]


async def take(consumer: Consumer, count: int, seconds: float = 20.0) -> list[Delivery]:
    got: list[Delivery] = []
    async with asyncio.timeout(seconds):
        while len(got) < count:
            got += await consumer.receive(count - len(got))
    return got


async def take_ids(transport: SqliteTransport, count: int, seconds: float = 20.0) -> list[str]:
    """Take and settle this many, at once."""
    async with transport.consume(PAID, prefetch=count) as consumer:
        got = await take(consumer, count, seconds)
        await consumer.settle([(delivery, DONE) for delivery in got])
    return [delivery.envelope.id for delivery in got]


async def silent(consumer: Consumer, seconds: float) -> bool:
    try:
        await take(consumer, 1, seconds)
    except TimeoutError:
        return True
    return False


@pytest.mark.parametrize("jump", JUMPS)
async def test_messages_come_in_order_and_at_once_whatever_the_clock_is_set_to(
    jump: float, tmp_path: Path
) -> None:
    clock = SetClock()
    async with opened(tmp_path, clock) as transport:
        await publish_or_raise(transport, messages("1", "2"))
        clock.jump = jump
        await publish_or_raise(transport, messages("3"))
        async with opened(tmp_path, SetClock(jump)) as later:
            await publish_or_raise(later, messages("4"))
            assert await take_ids(later, 4) == ["1", "2", "3", "4"]
            assert (await transport.stats(PAID)).ready == 0


@pytest.mark.parametrize("jump", JUMPS)
async def test_a_retry_comes_after_its_delay_whatever_the_clock_is_set_to(
    jump: float, tmp_path: Path
) -> None:
    clock = SetClock()
    async with opened(tmp_path, clock) as transport:
        await publish_or_raise(transport, messages("1"))
        async with transport.consume(PAID, prefetch=1) as consumer:
            asked_at = time.monotonic()
            await consumer.settle([(each, RetryAfter(0.5)) for each in await take(consumer, 1)])
            clock.jump = jump
        async with (
            opened(tmp_path, SetClock(jump)) as later,
            later.consume(PAID, prefetch=1) as consumer,
        ):
            await take(consumer, 1)
            assert time.monotonic() - asked_at >= 0.5


@pytest.mark.parametrize("jump", JUMPS)
async def test_a_lease_lasts_as_long_as_its_worker_lives_whatever_the_clock_is_set_to(
    jump: float, tmp_path: Path
) -> None:
    clock = SetClock()
    async with opened(tmp_path, clock) as transport:
        await publish_or_raise(transport, messages("1"))
        async with transport.consume(PAID, prefetch=1) as living:
            [held] = await take(living, 1)
            clock.jump = jump
            async with (
                opened(tmp_path, SetClock(jump)) as other,
                other.consume(PAID, prefetch=1) as consumer,
            ):
                assert await silent(consumer, 1.0)
                await living.settle([(held, DONE)])


@pytest.mark.parametrize("jump", JUMPS)
async def test_a_dead_worker_is_replaced_in_time_whatever_the_clock_is_set_to(
    jump: float, tmp_path: Path
) -> None:
    async with opened(tmp_path, SetClock()) as transport:
        await publish_or_raise(transport, messages("1"))
        await transport.run(lambda store: store.lease(PAID.name, "dead", 1, 0.6))
    async with opened(tmp_path, SetClock(jump)) as later:
        assert await take_ids(later, 1) == ["1"]


@pytest.mark.parametrize("jump", [0.0, *JUMPS])
async def test_a_machine_that_was_started_again_goes_on(jump: float, tmp_path: Path) -> None:
    """Its monotonic clock begins anew, and its wall clock may be wrong."""
    async with opened(tmp_path, SetClock(uptime=1e6)) as transport:
        await publish_or_raise(transport, messages("1", "2", "3"))
        async with transport.consume(PAID, prefetch=1) as consumer:
            await consumer.settle([(each, RetryAfter(0.3)) for each in await take(consumer, 1)])
        await transport.run(lambda store: store.lease(PAID.name, "dead", 1, 0.6))
    async with opened(tmp_path, SetClock(jump, uptime=10)) as later:
        await publish_or_raise(later, messages("4"))
        assert sorted(await take_ids(later, 4)) == ["1", "2", "3", "4"]


async def test_a_file_with_nothing_but_a_retry_goes_on_after_a_restart_of_the_machine(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path, SetClock(uptime=1e6)) as transport:
        await publish_or_raise(transport, messages("1"))
        async with transport.consume(PAID, prefetch=1) as consumer:
            await consumer.settle([(each, RetryAfter(0.3)) for each in await take(consumer, 1)])
    async with opened(tmp_path, SetClock(-HOUR, uptime=10)) as later:
        assert await take_ids(later, 1) == ["1"]


# --- at rest ---


class Polls(ManualClock):
    """Counts how often somebody slept for as short as a poll."""

    polls = 0

    async def sleep(self, seconds: float) -> None:
        self.polls += seconds <= sqlite.LONGEST_POLL
        await super().sleep(seconds)


async def polls_within(clock: Polls, seconds: float) -> int:
    before = clock.polls
    await clock.advance(seconds)
    return clock.polls - before


async def test_five_consumers_share_a_poll_that_relaxes_and_tightens(tmp_path: Path) -> None:
    clock = Polls()
    others = [Subscription(f"orders.{number}", ("orders.placed",)) for number in range(5)]
    async with opened(tmp_path, clock) as transport, asyncio.TaskGroup() as tasks:
        waiting = [tasks.create_task(wait_for_one(transport, each)) for each in others]
        watcher = transport._watcher
        assert watcher is not None

        async def all_wait() -> None:
            """Polls that saw a change let all of them look, which takes real time."""
            for _ in range(3):
                await clock.advance(sqlite.LONGEST_POLL)
                await until(lambda: len(watcher._waiting) == 5)

        await all_wait()
        assert await polls_within(clock, 0.5) >= 200
        await clock.advance(30.0)
        assert await polls_within(clock, 1.0) <= 1 / sqlite.LONGEST_POLL + 1
        await publish_or_raise(transport, messages("1"))
        await all_wait()
        assert await polls_within(clock, 0.5) >= 200
        for each in waiting:
            each.cancel()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 - there is no event for it
            await asyncio.sleep(0.001)


async def wait_for_one(transport: SqliteTransport, subscription: Subscription) -> None:
    async with transport.consume(subscription, prefetch=1) as consumer:
        await consumer.receive(1)


async def test_what_this_process_publishes_is_noticed_without_a_poll(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "SHORTEST_POLL", 60.0)
    monkeypatch.setattr(sqlite, "LONGEST_POLL", 60.0)
    async with (
        opened(tmp_path, SystemClock()) as transport,
        transport.consume(PAID, prefetch=1) as consumer,
    ):
        for outcome in (RetryAfter(0.0), DONE):
            receiving = asyncio.ensure_future(take(consumer, 1))
            await asyncio.sleep(0.05)  # in which it has looked once, and waits
            if outcome != DONE:
                await publish_or_raise(transport, messages("1"))
            await consumer.settle([(each, outcome) for each in await receiving])
