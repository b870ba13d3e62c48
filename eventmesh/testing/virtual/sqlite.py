"""SQLite on the loop's own thread, each statement a point at which a process can be stopped.

SQLAlchemy reaches SQLite through the driver aiosqlite, which gives each connection a thread. While
`on_the_loop` is open, a connection that it makes on a `VirtualLoop` has none: its statements
run where they are called, so that a run takes the same steps each time. A lock that another
connection holds is waited for in virtual time. SQLite's own clock is the loop's, and nothing is
synchronised to disk: a killed process leaves what it has committed.
"""

from __future__ import annotations

import asyncio
import math
import re
import sqlite3
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import lru_cache, wraps
from pathlib import Path
from typing import Any, TypeVar

import greenlet
from sqlalchemy import Engine, event
from sqlalchemy.dialects.sqlite.aiosqlite import AsyncAdapt_aiosqlite_dbapi
from sqlalchemy.engine import AdaptedConnection
from sqlalchemy.pool import ConnectionPoolEntry
from sqlalchemy.util import await_only

from eventmesh.testing.virtual.loop import BEGINNING, VirtualLoop
from eventmesh.testing.virtual.process import CURRENT_PROCESS, Process

T = TypeVar("T")

_FIRST_LOCK_RETRY = 0.001  # virtual seconds, doubled up to the longest
_LONGEST_LOCK_RETRY = 0.032
_LOCK_TIMEOUT = 30.0

_SETS_OPTION = re.compile(r"PRAGMA\s+(journal_mode|synchronous|foreign_keys)\s*=", re.IGNORECASE)
_WRITES_OWN = re.compile(r'\b(INTO|UPDATE|DELETE\s+FROM)\s+"?eventmesh_', re.IGNORECASE)


@contextmanager
def on_the_loop(kept: KeptConnections) -> Iterator[None]:
    """While the context is open, SQLAlchemy's connections to SQLite run on the event loop if that
    is a VirtualLoop. Those that are closed are `kept`."""
    connect = AsyncAdapt_aiosqlite_dbapi.connect

    @wraps(connect)
    def connect_here(self: Any, *args: Any, **options: Any) -> Any:
        loop = asyncio.get_running_loop()
        if not isinstance(loop, VirtualLoop):
            return connect(self, *args, **options)
        return _Connection(self, loop, *args, kept=kept, **options)

    AsyncAdapt_aiosqlite_dbapi.connect = connect_here  # type: ignore[method-assign]
    try:
        yield
    finally:
        AsyncAdapt_aiosqlite_dbapi.connect = connect  # type: ignore[method-assign]


class FileConnection(sqlite3.Connection):
    """What SQLAlchemy calls the driver's connection."""

    on_commit: list[Callable[[], None]]
    """Called when the open transaction is committed, and not if it is rolled back."""
    has_written: bool
    """Whether the open transaction wrote to a table that is not EventMesh's own."""
    standing: _Standing


class _Standing:
    """What stays with a connection when it is closed and used again. To set an option or to make a
    function once more would have all statements prepared anew."""

    def __init__(self) -> None:
        self.options: dict[str, str] = {}
        """The statements that set options, by their names."""
        self.functions = {"strftime"}


def _strftime(_form: str, _now: str) -> str:
    """The loop's time, as SQLite's strftime formats it. What a connection calls may not hold the
    loop: the collector does not see into SQLite, and would never free either of them."""
    return _as_text(asyncio.get_running_loop().time())


@lru_cache(maxsize=8)  # many statements are executed at one time
def _as_text(time: float) -> str:
    now = BEGINNING + timedelta(seconds=time)
    return now.replace(tzinfo=None).isoformat(" ", "milliseconds")


