"""Publishing with publisher confirms: whole batches in few writes, and an answer for each message.

aiormq publishes one message at a time, each with a future of its own, and identifies returned
messages by their id only. Here a batch is written as it is, and the broker's answers are matched by
number: RabbitMQ numbers the messages of a channel from 1 and confirms by number.

When RabbitMQ does not accept a message, it either rejects it (basic.nack), or returns it because it
cannot route it to any queue, or closes the channel. A closed channel does not say which message was
at fault, so all messages without an answer are published again one by one, on a channel of their
own.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from aiormq.abc import ChannelFrame
from aiormq.channel import Channel
from aiormq.exceptions import ChannelAccessRefused, ChannelInvalidStateError, ChannelNotFoundEntity
from aiormq.exceptions import ChannelPreconditionFailed as PreconditionFailed

from eventmesh.transports.rabbitmq.connection import BrokerConnection, close_channel
from eventmesh.transports.rabbitmq.frames import Confirms
from eventmesh.transports.rabbitmq.messages import OutgoingMessage, encode
from eventmesh.transports.rabbitmq.topology import Entity
from eventmesh.transports.rabbitmq.truncation import ENCODING_ERRORS, smaller_forms

PUBLISH_TIMEOUT = 30.0
"""Seconds within which the broker must answer for a whole batch."""

WRITE_BYTES = 64 * 1024
"""Bytes that are written at once: the broker works on them while the next are encoded."""

_TOPIC_REFUSED = "access to topic "
"""What RabbitMQ 4.0 says of a routing key that a user may not publish; of an exchange it says
"access to exchange". If a server used other words, the relay would wait as it does for an
exchange."""


class Rejected(Exception):
    """The broker or the client library rejected a message; the text is the reason."""


class Unencodable(Rejected):
    """AMQP cannot express a message."""


class Unroutable(Rejected):
    """The broker returned a message, because it could not route it to any queue."""


@dataclass(slots=True)
class Batch:
    """Messages that are being published, identified by their places in the batch.

    It belongs to the caller, who reads `confirmed` and `errors` also after the broker was lost, or
    its own task cancelled, halfway.
    """

    messages: list[OutgoingMessage]
    confirmed: set[int] = field(default_factory=set)
    errors: dict[int, BaseException] = field(default_factory=dict)

    def failed(self, *kinds: type[BaseException]) -> list[int]:
        """The places, in order, of messages with an error of one of these kinds, or with any."""
        errors = self.errors.items()
        return sorted(place for place, error in errors if not kinds or isinstance(error, kinds))

    def suspects(self) -> list[int]:
        """The places, in order, of messages of which one made the broker close the channel."""
        return sorted(place for place, error in self.errors.items() if _is_for_a_message(error))


class Publisher:
    """Publishes on a channel of its own: when the broker closes it for a message, only messages of
    this publisher are affected."""

    def __init__(self, connection: BrokerConnection) -> None:
        self._connection = connection
        self._channel: _ConfirmingChannel | None = None
        self._opening = asyncio.Lock()

    async def close(self) -> None:
        channel, self._channel = self._channel, None
        if channel is not None:
            await close_channel(channel.channel)

    async def publish(self, batch: Batch, needs: Sequence[Entity]) -> dict[int, BaseException]:
        """Return once the broker has every message safely, except for those that it rejected: their
        errors, by place. Unreachable if the broker is lost or takes too long; what it has confirmed
        until then is in the batch. `needs` is declared where it was not before.
        """
        async with self._connection.guard(PUBLISH_TIMEOUT):
            await self._connection.wait_until_unblocked()
            await self._connection.ensure_declared(needs)
            await self._attempt(batch, range(len(batch.messages)))

            if batch.failed(Unroutable, ChannelNotFoundEntity):
                # Somebody deleted what was there: declare it again, and publish once more.
                self._connection.forget_declared(needs)
                await self._connection.ensure_declared(needs)
                await self._attempt(batch, batch.failed())

            if suspects := batch.suspects():
                # On a channel that nobody else uses, only the message just sent can be at fault.
                alone = Publisher(self._connection)
                try:
                    for place in suspects:
                        await alone._attempt(batch, [place])
                        await alone._attempt_smaller_forms(batch, place)
                finally:
                    await alone.close()

            for error in batch.errors.values():
                if not isinstance(error, Rejected) and not _is_for_a_message(error):
                    raise error
            return dict(batch.errors)

    async def _attempt(self, batch: Batch, places: Iterable[int]) -> None:
        """Publish the messages at these places, in order, and wait for all answers."""
        wanted = list(places)
        for place in wanted:
            batch.errors.pop(place, None)
        async with self._opening:
            if self._channel is None or self._channel.channel.is_closed:
                opened = await self._connection.open_channel()
                self._channel = _ConfirmingChannel(opened)
                self._connection.tap(opened, self._channel.confirms)
            channel = self._channel
        await channel.publish(batch, wanted)

    async def _attempt_smaller_forms(self, batch: Batch, place: int) -> None:
        """If this message is too large and may be truncated, publish the largest form that the
        broker accepts.
        """
        error, message = batch.errors.get(place), batch.messages[place]
        if not isinstance(error, PreconditionFailed) or message.may_truncate != "everything":
            return
        for properties, body in smaller_forms(message.properties, message.body, str(error)):
            batch.messages[place] = replace(message, properties=properties, body=body)
            await self._attempt(batch, [place])
            if place not in batch.suspects():
                return


@dataclass(slots=True)
class _Attempt:
    """One attempt to publish messages of a batch; `complete` is set when all have an answer."""

    batch: Batch
    unanswered: set[int]
    complete: asyncio.Future[None]

    def answer(self, place: int, error: BaseException | None) -> None:
        self.unanswered.discard(place)
        if error is None:
            self.batch.confirmed.add(place)
        else:
            self.batch.errors[place] = error
        if not self.unanswered and not self.complete.done():
            self.complete.set_result(None)


@dataclass(slots=True)
class _Unconfirmed:
    """A message that was written and not confirmed yet; `error` if the broker returned it, which it
    does before it confirms."""

    message_id: str
    place: int
    attempt: _Attempt
    error: BaseException | None = None


class _ConfirmingChannel:
    """A channel in confirm mode, and the messages written to it that are not confirmed yet."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.confirms = Confirms(self._confirm, self._return)
        self._last_number = 0
        self._unconfirmed: dict[int, _Unconfirmed] = {}  # in the order of their numbers
        self._writing = asyncio.Lock()
        channel.closing.add_done_callback(self._lose)

    async def publish(self, batch: Batch, places: Sequence[int]) -> None:
        """Write the messages at these places, and return once each has an answer."""
        complete: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        attempt = _Attempt(batch, set(places), complete)
        for part in self._encode(attempt, places):
            await self._write(attempt, part)
        if attempt.unanswered:
            await complete

    def _encode(
        self, attempt: _Attempt, places: Sequence[int]
    ) -> Iterator[list[tuple[int, str, bytes]]]:
        """Place, message id and frames of the messages, in parts of about WRITE_BYTES; what cannot
        be encoded is rejected."""
        part: list[tuple[int, str, bytes]] = []
        size = 0
        number = self.channel.number
        frame_max = self.channel.connection.connection_tune.frame_max
        for place in places:
            message = attempt.batch.messages[place]
            message_id = message.properties.message_id
            if not message_id:
                # A returned message is identified by its id, so it must have one of its own.
                message_id = f"unnamed-{uuid.uuid4().hex}"
                message.properties.message_id = message_id
            try:
                frames = encode(message, number, frame_max)
            except ENCODING_ERRORS as error:
                attempt.answer(place, Unencodable(f"it cannot be written as AMQP: {error}"))
                continue
            part.append((place, message_id, frames))
            size += len(frames)
            if size >= WRITE_BYTES:
                yield part
                part, size = [], 0
        if part:
            yield part

    async def _write(self, attempt: _Attempt, part: Sequence[tuple[int, str, bytes]]) -> None:
        """Hand a part to the socket, and number its messages as the broker does."""
        async with self._writing:
            if self.channel.is_closed:
                error = _why_closed(self.channel)
                for place, _, _ in part:
                    attempt.answer(place, error)
                return
            payload = b"".join(frames for _, _, frames in part)
            drained = self.channel.create_future()
            await self.channel.write_queue.put(ChannelFrame(payload, False, drained))
            for place, message_id, _ in part:
                self._last_number += 1
                self._unconfirmed[self._last_number] = _Unconfirmed(message_id, place, attempt)
            if self.channel.is_closed:
                self._lose(None)  # it was closed while the part waited in the queue
        # Not awaited itself: an error that closes the channel is the answer for each message.
        await asyncio.wait([drained])

    def _confirm(self, number: int, multiple: bool, taken: bool) -> None:
        if not multiple:
            self._answer(number, taken)
            return
        answered = []
        for each in self._unconfirmed:
            if each > number:
                break
            answered.append(each)
        for each in answered:
            self._answer(each, taken)

    def _answer(self, number: int, is_confirmed: bool) -> None:
        message = self._unconfirmed.pop(number, None)
        if message is None:
            return
        error = message.error
        if error is None and not is_confirmed:
            error = Rejected("its queue rejected it, being full or without a leader")
        message.attempt.answer(message.place, error)

    def _return(self, message_id: str | None, reason: str) -> None:
        for message in self._unconfirmed.values():
            if message.message_id == message_id and message.error is None:
                message.error = Unroutable(f"it could not be routed to any queue ({reason})")
                return

    def _lose(self, _: object) -> None:
        unconfirmed, self._unconfirmed = self._unconfirmed, {}
        error = _why_closed(self.channel)
        for message in unconfirmed.values():
            message.attempt.answer(message.place, message.error or error)


def is_rejected_for_its_content(error: BaseException) -> bool:
    """Whether a message was rejected for its content, so that it would always be rejected."""
    return isinstance(error, Unencodable) or _is_for_a_message(error)


def _is_for_a_message(error: BaseException) -> bool:
    """Whether the broker closed the channel because of one message, and would accept others.

    Such a message is too large, or the topic permissions forbid the user to publish it. If the user
    may not write to the exchange at all, RabbitMQ sends another text, and no message is at fault.
    """
    if isinstance(error, ChannelAccessRefused):
        return _TOPIC_REFUSED in str(error)
    return isinstance(error, PreconditionFailed)


def _why_closed(channel: Channel) -> BaseException:
    closing = channel.closing
    if closing.done() and not closing.cancelled() and (error := closing.exception()) is not None:
        return error
    return ChannelInvalidStateError("the channel was closed")
