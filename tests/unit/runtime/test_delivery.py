from __future__ import annotations

from typing import NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import field_validator

from eventmesh.contracts.message import Command, Event, Message
from eventmesh.runtime.consuming.delivery import read
from eventmesh.testing.clock import ManualClock
from eventmesh.transports.base import Delivery
from eventmesh.transports.outcome import Dead
from eventmesh.wire.envelope import Envelope, seal


class Paid(Event, name="payments.paid", version=1):
    amount: int


MODELS: dict[str, type[Message]] = {"payments.paid": Paid}
ENVELOPE = seal(Paid(amount=5), source="payments", clock=ManualClock())


def test_a_message_that_fits_is_read() -> None:
    assert read(Delivery(ENVELOPE), MODELS, 20) == Paid(amount=5)


def test_a_message_that_the_subscription_does_not_take_is_dead() -> None:
    outcome = read(Delivery(ENVELOPE), {"orders.placed": Paid}, 20)
    assert outcome == Dead("this subscription takes orders.placed, and not 'payments.paid'")


def test_a_message_delivered_more_often_than_the_limit_is_dead() -> None:
    assert read(Delivery(ENVELOPE, deliveries=3), MODELS, 3) == Paid(amount=5)
    outcome = read(Delivery(ENVELOPE, deliveries=4), MODELS, 3)
    assert isinstance(outcome, Dead)
    assert outcome.reason.startswith("poison message: delivered 3 times")


def test_attempts_alone_do_not_make_a_poison_message() -> None:
    assert read(Delivery(ENVELOPE, attempt=99, deliveries=1), MODELS, 3) == Paid(amount=5)


class Pay(Command, name="payments.pay", version=1):
    amount: int


def from_source(source: str, message: Message) -> Delivery:
    envelope = seal(message, source="payments", clock=ManualClock())
    return Delivery(Envelope({**envelope.attributes, "source": source}, envelope.data))


@pytest.mark.parametrize("source", ["/orders", "payments", "/payment", "/paymentsx", "/", "/x/*"])
def test_an_event_that_does_not_come_from_its_owner_is_dead_and_says_so(source: str) -> None:
    outcome = read(from_source(source, Paid(amount=5)), MODELS, 20)
    assert isinstance(outcome, Dead)
    for words in (
        f"payments.paid comes from the source {source!r}",
        "have the source '/payments'",
        f"sources=[{source!r}]",
    ):
        assert words in outcome.reason


@pytest.mark.parametrize("source", ["/payments", "/payments/eu"])
def test_an_event_comes_from_its_owner_or_from_below_it(source: str) -> None:
    assert read(from_source(source, Paid(amount=5)), MODELS, 20) == Paid(amount=5)


@pytest.mark.parametrize(
    ("source", "sources", "is_taken"),
    [
        ("/bridge", ["/other", "/bridge"], True),
        ("/bridge/1", ["/bridge"], False),
        ("/bridge/1", ["/bridge/*"], True),
        ("/bridge", ["/bridge/*"], False),
        ("urn:anything", ["*"], True),
        ("/payments", ["/bridge"], True),
    ],
)
def test_a_subscriber_may_name_further_sources(
    source: str, sources: list[str], is_taken: bool
) -> None:
    outcome = read(from_source(source, Paid(amount=5)), MODELS, 20, sources=sources)
    assert isinstance(outcome, Paid) is is_taken


def test_a_command_may_come_from_anybody() -> None:
    models: dict[str, type[Message]] = {"payments.pay": Pay}
    assert read(from_source("/anybody", Pay(amount=5)), models, 20) == Pay(amount=5)


def test_a_source_of_any_length_makes_a_reason_that_can_be_stored() -> None:
    outcome = read(from_source("/x" * 100_000, Paid(amount=5)), MODELS, 20)
    assert isinstance(outcome, Dead)
    assert len(outcome.reason) < 2_000


@pytest.mark.parametrize(
    ("envelope", "reason"),
    [
        (Envelope({}, b""), "not a CloudEvents message"),
        (Envelope({**ENVELOPE.attributes, "dataschema": "x"}, b""), "does not name a version"),
        (Envelope(ENVELOPE.attributes, b"garbage"), "Invalid JSON"),
        (Envelope(ENVELOPE.attributes, b'{"amount": "x"}'), "amount: "),
    ],
)
def test_what_can_never_be_read_is_dead_with_a_reason_for_people(
    envelope: Envelope, reason: str
) -> None:
    outcome = read(Delivery(envelope), MODELS, 20)
    assert isinstance(outcome, Dead)
    assert reason in outcome.reason


class Picky(Event, name="a.picky", version=1):
    amount: int

    @field_validator("amount", mode="before")
    @classmethod
    def refuse(cls, value: object) -> NoReturn:
        raise ERRORS[str(value)]


ERRORS = {
    error.__name__: error("picky")
    for error in (ArithmeticError, KeyError, RuntimeError, TypeError, ValueError)
}


@pytest.mark.parametrize("name", ERRORS)
def test_whatever_a_validator_raises_the_message_is_dead(name: str) -> None:
    attributes = {
        **ENVELOPE.attributes,
        "type": "a.picky",
        "dataschema": "urn:eventmesh:a.picky:1",
    }
    delivery = Delivery(Envelope(attributes, b'{"amount": "%s"}' % name.encode()))
    outcome = read(delivery, {"a.picky": Picky}, 20)
    assert isinstance(outcome, Dead)
    assert "picky" in outcome.reason


@given(
    st.dictionaries(
        st.sampled_from(["specversion", "id", "source", "type", "dataschema"]),
        st.text() | st.sampled_from(["1.0", "payments.paid", "urn:eventmesh:payments.paid:1"]),
    ),
    st.binary(),
)
def test_every_delivery_is_a_message_or_dead(attributes: dict[str, str], data: bytes) -> None:
    assert isinstance(read(Delivery(Envelope(attributes, data)), MODELS, 20), Paid | Dead)
