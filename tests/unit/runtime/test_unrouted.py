"""Counting, logging and purging unrouted messages, by one process only."""

from __future__ import annotations

import asyncio

import pytest
from structlog.testing import capture_logs

from eventmesh.errors import Unreachable
from eventmesh.runtime.relaying.unrouted_bound import (
    COUNT_INTERVAL,
    FOREIGN,
    FOREIGN_LIMIT,
    UnroutedBound,
    is_near,
)
from eventmesh.runtime.vitals import RelayVitals
from eventmesh.testing.clock import ManualClock
from eventmesh.transports.base import Unrouted, publish_or_raise
from eventmesh.transports.memory import MemoryTransport
from eventmesh.wire.envelope import Envelope


def closed(count: int) -> list[Envelope]:
    return [Envelope({"id": str(number), "type": "bank.closed"}, b"") for number in range(count)]


@pytest.mark.parametrize(
    ("number", "limit", "near"),
    [(0, 1, False), (1, 1, True), (49, 100, False), (50, 100, True), (10**9, 0, False)],
)
def test_a_number_is_near_the_limit_from_half_of_it(number: int, limit: int, near: bool) -> None:
    assert is_near(number, limit) is near


async def test_only_one_process_counts_and_purges() -> None:
    transport, vitals, is_ours = MemoryTransport(ManualClock()), RelayVitals("bank"), True
    bound = UnroutedBound(transport, ManualClock(), 3, ["bank.closed"], [], vitals, lambda: is_ours)
    await publish_or_raise(transport, closed(3))
    await bound.check()
    assert vitals.unrouted == {"bank.closed": 3}
    is_ours = False
    await publish_or_raise(transport, closed(3))
    await bound.check()
    assert vitals.unrouted == {}
    assert len(transport.broker.unrouted) == 6


async def test_without_a_limit_messages_are_counted_and_kept() -> None:
    transport, vitals = MemoryTransport(ManualClock()), RelayVitals("bank")
    await publish_or_raise(transport, closed(5))
    bound = UnroutedBound(transport, ManualClock(), 0, ["bank.closed"], [], vitals, lambda: True)
    with capture_logs() as logs:
        await bound.check()
    assert logs == []
    assert vitals.unrouted == {"bank.closed": 5}


class ForeignMessages(MemoryTransport):
    """A broker that counts foreign messages separately, as RabbitMQ does."""

    foreign = FOREIGN_LIMIT + 5

    async def unrouted(self, *_: object, **__: object) -> list[Unrouted]:
        return [Unrouted("", self.foreign, foreign=True)]

    async def purge_unrouted(self, message: str, *_: object, **options: object) -> int:
        assert (message, options) == ("", {"keep": FOREIGN_LIMIT})
        return 5


async def test_foreign_messages_have_a_common_limit_independent_of_services() -> None:
    vitals = RelayVitals("bank")
    bound = UnroutedBound(
        ForeignMessages(ManualClock()), ManualClock(), 4, [], [], vitals, lambda: True
    )
    with capture_logs() as logs:
        await bound.check()
    assert [(each["event"], each["message"], each["number"]) for each in logs] == [
        ("unrouted messages near their limit", FOREIGN, FOREIGN_LIMIT + 5),
        ("unrouted messages purged", FOREIGN, 5),
    ]
    assert vitals.unrouted == {FOREIGN: FOREIGN_LIMIT}


class UnreachableTransport(MemoryTransport):
    async def unrouted(self, *_: object, **__: object) -> list[Unrouted]:
        raise Unreachable("the broker is down")


async def test_counting_is_retried_after_the_broker_was_unreachable() -> None:
    clock = ManualClock()
    bound = UnroutedBound(
        UnreachableTransport(clock), clock, 4, [], [], RelayVitals("bank"), lambda: True
    )
    with capture_logs() as logs:
        running = asyncio.ensure_future(bound.run())
        for _ in range(3):
            await clock.advance(COUNT_INTERVAL)
        running.cancel()
    assert {each["event"] for each in logs} == {"unrouted messages not counted"}
    assert len(logs) >= 3
