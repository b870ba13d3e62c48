"""A database for each service of a mesh, made in a moment: a copy of a file that was migrated once.

Services that share a database (`shares_database_with`) get one together. The tables are those that
`eventmesh db upgrade` makes: EventMesh's own and those of the service's metadata. Engines are kept
from one mesh to the next, because a new one compiles each statement again.
"""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, event
from sqlalchemy.engine import URL
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.ext.asyncio import AsyncEngine

from eventmesh.persistence import migration
from eventmesh.persistence.database import Database
from eventmesh.persistence.own_tables import require_own_tables
from eventmesh.runtime.declaring.service import DeclaredService as Service
from eventmesh.testing.virtual.sqlite import KeptConnections, note_record

_FAST_FOLDER = Path("/dev/shm")  # noqa: S108  # a folder of our own is made in it

_KEPT_BY_DEAD = 16
"""More connections than processes are killed in one run."""


@contextmanager
def temporary_workshop() -> Iterator[Workshop]:
    """A workshop in a folder of its own, in memory where that can be had."""
    fast = str(_FAST_FOLDER) if _FAST_FOLDER.is_dir() else None
    folder = Path(tempfile.mkdtemp(prefix="eventmesh-", dir=fast))
    workshop = Workshop(folder)
    try:
        yield workshop
    finally:
        workshop.close()
        shutil.rmtree(folder)


class Template:
    """A database as it was made: its file, and its rows, to make it so again."""

    def __init__(self, path: Path) -> None:
        self._file = path.read_bytes()
        self._rows: dict[str, tuple[str, list[Any]]] = {}
        """By table: the statement that inserts its rows, and those."""
        with closing(sqlite3.connect(path)) as connection:
            entries = connection.execute("SELECT type, name, sql FROM sqlite_master").fetchall()
            self._schema = self._version(connection)
            self._can_restore = not any(
                kind in ("trigger", "view") or str(sql).upper().startswith("CREATE VIRTUAL")
                for kind, _, sql in entries
            )
            for kind, name, _ in entries:
                if kind == "table":
                    self._read(connection, name)

    def _read(self, connection: sqlite3.Connection, table: str) -> None:
        columns = ", ".join(
            f'"{name}"'
            for _, name, *_, hidden in connection.execute(f'PRAGMA table_xinfo("{table}")')
            if not hidden  # generated columns
        )
        rows = connection.execute(f'SELECT {columns} FROM "{table}"').fetchall()  # noqa: S608  # our names
        marks = ", ".join("?" * (columns.count(", ") + 1))
        self._rows[table] = f'INSERT INTO "{table}" ({columns}) VALUES ({marks})', rows  # noqa: S608  # as above

    def write(self, path: Path) -> None:
        path.write_bytes(self._file)

    def restore(self, connection: sqlite3.Connection) -> bool:
        """Give the file the rows that it had; false where that cannot be done, such as when
        somebody has changed the schema or has a transaction open."""
        if not self._can_restore:
            return False
        try:
            connection.execute("BEGIN IMMEDIATE")
            if is_same := self._version(connection) == self._schema:
                for table, (insert, rows) in self._rows.items():
                    connection.execute(f'DELETE FROM "{table}"')  # noqa: S608  # our names
                    if rows:
                        connection.executemany(insert, rows)
            connection.execute("COMMIT")
        except sqlite3.Error:
            return False
        return is_same

    @staticmethod
    def _version(connection: sqlite3.Connection) -> int:
        version: int = connection.execute("PRAGMA schema_version").fetchone()[0]
        return version


