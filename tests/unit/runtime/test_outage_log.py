"""While a server is away, whoever waits for it says so at once, and then ever more rarely."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import structlog
from structlog.testing import capture_logs

from eventmesh import Service
from eventmesh.contracts.message import Command
from eventmesh.errors import Unreachable
from eventmesh.persistence.database import Database
from eventmesh.runtime.consuming.pausing import PauseSwitch
from eventmesh.runtime.consuming.subscription import ConsumedSubscription
from eventmesh.runtime.declaring.settings import Settings
from eventmesh.runtime.outage_log import OutageLog
from eventmesh.runtime.relaying.relay import Relay, Round
from eventmesh.testing.clock import ManualClock
from eventmesh.transports.base import Consumer, Subscription
from eventmesh.transports.memory import MemoryTransport

AWAY = Unreachable("nothing listens there")
WAITING = "subscription waiting for broker"


class Do(Command, name="shop.do", version=1):
    number: int


def outage_log(clock: ManualClock) -> OutageLog:
    return OutageLog(clock, structlog.get_logger())


async def lines_of(outage: OutageLog, clock: ManualClock, seconds: int) -> list[int]:
    """After how many seconds a line is logged, if a server is tried in vain every second."""
    logged: list[int] = []
    for second in range(seconds):
        with capture_logs() as lines:
            outage.failed(WAITING, AWAY)
        logged += [second] * len(lines)
        await clock.advance(1.0)
    return logged


async def test_an_outage_is_logged_at_once_and_then_after_pauses_that_grow_to_half_a_minute() -> (
    None
):
    clock = ManualClock()
    logged = await lines_of(outage_log(clock), clock, 130)
    assert logged == [0, 5, 15, 35, 65, 95, 125]


async def test_a_new_reason_is_logged_at_once_and_two_in_turns_do_not_fill_the_log() -> None:
    clock = ManualClock()
    outage = outage_log(clock)
    with capture_logs() as lines:
        for second in range(40):
            reason = "is starting" if second % 2 else "refused"
            outage.failed(WAITING, Unreachable(reason))
            await clock.advance(1.0)
    at_the_pauses = ["is starting", "refused"]  # after 5, 15 and 35 s: at odd seconds
    assert [line["error"] for line in lines] == ["refused", "is starting", *at_the_pauses * 3]


async def test_the_next_outage_is_logged_at_once_again() -> None:
    clock = ManualClock()
    outage = outage_log(clock)
    assert not outage.ended()
    assert await lines_of(outage, clock, 3) == [0]
    assert outage.ended()
    assert not outage.ended()
    assert await lines_of(outage, clock, 7) == [0, 5]


class AwayTransport(MemoryTransport):
    """A broker that is away at first."""

    is_away = True

    @asynccontextmanager
    async def consume(
        self, subscription: Subscription, *, prefetch: int
    ) -> AsyncIterator[Consumer]:
        if self.is_away:
            raise AWAY
        async with super().consume(subscription, prefetch=prefetch) as consumer:
            yield consumer


async def test_a_subscription_whose_broker_is_away_for_40_seconds_logs_four_lines() -> None:
    clock, stopping = ManualClock(), asyncio.Event()
    service, transport = Service("shop", clock=clock), AwayTransport(clock)

    @service.subscriber()
    async def do(command: Do) -> None: ...

    service.configure(Settings())
    consumed = ConsumedSubscription(
        service,
        service.handlers["shop.do"],
        transport,
        clock,
        stopping,
        PauseSwitch(),
        on_consuming=lambda: None,
        suspects=asyncio.Lock(),
    )
    with capture_logs() as lines:
        running = asyncio.create_task(consumed.run())
        await clock.advance(0.0)
        assert [line["event"] for line in lines] == [WAITING]
        await clock.advance(40.0)
        assert [line["event"] for line in lines] == [WAITING] * 4
        transport.is_away = False
        await clock.advance(3.0)
        assert [line["event"] for line in lines[4:]] == ["subscription consuming again"]
        stopping.set()
        await running


async def test_a_relay_whose_broker_is_away_for_40_seconds_logs_four_lines(tmp_path: Path) -> None:
    clock = ManualClock()
    database = Database(f"sqlite:///{tmp_path}/shop.db", service="shop")
    relay = Relay("shop", database, MemoryTransport(clock), clock, lease_time=3.0)
    answer = Round(lost=AWAY)

    async def round_of() -> Round:
        await asyncio.sleep(0)
        return answer

    relay.round = round_of  # type: ignore[method-assign]
    with capture_logs() as lines:
        running = asyncio.create_task(relay.run(asyncio.Event()))
        await clock.advance(40.0)
        assert [line["event"] for line in lines] == ["outbox relay waiting for broker"] * 4
        answer = Round(may_wait=False)
        await clock.advance(3.0)
        assert [line["event"] for line in lines[4:]] == ["outbox relay publishing again"]
        running.cancel()
        await asyncio.wait([running])
    await database.close()
