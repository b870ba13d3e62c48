"""Publishing with confirms: whole batches in few writes, and each message's verdict by its place.

The client library publishes one message at a time, each with a future of its own, and tells
messages that came back by their id alone. Here a batch is written as it is, and the broker's
verdicts are counted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from aiormq.abc import ChannelFrame
from aiormq.channel import Channel
from aiormq.exceptions import ChannelAccessRefused, ChannelInvalidStateError, ChannelNotFoundEntity
from aiormq.exceptions import ChannelPreconditionFailed as PreconditionFailed

from eventmesh.transports.rabbitmq.connection import Link, close_channel
from eventmesh.transports.rabbitmq.frames import Verdicts
from eventmesh.transports.rabbitmq.parcels import UNWRITABLE, Parcel, frames_of, smaller
from eventmesh.transports.rabbitmq.topology import Piece

PUBLISH_TIMEOUT = 30.0
"""Seconds within which the broker must have a batch."""

WRITE_BYTES = 64 * 1024
"""Bytes that are written at once: the broker works on them while the next are encoded."""

_TOPIC_REFUSED = "access to topic "
"""What RabbitMQ 4.0 says of a routing key, where of an exchange it says "access to exchange". Of a
server that says it in other words, the relay would wait, as it does for an exchange."""


class Refused(Exception):
    """The broker, or the client library, did not take a message, for this reason."""


class Unwritable(Refused):
    """AMQP has no words for a message."""


class NoRoute(Refused):
    """No queue takes a message, so that it came back."""


@dataclass(slots=True)
class Shipment:
    """Parcels on their way, by their places: what the broker has, and what went wrong. Also known
    when the broker is lost on the way."""

    parcels: list[Parcel]
    confirmed: set[int] = field(default_factory=set)
    errors: dict[int, BaseException] = field(default_factory=dict)


class Sender:
    """Publishes on a channel of its own, so that a channel that the broker closes for one sender's
    mistake is not another's."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._desk: _Desk | None = None
        self._opening = asyncio.Lock()

    async def close(self) -> None:
        desk, self._desk = self._desk, None
        if desk is not None:
            await close_channel(desk.channel)

    async def send(self, shipment: Shipment, needs: Sequence[Piece]) -> dict[int, str]:
        """Return once the broker has them all safely but those refused: the reasons by place.

        `shipment` is kept up to date, for who stops waiting.
        """
        await self._link.not_blocked()
        await self._link.ensure(needs)
        await self._attempt(shipment, range(len(shipment.parcels)))
        if _places(shipment, NoRoute, ChannelNotFoundEntity):
            # Somebody deleted what was there: make it again, and publish once more.
            self._link.forget(needs)
            await self._link.ensure(needs)
            await self._attempt(shipment, _places(shipment))
        if suspects := _suspects(shipment):
            await self._send_one_by_one(shipment, suspects)
        if too_large := [
            place
            for place in _places(shipment, PreconditionFailed)
            if shipment.parcels[place].may_be_cut == "everything"
        ]:
            await self._send_cut(shipment, too_large)
        return {place: _reason(error) for place, error in shipment.errors.items()}

    async def _send_one_by_one(self, shipment: Shipment, places: Sequence[int]) -> None:
        """Find the message that the broker never takes (too large, say), which closed the channel
        under the others: on one that nobody else uses, it can only be the one just sent."""
        alone = Sender(self._link)
        try:
            for place in places:
                await alone._attempt(shipment, [place])
        finally:
            await alone.close()

    async def _send_cut(self, shipment: Shipment, places: Sequence[int]) -> None:
        """Publish each of these in the largest form that the broker takes."""
        alone = Sender(self._link)
        try:
            for place in places:
                for form in smaller(shipment.parcels[place], str(shipment.errors[place])):
                    shipment.parcels[place] = form
                    await alone._attempt(shipment, [place])
                    if place not in _suspects(shipment):
                        break
        finally:
            await alone.close()

    async def _attempt(self, shipment: Shipment, places: Iterable[int]) -> None:
        """Publish those at these places, in their order, and wait for all verdicts."""
        wanted = list(places)
        for place in wanted:
            shipment.errors.pop(place, None)
        desk = await self._open_desk()
        await desk.send(shipment, wanted)

    async def _open_desk(self) -> _Desk:
        async with self._opening:
            if self._desk is None or self._desk.channel.is_closed:
                channel = await self._link.new_channel()
                self._desk = _Desk(channel)
                self._link.tap(channel, self._desk.verdicts)
            return self._desk


@dataclass(slots=True)
class _Waiting:
    """A shipment whose verdicts are not all in."""

    shipment: Shipment
    missing: set[int]
    complete: asyncio.Future[None]

    def settle(self, place: int, error: BaseException | None) -> None:
        """Note the verdict on the parcel at this place."""
        self.missing.discard(place)
        if error is None:
            self.shipment.confirmed.add(place)
        else:
            self.shipment.errors[place] = error
        if not self.missing and not self.complete.done():
            self.complete.set_result(None)


@dataclass(slots=True)
class _Published:
    """A message that the broker has said nothing of yet."""

    message_id: str
    place: int
    waiting: _Waiting
    error: BaseException | None = None


