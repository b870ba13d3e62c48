"""Migrating a service's database to the tables that this version of EventMesh needs.

Alembic does the work. Its version table has a name of its own, so that the application can use
Alembic too. Every process that needs the tables checks their version at its start: a SQLite file is
migrated at once, a server's database by `eventmesh db upgrade` only.
"""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Connection, MetaData, inspect, text
from sqlalchemy.exc import CompileError
from sqlalchemy.ext.asyncio import AsyncConnection

from eventmesh.errors import Drift, UsageError
from eventmesh.persistence.database import Database

HEAD = "0010"
"""The newest migration. A test compares it with `migrations/versions`."""

VERSION_TABLE = "eventmesh_alembic_version"


async def current_version(database: Database) -> str | None:
    """The migration that the database is at; None before the first."""
    async with database.connection() as connection:
        return await connection.run_sync(_version)


async def upgrade(database: Database, metadata: MetaData | None = None) -> bool:
    """Migrate EventMesh's tables, and make those of the service's own tables that are missing.

    One process does this at a time, in one transaction. MariaDB commits each statement of a
    migration, so there an interrupted one is continued by the next. Returns whether EventMesh's
    tables changed. The service's own tables are left alone where they exist: changing them is the
    task of the service's own migrations.
    """
    async with (
        database.connection(within=None) as connection,  # a table may be large
        database.dialect.migration_lock(connection),
    ):
        version = await connection.run_sync(_version)
        _refuse_newer(database, version)
        if version != HEAD:
            await connection.run_sync(_migrate)
        if metadata is not None:
            await _make_own(database, connection, metadata)
        return version != HEAD


async def _make_own(database: Database, connection: AsyncConnection, metadata: MetaData) -> None:
    try:
        await connection.run_sync(metadata.create_all)
    except CompileError as error:
        raise UsageError(
            f"The own tables of service {database.service!r} cannot be made in such a database: "
            f"{error}. Correct that column's type, such as to String(255)."
        ) from None


async def create_database(database: Database) -> None:
    """Make the database on its server, if it is not there; a SQLite file is made when it is opened.

    The user in the URL needs the right to do so. Unreachable when the server does not answer.
    """
    if not database.dialect.is_file:
        async with database.maintenance() as connection:
            await database.dialect.create_database(connection, database.url.database or "")


async def require_current(database: Database) -> None:
    """Drift, with the command to run, when the database is not at HEAD."""
    version = await current_version(database)
    _refuse_newer(database, version)
    if version != HEAD:
        state = "has no EventMesh tables" if version is None else f"is at migration {version}"
        raise Drift(
            f"The database of service {database.service!r} {state}; this version needs {HEAD}. "
            f"Run `eventmesh db upgrade {database.service}`."
        )


def _refuse_newer(database: Database, version: str | None) -> None:
    if version is not None and version > HEAD:
        raise Drift(
            f"The database of service {database.service!r} is at migration {version}, which this "
            f"version of EventMesh does not know (its newest is {HEAD}). Install the newer version."
        )


def _version(connection: Connection) -> str | None:
    if not inspect(connection).has_table(VERSION_TABLE):
        return None
    version: str | None = connection.scalar(text(f"SELECT version_num FROM {VERSION_TABLE}"))  # noqa: S608  # a constant
    return version


def _migrate(connection: Connection, revision: str = "head") -> None:
    from alembic import command  # a third of a second to import, and seldom needed
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    command.upgrade(config, revision)
