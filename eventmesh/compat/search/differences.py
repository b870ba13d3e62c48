"""Documents that differ from what the reader accepts at one place, and are small elsewhere.

A large schema has very many documents, and a change in it concerns one place. So this search goes
only where the prover found no proof, finds values there that the writer allows and the reader
rejects, and builds the smallest document of the writer's around each.

Example: below `deployment.state` the reader has an enum where the writer has any string. Every
other field is proved in passing. At `state` the value "a" is allowed and rejected; around it come
the required fields of a deployment, and those of the event: `{"action": "created", "deployment":
{"id": 0, "state": "a"}}`.

What is found is likely to be a witness and not sure to be one: a condition further out may forbid
the value. Each document is validated against both whole schemas before anybody believes it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

from eventmesh.compat.budget import StepBudget
from eventmesh.compat.proof.containment import Prover
from eventmesh.compat.schema.alternative import Alternative, excludes
from eventmesh.compat.schema.alternatives import Flattener, TooMany
from eventmesh.compat.schema.normal import bare, definitions_of
from eventmesh.compat.schema.reading import Schema
from eventmesh.compat.schema.shared import is_same, key_of
from eventmesh.compat.schema.validity import Check, matches, validator
from eventmesh.compat.schema.values import same, type_of
from eventmesh.compat.search.documents import CandidateGenerator, in_turn

MAX_DEPTH = 40
"""Levels of a document that the search goes down."""
SCALARS = 60
"""How many strings or numbers are tried at one place."""
ELSE = 40
"""How many values are taken from the general search, where a difference is not one of a field or
an entry."""
_ORDER = ("null", "boolean", "integer", "fraction", "string", "array", "object")

Conjunction = tuple[Schema, ...]
_NONE: Any = object()


class DifferenceSearch:
    """Searches documents of the writer's that the reader rejects, where no proof says otherwise."""

    def __init__(self, writer: Schema, reader: Schema, prover: Prover, budget: StepBudget) -> None:
        self._goal = ((bare(writer),), (bare(reader),))
        self._prover = prover
        self._budget = budget
        self._definitions = {**definitions_of(writer), **definitions_of(reader)}
        self._flattener = Flattener(self._definitions, budget)
        self._generator = CandidateGenerator(writer, reader, budget=budget)
        self._open: set[Any] = set()
        self._smallest_of: dict[Any, Any] = {}
        self._checks: dict[Any, Check] = {}

    def documents(self) -> Iterator[Any]:
        """Likely witnesses, those first that differ where a field or an entry does."""
        yield from self._values(*self._goal)

    def _values(self, mine: Conjunction, theirs: Conjunction) -> Iterator[Any]:
        """Values of one part that the writer allows and the reader rejects."""
        theirs = tuple(
            schema
            for schema in theirs
            if schema is not True and not any(is_same(schema, other) for other in mine)
        )
        goal = key_of(mine), key_of(theirs)
        if not theirs or goal in self._open or len(self._open) > MAX_DEPTH:
            return
        if self._prover.contained(mine, theirs):
            return
        self._budget.spend(20)
        self._open.add(goal)
        alternatives, counterparts = self._alternatives(mine), self._alternatives(theirs)
        found = in_turn(
            [
                self._of_kind(alternative, kind, counterparts)
                for alternative in alternatives
                for kind in _ORDER
                if kind in alternative.types
            ]
        )
        # Where there are several alternatives, what one rejects another may accept.
        is_certain = len(alternatives) == 1 and len(counterparts) <= 1
        for value in found:
            is_local = not is_certain or not isinstance(value, dict | list)
            if is_local and (not self._accepts(mine, value) or self._accepts(theirs, value)):
                continue
            yield value
        self._open.discard(goal)

    def _alternatives(self, schemas: Conjunction) -> list[Alternative]:
        try:
            return self._flattener.alternatives(schemas)
        except TooMany:
            return self._flattener.some(schemas)

    def _accepts(self, schemas: Conjunction, value: Any) -> bool:
        key = key_of(schemas)
        if key not in self._checks:
            self._budget.spend(50)
            whole: dict[str, Any] = {"allOf": [True, *schemas]}
            if "'$ref'" in repr(schemas):
                whole["$defs"] = self._definitions
            self._checks[key] = validator(whole, "2020")
        self._budget.spend(5)
        return self._checks[key](value)

    def _of_kind(
        self, alternative: Alternative, kind: str, counterparts: Sequence[Alternative]
    ) -> Iterator[Any]:
        near = [r for r in counterparts if kind in r.types and not excludes(r, alternative)]
        if not near:
            value = self._smallest_of_kind(alternative, kind)
            if value is not _NONE:
                yield value
        if alternative.values is not None:
            yield from (value for value in alternative.values if type_of(value) == kind)
        elif kind == "object":
            yield from self._objects(alternative, near)
        elif kind == "array":
            yield from self._lists(alternative, near)
        else:
            yield from self._others(alternative, kind, counterparts, SCALARS)

    def _others(
        self, alternative: Alternative, kind: str, counterparts: Sequence[Alternative], most: int
    ) -> Iterator[Any]:
        """Values that the general search makes of this alternative."""
        yield from islice(self._generator.values_of(alternative, kind, counterparts), most)

    def _objects(
        self, alternative: Alternative, counterparts: Sequence[Alternative]
    ) -> Iterator[dict[str, Any]]:
        base = self._smallest_of_kind(alternative, "object")
        if base is _NONE:
            return
        if any(not counterpart.required <= base.keys() for counterpart in counterparts):
            yield base
        for name in self._generator.names_of(alternative, counterparts):
            held = alternative.of(name, matches)
            if False in held:
                continue
            for against in _distinct(counterpart.of(name, matches) for counterpart in counterparts):
                for value in self._values(held, against):
                    yield {**base, name: value}
        if len(counterparts) > 1 or any(
            _counts(counterpart) != _counts(alternative) for counterpart in counterparts
        ):
            yield from self._others(alternative, "object", counterparts, ELSE)

    def _lists(
        self, alternative: Alternative, counterparts: Sequence[Alternative]
    ) -> Iterator[list[Any]]:
        first = max(
            (len(f) for one in [alternative, *counterparts] for f, _ in one.lists), default=0
        )
        for place in range(min(first, 20) + 1):
            for against in _distinct(counterpart.at(place) for counterpart in counterparts):
                for value in self._values(alternative.at(place), against):
                    made = self._list_with(alternative, place, value)
                    if made is not None:
                        yield made
        yield from self._others(alternative, "array", counterparts, ELSE)

    def _list_with(self, alternative: Alternative, place: int, value: Any) -> list[Any] | None:
        """A list with this value at this place, as short as can be."""
        made = [self._smallest(alternative.at(number)) for number in range(place)]
        made.append(value)
        while len(made) < alternative.min_items and len(made) < 100:
            made.append(
                value if not alternative.unique else self._smallest(alternative.at(len(made)))
            )
        return None if any(entry is _NONE for entry in made) else made

    # The smallest value of a part

    def _smallest(self, schemas: Conjunction) -> Any:
        """A small value that the writer allows here, or `_NONE`; always the same one."""
        key = key_of(schemas)
        if key not in self._smallest_of:
            self._budget.spend(10)
            self._smallest_of[key] = _NONE  # a part of itself is no way to make it
            found = self._least(schemas)
            if found is _NONE:
                del self._smallest_of[key]  # which depends on what it is a part of
                return _NONE
            self._smallest_of[key] = found
        return self._smallest_of[key]

    def _least(self, schemas: Conjunction) -> Any:
        alternatives = self._alternatives(schemas)
        for kind in _ORDER:
            for alternative in alternatives:
                if kind in alternative.types:
                    value = self._smallest_of_kind(alternative, kind)
                    if value is not _NONE and (
                        (alternative.exact and len(alternatives) == 1)
                        or self._accepts(schemas, value)
                    ):
                        return value
        return _NONE

    def _smallest_of_kind(self, alternative: Alternative, kind: str) -> Any:
        if alternative.values is not None or kind not in ("object", "array"):
            found = self._generator.values_of(alternative, kind, ())
            return next(
                (v for v in found if not any(same(v, b) for b in alternative.excluded)), _NONE
            )
        if kind == "array":
            if alternative.contains or (alternative.unique and alternative.min_items > 1):
                return next(iter(self._generator.values_of(alternative, kind, ())), _NONE)
            if alternative.min_items > 1_000:
                return _NONE
            entries = [
                self._smallest(alternative.at(place)) for place in range(alternative.min_items)
            ]
            return _NONE if any(entry is _NONE for entry in entries) else entries
        made = {
            name: self._smallest(alternative.of(name, matches))
            for name in sorted(alternative.required)
        }
        if any(value is _NONE for value in made.values()):
            return _NONE
        if len(made) < alternative.min_properties:
            found = self._generator.values_of(alternative, kind, ())
            return next((v for v in found if len(v) >= alternative.min_properties), _NONE)
        return made


def _counts(alternative: Alternative) -> Any:
    return alternative.min_properties, alternative.max_properties, len(alternative.names)


def _distinct(conjunctions: Iterable[Conjunction]) -> list[Conjunction]:
    return list({key_of(schemas): schemas for schemas in conjunctions}.values())
