"""Files and folders that only their user may read: they hold messages and rows of all kinds.

What is made here is private whatever the umask says. What is there already is left as it is: its
owner may have opened it to a group on purpose.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path

_COMPANIONS = ("-wal", "-shm", "-journal")
"""What SQLite keeps beside a database, by the ends of the names."""


def make_private_folder(path: Path) -> None:
    """Make a folder with mode 0700, and so each missing folder above it."""
    for folder in (*reversed(path.parents), path):
        if not folder.exists():
            with suppress(FileExistsError):  # another process was faster
                folder.mkdir(mode=0o700)


def make_private_file(path: Path) -> None:
    """Make an empty file with mode 0600 for a SQLite database, in folders that are made as above.
    SQLite gives the same mode to the -wal and the -shm file beside it.

    Such files that are left of a database that was deleted are deleted first: SQLite would take
    them for those of the new one. The folder is locked meanwhile, so that no process deletes the
    files of the database that another one has just made.
    """
    path = path.resolve()  # SQLite follows a link, too, and keeps its files beside the target
    make_private_folder(path.parent)
    if path.exists():
        return
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        if not path.exists():
            for ending in _COMPANIONS:
                path.with_name(path.name + ending).unlink(missing_ok=True)
            with suppress(FileExistsError):  # a program that does not lock was faster
                os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    finally:
        os.close(folder)
