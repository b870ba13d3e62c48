"""Statements of PostgreSQL's own: rows as arrays, so that one text, prepared once a connection,
serves every size of a group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic_core import to_json
from sqlalchemy import (
    BigInteger,
    DateTime,
    Integer,
    LargeBinary,
    SmallInteger,
    String,
    bindparam,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.types import TypeEngine

NAME = "postgresql"
"""SQLAlchemy's name for it."""

ENTER = text(
    """
    INSERT INTO eventmesh_inbox (subscription, message_id, received_at, digest)
    SELECT :subscription, message_id, statement_timestamp(), digest
    FROM unnest(:message_ids, :digests) AS message (message_id, digest)
    ON CONFLICT DO NOTHING RETURNING message_id
    """
).bindparams(
    bindparam("subscription", type_=String()),
    bindparam("message_ids", type_=ARRAY(String())),
    bindparam("digests", type_=ARRAY(BigInteger())),
)
"""Enter messages into the inbox, in their order; returns the ids that were not there."""

# And no compiler: it comes in where costs are high, and a way that is off counts as very dear.
_OFF = (
    *(f"enable_{way}" for way in ("seqscan", "bitmapscan", "sort", "material", "hashjoin")),
    "enable_mergejoin",
    "jit",
    "synchronous_commit",
)

GUARD = text("SELECT " + ", ".join(f"set_config('{setting}', 'off', true)" for setting in _OFF))
"""For the rest of a transaction that looks into a table which is empty at one moment and has a
million rows at the next: only plans that follow an index, whatever the statistics say, for a plan
made for the empty table is kept. And let the commit not wait for the disk."""

LOCK_KEYS = text("SELECT pg_advisory_xact_lock(:space, key) FROM unnest(:keys) AS key").bindparams(
    bindparam("space", 0x6F726472, Integer()),  # any number that nobody else locks: "ordr" in ASCII
    bindparam("keys", type_=ARRAY(Integer())),
)
"""Lock these keys until the transaction ends, each when no other transaction has it locked."""

WRITERS = text(
    """
    SELECT virtualtransaction FROM pg_locks
    WHERE locktype = 'relation' AND relation = 'eventmesh_outbox'::regclass
        AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
        AND mode = 'RowExclusiveLock' AND granted
    """
)
"""The transactions that have written into the outbox and go on, those prepared for a second phase
among them."""

_STORED: Mapping[str, TypeEngine[Any]] = {
    "id": String(),
    "name": String(),
    "key": String(),
    "bucket": SmallInteger(),
    "headers": String(),
    "data": LargeBinary(),
    "due_at": DateTime(timezone=True),
}
_NAMES = ", ".join(_STORED)

STORE = text(
    # Sorted, because only then do sequence numbers surely follow the order of the arrays.
    f"""
    INSERT INTO eventmesh_outbox ({_NAMES})
    SELECT {_NAMES.replace("headers", "headers::json")}
    FROM unnest({", ".join(f":{name}" for name in _STORED)})
        WITH ORDINALITY AS message ({_NAMES}, number)
    ORDER BY number
    """.replace("::", r"\:\:")  # noqa: S608  # constants
).bindparams(*(bindparam(name, type_=ARRAY(kind)) for name, kind in _STORED.items()))
"""Put messages into the outbox, in their order."""


FORGET = text(
    "DELETE FROM eventmesh_outbox WHERE seq = ANY(:seqs) AND attempts = :attempts"
).bindparams(
    bindparam("seqs", type_=ARRAY(BigInteger())),
    bindparam("attempts", type_=Integer()),
)
"""Delete these rows from the outbox if so often they were refused."""


def columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """The parameters of STORE for these rows of the outbox."""
    parameters = {name: [row[name] for row in rows] for name in _STORED}
    parameters["headers"] = [to_json(headers).decode() for headers in parameters["headers"]]
    return parameters
