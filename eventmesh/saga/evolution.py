"""Whether running sagas survive a change of the code: what `eventmesh schema check` says of sagas.

The shape of the current version must be the frozen one. For each older version that is frozen and
not retired, every stored state must be readable, or migrated, and every point at which a saga of it
can be must go on under the current code; `verify.versions` proves that. What could be neither
proved nor refuted is an error, too, as it is for messages: a person waives it, with a reason.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from eventmesh.compat.pydantic_models.comparison import compare_model, compare_schemas
from eventmesh.compat.verdict import Breaking, Unknown, Verdict
from eventmesh.contracts.problem import Place, Problem, Witness
from eventmesh.saga.definition import Definition
from eventmesh.saga.shape import shape_of, state_schemas
from eventmesh.saga.shape_locks import ShapeLock, check_shape, read_shapes
from eventmesh.saga.verify.versions import (
    NO_END,
    NOT_TAKEN,
    NOT_UNDONE,
    REMOVED,
    UNDECIDED,
    Finding,
    prove,
)

UNREADABLE = "EM087"


def check_sagas(definitions: Iterable[Definition], root: Path) -> list[Problem]:
    """The problems of these sagas, whose shapes are frozen in the folder `root`."""
    problems: list[Problem] = []
    for definition in definitions:
        locks = read_shapes(root, definition.name)
        problems += check_shape(definition, locks, root)
        older = [
            lock
            for version, lock in locks.locks.items()
            if version < definition.version and not lock.is_retired
        ]
        if older:
            problems += _check_course(definition, older)
            problems += (each for lock in older for each in _check_state(definition, lock))
    return sorted(problems, key=lambda each: (each.rule, each.subject, each.fingerprint))


def _check_course(definition: Definition, older: Sequence[ShapeLock]) -> Iterator[Problem]:
    """Whether sagas of the older versions go on and end."""
    proof = prove([lock.shape for lock in older], shape_of(definition))
    versions = [lock.shape.version for lock in older]
    said = f"version {versions[0]}"
    if len(versions) > 1:
        said = f"versions {', '.join(map(str, versions[:-1]))} and {versions[-1]}"
    for finding in proof.findings:
        where = f"the step {finding.step}: " if finding.step else ""
        times = "1 kind of state" if finding.count == 1 else f"{finding.count:,} kinds of states"
        summary = f"{where}{finding.what}"
        if finding.rule != UNDECIDED:
            summary += f"; that is so in {times} of sagas of {said}, such as {finding.example}"
        yield _problem(
            finding.rule,
            definition,
            older[-1],
            summary,
            _fix_of(finding, definition, versions),
            marks=(finding.step, finding.what),
        )


def _fix_of(finding: Finding, definition: Definition, versions: Sequence[int]) -> str:
    retire = " and ".join(
        f"`eventmesh schema retire {definition.name} {version}`" for version in versions
    )
    once = f"Once no such saga is open any more, {retire} ends the check."
    match finding.rule:
        case _ if finding.rule == REMOVED:
            return (
                f"Keep the step {finding.step} under its name; with when=lambda state: False new "
                f"sagas skip it. {once}"
            )
        case _ if finding.rule == NOT_TAKEN:
            return (
                f"Let {finding.step} take what it took, and give what is new to another step. "
                f"{once}"
            )
        case _ if finding.rule == NOT_UNDONE:
            return (
                f"Keep the step {finding.step} with its undo; with when=lambda state: False new "
                f"sagas skip it. {once}"
            )
        case _ if finding.rule == NO_END:
            return f"Change the flow so that such sagas go on. {once}"
    return (
        f"Run `eventmesh saga verify` for the new version, test the change with sagas of the old "
        f"one, and waive this finding with a reason. {once}"
    )


# The state


def _check_state(definition: Definition, lock: ShapeLock) -> Iterator[Problem]:
    """Whether every state that was stored by an older version can be read, or is migrated."""
    verdict = _verdict(definition, lock)
    old, new = lock.shape.version, definition.version
    if isinstance(verdict, Breaking):
        shown = json.dumps(verdict.witness)
        shown = shown if len(shown) <= 200 else f"{shown[:200]}…"
        yield _problem(
            UNREADABLE,
            definition,
            lock,
            f"version {old} may have stored the state {shown}, which version {new} "
            f"{'cannot migrate' if _migrations(definition, old) else 'cannot read'} "
            f"({verdict.reason})",
            f"Write @….migrate(from_version={old}), a function that returns the state of version "
            f"{old + 1}, for everything that {lock.path} allows.",
            marks=(f"from {old}",),
            witness=Witness(verdict.witness, verdict.reason),
        )
    elif isinstance(verdict, Unknown):
        yield _problem(
            UNDECIDED,
            definition,
            lock,
            f"it could be neither proved nor refuted that version {new} reads every state of "
            f"version {old}: {verdict.reason}",
            "Make sure that it is read, and waive this finding with a reason.",
            marks=(f"state from {old}",),
        )


def _verdict(definition: Definition, lock: ShapeLock) -> Verdict:
    model, writer = definition.state, dict(lock.shape.state_writer)
    cast = _migrations(definition, lock.shape.version)
    fields = model.model_fields.values()
    if cast is None and any(each.alias or each.validation_alias for each in fields):
        # A state is read by the names of its fields, and a model alone by their aliases.
        own, reader = state_schemas(model)
        return compare_schemas(writer, reader, own, samples=lock.samples)
    return compare_model(writer, model, cast=cast, samples=lock.samples)


def _migrations(definition: Definition, version: int) -> Callable[[Any], Any] | None:
    """The migrations from this version up to the current one, one after another."""
    steps = [
        definition.migrations[each]
        for each in range(version, definition.version)
        if each in definition.migrations
    ]
    if not steps:
        return None

    def migrate(state: Any) -> Any:
        for step in steps:
            state = step(dict(state))
        return state

    return migrate


def _problem(
    rule: str,
    definition: Definition,
    lock: ShapeLock,
    summary: str,
    fix: str,
    *,
    marks: tuple[str, ...] = (),
    witness: Witness | None = None,
) -> Problem:
    return Problem(
        rule=rule,
        severity="error",
        subject=f"{definition.name} v{definition.version}",
        summary=summary,
        fix=fix,
        parties=(definition.name.partition(".")[0],),
        place=Place(str(lock.path)),
        witness=witness,
        marks=marks,
    )
