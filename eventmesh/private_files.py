"""Creates files and folders that only their user may read, for databases with messages in them.

New files are private whatever the umask is. Existing ones keep their modes, because their owner may
have shared them with a group on purpose.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path

_COMPANIONS = ("-wal", "-shm", "-journal")
"""Suffixes of the files that SQLite keeps beside a database."""


def make_private_folder(path: Path) -> None:
    """Create a folder with mode 0700, and every missing folder above it."""
    for folder in (*reversed(path.parents), path):
        if not folder.exists():
            with suppress(FileExistsError):  # another process created it
                folder.mkdir(mode=0o700)


def make_private_file(path: Path) -> None:
    """Create an empty file with mode 0600 for a SQLite database, and its missing folders.

    SQLite gives the same mode to the -wal and -shm files beside it. Such files left over from a
    deleted database are deleted first, because SQLite would use them with the new one. The folder
    is locked meanwhile, so that no process deletes the files of a database that another process has
    just created.
    """
    if path.exists():
        return
    path = path.resolve()  # SQLite follows links and keeps its files beside the target
    make_private_folder(path.parent)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        if not path.exists():
            for ending in _COMPANIONS:
                path.with_name(path.name + ending).unlink(missing_ok=True)
            with suppress(FileExistsError):  # a program without this lock created it
                os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    finally:
        os.close(folder)
