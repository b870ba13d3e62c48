"""The headers of retries and dead letters, derived from headers that any client may have sent."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventmesh.transports.outcome import Dead
from eventmesh.transports.rabbitmq.headers import (
    ATTEMPT,
    ERROR,
    MAX_ERROR_BYTES,
    MAX_REASON_BYTES,
    REASON,
    application_headers,
    count_header,
    dead_letter_headers,
    retry_headers,
)
from eventmesh.wire.cloudevents import to_headers
from eventmesh.wire.envelope import Envelope

NOW = datetime(2026, 1, 1, tzinfo=UTC)
ENVELOPE = Envelope({"id": "1", "type": "payments.paid", "myextension": "Łódź"}, b"{}")
BROKER_HEADERS = {
    "x-death": [{"count": 1}],
    "x-first-death-queue": "q",
    "x-last-death-reason": "expired",
    "x-delivery-count": 3,
    "x-acquired-count": 3,
    "x-opt-x": 1,
    "CC": ["other"],
    "BCC": ["other"],
    REASON: "old",
}


def test_application_headers_are_copied_without_those_of_the_broker() -> None:
    headers = {**to_headers(ENVELOPE), "mine": True, "x-mine": 5}
    assert application_headers({**headers, **BROKER_HEADERS}) == headers
    assert application_headers(None) == {}


def test_values_that_pamqp_can_read_but_not_write_are_converted() -> None:
    assert application_headers(
        {"a": b"\xff", "b": 0.5, "c": 0.1, "d": 1e300, "e": {"f": [b"\xff", 0.1]}}
    ) == {
        "a": bytearray(b"\xff"),
        "b": 0.5,
        "c": "0.1",
        "d": "1e+300",
        "e": {"f": [bytearray(b"\xff"), "0.1"]},
    }


def test_the_headers_of_a_retry_contain_the_attempt_number() -> None:
    headers = retry_headers({**to_headers(ENVELOPE), ATTEMPT: 2}, 3)
    assert headers == {**to_headers(ENVELOPE), ATTEMPT: 3}


@given(
    st.builds(
        lambda character, times, tail: character * times + tail,
        st.sampled_from("aü日🦀"),
        st.integers(200, 1100),
        st.text(max_size=20),
    )
)
def test_a_long_reason_keeps_its_beginning_and_a_long_error_its_end_as_valid_text(
    text: str,
) -> None:
    dead = Dead(text, text * 8)
    headers = dead_letter_headers(None, dead, attempts=1, letter_id="l", now=NOW)
    reason, error = headers[REASON], headers[ERROR]
    if len(dead.reason.encode()) <= MAX_REASON_BYTES:
        assert reason == dead.reason
    else:
        assert reason.endswith("…")
        assert dead.reason.startswith(reason[:-1])
        assert MAX_REASON_BYTES - 4 < len(reason.encode()) <= MAX_REASON_BYTES
    if len(dead.error.encode()) <= MAX_ERROR_BYTES:
        assert error == dead.error
    else:
        assert error.startswith("…")
        assert dead.error.endswith(error[1:])
        assert MAX_ERROR_BYTES - 4 < len(error.encode()) <= MAX_ERROR_BYTES


@pytest.mark.parametrize(
    ("value", "count"), [(3, 3), (0, 0), (-1, 9), (True, 9), ("3", 9), (None, 9), (2.0, 9)]
)
def test_an_invalid_count_is_replaced_by_the_default(value: object, count: int) -> None:
    assert count_header({"n": value}, "n", 9) == count
    assert count_header({}, "n", 9) == 9
