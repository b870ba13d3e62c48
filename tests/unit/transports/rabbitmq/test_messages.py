"""Every delivered message can be published again, complete or truncated.

The decoder of pamqp is the reference.
"""

from __future__ import annotations

import struct
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pamqp.commands import Basic
from pamqp.frame import unmarshal
from pamqp.header import ContentHeader

from eventmesh.transports.base import Subscription
from eventmesh.transports.outcome import Dead
from eventmesh.transports.rabbitmq.dead_letters import letter_of
from eventmesh.transports.rabbitmq.headers import (
    ATTEMPT,
    REASON,
    TRUNCATED,
    dead_letter_headers,
    retry_headers,
)
from eventmesh.transports.rabbitmq.messages import (
    OutgoingMessage,
    copy_of,
    encode,
)
from eventmesh.transports.rabbitmq.received import UNDECODABLE, ReceivedMessage
from eventmesh.transports.rabbitmq.truncation import (
    ENCODING_ERRORS,
    fit_properties,
    smaller_forms,
)

DEFAULT_FRAME = 131_072
SMALLEST_FRAME = 4096
"""The smallest that RabbitMQ accepts."""

NOW = datetime(2026, 1, 1, tzinfo=UTC)
PAID = Subscription("orders.note_payment", ("payments.paid",))
FAILURE = Dead("no such account " + "r" * 2000, "Traceback " + "e" * 20_000)


# Content headers as clients in other languages may write them


def short(raw: bytes) -> bytes:
    return bytes([len(raw)]) + raw


def long(raw: bytes) -> bytes:
    return struct.pack(">I", len(raw)) + raw


names = st.binary(max_size=255) | st.sampled_from(
    [b"cloudEvents_id", b"ce-subject", b"x-death", b"CC", b"x-eventmesh-attempt", b"n" * 255]
)
texts = st.binary(max_size=200) | st.integers(0, 140_000).map(lambda size: b"x" * size)
scalars = st.one_of(
    texts.map(lambda raw: b"S" + long(raw)),
    texts.map(lambda raw: b"x" + long(raw)),
    st.sampled_from(
        [b"V", b"t\0", b"t\1", b"d" + struct.pack(">d", 0.1), b"d\x7f\xf8" + b"\0" * 6]
    ),
    st.sampled_from("bBtsuIilLfdDT").flatmap(
        lambda tag: st.binary(
            min_size=(size := {"b": 1, "B": 1, "t": 1, "s": 2, "u": 2, "D": 5}.get(tag, 0))
            or (4 if tag in "Iif" else 8),
            max_size=size or (4 if tag in "Iif" else 8),
        ).map(lambda raw: tag.encode() + raw)
    ),
)


def table(items: list[tuple[bytes, bytes]]) -> bytes:
    return long(b"".join(short(name) + value for name, value in items))


values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda items: b"A" + long(b"".join(items)))
        | st.lists(st.tuples(names, inner), max_size=3).map(lambda items: b"F" + table(items))
    ),
    max_leaves=6,
)


@st.composite
def content_headers(draw: st.DrawFn) -> bytes:
    flags, parts = 0, []
    shorts = st.none() | st.binary(max_size=255) | st.just(b"s" * 255)
    for bit, strategy in (
        (15, shorts.map(lambda raw: raw if raw is None else short(raw))),
        (14, shorts.map(lambda raw: raw if raw is None else short(raw))),
        (13, st.none() | st.lists(st.tuples(names, values), max_size=6).map(table)),
        (12, st.sampled_from([None, b"\0", b"\1", b"\2", b"\xff"])),
        (11, st.sampled_from([None, b"\0", b"\xff"])),
        *(
            (bit, shorts.map(lambda raw: raw if raw is None else short(raw)))
            for bit in (10, 9, 8, 7)
        ),
        (6, st.none() | st.binary(min_size=8, max_size=8)),
        *(
            (bit, shorts.map(lambda raw: raw if raw is None else short(raw)))
            for bit in (5, 4, 3, 2)
        ),
    ):
        part = draw(strategy)
        if part is not None:
            flags |= 1 << bit
            parts.append(part)
    return struct.pack(">HHQH", 60, 0, 2, flags) + b"".join(parts)


