"""With an order, nothing is handled or settled behind a message of its key that failed."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventmesh import Command, Service
from eventmesh.clock import SystemClock
from eventmesh.errors import UsageError
from eventmesh.runtime.consuming.lanes import split
from eventmesh.testing.clock import settle_loop
from eventmesh.transports.base import (
    AfterDead,
    Delivery,
    Order,
    Subscription,
    publish_or_raise,
)
from eventmesh.transports.memory import MemoryTransport
from eventmesh.transports.ordering import in_effect, settleable
from eventmesh.transports.outcome import DONE, Dead, Outcome, RetryAfter
from eventmesh.wire.envelope import Envelope

OUTCOMES: Sequence[Outcome | None] = (DONE, DONE, RetryAfter(1.0), Dead("no"), None)


class Pay(Command, name="shop.pay", version=1, key="order"):
    order: str


class Ping(Command, name="shop.ping", version=1):
    number: int


def delivery(key: str | None, number: int = 0) -> Delivery:
    attributes = {"id": f"id-{number}", "source": "/shop", "type": "shop.pay"}
    return Delivery(Envelope(attributes | ({} if key is None else {"partitionkey": key}), b""))


batches = st.lists(st.tuples(st.sampled_from(["a", "b", None]), st.sampled_from(OUTCOMES)))


@given(batches)
def test_of_each_key_all_up_to_the_first_failure_are_settled(
    batch: list[tuple[str | None, Outcome | None]],
) -> None:
    deliveries = [delivery(key) for key, _ in batch]
    outcomes = [outcome for _, outcome in batch]
    settled = settleable(
        deliveries,
        [(each, outcome) for each, outcome in zip(deliveries, outcomes, strict=True) if outcome][
            ::-1
        ],
    )
    for key in ("a", "b", None):
        mine = [outcome for name, outcome in batch if name == key]
        expected: list[Outcome] = []
        for outcome in mine:
            if outcome is not None:
                expected.append(outcome)
            if outcome is not DONE:
                break
        assert [outcome for each, outcome in settled if each.envelope.key == key] == expected
    places = [deliveries.index(each) for each, _ in settled]
    assert places == sorted(places)
    assert in_effect(settled) == settled


async def test_what_waits_in_a_lane_behind_a_failure_is_dropped_and_comes_again() -> None:
    subscription = Subscription("shop.pay", ("shop.pay",), Order())
    transport = MemoryTransport(SystemClock())
    await transport.declare([subscription])
    sent = [delivery(key, number).envelope for number, key in enumerate(["a", "b", "a", None, "a"])]
    await publish_or_raise(transport, sent)
    got: list[str] = []
    async with (
        transport.consume(subscription, prefetch=100) as consumer,
        split(consumer, 3, 100, is_ordered=True) as lanes,
    ):
        await settle_loop()
        for lane in lanes:
            waiting = [each.envelope.id for each in lane._waiting]  # type: ignore[attr-defined]
            if "id-0" in waiting:
                [first] = await lane.receive(1)
                assert first.envelope.id == "id-0"
                await lane.settle([(first, RetryAfter(0.0))])
                await settle_loop()
                while len(got) < 3:
                    batch = await lane.receive(1)
                    got += [each.envelope.id for each in batch if each.envelope.key == "a"]
                    await lane.settle([(each, DONE) for each in batch])
    assert got == ["id-0", "id-2", "id-4"]


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"ordered": "yes"}, "ordered='yes': write True or False"),
        ({"ordered": True, "partitions": 0}, "partitions=0: give a number from 1 to 256"),
        ({"ordered": True, "partitions": 257}, "partitions=257"),
        ({"ordered": True, "after_dead": "stop"}, "write 'continue' or 'hold'"),
        ({"ordered": True, "without_key": "no"}, "write 'refuse' or 'together'"),
        ({"partitions": 4}, "partitions= without ordered=True"),
        ({"after_dead": "hold"}, "after_dead= without ordered=True"),
    ],
    ids=["a text", "none", "too many", "after dead", "without key", "unordered", "unordered hold"],
)
def test_an_order_that_cannot_be_is_refused_when_it_is_declared(
    options: dict[str, object], error: str
) -> None:
    service = Service("shop")
    with pytest.raises(UsageError, match=error):

        @service.subscriber(**options)  # type: ignore[arg-type]
        async def pay(command: Pay) -> None: ...


def test_messages_without_a_key_are_refused_or_together_in_one_order() -> None:
    service = Service("shop")
    with pytest.raises(UsageError, match=r"Ping has no key .* or without_key=\"together\""):

        @service.subscriber(ordered=True)
        async def refused(command: Ping) -> None: ...

    @service.subscriber(ordered=True, without_key="together")
    async def together(command: Ping) -> None: ...

    assert service.handlers["shop.together"].subscription.order == Order()


@pytest.mark.parametrize("after_dead", ["continue", "hold"])
def test_the_declared_order_is_that_of_the_subscription(after_dead: AfterDead) -> None:
    service = Service("shop")

    @service.subscriber(ordered=True, after_dead=after_dead, partitions=4)
    async def pay(command: Pay) -> None: ...

    assert service.handlers["shop.pay"].subscription.order == Order(after_dead, 4)
