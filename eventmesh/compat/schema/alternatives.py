"""A schema as alternatives, each a plain conjunction: what documents are made of, and proofs too.

`Flattener` resolves references, allOf, anyOf, oneOf, conditions, dependencies and negations. An
alternative may say less than the schema does (`exact` is then false), and never more: together they
accept at least what the schema accepts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import dataclass, field
from typing import Any

from eventmesh.compat.budget import StepBudget, Undecided
from eventmesh.compat.schema.alternative import Alternative, closed
from eventmesh.compat.schema.narrowing import FAILING, FAILS, narrow
from eventmesh.compat.schema.reading import Schema
from eventmesh.compat.schema.shared import is_part, key_of
from eventmesh.compat.schema.values import TYPES, same, type_of, types_of

MAX_ALTERNATIVES = 96
MAX_STEPS = 4_000
MAX_BRANCHES = 40
MAX_LOOKS = 6
"""References and fields that are followed to see whether branches are apart."""


class TooMany(Undecided):
    """The schema has more alternatives than are looked at."""


Choice = list[tuple[Schema, bool]]
Definitions = Mapping[str, Schema]


class Flattener:
    """Flattens schemas of one document, whose definitions it knows."""

    def __init__(self, definitions: Mapping[str, Schema], budget: StepBudget) -> None:
        self.definitions = definitions
        self._budget = budget
        self._steps = 0
        self._known: dict[Any, list[Alternative] | None] = {}

    def alternatives(self, schemas: Sequence[Schema]) -> list[Alternative]:
        """What it takes to be of all these schemas; none when that is impossible. TooMany."""
        key = key_of(schemas) if all(map(is_part, schemas)) else None
        if key is None or key not in self._known:
            found = self._found(schemas)
            if key is None:
                return self._few(found)
            self._known[key] = found
        return self._few(self._known[key])

    def _few(self, found: list[Alternative] | None) -> list[Alternative]:
        if found is None:
            raise TooMany("it has too many alternatives")
        return found

    def _found(self, schemas: Sequence[Schema]) -> list[Alternative] | None:
        found: list[Alternative] = []
        self._steps = 0
        try:
            for alternative in self._grow(
                Alternative(), [(schema, True) for schema in schemas], frozenset()
            ):
                if alternative.types:
                    found.append(alternative)
                    if len(found) > MAX_ALTERNATIVES:
                        return None
        except TooMany:
            return None
        return found

    def some(self, schemas: Sequence[Schema]) -> list[Alternative]:
        """As many alternatives as are looked at, for making documents."""
        found: list[Alternative] = []
        self._steps = 0
        with suppress(TooMany):
            for alternative in self._grow(
                Alternative(), [(schema, True) for schema in schemas], frozenset()
            ):
                if alternative.types:
                    found.append(alternative)
                    if len(found) == MAX_ALTERNATIVES:
                        break
        return found

    def _grow(
        self, alternative: Alternative, ahead: list[tuple[Schema, bool]], seen: frozenset[str]
    ) -> Iterator[Alternative]:
        """The alternatives of a conjunction of schemas and, where the flag is false, negations."""
        alternative, ahead = copy(alternative), list(ahead)
        while ahead:
            self._steps += 1
            self._budget.spend(4)
            if self._steps > MAX_STEPS:
                raise TooMany("it has too many alternatives")
            if not alternative.types:
                return
            schema, positive = ahead.pop(0)
            if isinstance(schema, bool):
                if schema is not positive:
                    return
                continue
            reference = schema.get("$ref")
            if isinstance(reference, str):
                if reference in seen:
                    alternative.exact = False  # it is asked about itself: nothing is learnt
                    continue
                seen |= {reference}
                target = self.definitions[reference.removeprefix("#/$defs/")]
                ahead.insert(0, (target, positive))
                continue
            choices = (
                _choices(schema, self.definitions) if positive else _negations(schema, alternative)
            )
            if choices is None:
                continue
            if positive:
                narrow(alternative, schema)
            for choice in choices[:-1] if len(choices) > 1 else []:
                yield from self._grow(alternative, [*choice, *ahead], seen)
            if not choices:
                return
            ahead = [*choices[-1], *ahead]
        yield closed(alternative)


def _choices(schema: Mapping[str, Any], definitions: Definitions) -> list[Choice]:
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
        split(_just_one(schema["oneOf"], definitions))
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


def _just_one(branches: Sequence[Schema], definitions: Definitions) -> list[Choice]:
    """Each branch, without those others that are not known to be apart from it."""
    looks = [_looks(branch, definitions) for branch in branches]
    return [
        [
            (branch, True),
            *(
                (other, False)
                for number, other in enumerate(branches)
                if number != place and not _are_apart(looks[place], looks[number])
            ),
        ]
        for place, branch in enumerate(branches)
    ]


def _absent(name: str) -> Choice:
    return [({"type": "object", "properties": {name: False}}, True)]


def _no_object() -> Choice:
    return [({"type": "object"}, False)]


def _negations(schema: Mapping[str, Any], alternative: Alternative) -> list[Choice] | None:
    """The ways not to be of a schema, one for each keyword; None when nothing is learnt."""
    choices: list[Choice] = []
    for keyword, value in schema.items():
        if keyword == "$defs" or (
            keyword in ("then", "else") or keyword in ("minContains", "maxContains")
        ):
            continue
        ways = _ways_to_fail(keyword, value, schema)
        if ways is None:
            alternative.exact = False
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


def _are_apart(ones: Sequence[Look], others: Sequence[Look]) -> bool:
    """Whether no value is of both schemas, which these are the looks of."""
    return all(one.is_apart_from(other) for one in ones for other in others)


@dataclass(frozen=True, slots=True)
class Look:
    """What is sure of each value of an alternative, as far as a short look tells."""

    types: frozenset[str] = frozenset(TYPES)
    tags: Mapping[str, list[Any]] = field(default_factory=dict)
    """The values allowed as a whole (under "") or for a required field (under "." and its name)."""
    required: frozenset[str] = frozenset()
    named: frozenset[str] | None = None
    """The only fields that there can be, if that is known."""

    def with_all_of(self, other: Look) -> Look:
        named = self.named if other.named is None else other.named
        if self.named is not None and other.named is not None:
            named = self.named & other.named
        return Look(
            self.types & other.types,
            {**self.tags, **other.tags},
            self.required | other.required,
            named,
        )

    def is_apart_from(self, other: Look) -> bool:
        """Whether no value is of both."""
        shared = self.types & other.types
        if not shared:
            return True
        for name in self.tags.keys() & other.tags.keys():
            if (not name or shared == {"object"}) and not any(
                same(a, b) for a in self.tags[name] for b in other.tags[name]
            ):
                return True
        return shared == {"object"} and (
            (other.named is not None and not self.required <= other.named)
            or (self.named is not None and not other.required <= self.named)
        )


def _looks(schema: Schema, definitions: Definitions, depth: int = 0) -> list[Look]:
    looks = [Look()]
    if not isinstance(schema, dict) or depth > MAX_LOOKS:
        return looks
    parts = list(schema.get("allOf", ()))
    if "$ref" in schema:
        parts.append(definitions[schema["$ref"].removeprefix("#/$defs/")])
    choices = [_looks(part, definitions, depth + 1) for part in parts]
    for keyword in ("anyOf", "oneOf"):
        if keyword in schema:
            branches = [_looks(part, definitions, depth + 1) for part in schema[keyword]]
            choices.append([look for found in branches for look in found])
    for found in [[_own_look(schema, definitions)], *choices]:
        if len(looks) * len(found) <= MAX_BRANCHES:  # beyond it, less is known and still true
            looks = [one.with_all_of(other) for one in looks for other in found]
    return looks


def _own_look(schema: dict[str, Any], definitions: Definitions) -> Look:
    types: frozenset[str] = types_of(schema["type"]) if "type" in schema else frozenset(TYPES)
    tags: dict[str, list[Any]] = {}
    values = _values_of(schema, definitions)
    if values is not None:
        types &= {type_of(one) for one in values}
        tags[""] = values
    properties = schema.get("properties", {})
    for name in schema.get("required", ()):
        values = _values_of(properties.get(name, True), definitions)
        if values is not None:
            tags["." + name] = values
    is_closed = schema.get("additionalProperties") is False and "patternProperties" not in schema
    named = frozenset(properties) if is_closed else None
    return Look(types, tags, frozenset(schema.get("required", ())), named)


def _values_of(schema: Schema, definitions: Definitions) -> list[Any] | None:
    for _ in range(MAX_LOOKS):
        if not isinstance(schema, dict):
            return None
        if "const" in schema:
            return [schema["const"]]
        if "enum" in schema:
            return schema["enum"]  # type: ignore[no-any-return]
        if "$ref" not in schema:
            return None
        schema = definitions[schema["$ref"].removeprefix("#/$defs/")]
    return None
