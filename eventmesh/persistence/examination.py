"""What a database says about itself and about our user, for an operator.

Rights are tried with statements that match no row: the server checks the right before it looks for
rows, so nothing is written.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import Table, delete, false, func, insert, select, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from eventmesh.persistence import migration
from eventmesh.persistence.database import Database
from eventmesh.persistence.database_errors import connection_lost, first_line
from eventmesh.persistence.tables import lease, metadata
from eventmesh.redact import redact_text


@dataclass(frozen=True, slots=True)
class DatabaseFacts:
    """`kind` is postgresql, mariadb or sqlite. `migration` is None before the first, `head` the one
    that this version needs. `forbidden` are the statements that our user may not use, with the
    server's words; `expired_leases` are buckets of the outbox that no relay has taken over for long
    after their lease had ended. Both are only measured at the right migration."""

    kind: str
    version: str
    migration: str | None
    head: str
    forbidden: tuple[str, ...] = ()
    expired_leases: int = 0


async def examine(database: Database, lease_time: float) -> DatabaseFacts:
    """Measure them; Unreachable if the connection is lost."""
    version = await migration.current_version(database)
    async with database.reading() as connection:
        numbers = connection.dialect.server_version_info or ()
        facts = DatabaseFacts(
            database.url.get_backend_name(),
            ".".join(map(str, numbers)),
            version,
            migration.HEAD,
        )
        if version != migration.HEAD:
            return facts
        now = await database.time.ask(connection)
        long_ago = now - timedelta(seconds=3 * lease_time)
        expired = select(func.count()).select_from(lease).where(lease.c.expires_at < long_ago)
        return DatabaseFacts(
            facts.kind,
            facts.version,
            facts.migration,
            facts.head,
            expired_leases=(await connection.execute(expired)).scalar_one(),
            forbidden=tuple(
                [
                    text
                    for table in metadata.sorted_tables
                    for text in await _forbidden(connection, table)
                ]
            ),
        )


async def _forbidden(connection: AsyncConnection, table: Table) -> list[str]:
    """The statements that may not be used on this table."""
    column = next(iter(table.c))
    none = select(*table.c).where(false())
    found = []
    for name, statement in (
        ("SELECT", none),
        ("INSERT", insert(table).from_select(list(table.c.keys()), none)),
        ("UPDATE", update(table).where(false()).values({column.name: column})),
        ("DELETE", delete(table).where(false())),
    ):
        try:
            await connection.execute(statement)
        except DBAPIError as error:
            if connection_lost(error):
                raise
            found.append(f"{name} of {table.name}: {redact_text(first_line(error))}")
    return found
