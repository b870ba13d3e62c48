"""One form for schemas of all drafts: draft 2020-12, nothing but what refuses documents.

References are inlined where they end, and point to `#/$defs/<n>` where they recur. Annotations are
gone. Formats that pydantic enforces are kept, all others are annotations.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from eventmesh.compat.budget import Undecided
from eventmesh.compat.schema.formats import FORMATS
from eventmesh.compat.schema.reading import Schema, check_target, dialect, stated
from eventmesh.compat.schema.shared import Reference, Root, share

if TYPE_CHECKING:
    from referencing._core import Resolver  # the type of a public function's result

MAX_PATTERN = 2_000
"""Characters of a pattern; the time to compile longer ones grows without measure."""

_SINCE_6 = {"const", "contains", "propertyNames"}
_SINCE_7 = {"if", "then", "else"}
_SINCE_2019 = {
    "minContains", "maxContains", "dependentRequired", "dependentSchemas",
    "unevaluatedItems", "unevaluatedProperties",
}  # fmt: skip
_PLAIN = {
    "type", "enum", "const", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum",
    "multipleOf", "minLength", "maxLength", "pattern", "minItems", "maxItems", "uniqueItems",
    "minContains", "maxContains", "required", "minProperties", "maxProperties",
    "dependentRequired",
}  # fmt: skip
_CONTENT = ("contentEncoding", "contentMediaType")
"""Up to draft 7 some validators check these and some do not: formats of which nothing is known."""
_ONE = {"not", "if", "then", "else", "contains", "propertyNames", "additionalProperties",
        "unevaluatedItems", "unevaluatedProperties"}  # fmt: skip
_MANY = {"allOf", "anyOf", "oneOf"}
_NAMED = {"properties", "patternProperties", "dependentSchemas"}


def normal(schema: Schema, draft: str) -> Schema:
    """The schema in its normal form.

    Raises Undecided where a reference leads out of it, or nowhere.
    """
    return normal_forms([schema], draft)[0]


def normal_forms(schemas: Sequence[Schema], draft: str) -> list[Schema]:
    """The same for several schemas, in terms that they share: what is equal is one object."""
    return share([_written(schema, draft) for schema in schemas])


def _written(schema: Schema, draft: str) -> tuple[Schema, Mapping[str, Any]]:
    """The schema written anew, and its definitions by number."""
    found = dialect(schema, draft)
    if isinstance(schema, bool):
        return schema, {}
    from referencing import Registry, Resource
    from referencing.exceptions import NoSuchResource, PointerToNowhere, Unresolvable
    from referencing.jsonschema import EMPTY_REGISTRY, specification_with

    specification = specification_with(str(stated(schema, found)["$schema"]))  # type: ignore[index]
    resource: Resource[Any] = specification.create_resource(schema)
    registry: Registry[Any] = EMPTY_REGISTRY.with_resource("", resource)
    identity = resource.id()
    if identity:
        registry = registry.with_resource(identity, resource)
    writer = _Writer(found, schema, evaluated="'unevaluated" in repr(schema))
    try:
        root = writer.write(schema, registry.resolver(identity or ""))
    except (Unresolvable, NoSuchResource, PointerToNowhere) as error:
        raise Undecided(f"the reference {str(error.ref)[:200]!r} cannot be resolved") from None
    return root, writer.definitions


def definitions_of(schema: Schema) -> Mapping[str, Schema]:
    """The definitions that a schema in its one form refers to."""
    return {} if isinstance(schema, bool) else schema.get("$defs", {})


def bare(schema: Schema) -> Schema:
    """The schema without its definitions."""
    return schema.part if isinstance(schema, Root) else schema


@dataclass(slots=True)
class _Writer:
    """Writes subschemas anew, and gives each target of a reference a number."""

    draft: str
    root: Schema
    evaluated: bool
    """Whether anything asks what was evaluated: then what refuses nothing may still count."""
    definitions: dict[str, Any] = field(default_factory=dict)
    _numbers: dict[int, str] = field(default_factory=dict)
    _kept: list[Any] = field(default_factory=list)

    def write(self, schema: Any, resolver: Resolver[Any]) -> Schema:
        if isinstance(schema, bool):
            return schema
        if not isinstance(schema, dict):
            raise Undecided("the target of a reference is not a valid schema")
        identity = schema.get("$id", schema.get("id") if self.draft == "4" else None)
        if isinstance(identity, str) and schema is not self.root and not identity.startswith("#"):
            from referencing.jsonschema import specification_with

            specification = specification_with(_uri_of(self.draft))
            resolver = resolver.in_subresource(specification.create_resource(schema))
        reference = schema.get("$ref")
        if isinstance(reference, str) and self.draft in "467":
            return self._refer(reference, resolver)  # in these drafts it hides its siblings
        parts = [self._refer(reference, resolver)] if isinstance(reference, str) else []
        dynamic = schema.get("$dynamicRef", schema.get("$recursiveRef"))
        if isinstance(dynamic, str) and self.draft in ("2019", "2020"):
            parts.append(self._refer_dynamically(dynamic, resolver))
        written = self._keywords(schema, resolver)
        if parts:
            # Beside the others, because `unevaluated…` looks at all that stands beside it.
            written["allOf"] = [*parts, *written.get("allOf", ())]
        return _tidy(written, evaluated=self.evaluated)

    def _refer(self, reference: str, resolver: Resolver[Any]) -> Schema:
        resolved = resolver.lookup(reference)
        target = resolved.contents
        if isinstance(target, bool):
            return target
        number = self._numbers.get(id(target))
        if number is None:
            number = self._numbers[id(target)] = str(len(self._numbers))
            self._kept.append(target)  # or its id could be given to another
            if not reference.startswith(("#/$defs/", "#/definitions/")):
                check_target(target, self.draft)
            self.definitions[number] = self.write(target, resolved.resolver)
        return Reference({"$ref": f"#/$defs/{number}"})

    def _refer_dynamically(self, reference: str, resolver: Resolver[Any]) -> Schema:
        anchor = reference.rpartition("#")[2]
        if _count_anchors(self.root, anchor) > 1:
            raise Undecided(f"the dynamic reference {reference!r} has more than one target")
        return self._refer(reference, resolver)

    def _keywords(self, schema: Mapping[str, Any], resolver: Resolver[Any]) -> dict[str, Any]:
        def sub(value: Any) -> Schema:
            return self.write(value, resolver)

        written: dict[str, Any] = {}
        for keyword, value in schema.items():
            if (
                (keyword in _SINCE_6 and self.draft == "4")
                or (keyword in _SINCE_7 and self.draft in "46")
                or (keyword in _SINCE_2019 and self.draft in "467")
            ):
                continue
            if keyword in _PLAIN:
                _check_pattern(value if keyword == "pattern" else "")
                written[keyword] = value
            elif keyword in _ONE:
                written[keyword] = sub(value)
            elif keyword in _MANY:
                written.setdefault(keyword, []).extend(sub(entry) for entry in value)
            elif keyword in _NAMED:
                for name in value if keyword == "patternProperties" else ():
                    _check_pattern(name)
                written[keyword] = {name: sub(entry) for name, entry in value.items()}
            elif keyword == "format" and value in FORMATS:
                written[keyword] = value
            elif keyword in _CONTENT and self.draft in "467":
                written.setdefault("allOf", []).append({"format": f"{keyword}:{value}"})
        self._add_items(written, schema, sub)
        if self.draft in ("4", "6", "7", "2019"):
            _add_dependencies(written, schema, sub)
        if self.draft == "4":
            _make_bounds_exclusive(written)
        return written

    def _add_items(
        self, written: dict[str, Any], schema: Mapping[str, Any], sub: Callable[[Any], Schema]
    ) -> None:
        prefix = schema.get("prefixItems") if self.draft == "2020" else None
        rest = schema.get("items")
        if self.draft != "2020" and isinstance(rest, list):
            prefix, rest = rest, schema.get("additionalItems")
        if prefix:
            written["prefixItems"] = [sub(entry) for entry in prefix]
        if rest is not None:
            written["items"] = sub(rest)


def _check_pattern(pattern: str) -> None:
    if len(pattern) > MAX_PATTERN:
        raise Undecided(f"the schema has a pattern of more than {MAX_PATTERN:,} characters")


def _add_dependencies(
    written: dict[str, Any], schema: Mapping[str, Any], sub: Callable[[Any], Schema]
) -> None:
    for name, value in schema.get("dependencies", {}).items():
        if isinstance(value, list):
            written.setdefault("dependentRequired", {})[name] = value
        else:
            written.setdefault("dependentSchemas", {})[name] = sub(value)


def _make_bounds_exclusive(written: dict[str, Any]) -> None:
    """Draft 4 says by true that a bound is exclusive."""
    for bound, exclusive in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
        if written.pop(exclusive, False) and bound in written:
            written[exclusive] = written.pop(bound)


def _tidy(written: dict[str, Any], *, evaluated: bool) -> Schema:
    """Without what refuses nothing, and with `unevaluated…` as `additional…` where it is that."""
    if written.keys() == {"allOf"} and len(written["allOf"]) == 1:
        return written["allOf"][0]  # type: ignore[no-any-return]
    in_place = _MANY | {"if", "dependentSchemas", "contains"}
    if not in_place & written.keys():
        for late, early in (
            ("unevaluatedProperties", "additionalProperties"),
            ("unevaluatedItems", "items"),
        ):
            if late in written:
                value = written.pop(late)
                written.setdefault(early, value)
    if "if" not in written or not (evaluated or "then" in written or "else" in written):
        for keyword in ("if", "then", "else"):
            written.pop(keyword, None)
    if "contains" not in written:
        written.pop("minContains", None)
        written.pop("maxContains", None)
    for keyword, plain in (("required", []), ("uniqueItems", False), ("minItems", 0),
                           ("minLength", 0), ("minProperties", 0)):  # fmt: skip
        if keyword in written and written[keyword] == plain:
            del written[keyword]
    for keyword in () if evaluated else ("additionalProperties", "items", "propertyNames"):
        if written.get(keyword) is True:
            del written[keyword]
    if isinstance(written.get("type"), list) and len(written["type"]) == 1:
        [written["type"]] = written["type"]
    return written or True


def _count_anchors(schema: Any, anchor: str) -> int:
    if isinstance(schema, list):
        return sum(_count_anchors(entry, anchor) for entry in schema)
    if not isinstance(schema, dict):
        return 0
    named = schema.get("$dynamicAnchor") == anchor or (
        not anchor and schema.get("$recursiveAnchor") is True
    )
    return named + sum(_count_anchors(entry, anchor) for entry in schema.values())


def _uri_of(draft: str) -> str:
    return str(stated({}, draft)["$schema"])  # type: ignore[index]
