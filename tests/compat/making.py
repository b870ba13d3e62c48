"""Random schemas and random changes of them, small enough that brute force knows the truth."""

from __future__ import annotations

import copy
from random import Random
from typing import Any

NAMES = ("a", "b", "c", "ab")
PATTERNS = (
    "^a", "b$", "^[ab]+$", "^a{1,2}$", "a", "^(a|b)$", "^$", "^[a-c]{2,3}$", "^\\w+$", "b|c",
    "^x-", "^[^a]*$", "^.$",
)  # fmt: skip
FORMATS = ("date", "date-time", "uuid", "ipv4", "nobody-knows")
VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, 2, 3, 1.0, 0.5, -1, "", "a", "b", "ab", "aa", [], [1], ["a"], [True],
    {}, {"a": 1}, {"a": "a"}, {"b": True}, "2020-01-01",
)  # fmt: skip
TYPES = ("null", "boolean", "integer", "number", "string", "array", "object")


def random_schema(pick: Random, depth: int = 2, *, refs: tuple[str, ...] = ()) -> Any:
    """A schema of draft 2020 with at most so many levels."""
    roll = pick.random()
    if roll < 0.05:
        return pick.choice((True, {}, False))
    if refs and roll < 0.2:
        return {"$ref": f"#/$defs/{pick.choice(refs)}"}
    if depth > 0 and roll < 0.4:
        return _combined(pick, depth, refs)
    schema: dict[str, Any] = {}
    kinds = pick.sample(TYPES, pick.choice((1, 1, 1, 1, 2)))
    if pick.random() < 0.85:
        schema["type"] = kinds[0] if len(kinds) == 1 else kinds
    for kind in kinds:
        _MAKERS[kind](pick, schema, depth, refs)
    if pick.random() < 0.12:
        schema["enum"] = pick.sample(VALUES, pick.randint(1, 4))
    elif pick.random() < 0.06:
        schema["const"] = pick.choice(VALUES)
    if depth > 0 and pick.random() < 0.12:
        schema.update(_combined(pick, depth, refs))
    return schema


def random_root(pick: Random) -> Any:
    """A schema that may refer to itself."""
    if pick.random() < 0.75:
        return random_schema(pick)
    names = ("N", "M")[: pick.choice((1, 1, 2))]
    definitions = {name: _recursive(pick, names) for name in names}
    root: Any = {"$ref": "#/$defs/N"} if pick.random() < 0.6 else random_schema(pick, 1, refs=names)
    return {**root, "$defs": definitions} if isinstance(root, dict) else {"$defs": definitions}


def _recursive(pick: Random, names: tuple[str, ...]) -> dict[str, Any]:
    """A definition that refers to others only from within an object or a list."""
    inner: Any = {"$ref": f"#/$defs/{pick.choice(names)}"}
    if pick.random() < 0.3:
        inner = {"anyOf": [inner, {"type": "null"}]}
    made: dict[str, Any] = {"type": "object", "properties": {
        "v": random_schema(pick, 0), "n": inner}}  # fmt: skip
    if pick.random() < 0.3:
        made = {"type": "object", "properties": {"v": random_schema(pick, 0),
                "n": {"type": "array", "items": inner}}}  # fmt: skip
    if pick.random() < 0.4:
        made["additionalProperties"] = False
    if pick.random() < 0.4:
        made["required"] = ["v"]
    return {"anyOf": [made, random_schema(pick, 0)]} if pick.random() < 0.25 else made


def _combined(pick: Random, depth: int, refs: tuple[str, ...]) -> dict[str, Any]:
    def inner() -> Any:
        return random_schema(pick, depth - 1, refs=())

    keyword = pick.choice(("anyOf", "anyOf", "oneOf", "oneOf", "allOf", "not", "if"))
    if keyword == "not":
        return {"not": inner()}
    if keyword == "if":
        made = {"if": inner(), "then": inner(), "else": inner()}
        for branch in ("then", "else"):
            if pick.random() < 0.3:
                del made[branch]
        return made
    return {keyword: [inner() for _ in range(pick.choice((1, 2, 2, 3)))]}


def _nothing(pick: Random, schema: dict[str, Any], depth: int, refs: tuple[str, ...]) -> None:
    pass


