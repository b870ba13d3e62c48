"""Reads rows of the broker file. SQLite columns accept values of any type, and other programs can
write to the file, so reading never fails."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from eventmesh.transports.base import DeadLetter, Delivery
from eventmesh.wire.cloudevents import Unreadable, parse_attributes
from eventmesh.wire.envelope import Envelope

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MOST = 999_999_999
"""More attempts than any message has, and within every database's integers."""


def delivery(sequence: int, attributes: Any, data: Any, attempt: Any, deliveries: Any) -> Delivery:
    """The delivery in a row of `queue`."""
    return Delivery.of(_opened(attributes, data), _count(attempt), _count(deliveries), sequence)


def dead_letter(
    subscription: str,
    letter_id: Any,
    attributes: Any,
    data: Any,
    reason: Any,
    error: Any,
    attempts: Any,
    died_at: Any,
) -> DeadLetter:
    """The dead letter in a row of `dead_letter`."""
    opened = _opened(attributes, data)
    return DeadLetter(
        id=text(letter_id),
        subscription=subscription,
        envelope=Envelope({}, opened.content) if isinstance(opened, Unreadable) else opened,
        reason=text(reason),
        error=text(error),
        attempts=_count(attempts),
        died_at=_moment(died_at),
    )


def text(value: Any) -> str:
    """A value as text; bytes that are not UTF-8 are written as escapes."""
    return value.decode(errors="backslashreplace") if isinstance(value, bytes) else str(value)


def _opened(attributes: Any, data: Any) -> Envelope | Unreadable:
    head, body = _bytes(attributes), _bytes(data)
    parsed = parse_attributes(head)
    if isinstance(parsed, str):
        return Unreadable(head + b"\n" + body, parsed)
    return Envelope(parsed, body)


def _bytes(value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode(errors="backslashreplace")


def _count(value: Any) -> int:
    return min(value, _MOST) if isinstance(value, int) and value >= 1 else 1


def _moment(seconds: Any) -> datetime:
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (TypeError, ValueError, OverflowError, OSError):
        return _EPOCH
