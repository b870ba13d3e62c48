"""Pairs of schemas on which a checker that only compares keywords goes wrong, each with its truth.

`ok` is a pair of which every document that the writer's schema accepts is accepted by the reader's;
`bad` is one with a document that is not. `hard` marks pairs of which no checker is asked to know:
it may say Unknown, but nothing false.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

NOTHING = object()


@dataclass(frozen=True)
class Trap:
    """One pair, its truth, and why it is so."""

    topic: str
    why: str
    writer: Any
    reader: Any
    truth: Literal["compatible", "breaking"]
    document: Any = NOTHING
    """What the writer's schema accepts and the reader's does not."""
    draft: str = "2020"
    hard: bool = False

    def __str__(self) -> str:
        return f"{self.topic}: {self.why}"


TRAPS: list[Trap] = []


class Topic:
    """Collects the traps of one topic."""

    def __init__(self, name: str, draft: str = "2020") -> None:
        self._name, self._draft = name, draft

    def ok(
        self, why: str, writer: Any, reader: Any, *, draft: str = "", hard: bool = False
    ) -> None:
        TRAPS.append(
            Trap(self._name, why, writer, reader, "compatible", NOTHING, draft or self._draft, hard)
        )

    def bad(
        self,
        why: str,
        writer: Any,
        reader: Any,
        document: Any,
        *,
        draft: str = "",
        hard: bool = False,
    ) -> None:
        TRAPS.append(
            Trap(self._name, why, writer, reader, "breaking", document, draft or self._draft, hard)
        )


ANY: dict[str, Any] = {}
STRING = {"type": "string"}
INTEGER = {"type": "integer"}
NUMBER = {"type": "number"}
BOOLEAN = {"type": "boolean"}
NULL = {"type": "null"}
OBJECT = {"type": "object"}
ARRAY = {"type": "array"}


def closed(*required: str, **properties: Any) -> dict[str, Any]:
    """An object with these properties and no others."""
    return opened(*required, **properties) | {"additionalProperties": False}


def opened(*required: str, **properties: Any) -> dict[str, Any]:
    """An object with these properties and any others."""
    made: dict[str, Any] = {"type": "object", "properties": properties}
    return made | ({"required": list(required)} if required else {})


def text(pattern: str) -> dict[str, Any]:
    return {"type": "string", "pattern": pattern}


def listed(items: Any, **more: Any) -> dict[str, Any]:
    return {"type": "array", "items": items, **more}


def one_of(*schemas: Any) -> dict[str, Any]:
    return {"oneOf": list(schemas)}


def any_of(*schemas: Any) -> dict[str, Any]:
    return {"anyOf": list(schemas)}


def all_of(*schemas: Any) -> dict[str, Any]:
    return {"allOf": list(schemas)}


# ---------------------------------------------------------------------------------------------
t = Topic("open and closed objects")
t.ok(
    "a closed writer never writes a reader's new optional field",
    closed("a", a=STRING),
    opened("a", a=STRING, b=INTEGER),
)
t.ok(
    "even if the new field's schema is false", closed("a", a=STRING), opened("a", a=STRING, b=False)
)
t.ok(
    "a field that the reader drops is ignored by an open reader",
    closed("a", "b", a=STRING, b=INTEGER),
    opened("a", a=STRING),
)
t.bad(
    "a closed reader refuses the dropped field",
    closed("a", "b", a=STRING, b=INTEGER),
    closed("a", a=STRING),
    {"a": "", "b": 0},
)
t.bad(
    "an open writer may write anything under a reader's new optional field",
    opened("a", a=STRING),
    opened("a", a=STRING, b=INTEGER),
    {"a": "", "b": "x"},
)
t.ok(
    "a new optional field that takes anything breaks nobody",
    opened("a", a=STRING),
    opened("a", a=STRING, b=True),
)
t.bad("a field made required", closed(a=STRING), closed("a", a=STRING), {})
t.bad(
    "a default does not make a required field come",
    closed(a=STRING),
    closed("a", a={"type": "string", "default": "x"}),
    {},
)
t.ok(
    "a default in the reader means nothing",
    closed(a=STRING),
    closed(a={"type": "string", "default": 7}),
)
t.ok("required no longer", closed("a", a=STRING), closed(a=STRING))
t.ok(
    "properties do not constrain what is not an object",
    opened(a=STRING),
    {"properties": {"a": STRING}},
)
t.bad(
    "without type the writer may write a list", {"properties": {"a": STRING}}, opened(a=STRING), []
)
t.bad("required alone lets every other kind pass", {"required": ["a"]}, OBJECT, "text")
t.ok(
    "an object may not hold a forbidden field, an absent field is fine",
    closed("a", a=STRING),
    opened(b=False),
)
t.bad(
    "an open writer may write the forbidden field",
    opened("a", a=STRING),
    opened(b=False),
    {"a": "", "b": 1},
)
t.ok("a field forbidden by both", opened(b=False), opened(b=False))
t.ok(
    "additionalProperties as a schema contains false",
    closed(a=STRING),
    opened(a=STRING) | {"additionalProperties": INTEGER},
)
t.bad(
    "additionalProperties as a schema applies to what the reader does not name",
    closed(a=STRING, b=STRING),
    opened(a=STRING) | {"additionalProperties": INTEGER},
    {"b": ""},
)
t.ok(
    "a named field is not additional, whatever additionalProperties says",
    closed(a=STRING),
    opened(a=STRING) | {"additionalProperties": False},
)
t.bad(
    "the reader names a field that the writer's additionalProperties allow as another type",
    opened(a=STRING) | {"additionalProperties": INTEGER},
    opened(b=STRING),
    {"b": 0},
)
t.ok(
    "the writer's additional fields are integers, which the reader's new field takes",
    opened(a=STRING) | {"additionalProperties": INTEGER},
    opened(a=STRING, b=NUMBER),
)
t.ok(
    "additionalProperties true is the same as none",
    opened(a=STRING) | {"additionalProperties": True},
    opened(a=STRING),
)
t.bad(
    "allOf of two closed objects forbids what either does not name",
    closed("a", a=STRING),
    all_of(closed(a=STRING), closed(b=STRING)),
    {"a": ""},
)
t.ok(
    "allOf of two closed objects leaves the empty object",
    all_of(closed(a=STRING), closed(b=STRING)),
    {"maxProperties": 0},
)
t.bad(
    "additionalProperties does not look into allOf",
    closed("a", a=STRING),
    {"allOf": [opened(a=STRING)], "additionalProperties": False},
    {"a": ""},
)
t.ok(
    "unevaluatedProperties does",
    closed("a", a=STRING),
    {"allOf": [opened(a=STRING)], "unevaluatedProperties": False},
    hard=True,
)
t.bad("a field that may be anything becomes typed", closed(a=ANY), closed(a=STRING), {"a": None})
t.ok(
    "a field renamed, old one optional and dropped by an open reader",
    closed(a=STRING),
    opened(b=STRING),
)
t.bad("a field renamed and required", closed("a", a=STRING), opened("b", b=STRING), {"a": ""})
t.ok("the empty name is a name", closed("", **{"": STRING}), opened("", **{"": STRING}))
t.bad("the empty name is a name", closed(**{"": STRING}), opened(**{"": INTEGER}), {"": ""})
t.ok("__proto__ is a name like any other", closed(__proto__=STRING), opened(__proto__=STRING))
t.bad("names differ by case", closed("id", id=STRING), opened("ID", ID=STRING), {"id": ""})
t.bad(
    "names that look alike in Unicode are two names",
    closed("é", **{"é": STRING}),
    opened("e\u0301", **{"e\u0301": STRING}),
    {"é": ""},
)
t.ok(
    "a property named like a keyword",
    closed(**{"type": STRING, "$ref": STRING}),
    opened(**{"type": STRING}),
)
t.bad(
    "a property named $ref is a property",
    closed(**{"$ref": STRING}),
    closed(**{"$ref": INTEGER}),
    {"$ref": ""},
)
t.bad(
    "properties inside enum values are data",
    {"enum": [{"type": "string"}]},
    closed(type=INTEGER),
    {"type": "string"},
)

# ---------------------------------------------------------------------------------------------
t = Topic("properties, patternProperties and additionalProperties together")
t.ok(
    "a name that matches a pattern is not additional",
    closed(x_a=INTEGER),
    {"patternProperties": {"^x_": INTEGER}, "additionalProperties": False},
)
t.bad(
    "a name that matches a pattern must fit the pattern's schema also if it is a property",
    closed(x_a=STRING),
    {"properties": {"x_a": STRING}, "patternProperties": {"^x_": INTEGER}},
    {"x_a": ""},
)
t.bad(
    "patterns search, they do not match from the start",
    closed(my_x=STRING),
    {"patternProperties": {"x": INTEGER}},
    {"my_x": ""},
)
t.ok(
    "a name that a pattern does not find is free",
    closed(y=STRING),
    {"patternProperties": {"x": INTEGER}},
)
t.bad(
    "two patterns on one name are both asked",
    {"type": "object", "patternProperties": {"^a": NUMBER}},
    {"patternProperties": {"^a": NUMBER, "b$": INTEGER}},
    {"ab": 0.5},
)
t.ok(
    "a wider pattern in the writer covers the narrower in the reader",
    {"type": "object", "patternProperties": {"^a": INTEGER}},
    {"patternProperties": {"^ab": INTEGER}},
)
t.bad(
    "a narrower pattern in the writer does not cover the wider in the reader",
    {"type": "object", "patternProperties": {"^ab": INTEGER}},
    {"patternProperties": {"^a": INTEGER}},
    {"a": ""},
)
t.ok(
    "the same names said by another pattern",
    {"type": "object", "patternProperties": {"^[ab]$": INTEGER}, "additionalProperties": False},
    {"patternProperties": {"^(a|b)$": INTEGER}, "additionalProperties": False},
)
t.ok(
    "a pattern of finite names is as good as properties",
    {"type": "object", "patternProperties": {"^(a|b)$": INTEGER}, "additionalProperties": False},
    closed(a=INTEGER, b=INTEGER),
)
t.bad(
    "a pattern of infinite names is not",
    {"type": "object", "patternProperties": {"^a": INTEGER}, "additionalProperties": False},
    closed(a=INTEGER, ab=INTEGER),
    {"aa": 0},
)
t.ok(
    "additionalProperties with a pattern that takes every name",
    closed(a=INTEGER),
    {"patternProperties": {"": INTEGER}, "additionalProperties": False},
)
t.bad(
    "the empty pattern finds every name",
    closed(a=STRING),
    {"patternProperties": {"": INTEGER}},
    {"a": ""},
)
t.ok(
    "a forbidden pattern leaves other names", closed(a=STRING), {"patternProperties": {"^_": False}}
)
t.bad(
    "a forbidden pattern hits a property",
    closed(_a=STRING),
    {"patternProperties": {"^_": False}},
    {"_a": ""},
)
t.ok(
    "additional of the writer, pattern of the reader",
    {"type": "object", "additionalProperties": INTEGER},
    {"patternProperties": {"^x": NUMBER}},
)
t.ok(
    "additional in the reader is only what its pattern leaves",
    {"type": "object", "patternProperties": {"^x": STRING}, "additionalProperties": INTEGER},
    {"patternProperties": {"^x": STRING}, "additionalProperties": NUMBER},
)
t.bad(
    "a pattern dropped by the reader makes its names additional",
    {"type": "object", "patternProperties": {"^x": STRING}, "additionalProperties": False},
    {"type": "object", "additionalProperties": False},
    {"x": ""},
)
t.ok(
    "writer's property and pattern contradict, so the name never appears",
    {
        "type": "object",
        "properties": {"xa": STRING},
        "patternProperties": {"^x": INTEGER},
        "additionalProperties": False,
    },
    opened(xa=BOOLEAN),
)
t.bad(
    "required pattern name of an open writer",
    {"type": "object", "required": ["k1"]},
    {"patternProperties": {"^k\\d$": INTEGER}},
    {"k1": None},
)

# ---------------------------------------------------------------------------------------------
t = Topic("nothing to write: vacuous truths")
t.ok("a writer that can write nothing breaks nobody", False, STRING)
t.ok("not anything is nothing", {"not": {}}, STRING)
t.ok("minimum above maximum", {"type": "integer", "minimum": 3, "maximum": 2}, STRING)
t.ok(
    "no integer lies between",
    {"type": "integer", "exclusiveMinimum": 2, "exclusiveMaximum": 3},
    STRING,
)
t.bad(
    "a number lies between",
    {"type": "number", "exclusiveMinimum": 2, "exclusiveMaximum": 3},
    STRING,
    2.5,
)
t.ok(
    "no multiple lies between",
    {"type": "number", "multipleOf": 5, "minimum": 11, "maximum": 14},
    STRING,
)
t.ok("minLength above maxLength", {"type": "string", "minLength": 3, "maxLength": 2}, INTEGER)
t.ok("minItems above maxItems", {"type": "array", "minItems": 3, "maxItems": 2}, INTEGER)
t.ok(
    "minProperties above maxProperties",
    {"type": "object", "minProperties": 3, "maxProperties": 2},
    INTEGER,
)
t.bad(
    "without a type, crossed limits still let other kinds pass",
    {"minLength": 3, "maxLength": 2},
    INTEGER,
    None,
)
t.ok("contradictory allOf", all_of(STRING, INTEGER), BOOLEAN)
t.bad("allOf of number and integer is integer, not empty", all_of(NUMBER, INTEGER), STRING, 0)
t.ok("an enum with no value of the type", {"type": "string", "enum": [1, 2]}, BOOLEAN)
t.ok("a const of another type", {"type": "string", "const": 1}, BOOLEAN)
t.ok("an enum filtered by its type", {"type": "string", "enum": ["a", 1, None]}, {"enum": ["a"]})
t.ok("an enum filtered by limits", {"enum": [1, 5, 9], "maximum": 5}, {"enum": [1, 5]})
t.bad("limits do not filter other kinds", {"enum": ["x", 9], "maximum": 5}, {"enum": [9]}, "x")
t.ok("an enum filtered by a pattern", {"enum": ["ab", "b"], "pattern": "^a"}, {"const": "ab"})
t.ok(
    "a required field that cannot be",
    {"type": "object", "required": ["a"], "properties": {"a": False}},
    STRING,
)
t.ok("a required field that is not among the closed ones", closed("b", a=STRING), STRING)
t.ok("more required fields than maxProperties", opened("a", "b") | {"maxProperties": 1}, STRING)
t.ok("more minProperties than a closed object has", closed(a=STRING) | {"minProperties": 2}, STRING)
t.bad(
    "as many minProperties as a closed object has",
    closed(a=STRING) | {"minProperties": 1},
    STRING,
    {"a": ""},
)
t.ok(
    "an impossible optional field never appears", closed(a=STRING, b={"not": {}}), closed(a=STRING)
)
t.ok(
    "an impossible optional field by contradiction never appears",
    closed(a=STRING, b=all_of(STRING, NULL)),
    closed(a=STRING),
)
t.ok("items that cannot be leave the empty list", listed(False), {"maxItems": 0})
t.ok(
    "items that cannot be, in words", listed(all_of(STRING, NULL)), {"type": "array", "maxItems": 0}
)
t.ok("a list that must have an impossible item", listed(False, minItems=1), STRING)
t.ok("anyOf with only impossible branches", any_of(False, {"not": {}}), STRING)
t.ok("an impossible branch of anyOf adds nothing", any_of(STRING, all_of(INTEGER, NULL)), STRING)
t.ok("oneOf of two equal schemas is nothing but their complement", one_of(STRING, STRING), INTEGER)
t.ok("oneOf of true and a schema is its complement", one_of(True, STRING), {"not": STRING})
t.ok(
    "an empty list of types is not needed: enum with null only under string",
    {"type": "string", "const": None},
    False,
)
t.ok("a writer that writes nothing against a reader that reads nothing", False, False)
t.bad("a reader that reads nothing", {"const": 1}, False, 1)
t.bad(
    "a reader that reads nothing, in words",
    {"const": 1},
    {"type": "integer", "minimum": 2, "maximum": 1},
    1,
)
t.ok("a pattern that no string has", text("^a$") | {"minLength": 2}, INTEGER)
t.ok("two patterns that exclude each other", all_of(text("^a"), text("^b")), INTEGER)
t.ok("a pattern with text before its start", text("a^b"), INTEGER)
t.ok("a pattern with text after its end", text("a$b"), INTEGER)
t.ok(
    "deep contradiction: a required child that cannot be",
    opened("a", a=opened("b", b=all_of(STRING, NULL))),
    STRING,
)
t.ok("contains something impossible", {"type": "array", "contains": False}, STRING)
t.bad(
    "minContains 0 with an impossible contains asks nothing",
    {"type": "array", "contains": False, "minContains": 0},
    STRING,
    [],
)
t.ok(
    "uniqueItems of too few values", listed({"enum": [1, 2]}, minItems=3, uniqueItems=True), STRING
)
t.ok(
    "propertyNames that no name has",
    {"type": "object", "propertyNames": False},
    {"maxProperties": 0},
)
t.ok(
    "propertyNames must be strings, so a number is none",
    {"type": "object", "propertyNames": INTEGER},
    {"maxProperties": 0},
)

# ---------------------------------------------------------------------------------------------
t = Topic("numbers")
t.ok("integer is number", INTEGER, NUMBER)
t.bad("number is not integer", NUMBER, INTEGER, 0.5)
t.ok("number with multipleOf 1 is integer", {"type": "number", "multipleOf": 1}, INTEGER)
t.ok("integer is a multiple of 1", INTEGER, {"multipleOf": 1})
t.ok("integer is a multiple of a half", INTEGER, {"multipleOf": 0.5})
t.bad("not the other way", {"type": "number", "multipleOf": 0.5}, INTEGER, 0.5)
t.ok("1.0 is an integer", {"const": 1.0}, INTEGER)
t.ok("1.0 is 1", {"const": 1.0}, {"const": 1})
t.ok("1 is 1.0 in an enum", {"enum": [1, 2]}, {"enum": [1.0, 2.0]})
t.bad("true is not 1", {"const": True}, {"const": 1}, True)
t.bad("1 is not true", {"const": 1}, {"const": True}, 1)
t.bad("false is not 0 in an enum", {"enum": [False]}, {"enum": [0, ""]}, False)
t.bad("a boolean is not an integer", BOOLEAN, INTEGER, True)
t.bad(
    "a boolean is not a number, so it passes limits on numbers",
    {"enum": [True]},
    {"type": "number"},
    True,
)
t.ok("limits do not speak of booleans", BOOLEAN, {"minimum": 5})
t.ok(
    "integer above 0 is integer from 1", {"type": "integer", "exclusiveMinimum": 0}, {"minimum": 1}
)
t.ok(
    "integer from 1 is integer above 0", {"type": "integer", "minimum": 1}, {"exclusiveMinimum": 0}
)
t.bad(
    "number above 0 is not number from 1",
    {"type": "number", "exclusiveMinimum": 0},
    {"minimum": 1},
    0.5,
)
t.ok("integer from 0.5 is integer from 1", {"type": "integer", "minimum": 0.5}, {"minimum": 1})
t.bad(
    "integer to 2.5 is integer to 2, not 1", {"type": "integer", "maximum": 2.5}, {"maximum": 1}, 2
)
t.bad(
    "exclusive and inclusive differ in one number",
    {"type": "number", "minimum": 5},
    {"exclusiveMinimum": 5},
    5,
)
t.ok("exclusive is within inclusive", {"type": "number", "exclusiveMinimum": 5}, {"minimum": 5})
t.ok(
    "both minimum and exclusiveMinimum: the stronger counts",
    {"type": "number", "minimum": 3, "exclusiveMinimum": 5},
    {"exclusiveMinimum": 5},
)
t.bad(
    "the weaker of two limits does not count",
    {"type": "number", "minimum": 3},
    {"minimum": 3, "exclusiveMinimum": 3},
    3,
)
t.ok(
    "a multiple of 6 is a multiple of 2 and of 3",
    {"type": "integer", "multipleOf": 6},
    all_of({"multipleOf": 2}, {"multipleOf": 3}),
)
t.ok(
    "a multiple of 2 and of 3 is a multiple of 6",
    {"type": "integer", "allOf": [{"multipleOf": 2}, {"multipleOf": 3}]},
    {"multipleOf": 6},
)
t.bad(
    "a multiple of 2 is not a multiple of 4",
    {"type": "integer", "multipleOf": 2},
    {"multipleOf": 4},
    2,
)
t.bad(
    "a multiple of 4 or 6 is not always one of 12",
    {"type": "integer", "anyOf": [{"multipleOf": 4}, {"multipleOf": 6}]},
    {"multipleOf": 12},
    4,
)
t.ok(
    "a multiple of 4 and 6 is one of 12",
    {"type": "integer", "allOf": [{"multipleOf": 4}, {"multipleOf": 6}]},
    {"multipleOf": 12},
)
t.ok(
    "a multiple of 0.1 is one of 0.01", {"type": "number", "multipleOf": 0.1}, {"multipleOf": 0.01}
)
t.bad(
    "a multiple of 0.01 is not one of 0.1",
    {"type": "number", "multipleOf": 0.01},
    {"multipleOf": 0.1},
    0.25,
)
t.bad(
    "a multiple of 0.3 is not one of 0.2",
    {"type": "number", "multipleOf": 0.3},
    {"multipleOf": 0.2},
    0.5 - 0.2,
)
t.ok("a multiple of 0.3 is one of 0.1", {"type": "number", "multipleOf": 0.3}, {"multipleOf": 0.1})
t.ok(
    "an integer multiple of 1.5 is a multiple of 3",
    {"type": "integer", "multipleOf": 1.5},
    {"multipleOf": 3},
)
t.bad(
    "a number multiple of 1.5 is not one of 3",
    {"type": "number", "multipleOf": 1.5},
    {"multipleOf": 3},
    1.5,
)
t.ok(
    "an integer multiple of 0.3 is one of 3",
    {"type": "integer", "multipleOf": 0.3},
    {"multipleOf": 3},
)
t.ok(
    "even numbers from 1 are from 2",
    {"type": "integer", "multipleOf": 2, "minimum": 1},
    {"minimum": 2},
)
t.ok(
    "multiples within limits are an enum",
    {"type": "integer", "multipleOf": 5, "minimum": 1, "maximum": 14},
    {"enum": [5, 10]},
)
t.bad(
    "one more multiple within limits",
    {"type": "integer", "multipleOf": 5, "minimum": 0, "maximum": 14},
    {"enum": [5, 10]},
    0,
)
t.ok(
    "an enum within type and limits",
    {"enum": [1, 2, 3]},
    {"type": "integer", "minimum": 1, "maximum": 3},
)
t.ok(
    "type and limits within an enum",
    {"type": "integer", "minimum": 1, "maximum": 3},
    {"enum": [0, 1, 2, 3]},
)
t.bad(
    "numbers between do not fit an enum",
    {"type": "number", "minimum": 1, "maximum": 3},
    {"enum": [1, 2, 3]},
    1.5,
)
t.ok(
    "a number at one point is a const", {"type": "number", "minimum": 1, "maximum": 1}, {"const": 1}
)
t.bad("2^53 + 1 is not 2^53", {"const": 2**53 + 1}, {"const": 2**53}, 2**53 + 1)
t.bad("2^53 + 1 is above 2^53", {"const": 2**53 + 1}, {"maximum": 2**53}, 2**53 + 1)
t.ok("2^53 is not above 2^53", {"const": 2**53}, {"maximum": 2**53})
t.bad(
    "large limits that a float would make equal",
    {"type": "integer", "maximum": 2**53 + 1},
    {"type": "integer", "maximum": 2**53},
    2**53 + 1,
)
t.bad(
    "beyond 64 bits",
    {"type": "integer", "maximum": 2**64 + 1},
    {"maximum": 2**64},
    2**64 + 1,
    hard=True,
)
t.ok("beyond 64 bits, wider", {"type": "integer", "maximum": 2**64}, {"maximum": 2**64 + 1})
t.ok("1e308 and back", {"type": "number", "maximum": 1e300}, {"maximum": 1e308})
t.bad("1e308 is large", {"type": "number", "maximum": 1e308}, {"maximum": 1e300}, 1e308)
t.ok("1e308 is an integer", {"const": 1e308}, INTEGER, hard=True)
t.ok("negative zero is zero", {"const": -0.0}, {"const": 0})
t.ok("negative zero is from 0", {"const": -0.0}, {"minimum": 0})
t.ok("negative zero as a limit", {"type": "number", "minimum": 0}, {"minimum": -0.0})
t.bad(
    "a limit removed on one side only",
    {"type": "integer", "maximum": 10},
    {"minimum": 0, "maximum": 10},
    -1,
)
t.ok(
    "numbers by type list and limits",
    {"type": ["integer", "string"], "minimum": 1},
    {"anyOf": [{"minimum": 0}, STRING]},
)
t.bad(
    "a limit speaks only of numbers, strings of the type list stay",
    {"type": ["integer", "string"], "minimum": 1},
    NUMBER,
    "",
)
t.ok("integer or number is number", {"type": ["integer", "number"]}, NUMBER)
t.ok("number is integer or number", NUMBER, {"type": ["integer", "number"]})
t.ok("number is integer or not integer", NUMBER, any_of(INTEGER, {"not": INTEGER}))
t.bad("a number that is not an integer", {"type": "number", "not": INTEGER}, INTEGER, 0.5)
t.ok(
    "a limit split into two overlapping ranges",
    {"type": "integer", "minimum": 0, "maximum": 10},
    any_of({"minimum": 0, "maximum": 5}, {"minimum": 6, "maximum": 10}),
)
t.bad(
    "a number falls between two ranges",
    {"type": "number", "minimum": 0, "maximum": 10},
    any_of({"minimum": 0, "maximum": 5}, {"minimum": 6, "maximum": 10}),
    5.5,
)
t.ok("even or odd is every integer", INTEGER, any_of({"multipleOf": 2}, {"not": {"multipleOf": 2}}))
t.bad("multiples of 2 or 3 leave out 1", INTEGER, any_of({"multipleOf": 2}, {"multipleOf": 3}), 1)
t.ok(
    "multiples of 2 or 3 within limits",
    {"type": "integer", "minimum": 2, "maximum": 4},
    any_of({"multipleOf": 2}, {"multipleOf": 3}),
    hard=True,
)
t.ok("a tiny multiple", {"type": "integer"}, {"multipleOf": 1e-8})
t.bad(
    "a half is a multiple of a quarter but not of an eighth times three",
    {"const": 0.5},
    {"multipleOf": 0.375},
    0.5,
)

# ---------------------------------------------------------------------------------------------
t = Topic("numbers of draft 4", "4")
t.bad(
    "a boolean exclusiveMinimum makes minimum exclusive",
    {"type": "integer", "minimum": 1},
    {"minimum": 1, "exclusiveMinimum": True},
    1,
)
t.ok(
    "exclusiveMinimum false is nothing",
    {"type": "integer", "minimum": 1},
    {"minimum": 1, "exclusiveMinimum": False},
)
t.ok(
    "exclusive over integers",
    {"type": "integer", "minimum": 0, "exclusiveMinimum": True},
    {"minimum": 1},
)
t.bad(
    "exclusive over numbers",
    {"type": "number", "minimum": 0, "exclusiveMinimum": True},
    {"minimum": 1},
    0.5,
)
t.bad("draft 4 knows no const: it is an unknown word", {"const": 1}, {"enum": [1]}, "x")
t.ok("draft 4 knows no const in the reader", STRING, {"const": 1})
t.ok("draft 4 knows no if", STRING, {"if": STRING, "then": {"maxLength": 0}})
t.ok("draft 4 knows no contains", ARRAY, {"contains": STRING})
t.ok("draft 4 knows no propertyNames", OBJECT, {"propertyNames": {"maxLength": 1}})
t.ok(
    "a writer of draft 4 and a reader of 2020, by their own word",
    {
        "$schema": "http://json-schema.org/draft-04/schema#",
        "type": "number",
        "minimum": 10,
        "exclusiveMinimum": True,
    },
    {"$schema": "https://json-schema.org/draft/2020-12/schema", "exclusiveMinimum": 10},
)
t.bad(
    "the word of the schema wins over the argument",
    {"$schema": "https://json-schema.org/draft/2020-12/schema", "const": 1},
    {"$schema": "https://json-schema.org/draft/2020-12/schema", "const": 2},
    1,
)
t.ok("1.0 is an integer", {"enum": [1.0]}, INTEGER)
t.ok("id is a base URI and no constraint", {"id": "http://a.b/c", "type": "string"}, STRING)

# ---------------------------------------------------------------------------------------------
t = Topic("enum, const and equality")
t.ok("enum shrinks in the writer", {"enum": ["a"]}, {"enum": ["a", "b"]})
t.bad("enum shrinks in the reader", {"enum": ["a", "b"]}, {"enum": ["a"]}, "b")
t.ok("enum order is nothing", {"enum": ["a", "b"]}, {"enum": ["b", "a"]})
t.ok("const is an enum of one", {"const": "a"}, {"enum": ["a"]})
t.ok("enum of one is const", {"enum": ["a"]}, {"const": "a"})
t.bad("enum to const", {"enum": ["a", "b"]}, {"const": "a"}, "b")
t.ok("enum to type", {"enum": ["a", "b"]}, STRING)
t.bad("type to enum", STRING, {"enum": ["a", "b"]}, "")
t.ok("boolean is an enum of two", BOOLEAN, {"enum": [True, False]})
t.ok("an enum of true and false is boolean", {"enum": [False, True]}, BOOLEAN)
t.bad("boolean is not the enum of one", BOOLEAN, {"enum": [True]}, False)
t.ok("null is an enum of one", NULL, {"enum": [None]})
t.ok(
    "objects in enums are equal whatever their order",
    {"enum": [{"a": 1, "b": 2}]},
    {"enum": [{"b": 2, "a": 1}]},
)
t.ok(
    "numbers in objects in enums are equal by value",
    {"enum": [{"a": [1.0]}]},
    {"enum": [{"a": [1]}]},
)
t.bad(
    "true in an object in an enum is not 1",
    {"enum": [{"a": True}]},
    {"enum": [{"a": 1}]},
    {"a": True},
)
t.bad("true in a list in a list is not 1", {"const": [[True]]}, {"const": [[1]]}, [[True]])
t.bad("lists in enums are ordered", {"enum": [[1, 2]]}, {"enum": [[2, 1]]}, [1, 2])
t.bad("null is not absent", {"const": {"a": None}}, {"const": {}}, {"a": None})
t.bad("text is not number", {"const": "1"}, {"const": 1}, "1")
t.bad("the empty string is not null", {"const": ""}, {"const": None}, "")
t.bad("composed and decomposed letters differ", {"const": "é"}, {"const": "e\u0301"}, "é")
t.bad("enum values differ by case", {"enum": ["Red"]}, {"enum": ["red"]}, "Red")
t.bad("enum values differ by a trailing space", {"enum": ["a "]}, {"enum": ["a"]}, "a ")
t.ok(
    "an enum of objects within an object schema",
    {"enum": [{"a": 1}, {"a": 2}]},
    closed("a", a=INTEGER),
)
t.bad(
    "an enum of objects, one of which is not", {"enum": [{"a": 1}, {}]}, closed("a", a=INTEGER), {}
)
t.ok(
    "a closed object of one boolean is a finite enum",
    closed("a", a=BOOLEAN),
    {"enum": [{"a": True}, {"a": False}]},
)
t.ok("anyOf of consts is an enum", any_of({"const": 1}, {"const": 2}), {"enum": [1, 2]})
t.ok("an enum is oneOf of consts", {"enum": [1, 2]}, one_of({"const": 1}, {"const": 2}))
t.bad(
    "oneOf of consts that are equal accepts none of them",
    {"enum": [1, 2]},
    one_of({"const": 1}, {"const": 1.0}, {"const": 2}),
    1,
)
t.ok("enum with const in one", {"enum": [1, 2], "const": 2}, {"const": 2})
t.ok("a duplicated value in an enum is nothing", {"enum": ["a", "a"]}, {"const": "a"})
t.ok("an enum excluded by not", {"enum": [1, 2, 3], "not": {"const": 3}}, {"enum": [1, 2]})

# ---------------------------------------------------------------------------------------------
t = Topic("types and null")
t.bad("null in a type list", {"type": ["string", "null"]}, STRING, None)
t.ok("type list, another order", {"type": ["string", "null"]}, {"type": ["null", "string"]})
t.ok("type list is anyOf", {"type": ["string", "null"]}, any_of(STRING, NULL))
t.ok("anyOf is type list", any_of(STRING, NULL), {"type": ["string", "null"]})
t.ok("type list is oneOf of disjoint types", {"type": ["string", "null"]}, one_of(STRING, NULL))
t.bad(
    "integer and number overlap in oneOf",
    {"type": ["integer", "string"]},
    one_of(INTEGER, NUMBER, STRING),
    0,
)
t.bad("null in an enum", {"enum": ["a", None]}, {"type": "string", "enum": ["a", None]}, None)
t.ok("type list of one", {"type": ["string"]}, STRING)
t.ok(
    "all seven types are everything",
    ANY,
    {"type": ["null", "boolean", "number", "string", "array", "object"]},
)
t.bad(
    "six types are not everything if number is missing",
    ANY,
    {"type": ["null", "boolean", "integer", "string", "array", "object"]},
    0.5,
)
t.ok("true is {}", True, {})
t.ok("{} is true", {}, True)
t.ok("{} is not false negated", {}, {"not": False})
t.ok(
    "nullable is a word of OpenAPI and means nothing here",
    STRING,
    {"type": "string", "nullable": True},
)
t.bad(
    "nullable means nothing here in the reader",
    {"type": ["string", "null"]},
    {"type": "string", "nullable": True},
    None,
)
t.bad("an object is not an array", OBJECT, ARRAY, {})
t.bad("a string is not an object", STRING, OBJECT, "")
t.bad(
    "optional and nullable are two things",
    closed(a={"type": ["string", "null"]}),
    closed(a=STRING),
    {"a": None},
)
t.ok(
    "keywords of other types are nothing",
    STRING,
    {"minimum": 5, "minItems": 3, "required": ["x"], "properties": {"a": False}},
)
t.bad("keywords of other types hit their types", {"type": ["string", "array"]}, {"minItems": 1}, [])

# ---------------------------------------------------------------------------------------------
t = Topic("anyOf, oneOf, allOf")
t.ok("anyOf grows in the reader", any_of(STRING, NULL), any_of(STRING, NULL, INTEGER))
t.bad("anyOf shrinks in the reader", any_of(STRING, NULL, INTEGER), any_of(STRING, NULL), 0)
t.ok(
    "a branch is covered by two branches together",
    {"type": "integer", "minimum": 0},
    any_of({"type": "integer", "maximum": 10}, {"type": "integer", "minimum": 5}),
)
t.ok("oneOf of disjoint branches is anyOf", any_of(STRING, INTEGER), one_of(STRING, INTEGER))
t.bad(
    "oneOf of overlapping branches refuses the overlap",
    {"type": "integer"},
    one_of({"type": "integer", "minimum": 0}, {"type": "integer", "maximum": 5}),
    0,
)
t.ok(
    "oneOf is within anyOf",
    one_of({"minimum": 0, "type": "integer"}, {"maximum": 5, "type": "integer"}),
    any_of({"minimum": 0}, {"maximum": 5}),
)
t.bad(
    "a branch added to oneOf breaks what two branches now take",
    one_of(STRING),
    one_of(STRING, {"maxLength": 3}),
    "",
)
t.bad(
    "a branch widened inside oneOf breaks exclusivity",
    one_of({"type": "integer", "maximum": 5}, {"type": "integer", "minimum": 6}),
    one_of({"type": "integer", "maximum": 6}, {"type": "integer", "minimum": 6}),
    6,
)
t.ok(
    "a branch narrowed inside oneOf can accept more",
    one_of({"type": "integer", "maximum": 6}, {"type": "integer", "minimum": 6}),
    one_of({"type": "integer", "maximum": 5}, {"type": "integer", "minimum": 6}),
)
t.bad(
    "open objects overlap in oneOf",
    closed("a", "b", a=STRING, b=STRING),
    one_of(opened("a", a=STRING), opened("b", b=STRING)),
    {"a": "", "b": ""},
)
t.ok(
    "objects told apart by a const tag do not overlap",
    any_of(closed("k", k={"const": "x"}, v=STRING), closed("k", k={"const": "y"}, v=INTEGER)),
    one_of(opened("k", k={"const": "x"}, v=STRING), opened("k", k={"const": "y"}, v=INTEGER)),
)
t.bad(
    "a tag that is not required lets both branches take the empty object",
    closed(k={"const": "x"}),
    one_of(opened(k={"const": "x"}), opened(k={"const": "y"})),
    {},
)
t.bad(
    "a tag's branch gains a required field",
    one_of(closed("k", k={"const": "x"}), closed("k", k={"const": "y"})),
    one_of(opened("k", "v", k={"const": "x"}), opened("k", k={"const": "y"})),
    {"k": "x"},
)
t.ok(
    "a tag's enum of two values split into two branches",
    closed("k", k={"enum": ["x", "y"]}),
    one_of(opened("k", k={"const": "x"}), opened("k", k={"const": "y"})),
)
t.ok(
    "properties distribute over anyOf only with one field",
    closed("a", a=any_of(STRING, NULL)),
    any_of(closed("a", a=STRING), closed("a", a=NULL)),
)
t.ok(
    "two fields, four combinations",
    closed("a", "b", a=any_of(STRING, NULL), b=any_of(STRING, NULL)),
    any_of(
        closed("a", "b", a=STRING, b=STRING),
        closed("a", "b", a=NULL, b=STRING),
        closed("a", "b", a=STRING, b=NULL),
        closed("a", "b", a=NULL, b=NULL),
    ),
    hard=True,
)
t.bad(
    "two fields, three combinations",
    closed("a", "b", a=any_of(STRING, NULL), b=any_of(STRING, NULL)),
    any_of(
        closed("a", "b", a=STRING, b=STRING),
        closed("a", "b", a=NULL, b=STRING),
        closed("a", "b", a=STRING, b=NULL),
    ),
    {"a": None, "b": None},
)
t.bad(
    "items do not distribute over anyOf",
    listed(any_of(STRING, INTEGER)),
    any_of(listed(STRING), listed(INTEGER)),
    ["", 0],
)
t.ok(
    "lists of one distribute",
    listed(any_of(STRING, INTEGER), maxItems=1),
    any_of(listed(STRING), listed(INTEGER)),
    hard=True,
)
t.ok(
    "lists of either kind are lists of both",
    any_of(listed(STRING), listed(INTEGER)),
    listed(any_of(STRING, INTEGER)),
)
t.ok(
    "allOf is every one",
    all_of({"type": "string"}, {"maxLength": 3}),
    {"type": "string", "maxLength": 3},
)
t.ok(
    "every one is allOf",
    {"type": "string", "maxLength": 3},
    all_of({"type": "string"}, {"maxLength": 3}),
)
t.bad("allOf gains a member", STRING, all_of(STRING, {"minLength": 1}), "")
t.ok("allOf with itself", STRING, all_of(STRING, STRING))
t.ok(
    "siblings of anyOf count",
    {"type": "integer", "anyOf": [{"minimum": 5}, STRING]},
    {"minimum": 5},
)
t.ok("absorption: a or (a and b)", any_of(STRING, all_of(STRING, {"maxLength": 1})), STRING)
t.ok(
    "distribution of allOf over anyOf",
    {"allOf": [any_of(STRING, INTEGER), any_of({"maxLength": 3}, {"type": "null"})]},
    any_of({"type": "string", "maxLength": 3}, INTEGER),
)
t.bad(
    "oneOf of three where all overlap: accepted by all three is refused",
    {"const": 5},
    one_of({"minimum": 1}, {"minimum": 2}, {"minimum": 3}),
    5,
)
t.ok("oneOf with an impossible branch is the other", STRING, one_of(STRING, False))
t.ok("nested oneOf", any_of(STRING, INTEGER, NULL), one_of(one_of(STRING, INTEGER), NULL))
t.bad(
    "a model's union with a subclass: both branches open",
    closed("a", "b", a=STRING, b=INTEGER),
    one_of(opened("a", a=STRING), opened("a", "b", a=STRING, b=INTEGER)),
    {"a": "", "b": 0},
)

# ---------------------------------------------------------------------------------------------
t = Topic("not")
t.ok("double negation", STRING, {"not": {"not": STRING}})
t.ok("double negation, in the writer", {"not": {"not": STRING}}, STRING)
t.ok(
    "not anyOf is allOf of nots",
    {"not": any_of(STRING, INTEGER)},
    all_of({"not": STRING}, {"not": INTEGER}),
)
t.ok(
    "allOf of nots is not anyOf",
    all_of({"not": STRING}, {"not": INTEGER}),
    {"not": any_of(STRING, INTEGER)},
)
t.ok(
    "not allOf is anyOf of nots",
    {"not": all_of({"minimum": 3}, {"maximum": 5})},
    any_of({"not": {"minimum": 3}}, {"not": {"maximum": 5}}),
)
t.bad(
    "not minimum excludes every other kind, too",
    {"type": ["integer", "string"]},
    {"not": {"minimum": 3}},
    "",
)
t.ok("not minimum is below", {"type": "number", "not": {"minimum": 3}}, {"exclusiveMaximum": 3})
t.bad("not required", closed(a=STRING), {"not": {"required": ["a"]}}, {"a": ""})
t.ok("a closed object without the field", closed(a=STRING), {"not": {"required": ["b"]}})
t.bad("an open object may have it", opened(a=STRING), {"not": {"required": ["b"]}}, {"b": 0})
t.ok("not type", STRING, {"not": INTEGER})
t.bad("not type hits", {"type": ["string", "integer"]}, {"not": INTEGER}, 0)
t.bad(
    "a narrowed not accepts more: the reader's not is wider",
    {"not": {"type": "integer", "minimum": 5}},
    {"not": INTEGER},
    0,
)
t.ok("the reader's not is narrower", {"not": INTEGER}, {"not": {"type": "integer", "minimum": 5}})
t.ok("not enum", {"enum": ["a"]}, {"not": {"enum": ["b", "c"]}})
t.bad("not enum hits", {"enum": ["a", "b"]}, {"not": {"enum": ["b", "c"]}}, "b")
t.bad("not pattern", text("^a"), {"not": {"pattern": "b$"}}, "ab")
t.ok("not pattern misses", text("^a$"), {"not": {"pattern": "b$"}})
t.ok("not of a closed object", closed("a", a=STRING), {"not": closed("b", b=STRING)})
t.ok(
    "not items: a list with an item that is not a string",
    {"type": "array", "items": INTEGER, "minItems": 1},
    {"not": listed(STRING)},
)
t.bad("the empty list is a list of strings", listed(INTEGER), {"not": listed(STRING)}, [])
t.ok("not multipleOf", {"type": "integer", "not": {"multipleOf": 2}}, {"not": {"multipleOf": 4}})
t.bad(
    "not multipleOf, too wide",
    {"type": "integer", "not": {"multipleOf": 4}},
    {"not": {"multipleOf": 2}},
    2,
)
t.ok("not {} is false", False, {"not": {}})
t.ok("not const in a property", closed("a", a={"const": 1}), opened(a={"not": {"const": 2}}))
t.bad("format inside not is enforced", STRING, {"not": {"format": "date"}}, "2020-01-01")
t.ok(
    "an unknown format inside not: nothing passes, for a format that says nothing takes everything",
    {"not": {"format": "nobody-knows"}},
    False,
)
t.bad(
    "an unknown format inside not refuses all strings",
    {"type": "string"},
    {"not": {"type": "string", "format": "nobody-knows"}},
    "",
)

# ---------------------------------------------------------------------------------------------
t = Topic("if, then, else")
t.ok("if without then and else is nothing", STRING, {"if": {"minLength": 3}})
t.ok("then without if is nothing", STRING, {"then": False})
t.ok("else without if is nothing", STRING, {"else": False})
t.bad("if true is then", STRING, {"if": True, "then": INTEGER}, "")
t.ok("if true never else", STRING, {"if": True, "else": False})
t.bad("if false is else", STRING, {"if": False, "else": INTEGER}, "")
t.ok("if false never then", STRING, {"if": False, "then": False})
t.bad(
    "an absent field satisfies the if",
    closed(k=STRING, v=STRING),
    {"if": {"properties": {"k": {"const": "x"}}}, "then": {"required": ["v"]}},
    {},
)
t.ok(
    "a required field that is never the const",
    closed("k", k={"enum": ["y"]}),
    {"if": {"properties": {"k": {"const": "x"}}}, "then": {"required": ["v"]}},
)
t.ok(
    "then is kept by the writer",
    closed("k", "v", k=STRING, v=STRING),
    {"if": {"properties": {"k": {"const": "x"}}}, "then": {"required": ["v"]}},
)
t.bad(
    "then asks what the writer does not promise",
    closed("k", k=STRING, v=STRING),
    {"if": {"properties": {"k": {"const": "x"}}}, "then": {"required": ["v"]}},
    {"k": "x"},
)
t.ok(
    "a conditional is an anyOf",
    any_of(closed("k", "v", k={"const": "x"}, v=STRING), closed("k", k={"const": "y"})),
    {"if": {"properties": {"k": {"const": "x"}}, "required": ["k"]}, "then": {"required": ["v"]}},
)
t.ok(
    "then and else as one",
    any_of({"type": "string", "maxLength": 3}, {"type": "integer", "minimum": 0}),
    {"if": STRING, "then": {"maxLength": 3}, "else": {"minimum": 0}},
)
t.bad(
    "else hits what if does not take",
    {"type": ["string", "null"]},
    {"if": STRING, "else": INTEGER},
    None,
)
t.ok(
    "a conditional in the writer",
    {"type": ["string", "integer"], "if": STRING, "then": {"maxLength": 3}},
    any_of({"type": "string", "maxLength": 3}, INTEGER),
)
t.bad(
    "a conditional in the writer whose else is free",
    {"if": STRING, "then": {"maxLength": 3}},
    {"type": "string"},
    0,
)
t.ok(
    "if widened where then is implied",
    {"type": "integer", "minimum": 10},
    {"if": {"minimum": 5}, "then": {"minimum": 7}},
)
t.bad(
    "if widened where then is not",
    {"type": "integer", "minimum": 5},
    {"if": {"minimum": 5}, "then": {"minimum": 7}},
    5,
)
t.ok(
    "the same conditional twice",
    {"type": "integer", "if": {"minimum": 5}, "then": {"multipleOf": 2}},
    {"if": {"minimum": 6}, "then": {"multipleOf": 2}},
)
t.bad(
    "a conditional that asks more often",
    {"type": "integer", "if": {"minimum": 6}, "then": {"multipleOf": 2}},
    {"if": {"minimum": 5}, "then": {"multipleOf": 2}},
    5,
)

# ---------------------------------------------------------------------------------------------
t = Topic("dependent fields")
t.bad(
    "dependentRequired gains a name",
    closed(a=STRING, b=STRING),
    {"dependentRequired": {"a": ["b"]}},
    {"a": ""},
)
t.ok(
    "dependentRequired on a field that never comes",
    closed(b=STRING),
    {"dependentRequired": {"a": ["b"]}},
)
t.ok(
    "dependentRequired that is always met",
    closed("b", a=STRING, b=STRING),
    {"dependentRequired": {"a": ["b"]}},
)
t.ok(
    "dependentRequired drops",
    {"type": "object", "dependentRequired": {"a": ["b", "c"]}},
    {"dependentRequired": {"a": ["b"]}},
)
t.ok(
    "dependentRequired is transitive",
    {"type": "object", "dependentRequired": {"a": ["b"], "b": ["c"]}},
    {"dependentRequired": {"a": ["c"]}},
)
t.bad(
    "dependentRequired is not symmetric",
    {"type": "object", "dependentRequired": {"a": ["b"]}},
    {"dependentRequired": {"b": ["a"]}},
    {"b": 0},
)
t.ok(
    "dependentRequired of a required field is required",
    opened("a") | {"dependentRequired": {"a": ["b"]}},
    {"required": ["b"]},
)
t.ok("dependentRequired of an empty list is nothing", OBJECT, {"dependentRequired": {"a": []}})
t.ok(
    "dependentRequired as dependentSchemas",
    {"type": "object", "dependentRequired": {"a": ["b"]}},
    {"dependentSchemas": {"a": {"required": ["b"]}}},
)
t.bad(
    "dependentSchemas speaks of the whole object",
    closed("a", a=STRING, b=STRING),
    {"dependentSchemas": {"a": {"properties": {"b": INTEGER}}}},
    {"a": "", "b": ""},
)
t.ok(
    "dependentSchemas false forbids the field",
    {"type": "object", "dependentSchemas": {"a": False}},
    opened(a=False),
)
t.ok(
    "a forbidden field is dependentSchemas false",
    opened(a=False),
    {"dependentSchemas": {"a": False}},
)
t.ok("dependentSchemas do not speak of lists", ARRAY, {"dependentSchemas": {"a": False}})
t.bad(
    "dependencies as a list",
    closed(a=STRING, b=STRING),
    {"dependencies": {"a": ["b"]}},
    {"a": ""},
    draft="7",
)
t.bad(
    "dependencies as a schema",
    closed(a=STRING, b=STRING),
    {"dependencies": {"a": {"properties": {"b": INTEGER}}}},
    {"a": "", "b": ""},
    draft="7",
)
t.ok(
    "dependencies of both forms, never triggered",
    closed(c=STRING),
    {"dependencies": {"a": ["b"], "b": False}},
    draft="7",
)
t.ok(
    "dependencies as a list are as a schema",
    {"type": "object", "dependencies": {"a": ["b"]}},
    {"dependencies": {"a": {"required": ["b"]}}},
    draft="7",
)
t.ok("draft 7 knows no dependentRequired", OBJECT, {"dependentRequired": {"a": ["b"]}}, draft="7")
t.ok("draft 7 knows no dependentSchemas", OBJECT, {"dependentSchemas": {"a": False}}, draft="7")
t.bad(
    "draft 4 knows dependencies",
    closed(a=STRING, b=STRING),
    {"dependencies": {"a": ["b"]}},
    {"a": ""},
    draft="4",
)

# ---------------------------------------------------------------------------------------------
t = Topic("names and counts of properties")
t.ok("propertyNames over closed names", closed(ab=STRING), {"propertyNames": {"minLength": 2}})
t.bad(
    "propertyNames over closed names",
    closed(ab=STRING),
    {"propertyNames": {"minLength": 3}},
    {"ab": ""},
)
t.bad(
    "propertyNames over open names", opened(ab=STRING), {"propertyNames": {"minLength": 2}}, {"": 0}
)
t.ok(
    "propertyNames enum and closed are one",
    {"type": "object", "propertyNames": {"enum": ["a", "b"]}},
    {"additionalProperties": False, "properties": {"a": True, "b": True}},
)
t.ok(
    "closed and propertyNames enum are one",
    closed(a=ANY, b=ANY),
    {"propertyNames": {"enum": ["a", "b"]}},
)
t.ok(
    "propertyNames pattern and closed patternProperties are one",
    {"type": "object", "propertyNames": {"pattern": "^x"}},
    {"patternProperties": {"^x": True}, "additionalProperties": False},
)
t.ok(
    "closed patternProperties and propertyNames are one",
    {"type": "object", "patternProperties": {"^x": True}, "additionalProperties": False},
    {"propertyNames": {"pattern": "^x"}},
)
t.ok(
    "propertyNames make a field of the reader impossible",
    {"type": "object", "propertyNames": {"pattern": "^x"}},
    opened(a=INTEGER),
)
t.bad(
    "propertyNames do not make the field impossible",
    {"type": "object", "propertyNames": {"pattern": "^a"}},
    opened(a=INTEGER),
    {"a": None},
)
t.ok(
    "propertyNames bound the count",
    {"type": "object", "propertyNames": {"enum": ["a", "b"]}},
    {"maxProperties": 2},
)
t.bad(
    "propertyNames bound the count, but higher",
    {"type": "object", "propertyNames": {"enum": ["a", "b"]}},
    {"maxProperties": 1},
    {"a": 0, "b": 0},
)
t.ok(
    "propertyNames of length 0 bound the count to 1",
    {"type": "object", "propertyNames": {"maxLength": 0}},
    {"maxProperties": 1},
)
t.bad(
    "propertyNames with const in the reader",
    {"type": "object", "maxProperties": 1},
    {"propertyNames": {"const": "a"}},
    {"b": 0},
)
t.ok("a closed object has at most its fields", closed(a=STRING, b=STRING), {"maxProperties": 2})
t.bad(
    "a closed object may have all its fields",
    closed(a=STRING, b=STRING),
    {"maxProperties": 1},
    {"a": "", "b": ""},
)
t.ok("required fields are a least count", opened("a", "b"), {"minProperties": 2})
t.bad(
    "required fields are no greater count", opened("a", "b"), {"minProperties": 3}, {"a": 0, "b": 0}
)
t.ok(
    "a closed object full by minProperties has all its fields",
    closed(a=STRING, b=STRING) | {"minProperties": 2},
    {"required": ["a", "b"]},
)
t.ok(
    "required fields and maxProperties close an object",
    opened("a", "b") | {"maxProperties": 2},
    {"properties": {"a": True, "b": True}, "additionalProperties": False},
)
t.ok(
    "required fields and maxProperties keep others away",
    opened("a") | {"maxProperties": 1},
    opened(b=False),
)
t.bad("one more is free", opened("a") | {"maxProperties": 2}, opened(b=False), {"a": 0, "b": 0})
t.ok("minProperties 0 is nothing", OBJECT, {"minProperties": 0})
t.ok("counts do not speak of lists", ARRAY, {"minProperties": 3})
t.bad(
    "maxProperties 0 is the empty object",
    {"type": "object", "maxProperties": 1},
    {"const": {}},
    {"a": 0},
)
t.ok("maxProperties 0 is the empty object", {"type": "object", "maxProperties": 0}, {"const": {}})
t.ok("a field that cannot be does not count", closed(a=STRING, b=False), {"maxProperties": 1})
t.ok(
    "dependentRequired with maxProperties makes the field impossible",
    opened("c") | {"maxProperties": 2, "dependentRequired": {"a": ["b"]}},
    opened(a=False),
    hard=True,
)

# ---------------------------------------------------------------------------------------------
t = Topic("lists")
t.ok("items narrow", listed(INTEGER), listed(NUMBER))
t.bad("items widen", listed(NUMBER), listed(INTEGER), [0.5])
t.ok("the empty list fits any items", {"type": "array", "maxItems": 0}, listed(False))
t.ok(
    "prefixItems with items false bound the length",
    {"type": "array", "prefixItems": [STRING, INTEGER], "items": False},
    {"maxItems": 2},
)
t.bad(
    "prefixItems do not bind the length",
    {"type": "array", "prefixItems": [STRING, INTEGER]},
    {"maxItems": 2},
    ["", 0, 0],
)
t.bad(
    "prefixItems ask for no item", {"type": "array", "prefixItems": [STRING]}, {"minItems": 1}, []
)
t.ok(
    "a tuple of equal kinds is a list",
    {"type": "array", "prefixItems": [INTEGER, INTEGER], "items": INTEGER},
    listed(NUMBER),
)
t.ok(
    "a list is a tuple of equal kinds",
    listed(INTEGER),
    {"prefixItems": [NUMBER, NUMBER], "items": INTEGER},
)
t.bad(
    "a tuple's item of another kind",
    {"type": "array", "prefixItems": [INTEGER, STRING]},
    listed(INTEGER),
    [0, ""],
)
t.bad(
    "items after a tuple",
    {"type": "array", "prefixItems": [INTEGER], "items": STRING},
    {"prefixItems": [INTEGER], "items": INTEGER},
    [0, ""],
)
t.ok(
    "items after a tuple that never come",
    {"type": "array", "prefixItems": [INTEGER], "items": STRING, "maxItems": 1},
    {"prefixItems": [INTEGER], "items": INTEGER},
)
t.bad(
    "a longer tuple in the reader asks later items",
    listed(ANY),
    {"prefixItems": [ANY, INTEGER]},
    [0, ""],
)
t.ok(
    "a tuple with an impossible second item is a list of at most one",
    {"type": "array", "prefixItems": [STRING, False]},
    {"maxItems": 1},
)
t.ok(
    "a list of at most one never has a second item",
    {"type": "array", "maxItems": 1},
    {"prefixItems": [ANY, False]},
)
t.ok(
    "items in draft 7 as a tuple",
    {"type": "array", "items": [STRING], "additionalItems": False},
    {"maxItems": 1},
    draft="7",
)
t.bad(
    "additionalItems",
    {"type": "array", "items": [STRING]},
    {"items": [STRING], "additionalItems": STRING},
    ["", 0],
    draft="7",
)
t.ok(
    "additionalItems without a tuple is nothing",
    listed(STRING),
    {"items": STRING, "additionalItems": False},
    draft="7",
)
t.ok("additionalItems without items is nothing", ARRAY, {"additionalItems": False}, draft="7")
t.ok("draft 7 knows no prefixItems", ARRAY, {"prefixItems": [False]}, draft="7")
t.ok("2020 knows no additionalItems", ARRAY, {"additionalItems": False})
t.ok(
    "length within", {"type": "array", "minItems": 2, "maxItems": 3}, {"minItems": 1, "maxItems": 4}
)
t.bad("length without", {"type": "array", "minItems": 1}, {"minItems": 2}, [0])
t.bad("contains is asked", listed(any_of(STRING, INTEGER)), {"contains": STRING}, [])
t.ok(
    "items of the kind and at least one contain it",
    listed(STRING, minItems=1),
    {"contains": STRING},
)
t.bad("items of the kind and maybe none", listed(STRING), {"contains": STRING}, [])
t.ok(
    "a tuple's first item is contained",
    {"type": "array", "prefixItems": [STRING], "minItems": 1},
    {"contains": STRING},
)
t.ok("contains implies at least one", {"type": "array", "contains": STRING}, {"minItems": 1})
t.ok(
    "minContains 2 implies at least two",
    {"type": "array", "contains": STRING, "minContains": 2},
    {"minItems": 2},
)
t.bad(
    "minContains grows",
    {"type": "array", "contains": STRING},
    {"contains": STRING, "minContains": 2},
    [""],
)
t.ok(
    "minContains shrinks",
    {"type": "array", "contains": STRING, "minContains": 2},
    {"contains": STRING},
)
t.ok("contains narrows", {"type": "array", "contains": INTEGER}, {"contains": NUMBER})
t.bad("contains widens", {"type": "array", "contains": NUMBER}, {"contains": INTEGER}, [0.5])
t.bad(
    "maxContains",
    listed(STRING),
    {"contains": STRING, "minContains": 0, "maxContains": 1},
    ["", ""],
)
t.ok(
    "maxContains of what is no item",
    listed(STRING),
    {"contains": INTEGER, "minContains": 0, "maxContains": 0},
)
t.ok(
    "maxContains within maxItems",
    listed(STRING, maxItems=2),
    {"contains": STRING, "minContains": 0, "maxContains": 2},
)
t.ok("minContains without contains is nothing", ARRAY, {"minContains": 5})
t.bad(
    "minContains 0 still leaves maxContains",
    ARRAY,
    {"contains": ANY, "minContains": 0, "maxContains": 1},
    [0, 0],
)
t.ok(
    "contains any with maxContains is maxItems",
    {"type": "array", "contains": {}, "minContains": 0, "maxContains": 2},
    {"maxItems": 2},
)
t.ok(
    "draft 7 knows no minContains",
    {"type": "array", "contains": STRING},
    {"contains": STRING, "minContains": 5},
    draft="7",
)
t.bad("uniqueItems is asked", ARRAY, {"uniqueItems": True}, [0, 0])
t.ok("lists of at most one are unique", {"type": "array", "maxItems": 1}, {"uniqueItems": True})
t.ok("uniqueItems false is nothing", ARRAY, {"uniqueItems": False})
t.ok("unique booleans are at most two", listed(BOOLEAN, uniqueItems=True), {"maxItems": 2})
t.bad(
    "unique booleans may be two", listed(BOOLEAN, uniqueItems=True), {"maxItems": 1}, [True, False]
)
t.ok("unique nulls are at most one", listed(NULL, uniqueItems=True), {"maxItems": 1})
t.ok(
    "unique values of an enum are at most as many",
    listed({"enum": ["a", "b", "c"]}, uniqueItems=True),
    {"maxItems": 3},
)
t.ok(
    "1 and 1.0 are one value in an enum",
    listed({"enum": [1, 1.0]}, uniqueItems=True),
    {"maxItems": 1},
)
t.bad(
    "1 and true are two", listed({"enum": [1, True]}, uniqueItems=True), {"maxItems": 1}, [1, True]
)
t.ok(
    "all unique values of an enum contain each",
    listed({"enum": ["a", "b"]}, uniqueItems=True, minItems=2),
    {"contains": {"const": "a"}},
    hard=True,
)
t.ok(
    "unique small integers",
    listed({"type": "integer", "minimum": 1, "maximum": 3}, uniqueItems=True),
    {"maxItems": 3},
)
t.ok(
    "a tuple of different constants is unique",
    {"type": "array", "prefixItems": [{"const": 1}, {"const": 2}], "items": False},
    {"uniqueItems": True},
    hard=True,
)
t.bad(
    "a tuple of overlapping kinds is not",
    {"type": "array", "prefixItems": [INTEGER, NUMBER], "items": False},
    {"uniqueItems": True},
    [0, 0],
)
t.ok("a unique list is a list", {"type": "array", "uniqueItems": True}, ARRAY)
t.ok(
    "list keywords do not speak of objects",
    OBJECT,
    {"minItems": 3, "contains": False, "items": False},
)
t.ok("nested lists narrow", listed(listed(INTEGER)), listed(listed(NUMBER)))
t.bad("nested lists widen", listed(listed(NUMBER)), listed(listed(INTEGER)), [[0.5]])
t.ok(
    "a list of an impossible nested list",
    listed(listed(STRING, minItems=2, maxItems=1)),
    {"maxItems": 0},
)

# ---------------------------------------------------------------------------------------------
t = Topic("lengths and patterns")
t.bad(
    "an astral character is one",
    {"type": "string", "minLength": 1, "maxLength": 1},
    {"maxLength": 1, "pattern": "^[\\x00-\\uffff]*$"},
    "\U0001f600",
)
t.ok("an astral character is one code point", {"const": "\U0001f600"}, {"maxLength": 1})
t.bad("an astral character is not two", {"const": "\U0001f600"}, {"minLength": 2}, "\U0001f600")
t.bad("a combining accent is a second", {"const": "e\u0301"}, {"maxLength": 1}, "e\u0301")
t.ok("a combining accent is a second", {"const": "e\u0301"}, {"minLength": 2})
t.ok("a dot takes an astral character", {"const": "\U0001f600"}, {"pattern": "^.$"})
t.ok("a narrower class", text("^[a-c]$"), text("^[a-z]$"))
t.bad("a wider class", text("^[a-z]$"), text("^[a-c]$"), "d")
t.bad("patterns search", STRING, text("a"), "")
t.bad("an unanchored pattern finds anywhere", text("a"), text("^a"), "ba")
t.ok("an anchored pattern is found by the unanchored", text("^a$"), text("a"))
t.ok("alternation", text("^(a|b)$"), text("^[abc]$"))
t.bad("the anchors of an alternation bind tighter than it", text("^a|b$"), text("^(a|b)$"), "ax")
t.ok("alternation in another order", text("^(ab|cd)$"), text("^(cd|ab)$"))
t.ok("bounded repetition", text("^a{2,3}$"), text("^a{1,5}$"))
t.bad("bounded repetition", text("^a{1,5}$"), text("^a{2,3}$"), "a")
t.ok("star takes plus", text("^a+$"), text("^a*$"))
t.bad("plus does not take star", text("^a*$"), text("^a+$"), "")
t.ok("a+ is aa*", text("^a+$"), text("^aa*$"))
t.ok("aa* is a+", text("^aa*$"), text("^a+$"))
t.ok("(ab)* is empty or ab(ab)*", text("^(ab)*$"), text("^(ab(ab)*)?$"))
t.ok("digits by class", text("^[0-9]{3}$"), text("^\\d{3}$"))
t.ok("digits by escape", text("^\\d{3}$"), text("^[0-9]{3}$"), hard=True)
t.ok("words by class", text("^[a-z_0-9]+$"), text("^\\w+$"))
t.ok("a pattern bounds the length", text("^[a-z]{3}$"), {"minLength": 3, "maxLength": 3})
t.bad("an unanchored pattern does not", text("[a-z]{3}"), {"maxLength": 3}, "aaaa")
t.ok("a pattern from both sides bounds from below", text("[a-z]{3}"), {"minLength": 3})
t.ok("length as a pattern", {"type": "string", "maxLength": 2}, text("^[\\s\\S]{0,2}$"))
t.bad("a dot does not take a newline", {"type": "string", "maxLength": 2}, text("^.{0,2}$"), "\n")
t.ok(
    "pattern and length of the writer together",
    text("^a*$") | {"minLength": 2, "maxLength": 2},
    {"const": "aa"},
)
t.bad(
    "pattern and length of the writer together",
    text("^a*$") | {"maxLength": 2},
    {"enum": ["", "aa"]},
    "a",
)
t.ok("a finite pattern is an enum", text("^(red|green)$"), {"enum": ["red", "green", "blue"]})
t.bad(
    "a finite pattern has one more", text("^(red|green|blue)$"), {"enum": ["red", "green"]}, "blue"
)
t.ok("an enum fits a pattern", {"enum": ["red", "green"]}, text("^[a-z]+$"))
t.bad("an enum does not fit a pattern", {"enum": ["red", "Green"]}, text("^[a-z]+$"), "Green")
t.bad("the reader gains a pattern", STRING, text("^[A-Z]{3}$"), "")
t.bad("$ is the end of text, not of a line", {"const": "a\n"}, text("^a$"), "a\n")
t.ok("$ is the end of text, not of a line", text("^a$"), {"const": "a"})
t.ok("the empty pattern takes everything", STRING, text(""))
t.ok("the star alone takes everything", STRING, text("a*"))
t.ok("^ alone takes everything", STRING, text("^"))
t.bad("^$ is the empty text", STRING, text("^$"), "a")
t.ok("^$ is the empty text", text("^$"), {"maxLength": 0})
t.ok("maxLength 0 is ^$", {"type": "string", "maxLength": 0}, text("^$"))
t.bad("a dot in a pattern is any character", text("^a.c$"), text("^a\\.c$"), "abc")
t.ok("an escaped dot is a dot", text("^a\\.c$"), text("^a.c$"))
t.ok("lookahead of the same", text("^(?=a)ab$"), text("^ab$"), hard=True)
t.bad("negative lookahead", text("^[a-z]+$"), text("^(?!foo)[a-z]+$"), "foo", hard=True)
t.ok("negative lookahead, kept", text("^bar$"), text("^(?!foo)[a-z]+$"), hard=True)
t.ok("back reference", text("^aa$"), text("^(a)\\1$"), hard=True)
t.bad("back reference", text("^[ab][ab]$"), text("^([ab])\\1$"), "ab", hard=True)
t.ok("a word boundary", {"const": "a b"}, text("\\bb"))
t.ok("lazy is as greedy", text("^a+?$"), text("^a+$"))
t.ok("a group without number", text("^(?:ab)+$"), text("^(ab)+$"))
t.ok("a class negated", text("^[a-c]$"), text("^[^x]$"))
t.bad("a class negated", text("^[a-z]$"), text("^[^x]$"), "x")
t.ok(
    "two patterns, both kept",
    all_of(text("^a"), text("z$")),
    text("^a.*z$|^a[\\s\\S]*z$"),
    hard=True,
)
t.ok(
    "an e-mail-like pattern, widened",
    text("^[a-z]+@[a-z]+\\.com$"),
    text("^[a-z.]+@[a-z]+\\.[a-z]{2,}$"),
)
t.bad(
    "an e-mail-like pattern, narrowed",
    text("^[a-z.]+@[a-z]+\\.[a-z]{2,3}$"),
    text("^[a-z]+@[a-z]+\\.com$"),
    ".@a.aa",
)
t.ok(
    "SKU with an optional part made free",
    text("^SKU-[0-9]{4}$"),
    text("^SKU-[0-9]{4}(-[A-Z]{2})?$"),
)
t.bad(
    "SKU with a part made required",
    text("^SKU-[0-9]{4}(-[A-Z]{2})?$"),
    text("^SKU-[0-9]{4}-[A-Z]{2}$"),
    "SKU-0000",
)
t.ok("hex by either case", text("^[0-9a-f]{8}$"), text("^[0-9a-fA-F]{8}$"))
t.bad("hex by one case", text("^[0-9a-fA-F]{8}$"), text("^[0-9a-f]{8}$"), "AAAAAAAA")
t.ok("a pattern does not speak of numbers", INTEGER, {"pattern": "^a$"})
t.ok("a large counted repetition", text("^a{1,200}$"), {"maxLength": 200})
t.bad("a large counted repetition", text("^a{1,200}$"), {"maxLength": 199}, "a" * 200)
t.ok("a large optional repetition", text("^.{0,900}$"), text("^.*$"))
t.ok("one large optional repetition in another", text("^.{1,255}$"), text("^.{0,256}$"))
t.bad("a large optional repetition, shortened", text("^b{0,255}$"), text("^b{0,254}$"), "b" * 255)
t.ok(
    "decimals of pydantic fit themselves",
    text("^(?!^[-+.]*$)[+-]?0*\\d*\\.?\\d*$"),
    text("^(?!^[-+.]*$)[+-]?0*\\d*\\.?\\d*$"),
    hard=True,
)
t.ok(
    "the writer's tighter pattern of names",
    {"type": "object", "propertyNames": {"pattern": "^[a-c]$"}},
    {"propertyNames": {"pattern": "^[a-z]$"}},
)
t.ok("a slash may be escaped", text("^a/b$"), text("^a\\/b$"))
t.ok("unicode escapes", text("^\\u0061$"), text("^a$"))

# ---------------------------------------------------------------------------------------------
t = Topic("formats as pydantic has them")
for name, good in (
    ("date-time", "2020-01-01T00:00:00Z"),
    ("date", "2020-01-01"),
    ("time", "12:00:00"),
    ("uuid", "12345678-1234-5678-1234-567812345678"),
    ("email", "a@example.com"),
    ("ipv4", "1.2.3.4"),
    ("ipv6", "::1"),
    ("duration", "P1D"),
    ("uri", "http://a.b"),
):
    t.bad(f"text becomes {name}", STRING, {"type": "string", "format": name}, "~")
    t.ok(f"{name} becomes text", {"type": "string", "format": name}, STRING)
    t.ok(f"{name} stays", {"type": "string", "format": name}, {"type": "string", "format": name})
    t.ok(f"a const that is a {name}", {"const": good}, {"format": name})
    t.ok(f"{name} does not speak of numbers", INTEGER, {"format": name})
t.ok(
    "every date is a date-time for pydantic",
    {"type": "string", "format": "date"},
    {"type": "string", "format": "date-time"},
)
t.bad(
    "a date-time is not a date",
    {"type": "string", "format": "date-time"},
    {"type": "string", "format": "date"},
    "2020-01-01T12:00:00Z",
)
t.bad(
    "a date is not a time",
    {"type": "string", "format": "date"},
    {"type": "string", "format": "time"},
    "2020-01-01",
)
t.bad(
    "a uuid is not an e-mail address",
    {"type": "string", "format": "uuid"},
    {"type": "string", "format": "email"},
    "12345678-1234-5678-1234-567812345678",
)
t.ok(
    "a number in text is a date-time for pydantic", {"const": "1700000000"}, {"format": "date-time"}
)
t.ok(
    "a uuid without dashes is one for pydantic",
    {"const": "12345678123456781234567812345678"},
    {"format": "uuid"},
)
t.bad(
    "a uuid does not always have dashes for pydantic",
    {"type": "string", "format": "uuid"},
    {"minLength": 36},
    "12345678123456781234567812345678",
)
t.ok(
    "every ipv4 is an ip of any kind",
    {"type": "string", "format": "ipv4"},
    {"format": "ipvanyaddress"},
    hard=True,
)
t.bad(
    "an ip of any kind is not ipv4",
    {"type": "string", "format": "ipvanyaddress"},
    {"format": "ipv4"},
    "::1",
    hard=True,
)
t.ok("an unknown format is nothing", STRING, {"type": "string", "format": "nobody-knows"})
t.ok("hostname has no type in pydantic", STRING, {"type": "string", "format": "hostname"})
t.ok("int32 has no type in pydantic", INTEGER, {"type": "integer", "format": "int32"})
t.ok("regex, json-pointer and iri say nothing of other kinds", OBJECT, {"format": "json-pointer"})
t.bad(
    "a date's pattern is narrower than pydantic's dates",
    {"type": "string", "format": "date"},
    text("^\\d{4}-\\d{2}-\\d{2}$"),
    "0",
)
t.bad(
    "not every text of a date's pattern is a date",
    text("^[0-9]{4}-[0-9]{2}-[0-9]{2}$"),
    {"format": "date"},
    "2020-13-01",
)
t.ok(
    "an enum of dates", {"enum": ["2020-01-01", "2020-02-29"]}, {"type": "string", "format": "date"}
)
t.bad(
    "an enum with a day that is not",
    {"enum": ["2020-01-01", "2021-02-29"]},
    {"type": "string", "format": "date"},
    "2021-02-29",
)
t.ok(
    "format with anyOf of null",
    any_of({"type": "string", "format": "date"}, NULL),
    any_of({"type": "string", "format": "date-time"}, NULL),
)
t.bad(
    "a format in additionalProperties",
    {"type": "object", "additionalProperties": STRING},
    {"additionalProperties": {"format": "uuid"}},
    {"": ""},
)
t.bad(
    "a format in propertyNames", {"type": "object"}, {"propertyNames": {"format": "uuid"}}, {"x": 0}
)
t.ok("a uri is not empty", {"type": "string", "format": "uri"}, {"minLength": 1}, hard=True)
t.ok(
    "two formats that nothing has",
    all_of({"type": "string", "format": "uuid"}, {"format": "email"}),
    INTEGER,
    hard=True,
)

# ---------------------------------------------------------------------------------------------
t = Topic("words that mean nothing")
t.ok(
    "title, description, examples, default, deprecated, readOnly",
    STRING,
    {
        "type": "string",
        "title": "x",
        "description": "y",
        "examples": [1],
        "default": 5,
        "deprecated": True,
        "readOnly": True,
        "$comment": "z",
    },
)
t.ok("unknown words", STRING, {"type": "string", "x-order": 3, "nonsense": {"type": "integer"}})
t.ok("contentEncoding is an annotation", STRING, {"type": "string", "contentEncoding": "base64"})
t.ok(
    "contentMediaType is an annotation",
    STRING,
    {"type": "string", "contentMediaType": "application/json"},
)
t.ok(
    "contentSchema is an annotation",
    STRING,
    {
        "type": "string",
        "contentMediaType": "application/json",
        "contentSchema": {"type": "integer"},
    },
)
t.ok(
    "the same in draft 7",
    STRING,
    {"type": "string", "contentEncoding": "base64", "contentMediaType": "x/y"},
    draft="7",
    hard=True,
)
t.ok("$defs that nobody refers to", STRING, {"type": "string", "$defs": {"a": False}})
t.ok(
    "definitions that nobody refers to",
    STRING,
    {"type": "string", "definitions": {"a": {"type": "integer"}}},
)
t.ok(
    "discriminator is a word of OpenAPI",
    closed(a=STRING),
    opened(a=STRING) | {"discriminator": {"propertyName": "a"}},
)
t.ok(
    "$vocabulary, $comment and $anchor constrain nothing",
    STRING,
    {"$comment": "x", "$anchor": "here", "type": "string"},
)
t.ok("an unknown word that looks like one", STRING, {"minlength": 5, "Type": "integer"})
t.ok(
    "defaults changed",
    closed(a={"type": "integer", "default": 1}),
    closed(a={"type": "integer", "default": 2}),
)
t.ok(
    "2020 keeps dependencies out of its words: dependentRequired is what it knows",
    ARRAY,
    {"dependencies": {"a": ["b"]}},
)

# ---------------------------------------------------------------------------------------------
t = Topic("references")
LINKED = {
    "$ref": "#/$defs/Node",
    "$defs": {"Node": closed("v", v=INTEGER, next=any_of({"$ref": "#/$defs/Node"}, NULL))},
}
LINKED_NUMBER = {
    "$ref": "#/$defs/N",
    "$defs": {"N": opened("v", v=NUMBER, next=any_of({"$ref": "#/$defs/N"}, NULL))},
}
TREE = {
    "$ref": "#/$defs/T",
    "$defs": {"T": closed("v", v=STRING, kids=listed({"$ref": "#/$defs/T"}))},
}
t.ok("$ref is what it points at", {"$ref": "#/$defs/a", "$defs": {"a": INTEGER}}, INTEGER)
t.ok("what it points at is $ref", INTEGER, {"$ref": "#/$defs/a", "$defs": {"a": INTEGER}})
t.ok("definitions in 2020", INTEGER, {"$ref": "#/definitions/a", "definitions": {"a": NUMBER}})
t.ok("$defs in draft 7", INTEGER, {"$ref": "#/$defs/a", "$defs": {"a": NUMBER}}, draft="7")
t.bad(
    "the same name points at another thing",
    {"$ref": "#/$defs/a", "$defs": {"a": NUMBER}},
    {"$ref": "#/$defs/a", "$defs": {"a": INTEGER}},
    0.5,
)
t.bad(
    "siblings of $ref count in 2020",
    INTEGER,
    {"$ref": "#/$defs/a", "minimum": 0, "$defs": {"a": INTEGER}},
    -1,
)
t.ok(
    "siblings of $ref do not count in draft 7",
    INTEGER,
    {"$ref": "#/definitions/a", "minimum": 0, "definitions": {"a": INTEGER}},
    draft="7",
)
t.ok(
    "siblings of $ref do not count in draft 4",
    INTEGER,
    {"$ref": "#/definitions/a", "minimum": 0, "definitions": {"a": INTEGER}},
    draft="4",
)
t.bad(
    "siblings of $ref in the writer do not count in draft 7",
    {"$ref": "#/definitions/a", "type": "string", "definitions": {"a": INTEGER}},
    STRING,
    0,
    draft="7",
)
t.ok(
    "a property named $ref is not a reference",
    closed(**{"$ref": {"type": "string"}}),
    opened(**{"$ref": STRING}),
    draft="7",
)
t.ok("a list is itself", LINKED, LINKED)
t.ok("a list of integers is a list of numbers", LINKED, LINKED_NUMBER)
t.bad("a list of numbers is not a list of integers", {**LINKED_NUMBER}, LINKED, {"v": 0.5})
t.ok("a tree is itself", TREE, TREE)
t.bad(
    "a tree narrowed at its nodes",
    TREE,
    {
        "$ref": "#/$defs/T",
        "$defs": {
            "T": opened(
                "v", v={"type": "string", "minLength": 1}, kids=listed({"$ref": "#/$defs/T"})
            )
        },
    },
    {"v": ""},
)
t.bad(
    "a tree narrowed below its root only",
    TREE,
    opened("v", v=STRING, kids=listed({"$ref": "#/$defs/T"}))
    | {
        "$defs": {
            "T": opened(
                "v", v={"type": "string", "minLength": 1}, kids=listed({"$ref": "#/$defs/T"})
            )
        }
    },
    {"v": "", "kids": [{"v": ""}]},
)
t.bad(
    "a tree whose depth ends",
    TREE,
    opened("v", v=STRING, kids=listed(opened("v", v=STRING, kids={"maxItems": 0}))),
    {"v": "", "kids": [{"v": "", "kids": [{"v": ""}]}]},
)
t.ok(
    "a tree with fewer levels is a tree",
    closed("v", v=STRING, kids=listed(closed("v", v=STRING))),
    TREE,
)
t.ok(
    "unrolled once is the same",
    closed("v", v=STRING, kids=listed({"$ref": "#/$defs/T"})) | {"$defs": TREE["$defs"]},
    TREE,
)
t.ok(
    "and back",
    TREE,
    closed("v", v=STRING, kids=listed({"$ref": "#/$defs/T"})) | {"$defs": TREE["$defs"]},
)
t.ok("the root as #", closed(a={"$ref": "#"}), opened(a={"$ref": "#"}))
t.ok(
    "the root as # and by name",
    closed(a={"$ref": "#"}),
    {"$ref": "#/$defs/r", "$defs": {"r": opened(a={"$ref": "#/$defs/r"})}},
)
t.bad("the root as #, narrowed", opened(a={"$ref": "#"}), closed(a={"$ref": "#"}), {"b": 0})
t.ok(
    "two that refer to each other",
    {
        "$ref": "#/$defs/a",
        "$defs": {"a": closed(b={"$ref": "#/$defs/b"}), "b": closed(a={"$ref": "#/$defs/a"})},
    },
    {"$ref": "#/$defs/x", "$defs": {"x": opened(a={"$ref": "#/$defs/x"}, b={"$ref": "#/$defs/x"})}},
)
t.bad(
    "two that refer to each other, one narrowed",
    {
        "$ref": "#/$defs/a",
        "$defs": {
            "a": closed(b={"$ref": "#/$defs/b"}),
            "b": closed(a={"$ref": "#/$defs/a"}, v=NUMBER),
        },
    },
    {
        "$ref": "#/$defs/a",
        "$defs": {
            "a": opened(b={"$ref": "#/$defs/b"}),
            "b": opened(a={"$ref": "#/$defs/a"}, v=INTEGER),
        },
    },
    {"b": {"v": 0.5}},
)
t.ok(
    "a recursion that can never end has no finite document",
    {"$ref": "#/$defs/a", "$defs": {"a": closed("a", a={"$ref": "#/$defs/a"})}},
    STRING,
    hard=True,
)
t.ok("an escaped pointer, slash", INTEGER, {"$ref": "#/$defs/a~1b", "$defs": {"a/b": INTEGER}})
t.ok("an escaped pointer, tilde", INTEGER, {"$ref": "#/$defs/a~0b", "$defs": {"a~b": INTEGER}})
t.bad(
    "an escaped pointer, ~01 is ~1 and no slash",
    STRING,
    {"$ref": "#/$defs/a~01", "$defs": {"a~1": INTEGER, "a/": STRING}},
    "",
)
t.ok("an escaped pointer, percent", INTEGER, {"$ref": "#/$defs/a%25b", "$defs": {"a%b": INTEGER}})
t.ok("an escaped pointer, space", INTEGER, {"$ref": "#/$defs/a%20b", "$defs": {"a b": INTEGER}})
t.ok(
    "a reference into properties",
    closed(a=INTEGER, b=INTEGER),
    opened(a=INTEGER, b={"$ref": "#/properties/a"}),
)
t.bad(
    "a reference into properties, narrowed",
    closed(a=INTEGER, b=STRING),
    opened(a=INTEGER, b={"$ref": "#/properties/a"}),
    {"b": ""},
)
t.ok("a reference into a list of branches", INTEGER, {"anyOf": [INTEGER, {"$ref": "#/anyOf/0"}]})
t.ok(
    "a reference to a reference",
    INTEGER,
    {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": INTEGER}},
)
t.ok("a reference to true", INTEGER, {"$ref": "#/$defs/a", "$defs": {"a": True}})
t.bad("a reference to false", INTEGER, {"$ref": "#/$defs/a", "$defs": {"a": False}}, 0)
t.ok("an anchor", INTEGER, {"$ref": "#here", "$defs": {"a": {"$anchor": "here", "type": "number"}}})
t.bad(
    "an anchor, narrowed",
    NUMBER,
    {"$ref": "#here", "$defs": {"a": {"$anchor": "here", "type": "integer"}}},
    0.5,
)
t.ok(
    "an id of its own",
    INTEGER,
    {"$id": "http://a.b/root", "$ref": "item", "$defs": {"i": {"$id": "item", "type": "number"}}},
    hard=True,
)
t.bad(
    "an id changes what a pointer starts from",
    {"$defs": {"x": STRING}, "type": "integer"},
    {
        "$id": "http://a.b/root",
        "$ref": "inner",
        "$defs": {"x": INTEGER, "i": {"$id": "inner", "$ref": "#/$defs/x", "$defs": {"x": STRING}}},
    },
    0,
    hard=True,
)
t.ok(
    "the root by its own id",
    INTEGER,
    {"$id": "http://a.b/root", "$ref": "http://a.b/root#/$defs/a", "$defs": {"a": NUMBER}},
    hard=True,
)
t.ok(
    "$id in draft 7 and a pointer",
    INTEGER,
    {
        "$id": "http://a.b/root.json",
        "allOf": [{"$ref": "#/definitions/a"}],
        "definitions": {"a": NUMBER},
    },
    draft="7",
)
t.ok(
    "a dynamic reference with one target is a reference",
    closed(a=INTEGER),
    {"$dynamicRef": "#n", "$defs": {"n": {"$dynamicAnchor": "n", "properties": {"a": NUMBER}}}},
    hard=True,
)
t.bad(
    "a dynamic reference with one target is a reference",
    closed(a=NUMBER),
    {"$dynamicRef": "#n", "$defs": {"n": {"$dynamicAnchor": "n", "properties": {"a": INTEGER}}}},
    {"a": 0.5},
    hard=True,
)
t.ok(
    "names of definitions are nothing",
    {"$ref": "#/$defs/A", "$defs": {"A": closed(x={"$ref": "#/$defs/B"}), "B": INTEGER}},
    {"$ref": "#/$defs/P", "$defs": {"P": opened(x={"$ref": "#/$defs/Q"}), "Q": NUMBER}},
)
t.bad(
    "deep inside a list of references",
    listed({"$ref": "#/$defs/i"}) | {"$defs": {"i": closed("q", q=INTEGER)}},
    listed({"$ref": "#/$defs/i"})
    | {"$defs": {"i": opened("q", q={"type": "integer", "minimum": 1})}},
    [{"q": 0}],
)
t.ok(
    "a JSON value is a JSON value",
    {
        "$ref": "#/$defs/j",
        "$defs": {
            "j": {
                "anyOf": [
                    STRING,
                    NUMBER,
                    BOOLEAN,
                    NULL,
                    listed({"$ref": "#/$defs/j"}),
                    {"type": "object", "additionalProperties": {"$ref": "#/$defs/j"}},
                ]
            }
        },
    },
    True,
)
t.ok(
    "everything is a JSON value",
    True,
    {
        "$ref": "#/$defs/j",
        "$defs": {
            "j": {
                "anyOf": [
                    STRING,
                    NUMBER,
                    BOOLEAN,
                    NULL,
                    listed({"$ref": "#/$defs/j"}),
                    {"type": "object", "additionalProperties": {"$ref": "#/$defs/j"}},
                ]
            }
        },
    },
    hard=True,
)
t.bad(
    "everything is not a JSON value without null",
    True,
    {
        "$ref": "#/$defs/j",
        "$defs": {
            "j": {
                "anyOf": [
                    STRING,
                    NUMBER,
                    BOOLEAN,
                    listed({"$ref": "#/$defs/j"}),
                    {"type": "object", "additionalProperties": {"$ref": "#/$defs/j"}},
                ]
            }
        },
    },
    None,
)
t.bad(
    "recursion through not",
    closed(a={"$ref": "#"}),
    {"not": {"required": ["a"], "properties": {"a": {"maxProperties": 0}}}},
    {"a": {}},
)
t.bad(
    "the reader's recursion is narrowed three levels down",
    LINKED,
    opened(
        "v",
        v=INTEGER,
        next=any_of(
            NULL,
            opened(
                "v", v=INTEGER, next=any_of(NULL, opened("v", v={"type": "integer", "minimum": 0}))
            ),
        ),
    ),
    {"v": 0, "next": {"v": 0, "next": {"v": -1}}},
)

# ---------------------------------------------------------------------------------------------
t = Topic("unevaluated")
t.ok(
    "unevaluatedProperties false alone is closed",
    closed(a=STRING),
    {"properties": {"a": STRING}, "unevaluatedProperties": False},
)
t.bad(
    "unevaluatedProperties false refuses others",
    opened(a=STRING),
    {"properties": {"a": STRING}, "unevaluatedProperties": False},
    {"b": 0},
)
t.ok(
    "unevaluatedProperties in the writer close it",
    {"type": "object", "properties": {"a": STRING}, "unevaluatedProperties": False},
    closed(a=STRING),
)
t.bad(
    "unevaluatedProperties see only the branch that holds",
    closed("k", "b", k={"const": "x"}, b=STRING),
    {
        "anyOf": [
            {"properties": {"k": {"const": "y"}, "b": True}, "required": ["k"]},
            {"properties": {"k": {"const": "x"}}},
        ],
        "unevaluatedProperties": False,
    },
    {"k": "x", "b": ""},
    hard=True,
)
t.ok(
    "unevaluatedProperties see a reference",
    closed(a=STRING),
    {"$ref": "#/$defs/b", "unevaluatedProperties": False, "$defs": {"b": opened(a=STRING)}},
    hard=True,
)
t.ok(
    "unevaluatedProperties see if and then",
    closed("k", "b", k={"const": "x"}, b=STRING),
    {
        "if": {"properties": {"k": {"const": "x"}}},
        "then": {"properties": {"b": STRING}},
        "unevaluatedProperties": False,
    },
    hard=True,
)
t.ok(
    "additionalProperties evaluates everything",
    OBJECT,
    {"additionalProperties": True, "unevaluatedProperties": False},
    hard=True,
)
t.ok(
    "unevaluatedItems false after prefixItems",
    {"type": "array", "prefixItems": [STRING], "items": False},
    {"prefixItems": [STRING], "unevaluatedItems": False},
    hard=True,
)
t.bad(
    "unevaluatedItems false refuses more",
    {"type": "array", "prefixItems": [STRING]},
    {"prefixItems": [STRING], "unevaluatedItems": False},
    ["", 0],
)
t.ok(
    "unevaluatedItems after contains: what it finds is seen",
    listed(STRING, minItems=1),
    {"contains": STRING, "unevaluatedItems": False},
    hard=True,
)
t.ok("draft 7 knows no unevaluatedProperties", OBJECT, {"unevaluatedProperties": False}, draft="7")
t.bad(
    "unevaluatedProperties do not see a cousin",
    closed(a=STRING),
    {"allOf": [{"properties": {"a": STRING}}, {"unevaluatedProperties": False}]},
    {"a": ""},
    hard=True,
)

# ---------------------------------------------------------------------------------------------
t = Topic("models as pydantic writes them")
MONEY = closed(
    "amount", "currency", amount=text("^-?[0-9]+(\\.[0-9]+)?$"), currency={"enum": ["EUR", "USD"]}
)
ORDER = closed(
    "order_id",
    "lines",
    "note",
    order_id={"type": "string", "format": "uuid"},
    lines=listed({"$ref": "#/$defs/Line"}),
    note=any_of(STRING, NULL),
) | {
    "$defs": {
        "Line": closed(
            "sku", "quantity", sku=STRING, quantity={"type": "integer", "exclusiveMinimum": 0}
        )
    }
}
t.ok(
    "an order is read by the same order, open and with defaults",
    ORDER,
    opened(
        "order_id",
        "lines",
        order_id={"type": "string", "format": "uuid"},
        lines=listed({"$ref": "#/$defs/Line"}),
        note={"anyOf": [STRING, NULL], "default": None},
    )
    | {
        "$defs": {
            "Line": opened(
                "sku", "quantity", sku=STRING, quantity={"type": "integer", "minimum": 1}
            )
        }
    },
)
t.bad(
    "a line's quantity is limited",
    ORDER,
    opened("lines", lines=listed(opened("quantity", quantity={"type": "integer", "maximum": 99}))),
    {
        "order_id": "12345678-1234-5678-1234-567812345678",
        "lines": [{"sku": "", "quantity": 100}],
        "note": None,
    },
)
t.bad(
    "a note may no longer be null",
    ORDER,
    opened(note=STRING),
    {"order_id": "12345678-1234-5678-1234-567812345678", "lines": [], "note": None},
)
t.bad(
    "lines must be at least one",
    ORDER,
    opened(lines={"minItems": 1}),
    {"order_id": "12345678-1234-5678-1234-567812345678", "lines": [], "note": None},
)
t.ok(
    "a Decimal is read from text or number",
    MONEY,
    opened("amount", amount=any_of(NUMBER, text("^-?[0-9]*\\.?[0-9]*$"))),
)
t.bad(
    "an amount as a number",
    MONEY,
    opened("amount", amount=NUMBER),
    {"amount": "0", "currency": "EUR"},
)
t.ok(
    "a currency added to the reader",
    MONEY,
    opened("currency", currency={"enum": ["CHF", "EUR", "USD"]}),
)
t.bad(
    "a currency dropped by the reader",
    MONEY,
    opened("currency", currency={"enum": ["EUR"]}),
    {"amount": "0", "currency": "USD"},
)
t.ok(
    "a map of texts",
    {"type": "object", "additionalProperties": STRING},
    {"type": "object", "additionalProperties": any_of(STRING, NULL)},
)
t.bad(
    "a map becomes a model",
    {"type": "object", "additionalProperties": STRING},
    opened("a", a=STRING),
    {},
)
t.ok(
    "a model becomes a map",
    closed("a", a=STRING),
    {"type": "object", "additionalProperties": STRING},
)
t.bad(
    "a model with a number becomes a map of texts",
    closed("a", "n", a=STRING, n=INTEGER),
    {"type": "object", "additionalProperties": STRING},
    {"a": "", "n": 0},
)
t.bad("one becomes many", closed("a", a=STRING), opened("a", a=listed(STRING)), {"a": ""})
t.ok(
    "one becomes one or many", closed("a", a=STRING), opened("a", a=any_of(STRING, listed(STRING)))
)
t.ok("a set is a list", listed(STRING, uniqueItems=True), listed(STRING))
t.bad("a list is not a set", listed(STRING), listed(STRING, uniqueItems=True), ["", ""])
t.bad("an integer becomes text", closed("a", a=INTEGER), opened("a", a=STRING), {"a": 0})
t.ok(
    "a literal becomes an enum",
    closed("a", a={"const": "x", "type": "string"}),
    opened("a", a={"enum": ["x", "y"], "type": "string"}),
)
t.ok(
    "a union tagged by kind gains a member",
    {
        "oneOf": [{"$ref": "#/$defs/C"}],
        "$defs": {"C": closed("kind", "n", kind={"const": "c"}, n=STRING)},
    },
    {
        "oneOf": [{"$ref": "#/$defs/C"}, {"$ref": "#/$defs/B"}],
        "discriminator": {"propertyName": "kind", "mapping": {"c": "#/$defs/C"}},
        "$defs": {
            "C": opened("kind", "n", kind={"const": "c"}, n=STRING),
            "B": opened("kind", "iban", kind={"const": "b"}, iban=STRING),
        },
    },
)
t.bad(
    "a union tagged by kind loses a member",
    {
        "oneOf": [{"$ref": "#/$defs/C"}, {"$ref": "#/$defs/B"}],
        "$defs": {
            "C": closed("kind", kind={"const": "c"}),
            "B": closed("kind", kind={"const": "b"}),
        },
    },
    {"oneOf": [{"$ref": "#/$defs/C"}], "$defs": {"C": opened("kind", kind={"const": "c"})}},
    {"kind": "b"},
)
t.ok(
    "a title changed and a field moved",
    {"title": "A", **closed("a", "b", a=STRING, b=STRING)},
    {"title": "B", **opened("b", "a", b=STRING, a=STRING)},
)
t.ok(
    "a tuple of two stays",
    {"type": "array", "prefixItems": [STRING, INTEGER], "minItems": 2, "maxItems": 2},
    {"type": "array", "prefixItems": [STRING, NUMBER], "minItems": 2, "maxItems": 2},
)
t.bad(
    "a tuple of two becomes three",
    {"type": "array", "prefixItems": [STRING, INTEGER], "minItems": 2, "maxItems": 2},
    {"type": "array", "prefixItems": [STRING, INTEGER, STRING], "minItems": 3, "maxItems": 3},
    ["", 0],
)

t = Topic("what was once fallen for")
t.bad(
    "an enum's values are held to the other words beside it",
    text("^(a|bb)$"),
    {"enum": ["a", "bb"], "maxLength": 1},
    "bb",
)
t.bad(
    "an enum's values are held to a pattern beside it",
    text("^(a|bb)$"),
    {"enum": ["a", "bb"], "pattern": "^a"},
    "bb",
)
t.bad(
    "an enum's values are held to a format beside it",
    {"enum": ["a"]},
    {"enum": ["a"], "format": "ipv4"},
    "a",
)
t.bad(
    "names are held to a format",
    closed(b=ANY),
    closed(b=ANY) | {"propertyNames": {"format": "date-time"}},
    {"b": 1},
)
t.bad(
    "the empty string is not a date-time",
    {"maxLength": 0},
    {"maxLength": 0, "format": "date-time"},
    "",
)
t.bad(
    "items: true evaluates all",
    {"items": True, "unevaluatedItems": False},
    {"unevaluatedItems": False},
    [1],
)
t.bad(
    "additionalProperties: true evaluates all",
    {"additionalProperties": True, "unevaluatedProperties": False},
    {"unevaluatedProperties": False},
    {"a": 1},
)
t.bad(
    "an if without then evaluates",
    {"type": "object", "if": {"properties": {"a": True}}, "unevaluatedProperties": False},
    {"maxProperties": 0},
    {"a": 1},
)
t.bad(
    "an if without then evaluates items",
    {"type": "array", "if": {"prefixItems": [True]}, "unevaluatedItems": False},
    {"maxItems": 0},
    [1],
)
t.bad(
    "true is not 1 in a recursion",
    {"$ref": "#/$defs/a", "$defs": {"a": closed("v", v={"const": 1}, n={"$ref": "#/$defs/a"})}},
    {"$ref": "#/$defs/a", "$defs": {"a": closed("v", v={"const": True}, n={"$ref": "#/$defs/a"})}},
    {"v": 1},
)
t.bad(
    "what was proved with the help of what failed is not proved",
    closed("p", "q", p={"$ref": "#/$defs/B"}, q={"$ref": "#/$defs/A"})
    | {
        "$defs": {
            "A": closed(back={"$ref": "#/$defs/B"}),
            "B": closed(next={"$ref": "#/$defs/A"}, v=NUMBER),
        }
    },
    any_of(opened(p={"$ref": "#/$defs/B"}), opened(q={"$ref": "#/$defs/A"}))
    | {
        "$defs": {
            "A": opened(back={"$ref": "#/$defs/B"}),
            "B": opened(next={"$ref": "#/$defs/A"}, v=INTEGER),
        }
    },
    {"p": {"v": 0.5}, "q": {"back": {"v": 0.5}}},
)
t.ok(
    "a reader that takes everything, in an empty schema",
    {"additionalProperties": {"$ref": "#"}, "minProperties": 3, "not": {"required": ["a"]}},
    {},
)
t.bad(
    "a name at the bound of propertyNames",
    {"propertyNames": {"maxLength": 2}},
    {"propertyNames": {"maxLength": 1}},
    {"ab": 1},
    draft="7",
)
t.bad(
    "a list that must contain what only its first place can hold",
    {"type": "array", "items": STRING, "prefixItems": [True], "contains": NULL, "minItems": 2},
    STRING,
    [None, ""],
)
t.bad(
    "as many names of a length as are asked for",
    {"type": "object", "propertyNames": {"minLength": 1}, "minProperties": 3},
    NULL,
    {"a": 1, "b": 2, "c": 3},
)

t = Topic("what looks like a word of the language, and is not")
t.ok("a reference in an enum is data", {"enum": [{"$ref": "#/nowhere"}]}, OBJECT)
t.bad(
    "a reference in a const is data",
    {"const": {"$ref": "#/nowhere"}},
    closed(),
    {"$ref": "#/nowhere"},
)
t.ok("an id in an enum is data", {"enum": [{"$id": "http://a.b/c"}]}, OBJECT)
t.bad(
    "a property named $defs",
    closed(**{"$defs": STRING}),
    closed(**{"$defs": INTEGER}),
    {"$defs": ""},
)
t.bad(
    "properties named like keywords",
    closed(allOf=STRING, **{"if": STRING, "not": STRING}),
    opened(allOf=STRING, **{"if": STRING, "not": INTEGER}),
    {"not": ""},
)
t.bad(
    "a reference in a const inside a recursion is data",
    {
        "$ref": "#/$defs/a",
        "$defs": {"a": opened(a={"$ref": "#/$defs/a"}, c={"const": {"$ref": "#/$defs/a"}})},
    },
    {
        "$ref": "#/$defs/a",
        "$defs": {"a": opened(a={"$ref": "#/$defs/a"}, c={"const": {"$ref": "#/$defs/zz"}})},
    },
    {"c": {"$ref": "#/$defs/a"}},
)
t.bad(
    "the same words of a reference, another definition",
    closed(a={"$ref": "#/$defs/a"}) | {"$defs": {"a": opened(n={"$ref": "#/$defs/a"}, v=STRING)}},
    opened(a={"$ref": "#/$defs/a"}) | {"$defs": {"a": opened(n={"$ref": "#/$defs/a"}, v=INTEGER)}},
    {"a": {"v": ""}},
)
t.bad(
    "an anchor of another resource is not meant",
    STRING,
    {
        "$ref": "#a",
        "$defs": {
            "x": {"$id": "http://x/y", "$defs": {"q": {"$anchor": "a", "type": "string"}}},
            "y": {"$anchor": "a", "type": "integer"},
        },
    },
    "",
)
t.bad(
    "a pointer starts from the nearest id",
    STRING,
    {
        "$id": "http://x/r/",
        "$ref": "item",
        "$defs": {"i": {"$id": "item", "$ref": "#/$defs/k", "$defs": {"k": INTEGER}}, "k": STRING},
    },
    "",
)
t.bad(
    "an id as an anchor in draft 7",
    STRING,
    {"$ref": "#foo", "definitions": {"a": {"$id": "#foo", "type": "integer"}}},
    "",
    draft="7",
)
t.bad(
    "an id as an anchor in draft 4",
    STRING,
    {"$ref": "#foo", "definitions": {"a": {"id": "#foo", "type": "integer"}}},
    "",
    draft="4",
)
t.bad(
    "an id beside a reference is hidden in draft 7",
    STRING,
    {
        "$id": "http://x/r",
        "allOf": [{"$id": "http://y/q", "$ref": "#/definitions/a"}],
        "definitions": {"a": INTEGER},
    },
    "",
    draft="7",
)
t.bad(
    "a dynamic anchor further out decides where a dynamic reference leads",
    {
        "$id": "http://x/a",
        "$dynamicRef": "#n",
        "$defs": {
            "base": {"$id": "base", "$dynamicAnchor": "n", "type": "integer"},
            "n": {"$dynamicAnchor": "n", "type": "string"},
        },
    },
    INTEGER,
    "s",
    hard=True,
)
t.bad("a name that looks like a machine's own", {"x-fails": STRING}, INTEGER, "s")
