"""The frames of AMQP 0-9-1 that carry messages, read from the stream before the client library.

Two reasons. The library makes a dozen objects and a task of each delivery, which costs more than
handling it; here a delivery is one object, whose headers are decoded once. And the library ends the
whole connection at a header that it cannot decode (a timestamp of the year 60,000 is enough), so
that one such message would be delivered, and would cut every consumer of the process, for ever.

Everything that is not asked for here goes on to the library as it came.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from pamqp import decode
from pamqp.commands import Basic
from pamqp.exceptions import PAMQPException
from pamqp.header import ContentHeader

METHOD, HEADER, BODY, HEARTBEAT = 1, 2, 3, 8
_KINDS = (METHOD, HEADER, BODY, HEARTBEAT)
_HEAD = struct.Struct(">BHI")
_END = b"\xce"
_END_SIZE = len(_END)
_HEARTBEAT_FRAME = _HEAD.pack(HEARTBEAT, 0, 0) + _END
_SIGN_OF_LIFE = 1.0
"""Seconds after which the library is told that something came, when all of it was taken here."""

_CHUNK = 256 * 1024
"""Bytes that are read from the stream at once, where so many are there."""

_LONG = struct.Struct(">I")
_LONGLONG = struct.Struct(">Q")
DELIVER = struct.pack(">HH", 60, 60)
_RETURN = struct.pack(">HH", 60, 50)
_ACK = struct.pack(">HH", 60, 80)
_NACK = struct.pack(">HH", 60, 120)
_PROPERTIES_AT = 14
"""Where a content header's properties begin: after class, weight, body size and flags."""

_HAS_CONTENT_TYPE, _HAS_CONTENT_ENCODING, _HAS_HEADERS, _HAS_MORE_FLAGS = 0x8000, 0x4000, 0x2000, 1
_LONG_STRING, _TIMESTAMP = ord("S"), ord("T")

UNDECODABLE = "x-undecodable-header"
"""The header that holds, in hexadecimal, the beginning of a content header nobody can decode."""

_UNDECODABLE_BYTES = 4096

UNDECODABLE_ERRORS = (
    *(PAMQPException, ValueError, TypeError, LookupError),
    *(OverflowError, OSError, struct.error, RecursionError),
)
"""What decoding, ours or the library's, raises for bytes that make no sense."""


MOST_NESTED = 40
"""Tables in tables of a header that are read. RabbitMQ's own are three deep; what is read by
recursion at one place must not be too deep for another that reads or writes it."""


