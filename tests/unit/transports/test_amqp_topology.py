from __future__ import annotations

import itertools
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventmesh.errors import UsageError
from eventmesh.transports.base import Subscription
from eventmesh.transports.outcome import Dead
from eventmesh.transports.rabbitmq import topology
from eventmesh.transports.rabbitmq.topology import (
    DELAY_STEPS,
    Binding,
    Exchange,
    Forwarding,
    Queue,
    Topology,
    buried,
    copied,
    count_in,
    delay_step,
    plan_acks,
    retried,
)
from eventmesh.wire.cloudevents import to_headers
from eventmesh.wire.envelope import Envelope

SHOP = Topology("shop")
PAID = Subscription("orders.note_payment", ("payments.paid", "payments.refunded"))
NOW = datetime(2026, 1, 1, tzinfo=UTC)


# Names and pieces


def test_everything_on_the_broker_begins_with_the_prefix() -> None:
    pieces = [*SHOP.for_subscription(PAID), *SHOP.for_delay(100)]
    for piece in pieces:
        match piece:
            case Binding():
                names = [piece.queue, piece.exchange]
            case Forwarding():
                names = [piece.exchange, piece.source]
            case Exchange() | Queue():
                names = [piece.name]
        assert all(name == "shop" or name.startswith("shop.") for name in names)


def test_a_piece_is_made_after_the_pieces_it_needs() -> None:
    for pieces in (
        SHOP.for_publishing(PAID.messages),
        SHOP.for_subscription(PAID),
        SHOP.for_delay(100),
    ):
        exchanges: set[str] = set()
        queues: set[str] = set()
        for piece in pieces:
            match piece:
                case Exchange():
                    exchanges.add(piece.name)
                    assert piece.alternate is None or piece.alternate in exchanges
                case Queue():
                    queues.add(piece.name)
                case Binding():
                    assert piece.queue in queues
                    assert piece.exchange in exchanges
                case Forwarding():
                    assert {piece.exchange, piece.source} <= exchanges


def test_a_subscription_is_reached_by_each_of_its_messages_on_two_ways() -> None:
    pieces, queue = SHOP.for_subscription(PAID), "shop.queue.orders.note_payment"
    for message in PAID.messages:
        assert Binding(queue, "shop", message) in pieces
        fan = f"shop.message.{message}"
        assert Exchange(fan, "fanout", alternate="shop.unrouted") in pieces
        # What comes to an exchange without queues would be kept as unrouted, and delivered as well.
        assert pieces.index(Binding(queue, fan)) < pieces.index(Forwarding(fan, "shop", message))


def test_what_nobody_takes_waits_in_a_queue_of_its_name() -> None:
    pieces = SHOP.for_publishing(["orders.placed", "orders.placed", ""])
    exchanges = {piece.name: piece for piece in pieces if isinstance(piece, Exchange)}
    assert exchanges["shop"].arguments == {"alternate-exchange": "shop.unrouted"}
    assert exchanges["shop.unrouted"].arguments == {"alternate-exchange": "shop.foreign"}
    assert exchanges["shop.foreign"].arguments == {}
    bindings = [piece for piece in pieces if isinstance(piece, Binding)]
    assert Binding("shop.unrouted.orders.placed", "shop.unrouted", "orders.placed") in bindings
    assert len(bindings) == 2
    forwardings = [piece for piece in pieces if isinstance(piece, Forwarding)]
    assert forwardings == [Forwarding("shop.message.orders.placed", "shop", "orders.placed")]


@pytest.mark.parametrize("name", ["#", "*", "orders.#", "orders.*.placed"])
def test_a_publisher_forwards_no_message_but_its_own(name: str) -> None:
    assert not any(isinstance(piece, Forwarding) for piece in SHOP.for_publishing([name]))


def test_every_queue_is_a_quorum_queue_that_drops_nothing() -> None:
    queues = [p for p in SHOP.for_subscription(PAID) if isinstance(p, Queue)]
    assert len(queues) == 3 + len(PAID.messages)
    for queue in queues:
        assert queue.arguments["x-queue-type"] == "quorum"
        assert queue.arguments["x-delivery-limit"] == 2**31 - 1
        assert "x-message-ttl" not in queue.arguments


def test_a_delay_queue_hands_on_by_routing_key_and_loses_nothing() -> None:
    [queue] = [p for p in SHOP.for_delay(100) if isinstance(p, Queue)]
    assert queue.arguments["x-message-ttl"] > 100
    assert queue.arguments["x-dead-letter-exchange"] == ""
    assert "x-dead-letter-routing-key" not in queue.arguments
    assert queue.arguments["x-dead-letter-strategy"] == "at-least-once"
    assert queue.arguments["x-overflow"] == "reject-publish"


