"""A message as RabbitMQ delivered it, and the decoding of its content header.

Anybody can publish to our queues, so a content header may hold bytes that the client library cannot
decode, or tables nested so deeply that they exhaust the stack. Such a message is given the header
UNDECODABLE with what it had, so that it can be dead-lettered like any other bad message.

On the hot path only content type and headers are decoded, in one pass; the other properties are
decoded when a copy of the message is made.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pamqp import decode
from pamqp.commands import Basic
from pamqp.exceptions import PAMQPException
from pamqp.header import ContentHeader

_LONG = struct.Struct(">I")
_LONGLONG = struct.Struct(">Q")
_PROPERTIES_AT = 14
"""Where a content header's properties begin: after class, weight, body size and flags."""

_HAS_CONTENT_TYPE, _HAS_CONTENT_ENCODING, _HAS_HEADERS, _HAS_MORE_FLAGS = 0x8000, 0x4000, 0x2000, 1
_LONG_STRING, _TIMESTAMP = ord("S"), ord("T")

UNDECODABLE = "x-undecodable-header"
"""The header that holds, in hexadecimal, the first bytes of a content header that nobody can
decode."""

_UNDECODABLE_BYTES = 4096

UNDECODABLE_ERRORS = (
    *(PAMQPException, ValueError, TypeError, LookupError),
    *(OverflowError, OSError, struct.error, RecursionError),
)
"""What decoding, ours or the library's, raises for bytes that make no sense."""

MAX_DEPTH = 40
"""Tables in tables of a header that are read; RabbitMQ's own are three deep. Reading and writing
are recursive, so what one place can read must not be too deep for another."""


@dataclass(frozen=True, slots=True, eq=False)
class ReceivedMessage:
    """`tag` is its number on its channel, by which it is acknowledged."""

    tag: int
    content_header: bytes
    body: bytes

    def essentials(self) -> tuple[str | None, dict[str, Any]]:
        """Content type and headers; if they cannot be decoded, none and the header UNDECODABLE."""
        try:
            return _essentials(self.content_header)
        except UNDECODABLE_ERRORS:
            return None, {UNDECODABLE: self.content_header[:_UNDECODABLE_BYTES].hex()}

    def properties(self) -> Basic.Properties:
        """All properties, or the essentials if others cannot be decoded."""
        try:
            return decode_content_header(self.content_header).properties
        except UNDECODABLE_ERRORS:
            content_type, headers = self.essentials()
            return Basic.Properties(content_type=content_type, headers=headers)


def decode_content_header(content_header: bytes) -> ContentHeader:
    """Decode it with the client library; raises one of UNDECODABLE_ERRORS."""
    header = ContentHeader()
    header.unmarshal(content_header)
    _check_depth(header.properties.headers or {})
    return header


def _check_depth(headers: Mapping[str, Any]) -> None:
    """ValueError if tables or arrays are nested deeper than MAX_DEPTH."""
    level = [value for value in headers.values() if isinstance(value, dict | list)]
    for _ in range(MAX_DEPTH + 1):
        if not level:
            return
        level = [
            value
            for outer in level
            for value in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(value, dict | list)
        ]
    raise ValueError(f"the headers are nested more than {MAX_DEPTH} deep")


def decodable_substitute(content_header: bytes) -> bytes:
    """A content header for the same body with the essentials of one that cannot be decoded."""
    (body_size,) = _LONGLONG.unpack_from(content_header.ljust(_PROPERTIES_AT, b"\0"), 4)
    content_type, headers = ReceivedMessage(0, content_header, b"").essentials()
    properties = Basic.Properties(content_type=content_type, headers=headers)
    return ContentHeader(body_size=body_size, properties=properties).marshal()


def _essentials(raw: bytes) -> tuple[str | None, dict[str, Any]]:
    """Content type and headers, without decoding the other properties."""
    flags = raw[12] << 8 | raw[13]
    if flags & _HAS_MORE_FLAGS:
        properties = decode_content_header(raw).properties
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
    return content_type, _table(raw, at)


def _table(raw: bytes, at: int) -> dict[str, Any]:
    """A table of fields, most of which are strings; ValueError if its size does not match them, or
    if they are nested too deeply."""
    (size,) = _LONG.unpack_from(raw, at)
    at += _LONG.size
    end = at + size
    table: dict[str, Any] = {}
    has_only_strings = True
    while at < end:
        name_at, at = at + 1, at + 1 + raw[at]
        name = raw[name_at:at].decode()
        if raw[at] == _LONG_STRING:
            (size,) = _LONG.unpack_from(raw, at + 1)
            value_at, at = at + 5, at + 5 + size
            try:
                table[name] = raw[value_at:at].decode()
            except UnicodeDecodeError:
                table[name] = raw[value_at:at]
        else:
            has_only_strings = False
            consumed, table[name] = _field(raw[at:end])
            at += consumed
    if at != end or end > len(raw):
        raise ValueError("the size of the headers does not match their content")
    if not has_only_strings:
        _check_depth(table)
    return table


def _field(raw: bytes) -> tuple[int, Any]:
    """How long a field is, and its value; a timestamp beyond the range of dates is a number."""
    try:
        return decode.embedded_value(raw)
    except (ValueError, OverflowError, OSError):
        if raw[0] != _TIMESTAMP:
            raise
        return 1 + _LONGLONG.size, int.from_bytes(raw[1 : 1 + _LONGLONG.size], signed=True)
