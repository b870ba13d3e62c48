"""Files and folders that only their user may read: they hold messages and rows of all kinds.

What is made here is private whatever the umask says. What is there already is left as it is: its
owner may have opened it to a group on purpose.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def make_private_folder(path: Path) -> None:
    """Make a folder with mode 0700, and so each missing folder above it."""
    for folder in (*reversed(path.parents), path):
        if not folder.exists():
            with suppress(FileExistsError):  # another process was faster
                folder.mkdir(mode=0o700)


def make_private_file(path: Path) -> None:
    """Make an empty file with mode 0600, in folders that are made as above. SQLite gives the same
    mode to the -wal and the -shm file beside it."""
    make_private_folder(path.parent)
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
