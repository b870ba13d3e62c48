"""Publishing with confirms, on a fake broker whose answers each test chooses."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, cast

import pytest
from aiormq.abc import ChannelFrame
from aiormq.exceptions import AMQPConnectionError, ChannelPreconditionFailed
from pamqp.commands import Basic
from pamqp.frame import FrameTypes, marshal, unmarshal
from pamqp.header import ContentHeader

from eventmesh.transports.rabbitmq.connection import BrokerConnection
from eventmesh.transports.rabbitmq.frames import Tap
from eventmesh.transports.rabbitmq.messages import OutgoingMessage
from eventmesh.transports.rabbitmq.publishing import Batch, Publisher
from eventmesh.transports.rabbitmq.topology import Entity


async def eventually(condition: Callable[[], bool]) -> None:
    """Wait until the condition holds."""
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("the condition never held")


class Channel:
    """An open channel that records what is written to it, and whose answers come from the test."""

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
    """A fake connection with the broker behind it."""

    def __init__(self) -> None:
        self.channels: list[Channel] = []
        self.declared: list[Sequence[Entity]] = []
        self._tap: Tap | None = None

    @asynccontextmanager
    async def guard(self, _: float) -> AsyncIterator[None]:
        yield

    async def wait_until_unblocked(self) -> None: ...

    async def ensure_declared(self, entities: Sequence[Entity]) -> None:
        self.declared.append(entities)

    def forget_declared(self, entities: Sequence[Entity]) -> None: ...

    async def open_channel(self) -> Channel:
        self.channels.append(Channel())
        return self.channels[-1]

    def tap(self, _: Channel, tap: Tap) -> None:
        self._tap = tap

    @property
    def published(self) -> int:
        """How many messages were written to the newest channel."""
        if not self.channels:
            return 0
        return sum(isinstance(frame, Basic.Publish) for frame in self.channels[-1].written)

    async def wait_for_published(self, count: int) -> None:
        await eventually(lambda: self.published >= count)

    def send(self, *frames: FrameTypes) -> None:
        for frame in frames:
            raw = marshal(frame, 1)
            assert self._tap is not None
            assert self._tap.take(raw[0], raw, 7, len(raw) - 1)

    def return_message(self, message_id: str) -> None:
        header = ContentHeader(properties=Basic.Properties(message_id=message_id))
        self.send(Basic.Return(312, "NO_ROUTE", "", ""), header)


@pytest.fixture
async def broker() -> Broker:
    return Broker()


@pytest.fixture
async def publisher(broker: Broker) -> Publisher:
    return Publisher(cast(BrokerConnection, broker))


def batch_of(*ids: str) -> Batch:
    return Batch(
        [OutgoingMessage("", "key", b"body", Basic.Properties(message_id=id_)) for id_ in ids]
    )


def done_future() -> asyncio.Future[None]:
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    future.set_result(None)
    return future


def publishing(publisher: Publisher, batch: Batch) -> asyncio.Task[Any]:
    return asyncio.ensure_future(publisher.publish(batch, []))


async def test_publishing_ends_when_every_message_is_confirmed_singly_or_in_multiples(
    broker: Broker, publisher: Publisher
) -> None:
    batch = batch_of(*"abcdef")
    task = publishing(publisher, batch)
    await broker.wait_for_published(6)
    broker.send(Basic.Ack(2, False), Basic.Ack(4, True), Basic.Ack(6, False))
    await asyncio.sleep(0)
    assert not task.done()
    assert batch.confirmed == {0, 1, 2, 3, 5}
    broker.send(Basic.Ack(6, True))
    assert await task == {}


async def test_a_cancelled_publish_keeps_the_confirmed_messages_of_its_batch(
    broker: Broker, publisher: Publisher
) -> None:
    batch = batch_of(*"abc")
    task = publishing(publisher, batch)
    await broker.wait_for_published(3)
    broker.send(Basic.Ack(2, False))
    task.cancel()
    await asyncio.wait([task])
    assert batch.confirmed == {1}
    # A late confirm does not count for the next batch.
    following = batch_of("d")
    task = publishing(publisher, following)
    await broker.wait_for_published(4)
    broker.send(Basic.Ack(3, True))
    await asyncio.sleep(0)
    assert not task.done()
    broker.send(Basic.Ack(4, False))
    assert await task == {}


async def test_a_lost_connection_is_raised_and_the_batch_keeps_its_confirmed_messages(
    broker: Broker, publisher: Publisher
) -> None:
    batch = batch_of(*"abc")
    task = publishing(publisher, batch)
    await broker.wait_for_published(3)
    broker.send(Basic.Ack(1, False))
    broker.channels[0].lose(AMQPConnectionError("gone"))
    with pytest.raises(AMQPConnectionError, match="gone"):
        await task
    assert batch.confirmed == {0}


async def test_a_channel_that_closes_before_a_batch_is_written_is_noticed(
    broker: Broker, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def put(self: Channel, _: ChannelFrame) -> None:
        self.lose(AMQPConnectionError("gone"))
        for _turn in range(5):  # time to notify all waiters
            await asyncio.sleep(0)

    monkeypatch.setattr(Channel, "_put", put)
    monkeypatch.setattr(Channel, "create_future", lambda _: done_future())
    async with asyncio.timeout(60):
        with pytest.raises(AMQPConnectionError):
            await publisher.publish(batch_of(*"abc"), [])


async def test_a_message_rejected_by_its_queue_is_reported(
    broker: Broker, publisher: Publisher
) -> None:
    task = publishing(publisher, batch_of(*"abc"))
    await broker.wait_for_published(3)
    broker.send(Basic.Nack(2, False), Basic.Ack(3, True))
    rejected = await task
    assert list(rejected) == [1]
    assert "rejected it" in str(rejected[1])


async def test_a_returned_message_is_published_once_more_after_declaring_the_topology(
    broker: Broker, publisher: Publisher
) -> None:
    batch = batch_of(*"aba")  # the same message twice
    task = publishing(publisher, batch)
    await broker.wait_for_published(3)
    broker.return_message("b")
    broker.return_message("a")
    broker.send(Basic.Ack(3, True))
    await broker.wait_for_published(5)
    assert batch.confirmed == {2}
    assert len(broker.declared) == 2
    broker.return_message("a")
    broker.send(Basic.Ack(5, True))
    rejected = await task
    assert list(rejected) == [0]
    assert "it could not be routed to any queue (NO_ROUTE)" in str(rejected[0])


async def test_a_message_that_closes_the_channel_is_rejected_and_the_others_are_published(
    broker: Broker, publisher: Publisher
) -> None:
    batch = batch_of(*"abc")
    task = publishing(publisher, batch)
    await broker.wait_for_published(3)
    broker.send(Basic.Ack(1, False))
    for channel, rejected_again in ((1, True), (2, False)):
        broker.channels[-1].lose(ChannelPreconditionFailed("too large"))
        await eventually(lambda count=channel: len(broker.channels) > count)
        await broker.wait_for_published(1)
        if not rejected_again:
            broker.send(Basic.Ack(1, False))
    rejected = await task
    assert {place: str(error) for place, error in rejected.items()} == {1: "too large"}
    assert batch.confirmed == {0, 2}


async def test_a_message_that_cannot_be_encoded_is_rejected_and_the_others_are_published(
    broker: Broker, publisher: Publisher
) -> None:
    messages = batch_of("a", "b" * 256, "c").messages
    too_long = OutgoingMessage("", "k" * 256, b"", Basic.Properties(message_id="d"))
    task = publishing(publisher, Batch([*messages, too_long]))
    await broker.wait_for_published(2)
    broker.send(Basic.Ack(2, True))
    rejected = await task
    assert sorted(rejected) == [1, 3]
    assert all("cannot be written as AMQP" in why for why in map(str, rejected.values()))


async def test_a_large_body_is_split_into_frames(broker: Broker, publisher: Publisher) -> None:
    body = bytes(range(256)) * 50
    task = publishing(publisher, Batch([OutgoingMessage("", "k", body, Basic.Properties())]))
    await broker.wait_for_published(1)
    broker.send(Basic.Ack(1, False))
    assert await task == {}
    parts = [cast(Any, frame).value for frame in broker.channels[0].written[2:]]
    assert b"".join(parts) == body
    assert max(map(len, parts)) == 4096 - 8
