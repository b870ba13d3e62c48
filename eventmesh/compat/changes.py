"""Lists the differences between two schemas, in the words of their authors.

A verdict says whether a reader accepts everything that a writer may write. Authors also want to
know which of their edits caused it. So this module walks both schemas side by side and reports each
difference with a rule code, a pointer, the field and a fix, for example: EM004 at
`#/properties/age/maximum`, "the reader requires at most 99, and the writer has no such bound".

The list explains a verdict and never decides it: a difference may be harmless where it occurs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eventmesh.compat.schema.formats import FORMATS
from eventmesh.compat.schema.pointers import pointer_to, resolve_reference
from eventmesh.compat.schema.reading import Schema
from eventmesh.compat.verdict import Change

MAX_CHANGES = 200
MAX_DEPTH = 60


@dataclass(frozen=True, slots=True)
class Place:
    """Where one is: the pointer into the reader's schema, and the field in the model's words."""

    pointer: str = "#"
    field: str = ""

    def under(self, *parts: str | int) -> Place:
        return Place(self.pointer + pointer_to(parts), self.field)

    def named(self, name: str) -> Place:
        return Place(self.pointer, f"{self.field}.{name}" if self.field else name)

    def entry(self, place: str = "") -> Place:
        return Place(self.pointer, f"{self.field}[{place}]")


def changes(writer: Schema, reader: Schema) -> tuple[Change, ...]:
    """Where the reader's schema differs from the writer's; what narrows it comes first."""
    found: list[Change] = []
    for change in _Walk(writer, reader).run():
        if change not in found:
            found.append(change)
        if len(found) >= MAX_CHANGES:
            break
    return tuple(sorted(found, key=lambda change: _LATER.get(change.rule, 0)))


_LATER = {"EM021": 3, "EM018": 2, "EM017": 1, "EM029": 1}
"""The rules of differences that seldom break anything, and their order after all others."""


class _Walk:
    def __init__(self, writer: Schema, reader: Schema) -> None:
        self._roots = (writer, reader)
        self._seen: set[tuple[int, int]] = set()

    def run(self) -> Iterator[Change]:
        yield from self._compare(*self._roots, Place(), 0)

    def _compare(self, writer: Any, reader: Any, place: Place, depth: int) -> Iterator[Change]:
        writer, reader = self._resolved(writer, 0), self._resolved(reader, 1)
        mark = (id(writer), id(reader))
        if writer == reader and not self._refer(writer):
            return
        if mark in self._seen or depth > MAX_DEPTH:
            return
        self._seen.add(mark)
        if reader is False:
            yield _change("EM020", place, "the reader rejects every value", "Accept it again.")
            return
        if not isinstance(writer, dict) or not isinstance(reader, dict):
            if writer is not False and isinstance(reader, dict):
                yield from self._compare({}, reader, place, depth)
            return
        yield from self._alternatives(writer, reader, place, depth)
        for rule in _RULES:
            yield from rule(writer, reader, place)
        yield from self._fields(writer, reader, place, depth)
        yield from self._entries(writer, reader, place, depth)
        for keyword in ("additionalProperties", "propertyNames", "contains"):
            if isinstance(writer.get(keyword), dict) and isinstance(reader.get(keyword), dict):
                there = place.under(keyword)
                there = there.entry("*") if keyword == "additionalProperties" else there
                yield from self._compare(writer[keyword], reader[keyword], there, depth + 1)

    def _refer(self, schema: Any) -> bool:
        """Whether equal words may mean different things, by definitions that differ."""
        return self._definitions(0) != self._definitions(1) and "'$ref'" in repr(schema)

    def _definitions(self, side: int) -> Any:
        root = self._roots[side]
        if isinstance(root, bool):
            return {}
        return root.get("$defs", {}), root.get("definitions", {})

    def _resolved(self, schema: Any, side: int) -> Any:
        """The schema that a local reference leads to, beside its siblings."""
        for _ in range(20):
            reference = schema.get("$ref") if isinstance(schema, dict) else None
            if not isinstance(reference, str) or not reference.startswith("#"):
                return schema
            target = resolve_reference(self._roots[side], reference)
            if target is None:
                return schema
            siblings = {k: v for k, v in schema.items() if k != "$ref"}
            schema = {**target, **siblings} if siblings and isinstance(target, dict) else target
        return schema

    def _fields(
        self, writer: Mapping[str, Any], reader: Mapping[str, Any], place: Place, depth: int
    ) -> Iterator[Change]:
        written, read = writer.get("properties", {}), reader.get("properties", {})
        closed = reader.get("additionalProperties") is False
        asked = set(reader.get("required", ())) - set(writer.get("required", ()))
        for name in sorted(asked):
            there = place.under("required").named(name)
            if name in written:
                detail, fix = (
                    "the writer may leave it out, and the reader requires it",
                    f"Give {name!r} a default in the reader.",
                )
            else:
                detail, fix = (
                    "the writer never writes it, and the reader requires it",
                    f"Give {name!r} a default, or raise the version and write an upcaster.",
                )
            yield _change("EM001", there, detail, fix)
        for name in written:
            if name in read:
                continue
            there = place.under("properties", name).named(name)
            if closed:
                yield _change(
                    "EM012", there, "the reader rejects it as an unknown field",
                    "Take extra=\"forbid\" away from the reader, or keep the field.",
                )  # fmt: skip
            elif writer.get("properties") is not None and (read or "properties" in reader):
                yield _change(
                    "EM017", there, "it is written, and the reader no longer reads it",
                    "Nothing, if no one misses it.",
                )  # fmt: skip
        for name, part in read.items():
            there = place.under("properties", name).named(name)
            if name in written:
                yield from self._compare(written[name], part, there, depth + 1)
            elif name not in asked:
                yield _change(
                    "EM018", there, "the reader reads it, and the writer does not write it",
                    "Nothing: its default stands in.",
                )  # fmt: skip
        if closed and writer.get("additionalProperties") is not False:
            yield _change(
                "EM012", place.under("additionalProperties"),
                "the writer may write fields that are not named, and the reader rejects them",
                "Let the reader ignore fields that it does not know.",
            )  # fmt: skip

    def _entries(
        self, writer: Mapping[str, Any], reader: Mapping[str, Any], place: Place, depth: int
    ) -> Iterator[Change]:
        mine, theirs = _entries_of(writer), _entries_of(reader)
        for number in range(max(len(mine[0]), len(theirs[0]))):
            one = mine[0][number] if number < len(mine[0]) else mine[1]
            other = theirs[0][number] if number < len(theirs[0]) else theirs[1]
            there = place.under("prefixItems", number).entry(str(number))
            yield from self._compare(one, other, there, depth + 1)
        if theirs[1] is False and mine[1] is not False:
            yield _change(
                "EM010", place.under("items").entry(), "the reader rejects further entries",
                "Let it take them, or raise the version.",
            )  # fmt: skip
        elif theirs[1] is not True:
            yield from self._compare(mine[1], theirs[1], place.under("items").entry(), depth + 1)

    def _alternatives(
        self, writer: Mapping[str, Any], reader: Mapping[str, Any], place: Place, depth: int
    ) -> Iterator[Change]:
        for keyword in ("anyOf", "oneOf", "allOf"):
            mine, theirs = writer.get(keyword), reader.get(keyword)
            if mine == theirs and not self._refer(mine):
                continue
            mine = mine if mine is not None else [_without(writer, _APPLICATORS)]
            if theirs is None:
                theirs = [_without(reader, _APPLICATORS)]
            if keyword == "allOf" or (writer.get(keyword) and len(mine) == len(theirs)):
                for number, (one, other) in enumerate(zip(mine, theirs, strict=False)):
                    yield from self._compare(one, other, place.under(keyword, number), depth + 1)
                continue
            yield from self._lost(keyword, mine, theirs, place, depth)

    def _lost(
        self, keyword: str, mine: Sequence[Any], theirs: Sequence[Any], place: Place, depth: int
    ) -> Iterator[Change]:
        """Alternatives of the writer's that the reader has not."""
        read = [self._resolved(schema, 1) for schema in theirs]
        for one in mine:
            written = self._resolved(one, 0)
            if written in read:
                continue
            kind = written.get("type") if isinstance(written, dict) else None
            alike = [
                schema for schema in read if isinstance(schema, dict) and schema.get("type") == kind
            ]
            if kind == "null" and not alike:
                yield _change(
                    "EM019", place, "null may be written, and the reader rejects it",
                    "Accept None in the reader, or raise the version and write an upcaster.",
                )  # fmt: skip
            elif len(alike) == 1 and kind is not None:
                yield from self._compare(written, alike[0], place.under(keyword), depth + 1)
            else:
                yield _change(
                    "EM015", place.under(keyword),
                    f"the reader lacks the alternative {_spell(written)}",
                    "Keep the alternative, or raise the version and write an upcaster.",
                )  # fmt: skip


