"""Schemas with the same meaning have the same digest.

So a new release of pydantic that writes a schema in another way raises no false alarm.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventmesh.contracts.canonical import digest
from eventmesh.contracts.locks.lock_file import MAX_DEPTH, is_deeper

TEXT = {"type": "string"}
NUMBER = {"type": "number"}
NULL = {"type": "null"}
LINE = {"type": "object", "properties": {"sku": TEXT}, "required": ["sku"]}
NODE = {"type": "object", "properties": {"next": {"anyOf": [{"$ref": "#/$defs/Node"}, NULL]}}}
DECIMAL = r"^(?!^[-+.]*$)[+-]?0*\d*\.?\d*$"


def field(schema: Any, **definitions: Any) -> dict[str, Any]:
    """An object with one field of this schema."""
    return {"type": "object", "properties": {"f": schema}, "$defs": definitions}


def renamed(schema: Any, old: str, new: str) -> Any:
    return json.loads(json.dumps(schema).replace(old, new))


SAME: dict[str, tuple[Any, Any]] = {
    "null first or last": ({"anyOf": [TEXT, NULL]}, {"anyOf": [NULL, TEXT]}),
    "nullable as two types": ({"type": ["string", "null"]}, {"anyOf": [TEXT, NULL]}),
    "nullable with a bound": (
        {"type": ["string", "null"], "maxLength": 3},
        {"anyOf": [{"type": "string", "maxLength": 3}, NULL]},
    ),
    "a list of one type": ({"type": ["string"]}, TEXT),
    "const and an enum of one value": ({"const": "a"}, {"enum": ["a"]}),
    "const with and without its type": ({"const": "a"}, {"const": "a", "type": "string"}),
    "enum with and without its type": (
        {"enum": ["a", "b"]},
        {"enum": ["b", "a"], "type": "string"},
    ),
    "null as a value and as a type": ({"enum": ["a", None]}, {"anyOf": [{"const": "a"}, NULL]}),
    "null as a constant": ({"const": None}, NULL),
    "boolean and an enum of both booleans": ({"type": "boolean"}, {"enum": [True, False]}),
    "anyOf of constants and an enum": ({"anyOf": [{"const": 1}, {"const": 2}]}, {"enum": [2, 1]}),
    "an enum value that the type excludes": ({"type": "string", "enum": ["a", 1]}, {"const": "a"}),
    "1 and 1.0": ({"type": "number", "maximum": 1.0}, {"type": "number", "maximum": 1}),
    "1 and 1.0 among values": ({"enum": [1.0, 2]}, {"enum": [1, 2.0]}),
    "1 and 1.0 as defaults": (NUMBER | {"default": 1.0}, NUMBER | {"default": 1}),
    "a reference inside allOf": (
        field({"$ref": "#/$defs/A"}, A=LINE),
        field({"allOf": [{"$ref": "#/$defs/A"}]}, A=LINE),
    ),
    "a reference with a default": (
        field({"$ref": "#/$defs/A", "default": {"sku": ""}}, A=LINE),
        field({"allOf": [{"$ref": "#/$defs/A"}], "default": {"sku": ""}}, A=LINE),
    ),
    "a reference with annotations": (
        field({"$ref": "#/$defs/A"}, A=LINE),
        field({"$ref": "#/$defs/A", "title": "F", "description": "W", "deprecated": True}, A=LINE),
    ),
    "a renamed class": (
        field({"$ref": "#/$defs/A"}, A=LINE),
        field({"$ref": "#/$defs/my__Line-Output"}, **{"my__Line-Output": LINE}),
    ),
    "an unused definition": (field(TEXT), field(TEXT, A=LINE)),
    "an inlined definition": (field({"$ref": "#/$defs/A"}, A=LINE), field(LINE)),
    "two equal classes": (
        field({"anyOf": [{"$ref": "#/$defs/A"}, {"$ref": "#/$defs/B"}]}, A=LINE, B=dict(LINE)),
        field({"$ref": "#/$defs/A"}, A=LINE),
    ),
    "definitions of an older draft": (
        field({"$ref": "#/$defs/A"}, A=LINE),
        {
            "type": "object",
            "properties": {"f": {"$ref": "#/definitions/A"}},
            "definitions": {"A": LINE},
        },
    ),
    "an escaped reference": (
        field({"$ref": "#/$defs/a~1b%5Bc%5D"}, **{"a/b[c]": LINE}),
        field({"$ref": "#/$defs/A"}, A=LINE),
    ),
    "a renamed class in a cycle": (
        field({"$ref": "#/$defs/Node"}, Node=NODE),
        renamed(field({"$ref": "#/$defs/Node"}, Node=NODE), "Node", "Link"),
    ),
    "a cycle through the root": (
        {"$ref": "#/$defs/Node", "$defs": {"Node": NODE}},
        {"allOf": [{"$ref": "#/$defs/Link"}], "$defs": {"Link": renamed(NODE, "Node", "Link")}},
    ),
    "true and the empty schema": (field({}), field(True)),
    "a list of anything": ({"type": "array"}, {"type": "array", "items": {}}),
    "additional properties by default": (
        {"type": "object"},
        {"type": "object", "additionalProperties": True},
    ),
    "empty properties and required": (
        {"type": "object"},
        {"type": "object", "properties": {}, "required": []},
    ),
    "false and not anything": ({"not": {}}, False),
    "a minimum length of 0": (TEXT, TEXT | {"minLength": 0}),
    "array keywords without effect": (
        {"type": "array"},
        {"type": "array", "uniqueItems": False, "minItems": 0},
    ),
    "a tuple": (
        {"type": "array", "prefixItems": [TEXT, NUMBER], "minItems": 2, "maxItems": 2},
        {"type": "array", "prefixItems": [TEXT, NUMBER], "items": False, "minItems": 2},
    ),
    "a tuple of an older draft": (
        {"type": "array", "prefixItems": [TEXT], "maxItems": 1},
        {"type": "array", "items": [TEXT], "additionalItems": False},
    ),
    "a discriminator for OpenAPI": (
        {"oneOf": [TEXT, NUMBER]},
        {"oneOf": [NUMBER, TEXT], "discriminator": {"propertyName": "kind"}},
    ),
    "oneOf with one branch": ({"oneOf": [TEXT]}, TEXT),
    "nested anyOf": (
        {"anyOf": [TEXT, {"anyOf": [NUMBER, NULL]}]},
        {"anyOf": [NULL, NUMBER, TEXT, TEXT]},
    ),
    "dependencies of an older draft": (
        {"type": "object", "dependencies": {"a": ["b"], "c": TEXT}},
        {"type": "object", "dependentRequired": {"a": ["b"]}, "dependentSchemas": {"c": TEXT}},
    ),
    "the order of required fields": (
        {"type": "object", "required": ["a", "b"]},
        {"type": "object", "required": ["b", "a"]},
    ),
    "annotations": (
        TEXT,
        TEXT | {"title": "T", "description": "D", "examples": ["a"], "readOnly": True, "x-ui": 1},
    ),
    "the draft": (TEXT, TEXT | {"$schema": "https://json-schema.org/draft/2020-12/schema"}),
    "a bound that does not apply": (TEXT, TEXT | {"minimum": 3}),
    "a decimal's pattern": (TEXT, TEXT | {"pattern": DECIMAL}),
    "a pattern that follows from x-decimal": (
        TEXT | {"x-decimal": {"ge": "0"}, "pattern": "^[0-9.]+$"},
        TEXT | {"x-decimal": {"ge": "0"}},
    ),
    "a format that is not enforced": (TEXT, TEXT | {"format": "decimal"}),
    "a validator": (TEXT, TEXT | {"x-checked": ["even:012345"]}),
}  # fmt: skip

DIFFERENT: dict[str, tuple[Any, Any]] = {
    "the type": (TEXT, NUMBER),
    "an integer and a number": ({"type": "integer"}, NUMBER),
    "true and 1": ({"const": True}, {"const": 1}),
    "1 and its text": ({"const": 1}, {"const": "1"}),
    "an added enum value": ({"enum": ["a"]}, {"enum": ["a", "b"]}),
    "nullable": (TEXT, {"anyOf": [TEXT, NULL]}),
    "anyOf and oneOf": ({"anyOf": [TEXT, NUMBER]}, {"oneOf": [TEXT, NUMBER]}),
    "allOf and anyOf": (
        {"allOf": [{"minLength": 1}, {"pattern": "a"}]},
        {"anyOf": [{"minLength": 1}, {"pattern": "a"}]},
    ),
    "a bound": (NUMBER | {"minimum": 0}, NUMBER | {"exclusiveMinimum": 0}),
    "a length": (TEXT | {"maxLength": 3}, TEXT | {"maxLength": 4}),
    "a pattern": (TEXT | {"pattern": "a"}, TEXT | {"pattern": "b"}),
    "a format": (TEXT, TEXT | {"format": "date"}),
    "a secret": (TEXT, TEXT | {"format": "password"}),
    "a decimal's bounds": (TEXT | {"x-decimal": {"ge": "0"}}, TEXT | {"x-decimal": {"ge": "1"}}),
    "a default": (field(TEXT | {"default": "a"}), field(TEXT | {"default": "b"})),
    "a default of null": (field(TEXT | {"default": None}), field(TEXT)),
    "a required field": ({"type": "object", "required": ["a"]}, {"type": "object"}),
    "additional properties forbidden": (
        {"type": "object"},
        {"type": "object", "additionalProperties": False},
    ),
    "a field's name": (field(TEXT), {"type": "object", "properties": {"g": TEXT}}),
    "a field called title": (
        {"type": "object", "properties": {"title": TEXT}},
        {"type": "object", "properties": {}},
    ),
    "the type of a field called description": (
        {"type": "object", "properties": {"description": TEXT}},
        {"type": "object", "properties": {"description": NUMBER}},
    ),
    "a tuple's length": (
        {"type": "array", "prefixItems": [TEXT], "maxItems": 1},
        {"type": "array", "prefixItems": [TEXT]},
    ),
    "a tuple's order": (
        {"type": "array", "prefixItems": [TEXT, NUMBER]},
        {"type": "array", "prefixItems": [NUMBER, TEXT]},
    ),
    "the target of a reference": (
        field({"$ref": "#/$defs/A"}, A=LINE, B=TEXT),
        field({"$ref": "#/$defs/B"}, A=LINE, B=TEXT),
    ),
    "the content of a definition": (
        field({"$ref": "#/$defs/A"}, A=LINE),
        field({"$ref": "#/$defs/A"}, A=LINE | {"required": []}),
    ),
    "the content of a definition in a cycle": (
        field({"$ref": "#/$defs/Node"}, Node=NODE),
        field({"$ref": "#/$defs/Node"}, Node=NODE | {"required": ["next"]}),
    ),
    "a keyword's name inside a constant": ({"const": {"title": "a"}}, {"const": {"title": "b"}}),
    "a dependency between fields": (
        {"type": "object", "dependencies": {"a": ["b"]}},
        {"type": "object", "dependencies": {"a": ["b", "c"]}},
    ),
    "the target of an anchor": (
        field({"$ref": "#here"}, A={"$anchor": "here", "type": "string"}),
        field({"$ref": "#here"}, A={"$anchor": "here", "type": "number"}),
    ),
    "the address of a remote schema": ({"$ref": "https://a/b"}, {"$ref": "https://a/c"}),
}


@pytest.mark.parametrize("case", SAME)
def test_schemas_with_the_same_meaning_have_the_same_digest(case: str) -> None:
    one, other = SAME[case]
    assert digest(one) == digest(other)
    assert digest(field(one)) == digest(field(other)) or "$ref" in json.dumps(one)


@pytest.mark.parametrize("case", DIFFERENT)
def test_schemas_with_different_meanings_have_different_digests(case: str) -> None:
    one, other = DIFFERENT[case]
    assert digest(one) != digest(other)


def test_defaults_can_be_left_out_of_the_digest() -> None:
    one, other = field(TEXT | {"default": "a"}), field(TEXT)
    assert digest(one, defaults=False) == digest(other, defaults=False)


def test_validators_can_be_included_in_the_digest() -> None:
    assert digest(TEXT, checks=True) != digest(TEXT | {"x-checked": ["even:01"]}, checks=True)


def ring(length: int, last: Any) -> dict[str, Any]:
    """Classes `C0`, `C1`, … that refer to each other in a cycle; `last` is a field of the last."""
    definitions = {
        f"C{number}": {
            "type": "object",
            "properties": {"next": {"$ref": f"#/$defs/C{(number + 1) % length}"}, "value": TEXT},
        }
        for number in range(length)
    }
    definitions[f"C{length - 1}"]["properties"]["value"] = last
    return {"$ref": "#/$defs/C0", "$defs": definitions}


def test_a_long_cycle_is_compared_by_content_and_not_by_class_names() -> None:
    assert digest(ring(30, TEXT)) != digest(ring(30, NUMBER))
    assert digest(ring(30, NUMBER)) == digest(renamed(ring(30, NUMBER), "C", "D"))


def test_forty_classes_that_all_refer_to_each_other_have_a_digest() -> None:
    names = [f"C{number}" for number in range(40)]
    properties = {name: {"$ref": f"#/$defs/{name}"} for name in names}
    definitions = {name: {"type": "object", "properties": properties} for name in names}
    assert digest({"$ref": "#/$defs/C0", "$defs": definitions})


def test_definitions_that_expand_exponentially_have_a_digest() -> None:
    definitions: dict[str, Any] = {"C60": TEXT}
    for number in range(60):
        twice = {"$ref": f"#/$defs/C{number + 1}"}
        definitions[f"C{number}"] = {"type": "array", "prefixItems": [twice, twice]}
    assert digest({"$ref": "#/$defs/C0", "$defs": definitions})


def test_a_reference_to_itself_or_to_a_missing_definition_has_a_digest() -> None:
    assert digest({"$ref": "#"}) != digest({"$ref": "#/$defs/Gone"})
    assert digest({"$ref": "#/$defs/A", "$defs": {"A": {"$ref": "#/$defs/A"}}})


@pytest.mark.parametrize("keyword", ["items", "not", "contains", "additionalProperties"])
def test_the_deepest_allowed_schema_has_a_digest(keyword: str) -> None:
    schema: Any = TEXT
    while not is_deeper(schema, MAX_DEPTH):
        schema = {keyword: schema}
    assert digest(schema[keyword])


def test_an_object_with_ten_thousand_fields_has_a_digest() -> None:
    properties = {f"f{number}": TEXT for number in range(10_000)}
    assert digest({"type": "object", "properties": properties})


KEYWORDS = st.sampled_from(
    ["title", "type", "$defs", "properties", "required", "default", "enum", "const", "anyOf", "not"]
) | st.sampled_from(
    ["allOf", "oneOf", "items", "prefixItems", "maxItems", "$ref", "dependencies", "pattern"]
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(KEYWORDS | st.text(), inner, max_size=3)
    ),
    max_leaves=12,
)


@given(values)
def test_any_json_value_has_a_digest_and_is_not_modified(schema: Any) -> None:
    before = json.dumps(schema)
    assert digest(schema) == digest(json.loads(before))
    assert json.dumps(schema) == before


@given(st.dictionaries(st.text(), st.just(TEXT)), st.randoms(use_true_random=False))
def test_the_order_of_keys_does_not_affect_the_digest(
    properties: dict[str, Any], random: Any
) -> None:
    shuffled = list(properties.items())
    random.shuffle(shuffled)
    one, other = {"type": "object", "properties": properties}, {"properties": dict(shuffled)}
    assert digest(one) == digest(other | {"type": "object"})