def _number(pick: Random, schema: dict[str, Any], depth: int, refs: tuple[str, ...]) -> None:
    for keyword in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"):
        if pick.random() < 0.22:
            schema[keyword] = pick.choice((0, 1, 2, 3, 5, 0.5, -1, 2.5))
    if pick.random() < 0.2:
        schema["multipleOf"] = pick.choice((1, 2, 3, 0.5, 1.5, 6, 0.1))


def _string(pick: Random, schema: dict[str, Any], depth: int, refs: tuple[str, ...]) -> None:
    if pick.random() < 0.25:
        schema["minLength"] = pick.randint(0, 3)
    if pick.random() < 0.25:
        schema["maxLength"] = pick.randint(0, 3)
    if pick.random() < 0.3:
        schema["pattern"] = pick.choice(PATTERNS)
    if pick.random() < 0.12:
        schema["format"] = pick.choice(FORMATS)


def _array(pick: Random, schema: dict[str, Any], depth: int, refs: tuple[str, ...]) -> None:
    def inner() -> Any:
        return random_schema(pick, max(depth - 1, 0) if depth > 0 else 0, refs=refs)

    if depth > 0:
        if pick.random() < 0.5:
            schema["items"] = inner()
        if pick.random() < 0.25:
            schema["prefixItems"] = [inner() for _ in range(pick.randint(1, 2))]
        if pick.random() < 0.2:
            schema["contains"] = inner()
            if pick.random() < 0.4:
                schema["minContains"] = pick.randint(0, 2)
            if pick.random() < 0.3:
                schema["maxContains"] = pick.randint(1, 2)
        if pick.random() < 0.05:
            schema["unevaluatedItems"] = inner()
    if pick.random() < 0.2:
        schema["minItems"] = pick.randint(0, 2)
    if pick.random() < 0.25:
        schema["maxItems"] = pick.randint(0, 3)
    if pick.random() < 0.15:
        schema["uniqueItems"] = True


def _object(pick: Random, schema: dict[str, Any], depth: int, refs: tuple[str, ...]) -> None:
    def inner() -> Any:
        return random_schema(pick, depth - 1, refs=refs)

    if depth > 0:
        if pick.random() < 0.75:
            chosen = pick.sample(NAMES, pick.randint(1, 3))
            schema["properties"] = {name: inner() for name in chosen}
        if pick.random() < 0.15:
            schema["patternProperties"] = {pick.choice(PATTERNS): inner()}
        if pick.random() < 0.4:
            schema["additionalProperties"] = False if pick.random() < 0.6 else inner()
        if pick.random() < 0.08:
            schema["propertyNames"] = {"pattern": pick.choice(PATTERNS)}
        if pick.random() < 0.06:
            schema["dependentSchemas"] = {pick.choice(NAMES): inner()}
        if pick.random() < 0.05:
            schema["unevaluatedProperties"] = False if pick.random() < 0.7 else inner()
    if pick.random() < 0.4:
        schema["required"] = pick.sample(NAMES, pick.randint(1, 2))
    if pick.random() < 0.08:
        schema["minProperties"] = pick.randint(0, 2)
    if pick.random() < 0.1:
        schema["maxProperties"] = pick.randint(0, 3)
    if pick.random() < 0.08:
        schema["dependentRequired"] = {pick.choice(NAMES): [pick.choice(NAMES)]}


_MAKERS = {
    "null": _nothing, "boolean": _nothing, "integer": _number, "number": _number,
    "string": _string, "array": _array, "object": _object,
}  # fmt: skip


def changed(pick: Random, schema: Any, times: int = 1) -> Any:
    """The schema with so many small changes, each of which widens, narrows or rewrites it."""
    made = copy.deepcopy(schema)
    for _ in range(times):
        made = _changed_once(pick, made)
    return made


def _changed_once(pick: Random, root: Any) -> Any:
    places: list[tuple[Any, Any, dict[str, Any]]] = []
    _collect(root, None, None, places)
    if not places:
        return random_schema(pick, 1)
    holder, key, schema = pick.choice(places)
    made = _edit(pick, schema)
    if holder is None:
        kept = {"$defs": root["$defs"]} if "$defs" in root else {}
        return {**made, **kept} if isinstance(made, dict) else made
    holder[key] = made
    return root


_IN_PLACE_ONE = ("items", "contains", "additionalProperties", "not", "if", "then", "else",
                 "propertyNames", "unevaluatedItems", "unevaluatedProperties")  # fmt: skip


