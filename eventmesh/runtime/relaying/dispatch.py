"""Handing rows of the outbox to the broker: all at once where it stores a batch whole, else in
waves, so that nothing overtakes a refused message of its key."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field

from eventmesh.errors import Unreachable
from eventmesh.persistence.outbox import OutboxRow
from eventmesh.transports.base import Transport


@dataclass(slots=True)
class Sent:
    """What became of rows. After a loss, the others may be on the broker or not."""

    confirmed: list[OutboxRow] = field(default_factory=list)
    refused: list[tuple[OutboxRow, str]] = field(default_factory=list)
    """With the broker's reasons."""
    lost: Unreachable | None = None
    held_keys: set[str] = field(default_factory=set)


async def dispatch(
    transport: Transport, rows: Sequence[OutboxRow], may_go_on: Callable[[], bool]
) -> Sent:
    """Publish, until the broker is lost or this may not go on; a key whose message was refused is
    not sent on. A batch that is stored in one step is one wave: see `atomic_batches`."""
    sent = Sent()
    for wave in [rows] if transport.atomic_batches else waves(rows):
        if sent.lost is not None or not may_go_on():
            break
        sendable = [row for row in wave if row.envelope.key not in sent.held_keys]
        await _publish_wave(transport, sendable, sent)
    return sent


async def _publish_wave(transport: Transport, rows: Sequence[OutboxRow], sent: Sent) -> None:
    """Publish these at once, and enter what became of them."""
    result = await transport.publish([row.envelope for row in rows])
    answered = [row for row in rows if row.envelope.id not in result.unconfirmed]
    confirmed, refused = told_apart(answered, result.rejected)
    sent.lost = result.error
    sent.confirmed += confirmed
    sent.refused += [(row, result.rejected[row.envelope.id]) for row in refused]
    sent.held_keys.update(row.envelope.key for row in refused if row.envelope.key is not None)


def told_apart(
    rows: Iterable[OutboxRow], not_taken: Collection[str]
) -> tuple[list[OutboxRow], list[OutboxRow]]:
    """Those that the broker has, and those that it refused, when it has not taken these ids.

    What it has not taken after a refused one of its key was only held back: it is neither, so that
    no attempt is counted for it.
    """
    confirmed: list[OutboxRow] = []
    refused: list[OutboxRow] = []
    held_keys: set[str | None] = set()
    for row in rows:
        if row.envelope.id not in not_taken:
            confirmed.append(row)
        elif row.envelope.key is None or row.envelope.key not in held_keys:
            refused.append(row)
            held_keys.add(row.envelope.key)
    return confirmed, refused


def waves(rows: Iterable[OutboxRow]) -> list[list[OutboxRow]]:
    """Rows in parts that may be sent one after another, none with two messages of one key.

    So a message that is refused has nothing of its key sent before it, whatever else is in flight.
    """
    parts: list[list[OutboxRow]] = []
    next_part: dict[str, int] = {}
    for row in rows:
        key = row.envelope.key
        part = 0 if key is None else next_part.get(key, 0)
        if key is not None:
            next_part[key] = part + 1
        if part == len(parts):
            parts.append([])
        parts[part].append(row)
    return parts
