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


def test_a_valid_message_is_read() -> None:
    assert read(Delivery(ENVELOPE), MODELS, 20) == Paid(amount=5)


def test_a_message_of_another_name_is_dead_lettered() -> None:
    outcome = read(Delivery(ENVELOPE), {"orders.placed": Paid}, 20)
    assert outcome == Dead("this subscription takes orders.placed, and not 'payments.paid'")


def test_a_message_delivered_more_often_than_the_limit_is_a_poison_message() -> None:
    assert read(Delivery(ENVELOPE, deliveries=3), MODELS, 3) == Paid(amount=5)
    outcome = read(Delivery(ENVELOPE, deliveries=4), MODELS, 3)
    assert isinstance(outcome, Dead)
    assert outcome.reason.startswith("poison message: delivered 3 times")


def test_a_message_with_many_attempts_is_not_a_poison_message() -> None:
    assert read(Delivery(ENVELOPE, attempt=99, deliveries=1), MODELS, 3) == Paid(amount=5)


class Pay(Command, name="payments.pay", version=1):
    amount: int


def from_source(source: str, message: Message) -> Delivery:
    envelope = seal(message, source="payments", clock=ManualClock())
    return Delivery(Envelope({**envelope.attributes, "source": source}, envelope.data))


@pytest.mark.parametrize("source", ["/orders", "payments", "/payment", "/paymentsx", "/", "/x/*"])
def test_an_event_from_another_source_than_its_owner_is_dead_lettered_with_the_setting_to_allow_it(
    source: str,
) -> None:
    outcome = read(from_source(source, Paid(amount=5)), MODELS, 20)
    assert isinstance(outcome, Dead)
    for words in (
        f"payments.paid comes from the source {source!r}",
        "have the source '/payments'",
        f"sources=[{source!r}]",
    ):
        assert words in outcome.reason


@pytest.mark.parametrize("source", ["/payments", "/payments/eu"])
def test_an_event_may_come_from_its_owner_or_from_a_path_below_it(source: str) -> None:
    assert read(from_source(source, Paid(amount=5)), MODELS, 20) == Paid(amount=5)


@pytest.mark.parametrize(
    ("source", "sources", "is_accepted"),
    [
        ("/bridge", ["/other", "/bridge"], True),
        ("/bridge/1", ["/bridge"], False),
        ("/bridge/1", ["/bridge/*"], True),
        ("/bridge", ["/bridge/*"], False),
        ("urn:anything", ["*"], True),
        ("/payments", ["/bridge"], True),
    ],
)
def test_a_subscriber_may_allow_further_sources(
    source: str, sources: list[str], is_accepted: bool
) -> None:
    outcome = read(from_source(source, Paid(amount=5)), MODELS, 20, sources=sources)
    assert isinstance(outcome, Paid) is is_accepted


def test_a_command_may_come_from_any_source() -> None:
    models: dict[str, type[Message]] = {"payments.pay": Pay}
    assert read(from_source("/anybody", Pay(amount=5)), models, 20) == Pay(amount=5)


def test_a_long_source_is_shortened_in_the_reason() -> None:
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
def test_an_unreadable_message_is_dead_lettered_with_the_reason(
    envelope: Envelope, reason: str
) -> None:
    outcome = read(Delivery(envelope), MODELS, 20)
    assert isinstance(outcome, Dead)
    assert reason in outcome.reason


class Failing(Event, name="a.failing", version=1):
    amount: int

    @field_validator("amount", mode="before")
    @classmethod
    def fail(cls, value: object) -> NoReturn:
        raise ERRORS[str(value)]


ERRORS = {
    error.__name__: error("validator failed")
    for error in (ArithmeticError, KeyError, RuntimeError, TypeError, ValueError)
}


@pytest.mark.parametrize("name", ERRORS)
def test_a_message_whose_validator_raises_any_exception_is_dead_lettered(name: str) -> None:
    attributes = {
        **ENVELOPE.attributes,
        "source": "/a",
        "type": "a.failing",
        "dataschema": "urn:eventmesh:a.failing:1",
    }
    delivery = Delivery(Envelope(attributes, b'{"amount": "%s"}' % name.encode()))
    outcome = read(delivery, {"a.failing": Failing}, 20)
    assert isinstance(outcome, Dead)
    assert "validator failed" in outcome.reason


class Unspeakable:
    def __repr__(self) -> str:
        raise AttributeError("nope")

    __str__ = __repr__


@pytest.mark.parametrize("base", [Exception, TypeError])
def test_a_message_whose_validator_raises_an_error_that_cannot_be_shown_is_dead_lettered(
    monkeypatch: pytest.MonkeyPatch, base: type[Exception]
) -> None:
    unspeakable = type("Unspeakable", (Unspeakable, base), {})
    monkeypatch.setitem(ERRORS, "Unspeakable", unspeakable())
    attributes = {
        **ENVELOPE.attributes,
        "source": "/a",
        "type": "a.failing",
        "dataschema": "urn:eventmesh:a.failing:1",
    }
    delivery = Delivery(Envelope(attributes, b'{"amount": "Unspeakable"}'))
    outcome = read(delivery, {"a.failing": Failing}, 20)
    assert isinstance(outcome, Dead)
    assert "Unspeakable" in outcome.reason


@given(
    st.dictionaries(
        st.sampled_from(["specversion", "id", "source", "type", "dataschema"]),
        st.text() | st.sampled_from(["1.0", "payments.paid", "urn:eventmesh:payments.paid:1"]),
    ),
    st.binary(),
)
def test_every_delivery_is_read_or_dead_lettered(attributes: dict[str, str], data: bytes) -> None:
    assert isinstance(read(Delivery(Envelope(attributes, data)), MODELS, 20), Paid | Dead)
