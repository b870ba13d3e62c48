"""One process's connection to the broker file, even when another file takes its place.

A file that was deleted or replaced lives on for processes that have it open. So each call checks
that the path still leads to our file. If not, we open the file that is there now. Creating a file
deletes the `-wal` and `-shm` that SQLite left of the old one; whoever replaces a file in use must
do that, too.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from eventmesh.clock import Clock
from eventmesh.errors import Unreachable
from eventmesh.transports.sqlite.commit_watcher import CommitWatcher
from eventmesh.transports.sqlite.file import File, file_at, is_broker
from eventmesh.transports.sqlite.store import SqliteStore

T = TypeVar("T")


class FileConnection:
    """Runs calls on the file's store one after another in a thread, and watches for commits.

    Without `create_missing`, a file that is not a broker's is left alone, and nothing is open.
    """

    def __init__(self, path: Path, clock: Clock, *, create_missing: bool) -> None:
        self._path = path
        self._clock = clock
        self._create_missing = create_missing
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="eventmesh-sqlite")
        self._store: SqliteStore | None = None
        self._watcher: CommitWatcher | None = None

    @property
    def is_absent(self) -> bool:
        """Whether there was no broker file to connect to, and none may be created."""
        return not self._create_missing and self._store is None

    async def connect(self) -> None:
        if not self._create_missing and not await self._call(lambda: is_broker(self._path)):
            return
        self._store = await self._call(lambda: SqliteStore(self._path, self._clock))
        with _translated(self._path):
            self._watcher = CommitWatcher(self._path, self._clock)

    async def close(self) -> None:
        watcher, self._watcher = self._watcher, None
        if watcher is not None:
            await watcher.close()
        if self._store is not None:
            await self._call(self._close_store)
        self._thread.shutdown(wait=False)

    def _close_store(self) -> None:
        """Runs in the store's thread, so that no other call opens another file meanwhile."""
        store, self._store = self._store, None
        if store is not None:
            store.close()

    async def run(self, work: Callable[[SqliteStore], T], *, only_in: File | None = None) -> T:
        """Run this with the store, in its thread. Unreachable if the file cannot be used, or is no
        longer `only_in`."""
        if self.is_absent:
            raise Unreachable(
                f"The broker file {self._path} is not there. A worker makes it; or correct "
                f"EVENTMESH_BROKER_URL."
            )
        if self._store is None:
            raise Unreachable(f"The broker file {self._path} is not open: connect first.")

        def do() -> T:
            store = self._store_in_place()
            if only_in is not None and store.file != only_in:
                raise Unreachable(self._replaced())
            return work(store)

        return await self._call(do)

    def wake(self) -> None:
        """Make every waiting consumer of this process look for messages now."""
        if self._watcher is not None:
            self._watcher.wake()

    def watch(self) -> asyncio.Future[None]:
        """A future that completes when any process commits after this call."""
        if self._watcher is None:
            raise Unreachable(f"The broker file {self._path} is not open: connect first.")
        return self._watcher.watch()

    def _store_in_place(self) -> SqliteStore:
        """The store of the file that is at our path now. Runs in the store's thread."""
        store = self._store
        if store is None:
            raise Unreachable(f"The broker file {self._path} is not open: connect first.")
        if store.file == file_at(self._path):
            return store
        if not self._create_missing and not is_broker(self._path):
            raise Unreachable(self._replaced())
        new = SqliteStore(self._path, self._clock)
        store.close()
        self._store = new
        return new

    def _replaced(self) -> str:
        return (
            f"The broker file {self._path} was deleted or replaced while it was used. What it held "
            f"is gone; the file that is there now is used."
        )

    async def _call(self, work: Callable[[], T]) -> T:
        with _translated(self._path):
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise Unreachable(
            f"The broker file {path} cannot be used: {error}. Check that its folder can be "
            f"written, that the disk is not full and that the file is a SQLite database."
        ) from error