class Tap(Protocol):
    """Takes frames of one channel out of the stream."""

    def take(self, kind: int, buffer: bytes, start: int, end: int) -> bool:
        """Whether it took the frame whose payload is `buffer[start:end]`. Never raises."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Arrived:
    """A message that the broker delivered; `tag` is its number on its channel."""

    tag: int
    content_header: bytes
    body: bytes

    def essentials(self) -> tuple[str | None, dict[str, Any]]:
        """Content type and headers; those of a message that cannot be decoded say so."""
        try:
            return _essentials(self.content_header)
        except UNDECODABLE_ERRORS:
            return None, _undecodable(self.content_header)

    def properties(self) -> Basic.Properties:
        """All properties; of a message that cannot be decoded wholly, the essentials."""
        try:
            return _decoded(self.content_header).properties
        except UNDECODABLE_ERRORS:
            content_type, headers = self.essentials()
            return Basic.Properties(content_type=content_type, headers=headers)


class Content:
    """Puts the frames of one message together."""

    def __init__(self, done: Callable[[bytes, bytes], None]) -> None:
        self._done = done
        self._header = b""
        self._parts: list[bytes] = []
        self._missing = 0

    def take(self, kind: int, payload: bytes) -> bool:
        """Add a frame; whether the message, given to `done`, is complete with it."""
        if kind == HEADER:
            self._header, self._parts = payload, []
            (self._missing,) = _LONGLONG.unpack_from(payload, 4)
        else:
            self._parts.append(payload)
            self._missing -= len(payload)
        if self._missing > 0:
            return False
        parts = self._parts
        self._done(self._header, parts[0] if len(parts) == 1 else b"".join(parts))
        return True


class Deliveries:
    """Takes what is delivered on a channel that only consumes."""

    def __init__(self, arrive: Callable[[Arrived], None]) -> None:
        self._arrive = arrive
        self._tag = 0
        self._open = False
        self._content = Content(self._complete)

    def take(self, kind: int, buffer: bytes, start: int, end: int) -> bool:
        if kind == METHOD:
            self._open = buffer.startswith(DELIVER, start)
            if self._open:
                (self._tag,) = _LONGLONG.unpack_from(buffer, start + 5 + buffer[start + 4])
            return self._open
        if not self._open:
            return False
        self._open = not self._content.take(kind, buffer[start:end])
        return True

    def _complete(self, header: bytes, body: bytes) -> None:
        self._arrive(Arrived(self._tag, header, body))


class Verdicts:
    """Takes what the broker says of messages that were published on a channel: confirmed, refused,
    or returned because no queue takes it."""

    def __init__(
        self,
        confirmed: Callable[[int, bool, bool], None],
        returned: Callable[[str | None, str], None],
    ) -> None:
        """`confirmed` gets the number, whether all before it are meant too, and whether the broker
        has it; `returned` gets the message's id and the reason, before its confirmation."""
        self._confirmed = confirmed
        self._returned = returned
        self._reason: str | None = None
        self._content = Content(self._complete)

    def take(self, kind: int, buffer: bytes, start: int, end: int) -> bool:
        if kind != METHOD:
            if self._reason is None:
                return False
            if self._content.take(kind, buffer[start:end]):
                self._reason = None
            return True
        if buffer.startswith((_ACK, _NACK), start):
            (number,) = _LONGLONG.unpack_from(buffer, start + 4)
            several = bool(buffer[start + 12] & 1)
            self._confirmed(number, several, buffer.startswith(_ACK, start))
            return True
        if buffer.startswith(_RETURN, start):
            size = buffer[start + 6]
            self._reason = buffer[start + 7 : start + 7 + size].decode(errors="replace")
            return True
        return False

    def _complete(self, header: bytes, _: bytes) -> None:
        try:
            message_id = _decoded(header).properties.message_id
        except UNDECODABLE_ERRORS:
            message_id = None
        self._returned(message_id, self._reason or "")


class FrameStream:
    """The broker's stream, as the client library reads it, without the frames that taps take.

    It is what the library uses of an asyncio.StreamReader: `at_eof` and `readexactly`.
    """

    def __init__(self, stream: asyncio.StreamReader, taps: Mapping[int, Tap]) -> None:
        self._stream = stream
        self._taps = taps
        self._buffer = b""
        self._at = 0
        self._frame_end = 0
        self._taken = False
        self._time = asyncio.get_running_loop().time
        self._shown_at = self._time()

    def at_eof(self) -> bool:
        return self._at >= len(self._buffer) and self._stream.at_eof()

    async def readexactly(self, size: int) -> bytes:
        """The next bytes that no tap took; the library never reads across the end of a frame."""
        if self._at >= self._frame_end:
            await self._turn_to_a_frame()
        start = self._at
        self._at += size
        return self._buffer[start : self._at]

    async def _turn_to_a_frame(self) -> None:
        """Let the taps take theirs, up to the next frame that is for the library."""
        while True:
            buffer, at, size = self._buffer, self._at, len(self._buffer)
            while at + _HEAD.size <= size:
                kind, channel, length = _HEAD.unpack_from(buffer, at)
                start = at + _HEAD.size
                end = start + length
                if kind not in _KINDS:  # no AMQP 0-9-1: the library knows what to say
                    self._at, self._frame_end = at, size
                    return
                if end + _END_SIZE > size:
                    break
                tap = self._taps.get(channel)
                if tap is None or not tap.take(kind, buffer, start, end):
                    self._at, self._frame_end = at, end + _END_SIZE
                    if kind == HEADER:
                        self._see_that_it_can_be_decoded(channel, start, end)
                    self._shown_at = self._time()
                    return
                self._taken = True
                at = end + _END_SIZE
            self._at = at
            await self._more()

    async def _more(self) -> None:
        """Wait for more of the stream."""
        rest = self._buffer[self._at :]
        if self._taken and self._time() - self._shown_at >= _SIGN_OF_LIFE:
            # The library takes a silent connection for lost, and the broker sends no heartbeat
            # while it delivers.
            self._taken = False
            self._buffer, self._at = _HEARTBEAT_FRAME + rest, 0
            return
        chunk = await self._stream.read(_CHUNK)
        if not chunk:
            raise asyncio.IncompleteReadError(rest, _HEAD.size)
        self._buffer, self._at = rest + chunk, 0

    def _see_that_it_can_be_decoded(self, channel: int, start: int, end: int) -> None:
        """Put another header in the place of one at which the library would end the connection."""
        header = self._buffer[start:end]
        try:
            _decoded(header)
        except UNDECODABLE_ERRORS:
            frame = _frame(HEADER, channel, _readable(header))
            self._buffer = self._buffer[: self._at] + frame + self._buffer[self._frame_end :]
            self._frame_end = self._at + len(frame)


