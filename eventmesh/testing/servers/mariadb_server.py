"""How to start MariaDB for tests, in a container or privately."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from eventmesh.testing.servers.answering import Refused
from eventmesh.testing.servers.processes import Running, free_port, run_to_end, running
from eventmesh.testing.servers.recipe import Place, Recipe

if TYPE_CHECKING:
    from testcontainers.core.container import DockerContainer


async def execute(url: str, statement: str) -> str | None:
    """Run a statement on a new connection; returns its first value, if any."""
    import asyncmy

    parts = urlsplit(url)
    where = {"host": parts.hostname, "port": parts.port}
    who = {"user": parts.username, "password": parts.password}
    async with asyncmy.connect(**where, **who) as connection, connection.cursor() as cursor:
        await cursor.execute(statement)
        row = await cursor.fetchone()
    return None if row is None else row[0]


def _url(address: str, password: str) -> str:
    return f"mariadb://root:{password}@{address}/"


async def _greet(url: str) -> str:
    try:
        from asyncmy.errors import Error
    except ImportError as error:
        raise Refused(f"the driver is not installed ({error})") from error

    try:
        version = await execute(url, "SELECT VERSION()")
    except Error as error:
        raise Refused(str(error)) from error
    return str(version).split("-", maxsplit=1)[0]


def _container(image: str, password: str) -> DockerContainer:
    from testcontainers.core.container import DockerContainer

    container = DockerContainer(image)
    container.with_env("MARIADB_ROOT_PASSWORD", password)
    return container


class PrivateMariaDB:
    """A server on TCP only, without fsync."""

    options: tuple[str, ...] = ()
    """Further command-line options."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._port = free_port()
        self.url = _url(f"127.0.0.1:{self._port}", place.password)
        self._first = place.folder / "first.sql"  # statements that it runs at each start
        # In a file, because command lines are visible in the process list.
        self._first.write_text(
            f"CREATE OR REPLACE USER root@'%' IDENTIFIED BY '{place.password}';\n"
            f"GRANT ALL ON *.* TO root@'%' WITH GRANT OPTION;\n"
        )
        if place.account is not None:
            os.chown(self._first, place.account.user, place.account.group)

    def initialise(self) -> None:
        _, install = self._place.binaries
        run_to_end(
            [
                *(install, "--no-defaults", f"--datadir={self._place.data}", "--skip-test-db"),
                *("--auth-root-authentication-method=socket", "--innodb-flush-method=nosync"),
            ],
            self._place.folder,
            self._place.account,
        )

    @contextmanager
    def run(self) -> Iterator[tuple[Running, ...]]:
        binary, _ = self._place.binaries
        command = [
            *(binary, "--no-defaults", f"--datadir={self._place.data}"),
            *("--bind-address=127.0.0.1", f"--port={self._port}", "--max-connections=200"),
            "--skip-name-resolve",  # with names, we would match the root without password
            *(f"--socket={self._place.folder}/socket", f"--pid-file={self._place.folder}/pid"),
            *(f"--init-file={self._first}", "--innodb-flush-method=nosync"),
            *("--sync-frm=0", "--innodb-flush-log-at-trx-commit=2"),
            *self.options,
        ]
        with running(command, self._place.folder, account=self._place.account) as process:
            yield (process,)


RECIPE = Recipe(
    kind="mariadb",
    schemes=("mariadb",),
    url=_url,
    greet=_greet,
    image="mariadb:11",
    port=3306,
    container=_container,
    binaries=("mariadbd", "mariadb-install-db"),
    places=("$PATH", "/usr/sbin"),
    private=PrivateMariaDB,
    unprivileged=True,
)
