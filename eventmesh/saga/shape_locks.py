"""Lock files of sagas: the frozen shape of each version, beside those of the messages.

`schemas/orders/fulfil_order-saga/v1.json` describes version 1 of `orders.fulfil_order` permanently.
Unlike a message, a saga has no revisions: a running saga was started by exactly one shape, so every
change of the shape is a new version. The hash covers everything except the status, which is
`retired` once no saga of the version is open any more: then nothing is proved about it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eventmesh.contracts.locks.drift import raise_drift
from eventmesh.contracts.locks.lock_file import BrokenLock, parse, read_text, write_atomically
from eventmesh.contracts.locks.sample_messages import samples_of
from eventmesh.contracts.problem import Place, Problem
from eventmesh.errors import UsageError
from eventmesh.saga.definition import Definition
from eventmesh.saga.shape import Shape, as_json, differences, from_json, shape_of

DRIFTED, NOT_FROZEN, BROKEN, SKIPPED = "EM080", "EM081", "EM082", "EM083"

_FILE = re.compile(r"v([1-9][0-9]{0,8})\.json")
_SUFFIX = "-saga"  # no message has such a name, so their lock files cannot be mixed up


@dataclass(frozen=True, slots=True)
class ShapeLock:
    """A frozen shape, with example states of it."""

    shape: Shape
    samples: tuple[Any, ...]
    is_retired: bool
    path: Path

    def __str__(self) -> str:
        return str(self.shape)


@dataclass(frozen=True, slots=True)
class ShapeLocks:
    """The lock files of one saga, by version, and what is wrong with the others."""

    locks: dict[int, ShapeLock]
    problems: tuple[Problem, ...] = ()

    @property
    def newest(self) -> int:
        """The newest frozen version; 0 where there is none."""
        return max(self.locks, default=0)


def folder_of(root: Path, saga: str) -> Path:
    """The folder with the lock files of a saga."""
    owner, _, name = saga.partition(".")
    return root / owner / f"{name}{_SUFFIX}"


def read_shapes(root: Path, saga: str) -> ShapeLocks:
    """The frozen shapes of a saga; a file that is not valid becomes a problem."""
    locks: dict[int, ShapeLock] = {}
    problems: list[Problem] = []
    try:
        paths = sorted(folder_of(root, saga).iterdir())
    except OSError:  # it does not exist, is a file, or may not be read
        return ShapeLocks({})
    for path in paths:
        found = _FILE.fullmatch(path.name)
        if found is None:
            continue
        version = int(found[1])
        try:
            locks[version] = _read(path, saga, version)
        except BrokenLock as error:
            problems.append(
                Problem(
                    rule=BROKEN,
                    severity="error",
                    subject=f"{saga} v{version}",
                    summary=f"the lock file {path} {error}",
                    fix="Restore the lock file from version control.",
                    parties=(saga.partition(".")[0],),
                    place=Place(str(path)),
                )
            )
    return ShapeLocks(dict(sorted(locks.items())), tuple(problems))


def frozen_names(root: Path) -> list[str]:
    """The names of sagas with lock files, sorted."""
    return sorted(
        f"{folder.parent.name}.{folder.name.removesuffix(_SUFFIX)}"
        for folder in root.glob(f"*/*{_SUFFIX}")
        if any(folder.glob("v*.json"))
    )


def _read(path: Path, saga: str, version: int) -> ShapeLock:
    content = parse(read_text(path))
    if not isinstance(content, dict) or content.keys() != {"status", "hash", "shape", "samples"}:
        raise BrokenLock("is not the lock file of a saga")
    if content["hash"] != _seal(content["shape"], content["samples"]):
        raise BrokenLock("was edited: its hash does not match its content")
    if content["status"] not in ("active", "retired") or not isinstance(content["samples"], list):
        raise BrokenLock("has a status other than active and retired, or no samples")
    try:
        shape = from_json(content["shape"] if isinstance(content["shape"], dict) else {})
    except ValueError as error:
        raise BrokenLock(str(error)) from None
    if (shape.name, shape.version) != (saga, version):
        raise BrokenLock(f"contains {shape}")
    return ShapeLock(shape, tuple(content["samples"]), content["status"] == "retired", path)


def _seal(shape: Any, samples: Any) -> str:
    sealed = json.dumps([shape, samples], sort_keys=True)
    return "sha256:" + hashlib.sha256(sealed.encode()).hexdigest()


def _write(shape: Shape, samples: Sequence[Any], path: Path, status: str) -> None:
    content = as_json(shape)
    lock = {
        "status": status,
        "hash": _seal(content, list(samples)),
        "shape": content,
        "samples": list(samples),
    }
    write_atomically(path, (json.dumps(lock, indent=2) + "\n").encode())


def retire(root: Path, saga: str, version: int) -> Path:
    """Mark a version as retired: nothing is proved about its sagas any more. UsageError."""
    found = read_shapes(root, saga).locks.get(version)
    if found is None:
        raise UsageError(f"{saga} has no frozen version {version} in {root}.")
    _write(found.shape, found.samples, found.path, "retired")
    return found.path


def freeze(definitions: Iterable[Definition], root: Path) -> list[ShapeLock]:
    """Write the lock files that are missing, and return them. Drift, before anything is written,
    if a frozen version has changed, or a version was skipped."""
    definitions = list(definitions)
    raise_changes(definitions, root)
    written = []
    for definition in definitions:
        if definition.version in read_shapes(root, definition.name).locks:
            continue
        shape = shape_of(definition)
        path = folder_of(root, definition.name) / f"v{definition.version}.json"
        samples = _samples(definition, shape)
        _write(shape, samples, path, "active")
        written.append(ShapeLock(shape, samples, is_retired=False, path=path))
    return written


def raise_changes(definitions: Iterable[Definition], root: Path) -> None:
    """Drift if a frozen version has changed, or a version was skipped."""
    raise_drift(
        problem
        for definition in definitions
        for problem in check_shape(definition, read_shapes(root, definition.name), root)
        if problem.rule != NOT_FROZEN
    )


def _samples(definition: Definition, shape: Shape) -> tuple[Any, ...]:
    """States as they are stored; none where a field has an alias, which samples are made by."""
    fields = definition.state.model_fields.values()
    if any(each.alias or each.validation_alias or each.serialization_alias for each in fields):
        return ()
    return samples_of(definition.state, dict(shape.state_writer))


def refuse_drift(definition: Definition, root: Path) -> None:
    """Drift if the frozen version differs from the saga in the code; one that was never frozen
    passes."""
    locks = read_shapes(root, definition.name)
    if locks.locks or locks.problems:
        raise_drift(
            problem
            for problem in check_shape(definition, locks, root)
            if problem.rule in (DRIFTED, BROKEN)
        )


def check_shape(definition: Definition, locks: ShapeLocks, root: Path) -> list[Problem]:
    """Compare a saga with its lock files."""
    problems = list(locks.problems)
    version, newest = definition.version, locks.newest
    broken = {problem.subject for problem in problems}
    lock = locks.locks.get(version)
    path = folder_of(root, definition.name) / f"v{version}.json"
    if lock is not None:
        changes = differences(lock.shape, shape_of(definition))
        if changes:
            problems.append(
                _problem(
                    DRIFTED,
                    definition,
                    lock.path,
                    "; ".join(changes),
                    f"Sagas of version {version} may be running. Restore what was changed, or "
                    f"count up to Saga(…, version={version + 1}), with "
                    f"@….migrate(from_version={version}) where the old state cannot be read; then "
                    f"run `eventmesh schema freeze` and `eventmesh schema check`.",
                )
            )
    elif f"{definition.name} v{version}" in broken:
        pass  # its lock file exists, and is reported as broken
    elif newest and not newest <= version <= newest + 1:
        problems.append(
            _problem(
                SKIPPED,
                definition,
                path,
                f"the newest frozen version is {newest}",
                f"Declare {definition.name} with version={newest + 1}, or {newest} if its shape "
                f"has not changed.",
            )
        )
    else:
        problems.append(
            _problem(
                NOT_FROZEN,
                definition,
                path,
                f"not frozen yet ({path})",
                "Run `eventmesh schema freeze` and commit the files it writes.",
            )
        )
    return problems


def _problem(rule: str, definition: Definition, path: Path, summary: str, fix: str) -> Problem:
    return Problem(
        rule=rule,
        severity="error",
        subject=f"{definition.name} v{definition.version}",
        summary=summary,
        fix=fix,
        parties=(definition.name.partition(".")[0],),
        place=Place(str(path)),
    )
