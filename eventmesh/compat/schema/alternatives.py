"""A schema as alternatives, each a plain conjunction: what documents are made of, and proofs too.

`Flattener` resolves references, allOf, anyOf, oneOf, conditions, dependencies and negations. An
alternative may say less than the schema does (`exact` is then false), and never more: together they
accept at least what the schema accepts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from copy import copy
from typing import Any

from eventmesh.compat.budget import StepBudget, Unproved
from eventmesh.compat.schema.flat import Flat, closed
from eventmesh.compat.schema.narrowing import FAILING, FAILS, narrow
from eventmesh.compat.schema.reading import Schema
from eventmesh.compat.schema.values import TYPES, same, type_of, types_of

MAX_ALTERNATIVES = 96
MAX_STEPS = 4_000


class TooMany(Unproved):
    """The schema has more alternatives than are looked at."""


Choice = list[tuple[Schema, bool]]


class Flattener:
    """Flattens schemas of one document, whose definitions it knows."""

    def __init__(self, definitions: Mapping[str, Schema], budget: StepBudget) -> None:
        self.definitions = definitions
        self._budget = budget
        self._steps = 0

    def alternatives(self, schemas: Sequence[Schema]) -> list[Flat]:
        """What it takes to be of all these schemas; none when that is impossible. TooMany."""
        found: list[Flat] = []
        self._steps = 0
        for flat in self._grow(Flat(), [(schema, True) for schema in schemas], frozenset()):
            if flat.types:
                found.append(flat)
                if len(found) > MAX_ALTERNATIVES:
                    raise TooMany("it has too many alternatives")
        return found

    def some(self, schemas: Sequence[Schema]) -> list[Flat]:
        """As many alternatives as are looked at, for making documents."""
        found: list[Flat] = []
        self._steps = 0
        with suppress(TooMany):
            for flat in self._grow(Flat(), [(schema, True) for schema in schemas], frozenset()):
                if flat.types:
                    found.append(flat)
                    if len(found) == MAX_ALTERNATIVES:
                        break
        return found

    def _grow(
        self, flat: Flat, ahead: list[tuple[Schema, bool]], seen: frozenset[str]
    ) -> Iterator[Flat]:
        """The alternatives of a conjunction of schemas and, where the flag is false, negations."""
        flat, ahead = copy(flat), list(ahead)
        while ahead:
            self._steps += 1
            self._budget.spend(4)
            if self._steps > MAX_STEPS:
                raise TooMany("it has too many alternatives")
            if not flat.types:
                return
            schema, positive = ahead.pop(0)
            if isinstance(schema, bool):
                if schema is not positive:
                    return
                continue
            reference = schema.get("$ref")
            if isinstance(reference, str):
                if reference in seen:
                    flat.exact = False  # it is asked about itself: nothing is learnt
                    continue
                seen |= {reference}
                target = self.definitions[reference.removeprefix("#/$defs/")]
                ahead.insert(0, (target, positive))
                continue
            choices = _choices(schema) if positive else _negations(schema, flat)
            if choices is None:
                continue
            if positive:
                narrow(flat, schema)
            for choice in choices[:-1] if len(choices) > 1 else []:
                yield from self._grow(flat, [*choice, *ahead], seen)
            if not choices:
                return
            ahead = [*choices[-1], *ahead]
        yield closed(flat)


def _choices(schema: Mapping[str, Any]) -> list[Choice]:
    """What else a schema asks for than its plain keywords: alternatives of conjunctions."""
    choices: list[Choice] = [[]]

    def split(further: list[Choice]) -> None:
        nonlocal choices
        if len(choices) * len(further) > MAX_ALTERNATIVES:
            raise TooMany("it has too many alternatives")
        choices = [[*one, *other] for one in choices for other in further]

    for part in schema.get("allOf", ()):
        split([[(part, True)]])
    if "not" in schema:
        split([[(schema["not"], False)]])
    if "anyOf" in schema:
        split([[(part, True)] for part in schema["anyOf"]])
    if "oneOf" in schema:
        split(_just_one(schema["oneOf"]))
    if "if" in schema:
        condition = schema["if"]
        split(
            [
                [(condition, True), (schema.get("then", True), True)],
                [(condition, False), (schema.get("else", True), True)],
            ]
        )
    for name, needed in schema.get("dependentRequired", {}).items():
        if needed:
            split([_absent(name), [({"required": [name, *needed]}, True)], _no_object()])
    for name, further in schema.get("dependentSchemas", {}).items():
        present: Choice = [({"required": [name], "type": "object"}, True), (further, True)]
        split([_absent(name), present, _no_object()])
    return choices


def _just_one(branches: Sequence[Schema]) -> list[Choice]:
    if disjoint(branches):
        return [[(branch, True)] for branch in branches]
    return [
        [(branch, number == place) for number, branch in enumerate(branches)]
        for place in range(len(branches))
    ]


def _absent(name: str) -> Choice:
    return [({"type": "object", "properties": {name: False}}, True)]


def _no_object() -> Choice:
    return [({"type": "object"}, False)]


def _negations(schema: Mapping[str, Any], flat: Flat) -> list[Choice] | None:
    """The ways not to be of a schema, one for each keyword; None when nothing is learnt."""
    choices: list[Choice] = []
    for keyword, value in schema.items():
        if keyword == "$defs" or (
            keyword in ("then", "else") or keyword in ("minContains", "maxContains")
        ):
            continue
        ways = _ways_to_fail(keyword, value, schema)
        if ways is None:
            flat.exact = False
            return None
        choices.extend(ways)
    return choices


def _ways_to_fail(keyword: str, value: Any, schema: Mapping[str, Any]) -> list[Choice] | None:
    if keyword in ("allOf",):
        return [[(part, False)] for part in value]
    if keyword == "anyOf":
        return [[(part, False) for part in value]]
    if keyword == "not":
        return [[(value, True)]]
    if keyword == "if":
        return [
            [(value, True), (schema.get("then", True), False)],
            [(value, False), (schema.get("else", True), False)],
        ]
    if keyword == "required":
        return [_absent(name) for name in value]
    if keyword == "properties":
        return [
            [({"type": "object", "required": [name]}, True),
             ({"type": "object", "properties": {name: {"not": part}}}, True)]
            for name, part in value.items() if part is not True
        ]  # fmt: skip
    if keyword in FAILING:
        return [[({FAILS: {keyword: value}}, True)]]
    return None


def disjoint(branches: Sequence[Schema]) -> bool:
    """Whether no value is of two of these schemas, as far as a look at types and tags tells."""
    looks = [_look(branch) for branch in branches]
    return all(
        _apart(one, other) for place, one in enumerate(looks) for other in looks[place + 1 :]
    )


def _look(schema: Schema) -> tuple[frozenset[str], Mapping[str, list[Any]]] | None:
    if not isinstance(schema, dict):
        return None
    types = frozenset(TYPES)
    if "type" in schema:
        types = types_of(schema["type"])
    for value in (schema.get("enum"), [schema["const"]] if "const" in schema else None):
        if value is not None:
            types &= {type_of(one) for one in value}
    tags: dict[str, list[Any]] = {"": schema["enum"]} if "enum" in schema else {}
    if "const" in schema:
        tags[""] = [schema["const"]]
    for name in schema.get("required", ()):
        part = schema.get("properties", {}).get(name)
        if isinstance(part, dict) and "const" in part:
            tags["." + name] = [part["const"]]
        elif isinstance(part, dict) and "enum" in part:
            tags["." + name] = part["enum"]
    return types, tags


def _apart(one: Any, other: Any) -> bool:
    if one is None or other is None:
        return False
    shared = one[0] & other[0]
    if not shared:
        return True
    for name in one[1].keys() & other[1].keys():
        if (not name or shared == {"object"}) and not any(
            same(a, b) for a in one[1][name] for b in other[1][name]
        ):
            return True
    return False