class _Desk:
    """A channel for publishing, and what was published on it and is not yet confirmed."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.verdicts = Verdicts(self._confirm, self._return)
        self._number = 0
        self._published: dict[int, _Published] = {}  # in the order of their numbers
        self._writing = asyncio.Lock()
        channel.closing.add_done_callback(self._lose)

    async def send(self, shipment: Shipment, places: Sequence[int]) -> None:
        """Write the parcels at these places, and return once there is a verdict on each."""
        complete: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting = _Waiting(shipment, set(places), complete)
        for batch in self._encoded(waiting, places):
            await self._write(waiting, batch)
        if waiting.missing:
            await complete

    def _encoded(
        self, waiting: _Waiting, places: Sequence[int]
    ) -> Iterator[list[tuple[int, str, bytes]]]:
        """Place, message id and frames of the parcels, in parts of about WRITE_BYTES; those that
        cannot be encoded are settled."""
        batch: list[tuple[int, str, bytes]] = []
        size = 0
        number = self.channel.number
        frame_max = self.channel.connection.connection_tune.frame_max
        for place in places:
            parcel = waiting.shipment.parcels[place]
            message_id = parcel.properties.message_id
            if not message_id:
                # One that comes back is found by its id, so it must have one.
                message_id = parcel.properties.message_id = f"unnamed-{self._number}-{place}"
            try:
                frames = frames_of(parcel, number, frame_max)
            except UNWRITABLE as error:
                waiting.settle(place, Unwritable(f"it cannot be written as AMQP: {error}"))
                continue
            batch.append((place, message_id, frames))
            size += len(frames)
            if size >= WRITE_BYTES:
                yield batch
                batch, size = [], 0
        if batch:
            yield batch

    async def _write(self, waiting: _Waiting, batch: Sequence[tuple[int, str, bytes]]) -> None:
        """Hand these over to the socket, and number them as the broker does."""
        async with self._writing:
            if self.channel.is_closed:
                # What was closed for another's message is no verdict on these.
                self._settle_unsent(waiting, batch)
                return
            payload = b"".join(frames for _, _, frames in batch)
            drained = self.channel.create_future()
            await self.channel.write_queue.put(ChannelFrame(payload, False, drained))
            for place, message_id, _ in batch:
                self._number += 1
                self._published[self._number] = _Published(message_id, place, waiting)
            if self.channel.is_closed:
                self._lose(None)  # it was closed while these waited to be written
        # Not awaited itself: what closes the channel is told to each message, not to this call.
        await asyncio.wait([drained])

    def _settle_unsent(self, waiting: _Waiting, batch: Sequence[tuple[int, str, bytes]]) -> None:
        error = _why_closed(self.channel)
        for place, _, _ in batch:
            waiting.settle(place, error)

    def _confirm(self, number: int, several: bool, taken: bool) -> None:
        if not several:
            self._settle(number, taken)
            return
        settled = []
        for each in self._published:
            if each > number:
                break
            settled.append(each)
        for each in settled:
            self._settle(each, taken)

    def _settle(self, number: int, taken: bool) -> None:
        published = self._published.pop(number, None)
        if published is None:
            return
        error = published.error
        if error is None and not taken:
            error = Refused("its queue refused it, being full or without a leader")
        published.waiting.settle(published.place, error)

    def _return(self, message_id: str | None, reason: str) -> None:
        for published in self._published.values():
            if published.message_id == message_id and published.error is None:
                published.error = NoRoute(f"no queue takes it ({reason})")
                return

    def _lose(self, _: object) -> None:
        published, self._published = self._published, {}
        error = _why_closed(self.channel)
        for each in published.values():
            each.waiting.settle(each.place, each.error or error)


def _places(shipment: Shipment, *kinds: type[BaseException]) -> list[int]:
    """The places, in order, of the parcels with such an error, or with any."""
    errors = shipment.errors.items()
    return sorted(place for place, error in errors if not kinds or isinstance(error, kinds))


def _suspects(shipment: Shipment) -> list[int]:
    """The places, in order, of the parcels one of which may be why the channel was closed."""
    return sorted(place for place, error in shipment.errors.items() if _of_message(error))


def is_of_content(error: BaseException) -> bool:
    """Whether a message was refused for what is in it, so that it would be refused always."""
    return isinstance(error, Unwritable) or _of_message(error)


def _of_message(error: BaseException) -> bool:
    """Whether the broker closed the channel for one message and would take others: one too large,
    or one that this user may not publish, by the broker's topic permissions. A user who may not
    write to the exchange at all, of whom it says so in other words, has no message at fault."""
    if isinstance(error, ChannelAccessRefused):
        return _TOPIC_REFUSED in str(error)
    return isinstance(error, PreconditionFailed)


def _why_closed(channel: Channel) -> BaseException:
    """The error with which a channel was closed."""
    closing = channel.closing
    if closing.done() and not closing.cancelled() and (error := closing.exception()) is not None:
        return error
    return ChannelInvalidStateError("the channel was closed")


def _reason(error: BaseException) -> str:
    """Why the broker did not take a message; raises where that is the connection's fault."""
    if isinstance(error, Refused) or _of_message(error):
        return str(error)
    raise error