_APPLICATORS = ("anyOf", "oneOf", "allOf", "title", "description", "default", "examples", "$defs",
                "definitions", "$schema", "$id")  # fmt: skip

Rule = Callable[[Mapping[str, Any], Mapping[str, Any], Place], Iterator[Change]]


def _types(writer: Mapping[str, Any], reader: Mapping[str, Any], place: Place) -> Iterator[Change]:
    asked = reader.get("type")
    if asked is None:
        return
    read = {asked} if isinstance(asked, str) else set(asked)
    stated = writer.get("type")
    if stated is None:
        if not any(keyword in writer for keyword in ("anyOf", "oneOf", "allOf", "enum", "const")):
            yield _change(
                "EM002", place.under("type"), f"anything may be written, and only {_list(read)} "
                f"is read", "Accept anything, or raise the version.",
            )  # fmt: skip
        return
    lost = ({stated} if isinstance(stated, str) else set(stated)) - read
    lost -= {"integer"} if "number" in read else set()
    if lost == {"null"}:
        yield _change(
            "EM019", place.under("type"), "null may be written, and the reader rejects it",
            "Accept None in the reader, or raise the version and write an upcaster.",
        )  # fmt: skip
    elif lost:
        yield _change(
            "EM002", place.under("type"),
            f"{_list(lost)} may be written, and {_list(read)} is read",
            "Keep the type, or raise the version and write an upcaster.",
        )  # fmt: skip


