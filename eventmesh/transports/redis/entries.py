"""How envelopes are written to Redis and read back.

| where                     | form                                                              |
|---------------------------|-------------------------------------------------------------------|
| stream of a message       | an entry whose fields are the attributes and `data`               |
| delayed set, retry stream | attempt and a unique id, line feed, packed envelope: a "parcel"   |
| mailbox                   | an entry's fields and numbers, see `scripts.ordering`: a "record" |
| dead letters              | an entry with the packed envelope, reason, error, attempts, time  |

Other programs can write to the same keys, so reading never fails: an entry in another form is read
as the bare fields of an envelope.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

import orjson

from eventmesh.clock import Clock
from eventmesh.transports.base import DeadLetter, Delivery
from eventmesh.transports.outcome import Dead
from eventmesh.wire.cloudevents import Unreadable, from_fields, pack, unpack
from eventmesh.wire.envelope import Envelope

_LATEST = datetime(9999, 12, 31, tzinfo=UTC).timestamp()
"""The latest date there is; the id of an entry can contain any number of milliseconds."""

_ATTEMPT = re.compile(rb"[1-9][0-9]{0,8}")


def flat(pairs: Iterable[tuple[str, str | bytes]]) -> list[str | bytes]:
    """Names and values in turn, as Redis expects fields."""
    return [part for pair in pairs for part in pair]


def parcel_header(attempt: int, clock: Clock) -> bytes:
    """The first line of a parcel. Its id makes the parcel unique in the delayed set."""
    return b"%d %s\n" % (attempt, clock.new_id().encode())


def pack_parcel(envelope: Envelope, attempt: int, clock: Clock) -> bytes:
    """An envelope packed for a retry, to be delivered as this attempt."""
    return parcel_header(attempt, clock) + pack(envelope)


def read_entry(fields: Sequence[bytes]) -> Envelope:
    """The envelope of an entry in a message's stream."""
    return from_fields(zip(fields[::2], fields[1::2], strict=True))


def read_parcel(fields: Sequence[bytes]) -> tuple[Envelope | Unreadable, int]:
    """Envelope and attempt of an entry in the retry stream, or of a replayed dead letter."""
    if fields[0] == b"envelope":
        return unpack(fields[1]), 1
    if fields[0] != b"parcel":
        return read_entry(fields), 1
    content = fields[1]
    if content.startswith((b"m ", b"r ")):  # from a mailbox of the time when there was an order
        return read_record(content)[:2]
    first_line, _, packed = content.partition(b"\n")
    attempt, _, _ = first_line.partition(b" ")
    if not _ATTEMPT.fullmatch(attempt):
        return Unreadable(content, "its first line does not begin with the number of an attempt"), 1
    opened = unpack(packed)
    if isinstance(opened, Unreadable):
        return Unreadable(content, opened.reason), 1
    return opened, int(attempt)


def read_record(record: bytes) -> tuple[Envelope | Unreadable, int, int]:
    """Envelope, attempt and earlier deliveries of a record in a mailbox."""
    _, attempt, deliveries, _, texts = record.split(b" ", 4)
    try:
        fields = orjson.loads(texts)
    except orjson.JSONDecodeError:  # it contains bytes that are not UTF-8
        fields = json.loads(texts.decode("latin-1"))
        opened, before = read_parcel([field.encode("latin-1") for field in fields])
        return opened, before + int(attempt) - 1, int(deliveries)
    if fields[0] in ("parcel", "envelope"):
        opened, before = read_parcel([field.encode() for field in fields])
        return opened, before + int(attempt) - 1, int(deliveries)
    attributes = dict(zip(fields[::2], fields[1::2], strict=True))
    data = attributes.pop("data", "").encode()
    return Envelope(attributes, data), int(attempt), int(deliveries)


def dead_letter_fields(delivery: Delivery, death: Dead, clock: Clock) -> list[str | bytes]:
    """The fields of a dead letter's entry; the script REPLAY reads `envelope`."""
    fields: dict[str, str | bytes] = {
        "envelope": pack(delivery.envelope),
        "reason": death.reason,
        "error": death.error,
        "attempts": str(delivery.attempt),
        "diedat": clock.now().isoformat(),
    }
    return flat(fields.items())


def dead_letter(subscription: str, entry: tuple[bytes, Sequence[bytes]]) -> DeadLetter:
    """The dead letter of an entry. If another program wrote the entry, the reason says so."""
    entry_id, content = entry
    fields = dict(zip(content[::2], content[1::2], strict=True))
    packed = fields.get(b"envelope")
    opened = read_entry(content) if packed is None else unpack(packed)
    foreign = "" if packed is not None else "it has no field named envelope"
    if isinstance(opened, Unreadable):
        envelope, foreign = Envelope({}, opened.content), opened.reason
    else:
        envelope = opened
    reason = _text(fields.get(b"reason", b""))
    if foreign and not reason:
        reason = f"not written by EventMesh: {foreign}"
    attempts = fields.get(b"attempts", b"")
    return DeadLetter(
        id=entry_id.decode(),
        subscription=subscription,
        envelope=envelope,
        reason=reason,
        error=_text(fields.get(b"error", b"")),
        attempts=int(attempts) if _ATTEMPT.fullmatch(attempts) else 1,
        died_at=_moment(fields.get(b"diedat", b""), entry_id),
    )


def _moment(written: bytes, entry_id: bytes) -> datetime:
    """The time in the dead letter, or else the time at which Redis added it."""
    try:
        moment = datetime.fromisoformat(_text(written))
    except ValueError:
        milliseconds = int(entry_id.partition(b"-")[0])
        return datetime.fromtimestamp(min(milliseconds / 1000, _LATEST), UTC)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _text(raw: bytes) -> str:
    return raw.decode(errors="backslashreplace")
