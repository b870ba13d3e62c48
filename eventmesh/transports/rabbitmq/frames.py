"""The AMQP frames that carry messages, taken from the stream before the client library sees them.

There are two reasons. First, speed: aiormq creates a dozen objects and a task for each delivery,
which costs more than handling it; here a delivery is one object whose headers are decoded once.
Second, robustness: aiormq closes the whole connection at a header that it cannot decode (a
timestamp in the year 60,000 is enough), so that one such message would be redelivered again and
again, and would disconnect every consumer of the process each time.

`FrameStream` stands between the socket and aiormq. A tap takes the frames of one channel that it
wants; every other frame goes on to aiormq unchanged.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable, Mapping
from typing import Protocol

from eventmesh.transports.rabbitmq.received import (
    UNDECODABLE_ERRORS,
    ReceivedMessage,
    decodable_substitute,
    decode_content_header,
)

METHOD, HEADER, BODY, HEARTBEAT = 1, 2, 3, 8
_KINDS = (METHOD, HEADER, BODY, HEARTBEAT)
_HEAD = struct.Struct(">BHI")
_END = b"\xce"
_END_SIZE = len(_END)
_HEARTBEAT_FRAME = _HEAD.pack(HEARTBEAT, 0, 0) + _END
_HEARTBEAT_AFTER = 1.0
"""Seconds after which aiormq is handed a heartbeat if taps took all frames until then."""

_CHUNK = 256 * 1024
"""Bytes that are read from the socket at once, if so many are there."""

_LONGLONG = struct.Struct(">Q")
DELIVER = struct.pack(">HH", 60, 60)
_RETURN = struct.pack(">HH", 60, 50)
_ACK = struct.pack(">HH", 60, 80)
_NACK = struct.pack(">HH", 60, 120)


class Tap(Protocol):
    """Takes frames of one channel out of the stream."""

    def take(self, kind: int, buffer: bytes, start: int, end: int) -> bool:
        """Take the frame whose payload is `buffer[start:end]`, or return False. Never raises."""
        ...


class MessageAssembler:
    """Assembles the frames of one message after another: a content header, then its body."""

    def __init__(self, complete: Callable[[bytes, bytes], None]) -> None:
        self._complete = complete
        self._header = b""
        self._parts: list[bytes] = []
        self._missing = 0

    def take(self, kind: int, payload: bytes) -> bool:
        """Add a frame; returns whether it was the last of its message."""
        if kind == HEADER:
            self._header, self._parts = payload, []
            (self._missing,) = _LONGLONG.unpack_from(payload, 4)
        else:
            self._parts.append(payload)
            self._missing -= len(payload)
        if self._missing > 0:
            return False
        parts = self._parts
        self._complete(self._header, parts[0] if len(parts) == 1 else b"".join(parts))
        return True


class Deliveries:
    """The tap of a channel that only consumes: takes what is delivered."""

    def __init__(self, arrive: Callable[[ReceivedMessage], None]) -> None:
        self._arrive = arrive
        self._tag = 0
        self._in_message = False
        self._assembler = MessageAssembler(self._complete)

    def take(self, kind: int, buffer: bytes, start: int, end: int) -> bool:
        if kind == METHOD:
            self._in_message = buffer.startswith(DELIVER, start)
            if self._in_message:
                (self._tag,) = _LONGLONG.unpack_from(buffer, start + 5 + buffer[start + 4])
            return self._in_message
        if not self._in_message:
            return False
        self._in_message = not self._assembler.take(kind, buffer[start:end])
        return True

    def _complete(self, header: bytes, body: bytes) -> None:
        self._arrive(ReceivedMessage(self._tag, header, body))


class DeliveriesByConsumer(Deliveries):
    """As `Deliveries`, for a channel with several consumers: `arrive` is also called with the tag
    of the consumer."""

    def __init__(self, arrive: Callable[[bytes, ReceivedMessage], None]) -> None:
        super().__init__(lambda message: arrive(self._consumer, message))
        self._consumer = b""

    def take(self, kind: int, buffer: bytes, start: int, end: int) -> bool:
        if kind == METHOD and buffer.startswith(DELIVER, start):
            self._consumer = buffer[start + 5 : start + 5 + buffer[start + 4]]
        return super().take(kind, buffer, start, end)


class Confirms:
    """The tap of a channel that only publishes: takes what the broker answers for each message.

    `confirmed` is called with a message's number, whether the answer includes all before it, and
    whether the broker has it. `returned` is called, before that, with the id of a message that
    could not be routed, and the reason.
    """

    def __init__(
        self,
        confirmed: Callable[[int, bool, bool], None],
        returned: Callable[[str | None, str], None],
    ) -> None:
        self._confirmed = confirmed
        self._returned = returned
        self._reason: str | None = None
        self._assembler = MessageAssembler(self._complete)

    def take(self, kind: int, buffer: bytes, start: int, end: int) -> bool:
        if kind != METHOD:
            if self._reason is None:
                return False
            if self._assembler.take(kind, buffer[start:end]):
                self._reason = None
            return True
        if buffer.startswith((_ACK, _NACK), start):
            (number,) = _LONGLONG.unpack_from(buffer, start + 4)
            multiple = bool(buffer[start + 12] & 1)
            self._confirmed(number, multiple, buffer.startswith(_ACK, start))
            return True
        if buffer.startswith(_RETURN, start):
            size = buffer[start + 6]
            self._reason = buffer[start + 7 : start + 7 + size].decode(errors="replace")
            return True
        return False

    def _complete(self, header: bytes, _: bytes) -> None:
        try:
            message_id = decode_content_header(header).properties.message_id
        except UNDECODABLE_ERRORS:
            message_id = None
        self._returned(message_id, self._reason or "")


class FrameStream:
    """The broker's stream as aiormq reads it, without the frames that taps take.

    It has what aiormq uses of an asyncio.StreamReader: `at_eof` and `readexactly`. aiormq never
    reads across the end of a frame, so `readexactly` need not either.
    """

    def __init__(self, stream: asyncio.StreamReader, taps: Mapping[int, Tap]) -> None:
        self._stream = stream
        self._taps = taps
        self._buffer = b""
        self._at = 0
        self._frame_end = 0
        self._taken = False
        self._time = asyncio.get_running_loop().time
        self._last_passed_at = self._time()

    def at_eof(self) -> bool:
        return self._at >= len(self._buffer) and self._stream.at_eof()

    async def readexactly(self, size: int) -> bytes:
        if self._at >= self._frame_end:
            await self._find_frame()
        start = self._at
        self._at += size
        return self._buffer[start : self._at]

    async def _find_frame(self) -> None:
        """Offer frames to their taps, up to the first that is for aiormq."""
        while True:
            buffer, at, size = self._buffer, self._at, len(self._buffer)
            while at + _HEAD.size <= size:
                kind, channel, length = _HEAD.unpack_from(buffer, at)
                start = at + _HEAD.size
                end = start + length
                if kind not in _KINDS:  # not AMQP 0-9-1: aiormq raises the right error
                    self._at, self._frame_end = at, size
                    return
                if end + _END_SIZE > size:
                    break
                tap = self._taps.get(channel)
                if tap is None or not tap.take(kind, buffer, start, end):
                    self._at, self._frame_end = at, end + _END_SIZE
                    if kind == HEADER:
                        self._ensure_decodable(channel, start, end)
                    self._last_passed_at = self._time()
                    return
                self._taken = True
                at = end + _END_SIZE
            self._at = at
            await self._read_more()

    async def _read_more(self) -> None:
        rest = self._buffer[self._at :]
        if self._taken and self._time() - self._last_passed_at >= _HEARTBEAT_AFTER:
            # aiormq considers a silent connection lost, and RabbitMQ sends no heartbeats while it
            # delivers.
            self._taken = False
            self._buffer, self._at = _HEARTBEAT_FRAME + rest, 0
            return
        chunk = await self._stream.read(_CHUNK)
        if not chunk:
            raise asyncio.IncompleteReadError(rest, _HEAD.size)
        self._buffer, self._at = rest + chunk, 0

    def _ensure_decodable(self, channel: int, start: int, end: int) -> None:
        """Replace a content header at which aiormq would close the connection."""
        header = self._buffer[start:end]
        try:
            decode_content_header(header)
        except UNDECODABLE_ERRORS:
            frame = _frame(HEADER, channel, decodable_substitute(header))
            self._buffer = self._buffer[: self._at] + frame + self._buffer[self._frame_end :]
            self._frame_end = self._at + len(frame)


def _frame(kind: int, channel: int, payload: bytes) -> bytes:
    return _HEAD.pack(kind, channel, len(payload)) + payload + _END
