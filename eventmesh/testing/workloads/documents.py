"""Strategies of JSON documents, by the schemas that EventMesh writes of models.

A schema is turned into a strategy from the inside out. Where it refers to itself, as that of a tree
does, it is unrolled a few times: the budget is how often a reference that leads back to itself may
still be followed, and a branch that needs more than is left is not taken.

    Tree = {value, children: [Tree]}    budget 2: {1, [{2, [{3, []}]}]}    budget 0: {3, []}

Keywords that pydantic does not write, such as `not`, are ignored here: whoever uses a document
checks it, and draws another one where it is refused.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

from hypothesis import strategies as st

from eventmesh.compat.schema.pointers import resolve_reference
from eventmesh.testing.workloads.texts import NoTexts, texts

Schema = Mapping[str, Any] | bool

_MOST_REFERENCES = 3
"""How deep a schema that refers to itself is unrolled, unless its smallest document is deeper."""
_MORE_ENTRIES = 5
"""How many entries a list or a dictionary gets beyond its least number."""
_LARGEST = 2**63 - 1
"""The largest integer, unless the schema allows larger ones only: what a database can store."""


class NoDocuments(Exception):
    """No strategy is known for this schema; the message says why."""


class Documents:
    """Makes strategies of the parts of one schema."""

    def __init__(self, root: Schema) -> None:
        self._root = root
        self._known: dict[tuple[str, int], st.SearchStrategy[Any]] = {}
        self._needs = _Needs(root)

    def of(self, schema: Schema) -> st.SearchStrategy[Any]:
        """Documents of a part of the schema. NoDocuments where none is finite, or none is known."""
        needed = self._needs.of(schema)
        if needed == math.inf:
            raise NoDocuments("each of its values would contain another one, without an end")
        try:
            return self._of(schema, max(_MOST_REFERENCES, int(needed)))
        except NoTexts as error:
            raise NoDocuments(str(error)) from None

    def _of(self, schema: Schema, budget: int) -> st.SearchStrategy[Any]:
        if schema is False:
            return st.nothing()
        if schema is True or not schema:
            return _anything()
        if "$ref" in schema:
            return self._referred(schema["$ref"], budget - self._needs.cost(schema["$ref"]))
        if "const" in schema:
            return st.just(schema["const"])
        if "enum" in schema:
            return st.sampled_from(schema["enum"])
        for keyword in ("anyOf", "oneOf"):
            if keyword in schema:
                others = {k: v for k, v in schema.items() if k != keyword}
                return self._one_of([_both(others, each) for each in schema[keyword]], budget)
        if "allOf" in schema:
            merged: Schema = {k: v for k, v in schema.items() if k != "allOf"}
            for part in schema["allOf"]:
                merged = _both(self._resolved(part), merged)
            return self._of(merged, budget)
        kinds = schema.get("type", _kinds(schema))
        if isinstance(kinds, list):
            return self._one_of([{**schema, "type": kind} for kind in kinds], budget)
        match kinds:
            case "null":
                return st.none()
            case "boolean":
                return st.booleans()
            case "integer":
                return _integers(schema)
            case "number":
                return _numbers(schema)
            case "string" if "contentSchema" in schema:
                return self._of(schema["contentSchema"], budget).map(json.dumps)
            case "string":
                return texts(schema)
            case "array":
                return self._arrays(schema, budget)
            case "object":
                return self._objects(schema, budget)
        return _anything()

    def _one_of(self, branches: list[Schema], budget: int) -> st.SearchStrategy[Any]:
        within = [each for each in branches if self._needs.of(each) <= budget]
        # Hypothesis takes the first for the simplest.
        within.sort(key=lambda each: (self._needs.of(each), each != {"type": "null"}))
        return st.one_of([self._of(each, budget) for each in within])

    def _referred(self, reference: str, budget: int) -> st.SearchStrategy[Any]:
        known = self._known.get((reference, budget))
        if known is None:
            target = resolve_reference(self._root, reference)
            known = self._known[reference, budget] = self._of(target, budget)
        return known

    def _resolved(self, schema: Schema) -> Schema:
        while isinstance(schema, Mapping) and "$ref" in schema:
            schema = resolve_reference(self._root, schema["$ref"])
        return schema

    def _arrays(self, schema: Mapping[str, Any], budget: int) -> st.SearchStrategy[Any]:
        prefix = [self._of(each, budget) for each in schema.get("prefixItems", ())]
        least = max(0, schema.get("minItems", 0) - len(prefix))
        most = min(schema.get("maxItems", math.inf) - len(prefix), least + _MORE_ENTRIES)
        items = schema.get("items", not prefix)
        if items is False or most <= 0 or (not least and self._needs.of(items) > budget):
            rest: st.SearchStrategy[list[Any]] = st.builds(list)
        else:
            rest = st.lists(
                self._of(items, budget),
                min_size=least,
                max_size=int(most),
                unique_by=_as_text if schema.get("uniqueItems") else None,
            )
        if not prefix:
            return rest
        return st.builds(lambda first, then: [*first, *then], st.tuples(*prefix), rest)

    def _objects(self, schema: Mapping[str, Any], budget: int) -> st.SearchStrategy[Any]:
        properties = schema.get("properties", {})
        required = set(schema.get("required", ()))
        fixed = st.fixed_dictionaries(
            {name: self._of(properties[name], budget) for name in properties if name in required},
            optional={
                name: self._of(each, budget)
                for name, each in properties.items()
                if name not in required and self._needs.of(each) <= budget
            },
        )
        values = schema.get("additionalProperties", not properties)
        least = schema.get("minProperties", 0)
        if properties or values is False or (not least and self._needs.of(values) > budget):
            return fixed
        most = min(schema.get("maxProperties", math.inf), least + _MORE_ENTRIES)
        names = {"type": "string", **schema.get("propertyNames", {})}
        return st.dictionaries(
            self._of(names, budget), self._of(values, budget), min_size=least, max_size=int(most)
        )


def _anything() -> st.SearchStrategy[Any]:
    plain = st.none() | st.booleans() | _integers({}) | _numbers({}) | texts({})
    return plain | st.lists(plain, max_size=3) | st.dictionaries(texts({}), plain, max_size=3)


def _integers(schema: Mapping[str, Any]) -> st.SearchStrategy[int]:
    step = schema.get("multipleOf", 1)
    least, most = _bounds(schema)
    low = math.ceil(least / step) if least is not None else None
    high = math.floor(most / step) if most is not None else None
    if low is not None and low * step == schema.get("exclusiveMinimum"):
        low += 1
    if high is not None and high * step == schema.get("exclusiveMaximum"):
        high -= 1
    if low is None:
        low = min(-_LARGEST // step + 1, high) if high is not None else -_LARGEST // step + 1
    if high is None:
        high = max(_LARGEST // step, low)
    return _multiples(int(low), int(high), int(step))


def _numbers(schema: Mapping[str, Any]) -> st.SearchStrategy[float]:
    least, most = _bounds(schema)
    if "multipleOf" in schema:
        step = schema["multipleOf"]
        low = -_LARGEST if least is None else math.ceil(least / step)
        high = _LARGEST if most is None else math.floor(most / step)
        return _multiples(low, high, step)
    return st.floats(
        None if least is None else float(least),
        None if most is None else float(most),
        exclude_min=least is not None and least == schema.get("exclusiveMinimum"),
        exclude_max=most is not None and most == schema.get("exclusiveMaximum"),
        allow_nan=False,
        allow_infinity=False,
    )


def _multiples(low: int, high: int, step: Any) -> st.SearchStrategy[Any]:
    if low > high:
        raise NoDocuments("no number is within its bounds")
    return st.integers(low, high).map(lambda number: number * step)


def _bounds(schema: Mapping[str, Any]) -> tuple[Any, Any]:
    """The least and the largest number, of which one may be excluded."""
    least = [schema[key] for key in ("minimum", "exclusiveMinimum") if key in schema]
    most = [schema[key] for key in ("maximum", "exclusiveMaximum") if key in schema]
    return max(least, default=None), min(most, default=None)


def _both(one: Schema, other: Schema) -> Schema:
    """A schema with the keywords of both, where they differ those of the second."""
    if not isinstance(one, Mapping) or not isinstance(other, Mapping):
        return other if one is True else one
    if not one or not other:
        return one or other
    if "$ref" in other and not one.keys() - {"default", "x-checked"}:
        return other
    return {**one, **other}


def _kinds(schema: Mapping[str, Any]) -> str | None:
    """The type of values that a schema without one is about."""
    if "pattern" in schema or "format" in schema or "minLength" in schema:
        return "string"
    if "properties" in schema:
        return "object"
    return None


def _as_text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


class _Needs:
    """How much of the budget the smallest document of each part of a schema takes: infinitely much
    where each document contains another one."""

    def __init__(self, root: Schema) -> None:
        leads_to = _graph(root)
        self._cyclic = {name for name in leads_to if name in _reachable(leads_to, name)}
        self._of: dict[str, float] = dict.fromkeys(leads_to, math.inf)
        for _ in leads_to:  # each round settles at least one more of them
            for name in leads_to:
                self._of[name] = self.of(resolve_reference(root, name))

    def cost(self, reference: str) -> int:
        """What it costs to follow a reference."""
        return int(reference in self._cyclic)

    def of(self, schema: Any) -> float:
        if not isinstance(schema, Mapping) or "enum" in schema or "const" in schema:
            return 0
        if "$ref" in schema:
            return self.cost(schema["$ref"]) + self._of[schema["$ref"]]
        alternatives = [schema[keyword] for keyword in ("anyOf", "oneOf") if keyword in schema]
        within = [min(map(self.of, branches), default=0) for branches in alternatives]
        prefix, properties = schema.get("prefixItems", []), schema.get("properties", {})
        parts = [*prefix, *schema.get("allOf", ())]
        parts += [properties.get(name) for name in schema.get("required", ())]
        if schema.get("minItems", 0) > len(prefix):
            parts.append(schema.get("items"))
        if schema.get("minProperties", 0):
            parts.append(schema.get("additionalProperties"))
        return max([*within, *map(self.of, parts)], default=0)


def _graph(root: Schema) -> Mapping[str, set[str]]:
    """Each reference in a schema, with those in what it refers to. NoDocuments for one that leads
    to nothing."""
    found: dict[str, set[str]] = {}
    for name in _references(root):
        target = resolve_reference(root, name)
        if target is None:
            raise NoDocuments(f"its schema refers to {name}, which is not in it")
        found[name] = set(_references(target))
    return found


def _reachable(leads_to: Mapping[str, set[str]], name: str) -> set[str]:
    """Everything that a reference leads to."""
    found: set[str] = set()
    waiting = [name]
    while waiting:
        new = leads_to[waiting.pop()] - found
        found |= new
        waiting += new
    return found


def _references(schema: Any) -> Iterator[str]:
    if isinstance(schema, list):
        for each in schema:
            yield from _references(each)
    elif isinstance(schema, Mapping):
        if isinstance(schema.get("$ref"), str):
            yield schema["$ref"]
        for each in schema.values():
            yield from _references(each)
