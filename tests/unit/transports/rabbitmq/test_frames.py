"""Reading deliveries and confirms from the stream of frames.

The encoder and decoder of pamqp are the reference.
"""

from __future__ import annotations

import asyncio
import struct
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pamqp.body import ContentBody
from pamqp.commands import Basic
from pamqp.frame import FrameTypes, marshal, unmarshal
from pamqp.header import ContentHeader
from pamqp.heartbeat import Heartbeat

from eventmesh.transports.rabbitmq.frames import Confirms, Deliveries, FrameStream, Tap
from eventmesh.transports.rabbitmq.received import UNDECODABLE, ReceivedMessage

short_texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30)
fields: st.SearchStrategy[Any] = st.recursive(
    st.one_of(
        short_texts,
        st.booleans(),
        st.none(),
        st.integers(-(2**63), 2**63 - 1),
        st.binary(max_size=20).map(bytearray),
        st.datetimes(datetime(1970, 1, 2), datetime(2100, 1, 1)).map(
            lambda at: at.replace(microsecond=0, tzinfo=UTC)
        ),
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(short_texts, inner, max_size=3),
    max_leaves=5,
)
all_properties = st.builds(
    Basic.Properties,
    content_type=st.none() | short_texts,
    content_encoding=st.none() | short_texts,
    headers=st.none() | st.dictionaries(short_texts, fields, max_size=6),
    delivery_mode=st.sampled_from([1, 2]),
    message_id=st.none() | short_texts,
    timestamp=st.none() | st.just(datetime(2026, 1, 1, tzinfo=UTC)),
    app_id=st.none() | short_texts,
)


def header_of(properties: Basic.Properties, body: bytes = b"") -> bytes:
    return ContentHeader(body_size=len(body), properties=properties).marshal()


def delivered(
    properties: Basic.Properties, body: bytes, *, channel: int = 1, tag: int = 7, size: int = 100
) -> bytes:
    """The frames of one delivery, its body split into parts of `size`."""
    frames: list[FrameTypes] = [
        Basic.Deliver("consumer", tag, False, "exchange", "key"),
        ContentHeader(body_size=len(body), properties=properties),
        *(ContentBody(body[at : at + size]) for at in range(0, len(body), size)),
    ]
    return b"".join(marshal(frame, channel) for frame in frames)


async def read_all(stream: bytes, taps: dict[int, Tap], chunk: int = 1 << 20) -> list[bytes]:
    """The frames that are passed on to aiormq, read as it reads them."""
    reader = asyncio.StreamReader()
    frames = FrameStream(reader, taps)
    read: list[bytes] = []

    async def read_as_aiormq_does() -> None:
        while not frames.at_eof():
            head = await frames.readexactly(1) + await frames.readexactly(6)
            read.append(head + await frames.readexactly(struct.unpack(">BHI", head)[2] + 1))

    reading = asyncio.ensure_future(read_as_aiormq_does())
    for at in range(0, len(stream), chunk):
        reader.feed_data(stream[at : at + chunk])
        await asyncio.sleep(0)
    reader.feed_eof()
    await asyncio.gather(reading, return_exceptions=True)
    error = reading.exception()
    assert error is None or isinstance(error, asyncio.IncompleteReadError)
    return read


@given(all_properties)
@example(Basic.Properties(headers={"ä": bytearray(b"\xff")}))
def test_the_decoder_of_headers_agrees_with_that_of_pamqp(properties: Basic.Properties) -> None:
    raw = header_of(properties)
    expected = ContentHeader()
    expected.unmarshal(raw)
    received = ReceivedMessage(1, raw, b"")
    content_type, headers = received.essentials()
    assert content_type == expected.properties.content_type
    assert headers == (expected.properties.headers or {})
    assert received.properties() == expected.properties


@given(all_properties, st.binary(min_size=1, max_size=200), st.data())
def test_damaged_headers_never_raise(
    properties: Basic.Properties, noise: bytes, data: st.DataObject
) -> None:
    raw = header_of(properties)
    at = data.draw(st.integers(12, len(raw)))
    received = ReceivedMessage(1, raw[:at] + noise + raw[at + len(noise) :], b"")
    content_type, headers = received.essentials()
    assert content_type is None or isinstance(content_type, str)
    assert isinstance(headers, dict)
    received.properties()


def test_an_undecodable_header_is_kept_in_hexadecimal() -> None:
    raw = header_of(Basic.Properties(content_type="a/b", headers={"name": "x"}))
    raw = raw.replace(b"name", b"na\xff\xff")
    assert ReceivedMessage(1, raw, b"").essentials() == (None, {UNDECODABLE: raw.hex()})


def test_a_timestamp_out_of_range_does_not_affect_other_headers() -> None:
    raw = header_of(Basic.Properties(headers={"at": datetime(2026, 1, 1, tzinfo=UTC), "name": "x"}))
    moment = struct.pack(">q", int(datetime(2026, 1, 1, tzinfo=UTC).timestamp()))
    out_of_range = 2**62
    raw = raw.replace(moment, struct.pack(">q", out_of_range))
    with pytest.raises((ValueError, OverflowError)):
        ContentHeader().unmarshal(raw)
    assert ReceivedMessage(1, raw, b"").essentials() == (None, {"at": out_of_range, "name": "x"})
    assert ReceivedMessage(1, raw, b"").properties().headers == {"at": out_of_range, "name": "x"}


@given(
    st.lists(st.binary(max_size=350), max_size=5),
    st.sampled_from([1, 2, 7, 64, 1 << 20]),
)
async def test_deliveries_are_intercepted_and_other_frames_passed_on_for_every_chunk_size(
    bodies: list[bytes], chunk: int
) -> None:
    received: list[ReceivedMessage] = []
    other = marshal(Basic.Cancel("consumer"), 1)
    elsewhere = delivered(Basic.Properties(), b"elsewhere", channel=2)
    stream = b"".join(
        delivered(Basic.Properties(message_id=str(number)), body, tag=number) + other + elsewhere
        for number, body in enumerate(bodies)
    )
    passed_on = await read_all(stream, {1: Deliveries(received.append)}, chunk)
    assert [message.tag for message in received] == list(range(len(bodies)))
    assert [message.body for message in received] == bodies
    assert b"".join(passed_on) == (other + elsewhere) * len(bodies)


async def test_a_header_that_would_close_the_connection_is_replaced() -> None:
    broken = delivered(Basic.Properties(headers={"name": "x"}), b"body").replace(
        b"name", b"\xff" * 4
    )
    method, header, body = await read_all(broken, {})
    assert (method + header + body) != broken
    frame = unmarshal(header)[2]
    assert isinstance(frame, ContentHeader)
    assert frame.body_size == 4
    assert list(frame.properties.headers or {}) == [UNDECODABLE]
    assert unmarshal(body)[2].value == b"body"  # type: ignore[union-attr]


async def test_aiormq_receives_a_heartbeat_if_all_frames_were_intercepted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("eventmesh.transports.rabbitmq.frames._HEARTBEAT_AFTER", 0.0)
    stream = delivered(Basic.Properties(), b"body")
    [heartbeat] = await read_all(stream, {1: Deliveries(lambda _: None)})
    assert isinstance(unmarshal(heartbeat)[2], Heartbeat)


@pytest.mark.parametrize("received", [b"AMQP\0\0\x09\x01", b"HTTP/1.1 400 Bad Request\r\n\r\n"])
async def test_data_that_is_not_amqp_is_passed_on_to_aiormq(received: bytes) -> None:
    reader = asyncio.StreamReader()
    reader.feed_data(received)
    reader.feed_eof()
    frames = FrameStream(reader, {})
    assert await frames.readexactly(1) + await frames.readexactly(6) == received[:7]
    assert received[7:].startswith(await frames.readexactly(1 << 30))
    assert frames.at_eof()


async def test_confirms_and_returned_messages_are_reported_in_order() -> None:
    reported: list[tuple[object, ...]] = []
    confirms = Confirms(lambda *each: reported.append(each), lambda *each: reported.append(each))
    frames: list[FrameTypes] = [
        Basic.Ack(3, True),
        Basic.Return(312, "NO_ROUTE", "exchange", "key"),
        ContentHeader(body_size=4, properties=Basic.Properties(message_id="m")),
        ContentBody(b"body"),
        Basic.Ack(4, False),
        Basic.Nack(6, True),
        Basic.Return(312, "NO_ROUTE", "exchange", "key"),
        ContentHeader(body_size=0, properties=Basic.Properties(message_id="n")),
        Basic.Nack(7, False),
    ]
    other = marshal(Basic.QosOk(), 1)
    passed_on = await read_all(
        b"".join(marshal(frame, 1) for frame in frames) + other, {1: confirms}
    )
    assert reported == [
        (3, True, True),
        ("m", "NO_ROUTE"),
        (4, False, True),
        (6, True, False),
        ("n", "NO_ROUTE"),
        (7, False, False),
    ]
    assert passed_on == [other]
