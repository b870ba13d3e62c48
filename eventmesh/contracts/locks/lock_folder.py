"""The lock files in a folder, `schemas/<owner>/<message>/`, by message, version and revision."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date
from itertools import count
from pathlib import Path
from typing import Any

from eventmesh.contracts.locks.lock_file import (
    FILE_NAME,
    BrokenLock,
    Lock,
    file_name,
    read_lock,
    restate,
)
from eventmesh.contracts.message import Message, identity_of
from eventmesh.contracts.problem import Place, Problem

_FOLDER = re.compile(r"[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)*")


class Locks:
    """The lock files in a folder, each message's read when it is first asked for.

    With `files`, contents by path, these are the files, whatever is in the folder.
    """

    def __init__(self, root: Path, files: Mapping[Path, bytes] | None = None) -> None:
        self.root = root
        self._files = files
        self._read: dict[str, tuple[dict[int, Sequence[Lock]], list[Problem]]] = {}

    def names(self) -> Sequence[str]:
        """The messages that have lock files, in order."""
        folders = (folder for owner in self._listed(self.root) for folder in self._listed(owner))
        return sorted(
            f"{folder.parent.name}.{folder.name}"
            for folder in folders
            if _FOLDER.fullmatch(folder.name)
            and _FOLDER.fullmatch(folder.parent.name)
            and any(path.suffix == ".json" for path in self._listed(folder))
        )

    def of(self, name: str) -> Mapping[int, Sequence[Lock]]:
        """The versions of a message, in order, and the revisions of each, the oldest first."""
        return self._of(name)[0]

    def problems_of(self, name: str) -> Sequence[Problem]:
        """What is wrong with the lock files of a message."""
        return self._of(name)[1]

    @property
    def problems(self) -> Sequence[Problem]:
        """What is wrong with any lock file."""
        return [problem for name in self.names() for problem in self.problems_of(name)]

    def deprecate(self, lock: Lock, sunset: date) -> Sequence[Path]:
        """Say in the files of this lock's version that nobody should use it after that day."""
        return self._restate(lock, "deprecated", sunset)

    def retire(self, lock: Lock) -> Sequence[Path]:
        """Say in the files of this lock's version that it is not sent any more."""
        return self._restate(lock, "retired", lock.sunset)

    def _restate(self, lock: Lock, status: Any, sunset: date | None) -> Sequence[Path]:
        paths = [revision.path for revision in self.of(lock.name).get(lock.version, ())]
        for path in paths:
            restate(path, status, sunset)
        self._read.pop(lock.name, None)
        return paths

    def _of(self, name: str) -> tuple[dict[int, Sequence[Lock]], list[Problem]]:
        if name not in self._read:
            self._read[name] = self._read_message(name)
        return self._read[name]

    def _read_message(self, name: str) -> tuple[dict[int, Sequence[Lock]], list[Problem]]:
        found: dict[int, dict[int, Lock]] = {}
        problems: list[Problem] = []
        seen: dict[int, set[int]] = {}
        for path in self._listed(folder_of(self.root, name)):
            if path.suffix != ".json" or path.name.startswith("."):
                continue
            numbers = FILE_NAME.fullmatch(path.name)
            if numbers is None:
                stray = _broken(name, path, "is not called v<N>.json or v<N>.<R>.json")
                problems.append(replace(stray, severity="warning", fix="Rename or remove it."))
                continue
            version, revision = int(numbers[1]), int(numbers[2] or 1)
            seen.setdefault(version, set()).add(revision)
            try:
                found.setdefault(version, {})[revision] = self._lock(path, name, version, revision)
            except BrokenLock as error:
                problems.append(_broken(f"{name} v{version}", path, str(error)))
        for version, revisions in seen.items():
            gone = next(number for number in count(1) if number not in revisions)
            if gone < max(revisions):
                path = folder_of(self.root, name) / file_name(version, gone)
                problems.append(_broken(f"{name} v{version}", path, "is gone"))
        versions: dict[int, Sequence[Lock]] = {
            version: tuple(revisions[number] for number in sorted(revisions))
            for version, revisions in sorted(found.items())
            if revisions
        }
        return versions, sorted(problems, key=lambda problem: problem.marks)

    def _lock(self, path: Path, name: str, version: int, revision: int) -> Lock:
        data = None if self._files is None else self._files[path]
        return read_lock(path, name, version, revision, data)

    def _listed(self, folder: Path) -> Sequence[Path]:
        if self._files is not None:
            depth = len(folder.parts) + 1
            below = (path for path in self._files if path.is_relative_to(folder))
            return sorted({Path(*path.parts[:depth]) for path in below if path != folder})
        try:
            return sorted(folder.iterdir())
        except OSError:  # a file, or nothing, or nothing that we may read: as if it were not there
            return ()


def read_locks(root: Path) -> Locks:
    """The lock files under `root`; none where there is no such folder."""
    return Locks(root)


def locks_from(root: Path, files: Mapping[str, bytes]) -> Locks:
    """The lock files that would be under `root` if it held these files, by their paths in it, such
    as `payments/payment_captured/v1.json`."""
    return Locks(root, {root / name: data for name, data in files.items()})


def folder_of(root: Path, name: str) -> Path:
    """Where the lock files of a message are."""
    owner, _, message = name.partition(".")
    return root / owner / message


def lock_path(root: Path, model: type[Message]) -> Path:
    """Where the first revision of the model's version is: `<root>/<owner>/<message>/v<N>.json`."""
    identity = identity_of(model)
    return folder_of(root, identity.name) / file_name(identity.version, 1)


def _broken(subject: str, path: Path, reason: str) -> Problem:
    return Problem(
        rule="EM033",
        severity="error",
        subject=subject,
        summary=f"the lock file {path} {reason}",
        fix="Restore the lock file from version control.",
        parties=(subject.partition(".")[0],),
        place=Place(str(path)),
        marks=(path.name,),
    )