def _frame(kind: int, channel: int, payload: bytes) -> bytes:
    return _HEAD.pack(kind, channel, len(payload)) + payload + _END


def _decoded(content_header: bytes) -> ContentHeader:
    """By the client library; one of UNDECODABLE_ERRORS where it cannot."""
    header = ContentHeader()
    header.unmarshal(content_header)
    _not_too_deep(header.properties.headers or {})
    return header


def _not_too_deep(headers: Mapping[str, Any]) -> None:
    """ValueError where tables or arrays are nested deeper than MOST_NESTED."""
    level = [value for value in headers.values() if isinstance(value, dict | list)]
    for _ in range(MOST_NESTED + 1):
        if not level:
            return
        level = [
            value
            for outer in level
            for value in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(value, dict | list)
        ]
    raise ValueError(f"the headers are nested more than {MOST_NESTED} deep")


def _readable(content_header: bytes) -> bytes:
    """A content header for the same body that says what the other was."""
    (body_size,) = _LONGLONG.unpack_from(content_header.ljust(_PROPERTIES_AT, b"\0"), 4)
    arrived = Arrived(0, content_header, b"")
    content_type, headers = arrived.essentials()
    properties = Basic.Properties(content_type=content_type, headers=headers)
    return ContentHeader(body_size=body_size, properties=properties).marshal()


def _undecodable(content_header: bytes) -> dict[str, Any]:
    return {UNDECODABLE: content_header[:_UNDECODABLE_BYTES].hex()}


def _essentials(raw: bytes) -> tuple[str | None, dict[str, Any]]:
    """Content type and headers, without decoding the rest."""
    flags = raw[12] << 8 | raw[13]
    if flags & _HAS_MORE_FLAGS:
        properties = _decoded(raw).properties
        return properties.content_type, dict(properties.headers or {})
    at = _PROPERTIES_AT
    content_type = None
    if flags & _HAS_CONTENT_TYPE:
        start, at = at + 1, at + 1 + raw[at]
        content_type = raw[start:at].decode()
    if flags & _HAS_CONTENT_ENCODING:
        at += 1 + raw[at]
    if not flags & _HAS_HEADERS:
        return content_type, {}
    headers = _table(raw, at)
    _not_too_deep(headers)
    return content_type, headers


def _table(raw: bytes, at: int) -> dict[str, Any]:
    """A table of fields, most of them texts; ValueError where it does not end with its fields."""
    (size,) = _LONG.unpack_from(raw, at)
    at += _LONG.size
    end = at + size
    table: dict[str, Any] = {}
    while at < end:
        name_at, at = at + 1, at + 1 + raw[at]
        name = raw[name_at:at].decode()
        if raw[at] == _LONG_STRING:
            (size,) = _LONG.unpack_from(raw, at + 1)
            value_at, at = at + 5, at + 5 + size
            table[name] = _text(raw[value_at:at])
        else:
            consumed, table[name] = _field(raw[at:end])
            at += consumed
    if at != end or end > len(raw):
        raise ValueError("the headers do not end where they should")
    return table


def _text(raw: bytes) -> str | bytes:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw


def _field(raw: bytes) -> tuple[int, Any]:
    """How long a field is, and its value; a time that is no date is a number."""
    try:
        return decode.embedded_value(raw)
    except (ValueError, OverflowError, OSError):
        if raw[0] != _TIMESTAMP:
            raise
        return 1 + _LONGLONG.size, int.from_bytes(raw[1 : 1 + _LONGLONG.size], signed=True)
