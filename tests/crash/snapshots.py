"""Copies of the SQLite files as a kill at each crash point would leave them.

What a killed process has written stays with the kernel, so a copy made between two steps equals
what a kill there would leave. Killing for real takes one process for each crash point; copying
takes one process for all. The files change only with a commit, so most points share a copy.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from tests.crash.crash_points import Point, WorkerRun
from tests.crash.deployment import Deployment


class Snapshots:
    """Copies the files to `folder/<number>`, one folder for each different content."""

    def __init__(self, deployment: Deployment, folder: Path, run: WorkerRun) -> None:
        self._from = Path(deployment.folder)
        self._to = folder
        self._run = run
        self._numbers: dict[int, int] = {}
        self._known: dict[str, int] = {}
        self._open: dict[tuple[int, int], int] = {}
        """The files that were read, by their devices and inodes."""
        self.left: list[int] = []
        """For each point of the run, the number of the copy that a kill there would leave."""

    def take(self, _point: Point) -> None:
        commits = self._run.commits
        if commits not in self._numbers:
            self._numbers[commits] = self._keep()
        self.left.append(self._numbers[commits])

    def _keep(self) -> int:
        contents = {
            file.name: self._read(file)
            for file in sorted(self._from.glob("*.db*"))
            if not file.name.endswith("-shm")  # SQLite rebuilds it from the log
        }
        digest = hashlib.sha256()
        for name, content in contents.items():
            digest.update(name.encode() + content)
        number = self._known.setdefault(digest.hexdigest(), len(self._known))
        folder = self._to / str(number)
        if not folder.exists():
            folder.mkdir(parents=True)
            for name, content in contents.items():
                (folder / name).write_bytes(content)
        return number

    def _read(self, file: Path) -> bytes:
        """The file's content. It stays open: closing it would release the locks that SQLite holds
        on it in this process."""
        found = file.stat()
        inode = found.st_dev, found.st_ino
        if inode not in self._open:
            self._open[inode] = os.open(file, os.O_RDONLY)
        return os.pread(self._open[inode], found.st_size, 0)
