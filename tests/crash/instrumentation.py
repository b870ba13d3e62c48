"""Patches of database drivers that turn every SQL statement into a crash point.

They are applied only in a process of the tests' own, a fork server. The testing kit has points at
calls of a database, and none before and after what a statement does, nor in the broker's file.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import wraps
from typing import Any

import asyncpg
from sqlalchemy import event
from sqlalchemy.dialects.postgresql.asyncpg import PGDialect_asyncpg
from sqlalchemy.dialects.sqlite.aiosqlite import SQLiteDialect_aiosqlite
from sqlalchemy.engine import Engine
from sqlalchemy.engine.default import DefaultDialect
from sqlalchemy.pool import Pool
from sqlalchemy.pool.base import _ConnectionRecord

from eventmesh.transports.sqlite.commit_watcher import CommitWatcher
from eventmesh.transports.sqlite.store import SqliteStore
from tests.crash.crash_points import current_run


def instrument() -> None:
    """Patch this process; there is no way back."""
    _note_statements()
    _note_broker_statements()


def named(statement: str) -> str:
    """A short name of the statement: its verb and its table."""
    words = statement.split()
    table = re.search(r"\b(?:FROM|INTO|UPDATE|TABLE)\s+(?!\()(\w+)", statement)
    return " ".join([words[0], *table.groups()]) if table else " ".join(words[:3])


def reach(kind: str, place: str, statement: str = "") -> None:
    """Note a point at this place, or at this place and the statement's name."""
    if (run := current_run()) is not None:
        run.reach(kind, f"{place} {named(statement)}" if statement else place)


def committed() -> None:
    """Note a commit: from here on, a kill may leave another state than before."""
    if (run := current_run()) is not None:
        run.commits += 1


@dataclass(eq=False)
class _Held:
    """A connection that a process holds open."""

    close: Callable[[], None]

    def cut(self) -> None:
        with suppress(sqlite3.ProgrammingError):  # it is closed already
            self.close()


# Statements of the services' databases


def _note_statements() -> None:
    def before(connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        reach("statement", "before", statement)
        if _commits_itself(connection, statement):
            committed()  # a server commits at some moment before it answers

    def after(connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if _commits_itself(connection, statement):
            committed()
        reach("statement", "after", statement)

    event.listen(Engine, "before_cursor_execute", before)
    event.listen(Engine, "after_cursor_execute", after)
    _note(DefaultDialect, "do_commit", "COMMIT", commits=True)
    _note(DefaultDialect, "do_rollback", "ROLLBACK")
    for name in ("do_execute", "do_executemany", "do_execute_no_params", "do_begin", "do_close"):
        _note(DefaultDialect, name)
    for dialect in (PGDialect_asyncpg, SQLiteDialect_aiosqlite):
        _note(dialect, "do_terminate")
    _note(_ConnectionRecord, "_ConnectionRecord__connect")
    event.listen(Pool, "connect", _remember)
    _count_listen_calls()


def _commits_itself(connection: Any, statement: str) -> bool:
    """Whether this statement writes, in a transaction of its own."""
    level = connection.get_execution_options().get("isolation_level")
    return level == "AUTOCOMMIT" and not statement.lstrip().startswith("SELECT")


def _count_listen_calls() -> None:
    """LISTEN bypasses SQLAlchemy; count its outstanding answer as well."""
    add_listener = asyncpg.Connection.add_listener

    @wraps(add_listener)
    async def asked(self: Any, *args: Any) -> None:
        run = current_run()
        with run.asks() if run is not None else nullcontext():
            await add_listener(self, *args)

    asyncpg.Connection.add_listener = asked


def _remember(connection: Any, _record: object) -> None:
    """Keep a connection to a server, to close it when its worker dies."""
    driver = getattr(connection, "driver_connection", None)
    if (run := current_run()) is not None and isinstance(driver, asyncpg.Connection):
        run.connections.append(_Held(driver._transport.abort))


def _note(owner: Any, name: str, place: str = "", *, commits: bool = False) -> None:
    original = getattr(owner, name)

    @wraps(original)
    def noted(self: Any, *args: Any, **options: Any) -> Any:
        run = current_run()
        if place:
            reach("statement", f"before {place}")
        if commits:
            committed()  # a server commits at some moment before it answers
        with run.asks() if run is not None else nullcontext():
            result = original(self, *args, **options)
        if commits:
            committed()
        if place:
            reach("statement", f"after {place}")
        return result

    setattr(owner, name, noted)


# Statements of the broker's file


def _note_broker_statements() -> None:
    def trace(statement: str) -> None:
        # SQLite calls this before it runs the statement, and for each row of executemany.
        reach("broker", "before", statement)
        if statement == "COMMIT":
            committed()

    for owner in (SqliteStore, CommitWatcher):
        _trace_connections(owner, trace)


def _trace_connections(owner: Any, trace: Callable[[str], None]) -> None:
    original = owner.__init__

    @wraps(original)
    def opened(self: Any, *args: Any, **options: Any) -> None:
        original(self, *args, **options)
        # Blocking on a lock would block the holder, too, which runs on the same thread.
        self._connection.execute("PRAGMA busy_timeout = 0")
        # No fsync: what a killed process has written stays with the kernel.
        self._connection.execute("PRAGMA synchronous = OFF")
        if (run := current_run()) is not None:
            run.connections.append(_Held(self._connection.close))
        if owner is SqliteStore:
            self._connection.set_trace_callback(trace)

    owner.__init__ = opened
