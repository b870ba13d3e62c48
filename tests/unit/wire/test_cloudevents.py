"""Our encoding of CloudEvents against itself and against the `cloudevents` package, the oracle."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from cloudevents.core.base import BaseCloudEvent
from cloudevents.core.bindings import amqp, rabbitmq
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent
from hypothesis import given
from hypothesis import strategies as st

from eventmesh.contracts.message import Event
from eventmesh.testing.clock import ManualClock
from eventmesh.wire.cloudevents import (
    from_fields,
    from_headers,
    pack,
    to_fields,
    to_headers,
    unpack,
)
from eventmesh.wire.envelope import Envelope, check_envelope, seal

anything = st.dictionaries(
    st.text(min_size=1).filter(lambda name: name not in ("data", "datacontenttype")), st.text()
)


class Paid(Event, name="payments.paid", version=1, key="order_id"):
    order_id: str
    note: str = ""


def as_redis_returns(fields: dict[str, str | bytes]) -> Iterable[tuple[bytes, bytes]]:
    for name, value in fields.items():
        yield name.encode(), value if isinstance(value, bytes) else value.encode()


@given(anything, st.binary())
def test_redis_fields_preserve_any_attributes_and_data(
    attributes: dict[str, str], data: bytes
) -> None:
    envelope = Envelope(attributes, data)
    assert from_fields(as_redis_returns(to_fields(envelope))) == envelope


@given(anything, st.binary(), st.text(min_size=1) | st.none())
def test_amqp_headers_preserve_any_attributes_and_data(
    attributes: dict[str, str], data: bytes, content_type: str | None
) -> None:
    if content_type is not None:
        attributes["datacontenttype"] = content_type
    envelope = Envelope(attributes, data)
    assert from_headers(to_headers(envelope), content_type, data) == envelope


@given(anything, st.binary())
def test_a_packed_envelope_preserves_any_attributes_and_data(
    attributes: dict[str, str], data: bytes
) -> None:
    envelope = Envelope(attributes, data)
    assert unpack(pack(envelope)) == envelope


@given(st.lists(st.tuples(st.binary(), st.binary())))
def test_reading_redis_fields_never_fails(fields: list[tuple[bytes, bytes]]) -> None:
    envelope = from_fields(fields)
    assert all(isinstance(value, str) for value in envelope.attributes.values())
    assert from_fields(as_redis_returns(to_fields(envelope))) == envelope


header_values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.binary(),
    st.text(),
    st.datetimes(),
    st.dictionaries(st.text(), st.integers()),
)


@given(st.dictionaries(st.text() | st.text().map("ce-".__add__), header_values))
def test_reading_amqp_headers_never_fails(headers: dict[str, object]) -> None:
    envelope = from_headers(headers, None, b"")
    assert all(isinstance(value, str) for value in envelope.attributes.values())


@pytest.mark.parametrize("prefix", ["cloudEvents_", "cloudEvents:", "ce-"])
def test_every_attribute_prefix_of_the_bindings_is_read(prefix: str) -> None:
    assert from_headers({f"{prefix}id": "1"}, None, b"").attributes == {"id": "1"}


def test_headers_without_an_attribute_prefix_are_ignored() -> None:
    assert from_headers({"x-death": [], "id": "1", "my_ce-id": "2"}, "", b"").attributes == {}


def test_the_content_type_is_an_attribute_but_not_a_header() -> None:
    envelope = Envelope({"datacontenttype": "application/json"}, b"{}")
    assert to_headers(envelope) == {}
    assert from_headers({}, "application/json", b"{}") == envelope


@pytest.mark.parametrize(
    ("native", "text"),
    [
        (datetime(2026, 1, 1, 10, tzinfo=UTC), "2026-01-01T10:00:00Z"),
        (datetime(2026, 1, 1, 10), "2026-01-01T10:00:00Z"),
        (datetime(2026, 1, 1, 12, tzinfo=timezone(timedelta(hours=2))), "2026-01-01T10:00:00Z"),
    ],
)
def test_a_native_timestamp_of_amqp_becomes_rfc_3339_in_utc(native: datetime, text: str) -> None:
    envelope = from_headers({"cloudEvents_time": native}, None, b"")
    assert envelope.attributes["time"] == text
    assert envelope.time == native.replace(tzinfo=native.tzinfo or UTC)


@pytest.mark.parametrize(
    ("native", "text"),
    [(0, "1970-01-01T00:00:00Z"), (-1, "1969-12-31T23:59:59.999000Z"), (10**18, str(10**18))],
)
def test_an_integer_time_is_in_milliseconds_since_1970(native: int, text: str) -> None:
    assert from_headers({"cloudEvents_time": native}, None, b"").attributes["time"] == text


@pytest.mark.parametrize(("native", "text"), [(True, "true"), (False, "false"), (7, "7")])
def test_booleans_and_integers_have_their_canonical_text(native: object, text: str) -> None:
    assert from_headers({"cloudEvents_flag": native}, None, b"").attributes == {"flag": text}


def test_bytes_that_are_not_utf_8_are_written_as_escapes() -> None:
    assert from_headers({"ce-x": b"a\xff"}, None, b"").attributes == {"x": "a\\xff"}
    assert from_fields([(b"x", b"a\xff")]).attributes == {"x": "a\\xff"}


# Against the oracle

words = st.text(min_size=1, max_size=60)
keys = words.filter(lambda word: "\0" not in word)
extension_names = st.from_regex(r"[a-z0-9]{1,20}", fullmatch=True).filter(
    lambda name: name not in {"data", "datacontenttype", "time", "specversion"}
)
sealed = st.builds(
    lambda order, note, extensions: seal(
        Paid(order_id=order, note=note),
        source="payments",
        clock=ManualClock(datetime(2026, 5, 4, 3, 2, 1, 5000, tzinfo=UTC)),
        extensions=extensions,
    ),
    keys,
    st.text(),
    st.dictionaries(extension_names, words, max_size=5),
)


def expected_attributes(envelope: Envelope) -> dict[str, Any]:
    """The attributes as the oracle holds them: the time is a datetime."""
    return {**envelope.attributes, "time": envelope.time}


def oracle_event(envelope: Envelope) -> CloudEvent:
    return CloudEvent(expected_attributes(envelope), json.loads(envelope.data))


@given(sealed)
def test_a_sealed_envelope_is_a_valid_cloud_event(envelope: Envelope) -> None:
    event = oracle_event(envelope)
    again = JSONFormat().read(CloudEvent, JSONFormat().write(event))
    assert again.get_attributes() == expected_attributes(envelope)
    assert again.get_data() == json.loads(envelope.data)


def test_a_message_with_an_empty_key_is_a_valid_cloud_event() -> None:
    envelope = seal(Paid(order_id=""), source="payments", clock=ManualClock())
    assert not {"subject", "partitionkey"} & oracle_event(envelope).get_attributes().keys()


@given(sealed)
def test_the_oracle_reads_our_amqp_headers(envelope: Envelope) -> None:
    message = amqp.AMQPMessage(
        properties={"content-type": envelope.attributes["datacontenttype"]},
        application_properties=to_headers(envelope),
        application_data=envelope.data,
    )
    event = amqp.from_amqp_event(message)
    assert event.get_attributes() == expected_attributes(envelope)
    assert event.get_data() == json.loads(envelope.data)


def headers_of_the_amqp_binding(event: BaseCloudEvent) -> tuple[dict[str, Any], str, bytes]:
    message = amqp.to_binary_event(event)
    assert isinstance(message.application_properties["cloudEvents_time"], int)
    return (
        message.application_properties,
        message.properties["content-type"],
        message.application_data,
    )


def headers_with_a_native_time(event: BaseCloudEvent) -> tuple[dict[str, Any], str, bytes]:
    headers, content_type, data = headers_of_the_amqp_binding(event)
    # AMQP 0-9-1 has its own timestamp type, which clients represent as a datetime.
    return headers | {"cloudEvents_time": event.get_time()}, content_type, data


def headers_with_a_colon(event: BaseCloudEvent) -> tuple[dict[str, Any], str, bytes]:
    headers, content_type, data = headers_of_the_amqp_binding(event)
    renamed = {name.replace("cloudEvents_", "cloudEvents:"): v for name, v in headers.items()}
    return renamed, content_type, data


def headers_of_the_rabbitmq_binding(event: BaseCloudEvent) -> tuple[dict[str, Any], str, bytes]:
    message = rabbitmq.to_binary_event(event)
    assert message.content_type is not None
    return message.headers, message.content_type, message.body


@pytest.mark.parametrize(
    "written_by",
    [
        headers_of_the_amqp_binding,
        headers_with_a_native_time,
        headers_with_a_colon,
        headers_of_the_rabbitmq_binding,
    ],
    ids=lambda binding: binding.__name__,
)
@given(envelope=sealed)
def test_we_read_the_headers_that_the_oracle_writes(
    written_by: Callable[[BaseCloudEvent], tuple[dict[str, Any], str, bytes]], envelope: Envelope
) -> None:
    read = from_headers(*written_by(oracle_event(envelope)))
    check_envelope(read)
    assert read.time == envelope.time
    without_time = {**read.attributes, "time": ""}
    assert without_time == {**envelope.attributes, "time": ""}
    assert json.loads(read.data) == json.loads(envelope.data)


def test_unknown_extensions_and_non_ascii_characters_survive_a_round_trip() -> None:
    envelope = seal(
        Paid(order_id="Łódź 日本"),
        source="payments",
        clock=ManualClock(),
        extensions={"myextension": "ü\u2028\n"},
    )
    back = from_headers(*headers_of_the_rabbitmq_binding(oracle_event(envelope)))
    assert back.attributes == envelope.attributes
    assert unpack(pack(back)) == back
    assert from_fields(as_redis_returns(to_fields(back))) == back
