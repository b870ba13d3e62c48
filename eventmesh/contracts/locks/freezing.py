"""Freezing versions: writing the lock files that are missing.

A version that was never frozen gets its first lock file, and one whose model changed compatibly
gets a further revision. Nothing at all is written if one of the models changed in another way.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from dataclasses import replace
from pathlib import Path

from eventmesh.compat.pydantic_models.schemas import EDITION, TODAY
from eventmesh.contracts.locks.drift import (
    FREEZABLE,
    check,
    must_be_frozen_again,
    raise_drift,
    same_contract,
    schemas_of,
)
from eventmesh.contracts.locks.lock_file import Lock, file_name, seal, write_lock
from eventmesh.contracts.locks.lock_folder import lock_path, read_locks
from eventmesh.contracts.locks.sample_messages import samples_of
from eventmesh.contracts.message import Message, identity_of


def lock_of(model: type[Message], root: Path = Path("schemas")) -> Lock:
    """The lock of the model, as it would be frozen if it were a new version."""
    identity = identity_of(model)
    writer, reader = schemas_of(model)
    writer |= {EDITION: TODAY}
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
    """Write the missing lock files of these models, and return them.

    Drift, before anything is written, if a version changed incompatibly or one was skipped.
    Problems whose fingerprints are in `waived` are ignored.
    """
    models, locks = list(models), read_locks(root)
    raise_drift(
        problem
        for problem in check(models, locks)
        if problem.severity == "error"
        and problem.rule not in FREEZABLE
        and problem.fingerprint not in waived
    )
    written = []
    for model in models:
        revisions = locks.of(model.__identity__.name).get(model.__identity__.version, ())
        is_frozen = any(same_contract(lock, model) for lock in revisions)
        if is_frozen and not must_be_frozen_again(model, revisions):
            continue
        lock = lock_of(model, root)
        if revisions:
            latest = revisions[-1]
            number = latest.revision + 1
            path = lock.path.with_name(file_name(lock.version, number))
            lock = replace(
                lock, revision=number, status=latest.status, sunset=latest.sunset, path=path
            )
        written.append(_sealed(lock))
    for lock in written:
        write_lock(lock)
    return written


def _sealed(lock: Lock) -> Lock:
    content = {part: getattr(lock, part) for part in Lock.__slots__}
    return replace(lock, hash=seal(content | {"samples": list(lock.samples)}))
