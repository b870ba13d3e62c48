"""Whether the code is what was frozen; and if not, whether that harms anybody."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pydantic.errors import PydanticUserError

from eventmesh.compat.verdict import Breaking, Unknown, Verdict
from eventmesh.contracts.canonical import digest
from eventmesh.contracts.locks.lock_file import MAX_DEPTH, Lock, is_deeper
from eventmesh.contracts.locks.lock_folder import Locks, lock_path, read_locks
from eventmesh.contracts.message import Message, identity_of
from eventmesh.contracts.problem import Place, Problem, Witness
from eventmesh.errors import Drift, UsageError

FREEZABLE = ("EM030", "EM032")
"""What `eventmesh schema freeze` is the answer to."""


def schemas_of(model: type[Message]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the model writes and what it reads, as schemas; UsageError when there are none."""
    from eventmesh.compat.model_schemas import reader_schema, writer_schema

    try:
        schemas = writer_schema(model), reader_schema(model)
    except (PydanticUserError, RecursionError) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UsageError(
            f"{model.__module__}.{model.__qualname__} has no JSON schema: {reason} Give its fields "
            f"types that can be written as JSON."
        ) from None
    if is_deeper([*schemas], MAX_DEPTH):
        raise UsageError(
            f"{model.__module__}.{model.__qualname__} is nested more than {MAX_DEPTH} levels deep: "
            f"make classes of the inner parts."
        )
    return schemas


def same_contract(lock: Lock, model: type[Message], *, checks: bool = False) -> bool:
    """Whether the model is what was frozen, however it is spelled; with `checks`, also whether the
    same functions of the user's check its values."""
    identity = identity_of(model)
    writer, reader = schemas_of(model)
    return (
        (lock.kind, lock.key) == (identity.kind, identity.key)
        and digest(lock.writer, defaults=False, checks=checks)
        == digest(writer, defaults=False, checks=checks)
        and digest(lock.reader, checks=checks) == digest(reader, checks=checks)
    )


def check(models: Iterable[type[Message]], locks: Locks) -> list[Problem]:
    """How each of these models stands against the lock files of its message."""
    return [
        problem
        for model in models
        for problem in (
            *locks.problems_of(identity_of(model).name),
            *_check_one(model, locks),
        )
    ]


def refuse_drift(models: Iterable[type[Message]], root: Path) -> None:
    """Drift when a frozen version is not what the code says; a missing one is let pass."""
    locks = read_locks(root)
    problems: list[Problem] = []
    for model in models:
        identity = identity_of(model)
        problems.extend(p for p in locks.problems_of(identity.name) if p.severity == "error")
        revisions = locks.of(identity.name).get(identity.version, ())
        if revisions and not any(same_contract(lock, model) for lock in revisions):
            problems.extend(_compare(model, revisions))
    refuse(problems)


def refuse(problems: Iterable[Problem]) -> None:
    """Drift that says all of these, and what to do; nothing happens where there are none."""
    problems = list(problems)
    if problems:
        fixes = dict.fromkeys(problem.fix for problem in problems)
        raise Drift(
            "The code and the frozen schemas differ. "
            + " ".join(f"{problem.subject}: {problem.summary}." for problem in problems)
            + f" {' '.join(fixes)}"
        )


def _check_one(model: type[Message], locks: Locks) -> Sequence[Problem]:
    identity = identity_of(model)
    versions = locks.of(identity.name)
    revisions = versions.get(identity.version, ())
    if not revisions:
        return _missing(model, locks)
    if any(same_contract(lock, model, checks=True) for lock in revisions):
        return ()
    problems = _compare(model, revisions)
    if any(same_contract(lock, model) for lock in revisions):  # only its validators are others
        problems = [problem for problem in problems if problem.rule != "EM032"]
    return problems


def _missing(model: type[Message], locks: Locks) -> Sequence[Problem]:
    identity = identity_of(model)
    path = lock_path(locks.root, model)
    if any(problem.subject == str(identity) for problem in locks.problems_of(identity.name)):
        return ()  # it is there, and broken
    older = [version for version in locks.of(identity.name) if version < identity.version]
    if older and max(older) < identity.version - 1:
        skipped = max(older) + 1
        return [
            _problem(
                "EM035",
                model,
                path,
                f"version {skipped} was skipped: the newest that is frozen is {max(older)}",
                f"Declare {identity.name} with version={skipped}.",
            )
        ]
    return [
        _problem(
            "EM030",
            model,
            path,
            f"not frozen yet ({path})",
            "Run `eventmesh schema freeze` and commit the files it writes.",
        )
    ]


