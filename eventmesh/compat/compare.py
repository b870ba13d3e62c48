"""The one question: is every document that the writer's schema accepts accepted by the reader's?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any

from pydantic_core import to_json

from eventmesh.compat.budget import StepBudget, Undecided, price_of, with_whole_stack
from eventmesh.compat.changes import changes
from eventmesh.compat.proof.algebra import Algebra
from eventmesh.compat.proof.containment import Prover
from eventmesh.compat.schema.normal import bare, normal, normal_forms
from eventmesh.compat.schema.reading import Schema, check_draft, check_schema, dialect
from eventmesh.compat.schema.validity import Check, explain, validator
from eventmesh.compat.search.differences import DifferenceSearch
from eventmesh.compat.search.documents import CandidateGenerator
from eventmesh.compat.search.shrink import shrunk
from eventmesh.compat.verdict import Breaking, Compatible, Unknown, Verdict

TRIES = 4_000
"""Candidates that are tried as witnesses."""
FIRST = 300
"""How many of them before a proof is tried; all others if there is none."""
STEPS = 80_000
"""The step budget of each search and each proof; most need less than a hundredth of it."""


def compare(writer: Schema, reader: Schema, *, draft: str = "2020") -> Verdict:
    """Whether the reader's schema accepts every document that the writer's accepts.

    `draft` is `4`, `7` or `2020`; a schema's own `$schema` takes precedence. `format` is enforced
    as pydantic enforces it. Compatible is proved. Breaking has a witness: a document that the
    writer's schema accepts and the reader's rejects. Everything else is Unknown, for example if a
    reference leads out of the schema; such references are never followed.

    Raises UsageError if a schema is not valid.
    """
    check_draft(draft)
    try:
        check_schema(writer, draft, "The writer's schema")
        check_schema(reader, draft, "The reader's schema")
        return with_whole_stack(lambda: _compare(writer, reader, draft))
    except Undecided as error:
        return Unknown(str(error))
    except RecursionError:
        return Unknown("the schemas are nested too deeply")


def _compare(writer: Schema, reader: Schema, draft: str) -> Verdict:
    mine, theirs = normal_forms([writer, reader], draft)
    found = changes(writer, reader)
    if bare(mine) is bare(theirs):
        return Compatible(found)
    prover = Prover(mine, theirs, StepBudget(STEPS))
    if prover.proved():
        return Compatible(found)
    judge = _Judge(writer, reader, draft)
    differences = DifferenceSearch(mine, theirs, prover, StepBudget(STEPS))
    algebra = Algebra(mine, theirs)
    searched = iter(_candidates(mine, theirs, algebra))
    for step in (differences.documents(), islice(searched, FIRST), None, searched):
        if step is None:
            if algebra.covered():
                return Compatible(found)
            continue
        witness = _witness(step, judge)
        if witness is not _NONE:
            return Breaking(witness, found, explain(reader, draft, witness))
    return Unknown("found neither a document that breaks nor a proof that there is none", found)


def _candidates(writer: Schema, reader: Schema, algebra: Algebra) -> Iterator[Any]:
    """What may be a witness: documents of the difference, then those beside all bounds."""
    budget = StepBudget(STEPS)
    left = algebra.difference()
    if left is not None and left is not True:
        with suppress(Undecided):
            yield from islice(
                CandidateGenerator(normal(left, "2020"), budget=budget).candidates(), 300
            )
    yield from islice(CandidateGenerator(writer, reader, budget=budget).candidates(), TRIES)


_NONE: Any = object()


def _witness(candidates: Iterator[Any], judge: _Judge) -> Any:
    """A small document that breaks; one that no engine of patterns minds, if there is one."""
    fallback = _NONE
    budget = StepBudget(STEPS)
    with suppress(Undecided):  # the budget is spent
        for candidate in candidates:
            budget.spend(price_of(candidate))
            if not judge.refutes(candidate):
                continue
            if not _contested(candidate):
                return shrunk(candidate, judge.refutes, StepBudget(STEPS))
            fallback = candidate if fallback is _NONE else fallback
    return fallback


def _contested(document: Any) -> bool:
    """Whether it has texts of which engines of patterns are of two minds: line ends before `$` and
    for a dot, and whether digits and letters of all scripts are any."""
    if isinstance(document, dict):
        return any(map(_contested, document)) or any(map(_contested, document.values()))
    if isinstance(document, list):
        return any(map(_contested, document))
    if not isinstance(document, str):
        return False
    return any(
        char in "\n\r\u2028\u2029" or (char > "\x7f" and char.isalnum()) for char in document
    )


class _Judge:
    """Says of documents whether they are witnesses."""

    def __init__(self, writer: Schema, reader: Schema, draft: str) -> None:
        pair = (writer, reader)
        self._written, self._read = (validator(schema, draft) for schema in pair)
        # Draft 4 does not count 1.0 among the integers, which all later drafts and pydantic do.
        self._is_draft_4 = "4" in {dialect(schema, draft) for schema in pair}

    def refutes(self, document: Any) -> bool:
        """Whether the writer's schema accepts the document, and the reader's does not."""
        return (
            self._written(document)
            and not self._read(document)
            and not (self._is_draft_4 and _has_whole(document))
        )


def _has_whole(document: Any) -> bool:
    if isinstance(document, dict):
        return any(map(_has_whole, document.values()))
    if isinstance(document, list):
        return any(map(_has_whole, document))
    return isinstance(document, float) and document.is_integer()


def documents(
    schema: Schema, *, also: Sequence[Schema] = (), draft: str = "2020", limit: int = 200
) -> list[Any]:
    """At most `limit` documents that the schema accepts, simplest first, always the same ones.

    They lie on its bounds and, where `also` names other schemas, beside the bounds of those.
    Raises UsageError if a schema is not valid, and Undecided if it cannot be handled here.
    """
    check_draft(draft)
    for one in (schema, *also):
        check_schema(one, draft)
    accepted = accepts(schema, draft=draft)
    mine, *others = normal_forms([schema, *also], draft)
    budget = StepBudget(2 * STEPS * (len(also) + 1))
    made = [CandidateGenerator(mine, budget=budget).candidates()]
    made += [CandidateGenerator(mine, one, budget=budget).candidates() for one in others]
    found: list[Any] = []
    known: set[bytes] = set()
    for candidates in made:
        room = limit if candidates is made[-1] else max(limit // (len(made) + 1), 1)
        for candidate in islice(candidates, TRIES):
            if len(found) >= limit or room <= 0:
                break
            mark = to_json(candidate)
            if mark not in known and accepted(candidate):
                known.add(mark)
                found.append(candidate)
                room -= 1
    return found


def accepts(schema: Schema, *, draft: str = "2020") -> Check:
    """Whether a document is of the schema, with `format` as pydantic enforces it."""
    return validator(schema, draft)
