"""Lock files: what each version of a message looks like, frozen so that a change is noticed.

`schemas/<owner>/<message>/v<N>.json` holds version N for ever. A change within the version, which
must be compatible both ways with all that it was before, is a file beside it: `v<N>.2.json`.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from eventmesh.contracts.locks.drift import (
    FREEZABLE,
    check,
    refuse,
    refuse_drift,
    same_contract,
    schemas_of,
)
from eventmesh.contracts.locks.lock_file import Lock, file_name, seal, write_lock
from eventmesh.contracts.locks.lock_folder import (
    Locks,
    folder_of,
    lock_path,
    locks_from,
    read_locks,
)
from eventmesh.contracts.locks.sample_messages import samples_of
from eventmesh.contracts.message import Message, identity_of

__all__ = [
    "Lock",
    "Locks",
    "check",
    "folder_of",
    "freeze",
    "lock_of",
    "lock_path",
    "locks_from",
    "read_locks",
    "refuse_drift",
    "same_contract",
    "schemas_of",
]


def lock_of(model: type[Message], root: Path = Path("schemas")) -> Lock:
    """What would be frozen if this version had no lock file."""
    identity = identity_of(model)
    writer, reader = schemas_of(model)
    lock = Lock(
        name=identity.name,
        version=identity.version,
        revision=1,
        kind=identity.kind,
        key=identity.key,
        writer=writer,
        reader=reader,
        samples=samples_of(model, writer),
        hash="",
        status="active",
        sunset=None,
        path=lock_path(root, model),
    )
    return _sealed(lock)


def freeze(
    models: Iterable[type[Message]], root: Path, *, waived: Container[str] = ()
) -> list[Lock]:
    """Write the lock files that are missing: of new versions, and of changes within one that are
    compatible both ways with all its revisions. Returns what was written.

    Drift, and nothing is written at all, when a version was changed otherwise, or one is skipped;
    but not for problems whose fingerprints are `waived`.
    """
    models, locks = list(models), read_locks(root)
    refuse(
        problem
        for problem in check(models, locks)
        if problem.severity == "error"
        and problem.rule not in FREEZABLE
        and problem.fingerprint not in waived
    )
    written = []
    for model in models:
        revisions = locks.of(model.__identity__.name).get(model.__identity__.version, ())
        if any(same_contract(lock, model) for lock in revisions):
            continue
        lock = lock_of(model, root)
        if revisions:
            lock = _further(lock, revisions)
        written.append(lock)
    for lock in written:
        write_lock(lock)
    return written


def _further(lock: Lock, revisions: Sequence[Lock]) -> Lock:
    """The lock as a further revision of its version."""
    number = revisions[-1].revision + 1
    return _sealed(
        replace(
            lock,
            revision=number,
            status=revisions[-1].status,
            sunset=revisions[-1].sunset,
            path=lock.path.with_name(file_name(lock.version, number)),
        )
    )


def _sealed(lock: Lock) -> Lock:
    content = {part: getattr(lock, part) for part in Lock.__slots__}
    return replace(lock, hash=seal(content | {"samples": list(lock.samples)}))
