"""How to start PostgreSQL for tests, in a container or privately."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

from eventmesh.testing.servers.answering import Refused
from eventmesh.testing.servers.processes import Running, free_port, run_to_end, running
from eventmesh.testing.servers.recipe import SUPERUSER, Place, Recipe

if TYPE_CHECKING:
    from testcontainers.core.container import DockerContainer


async def execute(url: str, statement: str) -> str | None:
    """Run a statement on a new connection; returns its first value."""
    import asyncpg  # type: ignore[import-untyped]

    plain = urlunsplit(urlsplit(url)._replace(scheme="postgresql"))
    # Without named statements, which poolers such as PgBouncer may not know.
    connection = await asyncpg.connect(plain, statement_cache_size=0)
    try:
        value: str | None = await connection.fetchval(statement)
    finally:
        await connection.close()
    return value


def url_at(address: str, password: str) -> str:
    """The superuser's URL."""
    return f"postgresql+asyncpg://{SUPERUSER}:{password}@{address}/postgres"


def with_driver(url: str) -> str:
    """The URL as `url_at` writes it, of one that is written as for psql."""
    return url.replace("postgresql://", "postgresql+asyncpg://", 1)


async def greet(url: str) -> str:
    """The version of the server; Refused if it does not accept clients."""
    from asyncpg import InterfaceError, PostgresError

    try:
        version = await execute(url, "SHOW server_version")
    except (InterfaceError, PostgresError) as error:
        raise Refused(str(error)) from error
    return str(version).split()[0]  # the rest names the distribution's package


def _container(image: str, password: str) -> DockerContainer:
    from testcontainers.community.postgres import PostgresContainer

    return PostgresContainer(
        image, username=SUPERUSER, password=password, dbname="postgres", driver="asyncpg"
    )


class PrivatePostgres:
    """A cluster on TCP only, without fsync, which protects only against power failures."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self.port = free_port()
        self.url = url_at(f"127.0.0.1:{self.port}", place.password)
        self._password_file = place.folder / "password"
        self._password_file.write_text(place.password)
        if place.account is not None:
            os.chown(self._password_file, place.account.user, place.account.group)

    def initialise(self) -> None:
        _, initdb = self._place.binaries
        run_to_end(
            [
                *(initdb, "-D", str(self._place.data), "-U", SUPERUSER),
                *(f"--pwfile={self._password_file}", "-A", "scram-sha-256"),
                *("-E", "UTF8", "--locale=C", "--no-sync"),
            ],
            self._place.folder,
            self._place.account,
        )

    @contextmanager
    def run(self) -> Iterator[tuple[Running, ...]]:
        binary, _ = self._place.binaries
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": self.port,
            "unix_socket_directories": "",
            "max_connections": 200,
            "fsync": "off",
        }
        command = [binary, "-D", str(self._place.data)]
        for name, value in settings.items():
            command += ["-c", f"{name}={value}"]
        with running(
            command,
            self._place.folder,
            account=self._place.account,
            ending=signal.SIGINT,  # SIGTERM would wait for every client to leave
        ) as process:
            yield (process,)


RECIPE = Recipe(
    kind="postgres",
    schemes=("postgresql", "postgresql+asyncpg"),
    url=url_at,
    greet=greet,
    image="postgres:17",
    port=5432,
    container=_container,
    binaries=("postgres", "initdb"),
    places=("$PATH", "/usr/lib/postgresql/*/bin", "/usr/sbin"),
    private=PrivatePostgres,
    stopping=("sh", "-c", "kill -INT 1"),  # by SIGTERM it waits for every client to leave
    unprivileged=True,
    completed=with_driver,
)
