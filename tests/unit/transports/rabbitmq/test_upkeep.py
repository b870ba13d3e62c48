"""When the upkeep reroutes unrouted messages, and that it survives errors of the broker."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, cast

import pytest

from eventmesh.errors import Unreachable, UsageError
from eventmesh.transports.base import Order, Subscription
from eventmesh.transports.rabbitmq import upkeep as upkeep_module
from eventmesh.transports.rabbitmq.connection import BrokerConnection
from eventmesh.transports.rabbitmq.relocation import Relocation
from eventmesh.transports.rabbitmq.rerouting import ForeignSearch, RejectedNames, Rerouter
from eventmesh.transports.rabbitmq.topology import Entity, Queue, Topology
from eventmesh.transports.rabbitmq.upkeep import (
    FOREIGN_INTERVAL,
    GRACE,
    ROUNDS_BETWEEN_LOOKS,
    TopologyUpkeep,
)

SHOP = Topology("shop")
PAID = Subscription("orders.note_payment", ("payments.paid",))
SHIPPED = Subscription("orders.note_shipment", ("shipping.shipped",), Order(partitions=2))


class StoppedClock:
    """A clock that changes only when a test sets it."""

    seconds = 0.0

    def monotonic(self) -> float:
        return self.seconds

    async def sleep(self, _: float) -> None:
        await asyncio.sleep(0)


class Broker:
    """A fake connection: `ready` has the number of messages in each queue, `error` is raised."""

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


class RecordingRerouter:
    """Records what it is asked to reroute: the names, and whether among the foreign messages.

    There are `foreign` of these. While `foreign_held`, another process inspects them.
    """

    def __init__(self) -> None:
        self.requests: list[tuple[list[str], bool]] = []
        self.foreign = 0
        self.foreign_held = False

    def may_try(self, _: str) -> bool:
        return True

    async def reroute(self, names: Iterable[str]) -> Counter[str]:
        if asked := list(names):
            self.requests.append((asked, False))
        return Counter(asked)

    async def search_foreign(self, names: Iterable[str], known: int) -> ForeignSearch | None:
        if self.foreign_held:
            return None
        if self.foreign != known:
            self.requests.append((list(names), True))
        return ForeignSearch(self.foreign, Counter())


class Others:
    """A fake relocation: what other processes have `changed`, in order or in partitions. `looks`
    counts how often somebody has asked."""

    def __init__(self) -> None:
        self.changed: list[Subscription] = []
        self.cut_off: list[Subscription] = []
        self.looks = 0

    async def declared_otherwise(self, asked: Sequence[Subscription]) -> list[Subscription]:
        self.looks += 1
        return [each for each in asked if each in self.changed and each.order is None]

    async def numbered_otherwise(self, asked: Sequence[Subscription]) -> list[Subscription]:
        return [each for each in asked if each in self.changed]

    async def cut_off_changed(self, changed: Sequence[Subscription], patience: float) -> None:
        self.cut_off += changed


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> Broker:
    broker = Broker()
    monkeypatch.setattr(upkeep_module, "declare_all", broker.declare_all)
    return broker


@pytest.fixture
def clock() -> StoppedClock:
    return StoppedClock()


@pytest.fixture
def rerouting() -> RecordingRerouter:
    return RecordingRerouter()


@pytest.fixture
def others() -> Others:
    return Others()


@pytest.fixture
async def upkeep(
    broker: Broker, clock: StoppedClock, rerouting: RecordingRerouter, others: Others
) -> AsyncIterator[TopologyUpkeep]:
    upkeep = TopologyUpkeep(
        cast(BrokerConnection, broker),
        SHOP,
        cast(Any, clock),
        cast(Rerouter, rerouting),
        cast(Relocation, others),
    )
    upkeep._subscriptions[PAID] = None
    with upkeep.consumed(PAID):
        yield upkeep
    await upkeep.stop()


async def test_each_round_declares_the_entities_of_the_subscriptions(
    upkeep: TopologyUpkeep, broker: Broker
) -> None:
    await upkeep.restore()
    await upkeep.restore()
    assert broker.declared == [SHOP.for_subscriptions([PAID])] * 2


async def test_what_this_process_does_not_consume_is_restored_once_in_some_rounds(
    upkeep: TopologyUpkeep, broker: Broker, others: Others
) -> None:
    """RabbitMQ logs an error each time that we look whether others have changed it."""
    upkeep._subscriptions[SHIPPED] = None
    for _ in range(ROUNDS_BETWEEN_LOOKS + 1):
        await upkeep.restore()
    queue = Queue(SHOP.workers(SHIPPED))
    assert [queue in each for each in broker.declared] == [
        True,
        *[False] * (ROUNDS_BETWEEN_LOOKS - 1),
        True,
    ]
    assert others.looks == 2
    assert all(Queue(SHOP.queue(PAID)) in each for each in broker.declared)


async def test_what_this_process_does_not_consume_is_restored_before_messages_are_rerouted(
    upkeep: TopologyUpkeep, broker: Broker, rerouting: RecordingRerouter
) -> None:
    upkeep._subscriptions[SHIPPED] = None
    await upkeep.restore()
    broker.ready = {SHOP.unrouted_queue("shipping.shipped"): 1}
    await upkeep.restore()
    assert Queue(SHOP.workers(SHIPPED)) in broker.declared[-1]
    await upkeep.restore()
    assert Queue(SHOP.workers(SHIPPED)) not in broker.declared[-1]
    assert rerouting.requests == []


async def test_what_others_have_changed_is_logged_and_does_not_keep_the_rest_from_being_restored(
    upkeep: TopologyUpkeep,
    broker: Broker,
    others: Others,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(upkeep_module, "ROUNDS_BETWEEN_LOOKS", 1)
    sent = Subscription("orders.note_letter", ("post.sent",))
    upkeep._subscriptions |= dict.fromkeys([SHIPPED, sent])
    others.changed = [SHIPPED]
    for _ in range(3):
        await upkeep.restore()
        assert Queue(SHOP.workers(SHIPPED)) not in broker.declared[-1]
        assert Queue(SHOP.queue(sent)) in broker.declared[-1]
    assert others.cut_off == [SHIPPED] * 3
    assert capsys.readouterr().out.count("subscriptions not restored") == 1
    others.changed = [SHIPPED, sent]
    await upkeep.restore()
    assert capsys.readouterr().out.count("subscriptions not restored") == 1


async def test_unrouted_messages_are_rerouted_after_a_grace_period(
    upkeep: TopologyUpkeep, broker: Broker, clock: StoppedClock, rerouting: RecordingRerouter
) -> None:
    broker.ready = {SHOP.unrouted_queue("payments.paid"): 3}
    await upkeep.restore()
    clock.seconds = GRACE * 0.9
    await upkeep.restore()
    assert rerouting.requests == []
    clock.seconds = GRACE
    await upkeep.restore()
    assert rerouting.requests == [(["payments.paid"], False)]
    broker.ready = {}
    await upkeep.restore()
    assert len(rerouting.requests) == 2  # RabbitMQ may not have counted what is there
    broker.ready = {SHOP.unrouted_queue("payments.paid"): 1}
    await upkeep.restore()
    assert len(rerouting.requests) == 2  # another loss, with a grace period of its own


async def test_foreign_messages_are_searched_rarely_and_only_if_their_number_changed(
    upkeep: TopologyUpkeep, broker: Broker, clock: StoppedClock, rerouting: RecordingRerouter
) -> None:
    async def at(seconds: float, foreign: int) -> int:
        clock.seconds, broker.ready = seconds, {SHOP.foreign: foreign}
        rerouting.foreign = foreign
        await upkeep.restore()
        return len(rerouting.requests)

    assert await at(0.0, foreign=7) == 0
    assert await at(GRACE, foreign=7) == 1
    assert rerouting.requests == [(["payments.paid"], True)]
    assert await at(GRACE + FOREIGN_INTERVAL, foreign=7) == 1
    later = GRACE + 2 * FOREIGN_INTERVAL
    assert await at(later, foreign=8) == 1
    assert await at(later + GRACE, foreign=9) == 2


async def test_a_search_by_another_process_does_not_start_one_here(
    upkeep: TopologyUpkeep, broker: Broker, clock: StoppedClock, rerouting: RecordingRerouter
) -> None:
    """A search holds messages unacknowledged, so other processes temporarily see fewer of them."""

    async def at(seconds: float, seen: int) -> int:
        clock.seconds, broker.ready = seconds, {SHOP.foreign: seen}
        await upkeep.restore()
        return len(rerouting.requests)

    rerouting.foreign = 7
    assert await at(0.0, seen=7) == 0
    assert await at(GRACE, seen=7) == 1
    for round_ in range(1, 5):
        began = round_ * 2 * FOREIGN_INTERVAL
        rerouting.foreign_held = True
        assert await at(began, seen=3) == 1
        assert await at(began + GRACE, seen=2) == 1
        rerouting.foreign_held = False
        assert await at(began + 2 * GRACE, seen=1) == 1, (
            "messages were requeued just before our search"
        )
        assert await at(began + 3 * GRACE, seen=7) == 1


async def test_the_upkeep_continues_after_a_lost_connection_and_a_conflicting_exchange(
    upkeep: TopologyUpkeep, broker: Broker, capsys: pytest.CaptureFixture[str]
) -> None:
    broker.error = UsageError("another exchange")
    upkeep.cover([PAID])
    await broker.wait_for_rounds(3)
    broker.error = Unreachable("gone")
    await broker.wait_for_rounds(6)
    assert capsys.readouterr().out.count("topology cannot be restored") == 1


def test_the_pause_after_a_rejected_name_doubles_up_to_10_minutes(
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
