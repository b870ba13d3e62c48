"""Comparing models with what is frozen: has a version changed, and does the change break anyone?

Within one version, a change must be compatible in both directions: messages written before must be
readable by the model, and messages that it writes must be readable by services that still have the
frozen version. An added optional field is such a change; it only has to be frozen (EM032). Anything
else needs a new version (EM031).

`check` reports all of this for `eventmesh schema check`. `refuse_drift` is for a worker's start-up:
it raises `Drift`, and lets a version pass that has never been frozen.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
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
"""The rules whose problems `eventmesh schema freeze` solves."""


def schemas_of(
    model: type[Message], like: Lock | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The schema of what the model writes, and of what it reads; with a lock, as the release that
    froze it would have told them.

    UsageError if a type in the model has no JSON schema, or it is nested too deeply.
    """
    # Loaded late: a service without lock files never needs it.
    from eventmesh.compat.pydantic_models.schemas import TODAY, reader_schema, writer_schema

    where = f"{model.__module__}.{model.__qualname__}"
    edition = TODAY if like is None else _edition_of(like)
    try:
        schemas = writer_schema(model, edition=edition), reader_schema(model, edition=edition)
    except (PydanticUserError, RecursionError) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UsageError(
            f"{where} has no JSON schema: {reason} Use field types that can be written as JSON."
        ) from None
    if is_deeper([*schemas], MAX_DEPTH):
        raise UsageError(
            f"The schema of {where} is nested more than {MAX_DEPTH} levels deep. Declare the inner "
            f"parts as classes of their own."
        )
    return schemas


def _edition_of(lock: Lock) -> int:
    """Which schemas the release that froze it had; those before left out some of what the code
    does."""
    from eventmesh.compat.pydantic_models.schemas import EDITION

    edition = lock.writer.get(EDITION, 1)  # a lock file may hold anything
    return edition if isinstance(edition, int) else 1


def same_contract(
    lock: Lock, model: type[Message], *, checks: bool = False, today: bool = False
) -> bool:
    """Whether the model means the same as what was frozen, however its schema is written.

    With `checks`, the user's validators must be the same, too. With `today`, the lock must also say
    what the schemas of earlier releases left out.
    """
    identity = identity_of(model)
    before, after = _schemas_before_and_after(lock, model, None if today else lock)
    return (
        (lock.kind, lock.key) == (identity.kind, identity.key)
        and digest(before[0], defaults=False, checks=checks)
        == digest(after[0], defaults=False, checks=checks)
        and digest(before[1], checks=checks) == digest(after[1], checks=checks)
    )


def must_be_frozen_again(model: type[Message], revisions: Sequence[Lock]) -> bool:
    """Whether the model is as frozen, but only in lock files that do not say all that it does."""
    return any(same_contract(lock, model, checks=True) for lock in revisions) and not any(
        same_contract(lock, model, checks=True, today=True) for lock in revisions
    )


def _schemas_before_and_after(
    lock: Lock, model: type[Message], like: Lock | None
) -> tuple[list[Any], list[Any]]:
    """What is frozen and what the model is now, as writer and reader, with the same text for the
    same validator, also if an earlier release has frozen it."""
    # Loaded late, as above.
    from eventmesh.compat.pydantic_models.checks import alike

    writer, reader = schemas_of(model, like)
    written, read = alike(lock.writer, writer), alike(lock.reader, reader)
    return [written[0], read[0]], [written[1], read[1]]


def check(models: Iterable[type[Message]], locks: Locks) -> list[Problem]:
    """Compare each model with the lock files of its message."""
    problems: list[Problem] = []
    for model in models:
        identity = identity_of(model)
        problems += locks.problems_of(identity.name)
        revisions = locks.of(identity.name).get(identity.version, ())
        if not revisions:
            problems += _missing_lock(model, locks)
        elif any(same_contract(lock, model, checks=True, today=True) for lock in revisions):
            continue
        elif must_be_frozen_again(model, revisions):
            why = "an earlier release froze it, and left out some of what the model writes or reads"
            problems.append(_not_frozen(model, revisions[-1], why))
        else:
            found = _compare(model, revisions)
            is_frozen = any(same_contract(lock, model) for lock in revisions)
            # If only validators changed, and compatibly, there is nothing to freeze.
            problems += [each for each in found if not (is_frozen and each.rule == "EM032")]
    return problems


def refuse_drift(models: Iterable[type[Message]], root: Path) -> None:
    """Drift if a frozen version differs from its model; versions that are not frozen pass."""
    locks = read_locks(root)
    problems: list[Problem] = []
    for model in models:
        identity = identity_of(model)
        problems += (each for each in locks.problems_of(identity.name) if each.severity == "error")
        revisions = locks.of(identity.name).get(identity.version, ())
        if revisions and not any(same_contract(lock, model) for lock in revisions):
            problems += _compare(model, revisions)
    raise_drift(problems)


