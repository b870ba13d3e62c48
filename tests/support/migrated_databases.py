"""Databases that have EventMesh's tables, as copies of one that was migrated once.

Migrating takes longer than most tests need for the rest. SQLite files are copied, PostgreSQL copies
a template, and on MariaDB each table is made like that of a template. How a migration works is
shown by the tests that begin with an empty database.

A connection that makes and drops databases on PostgreSQL is kept until the end: connecting takes
the server as long as copying.
"""

from __future__ import annotations

import secrets
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psycopg

from eventmesh.persistence import migration
from eventmesh.persistence.database import Database
from eventmesh.testing.servers import Server, fresh_database, mariadb_server
from tests.support.own_loop import run_on_own_loop


class MigratedDatabases:
    """Makes one template for SQLite, and one on each server, when it is first needed."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "migrated.db"
        self._postgres: dict[str, _PostgresTemplate] = {}
        self._mariadb: dict[str, str] = {}
        """The name of the template by the URL of its server."""

    def sqlite_url(self, folder: Path) -> str:
        """The URL of a new file in this folder."""
        if not self._file.exists():
            run_on_own_loop(lambda: _migrate(f"sqlite+aiosqlite:///{self._file}"))
        shutil.copy(self._file, folder / "service.db")
        return f"sqlite+aiosqlite:///{folder}/service.db"

    @asynccontextmanager
    async def postgres_url(self, server: Server) -> AsyncIterator[str]:
        """The URL of a new database on this server; it is dropped on leaving."""
        if server.url not in self._postgres:
            self._postgres[server.url] = template = _PostgresTemplate(server.url)
            await _migrate(_in(server.url, template.name))
        template = self._postgres[server.url]
        name = template.copy()
        try:
            yield _in(server.url, name)
        finally:
            template.drop(name)

    @asynccontextmanager
    async def mariadb_url(self, server: Server) -> AsyncIterator[str]:
        """The URL of a new database on this server; it is dropped on leaving."""
        if server.url not in self._mariadb:
            name = f"migrated_{secrets.token_hex(8)}"
            await mariadb_server.execute(server.url, f"CREATE DATABASE {name}")
            self._mariadb[server.url] = name
            await _migrate(_in(server.url, name))
        async with fresh_database(server) as url:
            await _copy_tables(server.url, self._mariadb[server.url], urlsplit(url).path[1:])
            yield url

    def close(self) -> None:
        """Drop the templates."""
        for template in self._postgres.values():
            template.close()
        for url, name in self._mariadb.items():
            run_on_own_loop(
                lambda url=url, name=name: mariadb_server.execute(url, f"DROP DATABASE {name}")
            )


class _PostgresTemplate:
    """A database on a PostgreSQL server, first empty, and the connection by which it is copied."""

    def __init__(self, url: str) -> None:
        self.name = f"migrated_{secrets.token_hex(8)}"
        plain = urlunsplit(urlsplit(url)._replace(scheme="postgresql"))
        self._connection = psycopg.connect(plain, autocommit=True)
        self._execute(f"CREATE DATABASE {self.name} TEMPLATE template0")
        # Copying the files takes half the processor time of writing them to the log, but ends with
        # a checkpoint, which is slow where the server waits for a disk.
        fsync = self._connection.execute("SHOW fsync").fetchone()
        by_files = fsync == ("off",) and self._connection.info.server_version >= 150_000
        self._strategy = "STRATEGY file_copy" if by_files else ""

    def copy(self) -> str:
        """Make a new database; returns its name."""
        name = f"test_{secrets.token_hex(8)}"
        self._execute(f"CREATE DATABASE {name} TEMPLATE {self.name} {self._strategy}")
        return name

    def drop(self, name: str) -> None:
        """Drop a database, even if clients are connected."""
        self._execute(f"DROP DATABASE {name} WITH (FORCE)")

    def close(self) -> None:
        self.drop(self.name)
        self._connection.close()

    def _execute(self, statement: str) -> None:
        self._connection.execute(statement.encode())


async def _copy_tables(url: str, source: str, target: str) -> None:
    """Make the tables of one MariaDB database in another, with what the migration wrote there."""
    import asyncmy

    parts = urlsplit(url)
    where = {"host": parts.hostname, "port": parts.port}
    who = {"user": parts.username, "password": parts.password}
    async with (
        asyncmy.connect(**where, **who, autocommit=True) as connection,
        connection.cursor() as cursor,
    ):
        await cursor.execute(f"SHOW TABLES IN {source}")
        for (table,) in await cursor.fetchall():
            await cursor.execute(f"CREATE TABLE {target}.{table} LIKE {source}.{table}")
            copy = f"INSERT INTO {target}.{table} SELECT * FROM {source}.{table}"  # noqa: S608
            await cursor.execute(copy)


def _in(url: str, name: str) -> str:
    """The URL of this database on the server."""
    return urlunsplit(urlsplit(url)._replace(path=f"/{name}"))


async def _migrate(url: str) -> None:
    database = Database(url, service="any")
    try:
        await migration.upgrade(database)
    finally:
        await database.close()
