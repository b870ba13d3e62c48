"""When what is unrouted is brought back, and what a broken broker does to the upkeep."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, cast

import pytest

from eventmesh.errors import Unreachable, UsageError
from eventmesh.transports.base import Subscription
from eventmesh.transports.rabbitmq import upkeep as amqp_upkeep
from eventmesh.transports.rabbitmq.connection import Link
from eventmesh.transports.rabbitmq.topology import Piece, Topology
from eventmesh.transports.rabbitmq.upkeep import (
    FOREIGN_INTERVAL,
    GRACE,
    Refusals,
    Searched,
    TopologyUpkeep,
)

SHOP = Topology("shop")
PAID = Subscription("orders.note_payment", ("payments.paid",))


class Time:
    """A clock that stands still until it is told how late it is."""

    seconds = 0.0

    def monotonic(self) -> float:
        return self.seconds

    async def sleep(self, _: float) -> None:
        await asyncio.sleep(0)


class Broker:
    """A link to a broker that has so many messages in these queues, or fails."""

    def __init__(self) -> None:
        self.ready: dict[str, int] = {}
        self.foreign = 0
        self.foreign_held = False
        self.error: Exception | None = None
        self.restored: list[Sequence[Piece]] = []

    @asynccontextmanager
    async def call(self) -> AsyncIterator[None]:
        yield

    async def new_channel(self) -> Any:
        return SimpleNamespace(is_closed=False, queue_declare=self._told)

    async def _told(self, queue: str, **_: Any) -> Any:
        return SimpleNamespace(message_count=self.ready.get(queue, 0))

    async def restore(self, _: Any, pieces: Sequence[Piece]) -> None:
        self.restored.append(pieces)
        if self.error is not None:
            raise self.error

    async def restored_times(self, times: int) -> None:
        """Return once it was tried so often."""
        while len(self.restored) < times:  # noqa: ASYNC110
            await asyncio.sleep(0)


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> Broker:
    made = Broker()
    monkeypatch.setattr(amqp_upkeep, "restore", made.restore)
    return made


@pytest.fixture
def clock() -> Time:
    return Time()


@pytest.fixture
def brought() -> list[tuple[list[str], bool]]:
    return []


@pytest.fixture
async def upkeep(
    broker: Broker, clock: Time, brought: list[tuple[list[str], bool]]
) -> AsyncIterator[TopologyUpkeep]:
    async def bring(names: Iterable[str], *, among_foreign: bool = False) -> Counter[str]:
        if wanted := list(names):
            brought.append((wanted, among_foreign))
        return Counter(wanted)

    async def search(names: Iterable[str], known: int) -> Searched | None:
        if broker.foreign_held:
            return None
        if broker.foreign == known:
            return Searched(known, Counter())
        await bring(names, among_foreign=True)
        return Searched(broker.foreign, Counter())

    time = cast(Any, clock)
    made = TopologyUpkeep(cast(Link, broker), SHOP, time, Refusals(time), bring, search)
    made._subscriptions[PAID] = None
    yield made
    await made.stop()


async def test_all_that_the_subscriptions_need_is_made_again(
    upkeep: TopologyUpkeep, broker: Broker
) -> None:
    await upkeep.restore()
    await upkeep.restore()
    assert broker.restored == [SHOP.for_subscription(PAID)] * 2


async def test_what_is_unrouted_is_brought_back_once_all_others_had_time_to_restore_theirs(
    upkeep: TopologyUpkeep, broker: Broker, clock: Time, brought: list[tuple[list[str], bool]]
) -> None:
    broker.ready = {SHOP.kept("payments.paid"): 3}
    await upkeep.restore()
    clock.seconds = GRACE * 0.9
    await upkeep.restore()
    assert brought == []
    clock.seconds = GRACE
    await upkeep.restore()
    assert brought == [(["payments.paid"], False)]
    broker.ready = {}
    await upkeep.restore()
    broker.ready = {SHOP.kept("payments.paid"): 1}
    await upkeep.restore()
    assert len(brought) == 1  # this is another loss, whose time begins now


async def test_foreign_messages_are_searched_now_and_then_and_only_if_there_are_others_than_before(
    upkeep: TopologyUpkeep, broker: Broker, clock: Time, brought: list[tuple[list[str], bool]]
) -> None:
    async def at(seconds: float, foreign: int) -> int:
        clock.seconds, broker.ready, broker.foreign = seconds, {SHOP.foreign: foreign}, foreign
        await upkeep.restore()
        return len(brought)

    assert await at(0.0, foreign=7) == 0
    assert await at(GRACE, foreign=7) == 1
    assert brought == [(["payments.paid"], True)]
    assert await at(GRACE + FOREIGN_INTERVAL, foreign=7) == 1
    later = GRACE + 2 * FOREIGN_INTERVAL
    assert await at(later, foreign=8) == 1
    assert await at(later + GRACE, foreign=9) == 2


async def test_a_search_by_another_process_does_not_cause_one_here(
    upkeep: TopologyUpkeep, broker: Broker, clock: Time, brought: list[tuple[list[str], bool]]
) -> None:
    """It holds messages, so that for a while others see fewer of them."""

    async def at(seconds: float, seen: int) -> int:
        clock.seconds, broker.ready = seconds, {SHOP.foreign: seen}
        await upkeep.restore()
        return len(brought)

    broker.foreign = 7
    assert await at(0.0, seen=7) == 0
    assert await at(GRACE, seen=7) == 1
    for round_ in range(1, 5):
        began = round_ * 2 * FOREIGN_INTERVAL
        broker.foreign_held = True
        assert await at(began, seen=3) == 1
        assert await at(began + GRACE, seen=2) == 1
        broker.foreign_held = False
        assert await at(began + 2 * GRACE, seen=1) == 1, "given back by the time that we looked"
        assert await at(began + 3 * GRACE, seen=7) == 1


async def test_a_lost_connection_and_a_foreign_exchange_do_not_end_the_upkeep(
    upkeep: TopologyUpkeep, broker: Broker, capsys: pytest.CaptureFixture[str]
) -> None:
    broker.error = UsageError("another exchange")
    upkeep.cover([PAID])
    await broker.restored_times(3)
    broker.error = Unreachable("gone")
    await broker.restored_times(6)
    assert capsys.readouterr().out.count("topology cannot be restored") == 1


def test_a_name_of_which_something_was_refused_is_left_alone_longer_each_time_up_to_10_minutes(
    clock: Time,
) -> None:
    refusals, pauses = Refusals(cast(Any, clock)), []
    for _ in range(7):
        assert refusals.may_try("a")
        refusals.note(["a", "b"], ["a"])
        assert refusals.may_try("b")
        began = clock.seconds
        while not refusals.may_try("a"):
            clock.seconds += 30.0
        pauses.append(clock.seconds - began)
    assert pauses == [30.0, 60.0, 120.0, 240.0, 480.0, 600.0, 600.0]
    refusals.note(["a"], [])
    refusals.note(["a"], ["a"])
    clock.seconds += 30.0
    assert refusals.may_try("a")