def raise_drift(problems: Iterable[Problem]) -> None:
    """Drift with all these problems and their fixes, if there are any."""
    problems = list(problems)
    if problems:
        fixes = dict.fromkeys(problem.fix for problem in problems)
        raise Drift(
            "The code differs from the frozen schemas. "
            + " ".join(f"{problem.subject}: {problem.summary}." for problem in problems)
            + f" {' '.join(fixes)}"
        )


def _missing_lock(model: type[Message], locks: Locks) -> list[Problem]:
    identity = identity_of(model)
    path = lock_path(locks.root, model)
    if any(problem.subject == str(identity) for problem in locks.problems_of(identity.name)):
        return []  # its lock file exists, and is reported as broken
    older = [version for version in locks.of(identity.name) if version < identity.version]
    if older and max(older) < identity.version - 1:
        next_version = max(older) + 1
        return [
            _problem(
                "EM035",
                model,
                path,
                f"version {next_version} was skipped: the newest frozen version is {max(older)}",
                f"Declare {identity.name} with version={next_version}.",
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
    """The problem of a model that equals none of the revisions of its version."""
    identity, latest = identity_of(model), revisions[-1]
    new_version = (
        f"A frozen version never changes: restore the model, or raise its version by one to "
        f"{identity.version + 1}, add an upcaster "
        f"(@{model.__name__}.upcaster(from_version={identity.version})) and run "
        f"`eventmesh schema freeze`."
    )
    for part in ("kind", "key"):
        before, after = getattr(latest, part), getattr(identity, part)
        if before != after:
            summary = f"the {part} changed from {before!r} to {after!r}"
            return [_problem("EM042", model, latest.path, summary, new_version)]
    for lock in revisions:
        for verdict, question, failure in _verdicts(model, lock):
            if isinstance(verdict, Breaking):
                text = json.dumps(verdict.witness)
                shown = text if len(text) <= 200 else f"{text[:200]}…"
                reason = f" ({verdict.reason})" if verdict.reason else ""
                return [
                    _problem(
                        "EM031",
                        model,
                        lock.path,
                        f"{_describe_changes(model, lock)}; {failure}: {shown} is rejected{reason}",
                        new_version,
                        witness=Witness(verdict.witness, verdict.reason),
                        changes=verdict.changes,
                    )
                ]
            if isinstance(verdict, Unknown):
                return [
                    _problem(
                        "EM044",
                        model,
                        lock.path,
                        f"{_describe_changes(model, latest)}; it could be neither proved nor "
                        f"refuted that {question}: {verdict.reason}",
                        f"{new_version} If you know that the change breaks nobody, waive this "
                        f"finding in pyproject.toml, and then freeze.",
                        changes=verdict.changes,
                    )
                ]
    changes = _describe_changes(model, latest)
    return [
        _not_frozen(model, latest, f"{changes}: compatible in both directions, and not frozen yet")
    ]


def _not_frozen(model: type[Message], latest: Lock, summary: str) -> Problem:
    fix = "Run `eventmesh schema freeze` and commit the files it writes."
    return _problem("EM032", model, latest.path, summary, fix)


def _verdicts(model: type[Message], lock: Lock) -> Iterator[tuple[Verdict, str, str]]:
    """The verdict for each direction, what it is about, and what it means if it is not so."""
    # Loaded late: a service whose models are as frozen never compares.
    from eventmesh.compat.pydantic_models.comparison import compare_model, compare_schemas
    from eventmesh.compat.pydantic_models.documents import with_bounds_of

    frozen = lock.writer
    if _edition_of(lock) == 1:
        frozen = with_bounds_of(schemas_of(model)[0], frozen)
    yield (
        compare_model(frozen, model, samples=lock.samples),
        "the model reads every message written before",
        "the model cannot read a message that was written before",
    )
    yield (
        compare_schemas(schemas_of(model, lock)[0], lock.reader, lock.writer),
        "services with the frozen version read every message that the model writes",
        "services with the frozen version cannot read a message that the model writes",
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


def _describe_changes(model: type[Message], lock: Lock) -> str:
    """The fields that were added, removed or changed, in words."""
    before, after = (_fields(*schemas) for schemas in _schemas_before_and_after(lock, model, lock))
    parts = [
        *(f"field {name!r} was added" for name in sorted(after.keys() - before.keys())),
        *(f"field {name!r} was removed" for name in sorted(before.keys() - after.keys())),
        *(
            f"field {name!r} changed"
            for name in sorted(before.keys() & after.keys())
            if before[name] != after[name]
        ),
    ]
    return ", ".join(parts) or "a nested definition changed"


def _fields(writer: dict[str, Any], reader: dict[str, Any]) -> dict[str, Any]:
    """What both schemas say about each top-level field."""
    sides = (writer, reader)
    return {
        name: [
            (side.get("properties", {}).get(name), name in side.get("required", []))
            for side in sides
        ]
        for side in sides
        for name in side.get("properties", {})
    }