def _collect(node: Any, holder: Any, key: Any, places: list[Any]) -> None:
    if not isinstance(node, dict):
        return
    places.append((holder, key, node))
    for keyword in _IN_PLACE_ONE:
        if keyword in node:
            _collect(node[keyword], node, keyword, places)
    for keyword in ("allOf", "anyOf", "oneOf", "prefixItems"):
        for at, inner in enumerate(node.get(keyword, ())):
            _collect(inner, node[keyword], at, places)
    for keyword in ("properties", "patternProperties", "dependentSchemas", "$defs"):
        for name, inner in node.get(keyword, {}).items():
            _collect(inner, node[keyword], name, places)


LIMITS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "minLength", "maxLength",
          "minItems", "maxItems", "minProperties", "maxProperties", "minContains",
          "maxContains")  # fmt: skip


def _edit(pick: Random, schema: dict[str, Any]) -> Any:
    kind = pick.choice(("drop", "drop", "step", "step", "add", "wrap", "rewrite", "enum", "fields"))
    made = dict(schema)
    bare = {k: v for k, v in schema.items() if k != "$defs"}
    if kind == "drop" and bare:
        del made[pick.choice(sorted(bare))]
        return made
    if kind == "step":
        limits = [keyword for keyword in LIMITS if keyword in made]
        if limits:
            keyword = pick.choice(limits)
            made[keyword] += pick.choice((-1, 1))
            if keyword.startswith(("minL", "maxL", "minI", "maxI", "minP", "maxP", "minC", "maxC")):
                made[keyword] = max(made[keyword], 0)
            return made
    if kind == "add":
        _MAKERS[pick.choice(TYPES)](pick, made, 1, ())
        return made
    if kind == "wrap" and "$defs" not in schema:
        other = random_schema(pick, 1)
        return pick.choice((
            {"anyOf": [bare, other]}, {"allOf": [bare, other]}, {"oneOf": [bare, other]},
            {"not": {"not": bare}}, {"if": other, "then": bare, "else": bare},
            {"allOf": [bare, {"not": other}]}, {"anyOf": [{"allOf": [bare, other]}, bare]},
        ))  # fmt: skip
    if kind == "rewrite":
        return _rewritten(pick, made)
    if kind == "enum" and "enum" in made:
        values = list(made["enum"])
        if len(values) > 1 and pick.random() < 0.5:
            values.pop(pick.randrange(len(values)))
        else:
            values.append(pick.choice(VALUES))
        made["enum"] = values
        return made
    if kind == "fields" and isinstance(made.get("properties"), dict):
        properties = dict(made["properties"])
        if properties and pick.random() < 0.5:
            del properties[pick.choice(sorted(properties))]
        else:
            properties[pick.choice(NAMES)] = random_schema(pick, 0)
        made["properties"] = properties
        return made
    made["type"] = pick.choice(TYPES)
    return made


def _rewritten(pick: Random, schema: dict[str, Any]) -> dict[str, Any]:
    """The same truth in other words, where one is known; else the schema as it is."""
    made = dict(schema)
    if isinstance(made.get("type"), list):
        rest = {k: v for k, v in made.items() if k not in ("type", "$defs")}
        return {"anyOf": [{**rest, "type": kind} for kind in made["type"]]}
    if made.get("type") == "boolean" and len(made) == 1:
        return {"enum": [True, False]}
    if made.get("type") == "integer" and "minimum" in made and isinstance(made["minimum"], int):
        made["exclusiveMinimum"] = max(made.pop("minimum") - 1, made.get("exclusiveMinimum", -99))
        return made
    if "const" in made and "enum" not in made:
        made["enum"] = [made.pop("const")]
        return made
    if "enum" in made and set(made) == {"enum"}:
        return {"anyOf": [{"const": value} for value in made["enum"]]}
    if "oneOf" in made and "anyOf" not in made:
        made["anyOf"] = made.pop("oneOf")
    elif "anyOf" in made and "oneOf" not in made:
        made["oneOf"] = made.pop("anyOf")
    elif "required" in made and "dependentRequired" not in made and pick.random() < 0.5:
        made["minProperties"] = max(len(set(made["required"])), made.get("minProperties", 0))
    elif made.get("type") == "string" and "pattern" not in made:
        made["pattern"] = pick.choice(("", "^", "[\\s\\S]*", "^a"))
    return made
