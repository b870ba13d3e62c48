"""Where in a schema, and in its documents, something applies that no schema can say; and values
worth trying there."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError
from pydantic_core import to_jsonable_python

from eventmesh.compat.budget import Undecided
from eventmesh.compat.compare import accepts, compare, documents
from eventmesh.compat.pydantic_models.schemas import CHECKED, DECIMAL, plain
from eventmesh.compat.schema.pointers import at, escaped, parts_of
from eventmesh.compat.verdict import Compatible

Path = tuple[str | int, ...]
Pools = Mapping[str, tuple[Sequence[Any], Sequence[str]]]
"""For the name of a check: values that it may treat differently, and patterns it may look for."""

_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems")
_MAPS = ("properties", "patternProperties", "$defs", "definitions")
_SINGLE = ("items", "additionalProperties")
_NAMES = "propertyNames"
_KEY = "[key]"  # as pydantic calls it in the place of an error
_KINDS: Mapping[str, tuple[type, ...]] = {
    "object": (dict,), "array": (list,), "string": (str,), "null": (type(None),),
    "boolean": (bool,), "integer": (int,), "number": (int, float),
}  # fmt: skip
_MOMENTS: Mapping[str, Any] = {
    "date": date, "date-time": datetime, "time": time, "duration": timedelta,
}  # fmt: skip
_BOUND = re.compile(r"(ge|gt|le|lt) (.+)")
_LIMITS = ("ge", "gt", "le", "lt", "multiple_of")
_TEXTS = (
    "0", "1", "-1", "0.5", "1.5", "-0.01", "1.00", "10", "99.99", "100", "1234.5", "123456789",
    "0.001", "1E+2", "1E-7", "0E-7", "12345678901234567890.123456789",
)  # fmt: skip

_USUAL = (
    "0", "1", "-1", "1.5", "true", "a", "A", "EUR", "usd", "a b", " a ", "a,b", "a:b", "a/b",
    "2026-01-31", "2026-01-31T12:30:00Z", "12:30", "a@example.com", "https://example.com/",
    "+4930123456", "12345678-1234-5678-1234-567812345678", "192.0.2.1", "{}", "[]",
    "a\nb", "tmp_1", "test", "1970-01-01T00:00:00Z", "1999-12-31T23:59:59", "2100-01-01T00:00:00",
    "2026-01-31T12:30:00.123456", "00000000-0000-0000-0000-000000000000",
    "2024-02-29", "2026-02-01", "1900-01-01", "9999-12-31", "23:59:59", "P1D", "-P1D", "PT0S",
    "/w==", "(", "é", "\u0000",
    0, 1, -1, 2, 3, 7, 13, 42, 99, 100, 101, 1000, 2026, 10**6, 10**9, 0.5, -0.5,
)  # fmt: skip
"""Values that validators are often about."""


@dataclass(frozen=True, slots=True)
class Spot:
    """A place in a document, and the part of the schema that speaks of it."""

    path: Path
    pointer: str
    node: Mapping[str, Any]
    value: Any
    has_alternatives: bool = False
    """Whether another part of an `anyOf` may speak of the value as well."""


def nodes(schema: Any, pointer: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every subschema with its JSON pointer."""
    if not isinstance(schema, dict):
        return
    yield pointer, schema
    for keyword in _MAPS:
        for name, entry in schema.get(keyword, {}).items():
            yield from nodes(entry, f"{pointer}/{keyword}/{escaped(name)}")
    for keyword in _LISTS:
        for index, entry in enumerate(schema.get(keyword, ())):
            yield from nodes(entry, f"{pointer}/{keyword}/{index}")
    for keyword in (*_SINGLE, _NAMES):
        yield from nodes(schema.get(keyword), f"{pointer}/{keyword}")


