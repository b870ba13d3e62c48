"""Finding lock files: `schemas/<owner>/<message>/v<N>.json`, by message, version and revision.

A lock file that is broken, missing between others or misnamed becomes a problem (EM033) of its
message. It does not keep the other lock files from being used.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date
from itertools import count
from pathlib import Path

from eventmesh.contracts.locks.lock_file import (
    FILE_NAME,
    BrokenLock,
    Lock,
    Status,
    file_name,
    read_lock,
    write_status,
)
from eventmesh.contracts.message import Message, identity_of
from eventmesh.contracts.problem import Place, Problem

_FOLDER = re.compile(r"[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)*")


class Locks:
    """The lock files in a folder; those of a message are read when they are first needed.

    With `files`, contents by path, these are used and the folder is not read.
    """

    def __init__(self, root: Path, files: Mapping[Path, bytes] | None = None) -> None:
        self.root = root
        self._files = files
        self._read: dict[str, tuple[dict[int, Sequence[Lock]], list[Problem]]] = {}

    def names(self) -> Sequence[str]:
        """The names of messages with lock files, sorted."""
        folders = (folder for owner in self._listed(self.root) for folder in self._listed(owner))
        return sorted(
            f"{folder.parent.name}.{folder.name}"
            for folder in folders
            if _FOLDER.fullmatch(folder.name)
            and _FOLDER.fullmatch(folder.parent.name)
            and any(path.suffix == ".json" for path in self._listed(folder))
        )

    def of(self, name: str) -> Mapping[int, Sequence[Lock]]:
        """The versions of a message in order, each with its revisions, oldest first."""
        return self._of(name)[0]

    def problems_of(self, name: str) -> Sequence[Problem]:
        """The problems of the lock files of a message."""
        return self._of(name)[1]

    @property
    def problems(self) -> Sequence[Problem]:
        """The problems of all lock files."""
        return [problem for name in self.names() for problem in self.problems_of(name)]

    def deprecate(self, lock: Lock, sunset: date) -> Sequence[Path]:
        """Mark the version of this lock as deprecated, in all its files; returns their paths."""
        return self._write_status(lock, "deprecated", sunset)

    def retire(self, lock: Lock) -> Sequence[Path]:
        """Mark the version of this lock as retired, in all its files; returns their paths."""
        return self._write_status(lock, "retired", lock.sunset)

    def _write_status(self, lock: Lock, status: Status, sunset: date | None) -> Sequence[Path]:
        paths = [revision.path for revision in self.of(lock.name).get(lock.version, ())]
        for path in paths:
            write_status(path, status, sunset)
        self._read.pop(lock.name, None)
        return paths

    def _of(self, name: str) -> tuple[dict[int, Sequence[Lock]], list[Problem]]:
        if name not in self._read:
            self._read[name] = self._read_message(name)
        return self._read[name]

    def _read_message(self, name: str) -> tuple[dict[int, Sequence[Lock]], list[Problem]]:
        found: dict[int, dict[int, Lock]] = {}
        problems: list[Problem] = []
        numbers_seen: dict[int, set[int]] = {}
        for path in self._listed(folder_of(self.root, name)):
            if path.suffix != ".json" or path.name.startswith("."):
                continue
            numbers = FILE_NAME.fullmatch(path.name)
            if numbers is None:
                stray = _broken(name, path, "is not named v<N>.json or v<N>.<R>.json")
                problems.append(replace(stray, severity="warning", fix="Rename or delete it."))
                continue
            version, revision = int(numbers[1]), int(numbers[2] or 1)
            numbers_seen.setdefault(version, set()).add(revision)
            try:
                found.setdefault(version, {})[revision] = self._lock(path, name, version, revision)
            except BrokenLock as error:
                problems.append(_broken(f"{name} v{version}", path, str(error)))
        for version, revisions in numbers_seen.items():
            missing = next(number for number in count(1) if number not in revisions)
            if missing < max(revisions):
                path = folder_of(self.root, name) / file_name(version, missing)
                problems.append(_broken(f"{name} v{version}", path, "is missing"))
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
        except OSError:  # it does not exist, is a file, or may not be read
            return ()


def read_locks(root: Path) -> Locks:
    """The lock files below `root`, which need not exist."""
    return Locks(root)


def locks_from(root: Path, files: Mapping[str, bytes]) -> Locks:
    """The lock files that would be below `root` if it contained these files.

    Their names are relative to it, such as `payments/payment_captured/v1.json`.
    """
    return Locks(root, {root / name: data for name, data in files.items()})


def folder_of(root: Path, name: str) -> Path:
    """The folder with the lock files of a message."""
    owner, _, message = name.partition(".")
    return root / owner / message


def lock_path(root: Path, model: type[Message]) -> Path:
    """The file of the first revision of the model's version."""
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