class KeptConnections:
    """Connections that were closed, for the next who connect to the same files: a new one reads the
    schema and prepares each statement again, which takes as long as executing it."""

    def __init__(self) -> None:
        self._by_path: dict[str, list[FileConnection]] = {}
        self._plain: dict[str, sqlite3.Connection] = {}
        self._lent: list[_Connection] = []
        """To the pools of the mesh that runs."""

    def open(self, path: str, options: dict[str, Any]) -> FileConnection:
        """A connection to this file."""
        if kept := self._by_path.get(path):
            return kept.pop()
        raw = sqlite3.connect(path, factory=FileConnection, **options)
        raw.on_commit, raw.has_written, raw.standing = [], False, _Standing()
        # As SQLite's own, it has one answer while a statement is executed. Called deterministic, it
        # is asked once for all the rows and columns of that.
        raw.create_function("strftime", 2, _strftime, deterministic=True)
        return raw

    def lend(self, connection: _Connection) -> None:
        """Note that a pool has it."""
        self._lent.append(connection)

    def take_back(self) -> None:
        """After a mesh, take what processes had not given back when they died. Their pools forget
        it: they would complain when that is collected."""
        for connection in self._lent:
            connection.close()
            if connection.record is not None:
                connection.record.dbapi_connection = None  # type: ignore[misc]  # it has one
        self._lent.clear()

    def keep(self, path: str, raw: FileConnection) -> None:
        """Take a connection that is not used any more."""
        raw.rollback()
        raw.on_commit, raw.has_written = [], False
        self._by_path.setdefault(path, []).append(raw)

    def plain(self, path: str) -> sqlite3.Connection:
        """One that no process uses: to look into the file, and for what happens between two
        runs."""
        if path not in self._plain:
            self._plain[path] = sqlite3.connect(path, timeout=0.0, isolation_level=None)
            self._plain[path].execute("PRAGMA synchronous = OFF")
        return self._plain[path]

    def forget(self, path: str) -> None:
        """Close those to this file, which will be deleted."""
        for raw in self._by_path.pop(path, ()):
            raw.close()
        if path in self._plain:
            self._plain.pop(path).close()

    def close(self) -> None:
        """Close all of them."""
        for path in [*self._by_path, *self._plain]:
            self.forget(path)


