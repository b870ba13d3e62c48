"""What `schema check --fix` does for sagas: it freezes the shapes with which nothing is wrong.

Nothing else can be written for a saga. A shape that has changed needs a new version, and which one
of its steps must be kept for running sagas, or what a new field of their state means, is known to
its author alone. So those findings are left to them, each with what to do.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from eventmesh.contracts.problem import Problem
from eventmesh.saga.definition import Definition
from eventmesh.saga.shape_locks import NOT_FROZEN, ShapeLock, check_shape, freeze, read_shapes

LOST = "EM034"
"""The finding about a lock file that the working tree lacks: `review.repair` restores it."""


@dataclass(frozen=True, slots=True)
class ShapeRepairs:
    """The lock files that were written, and what was left to a person, in words."""

    written: tuple[ShapeLock, ...] = ()
    left: tuple[str, ...] = ()
    solved: frozenset[str] = frozenset()
    """The fingerprints of problems that are solved now."""


def repair_shapes(
    problems: Sequence[Problem], definitions: Iterable[Definition], root: Path
) -> ShapeRepairs:
    """Freeze the sagas whose shapes only have to be frozen.

    `problems` are all findings of the check. Lock files that were restored since count as they are
    now: a saga that they froze already is frozen.
    """
    written: list[ShapeLock] = []
    left: list[str] = []
    solved: set[str] = set()
    for definition in definitions:
        subject = f"{definition.name} v{definition.version}"
        found = [problem for problem in problems if problem.subject == subject]
        missing = [problem for problem in found if problem.rule == NOT_FROZEN]
        now = check_shape(definition, read_shapes(root, definition.name), root) if missing else []
        others = [each for each in (*found, *now) if each.rule not in (NOT_FROZEN, LOST)]
        left += [f"{problem.rule} {subject}: {problem.fix}" for problem in others]
        if not missing:
            continue
        if any(problem.severity == "error" for problem in others):
            left.append(
                f"{NOT_FROZEN} {subject}: solve the other problems of this saga before it is frozen"
            )
            continue
        written += freeze([definition], root)
        solved |= {problem.fingerprint for problem in missing}
    return ShapeRepairs(tuple(written), tuple(left), frozenset(solved))
