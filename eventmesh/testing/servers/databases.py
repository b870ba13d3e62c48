"""Databases of a Postgres or MariaDB server, for one test each."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit, urlunsplit

from eventmesh.testing.servers import mariadb_server, postgres_server
from eventmesh.testing.servers.server import Server


@asynccontextmanager
async def fresh_database(server: Server) -> AsyncIterator[str]:
    """The URL of a new, empty database on a Postgres or MariaDB server; dropped on leaving, whoever
    is connected to it."""
    name = f"test_{secrets.token_hex(8)}"
    if server.kind == "mariadb":
        execute, create, drop = mariadb_server.execute, f"CREATE DATABASE {name}", name
    else:
        # template0, because nobody can be connected to it: template1 in use makes this fail.
        create, drop = f"CREATE DATABASE {name} TEMPLATE template0", f"{name} WITH (FORCE)"
        execute = postgres_server.execute
    await execute(server.url, create)
    try:
        yield urlunsplit(urlsplit(server.url)._replace(path=f"/{name}"))
    finally:
        await execute(server.url, f"DROP DATABASE {drop}")
