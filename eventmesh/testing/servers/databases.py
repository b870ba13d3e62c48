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
    url = await create_database(server, template=template)
    try:
        yield url
    finally:
        await drop_database(server, url)


async def create_database(server: Server, *, template: str = "template0") -> str:
    """As `fresh_database`, for those who drop it themselves."""
    name = f"test_{secrets.token_hex(8)}"
    if server.kind == "mariadb":
        await mariadb_server.execute(server.url, f"CREATE DATABASE {name}")
    else:
        # template0 accepts no connections; copying template1 fails while a client uses it.
        statement = f"CREATE DATABASE {name} TEMPLATE {template}"
        await postgres_server.execute(server.url, statement)
    return urlunsplit(urlsplit(server.url)._replace(path=f"/{name}"))


async def drop_database(server: Server, url: str) -> None:
    """Drop a database of `create_database`, even if clients are connected."""
    name = urlsplit(url).path.removeprefix("/")
    if server.kind == "mariadb":
        await mariadb_server.execute(server.url, f"DROP DATABASE {name}")
    else:
        await postgres_server.execute(server.url, f"DROP DATABASE {name} WITH (FORCE)")
