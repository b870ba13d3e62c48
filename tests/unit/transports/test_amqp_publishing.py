"""Verdicts on what was published, from a broker that says what a test wants."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest
from aiormq.abc import ChannelFrame
from aiormq.exceptions import AMQPConnectionError, ChannelPreconditionFailed
from pamqp.commands import Basic
from pamqp.frame import FrameTypes, marshal, unmarshal
from pamqp.header import ContentHeader

from eventmesh.transports.rabbitmq.connection import Link
from eventmesh.transports.rabbitmq.frames import Tap
from eventmesh.transports.rabbitmq.parcels import Parcel
from eventmesh.transports.rabbitmq.publishing import Sender, Shipment
from eventmesh.transports.rabbitmq.topology import Piece


async def eventually(condition: Callable[[], bool]) -> None:
    """Return once the condition holds."""
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("it never held")


class Channel:
    """An open channel whose broker is silent until told to speak."""

    number = 1
    connection = SimpleNamespace(connection_tune=SimpleNamespace(frame_max=4096))

    def __init__(self) -> None:
        self.written: list[FrameTypes] = []
        self.closing = asyncio.get_running_loop().create_future()
        self.write_queue = SimpleNamespace(put=self._put)

    @property
    def is_closed(self) -> bool:
        return self.closing.done()

    def create_future(self) -> asyncio.Future[None]:
        return asyncio.get_running_loop().create_future()

    async def close(self) -> None:
        self.lose(asyncio.CancelledError())

    def lose(self, error: BaseException) -> None:
        if not self.closing.done():
            self.closing.set_exception(error)
            self.closing.exception()

    async def _put(self, frame: ChannelFrame) -> None:
        rest = frame.payload
        while rest:
            size, _, value = unmarshal(rest)
            self.written.append(value)
            rest = rest[size:]
        assert frame.drain_future is not None
        frame.drain_future.set_result(None)


class Broker:
    """A link to nowhere. `verdicts` is what its channels are told to say, one after another, each
    once so many messages were written; an exception closes the channel."""

    def __init__(self) -> None:
        self.channels: list[Channel] = []
        self.ensured: list[Sequence[Piece]] = []
        self._tap: Tap | None = None

    async def not_blocked(self) -> None: ...

    async def ensure(self, pieces: Sequence[Piece]) -> None:
        self.ensured.append(pieces)

    def forget(self, pieces: Sequence[Piece]) -> None: ...

    async def new_channel(self) -> Channel:
        self.channels.append(Channel())
        return self.channels[-1]

    def tap(self, _: Channel, tap: Tap) -> None:
        self._tap = tap

    @property
    def published(self) -> int:
        """Messages that were written to the channel of today."""
        if not self.channels:
            return 0
        return sum(isinstance(frame, Basic.Publish) for frame in self.channels[-1].written)

    async def has(self, count: int) -> None:
        await eventually(lambda: self.published >= count)

    def says(self, *frames: FrameTypes) -> None:
        for frame in frames:
            raw = marshal(frame, 1)
            assert self._tap is not None
            assert self._tap.take(raw[0], raw, 7, len(raw) - 1)

    def returns(self, message_id: str) -> None:
        header = ContentHeader(properties=Basic.Properties(message_id=message_id))
        self.says(Basic.Return(312, "NO_ROUTE", "", ""), header)


@pytest.fixture
async def broker() -> Broker:
    return Broker()


@pytest.fixture
async def sender(broker: Broker) -> Sender:
    return Sender(cast(Link, broker))


def shipment_of(*ids: str) -> Shipment:
    return Shipment([Parcel("", "key", b"body", Basic.Properties(message_id=id_)) for id_ in ids])


def done_future() -> asyncio.Future[None]:
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    future.set_result(None)
    return future


def sending(sender: Sender, shipment: Shipment) -> asyncio.Task[Any]:
    return asyncio.ensure_future(sender.send(shipment, []))


async def test_a_batch_returns_when_all_are_confirmed_one_by_one_or_together(
    broker: Broker, sender: Sender
) -> None:
    shipment = shipment_of(*"abcdef")
    task = sending(sender, shipment)
    await broker.has(6)
    broker.says(Basic.Ack(2, False), Basic.Ack(4, True), Basic.Ack(6, False))
    await asyncio.sleep(0)
    assert not task.done()
    assert shipment.confirmed == {0, 1, 2, 3, 5}
    broker.says(Basic.Ack(6, True))
    assert await task == {}


async def test_who_stops_waiting_knows_what_was_confirmed(broker: Broker, sender: Sender) -> None:
    shipment = shipment_of(*"abc")
    task = sending(sender, shipment)
    await broker.has(3)
    broker.says(Basic.Ack(2, False))
    task.cancel()
    await asyncio.wait([task])
    assert shipment.confirmed == {1}
    # What comes late is no verdict on what is sent next.
    following = shipment_of("d")
    task = sending(sender, following)
    await broker.has(4)
    broker.says(Basic.Ack(3, True))
    await asyncio.sleep(0)
    assert not task.done()
    broker.says(Basic.Ack(4, False))
    assert await task == {}


async def test_a_lost_connection_is_raised_and_what_was_confirmed_is_known(
    broker: Broker, sender: Sender
) -> None:
    shipment = shipment_of(*"abc")
    task = sending(sender, shipment)
    await broker.has(3)
    broker.says(Basic.Ack(1, False))
    broker.channels[0].lose(AMQPConnectionError("gone"))
    with pytest.raises(AMQPConnectionError, match="gone"):
        await task
    assert shipment.confirmed == {0}


async def test_a_channel_that_closes_while_a_batch_waits_to_be_written_is_noticed(
    broker: Broker, sender: Sender, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def put(self: Channel, _: ChannelFrame) -> None:
        self.lose(AMQPConnectionError("gone"))
        for _turn in range(5):  # in which all that hear of it hear of it
            await asyncio.sleep(0)

    monkeypatch.setattr(Channel, "_put", put)
    monkeypatch.setattr(Channel, "create_future", lambda _: done_future())
    async with asyncio.timeout(60):
        with pytest.raises(AMQPConnectionError):
            await sender.send(shipment_of(*"abc"), [])


async def test_what_its_queue_refuses_is_named(broker: Broker, sender: Sender) -> None:
    task = sending(sender, shipment_of(*"abc"))
    await broker.has(3)
    broker.says(Basic.Nack(2, False), Basic.Ack(3, True))
    refused = await task
    assert list(refused) == [1]
    assert "refused it" in refused[1]


async def test_what_comes_back_is_sent_again_when_the_topology_was_healed(
    broker: Broker, sender: Sender
) -> None:
    shipment = shipment_of(*"aba")  # the same message twice
    task = sending(sender, shipment)
    await broker.has(3)
    broker.returns("b")
    broker.returns("a")
    broker.says(Basic.Ack(3, True))
    await broker.has(5)
    assert shipment.confirmed == {2}
    assert len(broker.ensured) == 2
    broker.returns("a")
    broker.says(Basic.Ack(5, True))
    refused = await task
    assert list(refused) == [0]
    assert "no queue takes it (NO_ROUTE)" in refused[0]


async def test_a_message_that_closes_the_channel_is_found_and_the_others_arrive(
    broker: Broker, sender: Sender
) -> None:
    shipment = shipment_of(*"abc")
    task = sending(sender, shipment)
    await broker.has(3)
    broker.says(Basic.Ack(1, False))
    for channel, verdict in ((1, "too large"), (2, None)):
        broker.channels[-1].lose(ChannelPreconditionFailed("too large"))
        await eventually(lambda count=channel: len(broker.channels) > count)
        await broker.has(1)
        if verdict is None:
            broker.says(Basic.Ack(1, False))
    assert await task == {1: "too large"}
    assert shipment.confirmed == {0, 2}


async def test_what_cannot_be_written_is_refused_and_the_others_are_sent(
    broker: Broker, sender: Sender
) -> None:
    parcels = shipment_of("a", "b" * 256, "c").parcels
    odd = Parcel("", "k" * 256, b"", Basic.Properties(message_id="d"))
    task = sending(sender, Shipment([*parcels, odd]))
    await broker.has(2)
    broker.says(Basic.Ack(2, True))
    refused = await task
    assert sorted(refused) == [1, 3]
    assert all("cannot be written as AMQP" in why for why in refused.values())


async def test_a_large_body_is_cut_into_frames(broker: Broker, sender: Sender) -> None:
    body = bytes(range(256)) * 50
    task = sending(sender, Shipment([Parcel("", "k", body, Basic.Properties())]))
    await broker.has(1)
    broker.says(Basic.Ack(1, False))
    assert await task == {}
    parts = [cast(Any, frame).value for frame in broker.channels[0].written[2:]]
    assert b"".join(parts) == body
    assert max(map(len, parts)) == 4096 - 8
