"""The broker file: from a URL to its path, and from the path to the file that is there now.

A file that is deleted or replaced lives on for processes that have it open, so a path is not enough
to identify it.
"""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path

from eventmesh.errors import UsageError
from eventmesh.redact import redact

BUSY_TIMEOUT = 30.0
"""Seconds to wait for another process's transaction."""

File = tuple[int, int]
"""Identifies a file whatever its path: device and inode."""


def file_at(path: Path) -> File | None:
    """The file at this path now; None if there is none."""
    try:
        return identity_of(path)
    except OSError:
        return None


def identity_of(path: Path) -> File:
    found = path.stat()
    return found.st_dev, found.st_ino


def connect(path: Path) -> sqlite3.Connection:
    """A connection to an existing file."""
    return sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=rw",
        uri=True,
        timeout=BUSY_TIMEOUT,
        isolation_level=None,
        check_same_thread=False,
    )


def use_write_ahead_log(connection: sqlite3.Connection) -> None:
    """Have commits go to a write-ahead log first. Of two that open a new file at the same time,
    SQLite tells one at once that the file is locked, whatever the connection's timeout is."""
    deadline = time.monotonic() + BUSY_TIMEOUT
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() >= deadline:
                raise
            time.sleep(0.01)
        else:
            return


def path_of(url: str) -> Path:
    """The file of `sqlite:///relative/path` or `sqlite:////absolute/path`."""
    path = url.removeprefix("sqlite:///")
    if path == url or not path:
        raise UsageError(
            f"The broker URL {redact(url)!r} does not name a file: write "
            f"sqlite:///.eventmesh/broker.db for a path from here, or sqlite:////var/lib/broker.db "
            f"for an absolute one."
        )
    return Path(path)


def is_broker(path: Path) -> bool:
    """Whether the file exists and has the tables of a broker; creates nothing."""
    if not path.exists():
        return False
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
    try:
        [layout] = connection.execute("PRAGMA user_version").fetchone()
    finally:
        connection.close()
    return bool(layout)
