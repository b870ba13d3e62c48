"""A new database on a PostgreSQL or MariaDB server, for one test."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit, urlunsplit

from eventmesh.testing.servers import mariadb_server, postgres_server
from eventmesh.testing.servers.server import Server


@asynccontextmanager
async def fresh_database(server: Server, *, template: str = "template0") -> AsyncIterator[str]:
    """The URL of a new, empty database; dropped on leaving even if clients are connected.

    On PostgreSQL it can be a copy of another: `template` names a database on the same server to
    which nobody is connected.
    """
    name = f"test_{secrets.token_hex(8)}"
    if server.kind == "mariadb":
        execute, create, drop = mariadb_server.execute, f"CREATE DATABASE {name}", name
    else:
        # template0 accepts no connections; copying template1 fails while a client uses it.
        create, drop = f"CREATE DATABASE {name} TEMPLATE {template}", f"{name} WITH (FORCE)"
        execute = postgres_server.execute
    await execute(server.url, create)
    try:
        yield urlunsplit(urlsplit(server.url)._replace(path=f"/{name}"))
    finally:
        await execute(server.url, f"DROP DATABASE {drop}")
