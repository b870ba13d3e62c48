"""What a process that is killed leaves in its files, kept for each of its points.

A killed process leaves to the kernel what it has written, so that a copy made between two steps is
what a kill there would leave. It differs from one point to the next where something was committed.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

from tests.crash.points import Life, Point
from tests.crash.world import World


class States:
    """Keeps a copy of the files in `folder/<number>` for each point that differs."""

    def __init__(self, place: World, folder: Path, life: Life) -> None:
        self._from = Path(place.folder)
        self._to = folder
        self._life = life
        self._numbers: dict[int, int] = {}
        self._known: dict[str, int] = {}
        self.left: list[int] = []
        """The number of the state that each of the life's points would leave."""

    def note(self, _point: Point) -> None:
        commits = self._life.commits
        if commits not in self._numbers:
            self._numbers[commits] = self._keep()
        self.left.append(self._numbers[commits])

    def _keep(self) -> int:
        folder = self._to / str(len(self._known))
        # In another process: closing a file gives up the locks that SQLite holds on it in this one.
        child = os.fork()
        if not child:
            folder.mkdir(parents=True)
            for file in self._from.glob("*.db*"):
                if not file.name.endswith("-shm"):  # made anew from the log
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
