"""PgBouncer in transaction mode, and what behaves like it: a pooler that gives each transaction
whichever of its server connections is free.

There, nothing that lasts longer than a transaction can be relied on. A prepared statement that has
a name exists on one server connection only, LISTEN is heard by nobody (and would leave that server
connection listening, for whichever client has it next), and a setting made with SET stays with a
server connection that others use. What does not change is a transaction, so locks and settings of
a transaction are all that EventMesh uses.

How we know: PostgreSQL tells a client the number of its server process at the start of a
connection, and a pooler, which has no server connection for it yet, makes a number up. So
`pg_backend_pid()` says another number than the one we were told:

    told by      pg_backend_pid()   our statement's name on the server   it is
    4711         4711                                                    PostgreSQL itself
    371569650    4711               as we named it                       a pooler
    371569650    4711               PGBOUNCER_1                          a pooler that keeps track

The last is PgBouncer from 1.21 on with `max_prepared_statements`. Behind the others, statements are
prepared without a name each time, which costs a second round trip for each. A pooler in session
mode cannot be told from one in transaction mode, and is treated in the same way unless the URL says
`?pool_mode=session`.
"""

from __future__ import annotations

import secrets
from enum import Enum
from typing import Any, Literal

PoolMode = Literal["session", "transaction"]


class Lent(Enum):
    """For how long a server connection is ours."""

    SESSION = "session"
    """As long as our own connection. So it is without a pooler."""
    TRANSACTION = "transaction"
    """A transaction, and names of prepared statements have no meaning beyond it."""
    TRACKED = "tracked"
    """A transaction, but the pooler prepares our statements wherever they are used."""

    @property
    def can_listen(self) -> bool:
        """Whether LISTEN is heard."""
        return self is Lent.SESSION

    @property
    def keeps_statements(self) -> bool:
        """Whether a prepared statement can be used again by its name."""
        return self is not Lent.TRANSACTION


async def lent(connection: Any, direct: bool, pool_mode: PoolMode | None) -> Lent:
    """For how long a new connection of asyncpg's has its server connection, where it is known
    whether that is `direct`: to the very process that has greeted us."""
    if pool_mode == "session" or (direct and pool_mode is None):
        return Lent.SESSION
    async with connection.transaction():
        name = f"eventmesh_{secrets.token_hex(8)}"
        statement = await connection.prepare(
            "SELECT EXISTS (SELECT FROM pg_prepared_statements WHERE name = $1)", name=name
        )
        if not await statement.fetchval(name):
            return Lent.TRACKED
        await connection.execute(f"DEALLOCATE {name}")
    return Lent.TRANSACTION


UNNAMED = {
    "statement_cache_size": 0,  # asyncpg's
    "prepared_statement_cache_size": 0,  # SQLAlchemy's
    "prepared_statement_name_func": lambda: "",
}
"""Options for a connection on which each statement is prepared anew, without a name."""