def _values(writer: Mapping[str, Any], reader: Mapping[str, Any], place: Place) -> Iterator[Change]:
    read = _values_of(reader)
    if read is None:
        return
    written = _values_of(writer)
    if written is None:
        detail = f"any value may be written, and only {_spell(read)} is read"
    else:
        known = {repr(value) for value in read}
        lost = [value for value in written if repr(value) not in known]
        if not lost:
            return
        detail = f"{_spell(lost)} may be written, and the reader does not know it"
    keyword = "enum" if "enum" in reader else "const"
    yield _change(
        "EM003", place.under(keyword), detail,
        "Keep the values, or let the reader take any other as text.",
    )  # fmt: skip


def _bounds(writer: Mapping[str, Any], reader: Mapping[str, Any], place: Place) -> Iterator[Change]:
    for keyword, (rule, least, what) in _BOUNDS.items():
        asked = reader.get(keyword)
        if not _is_number(asked) or asked == writer.get(keyword):
            continue
        given = writer.get(keyword)
        stated = "the writer has no such bound"
        if isinstance(given, int | float) and not isinstance(given, bool):
            if asked is not None and (given >= asked if least else given <= asked):
                continue
            stated = f"the writer says {given}"
        yield _change(
            rule, place.under(keyword), f"{what} {asked}, and {stated}",
            "Keep the bound as wide as it was, or raise the version and write an upcaster.",
        )  # fmt: skip