class Workshop:
    """What many meshes share: files that were migrated, connections to them, and engines, all made
    when they are first needed.

    Each mesh finds its files in the folder `now`, as they were after the migration: so the URLs are
    the same in each, and so are the engines and the connections.
    """

    def __init__(self, folder: Path) -> None:
        self.now = folder / "now"
        self.now.mkdir(exist_ok=True)
        self.connections = KeptConnections()
        self.engines_of_predicates: dict[Path, Engine] = {}
        """By the file that they read, empty of connections between meshes."""
        self._templates: dict[tuple[str, ...], Template] = {}
        self._engines: dict[tuple[str, str], AsyncEngine] = {}
        self._kept: dict[str, object] = {}
        """By a service's name, the metadata that its file was made for."""
        self._used: dict[Path, Template] = {}
        """The files that are used by the mesh that runs, or are as they were made."""

    @contextmanager
    def mesh(self) -> Iterator[None]:
        """While the context is open, one mesh has its databases in `now`."""
        try:
            yield
        finally:
            self.connections.take_back()
            for path, template in [*self._used.items()]:
                if not template.restore(self.connections.plain(str(path))):
                    self._delete(path)

    def close(self) -> None:
        """Close what was kept."""
        self.connections.close()

    async def write(self, services: Sequence[Service], path: Path) -> None:
        """A new database for these services, which share it, in this file."""
        names = tuple(sorted(service.name for service in services))
        is_known = all(self._kept.get(each.name, self) is each.metadata for each in services)
        if names not in self._templates or not is_known:
            self._delete(path)
            await self._make(services, path)
            self._templates[names] = Template(path)
            self._used[path] = self._templates[names]
        elif self._used.get(path) is not self._templates[names]:
            self._delete(path)
            self._used[path] = self._templates[names]
            self._used[path].write(path)

    async def _make(self, services: Sequence[Service], path: Path) -> None:
        for service in services:
            database = await self.database(url_of(path), service, "")
            try:
                await migration.upgrade(database, service.metadata)
                if service.metadata is not None:
                    await require_own_tables(database, service.metadata)
            finally:
                await database.close()
            self._kept[service.name] = service.metadata
        self.connections.forget(str(path))  # the last one writes the log into the file itself

    def _delete(self, path: Path) -> None:
        self._used.pop(path, None)
        self.connections.forget(str(path))
        for ending in ("", "-wal", "-shm"):
            path.with_name(path.name + ending).unlink(missing_ok=True)

    async def database(self, url: str, service: Service, process: str) -> Database:
        """The database of a service, as this process of it uses it. The first connection of an
        engine has more to do than the others, so it is made here, to make all runs alike."""
        connections = sum(handler.concurrency for handler in service.handlers.values())
        if not process:  # shared by all processes, of which dead ones keep what they had
            connections += _KEPT_BY_DEAD
        name = process or f"{service.name}/test"
        is_new = (url, name) not in self._engines
        database = _KeptDatabase(url, service.name, connections, self._engines, name)
        if is_new:
            async with database.engine.connect():
                pass
            await database.engine.dispose()
        return database


class _KeptDatabase(Database):
    """A database whose engine is taken from, and left to, those that are kept."""

    def __init__(
        self,
        url: str,
        service: str,
        connections: int,
        kept: dict[tuple[str, str], AsyncEngine],
        process: str,
    ) -> None:
        self._kept = kept
        self._process = process
        super().__init__(url, service=service, connections=connections)
        self._counting = self.engine.sync_engine.pool

    async def close(self) -> None:
        # The engine outlives this, and would keep it.
        with suppress(InvalidRequestError):  # of a pool that was replaced
            event.remove(self._counting, "invalidate", self._count_loss)
        await super().close()

    def _make_engine(self, url: URL, connections: int) -> AsyncEngine:
        name = str(url), self._process
        if name not in self._kept:
            self._kept[name] = super()._make_engine(url, connections)
            note_record(self._kept[name].sync_engine)
        return self._kept[name]


def url_of(path: Path) -> str:
    return f"sqlite+aiosqlite:///{path}"


def sharing(services: Sequence[Service]) -> list[list[Service]]:
    """The services by the database that they have, those together that share one."""
    groups: list[list[Service]] = []
    for service in services:
        for group in groups:
            if any(
                other.name in service.shares_database_with
                or service.name in other.shares_database_with
                for other in group
            ):
                group.append(service)
                break
        else:
            groups.append([service])
    return groups
