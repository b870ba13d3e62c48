"""PgBouncer in transaction mode, and poolers that behave like it: each transaction gets whichever
server connection is free.

Behind one, nothing that outlives a transaction is reliable. A named prepared statement exists on
one server connection only; notifications after LISTEN do not arrive (and that server connection
would go on listening, for whichever client has it next); a setting made with SET stays on a server
connection that others use. So EventMesh uses locks and settings of a transaction only.

We detect a pooler by process numbers. PostgreSQL sends a client the number of its server process
when it connects; a pooler has no server connection for the client yet, and makes up a number. So
`pg_backend_pid()` returns another number than the one that was sent:

    sent         pg_backend_pid()   our statement's name on the server   it is
    4711         4711                                                    PostgreSQL itself
    371569650    4711               as we named it                       a pooler
    371569650    4711               PGBOUNCER_1                          a pooler that tracks names

The last is PgBouncer from 1.21 on with `max_prepared_statements`. Behind the others, each statement
is prepared anew without a name, which costs it a second round trip. A pooler in session mode looks
the same as one in transaction mode, and is treated in the same way unless the URL says
`?pool_mode=session`.
"""

from __future__ import annotations

import secrets
from enum import Enum
from typing import Any, Literal

PoolMode = Literal["session", "transaction"]


class Pooling(Enum):
    """For how long a server connection is ours."""

    SESSION = "session"
    """As long as our own connection: there is no pooler, or one in session mode."""
    TRANSACTION = "transaction"
    """For a transaction, and names of prepared statements have no meaning beyond it."""
    TRACKED = "tracked"
    """For a transaction, but the pooler prepares our statements wherever they are used."""

    @property
    def can_listen(self) -> bool:
        """Whether notifications arrive after LISTEN."""
        return self is Pooling.SESSION

    @property
    def keeps_statements(self) -> bool:
        """Whether a prepared statement can be used again by its name."""
        return self is not Pooling.TRANSACTION


async def detect_pooling(connection: Any, is_direct: bool, pool_mode: PoolMode | None) -> Pooling:
    """How a new connection of asyncpg's is pooled. `is_direct`: its server process is the one that
    it was told of. `pool_mode` is what the URL says."""
    if pool_mode == "session" or (is_direct and pool_mode is None):
        return Pooling.SESSION
    async with connection.transaction():
        name = f"eventmesh_{secrets.token_hex(8)}"
        statement = await connection.prepare(
            "SELECT EXISTS (SELECT FROM pg_prepared_statements WHERE name = $1)", name=name
        )
        if not await statement.fetchval(name):
            return Pooling.TRACKED
        await connection.execute(f"DEALLOCATE {name}")
    return Pooling.TRANSACTION


UNNAMED = {
    "statement_cache_size": 0,  # asyncpg's
    "prepared_statement_cache_size": 0,  # SQLAlchemy's
    "prepared_statement_name_func": lambda: "",
}
"""Options for a connection on which each statement is prepared anew, without a name."""
