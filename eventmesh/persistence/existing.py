"""Opening a service's database for commands that only look into it or repair it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from eventmesh.errors import Unreachable
from eventmesh.persistence import migration
from eventmesh.persistence.database import Database
from eventmesh.persistence.database_url import is_file, parse_url


@asynccontextmanager
async def existing(url: str, service: str) -> AsyncIterator[Database]:
    """The open database, closed on leaving. It is neither made where there is none (Unreachable)
    nor migrated where it is of an older version (Drift, with the command to run)."""
    _require_file(url, service)
    database = Database(url, service=service)
    try:
        await database.connect()
        await migration.require_current(database)
        yield database
    finally:
        await database.close()


def _require_file(url: str, service: str) -> None:
    parsed = parse_url(url, service)
    if is_file(parsed) and not Path(parsed.database or "").is_file():
        raise Unreachable(
            f"The database of service {service!r} ({parsed.database}) is not there. A worker of "
            f"the service makes it; or correct EVENTMESH_{service.upper()}_DATABASE_URL."
        )
