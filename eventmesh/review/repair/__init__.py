"""`schema check --fix`: writing what a finding needs, up to where a person must decide.

Three kinds of findings can be repaired:

- A lock file that was deleted or replaced (EM034) is restored from the git revision.
- A breaking change (EM031, EM036) gets the next version number in the model, an upcaster below it,
  and a test with the document that broke. What the new fields of old messages mean is left to a
  person: the upcaster raises until its TODO is replaced, and so the test fails.
- A version that only has to be frozen (EM030, EM032) is frozen, if nothing else is wrong with it.

Running it again changes nothing more.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class Repairs:
    """What was written, in words, and what was left to a person, with the reason."""

    done: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    solved: frozenset[str] = frozenset()
    """The fingerprints of problems that are solved now."""


@dataclass(frozen=True, slots=True)
class Project:
    """The project to repair: its folder, its messages, and the folder of its lock files."""

    folder: Path
    schemas: Path
    models: Sequence[type[Message]]
    baseline: Baseline | None = None

    def model(self, name: str) -> type[Message] | None:
        """The owner's model of the message."""
        return next((m for m in self.models if m.__identity__.name == name), None)


def repair(problems: Sequence[Problem], project: Project) -> Repairs:
    """Write what these problems need, as far as no person has to decide."""
    done: list[str] = []
    left: list[str] = []
    solved: set[str] = set()

    for problem in problems:
        if problem.rule == LOST and project.baseline is not None:
            [name] = problem.marks
            path = restore(project.baseline, name, project.schemas)
            done.append(f"restored {_shown(path, project)}")
            solved.add(problem.fingerprint)

    locks = read_locks(project.schemas)
    for (name, version), found in _breaking_changes(problems).items():
        try:
            done += _start_next_version(name, version, found, project, locks)
        except EventMeshError as error:
            left.append(f"{found[0].rule} {found[0].subject}: {error}")

    others = [problem for problem in problems if problem.rule not in _FREEZE | {LOST}]
    for problem in problems:
        subject = _SUBJECT.fullmatch(problem.subject)
        model = project.model(subject["name"]) if subject else None
        if problem.rule not in _FREEZE or subject is None or model is None:
            continue
        if str(model.__identity__) != problem.subject:
            continue
        if any(_concerns(other, subject["name"]) for other in others):
            left.append(
                f"{problem.rule} {problem.subject}: solve the other problems of this message "
                f"before it is frozen"
            )
            continue
        frozen = freeze([model], project.schemas)
        done += [f"froze {_shown(Path(lock.path), project)}" for lock in frozen]
        solved.add(problem.fingerprint)
    return Repairs(tuple(done), tuple(left), frozenset(solved))


def _breaking_changes(problems: Sequence[Problem]) -> dict[tuple[str, int], list[Problem]]:
    """The problems that need an upcaster, by the message and version from which it must lead."""
    found: dict[tuple[str, int], list[Problem]] = {}
    for problem in problems:
        subject = _SUBJECT.fullmatch(problem.subject)
        if subject and problem.rule in (_BROKEN, _NOT_UPCAST):
            version = int(subject["version"]) - (problem.rule == _NOT_UPCAST)
            found.setdefault((subject["name"], version), []).append(problem)
    return dict(sorted(found.items()))


def _start_next_version(
    name: str, version: int, problems: Sequence[Problem], project: Project, locks: Locks
) -> list[str]:
    """Write the test, the next version number and the upcaster; returns what was done."""
    model, revisions = project.model(name), locks.of(name).get(version)
    if model is None or not revisions:
        raise UsageError(
            f"{name} v{version} is not both declared in code and frozen, so there is nothing to "
            f"start from. Change it by hand."
        )
    if newer := [known for known in locks.of(name) if known > version + 1]:
        raise UsageError(f"Version {newer[0]} is frozen already. Write the upcasters by hand.")
    lock, is_declared = revisions[-1], model.__identity__.version == version
    path = _file(model, project.folder)
    step = step_between(lock.writer, lock_of(model).reader)
    source = Source.read(path)
    if is_declared:
        source = source.with_version(model.__qualname__, version, version + 1)
    changed = source.with_upcaster(
        model.__qualname__, version, upcaster(model.__name__, name, version, step)
    )
    done = []
    test = project.folder / "tests" / "schemas" / file_name(name, version)
    if _write_new(test, _test_text(model, lock, problems)):
        done.append(f"wrote {_shown(test, project)}, which fails until the upcaster is complete")
    changed.write()
    if is_declared:
        done.append(f"changed {_shown(path, project)}: {model.__name__} is version {version + 1}")
    if changed is not source:
        todo = "" if step.is_complete else "; replace its TODO"
        done.append(f"wrote an upcaster from version {version} below {model.__name__}{todo}")
    done.append(
        f"next: run the test and the check again; when only EM030 is left for {name} "
        f"v{version + 1}, run `eventmesh schema freeze`"
    )
    return done


def _test_text(model: type[Message], lock: Lock, problems: Sequence[Problem]) -> str:
    """The test with the witnesses.

    A witness may be a document of the new version that old readers reject; then the test gets a
    document of the old version, too.
    """
    takes = accepts(lock.writer)
    seen = [problem.witness.document for problem in problems if problem.witness is not None]
    old = [document for document in seen if takes(document)]
    new = [document for document in seen if not takes(document)]
    example: list[Any] = [*old, *lock.samples] or documents(lock.writer, limit=1)
    if not example:
        raise UsageError(f"No example document of {lock.name} v{lock.version} could be made.")
    return file_text(
        lock.name,
        lock.version,
        service=model.__identity__.owner,
        document=example[0],
        new=new[0] if new and not old else None,
    )


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
    """The file with the model's class, which must be in the project."""
    try:
        found = inspect.getsourcefile(model)
    except TypeError:
        found = None
    path = Path(found or "").resolve()
    where = f"{model.__module__}.{model.__qualname__}"
    if found is None or not path.is_relative_to(folder.resolve()) or "site-packages" in path.parts:
        raise UsageError(f"{where} is not declared in a file below {folder}. Change it by hand.")
    if "<locals>" in model.__qualname__:
        raise UsageError(f"{where} is declared inside a function. Change it by hand.")
    return path


def _write_new(path: Path, text: str) -> bool:
    """Write the file unless it exists; returns whether it was written."""
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
