"""Several schemas in one set of terms: equal parts become one object, under one name.

Comparing large schemas is cheap if the parts that did not change cost nothing. So the normal forms
of all schemas of a question are rewritten together: two subschemas that say the same become the
same Python object, whether they are written out or referred to, and whatever their definitions are
called. Afterwards `is` tells whether they are equal, in both directions and without looking inside.

Example: the writer has `{"$ref": "#/$defs/Money"}` where the reader has an equal object written
out. Both become one `Part`, and the proof passes over it.

Recursive definitions are equal if they cannot be told apart by going down into them: all are
assumed to be equal at first, and are separated as long as what they refer to differs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from eventmesh.compat.budget import Undecided
from eventmesh.compat.schema.reading import MAX_NODES, Schema
from eventmesh.compat.schema.values import same

INLINE = 400
"""How many values a definition may have that is copied to where it is referred to."""

_SCHEMA = {
    "not", "if", "then", "else", "contains", "propertyNames", "additionalProperties", "items",
    "unevaluatedItems", "unevaluatedProperties",
}  # fmt: skip
_LISTS = {"allOf", "anyOf", "oneOf"}
_MAPS = {"properties", "patternProperties", "dependentSchemas"}


class Reference(dict[str, Any]):
    """A reference to a definition, and not a value of an enumeration that looks like one."""


class Root(dict[str, Any]):
    """A whole schema: its own part, with the definitions that it needs in `$defs`."""

    __slots__ = ("part",)
    part: Part


class Part(dict[str, Any]):
    """A subschema that is the only one of its kind among the schemas of a question."""

    __slots__ = ("number",)
    number: int


def is_part(schema: Schema) -> bool:
    """Whether the number tells if this schema equals another part."""
    return isinstance(schema, bool) or type(schema) is Part


def is_same(one: Schema, other: Schema) -> bool:
    """Whether two subschemas are equal; at no cost where both are parts."""
    if one is other:
        return True
    if type(one) is Part and type(other) is Part:
        return one.number == other.number
    return type(one) is type(other) and same(one, other)


def key_of(schemas: Sequence[Schema]) -> tuple[Any, ...]:
    """The same for equal conjunctions of subschemas."""
    return tuple(s.number if isinstance(s, Part) else repr(s) for s in schemas)


def share(roots: Sequence[tuple[Schema, Mapping[str, Any]]]) -> list[Schema]:
    """The schemas, each given with its own definitions, in one set of terms.

    Each result carries the definitions that it needs in `$defs`; a name there means the same in
    all of them. Raises Undecided where a schema is too large with its references followed.
    """
    definitions = {
        (side, name): body for side, (_, known) in enumerate(roots) for name, body in known.items()
    }
    parts = _Parts(definitions)
    return [parts.whole(side, root) for side, (root, _) in enumerate(roots)]


Target = tuple[int, str]


class _Parts:
    """Gives each subschema the number of its kind, and makes one object for each kind."""

    def __init__(self, definitions: Mapping[Target, Any]) -> None:
        self._definitions = definitions
        self._next = 0
        self._numbers: dict[Any, int] = {}
        self._of_definition: dict[Target, int] = {}
        self._source: dict[int, tuple[int, Any]] = {}
        """For each number a subschema of that kind, and the side that it is from."""
        self._sizes: dict[int, tuple[int, int]] = {}
        self._made: dict[int, Part] = {}
        self._bodies: dict[int, Part] = {}
        self._names: dict[int, str] = {}
        self._targets: set[int] = set()
        self._recurring: set[int] = set()
        self._number_recurring()

    # Numbers

    def _number_recurring(self) -> None:
        """Numbers for the definitions that lead back to themselves."""
        recurring = [t for t in _recurring(self._definitions) if self._followed(t) == t]
        colours: dict[Target, int] = dict.fromkeys(recurring, 0)
        while True:
            seen: dict[Any, int] = {}
            self._of_definition = {target: -1 - colour for target, colour in colours.items()}
            self._numbers = {}
            found = {}
            for target in recurring:
                key = self._key(target[0], self._definitions[target])
                found[target] = seen.setdefault(key, len(seen))
            if len(set(found.values())) == len(set(colours.values())):
                break
            colours = found
        # From here on a reference to one of them has the number of what it refers to.
        self._numbers, self._source, self._targets = {}, {}, set()
        numbers: dict[int, int] = {}
        for target in recurring:
            numbers.setdefault(colours[target], len(numbers))
        self._of_definition = {target: numbers[colour] for target, colour in colours.items()}
        self._next = len(numbers)
        self._recurring = set(numbers.values())
        for target in recurring:
            number = self._of_definition[target]
            if number not in self._source:
                self._source[number] = target[0], self._definitions[target]
                self._numbers[self._key(target[0], self._definitions[target])] = number

    def _number(self, side: int, schema: Any) -> Any:
        """The number of a subschema's kind; a boolean is its own."""
        if isinstance(schema, bool):
            return schema
        if isinstance(schema, Reference):
            return self._number_of_target((side, name_of(schema)))
        key = self._key(side, schema)
        number = self._numbers.get(key)
        if number is None:
            number = self._numbers[key] = self._next
            self._next += 1
            self._source[number] = side, schema
        return number

    def _followed(self, target: Target) -> Target:
        """The target itself, or what it is another name for."""
        seen = {target}
        while isinstance(body := self._definitions[target], Reference):
            target = target[0], name_of(body)
            if target in seen:
                raise Undecided("a reference refers only to itself")
            seen.add(target)
        return target

    def _number_of_target(self, target: Target) -> Any:
        target = self._followed(target)
        number = self._of_definition.get(target)
        if number is None:
            number = self._number(target[0], self._definitions[target])
            self._of_definition[target] = number
        if not isinstance(number, bool):
            self._targets.add(number)
        return number

    def _key(self, side: int, schema: Any) -> Any:
        """What two subschemas have in common if and only if they are of one kind."""
        if not isinstance(schema, dict) or isinstance(schema, Reference):
            return self._number(side, schema)
        found = []
        for keyword, value in schema.items():
            if keyword in _SCHEMA:
                held: Any = self._number(side, value)
                held = ("is", held) if isinstance(held, bool) else held
            elif keyword in _LISTS:
                held = tuple(sorted((self._number(side, part) for part in value), key=repr))
                held = tuple(map(repr, held))
            elif keyword == "prefixItems":
                held = tuple(repr(self._number(side, part)) for part in value)
            elif keyword in _MAPS:
                held = frozenset(
                    (name, repr(self._number(side, part))) for name, part in value.items()
                )
            elif keyword in ("required", "type", "enum") and isinstance(value, list):
                held = frozenset(map(_frozen, value))
            else:
                held = _frozen(value)
            found.append((keyword, held))
        return frozenset(found)

    # Objects

    def whole(self, side: int, root: Schema) -> Schema:
        number = self._number(side, root)
        if isinstance(number, bool):
            return number
        _, followed = self._size(number)
        if followed > MAX_NODES:
            raise Undecided(
                f"the schema has more than {MAX_NODES:,} values once references are resolved"
            )
        made = self._made_of(number)
        whole = Root({"allOf": [made]} if "$ref" in made else made)
        whole.part = made
        needed = self._needed(made)
        if needed:
            whole["$defs"] = {self._names[n]: self._body(n) for n in sorted(needed)}
        return whole

    def _size(self, number: int) -> tuple[int, int]:
        """How many values a kind has as it is written here, and with all references followed."""
        known = self._sizes.get(number)
        if known is not None:
            return known
        self._sizes[number] = 1, 1  # while it is being counted
        side, schema = self._source[number]
        written = followed = 1 + len(schema)
        for keyword, value in schema.items():
            for part in subschemas(keyword, value):
                inner = self._number(side, part)
                if isinstance(inner, bool):
                    written, followed = written + 1, followed + 1
                    continue
                one, other = self._size(inner)
                written += 1 if self._is_named(inner) else one
                followed += other
            if keyword in ("enum", "const"):
                written, followed = written + _count(value), followed + _count(value)
        self._sizes[number] = written, followed
        return written, followed

    def _is_named(self, number: int) -> bool:
        if number in self._recurring:
            return True
        return number in self._targets and self._size(number)[0] > INLINE

    def _made_of(self, number: Any) -> Any:
        if isinstance(number, bool):
            return number
        if self._is_named(number):
            name = self._names.setdefault(number, str(len(self._names)))
            reference = self._made.get(number)
            if reference is None:
                reference = self._made[number] = Part({"$ref": f"#/$defs/{name}"})
                reference.number = number
            return reference
        return self._body(number)

    def _body(self, number: int) -> Part:
        made = self._bodies.get(number)
        if made is None:
            made = self._bodies[number] = Part(self._written(*self._source[number]))
            made.number = number
        return made

    def _written(self, side: int, schema: Mapping[str, Any]) -> dict[str, Any]:
        def sub(part: Any) -> Any:
            return self._made_of(self._number(side, part))

        written: dict[str, Any] = {}
        for keyword, value in schema.items():
            if keyword in _SCHEMA:
                written[keyword] = sub(value)
            elif keyword in _LISTS or keyword == "prefixItems":
                written[keyword] = [sub(part) for part in value]
            elif keyword in _MAPS:
                written[keyword] = {name: sub(part) for name, part in value.items()}
            else:
                written[keyword] = value
        return written

    def _needed(self, made: Any) -> set[int]:
        numbers = {name: number for number, name in self._names.items()}
        needed: set[int] = set()
        seen: set[int] = set()
        ahead = [made]
        while ahead:
            part = ahead.pop()
            if isinstance(part, bool) or id(part) in seen:
                continue
            seen.add(id(part))
            if "$ref" in part:
                number = numbers.get(name_of(part))
                if number is None:
                    continue
                needed.add(number)
                ahead.append(self._body(number))
                numbers = {name: n for n, name in self._names.items()}
            for keyword, value in part.items():
                ahead += subschemas(keyword, value)
        return needed


