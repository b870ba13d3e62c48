"""The frames that publish a message are byte for byte those that pamqp writes."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pamqp.body import ContentBody
from pamqp.commands import Basic
from pamqp.frame import marshal
from pamqp.header import ContentHeader

from eventmesh.transports.rabbitmq.encoding import body_frame, header_frame, publish_frame
from eventmesh.transports.rabbitmq.headers import routing_headers
from eventmesh.transports.rabbitmq.truncation import ENCODING_ERRORS

texts = st.text(max_size=8) | st.sampled_from(["x" * 255, "ä" * 200, "lone surrogate \ud800"])
names = st.text(max_size=8) | st.sampled_from(["BCC", "cloudEvents_id", "ä" * 65, "n" * 200])
scalars = st.one_of(
    texts,
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.decimals(allow_nan=False, places=2),
    st.just(datetime(2026, 1, 1, tzinfo=UTC)),
    st.binary(max_size=20).map(bytearray),
    st.just(b"bytes cannot be written"),
)
values = scalars | st.lists(scalars, max_size=2) | st.dictionaries(names, scalars, max_size=2)
headers = st.none() | st.dictionaries(names, texts | values, max_size=6)
as_we_publish = st.fixed_dictionaries(
    {
        "content_type": st.just("application/json") | texts,
        "headers": headers,
        "delivery_mode": st.just(2),
        "message_id": st.uuids().map(str) | texts,
    }
)
others = st.fixed_dictionaries(
    {},
    optional={
        "content_type": texts,
        "content_encoding": texts,
        "headers": headers,
        "delivery_mode": st.sampled_from([1, 2]),
        "priority": st.integers(0, 9),
        "correlation_id": texts,
        "reply_to": texts,
        "expiration": texts,
        "message_id": texts,
        "timestamp": st.just(datetime(2026, 1, 1, tzinfo=UTC)),
        "message_type": texts,
        "user_id": texts,
        "app_id": texts,
    },
)


@given(as_we_publish | others, st.integers(0, 2**63), st.integers(0, 65_535))
@example(
    {"delivery_mode": True, "content_type": "x", "message_id": "y", "headers": {"a": "b"}}, 0, 1
)
def test_a_content_header_is_the_same(given: dict[str, Any], size: int, channel: int) -> None:
    properties = Basic.Properties(**given)
    try:
        expected = marshal(ContentHeader(body_size=size, properties=properties), channel)
    except ENCODING_ERRORS as error:
        with pytest.raises(type(error)):
            header_frame(properties, size, channel)
    else:
        assert header_frame(properties, size, channel) == expected


@given(st.binary(max_size=100), st.integers(0, 65_535))
def test_a_frame_of_the_body_is_the_same(part: bytes, channel: int) -> None:
    assert body_frame(part, channel) == marshal(ContentBody(part), channel)


def test_a_message_is_published_as_mandatory() -> None:
    expected = Basic.Publish(exchange="prefix", routing_key="orders.placed", mandatory=True)
    for channel in (1, 2, 1):
        frame = publish_frame("prefix", "orders.placed", channel)
        assert frame == marshal(expected, channel)


@pytest.mark.parametrize("key", ["order-1", "order-2"])
def test_the_bucket_of_a_key_is_the_same(key: str) -> None:
    found = header_frame(properties := _published(routing_headers(key)), 5, 1)
    assert found == marshal(ContentHeader(body_size=5, properties=properties), 1)


def _published(more: dict[str, Any]) -> Basic.Properties:
    return Basic.Properties(
        content_type="application/json",
        headers={"cloudEvents_type": "orders.placed", "decimal": Decimal("1.5"), **more},
        delivery_mode=2,
        message_id="7",
    )
