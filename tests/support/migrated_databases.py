"""Databases that have EventMesh's tables, as copies of one that was migrated once.

Migrating takes longer than most tests need for the rest. SQLite files are copied, and PostgreSQL
copies a template. How a migration works is shown by the tests that begin with an empty database.
"""

from __future__ import annotations

import secrets
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from eventmesh.persistence import migration
from eventmesh.persistence.database import Database
from eventmesh.testing.servers import Server, fresh_database
from eventmesh.testing.servers.postgres_server import execute
from tests.support.own_loop import run_on_own_loop


class MigratedDatabases:
    """Makes one template for SQLite, and one on each PostgreSQL server, when it is first needed."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "migrated.db"
        self._templates: dict[str, str] = {}
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
        if server.url not in self._templates:
            name = f"migrated_{secrets.token_hex(8)}"
            await execute(server.url, f"CREATE DATABASE {name} TEMPLATE template0")
            self._templates[server.url] = name
            await _migrate(urlunsplit(urlsplit(server.url)._replace(path=f"/{name}")))
        async with fresh_database(server, template=self._templates[server.url]) as url:
            yield url

    def close(self) -> None:
        """Drop the templates."""
        for url, name in self._templates.items():
            run_on_own_loop(lambda url=url, name=name: execute(url, f"DROP DATABASE {name}"))


async def _migrate(url: str) -> None:
    database = Database(url, service="any")
    try:
        await migration.upgrade(database)
    finally:
        await database.close()
