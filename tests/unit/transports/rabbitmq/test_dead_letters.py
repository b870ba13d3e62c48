"""Reading dead letters from a queue to which any program may have published anything."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventmesh.transports.base import Subscription
from eventmesh.transports.outcome import Dead
from eventmesh.transports.rabbitmq import headers as header_names
from eventmesh.transports.rabbitmq.dead_letters import UniqueIds, letter_of
from eventmesh.transports.rabbitmq.headers import dead_letter_headers
from eventmesh.wire.cloudevents import to_headers
from eventmesh.wire.envelope import Envelope

PAID = Subscription("orders.note_payment", ("payments.paid",))
NOW = datetime(2026, 1, 1, tzinfo=UTC)
ENVELOPE = Envelope({"id": "1", "type": "payments.paid", "myextension": "Łódź"}, b"{}")


def test_a_dead_letter_can_be_written_and_read_back() -> None:
    dead = Dead("no luck", "Traceback")
    headers = dead_letter_headers(to_headers(ENVELOPE), dead, attempts=4, letter_id="l-1", now=NOW)
    letter = letter_of(PAID, headers, None, b"{}")
    assert letter.envelope == ENVELOPE
    assert (letter.id, letter.subscription) == ("l-1", PAID.name)
    assert (letter.reason, letter.error, letter.attempts) == ("no luck", "Traceback", 4)
    assert letter.died_at == NOW


def test_a_message_from_another_program_is_read_as_a_dead_letter() -> None:
    letter = letter_of(PAID, {header_names.DIED_AT: "yesterday"}, None, b"")
    assert letter.reason == "not written by EventMesh: it has no reason"
    assert (letter.error, letter.attempts) == ("", 1)
    assert letter.died_at == datetime.fromtimestamp(0, UTC)


def test_a_message_dead_lettered_by_rabbitmq_has_its_time_and_reason() -> None:
    death = {"reason": "maxlen", "queue": "q", "time": NOW, "count": 1}
    letter = letter_of(PAID, {**to_headers(ENVELOPE), "x-death": [death]}, None, b"{}")
    assert letter.reason == (
        "not written by EventMesh: dead-lettered by RabbitMQ, maxlen in the queue q"
    )
    assert (letter.died_at, letter.envelope) == (NOW, ENVELOPE)


def test_a_derived_id_does_not_change_when_rabbitmq_moves_the_message() -> None:
    before, moved = {"mine": "x"}, {"mine": "x", "x-death": [{"queue": "q"}], "x-delivery-count": 3}
    ids = {letter_of(PAID, headers, None, b"{}").id for headers in (before, moved)}
    assert len(ids) == 1
    others = (({"mine": "y"}, None, b"{}"), (before, "a/b", b"{}"), (before, None, b"[]"))
    assert not ids & {letter_of(PAID, *other).id for other in others}


@pytest.mark.parametrize("invalid", ["", 7, None, b"\xff", ["l-1"], "\x1b[2J", "l" * 101])
def test_an_invalid_id_is_replaced_by_a_derived_one(invalid: Any) -> None:
    assert letter_of(PAID, {header_names.DEAD_LETTER_ID: invalid}, None, b"").id.startswith(
        "derived-"
    )


def test_identical_dead_letters_have_different_ids() -> None:
    ids = UniqueIds()
    assert [ids.unique(each) for each in ("a", "a", "b", "a")] == ["a", "a-2", "b", "a-3"]


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.binary() | st.datetimes(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
names = st.text() | st.sampled_from(
    [
        "x-death",
        *(
            getattr(header_names, name)
            for name in ("DEAD_LETTER_ID", "REASON", "DIED_AT", "ATTEMPTS")
        ),
    ]
)


@given(st.dictionaries(names, values, max_size=6), st.none() | st.text(), st.binary())
def test_any_message_can_be_read_as_a_dead_letter(
    headers: dict[str, Any], content_type: str | None, data: bytes
) -> None:
    letter = letter_of(PAID, headers, content_type, data)
    assert letter.id
    assert letter.died_at.tzinfo is not None
    assert letter == letter_of(PAID, headers, content_type, data)
