"""Where in a schema, and in its documents, something applies that no schema can say; and values
worth trying there."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Annotated, Any

from eventmesh.contracts.compat.compare import accepts, documents
from eventmesh.contracts.compat.model_schemas import CHECKED, DECIMAL, plain

Path = tuple[str | int, ...]
Pools = Mapping[str, tuple[Sequence[Any], Sequence[str]]]
"""For the name of a check: values that it may treat differently, and patterns it may look for."""

_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems")
_MAPS = ("properties", "patternProperties", "$defs")
_SINGLE = ("items", "additionalProperties")
_KINDS: Mapping[str, tuple[type, ...]] = {
    "object": (dict,), "array": (list,), "string": (str,), "null": (type(None),),
    "boolean": (bool,), "integer": (int,), "number": (int, float),
}  # fmt: skip
_TEXTS = (
    "0", "1", "-1", "0.5", "1.5", "-0.01", "1.00", "10", "99.99", "100", "1234.5", "123456789",
    "0.001", "1E+2", "1E-7", "0E-7", "12345678901234567890.123456789",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Spot:
    """A place in a document, and the part of the schema that speaks of it."""

    path: Path
    pointer: str
    node: Mapping[str, Any]
    value: Any


def nodes(schema: Any, pointer: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every subschema with its JSON pointer."""
    if not isinstance(schema, dict):
        return
    yield pointer, schema
    for keyword in _MAPS:
        for name, entry in schema.get(keyword, {}).items():
            yield from nodes(entry, f"{pointer}/{keyword}/{_escaped(name)}")
    for keyword in _LISTS:
        for index, entry in enumerate(schema.get(keyword, ())):
            yield from nodes(entry, f"{pointer}/{keyword}/{index}")
    for keyword in _SINGLE:
        yield from nodes(schema.get(keyword), f"{pointer}/{keyword}")


def spots(schema: Any, document: Any) -> Iterator[Spot]:
    """Where in this document something applies that only our own keywords say."""

    def walk(node: Any, pointer: str, value: Any, path: Path) -> Iterator[Spot]:
        if not isinstance(node, dict) or not _may_be(node, value):
            return
        if CHECKED in node or DECIMAL in node:
            yield Spot(path, pointer, node, value)
        reference = node.get("$ref")
        if isinstance(reference, str):
            yield from walk(at(schema, reference[1:]), reference[1:], value, path)
        for keyword in ("allOf", "anyOf", "oneOf"):
            for index, entry in enumerate(node.get(keyword, ())):
                yield from walk(entry, f"{pointer}/{keyword}/{index}", value, path)
        if isinstance(value, dict):
            for name, inner in value.items():
                for where, entry in _of_name(node, name):
                    yield from walk(entry, pointer + where, inner, (*path, name))
        elif isinstance(value, list):
            prefix = node.get("prefixItems", ())
            for index, inner in enumerate(value):
                if index < len(prefix):
                    where, entry = f"/prefixItems/{index}", prefix[index]
                else:
                    where, entry = "/items", node.get("items")
                yield from walk(entry, pointer + where, inner, (*path, index))

    yield from walk(schema, "", document, ())


def at(schema: Any, pointer: str) -> Any:
    """What is at this JSON pointer; None where nothing is."""
    for part in pointer.split("/")[1:]:
        part = part.replace("~1", "/").replace("~0", "~")
        try:
            schema = schema[int(part)] if isinstance(schema, list) else schema[part]
        except (KeyError, IndexError, TypeError, ValueError):
            return None
    return schema


def replaced(schema: Any, replacements: Mapping[str, Any]) -> Any:
    """A copy of the schema that says something else at these JSON pointers."""
    copy = json.loads(json.dumps(schema))
    for pointer, new in sorted(replacements.items(), key=lambda item: -item[0].count("/")):
        if not pointer:
            return {**new, "$defs": copy["$defs"]} if "$defs" in copy else dict(new)
        parent, _, last = pointer.rpartition("/")
        holder = at(copy, parent)
        if isinstance(holder, list):
            holder[int(last)] = new
        elif isinstance(holder, dict):
            holder[last.replace("~1", "/").replace("~0", "~")] = new
    return copy


def varied(
    writer: dict[str, Any],
    reader: dict[str, Any],
    words: dict[str, Any] | None,
    pools: Pools,
    limit: int,
) -> list[Any]:
    """Documents of the writer's schema, as it shows and with values worth trying put in: decimal
    numbers on all bounds, and at what the reader checks the values that its code mentions."""
    others = [plain(reader), *([words] if words else [])]
    found = documents(plain(writer), also=others, limit=limit)
    enriched = replaced(writer, _worth_trying(writer, reader, pools))
    if enriched != writer:
        found += documents(plain(enriched), also=others, limit=limit)
    return [as_written(document) for document in found]


