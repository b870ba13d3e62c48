"""Generates documents on the bounds of a schema: the candidates for a witness.

A witness is a document that the writer's schema accepts and the reader's rejects. The best places
to look for one are the bounds: if the writer allows `maxLength: 10` and the reader 8, a string of
nine characters shows it and a random one may not. So values are made from each alternative of the
writer's schema (see `alternatives`), simplest first, on its own bounds and on those of its
counterparts, the alternatives of the reader's schema for the same place.

Parts that are equal in both schemas get one or two values, and parts that differ get many, so that
the effort goes where the schemas differ. Candidates are likely to be valid for the writer, but not
certain to be: whoever uses them has to validate them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice, product
from typing import Any

from pydantic_core import to_json

from eventmesh.compat.budget import StepBudget
from eventmesh.compat.schema.alternative import Alternative
from eventmesh.compat.schema.alternatives import Flattener, TooMany
from eventmesh.compat.schema.members import fits
from eventmesh.compat.schema.normal import bare, definitions_of
from eventmesh.compat.schema.reading import Schema
from eventmesh.compat.schema.regular import Irregular, example
from eventmesh.compat.schema.shared import is_same
from eventmesh.compat.schema.validity import matches, validator
from eventmesh.compat.schema.values import same, type_of
from eventmesh.compat.search.scalars import numbers, texts

MAX_DEPTH = 12
WIDTH = 60
"""How many values a part of a document is tried with, where schemas differ."""
NARROW = 8
"""The same, without another schema to compare with, below the root."""
MAX_ENTRIES = 2_000
MAX_STEPS = 5_000
"""How many parts are made up, for each as many again as the schema has."""
LEAST_STEPS = 40
EQUAL = 2
"""How many values a part is tried with that is the same in both schemas."""
MAX_EQUAL = 40
"""How many equal parts of one object are varied."""

_PLAIN: tuple[Any, ...] = ("", 0, 1.5, True, None, {}, [])
"""One value of each type, where anything will do."""
_NAMES = ("extra", "another", "A-1", "")

Conjunction = tuple[Schema, ...]


class CandidateGenerator:
    """Generates documents that the writer's schema probably accepts."""

    def __init__(self, writer: Schema, reader: Schema | None = None, *, budget: StepBudget) -> None:
        known = {**definitions_of(writer), **definitions_of(True if reader is None else reader)}
        self._flattener = Flattener(known, budget)
        self._root = (bare(writer),)
        self._counterpart: Conjunction | None = None if reader is None else (bare(reader),)
        self._steps = MAX_STEPS + 2 * _size(writer)
        self._budget = budget

    def candidates(self) -> Iterator[Any]:
        """The candidates, simplest first, without duplicates."""
        yield from _distinct(self._values(self._root, self._counterpart, 0, 10_000))

    def values_of(
        self, alternative: Alternative, kind: str, counterparts: Sequence[Alternative]
    ) -> Iterator[Any]:
        """Values of one type of an alternative, first those that a counterpart may reject."""
        return self._of_alternative(alternative, kind, counterparts, not counterparts, 0)

    def _values(
        self,
        schemas: Conjunction,
        against: Conjunction | None,
        depth: int,
        most: int,
    ) -> Iterator[Any]:
        """At most so many values for one part of a document."""
        self._budget.spend(10)
        self._steps -= 1
        if depth > MAX_DEPTH or self._steps < 0:
            return
        if against is not None and (not _constrained(against) or self._equal(schemas, against)):
            most = min(most, EQUAL)
        if not _constrained(schemas) and not _constrained(against or ()):
            yield from islice(_PLAIN, most)
            return
        alternatives = self._alternatives(schemas)
        counterparts = [] if against is None else self._alternatives(against)
        iterators = [
            self._of_alternative(alternative, kind, counterparts, against is None, depth)
            for alternative in alternatives
            for kind in _kinds(alternative)
        ]
        yield from islice(_distinct(in_turn(iterators)), most)

    def _equal(self, schemas: Conjunction, against: Conjunction) -> bool:
        mine = [schema for schema in schemas if schema is not True]
        theirs = [schema for schema in against if schema is not True]
        return len(mine) == len(theirs) and all(map(is_same, mine, theirs))

    def _alternatives(self, schemas: Conjunction) -> list[Alternative]:
        try:
            return self._flattener.alternatives(schemas)
        except TooMany:
            return self._flattener.some(schemas)

    def _of_alternative(
        self,
        alternative: Alternative,
        kind: str,
        counterparts: Sequence[Alternative],
        alone: bool,
        depth: int,
    ) -> Iterator[Any]:
        theirs = [counterpart for counterpart in counterparts if kind in counterpart.types]
        if alternative.values is not None:
            yield from (value for value in alternative.values if type_of(value) == kind)
            return
        if kind not in ("object", "array"):
            for counterpart in counterparts:
                for value in chain(counterpart.values or (), counterpart.excluded):
                    if type_of(value) == kind:
                        yield value
        if kind == "null":
            yield None
        elif kind == "boolean":
            yield from (False, True)
        elif kind in ("integer", "fraction"):
            yield from (n for n in numbers(alternative, theirs) if type_of(n) == kind)
        elif kind == "string":
            yield from (
                text for text in texts(alternative, theirs, self._budget) if fits(alternative, text)
            )
        elif kind == "array":
            yield from self._lists(alternative, theirs, alone, depth)
        else:
            yield from self._objects(alternative, theirs, alone, depth)

    # Lists

    def _lists(
        self, alternative: Alternative, counterparts: Sequence[Alternative], alone: bool, depth: int
    ) -> Iterator[list[Any]]:
        for counterpart in counterparts:
            for value in chain(counterpart.values or (), counterpart.excluded):
                if isinstance(value, list):
                    yield value
        width = _width(alone, depth)
        first = max(
            (len(f) for one in [alternative, *counterparts] for f, _ in one.lists), default=0
        )
        base_length = (
            max(alternative.min_items, *(c.least for c in alternative.contains), 0)
            if (alternative.contains)
            else alternative.min_items
        )
        lengths = self._lengths(alternative, counterparts, first)
        choices = [
            list(self._entries(alternative, counterparts, place, alone, depth, width))
            for place in range(min(first, 20) + 1)
        ]

        def entries(length: int) -> list[Any] | None:
            return _fill(choices, length, alternative.unique)

        for length in lengths:
            made = entries(max(length, 0))
            if made is not None:
                yield from self._with_contained(alternative, made, depth)
        for place, values in enumerate(choices):
            made = entries(max(base_length, place + 1))
            if made is None:
                continue
            for value in values:
                changed = [*made[:place], value, *made[place + 1 :]]
                yield from self._with_contained(alternative, changed, depth)
                if not alternative.unique and len(made) == place + 1:
                    yield [*changed, value]
        for counterpart in counterparts:
            for contains in counterpart.contains:
                held = (*alternative.at(first), contains.schema)
                inside = list(self._values(held, None, depth + 1, 3))
                for count in sorted({contains.least, contains.most or 0, (contains.most or 0) + 1}):
                    if inside and count <= MAX_ENTRIES:
                        yield [inside[i % len(inside)] for i in range(count)]

    def _entries(
        self,
        alternative: Alternative,
        counterparts: Sequence[Alternative],
        place: int,
        alone: bool,
        depth: int,
        width: int,
    ) -> Iterator[Any]:
        against = None if alone else _merged(counterpart.at(place) for counterpart in counterparts)
        yield from self._values(alternative.at(place), against, depth + 1, width)

    def _lengths(
        self, alternative: Alternative, counterparts: Sequence[Alternative], first: int
    ) -> list[int]:
        lengths = {
            0,
            1,
            2,
            3,
            first,
            alternative.min_items,
            alternative.min_items + 1,
            alternative.max_items,
        }
        for counterpart in counterparts:
            lengths |= {counterpart.min_items - 1, counterpart.min_items, counterpart.max_items}
            lengths |= {counterpart.max_items + 1} if counterpart.max_items is not None else set()
        most = (
            MAX_ENTRIES
            if alternative.max_items is None
            else min(alternative.max_items, MAX_ENTRIES)
        )
        return sorted(n for n in lengths if n is not None and alternative.min_items <= n <= most)

    def _with_contained(
        self, alternative: Alternative, made: list[Any], depth: int
    ) -> Iterator[list[Any]]:
        """The list, with as many entries at its end as the alternative says it contains."""
        yield made  # which may contain them as it is
        if not alternative.contains:
            return
        yield from self._with_one_contained(alternative, made, depth)
        ended = list(made)
        for number, contains in enumerate(alternative.contains):
            held = (*alternative.at(len(made)), contains.schema)
            inside = list(
                self._values(held, None, depth + 1, min(max(contains.least, 8), MAX_ENTRIES))
            )
            if contains.least > MAX_ENTRIES or (contains.least and not inside):
                return
            if contains.least == 1:
                yield from ([*made[:-1], value] for value in inside)
            tail = [inside[i % len(inside)] for i in range(min(contains.least, MAX_ENTRIES))]
            keep = max(0, len(ended) - len(tail)) if number == 0 else len(ended)
            ended = [*ended[:keep], *tail]
        yield ended
        yield [*made, *ended[-sum(c.least for c in alternative.contains) or len(ended) :]]

    def _with_one_contained(
        self, alternative: Alternative, made: list[Any], depth: int
    ) -> Iterator[list[Any]]:
        """The list with a contained entry among its first ones, where others may stand after."""
        first = max((len(first) for first, _ in alternative.lists), default=0)
        for contains in alternative.contains:
            for place in range(min(first, len(made), 20)):
                held = (*alternative.at(place), contains.schema)
                for value in self._values(held, None, depth + 1, 1):
                    yield [*made[:place], value, *made[place + 1 :]]

    # Objects

    def _objects(
        self, alternative: Alternative, counterparts: Sequence[Alternative], alone: bool, depth: int
    ) -> Iterator[dict[str, Any]]:
        for counterpart in counterparts:
            for value in chain(counterpart.values or (), counterpart.excluded):
                if isinstance(value, dict):
                    yield value
        shortest = self._shortest(alternative, depth)
        if shortest is None:
            return
        yield shortest
        choices = self._choices(alternative, counterparts, alone, depth)
        if any(name not in choices for name in alternative.required):
            return
        least = {name: choices[name][0] for name in sorted(alternative.required)}
        least = self._filled(alternative, least, choices, alternative.min_properties, depth)
        yield least
        yield from self._varied(alternative, counterparts, least, choices, depth)

    def _shortest(self, alternative: Alternative, depth: int) -> dict[str, Any] | None:
        """An object with what is required and no more, before a longer search."""
        made = {}
        for name in sorted(alternative.required):
            value = next(self._values(alternative.of(name, matches), None, depth + 1, 1), _NONE)
            if value is _NONE:
                return None
            made[name] = value
        return made

    def _choices(
        self, alternative: Alternative, counterparts: Sequence[Alternative], alone: bool, depth: int
    ) -> dict[str, list[Any]]:
        """The values to try for each name."""
        width = _width(alone, depth)
        choices: dict[str, list[Any]] = {}
        equal = 0
        names = list(
            dict.fromkeys(
                [*sorted(alternative.required), *self.names_of(alternative, counterparts)]
            )
        )
        for number, name in enumerate(names):
            held = alternative.of(name, matches)
            against = (
                None
                if alone
                else _merged(counterpart.of(name, matches) for counterpart in counterparts)
            )
            if (
                against is not None
                and name not in alternative.required
                and self._equal(held, against)
            ):
                equal += 1
                if equal > MAX_EQUAL:
                    continue
            # So that a part that recurs leaves something to do for those after it.
            share = max(self._steps // (len(names) - number + 1), LEAST_STEPS)
            spare, self._steps = max(self._steps - share, 0), min(self._steps, share)
            found = list(self._values(held, against, depth + 1, width))
            self._steps = max(self._steps, 0) + spare
            if found:
                choices[name] = found
        return choices

    def _varied(
        self,
        alternative: Alternative,
        counterparts: Sequence[Alternative],
        least: dict[str, Any],
        choices: Mapping[str, list[Any]],
        depth: int,
    ) -> Iterator[dict[str, Any]]:
        declared = {name: v[0] for name, v in choices.items() if name in alternative.properties}
        whole = {**least, **declared}
        names = _names_to_vary(alternative, choices)
        for name in names:
            if name not in least:
                yield {**least, name: choices[name][0]}
        yield whole
        for rank in range(1, max((len(choices[name]) for name in names), default=0)):
            for name in names:
                if rank < len(choices[name]):
                    yield {**least, name: choices[name][rank]}
                    if name in whole and len(whole) > len(least):
                        yield {**whole, name: choices[name][rank]}
        for name in names:
            if name in whole and name not in alternative.required:
                yield {other: value for other, value in whole.items() if other != name}
        yield from self._counted(alternative, counterparts, least, choices, depth)
        several = [name for name in names if len(choices[name]) > 1][:5]
        values = [choices[name][: 12 if len(several) < 4 else 5] for name in several]
        for combined in islice(product(*values), 600):
            yield {**least, **dict(zip(several, combined, strict=True))}
        for size in (2, 3):
            for name in names[:8]:
                chosen = [other for other in names[:8] if other != name][: size - 1]
                yield {**least, name: choices[name][0], **{o: choices[o][0] for o in chosen}}

    def _counted(
        self,
        alternative: Alternative,
        counterparts: Sequence[Alternative],
        least: dict[str, Any],
        choices: Mapping[str, list[Any]],
        depth: int,
    ) -> Iterator[dict[str, Any]]:
        counts = {alternative.min_properties, alternative.max_properties}
        for counterpart in counterparts:
            counts |= {
                counterpart.min_properties - 1,
                counterpart.min_properties,
                counterpart.max_properties,
            }
            counts |= (
                {counterpart.max_properties + 1}
                if counterpart.max_properties is not None
                else set()
            )
        for count in sorted(n for n in counts if n is not None and 0 <= n <= MAX_ENTRIES):
            yield self._filled(alternative, least, choices, count, depth)

    def _filled(
        self,
        alternative: Alternative,
        made: dict[str, Any],
        choices: Mapping[str, list[Any]],
        count: int,
        depth: int,
    ) -> dict[str, Any]:
        """The object with further names until it has so many."""
        made = dict(made)
        further = chain(choices, (f"extra{number}" for number in range(min(count, MAX_ENTRIES))))
        for name in further:
            if len(made) >= count:
                break
            if name in made:
                continue
            held = alternative.of(name, matches)
            values = choices.get(name) or list(self._values(held, None, depth + 1, 1))
            if values:
                made[name] = values[0]
        return made

    def names_of(self, alternative: Alternative, counterparts: Sequence[Alternative]) -> list[str]:
        """Names that may occur in the object, or that a counterpart mentions."""
        names = list(alternative.properties)
        for counterpart in counterparts:
            names += [*counterpart.properties, *sorted(counterpart.required)]
        patterns = [
            pattern for one in [alternative, *counterparts] for pattern, _ in one.by_pattern
        ]
        for pattern in dict.fromkeys(patterns):
            others = [other for other in dict.fromkeys(patterns) if other != pattern]
            names += self._some([pattern]) + self._some([pattern], others)
        held = [
            *alternative.names,
            *(schema for counterpart in counterparts for schema in counterpart.names),
        ]
        for schema in held:
            spelled = self._values(
                ({"type": "string"}, *alternative.names), (schema,), MAX_DEPTH, 12
            )
            names += [name for name in spelled if isinstance(name, str)]
        if patterns:
            names += self._some([], list(dict.fromkeys(patterns)))
        found = dict.fromkeys([*names, *(_NAMES if counterparts else _NAMES[:1])])
        return [name for name in found if self._may_be_named(alternative, name)]

    def _some(self, patterns: Sequence[str], others: Sequence[str] = ()) -> list[str]:
        try:
            found = example(patterns, others, budget=self._budget)
        except Irregular:
            return []
        return [] if found is None else [found]

    def _may_be_named(self, alternative: Alternative, name: str) -> bool:
        if not alternative.names:
            return True
        schema = {"allOf": list(alternative.names), "$defs": dict(self._flattener.definitions)}
        return validator(schema, "2020")(name)


def _width(alone: bool, depth: int) -> int:
    """How many values a part is tried with: the deeper, the fewer."""
    return NARROW if alone else max(WIDTH >> max(depth - 1, 0), EQUAL + 1)


def _names_to_vary(alternative: Alternative, choices: Mapping[str, list[Any]]) -> list[str]:
    """The names to vary: first those with more values than an equal part gets, and those that the
    schema does not name; of the others some."""
    names = list(choices)
    differing = [name for name in names if len(choices[name]) > EQUAL]
    unnamed = [n for n in names if n not in alternative.properties and len(choices[n]) <= EQUAL]
    others = [n for n in names if n in alternative.properties and len(choices[n]) <= EQUAL]
    return [*differing, *unnamed, *others[:MAX_EQUAL]]


def _constrained(schemas: Conjunction) -> bool:
    return any(schema not in (True, {}) for schema in schemas)


def _size(schema: Any) -> int:
    """How many fields a schema names."""
    if isinstance(schema, dict):
        return len(schema.get("properties", ())) + sum(map(_size, schema.values()))
    return sum(map(_size, schema)) if isinstance(schema, list) else 0


def _kinds(alternative: Alternative) -> list[str]:
    """The types of values to make, first those that end."""
    order = ("string", "integer", "fraction", "boolean", "null", "object", "array")
    return [kind for kind in order if kind in alternative.types]


def _merged(conjunctions: Iterable[Conjunction]) -> Conjunction:
    merged: list[Schema] = []
    for conjunction in conjunctions:
        merged += [schema for schema in conjunction if schema not in merged]
    return tuple(merged)


def _fill(choices: Sequence[Sequence[Any]], length: int, unique: bool) -> list[Any] | None:
    made: list[Any] = []
    if length > MAX_ENTRIES:
        return None
    for place in range(length):
        values = choices[min(place, len(choices) - 1)]
        if unique:
            value = next((v for v in values if not any(same(v, m) for m in made)), _NONE)
        else:
            value = values[0] if values else _NONE
        if value is _NONE:
            return None
        made.append(value)
    return made


_NONE: Any = object()


def in_turn(iterators: Sequence[Iterator[Any]]) -> Iterator[Any]:
    """One from each, in turn, until all have ended."""
    ahead = list(iterators)
    while ahead:
        left = []
        for iterator in ahead:
            value = next(iterator, _NONE)
            if value is not _NONE:
                yield value
                left.append(iterator)
        ahead = left


def _distinct(values: Iterable[Any]) -> Iterator[Any]:
    seen = set()
    for value in values:
        mark = to_json(value)
        if mark not in seen:
            seen.add(mark)
            yield value
