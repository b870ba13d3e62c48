"""SQLite: a file, with one transaction at a time.

Every transaction begins as a writer (BEGIN IMMEDIATE): one that reads first and writes later would
fail if another one wrote in between. So transactions are committed one after another, in the order
of their row numbers, and single reads go outside of any.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from sqlalchemy import Connection, Insert, Table, event
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.util import await_only

from eventmesh.errors import Conflict, UsageError
from eventmesh.persistence.dialects.base import Dialect
from eventmesh.private_files import make_private_file, make_private_folder

_NO_TRANSACTION = "eventmesh_no_transaction"
_LOCK_TIMEOUT = 30.0  # seconds to wait for another process's transaction
_LOCK_TRIES = 300  # in these seconds, where SQLite does not wait by itself

_LOST = (
    "SQLITE_BUSY",
    "SQLITE_CANTOPEN",
    "SQLITE_CORRUPT",
    "SQLITE_FULL",
    "SQLITE_IOERR",
    "SQLITE_NOTADB",
    "SQLITE_READONLY",
)
"""What SQLite's errors are called, or begin with, when the file cannot be used for now."""


class SQLite(Dialect):
    name = "sqlite"
    driver = "sqlite+aiosqlite"
    is_file = True
    # Setting the isolation level would cost statements of its own.
    reading_options = MappingProxyType({_NO_TRANSACTION: True})

    def normal_url(self, url: URL, variable: str) -> URL:
        if url.host:
            path = "/".join(filter(None, (url.host, url.database)))
            raise UsageError(
                f"{variable} does not name a file: write sqlite:///{path} "
                f"for a path from here, or sqlite:////var/lib/service.db for an absolute one."
            )
        return url

    def differ(self, ours: URL, theirs: URL) -> bool:
        if (theirs.database or "").startswith("file:"):
            return False
        one, two = ((url.database or ":memory:") for url in (ours, theirs))
        return Path(one).resolve() != Path(two).resolve()

    def sqlstate(self, error: BaseException | None) -> str:
        if str(getattr(error, "sqlite_errorname", "") or "").startswith(_LOST):
            return "08006"  # connection failure
        if isinstance(error, sqlite3.Error) and "no such table" in str(error):
            return "42P01"
        return ""

    def make_engine(
        self, url: URL, variable: str, connect_timeout: float, options: Mapping[str, Any]
    ) -> AsyncEngine:
        if url.database:
            make_private_folder(Path(url.database).parent)
        engine = create_async_engine(url, connect_args={"timeout": _LOCK_TIMEOUT}, **options)
        event.listen(engine.sync_engine, "do_connect", _make_file)
        event.listen(engine.sync_engine, "connect", _prepare)
        event.listen(engine.sync_engine, "begin", _begin_immediate)
        return engine

    def commits_each_statement(self, connection: Connection) -> bool:
        driver: Any = connection.connection.driver_connection
        # The level is None also where the application begins its transactions itself.
        return driver.isolation_level is None and not driver.in_transaction

    def require_open(self, connection: Connection) -> None:
        raw: Any = connection.connection.driver_connection
        if not raw.in_transaction:
            raise Conflict(
                "SQLite rolled back the whole transaction, at an error that the handler caught: by "
                "a constraint that says ON CONFLICT ROLLBACK, or a trigger"
            )

    def insert_absent(self, table: Table) -> Insert:
        return insert(table).on_conflict_do_nothing()

    def upsert(
        self, table: Table, keys: Sequence[str], first: Mapping[str, Any], again: Mapping[str, Any]
    ) -> Insert:
        row = insert(table).values(first)
        return row.on_conflict_do_update(index_elements=keys, set_=again)


def _make_file(_dialect: object, _record: object, arguments: Any, _options: object) -> None:
    path = str(arguments[0])
    if path and not path.startswith((":memory:", "file:")):
        make_private_file(Path(path))


def _prepare(connection: Any, _record: object) -> None:
    # The driver must not begin transactions of its own; `_begin_immediate` does.
    connection.isolation_level = None
    cursor = connection.cursor()
    _write_ahead(cursor)
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()


def _write_ahead(cursor: Any) -> None:
    """Switch the file to write-ahead logging. SQLite does not wait for its lock here, and several
    processes may do this to a new file at the same time."""
    for _ in range(_LOCK_TRIES):
        try:
            cursor.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error):
                raise
        await_only(asyncio.sleep(_LOCK_TIMEOUT / _LOCK_TRIES))
    cursor.execute("PRAGMA journal_mode = WAL")


def _begin_immediate(connection: Connection) -> None:
    if _NO_TRANSACTION not in connection.get_execution_options():
        connection.exec_driver_sql("BEGIN IMMEDIATE")
