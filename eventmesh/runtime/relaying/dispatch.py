"""Publishing a batch of outbox rows so that nothing overtakes a rejected message of its key.

Some brokers store the messages of a key in one step and in order, and leave out what comes after a
rejected one of the same key (`atomic_batches`): these get the batch whole. Others answer for each
message by itself, so that of two messages of a key that are sent together the second may be stored
although the first is rejected. These get the batch in waves, each with at most one message of a
key, and a key whose message was rejected is left out of the later waves:

    batch     a1 a2 b1 a3 b2        wave 1: a1 b1   wave 2: a2 b2   wave 3: a3
    rejected  b1                    wave 1: a1 b1   wave 2: a2      wave 3: a3
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field

from eventmesh.errors import Unreachable
from eventmesh.persistence.outbox import OutboxRow
from eventmesh.tracing.port import NO_TRACING, Tracing
from eventmesh.transports.base import Transport


@dataclass(slots=True)
class Dispatched:
    """What became of a batch. A row in neither list was held back by its key, was not sent, or,
    after a loss, may be on the broker or not."""

    confirmed: list[OutboxRow] = field(default_factory=list)
    rejected: list[tuple[OutboxRow, str]] = field(default_factory=list)
    """With the broker's reasons."""
    lost: Unreachable | None = None
    """Why the broker did not answer for all of them."""


async def dispatch(
    transport: Transport,
    rows: Sequence[OutboxRow],
    may_go_on: Callable[[], bool],
    tracing: Tracing = NO_TRACING,
) -> Dispatched:
    """Publish the rows, until the broker is lost or `may_go_on` says no."""
    dispatched, rejected_keys = Dispatched(), set[str | None]()
    for wave in [rows] if transport.atomic_batches else waves(rows):
        if dispatched.lost is not None or not may_go_on():
            break
        sent = [row for row in wave if row.envelope.key not in rejected_keys]
        envelopes = [row.envelope for row in sent]
        with tracing.sending(envelopes) as tell:
            result = await transport.publish(envelopes)
            tell(result)
        answered = [row for row in sent if row.envelope.id not in result.unconfirmed]
        confirmed, rejected = split_rejected(answered, result.rejected)
        dispatched.lost = result.error
        dispatched.confirmed += confirmed
        dispatched.rejected += [(row, result.rejected[row.envelope.id]) for row in rejected]
        rejected_keys |= {row.envelope.key for row in rejected if row.envelope.key is not None}
    return dispatched


def split_rejected(
    rows: Iterable[OutboxRow], not_stored: Collection[str]
) -> tuple[list[OutboxRow], list[OutboxRow]]:
    """The rows that are on the broker, and those that it rejected, where these ids are not stored.

    A row that is not stored and comes after a rejected one of its key was only held back by that.
    It is in neither list, so that no attempt is counted for it.
    """
    confirmed: list[OutboxRow] = []
    rejected: list[OutboxRow] = []
    rejected_keys: set[str | None] = set()
    for row in rows:
        if row.envelope.id not in not_stored:
            confirmed.append(row)
        elif row.envelope.key is None or row.envelope.key not in rejected_keys:
            rejected.append(row)
            rejected_keys.add(row.envelope.key)
    return confirmed, rejected


def waves(rows: Iterable[OutboxRow]) -> list[list[OutboxRow]]:
    """The rows in parts to be published one after another, no part with two rows of one key."""
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