class _Connection(AdaptedConnection):
    """What SQLAlchemy's pool holds, in the place of its adapter of aiosqlite."""

    __slots__ = (
        *("_changes", "_file", "_kept", "_loop", "_path", "_process"),
        *("dbapi", "record", "server"),
    )

    def __init__(
        self, dbapi: Any, loop: VirtualLoop, path: str, *, kept: KeptConnections, **options: Any
    ) -> None:
        self.dbapi = dbapi
        self._loop = loop
        self._path = path
        self._kept = kept
        self.server = f"database {Path(path).stem}"
        self._process: Process | None = None
        """Whose transaction it is in: pools lend a connection to one process after another."""
        self.record: ConnectionPoolEntry | None = None
        """Where its pool keeps it, once it has been lent."""
        options["timeout"] = 0.0  # SQLite would block the thread, and so the holder of the lock
        raw = self._call("connect", lambda: kept.open(path, options))
        self._changes = raw.total_changes
        kept.lend(self)
        self._file = raw
        self._connection: Any = raw  # which SQLAlchemy takes for the driver's

    # What SQLAlchemy calls

    def cursor(self, server_side: bool = False) -> _Cursor:
        return _Cursor(self)

    def execute(self, operation: str, parameters: Any = ()) -> _Cursor:
        cursor = self.cursor()
        cursor.execute(operation, parameters)
        return cursor

    @property
    def isolation_level(self) -> str | None:
        return self._file.isolation_level

    @isolation_level.setter
    def isolation_level(self, value: Any) -> None:
        self._file.isolation_level = value

    def create_function(self, *args: Any, **options: Any) -> None:
        if args[0] not in self._file.standing.functions:
            self._file.standing.functions.add(args[0])
            self._file.create_function(*args, **options)

    def commit(self) -> None:
        if self._file.in_transaction:
            self._call("COMMIT", self._commit)

    def _commit(self) -> None:
        """Commit, and tell who wants to know, even if the answer is lost."""
        raw = self._file
        raw.commit()
        self._note_changes()
        self._belong_to(None)
        calls, raw.on_commit = raw.on_commit, []
        for call in calls:
            call()
        self._tell_of_write()

    def _tell_of_write(self) -> None:
        if self._file.has_written:
            self._file.has_written = False
            self._loop.on_write(self._path)

    def rollback(self) -> None:
        # Never disturbed: whatever becomes of the connection, the transaction is undone.
        self._file.rollback()
        self._forget()
        self._belong_to(None)

    def close(self) -> None:
        if self._file is not _CLOSED:
            self._kept.keep(self._path, self._file)
            self._file = self._connection = _CLOSED
        self._belong_to(None)

    terminate = close

    # What the virtual world calls

    def cut(self) -> None:
        """Close it as a kill does. Closing alone would keep the locks while a cursor has rows that
        were not read, and the cursors of a dead process are never collected."""
        with suppress(sqlite3.ProgrammingError):  # it is closed already
            self._file.rollback()
        self._file.close()
        self._file = self._connection = _CLOSED
        self._process = None

    def run(self, statement: str, work: Callable[[], T]) -> T:
        """Execute a statement."""
        _show_that_it_is_async()
        call, is_own = _described(statement)
        self._belong_to(CURRENT_PROCESS.get())
        before = self._file.total_changes
        result = self._call(call, work)
        if not is_own and self._file.total_changes != before:
            self._file.has_written = True
        if not self._file.in_transaction:
            self._note_changes()
            self._belong_to(None)
            self._tell_of_write()  # of a statement that SQLite commits by itself
        return result

    def _note_changes(self) -> None:
        """Tell the loop where what it has changed is there for others."""
        if (changes := self._file.total_changes) != self._changes:
            self._changes = changes
            self._loop.changes[self._path] += 1

    def set_option(self, name: str, operation: str) -> None:
        """Execute a statement that sets this option, unless the connection has it. That belongs to
        connecting and does not count as a call: otherwise, runs with kept connections and with new
        ones would differ."""
        _show_that_it_is_async()
        if name == "synchronous":
            operation = "PRAGMA synchronous = OFF"
        options = self._file.standing.options
        if options.get(name) != operation:
            self._when_unlocked(lambda: self._file.execute(operation).fetchall())
            options[name] = operation

    def _belong_to(self, process: Process | None) -> None:
        """From now on, this process's death cuts it."""
        if process is self._process:
            return
        if self._process is not None:
            with suppress(ValueError):  # the process has died, and closed it
                self._process.connections.remove(self)
        self._process = process
        if process is not None:
            process.connections.append(self)

    def _call(self, name: str, work: Callable[[], T]) -> T:
        """Do this, as the process that calls it is disturbed."""
        process = CURRENT_PROCESS.get()
        error = ""
        if process is not None and process.disturbances is not None:
            process.calls += 1
            answer = process.disturbances.answer(process, self.server, name)
            error = answer.error
            if answer.delay:
                await_only(asyncio.sleep(answer.delay))
            task = asyncio.current_task()
            if task is not None:
                process.take_step(task)
            if not process.is_running:
                await_only(process.running_again())
        if error == "before":
            raise self._lost()
        result = self._when_unlocked(work)
        if error == "after":
            raise self._lost()
        return result

    def _when_unlocked(self, work: Callable[[], T]) -> T:
        pause, waited = _FIRST_LOCK_RETRY, 0.0
        # The test itself waits as long as need be: a process may stand still in a transaction.
        longest = math.inf if CURRENT_PROCESS.get() is None else _LOCK_TIMEOUT
        while True:
            try:
                return work()
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or waited >= longest:
                    raise
            await_only(asyncio.sleep(pause))
            waited += pause
            pause = min(2 * pause, _LONGEST_LOCK_RETRY)

    def _lost(self) -> sqlite3.OperationalError:
        """What a call on a lost connection raises, whose transaction is rolled back."""
        with suppress(AttributeError, sqlite3.ProgrammingError):  # not open yet, or closed
            self._file.rollback()
            self._forget()
        error = sqlite3.OperationalError("disk I/O error")
        error.sqlite_errorname = "SQLITE_IOERR"
        return error

    def _forget(self) -> None:
        self._file.on_commit.clear()
        self._file.has_written = False


