"""What becomes of rows after an attempt to publish them: deleted, or kept for another attempt."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, bindparam, delete, func, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from eventmesh.persistence import counts
from eventmesh.persistence.dialects.registry import dialect_of
from eventmesh.persistence.dialects.sql import database_now
from eventmesh.persistence.outbox.reading import OutboxRow
from eventmesh.persistence.tables import outbox
from eventmesh.wire.envelope import Envelope


@dataclass(frozen=True, slots=True)
class Rejection:
    """A row that the broker rejected, why, and when it is to be tried again."""

    seq: int
    reason: str
    again_at: datetime


def delete_untried(connection: Connection, rows: Sequence[OutboxRow]) -> bool:
    """Delete rows that the broker has confirmed at the first attempt, and count them as relayed;
    returns whether that were all of them. The rest is for `delete_confirmed`."""
    return _delete(connection, [row for row in rows if not row.attempts], 0) == len(rows)


async def delete_confirmed(connection: AsyncConnection, rows: Sequence[OutboxRow]) -> None:
    """Delete rows that the broker has confirmed, as they were read, and count them as relayed."""
    for attempts in {row.attempts for row in rows}:
        those = [row for row in rows if row.attempts == attempts]
        if await connection.run_sync(_delete, those, attempts) < len(those):
            await _delete_rejected(connection, [row.seq for row in those])


def _delete(connection: Connection, rows: Sequence[OutboxRow], attempts: int) -> int:
    """Delete those of these rows that have had so many attempts; returns how many."""
    dialect, seqs = dialect_of(connection), [row.seq for row in rows]
    at_once = dialect.delete_relayed(outbox)
    if at_once is not None:
        owner = counts.owner_of(connection)
        found = {"seqs": seqs, "attempts": attempts, "owner": owner}
        return connection.scalar(at_once, found) or 0
    statement = dialect.delete_outbox(outbox)
    gone = set(connection.scalars(statement, {"seqs": seqs, "attempts": attempts}))
    relayed = Counter(counts.way_of("relayed", row.envelope) for row in rows if row.seq in gone)
    counts.add(connection, relayed)
    return len(gone)


async def _delete_rejected(connection: AsyncConnection, seqs: Sequence[int]) -> None:
    """Delete rows that another relay has tried since they were read, and that the broker rejected.
    It took over the leases of this one, which had stood still, and will not soon look again for
    what the rejected rows blocked."""
    rest = delete(outbox).where(outbox.c.seq.in_(seqs)).returning(outbox.c.key, outbox.c.headers)
    found = list(await connection.execute(rest))
    relayed = Counter(counts.way_of("relayed", Envelope(headers, b"")) for _, headers in found)
    await counts.add_now(connection, relayed)
    keys = {key for key, _ in found if key is not None}
    await block_keys(connection, keys, "what came before it was rejected")


async def mark_rejected(
    connection: AsyncConnection, rejections: Sequence[Rejection], park_after: int
) -> None:
    """Count an attempt for rows that the broker rejected, which block their keys until they are
    published; park them at `park_after` attempts."""
    if rejections:
        await connection.execute(
            update(outbox)
            .where(outbox.c.seq == bindparam("row"))
            .values(
                attempts=outbox.c.attempts + 1,
                last_error=bindparam("error"),
                due_at=bindparam("again_at"),
                parked=outbox.c.attempts + 1 >= park_after,
            ),
            [{"row": r.seq, "error": r.reason, "again_at": r.again_at} for r in rejections],
        )


async def block_keys(connection: AsyncConnection, keys: Collection[str], reason: str) -> None:
    """Let the first row of each of these keys block the others until it is published, as if it had
    been rejected once.

    What blocked them is gone, but relays have moved their positions past them. Rows with attempts
    are read by their due time, so the first row is found at once and the others after it, whereas
    a new row of the key would be read, and overtake them, before a sweep finds them.
    """
    waits = outbox.c.due_at.is_(None) & (outbox.c.attempts == 0)
    nexts = select(func.min(outbox.c.seq)).where(outbox.c.key.in_(keys), waits)
    first = list(await connection.scalars(nexts.group_by(outbox.c.key)))
    if first:
        rows = update(outbox).where(outbox.c.seq.in_(first))
        await connection.execute(rows.values(attempts=1, due_at=database_now(), last_error=reason))
