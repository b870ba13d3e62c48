"""Databases of a Postgres server, for one test each."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit, urlunsplit

from eventmesh.testing.servers.postgres_server import execute
from eventmesh.testing.servers.server import Server


@asynccontextmanager
async def fresh_database(server: Server) -> AsyncIterator[str]:
    """The URL of a new, empty database on a Postgres server; dropped on leaving, whoever is
    connected to it."""
    name = f"test_{secrets.token_hex(8)}"
    # template0, because nobody can be connected to it: template1 in use makes this fail.
    await execute(server.url, f'CREATE DATABASE "{name}" TEMPLATE template0')
    try:
        yield urlunsplit(urlsplit(server.url)._replace(path=f"/{name}"))
    finally:
        await execute(server.url, f'DROP DATABASE "{name}" WITH (FORCE)')
