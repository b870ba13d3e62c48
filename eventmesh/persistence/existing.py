"""Opening a service's database for commands that only look into it or repair it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from sqlalchemy.exc import DBAPIError

from eventmesh.errors import Unreachable
from eventmesh.persistence import migration
from eventmesh.persistence.database import Database
from eventmesh.persistence.database_errors import first_line
from eventmesh.persistence.database_url import is_file, parse_url
from eventmesh.redact import redact, redact_error


@asynccontextmanager
async def existing(url: str, service: str) -> AsyncIterator[Database]:
    """As `open_existing`, closed on leaving."""
    database = await open_existing(url, service)
    try:
        yield database
    finally:
        await database.close()


async def open_existing(url: str, service: str) -> Database:
    """The open database. It is neither made where there is none (Unreachable) nor migrated where it
    is of an older version (Drift, with the command to run)."""
    database = await connect_existing(url, service)
    try:
        await migration.require_current(database)
    except BaseException:
        await database.close()
        raise
    return database


async def connect_existing(url: str, service: str) -> Database:
    """The open database at whatever migration; Unreachable where there is none."""
    _require_file(url, service)
    database = Database(url, service=service)
    try:
        await database.connect()
    except BaseException:
        await database.close()
        raise
    return database


@contextmanager
def refusals_as_unreachable(url: str, service: str) -> Iterator[None]:
    """Raise Unreachable for an error that the database answers to a statement, such as that its
    user may not read a table: for who only looks at many databases, and goes on with the next."""
    try:
        yield
    except DBAPIError as error:
        raise Unreachable(
            f"The database of service {service!r} ({redact(url)}) cannot be read: "
            f"{redact_error(first_line(error), url).rstrip('.')}. Check what the user in "
            f"EVENTMESH_{service.upper()}_DATABASE_URL may do."
        ) from error


def was_never_made(url: str, service: str) -> bool:
    """Whether the database is a file, which is missing."""
    parsed = parse_url(url, service)
    return is_file(parsed) and not Path(parsed.database or "").is_file()


def _require_file(url: str, service: str) -> None:
    if was_never_made(url, service):
        raise Unreachable(
            f"The database of service {service!r} ({parse_url(url, service).database}) is not "
            f"there. A worker of the service makes it; or correct "
            f"EVENTMESH_{service.upper()}_DATABASE_URL."
        )
