"""How envelopes are written into Redis where they are not a message's own stream entry: into
parcels, which wait for a retry, and into dead letters.

Anybody who can reach Redis can put other entries beside ours, so reading never fails. An entry
that is not one of ours is taken by its bare fields, as in the stream of a message.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from eventmesh.clock import Clock
from eventmesh.transports.base import DeadLetter, Delivery
from eventmesh.transports.outcome import Dead
from eventmesh.wire.cloudevents import Unreadable, from_fields, pack, unpack
from eventmesh.wire.envelope import Envelope

_LATEST = datetime(9999, 12, 31, tzinfo=UTC).timestamp()
"""An entry's id may say any number of milliseconds; a date may not be later."""

_ATTEMPT = re.compile(rb"[1-9][0-9]{0,8}")


def flat(pairs: Iterable[tuple[str, str | bytes]]) -> list[str | bytes]:
    """Names and values in turn, as Redis takes fields."""
    return [part for pair in pairs for part in pair]


def head(attempt: int, clock: Clock) -> bytes:
    """The first line of a parcel. The id makes it unlike any other in the set of the delayed."""
    return b"%d %s\n" % (attempt, clock.new_id().encode())


def parcel(envelope: Envelope, attempt: int, clock: Clock) -> bytes:
    """An envelope that is to be delivered as this attempt."""
    return head(attempt, clock) + pack(envelope)


def open_entry(fields: Sequence[bytes]) -> Envelope:
    """The envelope of an entry in the stream of a message."""
    return from_fields(zip(fields[::2], fields[1::2], strict=True))


def open_parcel(fields: Sequence[bytes]) -> tuple[Envelope | Unreadable, int]:
    """Envelope and attempt of an entry in the retry stream."""
    if fields[0] != b"parcel":
        return open_entry(fields), 1
    content = fields[1]
    first_line, _, packed = content.partition(b"\n")
    attempt, _, _ = first_line.partition(b" ")
    if not _ATTEMPT.fullmatch(attempt):
        return Unreadable(content, "its first line does not begin with the number of an attempt"), 1
    opened = unpack(packed)
    if isinstance(opened, Unreadable):
        return Unreadable(content, opened.reason), 1
    return opened, int(attempt)


def letter_fields(delivery: Delivery, death: Dead, clock: Clock) -> list[str | bytes]:
    """The fields of a dead letter, as the script REPLAY knows them."""
    fields: dict[str, str | bytes] = {
        "envelope": pack(delivery.envelope),
        "reason": death.reason,
        "error": death.error,
        "attempts": str(delivery.attempt),
        "diedat": clock.now().isoformat(),
    }
    return flat(fields.items())


def dead_letter(subscription: str, entry: tuple[bytes, Sequence[bytes]]) -> DeadLetter:
    """The dead letter in an entry; one that others have put there says so as its reason."""
    entry_id, content = entry
    fields = dict(zip(content[::2], content[1::2], strict=True))
    packed = fields.get(b"envelope")
    opened = open_entry(content) if packed is None else unpack(packed)
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
    """The time that a dead letter says, or else the one at which Redis added it."""
    try:
        moment = datetime.fromisoformat(_text(written))
    except ValueError:
        milliseconds = int(entry_id.partition(b"-")[0])
        return datetime.fromtimestamp(min(milliseconds / 1000, _LATEST), UTC)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _text(raw: bytes) -> str:
    return raw.decode(errors="backslashreplace")