def test_a_name_that_rabbitmq_cannot_take_is_refused() -> None:
    fits = Subscription("x" * (255 - len("shop.queue.")), ())
    assert len(SHOP.queue(fits)) == 255
    with pytest.raises(UsageError, match="longer than the 255 bytes that RabbitMQ takes"):
        SHOP.queue(Subscription(fits.name + "x", ()))
    with pytest.raises(UsageError, match="longer than"):
        SHOP.dead(Subscription("ü" * 130, ()))


# Delays


def test_the_steps_of_delays_grow_by_about_an_eighth_and_fit_rabbitmq() -> None:
    assert DELAY_STEPS[0] == 10
    assert DELAY_STEPS[-1] + 1 <= 2**32 - 1
    for step, following in itertools.pairwise(DELAY_STEPS):
        assert step < following <= step * 1.15 + 1
    assert len(DELAY_STEPS) < 200


@given(st.floats(min_value=0, max_value=DELAY_STEPS[-1] / 1000, exclude_min=True))
def test_a_delay_is_never_shortened_and_lengthened_by_a_step_at_most(seconds: float) -> None:
    step = delay_step(seconds)
    assert step in DELAY_STEPS
    assert step >= seconds * 1000
    assert step <= max(seconds * 1000 * 1.15 + 1, DELAY_STEPS[0])


@pytest.mark.parametrize("seconds", [0, -1, -0.001])
def test_no_delay_needs_no_step(seconds: float) -> None:
    assert delay_step(seconds) is None


def test_a_delay_beyond_the_last_step_is_cut_to_it() -> None:
    assert delay_step(1e9) == DELAY_STEPS[-1]
    assert delay_step(float("inf")) == DELAY_STEPS[-1]


# Acknowledgements

tags = st.sets(st.integers(1, 60)).map(sorted)


@given(tags, st.data())
def test_acknowledgements_cover_exactly_what_is_done(
    outstanding: list[int], data: st.DataObject
) -> None:
    done = data.draw(st.sets(st.sampled_from(outstanding))) if outstanding else set()
    acknowledged: list[int] = []
    left = list(outstanding)
    for tag, multiple in plan_acks(outstanding, done):
        covered = [each for each in left if each == tag or (multiple and each < tag)]
        acknowledged += covered
        left = [each for each in left if each not in covered]
    assert sorted(acknowledged) == sorted(done)


@given(tags.filter(bool))
def test_when_all_is_done_one_acknowledgement_is_enough(outstanding: list[int]) -> None:
    assert plan_acks(outstanding, set(outstanding)) == [(outstanding[-1], True)]


# Headers

ENVELOPE = Envelope({"id": "1", "type": "payments.paid", "myextension": "Łódź"}, b"{}")
NOTES = {
    "x-death": [{"count": 1}],
    "x-first-death-queue": "q",
    "x-last-death-reason": "expired",
    "x-delivery-count": 3,
    "x-acquired-count": 3,
    "x-opt-x": 1,
    "CC": ["other"],
    "BCC": ["other"],
    topology.REASON: "old",
}


def test_what_the_broker_noted_is_not_sent_again_and_all_else_is() -> None:
    headers = {**to_headers(ENVELOPE), "mine": True, "x-mine": 5}
    assert copied({**headers, **NOTES}) == headers
    assert copied(None) == {}


def test_values_that_the_client_reads_and_cannot_write_are_made_writable() -> None:
    assert copied({"a": b"\xff", "b": 0.5, "c": 0.1, "d": 1e300, "e": {"f": [b"\xff", 0.1]}}) == {
        "a": bytearray(b"\xff"),
        "b": 0.5,
        "c": "0.1",
        "d": "1e+300",
        "e": {"f": [bytearray(b"\xff"), "0.1"]},
    }


def test_a_retry_carries_the_number_of_its_attempt() -> None:
    headers = retried({**to_headers(ENVELOPE), topology.ATTEMPT: 2}, 3)
    assert headers == {**to_headers(ENVELOPE), topology.ATTEMPT: 3}


@given(
    st.builds(
        lambda character, times, tail: character * times + tail,
        st.sampled_from("aü日🦀"),
        st.integers(200, 1100),
        st.text(max_size=20),
    )
)
def test_a_reason_is_cut_to_its_end_and_stays_text(reason: str) -> None:
    headers = buried(None, Dead(reason), attempts=1, letter_id="l", now=NOW)
    kept = headers[topology.REASON]
    assert len(kept.encode()) <= topology.MAX_REASON_BYTES
    if len(reason.encode()) <= topology.MAX_REASON_BYTES:
        assert kept == reason
    else:
        assert kept.startswith("…")
        assert reason.endswith(kept[1:])
        assert len(kept.encode()) > topology.MAX_REASON_BYTES - 4


@pytest.mark.parametrize(
    ("value", "count"), [(3, 3), (0, 0), (-1, 9), (True, 9), ("3", 9), (None, 9), (2.0, 9)]
)
def test_a_count_is_a_number_or_else_the_default(value: object, count: int) -> None:
    assert count_in({"n": value}, "n", 9) == count
    assert count_in({}, "n", 9) == 9