_BOUNDS = {
    "minimum": ("EM004", True, "the reader requires at least"),
    "exclusiveMinimum": ("EM004", True, "the reader requires more than"),
    "maximum": ("EM004", False, "the reader requires at most"),
    "exclusiveMaximum": ("EM004", False, "the reader requires less than"),
    "minLength": ("EM005", True, "the reader requires a length of at least"),
    "maxLength": ("EM005", False, "the reader requires a length of at most"),
    "minItems": ("EM009", True, "the reader requires this many entries at least:"),
    "maxItems": ("EM009", False, "the reader requires this many entries at most:"),
    "minProperties": ("EM013", True, "the reader requires this many fields at least:"),
    "maxProperties": ("EM013", False, "the reader requires this many fields at most:"),
    "minContains": ("EM011", True, "the reader requires this many such entries at least:"),
    "maxContains": ("EM011", False, "the reader requires this many such entries at most:"),
}


def _others(writer: Mapping[str, Any], reader: Mapping[str, Any], place: Place) -> Iterator[Change]:
    for keyword, (rule, what, fix) in _OTHERS.items():
        asked, given = reader.get(keyword), writer.get(keyword)
        if asked is None or asked is False or asked == given:
            continue
        if keyword == "format" and asked not in FORMATS:
            continue
        stated = f", and the writer says {_spell(given)}" if given is not None else ""
        yield _change(rule, place.under(keyword), f"{what} {_spell(asked)}{stated}", fix)
    if "default" in writer and "default" in reader and writer["default"] != reader["default"]:
        yield _change(
            "EM021", place.under("default"),
            f"the default changed from {_spell(writer['default'])} to {_spell(reader['default'])}",
            "Keep the default, or raise the version.",
        )  # fmt: skip


_KEEP = "Keep what was accepted, or raise the version and write an upcaster."
_OTHERS = {
    "pattern": ("EM006", "the reader requires a string that matches", _KEEP),
    "format": ("EM007", "the reader requires a string of the format", _KEEP),
    "multipleOf": ("EM008", "the reader requires a multiple of", _KEEP),
    "uniqueItems": ("EM009", "the reader requires unique entries:", _KEEP),
    "contains": ("EM011", "the reader requires an entry that is", _KEEP),
    "propertyNames": ("EM013", "the reader requires names that are", _KEEP),
    "patternProperties": ("EM013", "the reader constrains fields by pattern:", _KEEP),
    "dependencies": ("EM014", "the reader requires fields that depend on others:", _KEEP),
    "dependentRequired": ("EM014", "the reader requires fields that depend on others:", _KEEP),
    "dependentSchemas": ("EM014", "the reader requires fields that depend on others:", _KEEP),
    "if": ("EM016", "the reader has the condition", _KEEP),
    "then": ("EM016", "if its condition holds, the reader requires", _KEEP),
    "else": ("EM016", "if its condition fails, the reader requires", _KEEP),
    "not": ("EM016", "the reader rejects", _KEEP),
    "unevaluatedProperties": ("EM012", "the reader constrains all other fields:", _KEEP),
    "unevaluatedItems": ("EM010", "the reader constrains all other entries:", _KEEP),
    "$ref": ("EM029", "the reader refers to", "Compare what is referred to."),
}

_RULES: tuple[Rule, ...] = (_types, _values, _bounds, _others)


def _change(rule: str, place: Place, detail: str, fix: str) -> Change:
    return Change(rule, place.pointer, place.field, detail, fix)


def _entries_of(schema: Mapping[str, Any]) -> tuple[list[Any], Any]:
    items = schema.get("items", True)
    if isinstance(items, list):
        return items, schema.get("additionalItems", True)
    return schema.get("prefixItems", []), items


def _values_of(schema: Mapping[str, Any]) -> list[Any] | None:
    if "const" in schema:
        return [schema["const"]]
    values = schema.get("enum")
    return values if isinstance(values, list) else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _without(schema: Mapping[str, Any], keywords: Sequence[str]) -> dict[str, Any]:
    return {keyword: value for keyword, value in schema.items() if keyword not in keywords}


def _list(names: set[Any]) -> str:
    return " or ".join(sorted(map(str, names)))


def _spell(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:117]}…"