def _compare(model: type[Message], revisions: Sequence[Lock]) -> list[Problem]:
    """What to say of a model that is none of these revisions of its version."""
    identity, latest = identity_of(model), revisions[-1]
    for part in ("kind", "key"):
        before, after = getattr(latest, part), getattr(identity, part)
        if before != after:
            summary = f"the {part} was {before!r} and is {after!r}"
            return [_problem("EM042", model, latest.path, summary, _ways_out(model))]
    for lock in revisions:
        for said, verdict in _verdicts(model, lock):
            match verdict:
                case Breaking():
                    return [_breaking(model, lock, said, verdict)]
                case Unknown(reason=reason):
                    return [
                        _problem(
                            "EM044",
                            model,
                            lock.path,
                            f"{_what_changed(model, latest)}; whether {said} could be neither "
                            f"proved nor refuted: {reason}",
                            f"{_ways_out(model)} Who knows that it breaks nobody may waive it in "
                            f"pyproject.toml, and then freeze.",
                            changes=verdict.changes,
                        )
                    ]
    return [
        _problem(
            "EM032",
            model,
            latest.path,
            f"{_what_changed(model, latest)}: compatible both ways, and not recorded yet",
            "Run `eventmesh schema freeze` and commit the files it writes.",
        )
    ]


def _verdicts(model: type[Message], lock: Lock) -> Iterable[tuple[str, Verdict]]:
    from eventmesh.compat.models import compare_model, compare_schemas

    writer, _ = schemas_of(model)
    yield (
        "the model reads what was written before",
        compare_model(lock.writer, model, samples=lock.samples),
    )
    yield "what the model writes is read by those of before", compare_schemas(writer, lock.reader)


def _breaking(model: type[Message], lock: Lock, said: str, verdict: Breaking) -> Problem:
    return _problem(
        "EM031",
        model,
        lock.path,
        f"{_what_changed(model, lock)}; it is not so that {said}: {_short(verdict.witness)} is "
        f"refused{f' ({verdict.reason})' if verdict.reason else ''}",
        _ways_out(model),
        witness=Witness(verdict.witness, verdict.reason),
        changes=verdict.changes,
    )


def _ways_out(model: type[Message]) -> str:
    identity = identity_of(model)
    return (
        f"A frozen version never changes: restore the model, or raise its version by one to "
        f"{identity.version + 1}, add an upcaster "
        f"(@{model.__name__}.upcaster(from_version={identity.version})) and run "
        f"`eventmesh schema freeze`."
    )


def _problem(
    rule: str, model: type[Message], path: Path, summary: str, fix: str, **more: Any
) -> Problem:
    identity = identity_of(model)
    return Problem(
        rule=rule,
        severity="error",
        subject=str(identity),
        summary=summary,
        fix=fix,
        parties=(identity.owner,),
        place=Place(str(path)),
        **more,
    )


def _short(document: Any) -> str:
    text = json.dumps(document)
    return text if len(text) <= 200 else f"{text[:200]}…"


def _what_changed(model: type[Message], lock: Lock) -> str:
    writer, reader = schemas_of(model)
    before, after = _fields(lock.writer, lock.reader), _fields(writer, reader)
    parts = [
        *(f"field {name!r} is new" for name in sorted(after.keys() - before.keys())),
        *(f"field {name!r} is gone" for name in sorted(before.keys() - after.keys())),
        *(
            f"field {name!r} changed"
            for name in sorted(before.keys() & after.keys())
            if before[name] != after[name]
        ),
    ]
    return ", ".join(parts) or "a nested definition changed"


def _fields(*sides: dict[str, Any]) -> dict[str, Any]:
    names = {name for side in sides for name in side.get("properties", {})}
    return {
        name: [
            (side.get("properties", {}).get(name), name in side.get("required", []))
            for side in sides
        ]
        for name in names
    }