def as_written(value: Any) -> Any:
    """The document with whole numbers without a point, as a writer of whole numbers has them."""
    if isinstance(value, dict):
        return {name: as_written(part) for name, part in value.items()}
    if isinstance(value, list):
        return [as_written(part) for part in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _worth_trying(writer: Any, reader: Any, pools: Pools) -> dict[str, Any]:
    near = numbers_in(writer, reader)
    enriched = {
        pointer: {"enum": decimals(node[DECIMAL], near)}
        for pointer, node in nodes(writer)
        if DECIMAL in node
    }
    for pointer, checks in _checks_of(reader):
        for place in _values_below(writer, pointer):
            values = _values_of(writer, place, [pools[name] for name in checks if name in pools])
            if values and place not in enriched:
                enriched[place] = {"enum": values}
    return enriched


def _checks_of(reader: Any) -> Iterator[tuple[str, list[str]]]:
    for pointer, node in nodes(reader):
        if CHECKED in node:
            yield pointer, node[CHECKED]


def _values_below(writer: Any, pointer: str) -> Iterator[str]:
    """The pointer itself, or where it is an object's those of its fields."""
    node = at(writer, pointer)
    if not isinstance(node, dict):
        return
    if "properties" not in node:
        yield pointer
    for name in node.get("properties", {}):
        yield f"{pointer}/properties/{_escaped(name)}"


def _values_of(writer: Any, pointer: str, pools: Sequence[Any]) -> list[Any]:
    """Values of this part of the writer's schema, those that somebody may look for among them."""
    part = plain({**at(writer, pointer), "$defs": writer.get("$defs", {})})
    candidates: list[Any] = documents(part, limit=12)
    lengths = set()
    for values, patterns in pools:
        candidates += values
        candidates += [str(value) for value in values if isinstance(value, int | float)]
        lengths |= {value for value in values if isinstance(value, int) and 0 <= value <= 300}
        for pattern in patterns:
            candidates += documents({"type": "string", "pattern": pattern}, limit=5)
    candidates += ["a" * length for length in sorted(lengths)]
    accepted = accepts(part)
    kept: list[Any] = []
    for value in candidates:
        if accepted(value) and not any(type(value) is type(k) and value == k for k in kept):
            kept.append(value)
    return kept[:60]


def numbers_in(*schemas: Any) -> list[Decimal]:
    """The numbers that bound something in these schemas."""
    found: list[Decimal] = []
    for schema in schemas:
        for _, node in nodes(schema):
            bounds = [node.get(key) for key in ("minimum", "maximum", "exclusiveMinimum",
                                                "exclusiveMaximum", "multipleOf")]  # fmt: skip
            of_texts = [v for k, v in node.get(DECIMAL, {}).items() if k[-1] == "e" or k[-1] == "t"]
            found += [Decimal(str(bound)) for bound in (*bounds, *of_texts) if bound is not None]
    return list(dict.fromkeys(found))


def decimals(bounds: Mapping[str, str], near: Sequence[Decimal]) -> list[str]:
    """Texts of numbers within these bounds, on them, and beside all of the numbers `near`."""
    steps = [Decimal(0), Decimal(1), Decimal("0.01"), Decimal("0.001")]
    around = [number + sign * step for number in near for step in steps for sign in (1, -1)]
    texts = [*_TEXTS, *map(str, around)]
    for places in range(1, 8):
        texts += ["0." + "1" * places, "1" * places, "9" * places + "." + "9" * places]
    allowed = within(bounds)
    return [text for text in dict.fromkeys(texts) if allowed(text)]


def within(bounds: Mapping[str, str]) -> Callable[[str], bool]:
    """Whether a text is a number within the bounds of `x-decimal`."""
    from pydantic import Field, TypeAdapter, ValidationError

    counts = {
        name: int(bounds[name]) for name in ("max_digits", "decimal_places") if name in bounds
    }
    limits = {name: Decimal(text) for name, text in bounds.items() if name not in counts}
    adapter: TypeAdapter[Decimal] = TypeAdapter(Annotated[Decimal, Field(**counts, **limits)])

    def allowed(text: str) -> bool:
        try:
            adapter.validate_python(text)
        except (ValidationError, InvalidOperation):
            return False
        return True

    return allowed


def _of_name(node: Mapping[str, Any], name: str) -> Iterator[tuple[str, Any]]:
    if name in node.get("properties", {}):
        yield f"/properties/{_escaped(name)}", node["properties"][name]
    elif isinstance(node.get("additionalProperties"), dict):
        yield "/additionalProperties", node["additionalProperties"]
    for pattern, entry in node.get("patternProperties", {}).items():
        yield f"/patternProperties/{_escaped(pattern)}", entry


def _may_be(node: Mapping[str, Any], value: Any) -> bool:
    kind = node.get("type")
    return not isinstance(kind, str) or isinstance(value, _KINDS[kind])


def _escaped(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")
