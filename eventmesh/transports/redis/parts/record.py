"""Over how many slots a prefix is spread: a number that belongs to the broker.

A publisher and a worker that reckon with different numbers would miss each other's messages. So the
first process that uses a prefix records the number in the first part, and all others use that.

A process whose user may not write there, but only to some streams, leaves that to others. What it
publishes before them is in the first part, which every worker reads.
"""

from __future__ import annotations

from eventmesh.errors import UsageError
from eventmesh.transports.redis.connection import CommandRejected, Redis
from eventmesh.transports.redis.keys import Layout
from eventmesh.transports.redis.scripts.spreading import SLOTS


async def agreed_slots(
    redis: Redis, first: Layout, prefix: str, wanted: int | None, *, record: bool
) -> int:
    """The recorded number of slots; without a record, `wanted` or else 1, which `record` records.
    UsageError if the URL wants another number than is recorded."""
    told = await redis.ask("HGET", first.record, "slots")
    if told is None and record:
        try:
            told = await redis.run(SLOTS, (first.record,), wanted or 1)
        except CommandRejected as error:
            if error.code != "NOPERM":
                raise
    slots = (wanted or 1) if told is None else int(told)
    if wanted not in (slots, None):
        raise UsageError(
            f"The prefix {prefix!r} is spread over {slots} slot(s) since it was first used, and "
            f"not over {wanted}. Drop slots={wanted} from EVENTMESH_BROKER_URL and start again, or "
            f"use another prefix (EVENTMESH_BROKER_PREFIX)."
        )
    return slots
