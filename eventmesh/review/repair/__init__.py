"""`--fix`: what can be written for a finding without deciding anything for a person."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eventmesh.compat import accepts, documents
from eventmesh.contracts.locks.freezing import freeze, lock_of
from eventmesh.contracts.locks.lock_file import Lock
from eventmesh.contracts.locks.lock_folder import Locks, read_locks
from eventmesh.contracts.message import Message
from eventmesh.contracts.problem import Problem
from eventmesh.errors import EventMeshError, UsageError
from eventmesh.review.baseline import LOST, Baseline, restore
from eventmesh.review.repair.source_edit import Source
from eventmesh.review.repair.upcaster_stub import step_between, upcaster
from eventmesh.review.repair.witness_test import file_name, file_text

_SUBJECT = re.compile(r"(?P<name>[a-z0-9_.]+) v(?P<version>[1-9]\d*)")
_BROKEN, _NOT_UPCAST = "EM031", "EM036"
_FREEZE = {"EM030", "EM032"}


@dataclass(slots=True)
class Repairs:
    """What was done, and what was left to a person."""

    done: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    solved: set[str] = field(default_factory=set)
    """The fingerprints of problems that are none any more."""


@dataclass(frozen=True, slots=True)
class Project:
    """What is repaired: a project's folder, its messages, and where these are frozen."""

    folder: Path
    schemas: Path
    models: Sequence[type[Message]]
    baseline: Baseline | None = None

    def model(self, name: str) -> type[Message] | None:
        """The owner's model of the message."""
        return next((m for m in self.models if m.__identity__.name == name), None)


def repair(problems: Sequence[Problem], project: Project) -> Repairs:
    """Write what the problems ask for; running it again changes nothing more.

    A version that a person still has work with is not frozen.
    """
    repairs = Repairs()
    _restore(problems, project, repairs)
    locks = read_locks(project.schemas)
    for name, version, found in _breaks(problems):
        try:
            repairs.done += _raise_version(name, version, found, project, locks)
        except EventMeshError as error:
            repairs.left.append(f"{found[0].rule} {found[0].subject}: {error}")
    _freeze(problems, project, repairs)
    return repairs


def _restore(problems: Sequence[Problem], project: Project, repairs: Repairs) -> None:
    for problem in problems:
        if problem.rule == LOST and project.baseline is not None:
            [name] = problem.marks
            path = restore(project.baseline, name, project.schemas)
            repairs.done.append(f"restored {_shown(path, project)}")
            repairs.solved.add(problem.fingerprint)


def _breaks(problems: Sequence[Problem]) -> Iterator[tuple[str, int, list[Problem]]]:
    """Each version of a message that something must lead away from, and what says so."""
    found: dict[tuple[str, int], list[Problem]] = {}
    for problem in problems:
        subject = _SUBJECT.fullmatch(problem.subject)
        if subject and problem.rule in (_BROKEN, _NOT_UPCAST):
            version = int(subject["version"]) - (problem.rule == _NOT_UPCAST)
            found.setdefault((subject["name"], version), []).append(problem)
    for (name, version), of_it in sorted(found.items()):
        yield name, version, of_it


def _raise_version(
    name: str, version: int, problems: Sequence[Problem], project: Project, locks: Locks
) -> Iterator[str]:
    """Write the test, the next version's number and the upcaster from the old one."""
    model, lock = project.model(name), _latest(locks, name, version)
    if model is None or lock is None:
        raise UsageError(f"{name} v{version} is not both declared and frozen: nothing to start at.")
    if newer := [known for known in locks.of(name) if known > version + 1]:
        raise UsageError(f"Version {newer[0]} is frozen already: write the upcasters by hand.")
    path = _file(model, project.folder)
    step = step_between(lock.writer, lock_of(model).reader)
    source = Source.read(path)
    if model.__identity__.version == version:
        source = source.with_version(model.__qualname__, version, version + 1)
    changed = source.with_upcaster(
        model.__qualname__, version, upcaster(model.__name__, name, version, step)
    )
    test = project.folder / "tests" / "schemas" / file_name(name, version)
    if _write_new(test, _test(model, lock, problems)):
        yield f"wrote {_shown(test, project)}, which fails until the upcaster is right"
    changed.write()
    if model.__identity__.version == version:
        yield f"changed {_shown(path, project)}: {model.__name__} is version {version + 1}"
    if changed is not source:
        todo = "" if step.derived else "; fill it in where it says TODO"
        yield f"wrote an upcaster from version {version} below {model.__name__}{todo}"
    yield (
        f"then run the test and the check again, and when only EM030 is left for "
        f"{name} v{version + 1}: eventmesh schema freeze"
    )


def _test(model: type[Message], lock: Lock, problems: Sequence[Problem]) -> str:
    """The test with the witness, and where the witness is of the new version, with an old document
    as well."""
    takes = accepts(lock.writer)
    seen = [problem.witness.document for problem in problems if problem.witness is not None]
    old = [document for document in seen if takes(document)]
    new = [document for document in seen if not takes(document)]
    example: list[Any] = [*old, *lock.samples] or documents(lock.writer, limit=1)
    if not example:
        raise UsageError(f"No document of {lock.name} v{lock.version} could be found.")
    return file_text(
        lock.name,
        lock.version,
        service=model.__identity__.owner,
        document=example[0],
        new=new[0] if new and not old else None,
    )


def _freeze(problems: Sequence[Problem], project: Project, repairs: Repairs) -> None:
    """Freeze what only needs that."""
    waiting = [problem for problem in problems if problem.rule in _FREEZE]
    others = [problem for problem in problems if problem.rule not in _FREEZE | {LOST}]
    for problem in waiting:
        subject = _SUBJECT.fullmatch(problem.subject)
        model = project.model(subject["name"]) if subject else None
        if subject is None or model is None or str(model.__identity__) != problem.subject:
            continue
        if any(_concerns(other, subject["name"]) for other in others):
            repairs.left.append(
                f"{problem.rule} {problem.subject}: it is frozen when nothing else is wrong with it"
            )
            continue
        frozen = freeze([model], project.schemas)
        repairs.done += [f"froze {_shown(Path(lock.path), project)}" for lock in frozen]
        repairs.solved.add(problem.fingerprint)


def _concerns(problem: Problem, name: str) -> bool:
    return (
        problem.severity == "error"
        and re.search(
            rf"(?<![a-z0-9_.]){re.escape(name)}(?![a-z0-9_])",
            f"{problem.subject} {problem.summary}",
        )
        is not None
    )


def _latest(locks: Locks, name: str, version: int) -> Lock | None:
    revisions = locks.of(name).get(version, ())
    return revisions[-1] if revisions else None


def _file(model: type[Message], folder: Path) -> Path:
    """Where the model is written, which must be the project's own file."""
    try:
        found = inspect.getsourcefile(model)
    except TypeError:
        found = None
    path = Path(found or "").resolve()
    where = f"{model.__module__}.{model.__qualname__}"
    if found is None or not path.is_relative_to(folder.resolve()) or "site-packages" in path.parts:
        raise UsageError(f"{where} is written in no file below {folder}: change it by hand.")
    if "<locals>" in model.__qualname__:
        raise UsageError(f"{where} is declared in a function: change it by hand.")
    return path


def _write_new(path: Path, text: str) -> bool:
    """Write the file, unless there is one."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        return False
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}.") from None
    return True


def _shown(path: Path, project: Project) -> str:
    path, folder = path.resolve(), project.folder.resolve()
    return str(path.relative_to(folder) if path.is_relative_to(folder) else path)
