"""A digest of a schema that does not depend on how the schema is written.

pydantic writes schemas differently from release to release, and a nested class may be renamed.
Neither changes the messages, so neither may be reported as a change. A schema is brought into a
normal form, and the form is hashed: keywords without effect are left out, `const` becomes an `enum`
of one value, alternatives are sorted, and a reference is replaced by what it refers to. For
example, `{"const": 1}`, `{"enum": [1.0]}` and `{"$ref": "#/$defs/One"}` with such a definition
have the same digest.

Two schemas with equal digests accept the same documents and have the same defaults. Two that
accept the same documents may still have different digests; then they are compared by proof.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from eventmesh.compat.schema.formats import FORMATS
from eventmesh.compat.schema.pointers import resolve_reference

Form = dict[str, Any]
"""A schema in normal form. Under `allOf`, `anyOf` and `oneOf` there are forms; every other nested
schema is replaced by its digest."""

_KNOWN_FORMATS = FORMATS | {"password"}  # a secret is written as asterisks, so it matters
_TYPED: Mapping[str, frozenset[str]] = {
    "number": frozenset(
        {"multipleOf", "maximum", "exclusiveMaximum", "minimum", "exclusiveMinimum"}
    ),
    "string": frozenset(
        {"maxLength", "minLength", "pattern", "format", "x-decimal"}
        | {"contentEncoding", "contentMediaType", "contentSchema"}
    ),
    "array": frozenset(
        {"items", "prefixItems", "contains", "minContains", "maxContains"}
        | {"maxItems", "minItems", "uniqueItems", "unevaluatedItems"}
    ),
    "object": frozenset(
        {"properties", "patternProperties", "additionalProperties", "propertyNames", "required"}
        | {"maxProperties", "minProperties", "dependentRequired", "dependentSchemas"}
        | {"unevaluatedProperties"}
    ),
}
_ALL_TYPED = frozenset().union(*_TYPED.values())
_UNTYPED = frozenset({"not", "if", "then", "else"})
_ONE = frozenset(
    {"items", "additionalItems", "contains", "additionalProperties", "propertyNames", "not", "if"}
    | {"then", "else", "contentSchema", "unevaluatedItems", "unevaluatedProperties"}
)
_MANY = frozenset({"allOf", "anyOf", "oneOf", "prefixItems"})
_REFERENCES = frozenset({"$ref", "$dynamicRef", "$recursiveRef"})
_NAMED = frozenset({"properties", "patternProperties", "dependentSchemas"})
_WITHOUT_EFFECT: Sequence[tuple[str, Any]] = (
    ("minLength", 0),
    ("minItems", 0),
    ("minProperties", 0),
    ("uniqueItems", False),
    ("required", []),
    ("prefixItems", []),
    ("properties", {}),
    ("patternProperties", {}),
)
_JSON_TYPES: Mapping[str, tuple[type, ...]] = {
    "string": (str,),
    "number": (int, float),
    "integer": (int,),
    "object": (dict,),
    "array": (list,),
}
_DECIMAL = r"^(?!^[-+.]*$)[+-]?0*"
"""The beginning of the pattern that only some releases of pydantic write for a Decimal."""

_MAX_ROUNDS = 64


def digest(schema: Any, *, defaults: bool = True, checks: bool = False) -> str:
    """Equal for schemas with the same meaning.

    With `defaults`, the default values of fields are part of it; with `checks`, the user's
    validators are.
    """
    forms = _Forms(schema, defaults, checks)
    return forms.hash(forms.form(schema))


class _Forms:
    """Computes the forms of a schema and of its definitions.

    A reference to a definition outside any cycle is replaced by the form of the definition. For
    definitions in a cycle, such as a tree whose nodes hold nodes, that would not end. They are
    distinguished by colours: all start with the same one, and in each round a definition's new
    colour is the hash of its form, with its references replaced by their colours. After as many
    rounds as there are such definitions, those of equal colour accept the same documents.
    """

    def __init__(self, root: Any, defaults: bool, checks: bool) -> None:
        self._root = root
        self._whole = ""
        self._defaults = defaults
        self._untyped = _UNTYPED | {"x-checked"} if checks else _UNTYPED
        self._hashes: dict[int, tuple[Form, str]] = {}  # with the form, so that its id stays its
        self._definitions: dict[str, Form] = {}
        below, cyclic, above = _layers(root)
        for reference in below:
            self._define(reference)
        for reference in cyclic:
            self._definitions[reference] = {"$ref": ""}
        for _ in cyclic[:_MAX_ROUNDS]:
            seen = {name: self.hash(self.form(resolve_reference(root, name))) for name in cyclic}
            self._definitions |= {name: {"$ref": colour} for name, colour in seen.items()}
            self._hashes.clear()
        for reference in above:
            self._define(reference)

    def form(self, schema: Any) -> Form:
        """The form of a schema, without its own default."""
        if schema is True:
            return {}
        if not isinstance(schema, dict):
            return {"enum": []} if schema is False else {"enum": ["no schema", repr(schema)]}
        schema = _modernize(schema)
        parts = [self.form(part) for part in _list(schema.get("allOf"))]
        for keyword in _REFERENCES & schema.keys():
            parts.append(self._referred(str(schema[keyword])))
        if "anyOf" in schema:
            parts.append(self._any(self.form(branch) for branch in _list(schema["anyOf"])))
        if "oneOf" in schema:
            parts.append(self._one([self.form(branch) for branch in _list(schema["oneOf"])]))
        parts.append(self._typed(schema))
        parts.append(self._plain(schema, self._untyped))
        return self._all(parts)

    def hash(self, form: Form) -> str:
        if id(form) in self._hashes:
            return self._hashes[id(form)][1]
        hashed = {
            keyword: sorted(map(self.hash, value))
            if keyword in ("allOf", "anyOf", "oneOf")
            else value
            for keyword, value in form.items()
        }
        found = hashlib.sha256(_text(hashed).encode()).hexdigest()
        self._hashes[id(form)] = form, found
        return found

    def _define(self, reference: str) -> None:
        self._definitions[reference] = self.form(resolve_reference(self._root, reference))

    def _referred(self, reference: str) -> Form:
        if reference in self._definitions:
            return self._definitions[reference]
        if not self._whole:
            self._whole = hashlib.sha256(_text(self._root).encode()).hexdigest()
        # An anchor may be anywhere, so everything in the whole schema counts.
        return {"$ref": [reference, self._whole]}

    def _digest(self, schema: Any) -> str:
        return self.hash(self.form(schema))

    def _property(self, schema: Any) -> Any:
        if self._defaults and isinstance(schema, dict) and "default" in schema:
            return [self._digest(schema), _value(schema["default"])]
        return self._digest(schema)

    def _typed(self, schema: Mapping[str, Any]) -> Form:
        """The form of the keywords about types and values."""
        types = schema.get("type")
        stated = types if isinstance(types, list) else [types]
        names = [name for name in stated if isinstance(name, str)]
        if "enum" in schema:
            listed = {"enum": _values(v for v in _list(schema["enum"]) if _is_of(v, names))}
            return self._all([listed, self._plain(schema, _ALL_TYPED)])
        if not names:
            return self._plain(schema, _ALL_TYPED)
        return self._any(self._of_type(schema, name) for name in names)

    def _of_type(self, schema: Mapping[str, Any], name: str) -> Form:
        if name == "null":
            return {"enum": [None]}
        if name == "boolean":
            return {"enum": _values((False, True))}
        keywords = _TYPED.get("number" if name == "integer" else name, frozenset())
        return {"type": name} | self._plain(schema, keywords)

    def _plain(self, schema: Mapping[str, Any], keywords: frozenset[str]) -> Form:
        """The form of these keywords, without those that have no effect."""
        kept: Form = {}
        for keyword in keywords & schema.keys():
            value = schema[keyword]
            if (keyword, value) in _WITHOUT_EFFECT or not _counts(keyword, value):
                continue
            if keyword == "pattern" and "x-decimal" in schema:
                continue  # the pattern follows from it
            if keyword in _ONE:
                form = self.form(value)
                if form or keyword == "not":
                    kept[keyword] = self.hash(form)
            elif keyword == "prefixItems":
                kept[keyword] = [self._digest(item) for item in _list(value)]
            elif keyword == "properties" and isinstance(value, dict):
                kept[keyword] = {name: self._property(value[name]) for name in value}
            elif keyword in _NAMED and isinstance(value, dict):
                kept[keyword] = {name: self._digest(value[name]) for name in value}
            elif keyword == "required":
                kept[keyword] = _values(_list(value))
            else:
                kept[keyword] = _value(value)
        if kept.get("not") == self.hash({}):
            return {"enum": []}
        return kept

    def _all(self, forms: Sequence[Form]) -> Form:
        parts: dict[str, Form] = {}
        for form in forms:
            for part in form["allOf"] if form.keys() == {"allOf"} else [form]:
                if part:
                    parts[self.hash(part)] = part
        return _alone_or("allOf", parts, {})

    def _any(self, forms: Iterator[Form]) -> Form:
        branches: dict[str, Form] = {}
        values: list[Any] = []
        for form in forms:
            for branch in form["anyOf"] if form.keys() == {"anyOf"} else [form]:
                if not branch:
                    return {}  # everything is accepted
                if branch.keys() == {"enum"}:
                    values.extend(branch["enum"])
                else:
                    branches[self.hash(branch)] = branch
        if values:
            listed: Form = {"enum": _values(values)}
            branches[self.hash(listed)] = listed
        return _alone_or("anyOf", branches, {"enum": []})

    def _one(self, forms: Sequence[Form]) -> Form:
        possible = [form for form in forms if form != {"enum": []}]
        if len(possible) == 1:
            return possible[0]
        return {"oneOf": possible} if possible else {"enum": []}


def _layers(root: Any) -> tuple[list[str], list[str], list[str]]:
    """The references in use, in three groups: those that lead to no cycle; those in cycles or
    between them; and those that lead to cycles. The first and the last group are in an order in
    which each comes after what it refers to."""
    leads_to = _graph(root)
    below = _peel(leads_to)
    rest = {name: targets - set(below) for name, targets in leads_to.items() if name not in below}
    comes_from: dict[str, set[str]] = {name: set() for name in rest}
    for name, targets in rest.items():
        for target in targets:
            comes_from[target].add(name)
    above = _peel(comes_from)[::-1]
    return below, sorted(rest.keys() - set(above)), above


def _graph(root: Any) -> dict[str, set[str]]:
    """Each reference that can be reached, with the references in its target."""
    found: dict[str, set[str]] = {}
    waiting = list(_references(root))
    while waiting:
        name = waiting.pop()
        if name not in found and (target := resolve_reference(root, name)) is not None:
            found[name] = set(_references(target))
            waiting.extend(found[name])
    return {
        name: {target for target in targets if target in found} for name, targets in found.items()
    }


def _peel(leads_to: Mapping[str, set[str]]) -> list[str]:
    """The names that lead to no cycle, each after everything that it leads to."""
    left = {name: len(targets) for name, targets in leads_to.items()}
    comes_from: dict[str, list[str]] = {name: [] for name in leads_to}
    for name, targets in leads_to.items():
        for target in targets:
            comes_from[target].append(name)
    peeled = [name for name, count in left.items() if not count]
    for name in peeled:  # the list grows meanwhile
        for other in comes_from[name]:
            left[other] -= 1
            if not left[other]:
                peeled.append(other)
    return peeled


def _references(schema: Any) -> Iterator[str]:
    waiting = [schema]
    while waiting:
        schema = waiting.pop()
        if not isinstance(schema, dict):
            continue
        if "$ref" in schema:
            yield str(schema["$ref"])
        for keyword, value in _modernize(schema).items():
            if keyword in _MANY:
                waiting.extend(_list(value))
            elif keyword in _ONE:
                waiting.append(value)
            elif keyword in _NAMED and isinstance(value, dict):
                waiting.extend(value.values())


def _modernize(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema with `const` as `enum`, and other keywords as current drafts write them."""
    schema = dict(schema)
    if "const" in schema:
        constant = schema.pop("const")
        values = _list(schema["enum"]) if "enum" in schema else [constant]
        schema["enum"] = [value for value in values if _text(value) == _text(constant)]
    if isinstance(schema.get("items"), list):
        schema["prefixItems"] = schema.pop("items")
        if "additionalItems" in schema:
            schema["items"] = schema.pop("additionalItems")
    if isinstance(schema.get("dependencies"), dict):
        for name, needed in schema.pop("dependencies").items():
            keyword = "dependentRequired" if isinstance(needed, list) else "dependentSchemas"
            schema[keyword] = {**_dict(schema.get(keyword)), name: needed}
    length = len(_list(schema.get("prefixItems")))
    most = schema.get("maxItems")
    if schema.get("items") is False and not (isinstance(most, int | float) and most < length):
        schema["maxItems"] = most = length
    if length and most == length:
        schema.pop("items", None)
    if not length and most == 0:
        schema.pop("items", None)
    return schema


def _counts(keyword: str, value: Any) -> bool:
    if keyword == "format":
        return value in _KNOWN_FORMATS
    return keyword != "pattern" or not str(value).startswith(_DECIMAL)


def _is_of(value: Any, types: Sequence[str]) -> bool:
    if not types:
        return True
    value = _value(value)
    if value is None or isinstance(value, bool):
        return ("null" if value is None else "boolean") in types
    return any(isinstance(value, _JSON_TYPES.get(name, ())) for name in types)


def _alone_or(keyword: str, forms: Mapping[str, Form], nothing: Form) -> Form:
    if len(forms) < 2:
        return next(iter(forms.values()), nothing)
    return {keyword: [forms[name] for name in sorted(forms)]}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _values(values: Any) -> list[Any]:
    """The values sorted, each once."""
    by_text = {_text(value): value for value in map(_value, values)}
    return [by_text[text] for text in sorted(by_text)]


def _value(value: Any) -> Any:
    """The value with 1.0 written as 1, since they are equal in JSON Schema."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [_value(item) for item in value]
    if isinstance(value, dict):
        return {name: _value(item) for name, item in value.items()}
    return value


def _text(value: Any) -> str:
    return json.dumps(_value(value), sort_keys=True)
