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
from eventmesh.compat.schema.alternatives import Flattener, TooMany
from eventmesh.compat.schema.flat import Contains, Flat, excludes
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
            theirs = [flat for flat in self._flattener.alternatives(reader) if flat.exact]
        except TooMany:
            theirs = []
        return all(
            self._covered(replace(flat, types=frozenset({kind})), theirs, reader, MAX_SPLITS)
            for flat in mine
            for kind in sorted(flat.types)
        )

    def _covered(
        self, flat: Flat, theirs: Sequence[Flat], reader: Conjunction, splits: int
    ) -> bool:
        """Whether one alternative of one type is within the reader's alternatives."""
        self._budget.spend(10)
        if self._impossible(flat):
            return True
        values = finite(flat)
        if values is None and flat.types == {"object"}:
            values = self._finite_objects(flat)
        if values is not None:
            accepted = self._check(reader)
            return all(accepted(value) for value in values)
        theirs = [
            other
            for other in theirs
            if flat.types <= other.types
            and not (flat.types == {"object"} and excludes(other, flat))
        ]
        if any(self._within(flat, other) for other in theirs):
            return True
        return (
            splits > 0
            and len(theirs) > 1
            and any(
                all(self._covered(part, theirs, reader, splits - 1) for part in parts)
                for parts in self._splits(flat, theirs)
            )
        )

    def _finite_objects(self, flat: Flat) -> list[Any] | None:
        """All objects of an alternative, and perhaps some more, when they are few."""
        if flat.by_pattern or not any(others.schema is False for others in flat.others):
            return None
        if len(flat.properties) > 6:
            return None
        made: list[dict[str, Any]] = [{}]
        for name in flat.properties:
            values = finite_of(self._flattener.alternatives(flat.of(name, matches)))
            if values is None or len(made) * (len(values) + 1) > 64:
                return None
            without = [] if name in flat.required else made
            made = [*without, *({**one, name: value} for one in made for value in values)]
        return list(made)

    def _check(self, schemas: Conjunction) -> Check:
        key = key_of(schemas)
        if key not in self._checks:
            whole = {"allOf": list(schemas), "$defs": dict(self._flattener.definitions)}
            self._checks[key] = validator(whole, "2020")
        return self._checks[key]

    def _impossible(self, flat: Flat) -> bool:
        """Whether a required part of it can never be."""
        if flat.types == {"object"}:
            possible = self._possible(flat)
            return (possible is not None and possible < flat.min_properties) or any(
                not self._flattener.alternatives(flat.of(name, matches))
                for name in sorted(flat.required)
            )
        if flat.types == {"string"} and (flat.patterns or flat.no_patterns):
            return no_text(flat, [], self._budget)
        return False

    def _splits(self, flat: Flat, theirs: Sequence[Flat]) -> Iterable[list[Flat]]:
        """Ways to tell cases apart, of which each may be within another alternative."""
        [kind] = flat.types
        if kind == "object":
            yield from self._splits_by_field(flat, theirs)
        elif kind in ("integer", "fraction"):
            points = {b for t in theirs for b in (t.low, t.high) if b is not None}
            for point in sorted(points):
                yield [
                    replace(flat, high=_lesser(flat.high, point), high_open=False),
                    replace(flat, low=_greater(flat.low, point), low_open=False),
                ]
                if kind == "integer":
                    edge = int(point // 1)
                    yield [
                        replace(flat, high=_lesser(flat.high, edge), high_open=False),
                        replace(flat, low=_greater(flat.low, edge + 1), low_open=False),
                    ]
        elif kind == "string":
            lengths = {t.min_length for t in theirs}
            lengths |= {t.max_length + 1 for t in theirs if t.max_length is not None}
            for length in sorted(lengths):
                if flat.min_length < length and (
                    flat.max_length is None or length <= flat.max_length
                ):
                    yield [
                        replace(flat, max_length=length - 1), replace(flat, min_length=length)
                    ]  # fmt: skip
        elif kind == "array":
            lengths = {t.min_items for t in theirs}
            lengths |= {t.max_items + 1 for t in theirs if t.max_items is not None}
            for length in sorted(lengths):
                if flat.min_items < length and (flat.max_items is None or length <= flat.max_items):
                    yield [replace(flat, max_items=length - 1), replace(flat, min_items=length)]

    def _splits_by_field(self, flat: Flat, theirs: Sequence[Flat]) -> Iterable[list[Flat]]:
        names = [
            name
            for name in dict.fromkeys(
                name for other in theirs for name in (*sorted(other.required), *other.properties)
            )
            if any(_says(other, name) != _says(theirs[0], name) for other in theirs)
        ]
        for name in names:
            held = flat.of(name, matches)
            if name in flat.required:
                alternatives = self._flattener.alternatives(held)
                parts = [part for one in alternatives for part in _parts(one)]
                if 1 < len(parts) <= 40:
                    yield [self._holding(flat, name, part) for part in parts]
            else:
                present = replace(flat, required=flat.required | {name})
                absent = dict(flat.properties)
                absent[name] = (False,)
                yield [replace(flat, properties=absent), present]

    def _holding(self, flat: Flat, name: str, part: Schema) -> Flat:
        properties = dict(flat.properties)
        properties[name] = (part, *properties.get(name, ()))
        return replace(flat, properties=properties)

    # One alternative within another, keyword by keyword

    def _within(self, flat: Flat, other: Flat) -> bool:
        [kind] = flat.types
        self._budget.spend(2)
        if kind not in other.types:
            return False
        if other.values is not None and not (
            kind == "string" and no_text(flat, [spelled(other.values)], self._budget)
        ):
            return False
        if any(not self._bars(flat, value) for value in other.barred):
            return False
        if kind in ("integer", "fraction"):
            return number_within(flat, other, kind)
        if kind == "string":
            return text_within(flat, other, self._budget)
        if kind == "array":
            return self._list_within(flat, other)
        return kind != "object" or self._object_within(flat, other)

    def _bars(self, flat: Flat, value: Any) -> bool:
        """Whether a value is surely none of the alternative's."""
        [kind] = flat.types
        if type_of(value) != kind or any(same(value, barred) for barred in flat.barred):
            return True
        if kind == "string":
            return (
                len(value) < flat.min_length
                or (flat.max_length is not None and len(value) > flat.max_length)
                or any(not matches(pattern, value) for pattern in flat.patterns)
                or any(matches(pattern, value) for pattern in flat.no_patterns)
            )
        if kind in ("integer", "fraction"):
            return not in_bounds(flat, value)
        return False

    def _list_within(self, flat: Flat, other: Flat) -> bool:
        if flat.min_items < other.min_items and not self._contains_enough(flat, other.min_items):
            return False
        if other.max_items is not None and (
            flat.max_items is None or flat.max_items > other.max_items
        ):
            longest = self._longest(flat)
            if longest is None or longest > other.max_items:
                return False
        if other.unique and not flat.unique and (flat.max_items is None or flat.max_items > 1):
            return False
        if any(not self._contains(flat, contains) for contains in other.contains):
            return False
        first = max((len(f) for one in (flat, other) for f, _ in one.lists), default=0)
        places = range(first + 1)
        if flat.max_items is not None:
            places = range(min(first + 1, flat.max_items))
        for place in places:
            if any(False in flat.at(earlier) for earlier in range(place + 1)):
                break  # there is no entry here
            if not self._contained(flat.at(place), other.at(place)):
                return False
        return True

    def _contains_enough(self, flat: Flat, least: int) -> bool:
        return any(contains.least >= least for contains in flat.contains)

    def _longest(self, flat: Flat) -> int | None:
        """How many entries a list can have that may not repeat them, or has an end."""
        first = max((len(f) for f, _ in flat.lists), default=0)
        for place in range(first + 1):
            if False in flat.at(place):
                return place
        if flat.unique and not first:
            values = finite_of(self._flattener.alternatives(flat.at(0)))
            return None if values is None else len(values)
        return None

    def _contains(self, flat: Flat, asked: Contains) -> bool:
        """Whether enough entries are of a schema, and not too many."""
        enough = asked.least == 0 or any(
            given.least >= asked.least and self._contained((given.schema,), (asked.schema,))
            for given in flat.contains
        )
        if not enough and flat.min_items >= asked.least:
            first = max((len(f) for f, _ in flat.lists), default=0)
            sure = sum(
                self._contained(flat.at(place), (asked.schema,))
                for place in range(min(first + 1, flat.min_items))
            )
            rest = max(0, flat.min_items - first - 1)
            held = self._contained(flat.at(first), (asked.schema,))
            enough = sure + (rest if held else 0) >= asked.least
        few = (
            asked.most is None
            or (flat.max_items is not None and flat.max_items <= asked.most)
            or any(
                given.most is not None
                and given.most <= asked.most
                and self._among(asked.schema, (given.schema,))
                for given in flat.contains
            )
            or self._seldom(flat, asked)
        )
        return enough and few

    def _seldom(self, flat: Flat, asked: Contains) -> bool:
        """Whether too few entries can be of a schema, whatever their number."""
        if asked.most is None:
            return False
        first = max((len(f) for f, _ in flat.lists), default=0)
        possible = [
            bool(self._flattener.alternatives((*flat.at(place), asked.schema)))
            for place in range(first + 1)
        ]
        return not possible[-1] and sum(possible) <= asked.most

    def _object_within(self, flat: Flat, other: Flat) -> bool:
        if not other.required <= flat.required:
            return False
        least = max(flat.min_properties, len(flat.required))
        if least < other.min_properties:
            return False
        if flat.max_properties == 0:
            return True
        if other.max_properties is not None and not self._few(flat, other.max_properties):
            return False
        names = dict.fromkeys([*flat.properties, *other.properties, *sorted(flat.required)])
        self._budget.spend(len(names))
        named = {name for o in (*flat.others, *other.others) for name in o.names}
        for name in dict.fromkeys([*names, *sorted(named)]):
            mine = flat.of(name, matches)
            if not self._contained(mine, other.of(name, matches)):
                return False
            if other.names and not self._name_within(flat, name, other):
                return False
        return self._others_within(flat, other) and self._names_within(flat, other)

    def _few(self, flat: Flat, most: int) -> bool:
        if flat.max_properties is not None and flat.max_properties <= most:
            return True
        possible = self._possible(flat)
        return possible is not None and possible <= most

    def _possible(self, flat: Flat) -> int | None:
        """How many fields an object can have, where no others than the named ones may be."""
        if not any(others.schema is False for others in flat.others) or flat.by_pattern:
            return None
        return sum(False not in flat.of(name, matches) for name in flat.properties)

    def _name_within(self, flat: Flat, name: str, other: Flat) -> bool:
        if False in flat.of(name, matches):
            return True
        if all(self._among(schema, flat.names) for schema in other.names):
            return True
        accepted = self._check(other.names)
        refused = flat.names and not self._check(flat.names)(name)
        return bool(refused or accepted(name))

    def _others_within(self, flat: Flat, other: Flat) -> bool:
        """Names that neither mentions: those of patterns, and all the rest."""
        for pattern, schema in other.by_pattern:
            for mine, given in self._classes(flat):
                if mine is not None and never_both(mine, pattern, self._budget):
                    continue
                if not self._contained(self._sure(flat, pattern, mine, given), (schema,)):
                    return False
        for others in other.others:
            for mine, given in self._classes(flat):
                if mine is not None and any(
                    implies(mine, known, self._budget) for known in others.patterns
                ):
                    continue
                if not self._contained(self._sure(flat, mine, mine, given), (others.schema,)):
                    return False
        return True

    def _classes(self, flat: Flat) -> list[tuple[str | None, Conjunction]]:
        """The kinds of names that are not spelled out: of each pattern, and the rest, with what
        their values are surely held to."""
        classes: list[tuple[str | None, Conjunction]] = [
            (pattern, (schema,)) for pattern, schema in flat.by_pattern
        ]
        rest = tuple(others.schema for others in flat.others)
        if False not in rest:
            classes.append((None, rest))
        return classes

    def _sure(
        self, flat: Flat, pattern: str | None, mine: str | None, given: Conjunction
    ) -> Conjunction:
        """What the value of a name of this class is held to, that also matches the pattern."""
        if pattern is None:
            return given
        implied = [known for known, _ in flat.by_pattern if implies(pattern, known, self._budget)]
        if mine is None and implied:
            return (False,)  # such a name is of that class, and not of the rest
        return given + tuple(s for known, s in flat.by_pattern if known in implied)

    def _names_within(self, flat: Flat, other: Flat) -> bool:
        if not other.names:
            return True
        text: Schema = {"type": "string"}
        for mine, _ in self._classes(flat):
            held: Conjunction = (text, *flat.names)
            if mine is not None:
                held = (*held, {"pattern": mine})
            if not self._contained(held, other.names):
                return False
        return True


def _says(flat: Flat, name: str) -> Any:
    return name in flat.required, flat.properties.get(name)


def _parts(flat: Flat) -> list[Schema]:
    """A finite alternative as constants, any other by its type."""
    values = finite(flat)
    if values is not None:
        return [{"const": value} for value in values]
    whole = {"integer": {"type": "integer"}, "fraction": {"type": "number"}}
    return [whole.get(kind, {"type": kind}) for kind in sorted(flat.types)]


def _lesser(bound: Any, point: Any) -> Any:
    return point if bound is None else min(bound, point)


def _greater(bound: Any, point: Any) -> Any:
    return point if bound is None else max(bound, point)
