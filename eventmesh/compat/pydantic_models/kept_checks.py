"""Which checks of a frozen reader the writer no longer makes at the same place.

No schema says what a validator does. Of a reader that is only known as frozen, it is certain that
it takes a value if the same validator has passed it in the writer, at that place:

| frozen reader                            | writer               | lost                |
|------------------------------------------|----------------------|---------------------|
| `quantity` and `discount` are `positive` | only `quantity` is   | that of `discount`  |
| `discount` is `positive`                 | writes no `discount` | none                |
| `discount` is `positive`, or null        | writes only null     | none                |

Both schemas are walked together, along the fields and entries that a document has, so it does not
matter in which definition a check stands. Where the reader has alternatives, those with a lost
check do not count, and the others must be proved to accept what the writer writes there.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eventmesh.compat.budget import StepBudget
from eventmesh.compat.compare import compare
from eventmesh.compat.pydantic_models.checks import checks_in, checks_of
from eventmesh.compat.pydantic_models.schemas import plain
from eventmesh.compat.schema.pointers import resolve_reference
from eventmesh.compat.verdict import Compatible

_STEPS = 1_000_000
_PROOF = 500
"""The steps that a proof about one kind of value costs; most need less."""
_DEFINITIONS = ("$schema", "$defs", "definitions")
_ALTERNATIVES = ("anyOf", "oneOf")
_COMBINING = {"$ref", "allOf", *_ALTERNATIVES, *_DEFINITIONS}

Lost = tuple[str, ...]
"""Names of checks with the fields that they were at, such as `discount (positive)`."""
Place = tuple[Any, ...]
"""The subschemas of the writer that all apply to a value; none if it may be anything."""


@dataclass(frozen=True, slots=True)
class _Kind:
    """One of the kinds of value that the writer may write at a place."""

    checks: frozenset[str]
    parts: tuple[Mapping[str, Any], ...]
    """Subschemas without references and alternatives, all of which apply."""


def lost_checks(writer: dict[str, Any], reader: dict[str, Any]) -> Lost:
    """The checks of the reader that what is written need not have passed, each once.

    The reader's schema must accept all that the writer's does. Raises Undecided, if the schemas are
    too large, and RecursionError.
    """
    if not checks_in(reader):
        return ()
    return tuple(dict.fromkeys(_Walk(writer, reader).lost((writer,), reader, "")))


class _Walk:
    """The walk through both schemas. Subschemas are told apart by their `id`."""

    def __init__(self, writer: dict[str, Any], reader: dict[str, Any]) -> None:
        self._writer = writer
        self._reader = reader
        self._budget = StepBudget(_STEPS)
        self._kinds: dict[tuple[int, ...], list[_Kind]] = {}
        self._known: dict[tuple[int, int], Lost] = {}
        """What is lost of a kind of value in a subschema of the reader."""
        self._proofs: dict[str, bool] = {}
        self._assumed: list[tuple[int, int]] = []
        """Of which of them it is still assumed, or follows from that, that nothing is."""

    def lost(self, place: Place, node: Any, field: str) -> Lost:
        key = tuple(map(id, place))
        if key not in self._kinds:
            self._kinds[key] = self._kinds_of(place, frozenset())
        return tuple(each for kind in self._kinds[key] for each in self._lost_of(kind, node, field))

    def _kinds_of(self, place: Place, above: frozenset[int]) -> list[_Kind]:
        kinds = [_Kind(frozenset(), ())]
        for node in place:
            if node is False:
                return []
            if not isinstance(node, dict) or id(node) in above:
                continue
            inner = above | {id(node)}
            own = {keyword: part for keyword, part in node.items() if keyword not in _COMBINING}
            kinds = self._both(kinds, [_Kind(frozenset(checks_of(node)), (own,))])
            kinds = self._both(kinds, self._kinds_of(tuple(_all_of(node, self._writer)), inner))
            for keyword in _ALTERNATIVES:
                if keyword in node:
                    kinds = self._both(
                        kinds,
                        [each for one in node[keyword] for each in self._kinds_of((one,), inner)],
                    )
        return kinds

    def _both(self, some: Sequence[_Kind], others: Sequence[_Kind]) -> list[_Kind]:
        self._budget.spend(len(some) * len(others))
        return [
            _Kind(one.checks | other.checks, one.parts + other.parts)
            for one in some
            for other in others
        ]

    def _lost_of(self, kind: _Kind, node: Any, field: str) -> Lost:
        """What is lost of this kind of value, where this subschema of the reader applies."""
        if not isinstance(node, dict):
            return ()
        key = id(kind), id(node)
        if key in self._known:
            return self._known[key]
        self._budget.spend()
        # A model may contain itself. Until it is known better, nothing is lost in it; if something
        # is, then what was found under that assumption does not count.
        assumed = len(self._assumed)
        self._known[key] = ()
        self._assumed.append(key)
        lost = tuple(self._search(kind, node, field))
        if lost:
            for each in self._assumed[assumed:]:
                del self._known[each]
            del self._assumed[assumed:]
            self._known[key] = lost
        return lost

    def _search(self, kind: _Kind, node: dict[str, Any], field: str) -> Iterator[str]:
        for check in checks_of(node):
            if check not in kind.checks:
                name = check.partition(":")[0]
                yield f"{field} ({name})" if field else name
        for part in _all_of(node, self._reader):
            yield from self._lost_of(kind, part, field)
        for keyword in _ALTERNATIVES:
            yield from self._lost_of_alternatives(kind, node.get(keyword, ()), field)
        if _may_be(kind, "object"):
            yield from self._lost_of_fields(kind, node, field)
        if _may_be(kind, "array"):
            yield from self._lost_of_entries(kind, node, field)

    def _lost_of_alternatives(self, kind: _Kind, nodes: Sequence[Any], field: str) -> Lost:
        found = [self._lost_of(kind, node, field) for node in nodes]
        kept = [node for node, lost in zip(nodes, found, strict=True) if not lost]
        if len(kept) == len(nodes) or (kept and self._accept_all(kept, kind)):
            return ()
        return tuple(each for lost in found for each in lost)

    def _accept_all(self, alternatives: Sequence[Any], kind: _Kind) -> bool:
        written = _complete({"allOf": [*kind.parts]}, self._writer)
        read = _complete({"anyOf": [*alternatives]}, self._reader)
        question = json.dumps([written, read], sort_keys=True)
        self._budget.spend(_PROOF // 100 if question in self._proofs else _PROOF)
        if question not in self._proofs:
            proof = compare(plain(written), plain(read))
            self._proofs[question] = isinstance(proof, Compatible)
        return self._proofs[question]

    def _lost_of_fields(self, kind: _Kind, node: dict[str, Any], field: str) -> Iterator[str]:
        named = node.get("properties", {})
        for name, inner in named.items():
            yield from self._lost_below(_field_of(kind, name), inner, f"{field}.{name}")
        names = dict.fromkeys(
            name for part in kind.parts for name in part.get("properties", {}) if name not in named
        )
        places = [*(_field_of(kind, name) for name in names), _field_of(kind, None)]
        for inner in (
            *node.get("patternProperties", {}).values(),
            node.get("additionalProperties"),
        ):
            for place in places:
                yield from self._lost_below(place, inner, f"{field}[]")

    def _lost_of_entries(self, kind: _Kind, node: dict[str, Any], field: str) -> Iterator[str]:
        first = node.get("prefixItems", ())
        for index, inner in enumerate(first):
            yield from self._lost_below(_entry_of(kind, index), inner, f"{field}[]")
        most = max([len(first), *(len(part.get("prefixItems", ())) for part in kind.parts)])
        for index in range(len(first), most + 1):
            yield from self._lost_below(_entry_of(kind, index), node.get("items"), f"{field}[]")

    def _lost_below(self, place: Place | None, node: Any, field: str) -> Lost:
        return () if place is None else self.lost(place, node, field.lstrip("."))


def _all_of(node: Mapping[str, Any], schema: Any) -> list[Any]:
    """The subschemas that apply as well."""
    reference = node.get("$ref")
    referred = [resolve_reference(schema, reference)] if isinstance(reference, str) else []
    return [*referred, *node.get("allOf", ())]


def _complete(part: dict[str, Any], schema: Mapping[str, Any]) -> dict[str, Any]:
    """A part of the schema with the definitions that it may refer to."""
    if '"$ref"' not in json.dumps(part):
        return part
    return part | {keyword: schema[keyword] for keyword in _DEFINITIONS if keyword in schema}


def _may_be(kind: _Kind, name: str) -> bool:
    types = (part["type"] for part in kind.parts if "type" in part)
    return all(name == one or (isinstance(one, list) and name in one) for one in types)


def _field_of(kind: _Kind, name: str | None) -> Place | None:
    """Where the writer writes this field, or without a name any that it does not declare; None if
    it writes none."""
    place: list[Any] = []
    for part in kind.parts:
        if name is not None and name in part.get("properties", {}):
            place.append(part["properties"][name])
        elif part.get("additionalProperties") is False and not part.get("patternProperties"):
            return None
        elif "additionalProperties" in part and not part.get("patternProperties"):
            place.append(part["additionalProperties"])
    return tuple(place)


def _entry_of(kind: _Kind, index: int) -> Place | None:
    """Where the writer writes the entry of a list with this index; None if it writes none."""
    place: list[Any] = []
    for part in kind.parts:
        first = part.get("prefixItems", ())
        if index >= part.get("maxItems", index + 1):
            return None
        if index < len(first):
            place.append(first[index])
        elif "items" in part:
            place.append(part["items"])
    return tuple(place)
