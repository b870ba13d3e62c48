"""Large schemas as teams publish them, and the changes that teams make to them.

The schemas are six published events of GitHub's webhooks and generated ones: 300 to 700 fields,
five levels deep, with shared and recursive definitions. Each change is made at one place, three
levels down or deeper where there is one, and knows the true verdict where that does not depend on
the place.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Literal

Schema = dict[str, Any]
Truth = Literal["compatible", "breaking"] | None
WEBHOOKS = Path(__file__).parent / "github-webhooks.json"

LEVELS = 3
"""A change is made at least so many levels below the root, if the schema is as deep."""


@dataclass(frozen=True)
class Pair:
    """A writer's and a reader's schema that differ by one change."""

    name: str
    change: str
    writer: Schema
    reader: Schema
    truth: Truth
    """The true verdict, where the change alone decides it."""
    draft: str = "7"


def seeded(seed: int) -> Random:
    return Random(seed)  # noqa: S311  # for schemas, not for secrets


# Published schemas


def published() -> Iterator[tuple[str, Schema]]:
    whole = json.loads(WEBHOOKS.read_text())
    for event in whole["events"]:
        needed = _closure(whole["definitions"], event)
        yield (
            event,
            {
                "$schema": whole["$schema"],
                **copy.deepcopy(whole["definitions"][event]),
                "definitions": {name: copy.deepcopy(whole["definitions"][name]) for name in needed},
            },
        )


def _closure(definitions: dict[str, Any], first: str) -> list[str]:
    found: dict[str, None] = {}
    ahead = list(_references(definitions[first]))
    while ahead:
        name = ahead.pop(0)
        if name not in found:
            found[name] = None
            ahead += _references(definitions[name])
    return list(found)


def _references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"].rpartition("/")[2]
        for value in node.values():
            yield from _references(value)
    elif isinstance(node, list):
        for value in node:
            yield from _references(value)


# Generated schemas

WORDS = (
    "id", "name", "status", "amount", "currency", "created_at", "updated_at", "owner", "email",
    "address", "city", "country", "quantity", "price", "total", "tax", "discount", "note", "kind",
    "reference", "parent", "children", "items", "lines", "customer", "order", "payment", "shipment",
    "warehouse", "carrier", "label", "weight", "height", "width", "priority", "reason", "source",
    "target", "version", "channel", "region", "zone", "code", "title", "summary", "url", "tags",
)  # fmt: skip


def generated(seed: int, fields: int = 500) -> Schema:
    """A realistic schema with about so many fields, five levels deep."""
    return _Generator(seeded(seed), fields).schema()


class _Generator:
    def __init__(self, pick: Random, fields: int) -> None:
        self.pick = pick
        self.left = fields
        self.closed = pick.random() < 0.5
        self.definitions: dict[str, Schema] = {}

    def schema(self) -> Schema:
        shared = ["Money", "Address", "Person", "Reference"]
        self.definitions["Money"] = self.object_of({
            "amount": {"type": "string", "pattern": r"^-?\d+(\.\d{1,2})?$"},
            "currency": {"type": "string", "minLength": 3, "maxLength": 3},
        })  # fmt: skip
        self.definitions["Reference"] = {
            "anyOf": [
                {"type": "string", "format": "uuid"},
                self.object_of({"type": {"const": "external"}, "key": {"type": "string"}}),
            ]
        }
        self.definitions["Address"] = self.object(2, 9)
        self.definitions["Person"] = self.object(2, 12)
        tree = self.object(2, 8)
        tree["properties"]["children"] = {"type": "array", "items": {"$ref": "#/definitions/Tree"}}
        tree["properties"]["state"] = {"type": "string", "maxLength": 40}
        self.definitions["Tree"] = tree
        node = self.object(2, 6)
        node["properties"]["next"] = {"oneOf": [{"$ref": "#/definitions/Node"}, {"type": "null"}]}
        node["properties"]["owner"] = {"$ref": "#/definitions/Person"}
        self.definitions["Node"] = node
        self.shared = [*shared, "Tree", "Node"]
        root = self.object(5, 12)
        while self.left > 0:
            name = f"{self.pick.choice(WORDS)}_{len(root['properties'])}"
            root["properties"][name] = self.object(4, 10)
            if self.pick.random() < 0.6:
                root["required"].append(name)
        return {
            "$schema": "http://json-schema.org/draft-07/schema#",
            **root,
            "definitions": self.definitions,
        }

    def object_of(self, properties: dict[str, Any]) -> Schema:
        self.left -= len(properties)
        made: Schema = {"type": "object", "properties": properties, "required": list(properties)}
        if self.closed:
            made["additionalProperties"] = False
        return made

    def object(self, levels: int, size: int) -> Schema:
        names = self.pick.sample(WORDS, self.pick.randint(max(size - 3, 2), size))
        made = self.object_of({name: {} for name in names})
        made["properties"] = {name: self.value(levels - 1) for name in names}
        made["required"] = [name for name in names if self.pick.random() < 0.6]
        return made

    def value(self, levels: int) -> Schema:
        roll = self.pick.random()
        if levels > 0 and self.left > 0:
            if roll < 0.3:
                return self.object(levels, 9)
            if roll < 0.4:
                return {"type": "array", "items": self.object(levels, 6), "maxItems": 50}
            if roll < 0.46:
                return self.union(levels)
            if roll < 0.5:
                return {"type": "object", "additionalProperties": self.value(levels - 1)}
            if roll < 0.6 and hasattr(self, "shared"):
                return {"$ref": f"#/definitions/{self.pick.choice(self.shared)}"}
        return self.scalar()

    def union(self, levels: int) -> Schema:
        branches = []
        for kind in self.pick.sample(WORDS, 3):
            branch = self.object(levels, 5)
            branch["properties"]["kind"] = {"const": kind}
            branch["required"] = sorted({*branch["required"], "kind"})
            branches.append(branch)
        return {"oneOf": branches}

    def scalar(self) -> Schema:
        return copy.deepcopy(self.pick.choice([
            {"type": "string"}, {"type": "string"}, {"type": "integer"}, {"type": "boolean"},
            {"type": "number", "minimum": 0}, {"type": "string", "format": "date-time"},
            {"type": "string", "format": "uri"}, {"type": ["string", "null"]},
            {"type": "string", "minLength": 1, "maxLength": 200},
            {"type": "integer", "minimum": 0, "maximum": 10_000},
            {"type": "string", "enum": ["open", "closed", "pending"]},
            {"type": "array", "items": {"type": "string"}, "maxItems": 20},
            {"anyOf": [{"type": "integer"}, {"type": "null"}]},
            {"type": "string", "pattern": "^[a-z][a-z0-9_]*$"},
        ]))  # fmt: skip


# Changes

Place = tuple[str | int, ...]
Change = Callable[[Random, Schema], tuple[Schema, Schema, Truth]]


def places(schema: Schema) -> Iterator[tuple[Place, int, Schema]]:
    """Every subschema that documents reach, with its path and its level."""
    used = {"", *_references({k: v for k, v in schema.items() if k != "definitions"})}
    for name in list(used):
        if name in schema.get("definitions", {}):
            used |= set(_closure(schema["definitions"], name))

    def walk(node: Any, path: Place, level: int) -> Iterator[tuple[Place, int, Schema]]:
        if not isinstance(node, dict):
            return
        yield path, level, node
        for name, part in node.get("properties", {}).items():
            yield from walk(part, (*path, "properties", name), level + 1)
        for keyword in ("items", "additionalProperties"):
            yield from walk(node.get(keyword), (*path, keyword), level + 1)
        for keyword in ("oneOf", "anyOf", "allOf"):
            for number, part in enumerate(node.get(keyword, ())):
                yield from walk(part, (*path, keyword, number), level)

    yield from walk(schema, (), 0)
    for name, part in schema.get("definitions", {}).items():
        if name in used:
            yield from walk(part, ("definitions", name), 2)


def at(schema: Any, path: Place) -> Any:
    for part in path:
        schema = schema[part]
    return schema


def chosen(pick: Random, schema: Schema, fits: Callable[[Schema], bool]) -> Place | None:
    """A place three levels down or deeper of which this is true, or else any such place."""
    found = [(path, level) for path, level, node in places(schema) if path and fits(node)]
    deep = [path for path, level in found if level >= LEVELS]
    return pick.choice(deep or [path for path, _ in found]) if found else None


def is_object(node: Schema) -> bool:
    return node.get("type") == "object" and bool(node.get("properties"))


def is_plain(kind: str) -> Callable[[Schema], bool]:
    return lambda node: node.get("type") == kind and not {"enum", "const", "format"} & node.keys()


def has(*keywords: str) -> Callable[[Schema], bool]:
    return lambda node: all(keyword in node for keyword in keywords)


def is_type(node: Schema) -> bool:
    return node.get("type") in ("string", "integer", "number", "boolean")


@dataclass(frozen=True)
class Edit:
    """A change of the subschema at one place: in the reader, or in the writer if `flipped`."""

    fits: Callable[[Schema], bool]
    edit: Callable[[Random, Schema], Any]
    truth: Truth
    flipped: bool = False

    def __call__(self, pick: Random, schema: Schema) -> tuple[Schema, Schema, Truth] | None:
        place = chosen(pick, schema, self.fits)
        if place is None:
            return None
        changed = copy.deepcopy(schema)
        old = at(changed, place)
        new = self.edit(pick, copy.deepcopy(old))
        if new == old:
            return None
        at(changed, place[:-1])[place[-1]] = new
        pair = (changed, schema) if self.flipped else (schema, changed)
        # Among alternatives and conjunctions, what stands beside the change decides, too.
        alternatives = {"allOf", "anyOf", "oneOf"}
        is_certain = not alternatives & (set(place) | schema.keys())
        return (*pair, self.truth if is_certain else None)


def _set(**values: Any) -> Callable[[Random, Schema], Any]:
    return lambda pick, node: {**node, **values}


def _without(keyword: str) -> Callable[[Random, Schema], Any]:
    return lambda pick, node: {k: v for k, v in node.items() if k != keyword}


def _step(keyword: str, by: int) -> Callable[[Random, Schema], Any]:
    return lambda pick, node: {**node, keyword: node[keyword] + by}


def _new_field(pick: Random, node: Schema) -> Any:
    return {**node, "properties": {**node["properties"], "brand_new": {"type": "integer"}}}


def _require(pick: Random, node: Schema) -> Any:
    optional = sorted(set(node["properties"]) - set(node.get("required", ())))
    return {**node, "required": [*node.get("required", ()), pick.choice(optional)]}


def _unrequire(pick: Random, node: Schema) -> Any:
    return {**node, "required": node["required"][1:]}


def _lose_field(pick: Random, node: Schema) -> Any:
    lost = pick.choice(sorted(node["properties"]))
    kept = {name: part for name, part in node["properties"].items() if name != lost}
    required = [name for name in node.get("required", ()) if name != lost]
    return {**node, "properties": kept, "required": required}


def _more_values(pick: Random, node: Schema) -> Any:
    return {**node, "enum": [*node["enum"], "another value"]}


def _or_null(pick: Random, node: Schema) -> Any:
    return {"anyOf": [node, {"type": "null"}]}


def _more_branches(pick: Random, node: Schema) -> Any:
    keyword = "oneOf" if "oneOf" in node else "anyOf"
    branch = {
        "type": "object",
        "required": ["kind"],
        "properties": {"kind": {"const": "brand new"}},
    }
    return {**node, keyword: [*node[keyword], branch]}


def _fewer_branches(pick: Random, node: Schema) -> Any:
    keyword = "oneOf" if "oneOf" in node else "anyOf"
    return {**node, keyword: node[keyword][:-1]}


def _other_entries(pick: Random, node: Schema) -> Any:
    return {**node, "items": {"type": "boolean"}}


def _has_optional(node: Schema) -> bool:
    return is_object(node) and bool(set(node["properties"]) - set(node.get("required", ())))


def _is_open(node: Schema) -> bool:
    return is_object(node) and node.get("additionalProperties", True) is True


def _is_closed(node: Schema) -> bool:
    return is_object(node) and node.get("additionalProperties") is False


def _is_union(node: Schema) -> bool:
    return len(node.get("oneOf", node.get("anyOf", ()))) > 1


def _is_list(node: Schema) -> bool:
    return isinstance(node.get("items"), dict) and node.get("maxItems", 1) > 0


def _inlined(pick: Random, schema: Schema) -> tuple[Schema, Schema, Truth] | None:
    """A reference becomes a copy of what it refers to."""
    place = chosen(pick, schema, lambda node: set(node) == {"$ref"})
    if place is None:
        return None
    changed = copy.deepcopy(schema)
    name = at(changed, place)["$ref"].rpartition("/")[2]
    at(changed, place[:-1])[place[-1]] = copy.deepcopy(schema["definitions"][name])
    pair = (schema, changed) if pick.random() < 0.5 else (changed, schema)
    return (*pair, "compatible")


def _extracted(pick: Random, schema: Schema) -> tuple[Schema, Schema, Truth] | None:
    """An object becomes a reference to a definition that is equal to it."""
    place = chosen(pick, schema, is_object)
    if place is None:
        return None
    changed = copy.deepcopy(schema)
    changed.setdefault("definitions", {})["Extracted"] = at(changed, place)
    at(changed, place[:-1])[place[-1]] = {"$ref": "#/definitions/Extracted"}
    pair = (schema, changed) if pick.random() < 0.5 else (changed, schema)
    return (*pair, "compatible")


def _renamed(pick: Random, schema: Schema) -> tuple[Schema, Schema, Truth] | None:
    """Definitions get other names, and everything is described anew."""
    text = json.dumps(schema)
    for name in schema.get("definitions", {}):
        text = text.replace(f'"#/definitions/{name}"', f'"#/definitions/new-{name}"')
    changed = json.loads(text)
    changed["definitions"] = {f"new-{n}": d for n, d in changed.get("definitions", {}).items()}
    for _, _, node in places(changed):
        if "$ref" not in node:
            node["description"] = "described anew"
    return schema, changed, "compatible"


CHANGES: dict[str, Any] = {
    "string became an enum": Edit(
        is_plain("string"), _set(enum=["queued", "running", "done"]), "breaking"
    ),
    "enum became a string": Edit(has("enum", "type"), _without("enum"), "compatible"),
    "optional property added to an open reader": Edit(_is_open, _new_field, "breaking"),
    "optional property added to a closed reader": Edit(_is_closed, _new_field, "compatible"),
    "property added by the writer, reader open": Edit(_is_open, _new_field, "compatible", True),
    "property added by the writer, reader closed": Edit(_is_closed, _new_field, "breaking", True),
    "property removed from an open reader": Edit(_is_open, _lose_field, "compatible"),
    "property removed from a closed reader": Edit(_is_closed, _lose_field, "breaking"),
    "property required": Edit(_has_optional, _require, "breaking"),
    "property no longer required": Edit(
        lambda node: is_object(node) and bool(node.get("required")), _unrequire, "compatible"
    ),
    "reference inlined": _inlined,
    "object became a reference": _extracted,
    "definitions renamed": _renamed,
    "enum widened in the reader": Edit(has("enum"), _more_values, "compatible"),
    "enum widened in the writer": Edit(has("enum"), _more_values, "breaking", True),
    "maximum added": Edit(is_plain("integer"), _set(maximum=5), "breaking"),
    "integer became a number": Edit(is_plain("integer"), _set(type="number"), "compatible"),
    "number became an integer": Edit(is_plain("number"), _set(type="integer"), "breaking"),
    "maxLength added": Edit(is_plain("string"), _set(maxLength=1), "breaking"),
    "maxLength lowered": Edit(
        lambda node: node.get("maxLength", 0) > 3, _step("maxLength", -3), None
    ),
    "maxLength raised": Edit(has("maxLength"), _step("maxLength", 3), "compatible"),
    "object closed": Edit(_is_open, _set(additionalProperties=False), "breaking"),
    "object opened": Edit(_is_closed, _without("additionalProperties"), "compatible"),
    "entries changed": Edit(_is_list, _other_entries, "breaking"),
    "maxItems added": Edit(_is_list, _set(maxItems=0), "breaking"),
    "null accepted": Edit(is_type, _or_null, "compatible"),
    "null written": Edit(is_type, _or_null, "breaking", True),
    "branch added in the reader": Edit(_is_union, _more_branches, None),
    "branch added in the writer": Edit(_is_union, _more_branches, None, True),
    "branch removed from the reader": Edit(_is_union, _fewer_branches, None),
    "type changed": Edit(is_plain("string"), _set(type="boolean"), "breaking"),
    "format added": Edit(is_plain("string"), _set(format="ipv4"), "breaking"),
    "format removed": Edit(has("format"), _without("format"), "compatible"),
    "pattern added": Edit(is_plain("string"), _set(pattern="^[A-Z]{9}$"), None),
}


def pairs(rounds: int, *, sizes: tuple[int, ...] = (300, 500, 700)) -> Iterator[Pair]:
    """Each change in each published event and, so many times, in each size of generated schema."""
    schemas = list(published())
    for number in range(rounds):
        schemas += [(f"generated-{size}-{number}", generated(number, size)) for size in sizes]
    for number, (name, schema) in enumerate(schemas):
        for place, (change, make) in enumerate(CHANGES.items()):
            made = make(seeded(1000 * number + place), schema)
            if made is not None:
                yield Pair(name, change, *made)
