"""What is noted in the front of a partition: the messages that are not handled, but understood.

| note     | written by                             | says                                    |
|----------|----------------------------------------|-----------------------------------------|
| opened   | who begins to consume                  | all that was noted before has been read |
| progress | the consumer, for a retry, or before   | the attempt of a message, its due time, |
|          | it hands out a suspect                 | and how often it was handed out         |
| held     | the consumer, for a dead letter        | that it holds its key                   |
| released | who discards a dead letter             | that it does not hold its key any more  |
| replayed | who replays a dead letter              | the message, and which letters are gone |
| moved    | who changes the order                  | older messages wait in the moved queue  |

A note stays in the front, unacknowledged, for as long as it matters. A note is a message with a
header that says its kind, and JSON; replayed messages have their own headers and data. One note is
not in the front: the last in the moved queue of a partition says that nothing follows.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import orjson
from pamqp.commands import Basic

from eventmesh.transports.rabbitmq.headers import HEADER_PREFIX, retry_headers
from eventmesh.transports.rabbitmq.messages import OutgoingMessage, copy_of

_NOTE = HEADER_PREFIX + "note"
_LETTERS = HEADER_PREFIX + "released"


@dataclass(frozen=True, slots=True)
class Opened:
    """Its writer has read all that was noted before, once it reads this."""

    token: str


@dataclass(frozen=True, slots=True)
class Progress:
    """The message is at this attempt, which is due at this time, in seconds since 1970.
    `returned` is how often RabbitMQ had taken it back before this attempt, and `starts` how often
    it was handed out as this attempt while it was a suspect."""

    key: str | None
    message_id: str
    attempt: int
    due: float
    returned: int
    starts: int


@dataclass(frozen=True, slots=True)
class Held:
    """The dead letter of this message holds its key."""

    key: str | None
    letter_id: str
    message_id: str


@dataclass(frozen=True, slots=True)
class Released:
    """These dead letters hold the key no more."""

    key: str | None
    letter_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Replayed:
    """The message itself comes before all others of its key, and these dead letters of it hold the
    key no more."""

    letter_ids: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Moved:
    """Messages wait in the moved queue of the partition, and come before all that is in its
    queue."""


@dataclass(frozen=True, slots=True)
class LastMoved:
    """In the moved queue: no message of it follows."""


WrittenNote = Opened | Progress | Held | Released | Moved | LastMoved
Note = WrittenNote | Replayed

_KINDS = {
    kind.__name__.lower(): kind for kind in (Opened, Progress, Held, Released, Moved, LastMoved)
}


def written(note: WrittenNote, queue: str) -> OutgoingMessage:
    """A note, as the message to publish to this queue."""
    body = orjson.dumps({name: getattr(note, name) for name in note.__slots__})
    headers = {_NOTE: type(note).__name__.lower()}
    properties = Basic.Properties(headers=dict(headers), delivery_mode=2)
    return OutgoingMessage("", queue, body, properties)


def replayed(
    original: Basic.Properties,
    body: bytes,
    queue: str,
    letter_ids: Collection[str] = (),
    attempt: int = 1,
) -> OutgoingMessage:
    """A message that is delivered again by way of this front, as this attempt: a dead letter, or a
    retry of which no worker knows."""
    headers = retry_headers(original.headers, attempt) | {
        _LETTERS: orjson.dumps(list(letter_ids)).decode()
    }
    return copy_of(original, body, "", queue, headers)


def moved(original: Basic.Properties, body: bytes, queue: str, attempt: int) -> OutgoingMessage:
    """A message that waited elsewhere, and waits in this queue now, as this attempt."""
    return copy_of(original, body, "", queue, retry_headers(original.headers, attempt))


def read(headers: Mapping[str, Any], body: bytes) -> Note:
    """The note in a message of the front. What is not one of our notes counts as a message to
    handle, so that nothing that somebody else wrote there is lost."""
    kind = _KINDS.get(str(headers.get(_NOTE)))
    try:
        if kind is None:
            letters = orjson.loads(str(headers.get(_LETTERS, "[]")))
            return Replayed(tuple(map(str, letters)))
        said = orjson.loads(body)
        match kind(**said):
            case (Opened(str()) | Moved() | LastMoved()) as note:
                return note
            case Progress(None | str(), str(), int(), float() | int(), int(), int()) as note:
                return note
            case Held(None | str(), str(), str()) as note:
                return note
            case Released(None | str() as key, [*letters]):
                return Released(key, tuple(map(str, letters)))
            case _:
                return Replayed()
    except (TypeError, ValueError):
        return Replayed()
