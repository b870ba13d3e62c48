"""Whether running sagas survive a change of the code: what `eventmesh schema check` says of sagas.

The shape of the current version must be the frozen one. For each older version that is frozen and
not retired, every stored state must be readable, or migrated, and every point at which a saga of it
can be must go on under the current code; `verify.versions` proves that.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from eventmesh.contracts.problem import Problem
from eventmesh.saga.definition import Definition
from eventmesh.saga.shape_locks import check_shape, read_shapes


def check_sagas(definitions: Iterable[Definition], root: Path) -> list[Problem]:
    """The problems of these sagas, whose shapes are frozen in the folder `root`."""
    problems: list[Problem] = []
    for definition in definitions:
        locks = read_shapes(root, definition.name)
        problems += check_shape(definition, locks, root)
    return sorted(problems, key=lambda each: (each.rule, each.subject, each.fingerprint))