def subschemas(keyword: str, value: Any) -> Iterator[Any]:
    """The schemas right below a keyword of a schema in normal form."""
    if keyword in _SCHEMA:
        yield value
    elif keyword in _LISTS or keyword == "prefixItems":
        yield from value
    elif keyword in _MAPS:
        yield from value.values()


def name_of(reference: Mapping[str, Any]) -> str:
    """The name of the definition that is referred to."""
    return str(reference["$ref"]).removeprefix("#/$defs/")


def _frozen(value: Any) -> Any:
    """The value as a key, equal for equal JSON values: 1 is 1.0 and is not true."""
    if isinstance(value, bool):
        return ("is", value)
    if isinstance(value, list):
        return tuple(map(_frozen, value))
    if isinstance(value, dict):
        return frozenset((name, _frozen(part)) for name, part in value.items())
    return value


def _count(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + sum(map(_count, value.values()))
    return 1 + sum(map(_count, value)) if isinstance(value, list) else 1


def _references(schema: Any) -> Iterator[str]:
    ahead = [schema]
    while ahead:
        part = ahead.pop()
        if isinstance(part, Reference):
            yield name_of(part)
        elif isinstance(part, dict):
            for keyword, value in part.items():
                ahead += subschemas(keyword, value)


def _recurring(definitions: Mapping[Target, Any]) -> list[Target]:
    """The definitions that lead back to themselves."""
    uses = {
        target: list(dict.fromkeys((target[0], name) for name in _references(body)))
        for target, body in definitions.items()
    }
    found = []
    for target in uses:
        seen: set[Target] = set()
        ahead = list(uses[target])
        while ahead:
            other = ahead.pop()
            if other == target:
                found.append(target)
                break
            if other not in seen:
                seen.add(other)
                ahead += uses[other]
    return found