def spots(schema: Any, document: Any) -> Iterator[Spot]:
    """Where in this document something applies that only our own keywords say."""

    seen: set[tuple[str, Path]] = set()  # a reference may lead back to itself

    def walk(node: Any, pointer: str, value: Any, path: Path, choice: bool) -> Iterator[Spot]:
        if not isinstance(node, dict) or not _may_be(node, value) or (pointer, path) in seen:
            return
        seen.add((pointer, path))
        if CHECKED in node or DECIMAL in node:
            yield Spot(path, pointer, node, value, choice)
        reference = node.get("$ref")
        if isinstance(reference, str) and reference.startswith("#/"):
            yield from walk(at(schema, reference[1:]), reference[1:], value, path, choice)
        for keyword in ("allOf", "anyOf", "oneOf"):
            entries = node.get(keyword, ())
            several = keyword != "allOf" and sum(_may_be(entry, value) for entry in entries) > 1
            for index, entry in enumerate(entries):
                where = f"{pointer}/{keyword}/{index}"
                yield from walk(entry, where, value, path, choice or several)
        if isinstance(value, dict):
            names = node.get(_NAMES)
            for name, inner in value.items():
                yield from walk(names, f"{pointer}/{_NAMES}", name, (*path, name, _KEY), choice)
                for where, entry in _of_name(node, name):
                    yield from walk(entry, pointer + where, inner, (*path, name), choice)
        elif isinstance(value, list):
            prefix = node.get("prefixItems", ())
            for index, inner in enumerate(value):
                if index < len(prefix):
                    where, entry = f"/prefixItems/{index}", prefix[index]
                else:
                    where, entry = "/items", node.get("items")
                yield from walk(entry, pointer + where, inner, (*path, index), choice)

    yield from walk(schema, "", document, (), False)


def first_beyond(schema: Any, document: Any) -> Spot | None:
    """Where a value of this document is beyond bounds that only our own keywords say, if no other
    alternative takes it. The document must be one of the schema as far as a validator sees."""
    found = list(spots(schema, document))
    beyond = [spot for spot in found if _is_beyond(spot)]
    surely = next((spot for spot in beyond if not spot.has_alternatives), None)
    if surely is not None or not beyond:
        return surely
    narrower: dict[str, Any] = {}
    for pointer in {spot.pointer for spot in beyond}:
        within_bounds = [s.value for s in found if s.pointer == pointer and not _is_beyond(s)]
        allowed = {"enum": within_bounds} if within_bounds else False
        narrower[pointer] = {"allOf": [at(schema, pointer), allowed]}
    return None if accepts(plain(replaced(schema, narrower)))(document) else beyond[0]


def _is_beyond(spot: Spot) -> bool:
    if not isinstance(spot.value, str):
        return False
    if DECIMAL in spot.node and not within(spot.node[DECIMAL])(spot.value):
        return True
    return not all(
        _is_within(kind, check, spot.value)
        for kind in _kinds_of_moment(spot.node)
        for check in spot.node.get(CHECKED, ())
    )


def are_bounds(node: Mapping[str, Any]) -> bool:
    """Whether all that is checked here are bounds on texts of a point or a length of time."""
    return bool(_kinds_of_moment(node)) and all(map(_BOUND.fullmatch, node.get(CHECKED, ())))


def with_bounds_of(now: Any, writer: Any) -> Any:
    """The writer's schema with the bounds that `now` has on the same points and lengths of time,
    where it has none: for lock files of the first edition, which left them out."""
    found = {}
    for pointer, node in nodes(writer):
        other = at(now, pointer)
        if not isinstance(other, dict) or CHECKED in node or not are_bounds(other):
            continue
        if node == {name: value for name, value in other.items() if name != CHECKED}:
            found[pointer] = other
    return replaced(writer, found)


def _kinds_of_moment(node: Mapping[str, Any]) -> list[str]:
    """The format of a part that is a text of a point or a length of time: one, or none."""
    ways = [node, *node.get("anyOf", ())]
    found = {way.get("format") for way in ways if isinstance(way, dict)}
    return [kind for kind in _MOMENTS if kind in found]


@lru_cache(maxsize=4_096)
def _is_within(kind: str, check: str, text: str) -> bool:
    """Whether a time, given as text, is within a bound. True if the check is no bound on it."""
    bound = _BOUND.fullmatch(check)
    if bound is None:
        return True
    moment: TypeAdapter[Any] = TypeAdapter(_MOMENTS[kind])
    try:
        limit, value = moment.validate_python(bound[2]), moment.validate_python(text)
    except ValidationError:
        return True
    bounded: Any = Annotated[_MOMENTS[kind], Field(**{bound[1]: limit})]
    try:
        TypeAdapter(bounded).validate_python(value)
    except (ValidationError, TypeError):  # as for a time with a zone and a bound without
        return False
    return True


def _near_bound(check: str) -> tuple[list[Any], list[str]]:
    """Texts of times on a bound and around it: a pool for a check that is one."""
    found: list[Any] = []
    bound = _BOUND.fullmatch(check)
    if bound is not None:
        for kind in _MOMENTS.values():
            with suppress(ValidationError):
                found += _around(TypeAdapter(kind).validate_python(bound[2]))
    return [to_jsonable_python(value) for value in found], []


