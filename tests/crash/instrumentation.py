"""Patches of database drivers that turn every SQL statement into a crash point.

They are applied only in a process of the tests' own (a fork server, or a test that opens
`on_virtual_loops`). SQLite is moved from its thread to the event loop, so that a run on a
`VirtualLoop` takes the same steps each time.
"""

from __future__ import annotations

import asyncio
import re
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import wraps
from typing import Any

import aiosqlite.core
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
from tests.crash.crash_points import CURRENT_RUN
from tests.crash.virtual_loop import VirtualLoop, call_here


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
    run = CURRENT_RUN.get()
    if run is not None and run.counts and not run.dead:
        run.reach(kind, f"{place} {named(statement)}" if statement else place)


def committed() -> None:
    """Note a commit: from here on, a kill may leave another state than before."""
    run = CURRENT_RUN.get()
    if run is not None:
        run.commits += 1


# SQLite's connections


class _Here:
    """Replaces the queue of a connection's thread: runs each item on the event loop."""

    def put_nowait(self, item: tuple[asyncio.Future[Any] | None, Callable[[], Any]]) -> None:
        future, function = item
        if future is None:
            function()
        else:
            call_here(future, lambda: _without_busy_timeout(function()))


class _NoThread:
    daemon = True

    def start(self) -> None:
        pass


def _without_busy_timeout(result: Any) -> Any:
    """Let a new connection fail at once on a lock: blocking would block the holder too, which
    runs on the same thread."""
    if isinstance(result, sqlite3.Connection):
        result.execute("PRAGMA busy_timeout = 0")
        result.create_function("strftime", 2, _loop_time)
        result.set_trace_callback(_count_commits)
        if (run := CURRENT_RUN.get()) is not None:
            run.connections.append(result)
    return result


def _loop_time(_form: str, _now: str) -> str:
    """The loop's time, as SQLite's strftime formats it."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    return loop.date().replace(tzinfo=None).isoformat(" ", "milliseconds")


def _without_sync(connection: Any, *_: object) -> None:
    """Skip fsync: what a killed process has written stays with the kernel, and only a power
    failure would lose it."""
    driver = getattr(connection, "driver_connection", None)
    if isinstance(driver, aiosqlite.core.Connection) and isinstance(driver._tx, _Here):
        driver._conn.execute("PRAGMA synchronous = OFF")


@contextmanager
def on_virtual_loops() -> Iterator[None]:
    """While the context is open, SQLite runs on the event loop if that is a VirtualLoop."""
    begin = aiosqlite.core.Connection.__init__

    @wraps(begin)
    def begin_here(self: Any, *args: Any, **options: Any) -> None:
        begin(self, *args, **options)
        if isinstance(asyncio.get_running_loop(), VirtualLoop):
            self._tx, self._thread = _Here(), _NoThread()

    aiosqlite.core.Connection.__init__ = begin_here  # type: ignore[method-assign]
    event.listen(Pool, "checkout", _without_sync)
    try:
        yield
    finally:
        event.remove(Pool, "checkout", _without_sync)
        aiosqlite.core.Connection.__init__ = begin  # type: ignore[method-assign]


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
        run = CURRENT_RUN.get()
        with run.asks() if run is not None else nullcontext():
            await add_listener(self, *args)

    asyncpg.Connection.add_listener = asked


def _remember(connection: Any, _record: object) -> None:
    """Keep a connection to a server, to close it when its worker dies."""
    driver = getattr(connection, "driver_connection", None)
    if (run := CURRENT_RUN.get()) is not None and isinstance(driver, asyncpg.Connection):
        run.connections.append(driver._transport)


def _note(owner: Any, name: str, place: str = "", *, commits: bool = False) -> None:
    original = getattr(owner, name)

    @wraps(original)
    def noted(self: Any, *args: Any, **options: Any) -> Any:
        run = CURRENT_RUN.get()
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


def _count_commits(statement: str) -> None:
    if statement == "COMMIT":
        committed()


# Statements of the broker's file


def _note_broker_statements() -> None:
    def trace(statement: str) -> None:
        # SQLite calls this before it runs the statement, and for each row of executemany.
        reach("broker", "before", statement)
        _count_commits(statement)

    for owner in (SqliteStore, CommitWatcher):
        _trace_connections(owner, trace)


def _trace_connections(owner: Any, trace: Callable[[str], None]) -> None:
    original = owner.__init__

    @wraps(original)
    def opened(self: Any, *args: Any, **options: Any) -> None:
        original(self, *args, **options)
        _without_busy_timeout(self._connection)
        if owner is SqliteStore:
            # No fsync, as above.
            self._connection.execute("PRAGMA synchronous = OFF")
            self._connection.set_trace_callback(trace)

    owner.__init__ = opened