def with_headers(*items: tuple[bytes, bytes]) -> bytes:
    return struct.pack(">HHQH", 60, 0, 2, 1 << 13) + table(list(items))


def text(name: bytes, size: int, of: bytes = b"x") -> tuple[bytes, bytes]:
    return name, b"S" + long(of * (size // len(of)))


def nested(depth: int) -> bytes:
    value = b"V"
    for _ in range(depth):
        value = b"A" + long(value)
    return value


def written(message: OutgoingMessage, frame_max: int) -> Basic.Properties:
    """The properties of the message as the broker reads them; each frame fits."""
    rest = encode(message, 1, frame_max)
    frames = []
    while rest:
        size, _, frame = unmarshal(rest)
        assert size <= frame_max
        frames.append(frame)
        rest = rest[size:]
    header = frames[1]
    assert isinstance(header, ContentHeader)
    return header.properties


def retry_of(received: ReceivedMessage, **options: Any) -> OutgoingMessage:
    headers = retry_headers(received.essentials()[1], 2)
    return copy_of(received.properties(), received.body, "", "queue", headers, **options)


def dead_letter_of(received: ReceivedMessage) -> OutgoingMessage:
    original = received.essentials()[1]
    headers = dead_letter_headers(original, FAILURE, attempts=4, letter_id="l-1", now=NOW)
    return copy_of(
        received.properties(), received.body, "", "queue", headers, may_truncate="everything"
    )


hostile = given(content_headers(), st.sampled_from([SMALLEST_FRAME, 8192, DEFAULT_FRAME]))
LARGE = with_headers(text(b"cloudEvents_huge", 130_300), text(b"cloudEvents_id", 36))
EUROS = with_headers(text("€".encode(), 130_590, "€".encode()))
MANY = with_headers(*((f"{number:05}".encode(), b"V") for number in range(18_000)))
NUMBERS = with_headers(
    *((f"{n:05}".encode(), b"d\x3f\xb9\x99\x99\x99\x99\x99\x9a") for n in range(8000))
)
DEEP = with_headers((b"deep", nested(450)))
INVALID_DECIMALS = with_headers((b"a", b"D\xff\xff\xff\xff\xff"), (b"b", b"D\x05\x80\0\0\0"))
SAME_BEGINNING = with_headers(text(b"n" * 200 + b"1", 9), text(b"n" * 200 + b"2", 9))


@hostile
@example(LARGE, DEFAULT_FRAME)
@example(EUROS, DEFAULT_FRAME)
@example(MANY, DEFAULT_FRAME)
@example(NUMBERS, DEFAULT_FRAME)
@example(DEEP, DEFAULT_FRAME)
@example(INVALID_DECIMALS, DEFAULT_FRAME)
@example(SAME_BEGINNING, DEFAULT_FRAME)
@example(LARGE, SMALLEST_FRAME)
@example(MANY, SMALLEST_FRAME)
def test_every_delivered_message_can_be_dead_lettered(raw: bytes, frame_max: int) -> None:
    message = dead_letter_of(ReceivedMessage(1, raw, b"{}"))
    headers = written(message, frame_max).headers or {}
    letter = letter_of(PAID, headers, None, b"{}")
    assert (letter.id, letter.attempts, letter.died_at) == ("l-1", 4, NOW)
    assert letter.reason.startswith(("…", "no such account"))
    too_large = "message size 9 is larger than configured max size 1"
    for properties, body in smaller_forms(message.properties, message.body, too_large):
        written(replace(message, properties=properties, body=body), frame_max)


@hostile
@example(LARGE, DEFAULT_FRAME)
@example(NUMBERS, DEFAULT_FRAME)
@example(DEEP, DEFAULT_FRAME)
@example(INVALID_DECIMALS, DEFAULT_FRAME)
def test_every_delivered_message_can_be_retried(raw: bytes, frame_max: int) -> None:
    headers = written(
        retry_of(ReceivedMessage(1, raw, b"{}"), may_truncate="headers"), frame_max
    ).headers
    assert headers is not None
    assert headers[ATTEMPT] == 2


@pytest.mark.parametrize("raw", [INVALID_DECIMALS, DEEP, with_headers(text(b"cloudEvents_id", 36))])
def test_a_retry_with_unusual_values_is_not_truncated(raw: bytes) -> None:
    retry = retry_of(ReceivedMessage(1, raw, b"{}"), may_truncate="nothing")
    assert TRUNCATED not in (written(retry, DEFAULT_FRAME).headers or {})


def test_a_retry_that_would_have_to_be_truncated_is_rejected() -> None:
    retry = retry_of(
        ReceivedMessage(1, with_headers(text(b"x", 131_030)), b"{}"), may_truncate="nothing"
    )
    with pytest.raises(ENCODING_ERRORS, match="longer than the 131064 bytes of a frame"):
        encode(retry, 1, DEFAULT_FRAME)


# Truncation


def test_the_largest_application_headers_are_truncated_first_and_attributes_last() -> None:
    raw = with_headers(
        text(b"cloudEvents_subject", 50_000), text(b"large", 60_000), text(b"small", 10_000)
    )
    headers = written(dead_letter_of(ReceivedMessage(1, raw, b"{}")), DEFAULT_FRAME).headers or {}
    assert TRUNCATED not in headers  # it fits
    raw = with_headers(
        text(b"cloudEvents_subject", 50_000), text(b"large", 70_000), text(b"small", 10_000)
    )
    headers = written(dead_letter_of(ReceivedMessage(1, raw, b"{}")), DEFAULT_FRAME).headers or {}
    assert headers["cloudEvents_subject"] == "x" * 50_000
    assert headers["small"] == "x" * 10_000
    assert headers["large"] == "x" * 253 + "…"
    assert headers[TRUNCATED] == "header large (70,011 bytes)"


def test_a_dead_letter_says_what_was_truncated() -> None:
    headers = written(dead_letter_of(ReceivedMessage(1, LARGE, b"{}")), DEFAULT_FRAME).headers or {}
    letter = letter_of(PAID, headers, None, b"{}")
    assert letter.reason.endswith("(truncated: header cloudEvents_huge (130,322 bytes))")
    assert letter.envelope.id == "x" * 36


def test_properties_that_fit_are_unchanged() -> None:
    properties = Basic.Properties(headers={"a": "b"}, priority=3, message_id="m")
    assert fit_properties(properties, SMALLEST_FRAME) == properties


def test_a_property_that_cannot_be_encoded_is_removed_and_named() -> None:
    fitted = fit_properties(Basic.Properties(message_id="m" * 256, app_id="shop"), SMALLEST_FRAME)
    assert (fitted.message_id, fitted.app_id, fitted.headers) == (
        None,
        "shop",
        {TRUNCATED: "message_id"},
    )


def test_a_body_that_is_too_large_for_the_broker_is_truncated_to_its_limit() -> None:
    properties = Basic.Properties(headers={"cloudEvents_id": "1", "mine": "x", REASON: "r"})
    rejection = "PRECONDITION_FAILED - message size 100 is larger than configured max size 80"
    forms = list(smaller_forms(properties, b"x" * 100, rejection))
    assert [len(body) for _, body in forms] == [80, 0, 0]
    note = "properties, data (the first 80 of 100 bytes are kept)"
    assert forms[0][0].headers == {"cloudEvents_id": "1", REASON: "r", TRUNCATED: note}
    assert set(forms[2][0].headers or {}) == {REASON, TRUNCATED}


def test_a_frame_size_of_zero_means_no_limit() -> None:
    properties = Basic.Properties(headers={"a": "b" * 300_000})
    rest = encode(OutgoingMessage("", "queue", b"x" * 300_000, properties), 1, 0)
    assert len(rest) > 600_000


def test_headers_nested_too_deeply_are_undecodable() -> None:
    assert ReceivedMessage(1, with_headers((b"deep", nested(40))), b"").essentials()[1].keys() == {
        "deep"
    }
    for depth in (41, 450, 20_000):
        raw = with_headers((b"deep", nested(depth)))
        assert list(ReceivedMessage(1, raw, b"").essentials()[1]) == [UNDECODABLE]
        assert list(ReceivedMessage(1, raw, b"").properties().headers or {}) == [UNDECODABLE]
