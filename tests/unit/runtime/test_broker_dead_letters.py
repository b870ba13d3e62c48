"""When a worker looks for dead letters that its broker wrote, and whom it tells of them."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from datetime import UTC, datetime, timedelta

import pytest

from eventmesh import Command, Event, Service, Settings
from eventmesh.clock import SystemClock
from eventmesh.errors import Unreachable
from eventmesh.runtime.consuming.broker_dead_letters import BrokerDeadLetters
from eventmesh.runtime.vitals import SubscriptionVitals
from eventmesh.transports.base import (
    ALL_CONFIRMED,
    DeadLetter,
    PublishResult,
    Subscription,
    SubscriptionStats,
)
from eventmesh.transports.memory import MemoryTransport
from eventmesh.transports.outcome import Dead
from eventmesh.wire.envelope import Envelope, seal

SAGA = "rides.ride/01998a31-0000-7000-8000-000000000000"
LABELS = {"sagaid": SAGA, "sagastep": "bill"}


class Bill(Command, name="cars.bill", version=1):
    pass


class Billed(Event, name="cars.billed", version=1):
    pass


class Limited(MemoryTransport):
    """A broker whose operator has limited its queues."""

    dead_letters_by_itself = True

    def __init__(self) -> None:
        super().__init__(SystemClock())
        self.letters: list[DeadLetter] = []
        self.looks = 0
        self.published: list[Envelope] = []
        self.is_away = False

    async def stats(self, subscription: Subscription) -> SubscriptionStats:
        if self.is_away:
            raise Unreachable("away")
        return SubscriptionStats(0, 0, 0, len(self.letters), None)

    async def dead_letters(
        self,
        subscription: Subscription,
        *,
        limit: int,
        most_bytes: int | None = None,
        only: Collection[str] | None = None,
    ) -> Sequence[DeadLetter]:
        self.looks += 1
        return self.letters[:limit]

    async def publish(self, envelopes: Sequence[Envelope]) -> PublishResult:
        self.published += envelopes
        return ALL_CONFIRMED

    def add_letter(
        self,
        *,
        by_broker: bool = True,
        labels: dict[str, str] = LABELS,
        message: type[Bill | Billed] = Bill,
        age: timedelta = timedelta(),
    ) -> None:
        number = len(self.letters)
        envelope = seal(message(), source="rides", clock=SystemClock(), extensions=labels)
        died_at = datetime.now(UTC) - age
        self.letters.append(
            DeadLetter(str(number), "cars.bill", envelope, "expired", "", 1, died_at, by_broker)
        )


@pytest.fixture
def broker() -> Limited:
    return Limited()


@pytest.fixture
def service() -> Service:
    service = Service("cars")
    service.configure(Settings())

    @service.subscriber(Bill, Billed)
    async def bill(message: Bill | Billed) -> None: ...

    return service


@pytest.fixture
def vitals(service: Service) -> SubscriptionVitals:
    [handler] = service.worked
    return SubscriptionVitals("cars", handler.subscription, SystemClock())


@pytest.fixture
def watch(broker: Limited, service: Service, vitals: SubscriptionVitals) -> BrokerDeadLetters:
    [handler] = service.worked
    clock = SystemClock()
    return BrokerDeadLetters(service, handler, vitals, broker, clock, asyncio.Event())


async def test_each_letter_notifies_its_saga_once(
    broker: Limited, watch: BrokerDeadLetters
) -> None:
    await watch.look()
    assert broker.looks == 0
    broker.add_letter()
    await watch.look()
    await watch.look()
    assert (broker.looks, len(broker.published)) == (1, 1)
    [signal] = broker.published
    assert signal.name == "rides.ride.signal"
    assert b'"reason":"expired"' in signal.data
    broker.add_letter()
    await watch.look()
    assert (broker.looks, len(broker.published)) == (2, 2)


async def test_what_this_process_has_written_is_not_looked_for(
    broker: Limited, watch: BrokerDeadLetters, vitals: SubscriptionVitals
) -> None:
    broker.add_letter(by_broker=False)
    vitals.settled([Dead("no")])
    await watch.look()
    assert broker.looks == 0
    vitals.settled([Dead("no")])
    broker.add_letter(by_broker=False)
    broker.add_letter()
    await watch.look()
    assert (broker.looks, len(broker.published)) == (1, 1)


async def test_what_an_operator_has_taken_hides_nothing_that_comes_later(
    broker: Limited, watch: BrokerDeadLetters
) -> None:
    broker.add_letter()
    broker.add_letter()
    await watch.look()
    broker.letters.clear()
    await watch.look()
    assert broker.looks == 1
    broker.add_letter()
    await watch.look()
    assert broker.looks == 2


@pytest.mark.parametrize(
    "letter",
    [
        {"by_broker": False},
        {"labels": {}},
        {"labels": {"sagaid": "nonsense", "sagastep": "bill"}},
        {"message": Billed},
        {"age": timedelta(days=31)},
    ],
    ids=["another process's", "no labels", "broken label", "an event", "too old"],
)
async def test_a_letter_for_which_no_saga_waits_notifies_nobody(
    broker: Limited, watch: BrokerDeadLetters, letter: dict[str, object]
) -> None:
    broker.add_letter(**letter)  # type: ignore[arg-type]
    await watch.look()
    assert (broker.looks, broker.published) == (1, [])


async def test_a_broker_that_is_away_is_asked_again_and_then_looked_into(
    broker: Limited,
    service: Service,
    vitals: SubscriptionVitals,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("eventmesh.runtime.consuming.broker_dead_letters.INTERVAL", 0.001)
    broker.add_letter()
    [handler], stopping = service.worked, asyncio.Event()
    watch = BrokerDeadLetters(service, handler, vitals, broker, SystemClock(), stopping)
    broker.is_away = True
    running = asyncio.ensure_future(watch.run())
    await asyncio.sleep(0)
    broker.is_away = False
    async with asyncio.timeout(60):
        while not broker.published:  # noqa: ASYNC110  # there is no event for it
            await asyncio.sleep(0.001)
    stopping.set()
    await asyncio.wait_for(running, 60)
    assert len(broker.published) == 1


def test_only_commands_on_a_broker_that_dead_letters_by_itself_are_watched(
    broker: Limited, service: Service
) -> None:
    [handler] = service.worked
    assert BrokerDeadLetters.are_needed(handler, broker)
    assert not BrokerDeadLetters.are_needed(handler, MemoryTransport(SystemClock()))
    reader = Service("reader")

    @reader.subscriber(Billed)
    async def read(event: Billed) -> None: ...

    assert not BrokerDeadLetters.are_needed(reader.worked[0], broker)
