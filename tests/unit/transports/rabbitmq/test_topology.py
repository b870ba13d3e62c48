from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventmesh.errors import UsageError
from eventmesh.transports.base import Order, Subscription
from eventmesh.transports.rabbitmq.topology import (
    DELAY_STEPS,
    Binding,
    Exchange,
    ExchangeBinding,
    Queue,
    Topology,
    delay_step,
)

SHOP = Topology("shop")
PAID = Subscription("orders.note_payment", ("payments.paid", "payments.refunded"))


# Names and entities


def test_every_name_on_the_broker_starts_with_the_prefix() -> None:
    entities = [*SHOP.for_subscription(PAID), *SHOP.for_delay(100)]
    for entity in entities:
        match entity:
            case Binding():
                names = [entity.queue, entity.exchange]
            case ExchangeBinding():
                names = [entity.exchange, entity.source]
            case Exchange() | Queue():
                names = [entity.name]
        assert all(name == "shop" or name.startswith("shop.") for name in names)


def test_an_entity_is_declared_after_those_it_refers_to() -> None:
    for entities in (
        SHOP.for_publishing(PAID.messages),
        SHOP.for_subscription(PAID),
        SHOP.for_delay(100),
    ):
        exchanges: set[str] = set()
        queues: set[str] = set()
        for entity in entities:
            match entity:
                case Exchange():
                    exchanges.add(entity.name)
                    assert entity.alternate is None or entity.alternate in exchanges
                case Queue():
                    queues.add(entity.name)
                case Binding():
                    assert entity.queue in queues
                    assert entity.exchange in exchanges
                case ExchangeBinding():
                    assert {entity.exchange, entity.source} <= exchanges


def test_each_message_of_a_subscription_has_two_routes_to_its_queue() -> None:
    entities, queue = SHOP.for_subscription(PAID), "shop.queue.orders.note_payment"
    for message in PAID.messages:
        assert Binding(queue, "shop", message) in entities
        exchange = f"shop.message.{message}"
        assert Exchange(exchange, "fanout", alternate="shop.unrouted") in entities
        # What reaches an exchange without a queue is stored as unrouted, and delivered as well.
        binding, forwarding = Binding(queue, exchange), ExchangeBinding(exchange, "shop", message)
        assert entities.index(binding) < entities.index(forwarding)


@pytest.mark.parametrize("order", [None, Order(partitions=2)])
def test_subscriptions_that_are_declared_together_get_the_same_messages(
    order: Order | None,
) -> None:
    """A message that is published meanwhile reaches all of them, or is kept as unrouted."""
    other = Subscription("mails.thank", PAID.messages, order)
    entities = SHOP.for_subscriptions([PAID, other])
    assert set(entities) == {*SHOP.for_subscription(PAID), *SHOP.for_subscription(other)}
    assert len(entities) == len(set(entities))
    queues = [at for at, each in enumerate(entities) if isinstance(each, Queue | Exchange)]
    bound, forwarded, direct = [], [], []
    for at, each in enumerate(entities):
        match each:
            case ExchangeBinding(name, "shop") if name.startswith("shop.message."):
                forwarded.append(at)
            case Binding(_, "shop") | ExchangeBinding(_, "shop"):
                direct.append(at)
            case Binding(_, source) | ExchangeBinding(_, source) if "shop.message." in source:
                bound.append(at)
    assert len(bound) == len(direct) == 2 * len(PAID.messages)
    assert len(forwarded) == len(PAID.messages)
    assert max(queues) < min(bound)
    assert max(bound) < min(forwarded)
    assert max(forwarded) < min(direct)


def test_messages_without_a_subscription_are_kept_in_a_queue_of_their_name() -> None:
    entities = SHOP.for_publishing(["orders.placed", "orders.placed", ""])
    exchanges = {entity.name: entity for entity in entities if isinstance(entity, Exchange)}
    assert exchanges["shop"].arguments == {"alternate-exchange": "shop.unrouted"}
    assert exchanges["shop.unrouted"].arguments == {"alternate-exchange": "shop.foreign"}
    assert exchanges["shop.foreign"].arguments == {}
    bindings = [entity for entity in entities if isinstance(entity, Binding)]
    assert Binding("shop.unrouted.orders.placed", "shop.unrouted", "orders.placed") in bindings
    assert len(bindings) == 2
    exchange_bindings = [entity for entity in entities if isinstance(entity, ExchangeBinding)]
    assert exchange_bindings == [
        ExchangeBinding("shop.message.orders.placed", "shop", "orders.placed")
    ]


@pytest.mark.parametrize("name", ["#", "*", "orders.#", "orders.*.placed"])
def test_a_publisher_does_not_bind_wildcards(name: str) -> None:
    assert not any(isinstance(entity, ExchangeBinding) for entity in SHOP.for_publishing([name]))


def test_every_queue_is_a_quorum_queue_that_drops_nothing() -> None:
    queues = [p for p in SHOP.for_subscription(PAID) if isinstance(p, Queue)]
    assert len(queues) == 3 + len(PAID.messages)
    for queue in queues:
        assert queue.arguments["x-queue-type"] == "quorum"
        assert queue.arguments["x-delivery-limit"] == 2**31 - 1
        assert "x-message-ttl" not in queue.arguments


def test_a_delay_queue_dead_letters_at_least_once_and_keeps_the_routing_key() -> None:
    [queue] = [p for p in SHOP.for_delay(100) if isinstance(p, Queue)]
    assert queue.arguments["x-message-ttl"] > 100
    assert queue.arguments["x-dead-letter-exchange"] == ""
    assert "x-dead-letter-routing-key" not in queue.arguments
    assert queue.arguments["x-dead-letter-strategy"] == "at-least-once"
    assert queue.arguments["x-overflow"] == "reject-publish"


def test_a_name_that_is_too_long_for_rabbitmq_is_a_usage_error() -> None:
    longest = Subscription("x" * (255 - len("shop.queue.")), ())
    assert len(SHOP.queue(longest)) == 255
    with pytest.raises(UsageError, match="longer than the 255 bytes that RabbitMQ allows"):
        SHOP.queue(Subscription(longest.name + "x", ()))
    with pytest.raises(UsageError, match="longer than"):
        SHOP.dead_letter_queue(Subscription("ü" * 130, ()))


# Delays


def test_delay_steps_grow_by_about_an_eighth_and_fit_a_ttl_of_rabbitmq() -> None:
    assert DELAY_STEPS[0] == 10
    assert DELAY_STEPS[-1] + 1 <= 2**32 - 1
    for step, following in itertools.pairwise(DELAY_STEPS):
        assert step < following <= step * 1.15 + 1
    assert len(DELAY_STEPS) < 200


@given(st.floats(min_value=0, max_value=DELAY_STEPS[-1] / 1000, exclude_min=True))
def test_a_delay_is_rounded_up_by_at_most_one_step(seconds: float) -> None:
    step = delay_step(seconds)
    assert step in DELAY_STEPS
    assert step >= seconds * 1000
    assert step <= max(seconds * 1000 * 1.15 + 1, DELAY_STEPS[0])


@pytest.mark.parametrize("seconds", [0, -1, -0.001])
def test_a_delay_of_zero_or_less_has_no_step(seconds: float) -> None:
    assert delay_step(seconds) is None


def test_a_delay_beyond_the_last_step_becomes_the_last_step() -> None:
    assert delay_step(1e9) == DELAY_STEPS[-1]
    assert delay_step(float("inf")) == DELAY_STEPS[-1]