def _around(limit: Any) -> Iterator[Any]:
    if isinstance(limit, time):
        yield from (limit, *(limit.replace(minute=n) for n in (0, 30, 59)))
        yield from (limit.replace(hour=(limit.hour + n) % 24) for n in (1, 23))
        return
    for step in (0, 1, -1, 30, -30):
        for unit in (timedelta(seconds=1), timedelta(hours=1), timedelta(days=1)):
            with suppress(OverflowError):
                yield limit + step * unit


def replaced(schema: Any, replacements: Mapping[str, Any]) -> Any:
    """A copy of the schema that says something else at these JSON pointers."""
    copy = json.loads(json.dumps(schema))
    for pointer, new in sorted(replacements.items(), key=lambda item: -item[0].count("/")):
        if not pointer:
            return {**new, "$defs": copy["$defs"]} if "$defs" in copy else dict(new)
        holder = at(copy, pointer.rpartition("/")[0])
        last = parts_of(pointer)[-1]
        if isinstance(holder, list):
            holder[int(last)] = new
        elif isinstance(holder, dict):
            holder[last] = new
    return copy


def aligned(writer: Any, reader: Any) -> Any:
    """The reader's schema, with the writer's own part wherever that is surely read.

    It accepts no more than the reader's does, so what is proved of it is true; and it differs from
    the writer's only in what is worth trying."""
    taken = {}
    for pointer, node in _leaves(writer):
        part = at(reader, pointer)
        if isinstance(part, dict) and _is_leaf(part) and _covered(_text(node), _text(part)):
            taken[pointer] = node
    return replaced(reader, taken)


def _leaves(schema: Any, pointer: str = "") -> Iterator[tuple[str, Any]]:
    """The largest subschemas that refer to no other and have no fields."""
    if _is_leaf(schema) and pointer:
        yield pointer, schema
    elif isinstance(schema, dict):
        for keyword in ("properties", "$defs"):
            for name, entry in schema.get(keyword, {}).items():
                yield from _leaves(entry, f"{pointer}/{keyword}/{escaped(name)}")
        for keyword in _SINGLE:
            yield from _leaves(schema.get(keyword), f"{pointer}/{keyword}")


def _is_leaf(schema: Any) -> bool:
    return isinstance(schema, dict) and not any(
        "$ref" in node or "properties" in node or CHECKED in node for _, node in nodes(schema)
    )


def _text(schema: Any) -> str:
    return json.dumps(schema, sort_keys=True)


@lru_cache(maxsize=4_096)
def _covered(writer: str, reader: str) -> bool:
    """Whether the one schema is proved to accept all of the other."""
    mine, theirs = json.loads(writer), json.loads(reader)
    return isinstance(compare(plain(mine), plain(theirs)), Compatible)


def varied(
    writer: dict[str, Any],
    reader: dict[str, Any],
    pools: Pools,
    limit: int,
    others: Sequence[Any] = (),
) -> list[Any]:
    """Documents of the writer's schema, those beside the bounds of others among them, and with
    values worth trying put in: decimal numbers on all bounds, and at what the reader checks the
    values that its code mentions."""
    also = [plain(other) for other in others]
    found = _as_many(writer, also, limit)
    enriched = replaced(writer, _worth_trying(writer, reader, pools))
    if enriched != writer:
        found += _as_many(enriched, also, limit)
    return [as_written(document) for document in found]


def _as_many(schema: Any, also: Sequence[Any], limit: int) -> list[Any]:
    """Documents of the schema; fewer, or none, where it is too large for many."""
    for others, most in ((also, limit), ((), 10), ((), 1)):
        try:
            return documents(plain(schema), also=others, limit=most)
        except Undecided:
            continue
    return []