@lru_cache(maxsize=1024)
def _described(statement: str) -> tuple[str, bool]:
    """What a call that executes this is called, and whether it writes to a table of EventMesh."""
    words = statement.lstrip()[:60].upper()
    return " ".join(words.split(None, 3)[:3]), _WRITES_OWN.search(statement) is not None


def _standing_option(statement: str) -> str:
    """The option that this sets, if EventMesh sets it where it connects; else empty: others may end
    with the transaction in which they are set."""
    found = _SETS_OPTION.match(statement)
    return found[1].lower() if found else ""


def _closed() -> FileConnection:
    connection = sqlite3.connect(":memory:", factory=FileConnection)
    connection.close()
    connection.on_commit, connection.has_written = [], False
    return connection


_CLOSED = _closed()
"""In the place of a connection that others may use now."""


class _Cursor:
    """A cursor whose rows are all read at once."""

    __slots__ = ("_adapter", "_cursor", "_rows", "arraysize")

    server_side = False

    def __init__(self, adapter: _Connection) -> None:
        self._adapter = adapter
        self._cursor: sqlite3.Cursor = adapter._file.cursor()
        self._rows: deque[Any] = deque()
        self.arraysize = 1

    @property
    def description(self) -> Any:
        return self._cursor.description

    @property
    def rowcount(self) -> int:
        return self._cursor.rowcount

    @property
    def lastrowid(self) -> int | None:
        return self._cursor.lastrowid

    def execute(self, operation: str, parameters: Any = None) -> None:
        if option := _standing_option(operation):
            self._adapter.set_option(option, operation)
            return
        given = () if parameters is None else parameters
        cursor = self._cursor

        def work() -> list[Any]:
            cursor.execute(operation, given)
            return cursor.fetchall() if cursor.description else []

        self._rows = deque(self._adapter.run(operation, work))

    def executemany(self, operation: str, parameters: Any) -> None:
        self._adapter.run(operation, lambda: self._cursor.executemany(operation, parameters))

    def fetchone(self) -> Any:
        return self._rows.popleft() if self._rows else None

    def fetchmany(self, size: int | None = None) -> Sequence[Any]:
        number = min(size or self.arraysize, len(self._rows))
        return [self._rows.popleft() for _ in range(number)]

    def fetchall(self) -> Sequence[Any]:
        rows, self._rows = self._rows, deque()
        return list(rows)

    def __iter__(self) -> Iterator[Any]:
        while self._rows:
            yield self._rows.popleft()

    def close(self) -> None:
        self._rows.clear()
        with suppress(sqlite3.ProgrammingError):  # its connection is closed
            self._cursor.close()

    async def _async_soft_close(self) -> None:
        """There is nothing to wait for."""


def note_record(engine: Engine) -> None:
    """Tell connections of this engine on the loop where its pool keeps them."""
    event.listen(engine, "checkout", _note_record)


def _note_record(connection: object, record: ConnectionPoolEntry, _lent: object) -> None:
    if isinstance(connection, _Connection):
        connection.record = record


def _show_that_it_is_async() -> None:
    """Await something once in each greenlet of SQLAlchemy, which takes a driver that never does for
    a blocking one."""
    here: Any = greenlet.getcurrent()
    if not hasattr(here, "has_awaited"):
        here.has_awaited = True
        await_only(_nothing())


async def _nothing() -> None:
    pass


def on_commit(driver: object, call: Callable[[], None]) -> None:
    """Call this when the open transaction of a driver's connection on the loop is committed."""
    if isinstance(driver, FileConnection):
        driver.on_commit.append(call)
