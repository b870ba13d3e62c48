"""How envelopes are written into Redis where they are not a message's own stream entry: into
parcels, which wait for a retry, and into dead letters."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

import orjson

from eventmesh.clock import Clock
from eventmesh.transports.base import DeadLetter, Delivery
from eventmesh.transports.outcome import Dead
from eventmesh.wire.cloudevents import pack, unpack
from eventmesh.wire.envelope import Envelope

_ENTRY_ID = re.compile(r"[0-9]{1,20}-[0-9]{1,20}")


def flat(pairs: Iterable[tuple[str, str | bytes]]) -> list[str | bytes]:
    """Names and values in turn, as Redis takes fields."""
    return [part for pair in pairs for part in pair]


def head(attempt: int, clock: Clock) -> bytes:
    """The first line of a parcel. The id makes it unlike any other in the set of the delayed."""
    return b"%d %s\n" % (attempt, clock.new_id().encode())


def parcel(envelope: Envelope, attempt: int, clock: Clock) -> bytes:
    """An envelope that is to be delivered as this attempt."""
    return head(attempt, clock) + pack(envelope)


def open_parcel(fields: Sequence[bytes]) -> tuple[Envelope, int]:
    """Envelope and attempt of an entry in the retry stream; garbage comes out as an envelope
    without attributes, so that it is kept as a dead letter."""
    content = fields[1]
    first_line, _, packed = content.partition(b"\n")
    try:
        return unpack(packed), int(first_line.split()[0])
    except (orjson.JSONDecodeError, ValueError, IndexError):
        return Envelope({}, content), 1


def letter_fields(delivery: Delivery, death: Dead, clock: Clock) -> list[str | bytes]:
    """The fields of a dead letter; the envelope comes first, as the script REPLAY expects."""
    fields: dict[str, str | bytes] = {
        "envelope": pack(delivery.envelope),
        "reason": _utf8(death.reason),
        "error": _utf8(death.error),
        "attempts": str(delivery.attempt),
        "diedat": clock.now().isoformat(),
    }
    return flat(fields.items())


def dead_letter(subscription: str, entry: Any) -> DeadLetter:
    """What `letter_fields` wrote."""
    entry_id, content = entry
    fields = dict(zip(content[::2], content[1::2], strict=True))
    return DeadLetter(
        id=entry_id.decode(),
        subscription=subscription,
        envelope=unpack(fields[b"envelope"]),
        reason=fields[b"reason"].decode(),
        error=fields[b"error"].decode(),
        attempts=int(fields[b"attempts"]),
        died_at=datetime.fromisoformat(fields[b"diedat"].decode()),
    )


def possible_ids(ids: Sequence[str]) -> list[str]:
    """Those that are an entry's id at all, each once. Redis refuses a command with any other."""
    return [
        id_
        for id_ in dict.fromkeys(ids)
        if _ENTRY_ID.fullmatch(id_) and all(int(part) < 2**64 for part in id_.split("-"))
    ]


def _utf8(text: str) -> bytes:
    return text.encode(errors="backslashreplace")
