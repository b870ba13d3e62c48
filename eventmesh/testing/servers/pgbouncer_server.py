"""How to start PgBouncer for tests, in transaction mode in front of a PostgreSQL of its own.

The private server is this machine's pgbouncer of any version. A container needs an image, named by
EVENTMESH_TEST_PGBOUNCER_IMAGE, with Debian's `postgresql` and `pgbouncer` and a command
`postgres-start` that starts the former. In the container, PgBouncer tracks prepared statements,
which requires version 1.21 or later.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from eventmesh.testing.servers import postgres_server
from eventmesh.testing.servers.processes import Running, free_port, running
from eventmesh.testing.servers.recipe import SUPERUSER, Place, Recipe

if TYPE_CHECKING:
    from testcontainers.core.container import DockerContainer

_PORT = 6432

_SERVER_CONNECTIONS = 4
"""Connections to each database: fewer than the clients of any test, so that clients share them."""


def _settings(postgres: str, **more: object) -> str:
    settings = {
        "auth_type": "scram-sha-256",
        "pool_mode": "transaction",
        "default_pool_size": _SERVER_CONNECTIONS,
        "max_client_conn": 500,
        "unix_socket_dir": "",
        # PostgreSQL starts beside it; after a login that fails it would reject clients for 15 s.
        "server_login_retry": 0.1,
        **more,
    }
    lines = [f"{name} = {value}" for name, value in settings.items()]
    return "\n".join(["[databases]", f"* = {postgres}", "[pgbouncer]", *lines, ""])


def _container(image: str, password: str) -> DockerContainer:
    from testcontainers.core.container import DockerContainer

    settings = _settings(
        "host=127.0.0.1 port=5432",
        listen_addr="*",
        listen_port=_PORT,
        auth_file="/etc/pgbouncer/userlist.txt",
        max_prepared_statements=100,
    )
    container = DockerContainer(image)
    container.with_env("POSTGRES_USER", SUPERUSER)
    container.with_env("POSTGRES_PASSWORD", password)
    container.with_env("POSTGRES_DB", "postgres")
    container.with_env("PGBOUNCER_SETTINGS", settings)
    script = """
        printf '%s' "$PGBOUNCER_SETTINGS" > /etc/pgbouncer/pgbouncer.ini
        printf '"%s" "%s"' "$POSTGRES_USER" "$POSTGRES_PASSWORD" > /etc/pgbouncer/userlist.txt
        chmod 644 /etc/pgbouncer/*
        postgres-start & exec gosu postgres pgbouncer /etc/pgbouncer/pgbouncer.ini
    """
    container.with_command(["sh", "-c", script])
    return container


class _PrivatePgBouncer:
    """A pooler and a PostgreSQL, both on TCP only."""

    def __init__(self, place: Place) -> None:
        self._place = place
        pgbouncer, *postgres = place.binaries
        self._binary = pgbouncer
        self._postgres = postgres_server.PrivatePostgres(replace(place, binaries=tuple(postgres)))
        port = free_port()
        self.url = postgres_server.url_at(f"127.0.0.1:{port}", place.password)
        self._settings = place.folder / "pgbouncer.ini"
        users = place.folder / "users"
        users.write_text(f'"{SUPERUSER}" "{place.password}"\n')
        self._settings.write_text(
            _settings(
                f"host=127.0.0.1 port={self._postgres.port}",
                listen_addr="127.0.0.1",
                listen_port=port,
                auth_file=users,
            )
        )
        if place.account is not None:  # PgBouncer refuses to run as root
            for file in (users, self._settings):
                os.chown(file, place.account.user, place.account.group)

    def initialise(self) -> None:
        self._postgres.initialise()

    @contextmanager
    def run(self) -> Iterator[tuple[Running, ...]]:
        with (
            self._postgres.run() as postgres,
            running(
                [self._binary, str(self._settings)],
                self._place.folder,
                account=self._place.account,
                ending=signal.SIGQUIT,  # from 1.23 on, SIGTERM would wait for every client to leave
            ) as pooler,
        ):
            yield (*postgres, pooler)


RECIPE = Recipe(
    kind="pgbouncer",
    schemes=("postgresql", "postgresql+asyncpg"),
    url=postgres_server.url_at,
    greet=postgres_server.greet,
    image="",
    port=_PORT,
    container=_container,
    binaries=("pgbouncer", "postgres", "initdb"),
    places=("$PATH", "/usr/sbin", "/usr/lib/postgresql/*/bin"),
    private=_PrivatePgBouncer,
    unprivileged=True,
    completed=postgres_server.with_driver,
)
