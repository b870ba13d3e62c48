"""Our own proofs that one schema accepts all that another does, part by part.

They reason where `jsonschema-rs` declines: on recursive definitions, by induction on the document,
on patterns, as regular languages, and on formats. A proof not found is no refutation.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from eventmesh.compat.budget import StepBudget, Undecided
from eventmesh.compat.proof.leaves import (
    implies,
    never_both,
    no_text,
    number_within,
    spelled,
    text_within,
)
from eventmesh.compat.schema.alternative import Alternative, Contains, excludes
from eventmesh.compat.schema.alternatives import Flattener, TooMany
from eventmesh.compat.schema.members import finite, finite_of, in_bounds
from eventmesh.compat.schema.normal import bare, definitions_of
from eventmesh.compat.schema.reading import Schema
from eventmesh.compat.schema.regular import Irregular
from eventmesh.compat.schema.shared import is_same, key_of
from eventmesh.compat.schema.validity import Check, matches, validator
from eventmesh.compat.schema.values import same, type_of

MAX_SPLITS = 3
MAX_DEPTH = 60
"""Levels of a document that a proof goes down; each takes about ten frames of the stack."""
Conjunction = tuple[Schema, ...]
Goal = tuple[Any, Any]


class Prover:
    """Proves containment part by part, assuming of recursive parts what it is about to prove.

    Both schemas are normal forms that share their terms, so that equal parts cost nothing.
    """

    def __init__(self, writer: Schema, reader: Schema, budget: StepBudget) -> None:
        self._budget = budget
        self._goal = ((bare(writer),), (bare(reader),))
        definitions = {**definitions_of(writer), **definitions_of(reader)}
        self._flattener = Flattener(definitions, budget)
        self._assumed: dict[Goal, None] = {}
        self._failed: set[Goal] = set()
        self._checks: dict[Any, Check] = {}
        self._depth = 0

    def proved(self) -> bool:
        """Whether each document of the writer's is proved to be one of the reader's."""
        return self.contained(*self._goal)

    def contained(self, writer: Conjunction, reader: Conjunction) -> bool:
        """The same for a part of both. False where there is no proof within the step budget."""
        try:
            return self._contained(writer, reader)
        except (Undecided, Irregular):
            self._depth = 0
            self._assumed.clear()
            return False

    def _contained(self, writer: Conjunction, reader: Conjunction) -> bool:
        reader = tuple(schema for schema in reader if schema is not True)
        if not reader or False in writer:
            return True
        if all(self._among(schema, writer) for schema in reader):
            return True
        goal = key_of(writer), key_of(reader)
        # What is being proved further out may be assumed: between it and here lies a part of the
        # document, so that the induction is on a smaller one.
        if goal in self._assumed:
            return True
        if goal in self._failed:
            return False
        self._budget.spend(10)
        if self._depth >= MAX_DEPTH:
            raise Undecided("the schemas are nested too deeply")
        before = len(self._assumed)
        self._assumed[goal] = None
        self._depth += 1
        found = self._contained_by_cases(writer, reader)
        self._depth -= 1
        if found:
            return True
        while len(self._assumed) > before:  # what was proved with its help is not proved
            self._assumed.popitem()
        self._failed.add(goal)
        return False

    def _among(self, schema: Schema, schemas: Conjunction) -> bool:
        return any(is_same(schema, other) for other in schemas)

    def _contained_by_cases(self, writer: Conjunction, reader: Conjunction) -> bool:
        mine = self._flattener.alternatives(writer)
        try:
            theirs = [
                alternative
                for alternative in self._flattener.alternatives(reader)
                if alternative.exact
            ]
        except TooMany:
            theirs = []
        return all(
            self._covered(replace(alternative, types=frozenset({kind})), theirs, reader, MAX_SPLITS)
            for alternative in mine
            for kind in sorted(alternative.types)
        )

    def _covered(
        self,
        alternative: Alternative,
        theirs: Sequence[Alternative],
        reader: Conjunction,
        splits: int,
    ) -> bool:
        """Whether one alternative of one type is within the reader's alternatives."""
        self._budget.spend(10)
        if self._impossible(alternative):
            return True
        values = finite(alternative)
        if values is None and alternative.types == {"object"}:
            values = self._finite_objects(alternative)
        if values is not None:
            accepted = self._check(reader)
            return all(accepted(value) for value in values)
        theirs = [
            other
            for other in theirs
            if alternative.types <= other.types
            and not (alternative.types == {"object"} and excludes(other, alternative))
        ]
        if any(self._within(alternative, other) for other in theirs):
            return True
        return (
            splits > 0
            and len(theirs) > 1
            and any(
                all(self._covered(part, theirs, reader, splits - 1) for part in parts)
                for parts in self._splits(alternative, theirs)
            )
        )

    def _finite_objects(self, alternative: Alternative) -> list[Any] | None:
        """All objects of an alternative, and perhaps some more, when they are few."""
        if alternative.by_pattern or not any(
            others.schema is False for others in alternative.others
        ):
            return None
        if len(alternative.properties) > 6:
            return None
        made: list[dict[str, Any]] = [{}]
        for name in alternative.properties:
            values = finite_of(self._flattener.alternatives(alternative.of(name, matches)))
            if values is None or len(made) * (len(values) + 1) > 64:
                return None
            without = [] if name in alternative.required else made
            made = [*without, *({**one, name: value} for one in made for value in values)]
        return list(made)

    def _check(self, schemas: Conjunction) -> Check:
        key = key_of(schemas)
        if key not in self._checks:
            whole = {"allOf": list(schemas), "$defs": dict(self._flattener.definitions)}
            self._checks[key] = validator(whole, "2020")
        return self._checks[key]

    def _impossible(self, alternative: Alternative) -> bool:
        """Whether a required part of it can never be."""
        if alternative.types == {"object"}:
            possible = self._possible(alternative)
            return (possible is not None and possible < alternative.min_properties) or any(
                not self._flattener.alternatives(alternative.of(name, matches))
                for name in sorted(alternative.required)
            )
        if alternative.types == {"string"} and (alternative.patterns or alternative.no_patterns):
            return no_text(alternative, [], self._budget)
        return False

    def _splits(
        self, alternative: Alternative, theirs: Sequence[Alternative]
    ) -> Iterable[list[Alternative]]:
        """Ways to tell cases apart, of which each may be within another alternative."""
        [kind] = alternative.types
        if kind == "object":
            yield from self._splits_by_field(alternative, theirs)
        elif kind in ("integer", "fraction"):
            points = {b for t in theirs for b in (t.low, t.high) if b is not None}
            for point in sorted(points):
                yield [
                    replace(alternative, high=_lesser(alternative.high, point), high_open=False),
                    replace(alternative, low=_greater(alternative.low, point), low_open=False),
                ]
                if kind == "integer":
                    edge = int(point // 1)
                    yield [
                        replace(alternative, high=_lesser(alternative.high, edge), high_open=False),
                        replace(
                            alternative, low=_greater(alternative.low, edge + 1), low_open=False
                        ),
                    ]
        elif kind == "string":
            lengths = {t.min_length for t in theirs}
            lengths |= {t.max_length + 1 for t in theirs if t.max_length is not None}
            for length in sorted(lengths):
                if alternative.min_length < length and (
                    alternative.max_length is None or length <= alternative.max_length
                ):
                    yield [
                        replace(alternative, max_length=length - 1),
                        replace(alternative, min_length=length),
                    ]
        elif kind == "array":
            lengths = {t.min_items for t in theirs}
            lengths |= {t.max_items + 1 for t in theirs if t.max_items is not None}
            for length in sorted(lengths):
                if alternative.min_items < length and (
                    alternative.max_items is None or length <= alternative.max_items
                ):
                    yield [
                        replace(alternative, max_items=length - 1),
                        replace(alternative, min_items=length),
                    ]

    def _splits_by_field(
        self, alternative: Alternative, theirs: Sequence[Alternative]
    ) -> Iterable[list[Alternative]]:
        names = [
            name
            for name in dict.fromkeys(
                name for other in theirs for name in (*sorted(other.required), *other.properties)
            )
            if any(_says(other, name) != _says(theirs[0], name) for other in theirs)
        ]
        for name in names:
            held = alternative.of(name, matches)
            if name in alternative.required:
                alternatives = self._flattener.alternatives(held)
                parts = [part for one in alternatives for part in _parts(one)]
                if 1 < len(parts) <= 40:
                    yield [self._holding(alternative, name, part) for part in parts]
            else:
                present = replace(alternative, required=alternative.required | {name})
                absent = dict(alternative.properties)
                absent[name] = (False,)
                yield [replace(alternative, properties=absent), present]

    def _holding(self, alternative: Alternative, name: str, part: Schema) -> Alternative:
        properties = dict(alternative.properties)
        properties[name] = (part, *properties.get(name, ()))
        return replace(alternative, properties=properties)

    # One alternative within another, keyword by keyword

    def _within(self, alternative: Alternative, other: Alternative) -> bool:
        [kind] = alternative.types
        self._budget.spend(2)
        if kind not in other.types:
            return False
        if other.values is not None and not (
            kind == "string" and no_text(alternative, [spelled(other.values)], self._budget)
        ):
            return False
        if any(not self._excludes(alternative, value) for value in other.excluded):
            return False
        if kind in ("integer", "fraction"):
            return number_within(alternative, other, kind)
        if kind == "string":
            return text_within(alternative, other, self._budget)
        if kind == "array":
            return self._list_within(alternative, other)
        return kind != "object" or self._object_within(alternative, other)

    def _excludes(self, alternative: Alternative, value: Any) -> bool:
        """Whether a value is surely none of the alternative's."""
        [kind] = alternative.types
        if type_of(value) != kind or any(same(value, other) for other in alternative.excluded):
            return True
        if kind == "string":
            return (
                len(value) < alternative.min_length
                or (alternative.max_length is not None and len(value) > alternative.max_length)
                or any(not matches(pattern, value) for pattern in alternative.patterns)
                or any(matches(pattern, value) for pattern in alternative.no_patterns)
            )
        if kind in ("integer", "fraction"):
            return not in_bounds(alternative, value)
        return False

    def _list_within(self, alternative: Alternative, other: Alternative) -> bool:
        if alternative.min_items < other.min_items and not self._contains_enough(
            alternative, other.min_items
        ):
            return False
        if other.max_items is not None and (
            alternative.max_items is None or alternative.max_items > other.max_items
        ):
            longest = self._longest(alternative)
            if longest is None or longest > other.max_items:
                return False
        if (
            other.unique
            and not alternative.unique
            and (alternative.max_items is None or alternative.max_items > 1)
        ):
            return False
        if any(not self._contains(alternative, contains) for contains in other.contains):
            return False
        first = max((len(f) for one in (alternative, other) for f, _ in one.lists), default=0)
        places = range(first + 1)
        if alternative.max_items is not None:
            places = range(min(first + 1, alternative.max_items))
        for place in places:
            if any(False in alternative.at(earlier) for earlier in range(place + 1)):
                break  # there is no entry here
            if not self._contained(alternative.at(place), other.at(place)):
                return False
        return True

    def _contains_enough(self, alternative: Alternative, least: int) -> bool:
        return any(contains.least >= least for contains in alternative.contains)

    def _longest(self, alternative: Alternative) -> int | None:
        """How many entries a list can have that may not repeat them, or has an end."""
        first = max((len(f) for f, _ in alternative.lists), default=0)
        for place in range(first + 1):
            if False in alternative.at(place):
                return place
        if alternative.unique and not first:
            values = finite_of(self._flattener.alternatives(alternative.at(0)))
            return None if values is None else len(values)
        return None

    def _contains(self, alternative: Alternative, asked: Contains) -> bool:
        """Whether enough entries are of a schema, and not too many."""
        enough = asked.least == 0 or any(
            given.least >= asked.least and self._contained((given.schema,), (asked.schema,))
            for given in alternative.contains
        )
        if not enough and alternative.min_items >= asked.least:
            first = max((len(f) for f, _ in alternative.lists), default=0)
            sure = sum(
                self._contained(alternative.at(place), (asked.schema,))
                for place in range(min(first + 1, alternative.min_items))
            )
            rest = max(0, alternative.min_items - first - 1)
            held = self._contained(alternative.at(first), (asked.schema,))
            enough = sure + (rest if held else 0) >= asked.least
        few = (
            asked.most is None
            or (alternative.max_items is not None and alternative.max_items <= asked.most)
            or any(
                given.most is not None
                and given.most <= asked.most
                and self._among(asked.schema, (given.schema,))
                for given in alternative.contains
            )
            or self._seldom(alternative, asked)
        )
        return enough and few

    def _seldom(self, alternative: Alternative, asked: Contains) -> bool:
        """Whether too few entries can be of a schema, whatever their number."""
        if asked.most is None:
            return False
        first = max((len(f) for f, _ in alternative.lists), default=0)
        possible = [
            bool(self._flattener.alternatives((*alternative.at(place), asked.schema)))
            for place in range(first + 1)
        ]
        return not possible[-1] and sum(possible) <= asked.most

    def _object_within(self, alternative: Alternative, other: Alternative) -> bool:
        if not other.required <= alternative.required:
            return False
        least = max(alternative.min_properties, len(alternative.required))
        if least < other.min_properties:
            return False
        if alternative.max_properties == 0:
            return True
        if other.max_properties is not None and not self._few(alternative, other.max_properties):
            return False
        names = dict.fromkeys(
            [*alternative.properties, *other.properties, *sorted(alternative.required)]
        )
        self._budget.spend(len(names))
        named = {name for o in (*alternative.others, *other.others) for name in o.names}
        for name in dict.fromkeys([*names, *sorted(named)]):
            mine = alternative.of(name, matches)
            if not self._contained(mine, other.of(name, matches)):
                return False
            if other.names and not self._name_within(alternative, name, other):
                return False
        return self._others_within(alternative, other) and self._names_within(alternative, other)

    def _few(self, alternative: Alternative, most: int) -> bool:
        if alternative.max_properties is not None and alternative.max_properties <= most:
            return True
        possible = self._possible(alternative)
        return possible is not None and possible <= most

    def _possible(self, alternative: Alternative) -> int | None:
        """How many fields an object can have, where no others than the named ones may be."""
        if (
            not any(others.schema is False for others in alternative.others)
            or alternative.by_pattern
        ):
            return None
        return sum(False not in alternative.of(name, matches) for name in alternative.properties)

    def _name_within(self, alternative: Alternative, name: str, other: Alternative) -> bool:
        if False in alternative.of(name, matches):
            return True
        if all(self._among(schema, alternative.names) for schema in other.names):
            return True
        accepted = self._check(other.names)
        refused = alternative.names and not self._check(alternative.names)(name)
        return bool(refused or accepted(name))

    def _others_within(self, alternative: Alternative, other: Alternative) -> bool:
        """Names that neither mentions: those of patterns, and all the rest."""
        for pattern, schema in other.by_pattern:
            for mine, given in self._classes(alternative):
                if mine is not None and never_both(mine, pattern, self._budget):
                    continue
                if not self._contained(self._sure(alternative, pattern, mine, given), (schema,)):
                    return False
        for others in other.others:
            for mine, given in self._classes(alternative):
                if mine is not None and any(
                    implies(mine, known, self._budget) for known in others.patterns
                ):
                    continue
                if not self._contained(
                    self._sure(alternative, mine, mine, given), (others.schema,)
                ):
                    return False
        return True

    def _classes(self, alternative: Alternative) -> list[tuple[str | None, Conjunction]]:
        """The kinds of names that are not spelled out: of each pattern, and the rest, with what
        their values are surely held to."""
        classes: list[tuple[str | None, Conjunction]] = [
            (pattern, (schema,)) for pattern, schema in alternative.by_pattern
        ]
        rest = tuple(others.schema for others in alternative.others)
        if False not in rest:
            classes.append((None, rest))
        return classes

    def _sure(
        self, alternative: Alternative, pattern: str | None, mine: str | None, given: Conjunction
    ) -> Conjunction:
        """What the value of a name of this class is held to, that also matches the pattern."""
        if pattern is None:
            return given
        implied = [
            known for known, _ in alternative.by_pattern if implies(pattern, known, self._budget)
        ]
        if mine is None and implied:
            return (False,)  # such a name is of that class, and not of the rest
        return given + tuple(s for known, s in alternative.by_pattern if known in implied)

    def _names_within(self, alternative: Alternative, other: Alternative) -> bool:
        if not other.names:
            return True
        text: Schema = {"type": "string"}
        for mine, _ in self._classes(alternative):
            held: Conjunction = (text, *alternative.names)
            if mine is not None:
                held = (*held, {"pattern": mine})
            if not self._contained(held, other.names):
                return False
        return True


def _says(alternative: Alternative, name: str) -> Any:
    return name in alternative.required, alternative.properties.get(name)


def _parts(alternative: Alternative) -> list[Schema]:
    """A finite alternative as constants, any other by its type."""
    values = finite(alternative)
    if values is not None:
        return [{"const": value} for value in values]
    whole = {"integer": {"type": "integer"}, "fraction": {"type": "number"}}
    return [whole.get(kind, {"type": kind}) for kind in sorted(alternative.types)]


def _lesser(bound: Any, point: Any) -> Any:
    return point if bound is None else min(bound, point)


def _greater(bound: Any, point: Any) -> Any:
    return point if bound is None else max(bound, point)
