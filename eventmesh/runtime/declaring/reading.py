"""Whether a model can read versions that it has no upcasters for, such as a newer one.

It can where the frozen schemas prove it. A neighbour may freeze and deploy a newer version while
this worker runs, so the lock files are checked for changes, at most every three seconds. A proof
takes time, so it runs in a thread: `judge` raises Undecided for what is not known, and `look_up`
finds it out. Anybody can send any version number, so only versions with a lock file are remembered.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic

from eventmesh.compat.verdict import Breaking, Compatible, Unknown, Verdict
from eventmesh.contracts.locks.lock_file import Lock
from eventmesh.contracts.locks.lock_folder import Locks, folder_of, read_locks
from eventmesh.contracts.message import Message
from eventmesh.contracts.versions import describe_unreadable_version
from eventmesh.error_text import type_and_message

LOOK_AGAIN_AFTER = 3.0
"""Seconds between two checks whether a message's lock files have changed."""

_MOST_SHOWN = 300

Stamp = tuple[tuple[str, int, int], ...]


class Undecided(Exception):  # a question, not an error
    """Whether a version can be read must be looked up first: `await readings.look_up(…)`."""

    def __init__(self, model: type[Message], version: int) -> None:
        super().__init__(model, version)
        self.model = model
        self.version = version


@dataclass(slots=True)
class _Seen:
    """A message's lock files, and why each version cannot be read, None where it can."""

    stamp: Stamp
    locks: Locks
    looked_at: float
    reasons: dict[int, str | None] = field(default_factory=dict)


class Readings:
    """Which versions one service's models can read as they are. Each is proved once, and again only
    when the message's lock files have changed."""

    def __init__(self, root: Path, time: Callable[[], float] = monotonic) -> None:
        self._root = root
        self._time = time
        self._seen: dict[type[Message], _Seen] = {}
        self._one_at_a_time = asyncio.Lock()

    def judge(self, model: type[Message], version: int) -> str | None:
        """Why this version cannot be read, or None if it can; Undecided if that is not known."""
        seen = self._seen.get(model)
        if seen is None or self._time() - seen.looked_at >= LOOK_AGAIN_AFTER:
            raise Undecided(model, version)
        if version in seen.reasons:
            return seen.reasons[version]
        if version in seen.locks.of(model.__identity__.name):
            raise Undecided(model, version)
        return _missing(model, version, self._root)

    async def look_up(self, question: Undecided) -> None:
        """Read the lock files if they have changed, and decide on this version."""
        async with self._one_at_a_time:
            try:
                self.judge(question.model, question.version)  # another lane may have asked, too
            except Undecided:
                await asyncio.to_thread(self._decide, question.model, question.version)

    def _decide(self, model: type[Message], version: int) -> None:
        name = model.__identity__.name
        stamp, seen = _stamp(folder_of(self._root, name)), self._seen.get(model)
        if seen is None or seen.stamp != stamp:
            locks = read_locks(self._root)
            locks.of(name)
            seen = _Seen(stamp, locks, 0.0)
        if version in seen.locks.of(name) and version not in seen.reasons:
            seen.reasons[version] = _refused(model, version, seen.locks)
        seen.looked_at = self._time()
        self._seen[model] = seen


def _refused(model: type[Message], version: int, locks: Locks) -> str | None:
    """Why the model cannot read all that the revisions of a version may write."""
    from eventmesh.compat.pydantic_models.comparison import compare_model

    name = model.__identity__.name
    for problem in locks.problems_of(name):
        if problem.subject == f"{name} v{version}":
            return describe_unreadable_version(model, version, f", and {problem.summary}")
    for lock in locks.of(name)[version]:
        try:
            verdict: Verdict = compare_model(lock.writer, model, samples=lock.samples)
        except Exception as error:  # noqa: BLE001  # a user's validator may raise anything
            verdict = Unknown(type_and_message(error))
        if not isinstance(verdict, Compatible):
            return describe_unreadable_version(model, version, f", and {_because(lock, verdict)}")
    return None


def _because(lock: Lock, verdict: Verdict) -> str:
    if isinstance(verdict, Breaking):
        return (
            f"by {lock.path} a message may be {_short(json.dumps(verdict.witness))}, which breaks "
            f"it: {_short(verdict.reason)}"
        )
    reason = "" if isinstance(verdict, Compatible) else _short(verdict.reason)
    return f"it could not be proved from {lock.path} that it reads this one, too: {reason}"


def _short(text: str) -> str:
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}…"


def _missing(model: type[Message], version: int, root: Path) -> str:
    folder = folder_of(root, model.__identity__.name)
    return describe_unreadable_version(
        model, version, f", and {folder} has no frozen schema by which to tell whether it could"
    )


def _stamp(folder: Path) -> Stamp:
    """What changes when a lock file is added, changed or removed."""
    try:
        files = [(path.name, path.stat()) for path in folder.iterdir()]
    except OSError:
        return ()
    return tuple(sorted((name, found.st_mtime_ns, found.st_size) for name, found in files))