def as_written(value: Any) -> Any:
    """The document with whole numbers without a point, as a writer of whole numbers has them."""
    if isinstance(value, dict):
        return {name: as_written(part) for name, part in value.items()}
    if isinstance(value, list):
        return [as_written(part) for part in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _worth_trying(writer: Any, reader: Any, pools: Pools) -> dict[str, Any]:
    near = numbers_in(writer, reader)
    enriched: dict[str, Any] = {}
    for pointer, node in nodes(writer):
        read_within = [part[DECIMAL] for _, part in nodes(at(reader, pointer)) if DECIMAL in part]
        is_name, is_text = _NAMES in pointer, node.get("type") == "string"
        texts: list[str] = []
        if DECIMAL in node and node[DECIMAL] not in read_within:
            texts = decimals(node[DECIMAL], near)
        elif DECIMAL in node and is_name:  # without a name, nothing below it would be tried
            texts = list(filter(accepts(plain(node)), decimals(node[DECIMAL], near)))[:2]
        elif DECIMAL not in node and read_within and "pattern" in node and (is_name or is_text):
            texts = list(filter(accepts(plain(node)), decimals({}, near)))
        if texts:  # of an enumeration the first values are tried
            doubtful = [text for text in texts if not all(within(b)(text) for b in read_within)]
            enriched[pointer] = {"enum": list(dict.fromkeys([*doubtful, *texts]))}
    for pointer, checks in _checks_of(reader):
        for place in _values_below(writer, pointer):
            known_pools = [pools[name] for name in checks if name in pools]
            values = _values_of(writer, place, [*known_pools, *map(_near_bound, checks)])
            if values:
                known = enriched.get(place, {"enum": []})["enum"]
                enriched[place] = {"enum": [*known, *(v for v in values if v not in known)]}
    return enriched


def has_bounds(node: Any, bounds: Any) -> bool:
    """Whether a number written as text has these bounds here."""
    return any(part.get(DECIMAL) == bounds for _, part in nodes(node))


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
        yield f"{pointer}/properties/{escaped(name)}"


def _values_of(writer: Any, pointer: str, pools: Sequence[Any]) -> list[Any]:
    """Values of this part of the writer's schema, those that somebody may look for among them."""
    shared = {key: writer[key] for key in ("$schema", "$defs", "definitions") if key in writer}
    part = plain({**shared, **at(writer, pointer)})
    candidates: list[Any] = [*_as_many(part, (), 12), *_USUAL]
    lengths = set()
    for values, patterns in pools:
        candidates += values
        candidates += [str(value) for value in values if isinstance(value, int | float)]
        lengths |= {value for value in values if isinstance(value, int) and 0 <= value <= 5_000}
        for pattern in patterns:
            with suppress(Undecided):  # many a text of a function only looks like a pattern
                candidates += documents({"type": "string", "pattern": pattern}, limit=5)
    candidates += ["a" * length for length in sorted(lengths)]
    names = [value for values, _ in pools for value in values if isinstance(value, str)]
    candidates += _of_lengths(part, sorted({*(n for n in lengths if n <= 300), 30}), names)
    accepted = accepts(part)
    kept: list[Any] = []
    for value in candidates:
        if accepted(value) and not any(type(value) is type(k) and value == k for k in kept):
            kept.append(value)
    return kept[:90]


def _of_lengths(part: dict[str, Any], lengths: Sequence[int], names: Sequence[str]) -> list[Any]:
    """Lists and objects of these lengths, in no order, and with these names."""
    inside = part.get("items", part.get("additionalProperties"))
    if part.get("type") not in ("array", "object") or not isinstance(inside, dict):
        return []
    shared = {key: part[key] for key in ("$schema", "$defs", "definitions") if key in part}
    values = _as_many({**shared, **inside}, (), 12)
    if not values:
        return []
    if part["type"] == "object":
        named = [{name: values[0]} for name in (*names, "id", "a", "b")]
        return [*named, *({f"k{n}": values[0] for n in range(length)} for length in lengths)]
    values += [name for name in names if isinstance(values[0], str)]
    pairs = [[one, other] for one in values for other in values if one != other][:20]
    return [*pairs, values[::-1], *([values[-1]] * length for length in lengths)]


def numbers_in(*schemas: Any) -> list[Decimal]:
    """The numbers that bound something in these schemas."""
    found: list[Decimal] = []
    for schema in schemas:
        for _, node in nodes(schema):
            bounds = [node.get(key) for key in ("minimum", "maximum", "exclusiveMinimum",
                                                "exclusiveMaximum", "multipleOf")]  # fmt: skip
            of_texts = [v for k, v in node.get(DECIMAL, {}).items() if k in _LIMITS]
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
        yield f"/properties/{escaped(name)}", node["properties"][name]
    elif isinstance(node.get("additionalProperties"), dict):
        yield "/additionalProperties", node["additionalProperties"]
    for pattern, entry in node.get("patternProperties", {}).items():
        yield f"/patternProperties/{escaped(pattern)}", entry


def _may_be(node: Any, value: Any) -> bool:
    if not isinstance(node, dict):
        return bool(node)
    kind = node.get("type")
    return not isinstance(kind, str) or isinstance(value, _KINDS[kind])
