"""Copies of the SQLite files as a kill at each crash point would leave them.

What a killed process has written stays with the kernel, so a copy made between two steps equals
what a kill there would leave. Killing for real takes one process for each crash point; copying
takes one process for all. The files change only with a commit, so most points share a copy.
"""

from __future__ import annotations

import hashlib
import os
import shutil
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
        self.left: list[int] = []
        """For each point of the run, the number of the copy that a kill there would leave."""

    def take(self, _point: Point) -> None:
        commits = self._run.commits
        if commits not in self._numbers:
            self._numbers[commits] = self._keep()
        self.left.append(self._numbers[commits])

    def _keep(self) -> int:
        folder = self._to / str(len(self._known))
        # In another process, because closing a file releases the locks SQLite holds on it in this.
        child = os.fork()
        if not child:
            folder.mkdir(parents=True)
            for file in self._from.glob("*.db*"):
                if not file.name.endswith("-shm"):  # SQLite rebuilds it from the log
                    shutil.copy(file, folder)
            os._exit(0)
        os.waitpid(child, 0)
        digest = hashlib.sha256()
        for file in sorted(folder.iterdir()):
            digest.update(file.name.encode() + file.read_bytes())
        number = self._known.setdefault(digest.hexdigest(), len(self._known))
        if self._to / str(number) != folder:
            shutil.rmtree(folder)
        return number
