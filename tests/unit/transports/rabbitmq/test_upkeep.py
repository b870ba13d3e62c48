"""When unrouted messages are rerouted, and what the upkeep does while the broker is broken."""

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
from eventmesh.transports.rabbitmq import upkeep as upkeep_module
from eventmesh.transports.rabbitmq.connection import BrokerConnection
from eventmesh.transports.rabbitmq.rerouting import ForeignSearch, RejectedNames, Rerouter
from eventmesh.transports.rabbitmq.topology import Entity, Topology
from eventmesh.transports.rabbitmq.upkeep import FOREIGN_INTERVAL, GRACE, TopologyUpkeep

SHOP = Topology("shop")
PAID = Subscription("orders.note_payment", ("payments.paid",))


class StoppedClock:
    """A clock that stands still until a test sets it."""

    seconds = 0.0

    def monotonic(self) -> float:
        return self.seconds

    async def sleep(self, _: float) -> None:
        await asyncio.sleep(0)


class Broker:
    """A connection to a broker with so many messages in its queues, or that fails."""

    def __init__(self) -> None:
        self.ready: dict[str, int] = {}
        self.error: Exception | None = None
        self.declared: list[Sequence[Entity]] = []

    @asynccontextmanager
    async def guard(self) -> AsyncIterator[None]:
        yield

    async def open_channel(self) -> Any:
        return SimpleNamespace(is_closed=False, queue_declare=self._declare)

    async def _declare(self, queue: str, **_: Any) -> Any:
        return SimpleNamespace(message_count=self.ready.get(queue, 0))

    async def declare_all(self, _: Any, entities: Sequence[Entity]) -> None:
        self.declared.append(entities)
        if self.error is not None:
            raise self.error

    async def wait_for_rounds(self, count: int) -> None:
        while len(self.declared) < count:  # noqa: ASYNC110
            await asyncio.sleep(0)


class Rerouting:
    """Notes what it is asked to reroute: the names, and whether they were searched among foreign
    messages, of which there are `foreign`. While `foreign_held`, another process inspects them."""

    def __init__(self) -> None:
        self.asked: list[tuple[list[str], bool]] = []
        self.foreign = 0
        self.foreign_held = False

    def may_try(self, _: str) -> bool:
        return True

    async def reroute(self, names: Iterable[str]) -> Counter[str]:
        if wanted := list(names):
            self.asked.append((wanted, False))
        return Counter(wanted)

    async def search_foreign(self, names: Iterable[str], known: int) -> ForeignSearch | None:
        if self.foreign_held:
            return None
        if self.foreign != known:
            self.asked.append((list(names), True))
        return ForeignSearch(self.foreign, Counter())


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> Broker:
    broker = Broker()
    monkeypatch.setattr(upkeep_module, "declare_all", broker.declare_all)
    return broker


@pytest.fixture
def clock() -> StoppedClock:
    return StoppedClock()


@pytest.fixture
def rerouting() -> Rerouting:
    return Rerouting()


@pytest.fixture
async def upkeep(
    broker: Broker, clock: StoppedClock, rerouting: Rerouting
) -> AsyncIterator[TopologyUpkeep]:
    upkeep = TopologyUpkeep(
        cast(BrokerConnection, broker), SHOP, cast(Any, clock), cast(Rerouter, rerouting)
    )
    upkeep._subscriptions[PAID] = None
    yield upkeep
    await upkeep.stop()


async def test_all_that_the_subscriptions_need_is_declared_again(
    upkeep: TopologyUpkeep, broker: Broker
) -> None:
    await upkeep.restore()
    await upkeep.restore()
    assert broker.declared == [SHOP.for_subscription(PAID)] * 2


async def test_unrouted_messages_are_rerouted_once_all_processes_had_time_to_restore_theirs(
    upkeep: TopologyUpkeep, broker: Broker, clock: StoppedClock, rerouting: Rerouting
) -> None:
    broker.ready = {SHOP.unrouted_queue("payments.paid"): 3}
    await upkeep.restore()
    clock.seconds = GRACE * 0.9
    await upkeep.restore()
    assert rerouting.asked == []
    clock.seconds = GRACE
    await upkeep.restore()
    assert rerouting.asked == [(["payments.paid"], False)]
    broker.ready = {}
    await upkeep.restore()
    broker.ready = {SHOP.unrouted_queue("payments.paid"): 1}
    await upkeep.restore()
    assert len(rerouting.asked) == 1  # this is another loss, whose grace begins now


async def test_foreign_messages_are_searched_seldom_and_only_if_their_number_changed(
    upkeep: TopologyUpkeep, broker: Broker, clock: StoppedClock, rerouting: Rerouting
) -> None:
    async def at(seconds: float, foreign: int) -> int:
        clock.seconds, broker.ready = seconds, {SHOP.foreign: foreign}
        rerouting.foreign = foreign
        await upkeep.restore()
        return len(rerouting.asked)

    assert await at(0.0, foreign=7) == 0
    assert await at(GRACE, foreign=7) == 1
    assert rerouting.asked == [(["payments.paid"], True)]
    assert await at(GRACE + FOREIGN_INTERVAL, foreign=7) == 1
    later = GRACE + 2 * FOREIGN_INTERVAL
    assert await at(later, foreign=8) == 1
    assert await at(later + GRACE, foreign=9) == 2


async def test_a_search_by_another_process_does_not_cause_one_here(
    upkeep: TopologyUpkeep, broker: Broker, clock: StoppedClock, rerouting: Rerouting
) -> None:
    """It holds messages, so that for a while others see fewer of them."""

    async def at(seconds: float, seen: int) -> int:
        clock.seconds, broker.ready = seconds, {SHOP.foreign: seen}
        await upkeep.restore()
        return len(rerouting.asked)

    rerouting.foreign = 7
    assert await at(0.0, seen=7) == 0
    assert await at(GRACE, seen=7) == 1
    for round_ in range(1, 5):
        began = round_ * 2 * FOREIGN_INTERVAL
        rerouting.foreign_held = True
        assert await at(began, seen=3) == 1
        assert await at(began + GRACE, seen=2) == 1
        rerouting.foreign_held = False
        assert await at(began + 2 * GRACE, seen=1) == 1, "given back just before we searched"
        assert await at(began + 3 * GRACE, seen=7) == 1


async def test_a_lost_connection_and_an_exchange_of_others_do_not_end_the_upkeep(
    upkeep: TopologyUpkeep, broker: Broker, capsys: pytest.CaptureFixture[str]
) -> None:
    broker.error = UsageError("another exchange")
    upkeep.cover([PAID])
    await broker.wait_for_rounds(3)
    broker.error = Unreachable("gone")
    await broker.wait_for_rounds(6)
    assert capsys.readouterr().out.count("topology cannot be restored") == 1


def test_a_rejected_name_is_left_alone_longer_each_time_up_to_10_minutes(
    clock: StoppedClock,
) -> None:
    rejected_names, pauses = RejectedNames(cast(Any, clock)), []
    for _ in range(7):
        assert rejected_names.may_try("a")
        rejected_names.note(["a", "b"], ["a"])
        assert rejected_names.may_try("b")
        began = clock.seconds
        while not rejected_names.may_try("a"):
            clock.seconds += 30.0
        pauses.append(clock.seconds - began)
    assert pauses == [30.0, 60.0, 120.0, 240.0, 480.0, 600.0, 600.0]
    rejected_names.note(["a"], [])
    rejected_names.note(["a"], ["a"])
    clock.seconds += 30.0
    assert rejected_names.may_try("a")
