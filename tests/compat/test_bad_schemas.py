"""Whatever is given: a verdict, or a UsageError that says what and where. Never anything else,
never for long, and never by asking another machine."""

from __future__ import annotations

import faulthandler
import signal
import socket
from collections import OrderedDict
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from time import process_time
from typing import Any

import pytest

from eventmesh.compat import Breaking, Compatible, Unknown, Verdict, compare
from eventmesh.errors import UsageError
from tests.compat.oracle import is_proof

CAP = 20.0
"""Seconds of the processor for one question: almost all need less than a tenth of one, also on a
slow machine, and a search without a bound needs for ever."""
HANG = 120
"""Seconds of the processor after which a test shows where it hangs, and ends."""

STRING = {"type": "string"}


class Hangs(BaseException):
    """A question takes far too long; nothing may catch this but the test."""


@pytest.fixture(autouse=True)
def watch() -> Iterator[None]:
    """Ends a test that hangs in Python, and the whole run if it hangs below."""

    def stop(*_: Any) -> None:
        raise Hangs

    faulthandler.dump_traceback_later(10 * HANG, exit=True)
    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, HANG)
    yield
    signal.setitimer(signal.ITIMER_PROF, 0)
    signal.signal(signal.SIGPROF, before)
    faulthandler.cancel_dump_traceback_later()


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Nothing may look for another machine; what did is listed, and a test fails with it."""
    asked: list[Any] = []

    def refuse(*where: Any, **_: Any) -> Any:
        asked.append(where)
        raise OSError("no network in this test")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    return asked


@pytest.fixture(scope="module", autouse=True)
def warm() -> None:
    """What is imported once counts for no question."""
    compare(STRING, {"type": "string", "format": "date"})


def ask(writer: Any, reader: Any, draft: str = "2020") -> Verdict | UsageError:
    """The verdict or the UsageError, within the time."""
    begun = process_time()
    answer: Verdict | UsageError
    try:
        answer = compare(writer, reader, draft=draft)
    except UsageError as error:
        answer = error
    seconds = process_time() - begun
    assert seconds < CAP, f"{seconds:.1f} s"
    if isinstance(answer, UsageError):
        text = str(answer)
        assert text
        assert len(text) < 2_000
        assert "Traceback" not in text
    return answer


def ask_all_ways(schema: Any, draft: str = "2020") -> list[Verdict | UsageError]:
    """The schema as writer, as reader, as both, and inside a property."""
    inside = {"type": "object", "properties": {"a": schema}}
    pairs = [(schema, STRING), (STRING, schema), (schema, schema), (inside, inside), (True, inside)]
    return [ask(writer, reader, draft) for writer, reader in pairs]


def is_sound(answer: Verdict | UsageError) -> bool:
    return isinstance(answer, Compatible | Breaking | Unknown | UsageError)


class Opaque:
    """Something that JSON does not have, by the same name in every process of a test run."""

    def __repr__(self) -> str:
        return "Opaque()"


NO_SCHEMAS = [None, [], [STRING], 0, 1.5, "string", b"{}", {1, 2}, Opaque(), dict, (), ("a",), ...]


@pytest.mark.parametrize("schema", NO_SCHEMAS, ids=repr)
def test_what_is_no_schema_is_refused_by_name(schema: Any) -> None:
    for pair in ((schema, STRING), (STRING, schema)):
        answer = ask(*pair)
        assert isinstance(answer, UsageError)
    assert "writer" in str(ask(schema, STRING))
    assert "reader" in str(ask(STRING, schema))


INVALID = [
    {"type": "strnig"},
    {"type": 1},
    {"type": []},
    {"type": ["string", "string"]},
    {"type": None},
    {"required": "x"},
    {"required": [1]},
    {"required": ["a", "a"]},
    {"properties": []},
    {"properties": {"a": 1}},
    {"properties": {"a": "string"}},
    {"properties": None},
    {"patternProperties": {"a": None}},
    {"additionalProperties": "no"},
    {"items": 3},
    {"items": [STRING]},
    {"prefixItems": []},
    {"prefixItems": STRING},
    {"anyOf": []},
    {"anyOf": STRING},
    {"allOf": [1]},
    {"oneOf": {}},
    {"not": []},
    {"enum": "a"},
    {"minimum": "1"},
    {"minimum": True},
    {"maximum": None},
    {"multipleOf": 0},
    {"multipleOf": -1},
    {"minLength": -1},
    {"maxLength": 1.5},
    {"minItems": "2"},
    {"uniqueItems": "yes"},
    {"pattern": 1},
    {"format": 1},
    {"dependentRequired": {"a": "b"}},
    {"dependentSchemas": {"a": ["b"]}},
    {"propertyNames": "x"},
    {"contains": 1},
    {"minContains": -1},
    {"if": 1},
    {"$ref": 1},
    {"$ref": None},
    {"$ref": ["#"]},
    {"$defs": []},
    {"$defs": {"a": 1}},
    {"$id": 1},
    {"$anchor": 1},
    {"$anchor": "#x"},
    {"$dynamicRef": 1},
    {"$schema": 1},
]


@pytest.mark.parametrize("schema", INVALID, ids=str)
def test_what_the_metaschema_refuses_is_a_usage_error(schema: Any) -> None:
    for answer in ask_all_ways(schema):
        assert isinstance(answer, UsageError)
    [keyword] = schema
    assert keyword in str(ask(schema, STRING)) or "JSON Schema" in str(ask(schema, STRING))


@pytest.mark.parametrize(
    ("schema", "draft"),
    [
        ({"items": []}, "7"),
        ({"exclusiveMinimum": 1}, "4"),
        ({"exclusiveMinimum": True}, "7"),
        ({"exclusiveMinimum": True}, "2020"),
        ({"required": []}, "4"),
        ({"additionalItems": 1}, "7"),
        ({"dependencies": {"a": 1}}, "7"),
        ({"dependencies": []}, "4"),
        ({"definitions": {"a": 1}}, "7"),
        ({"id": 1}, "4"),
    ],
    ids=str,
)
def test_each_draft_has_its_own_metaschema(schema: Any, draft: str) -> None:
    for answer in ask_all_ways(schema, draft):
        assert isinstance(answer, UsageError)


@pytest.mark.parametrize("draft", ["", "3", "2019-09", "2020-12", 7, None, "../x"])
def test_an_unknown_draft_is_a_usage_error(draft: Any) -> None:
    assert isinstance(ask(STRING, STRING, draft), UsageError)


NO_JSON = [
    {"const": float("nan")},
    {"minimum": float("nan")},
    {"minimum": float("inf")},
    {"minimum": float("-inf")},
    {"maximum": 1e999},
    {"enum": [1, float("nan")]},
    {"default": float("nan")},
    {"x-unknown": float("inf")},
    {"const": Decimal("1.5")},
    {"minimum": Decimal(1)},
    {"const": b"bytes"},
    {"enum": {1, 2}},
    {"const": ("a", "b")},
    {"required": ("a",)},
    {"const": Opaque()},
    {"const": 1 + 2j},
    {1: STRING},
    {"properties": {1: STRING}},
    {"properties": {None: STRING}},
    {"properties": {"\ud800": STRING}},
    {"const": "\udfff"},
    {"enum": [{"\ud800": 1}]},
    {"pattern": "\ud800"},
    {"const": Path("x")},
]


@pytest.mark.parametrize("schema", NO_JSON, ids=ascii)
def test_what_is_no_json_is_a_usage_error(schema: Any) -> None:
    for answer in ask_all_ways(schema):
        assert isinstance(answer, UsageError)


class Schema(dict[str, Any]):
    """A dict by another name."""


@pytest.mark.parametrize("kind", [Schema, OrderedDict])
def test_a_kind_of_dict_is_read_as_one_or_refused(kind: type[dict[str, Any]]) -> None:
    answers = [
        ask(kind(STRING), STRING),
        ask(STRING, kind(STRING)),
        ask({"properties": {"a": kind(STRING)}}, {"properties": {"a": STRING}}),
    ]
    assert all(isinstance(answer, Compatible | UsageError) for answer in answers)


def test_a_schema_that_holds_itself_is_a_usage_error() -> None:
    schema: dict[str, Any] = {"properties": {}}
    schema["properties"]["a"] = schema
    branches: list[Any] = []
    branches.append({"anyOf": branches})
    for looped in (schema, {"anyOf": branches}, {"const": branches}):
        assert isinstance(ask(looped, STRING), UsageError)


def test_an_object_used_twice_is_no_loop() -> None:
    shared = {"type": "string", "maxLength": 5}
    schema = {"type": "object", "properties": {"a": shared, "b": shared}}
    assert isinstance(ask(schema, schema), Compatible)


def test_unknown_words_are_nothing() -> None:
    odd = {"type": "string", "x-a": {"type": 1}, "": 3, "é": None, "$odd": {"$ref": 5}, "0": []}
    assert isinstance(ask(odd, STRING), Compatible)
    assert isinstance(ask(STRING, odd), Compatible)


REMOTE = [
    "http://json-schema.example/x",
    "https://json-schema.example/x#/a",
    "file:///etc/passwd",
    "//example.com/x",
    "other.json",
    "/other.json#/a",
    "urn:uuid:12345678-1234-5678-1234-567812345678",
    "data:application/json,{}",
    "ftp://x/y",
    "http://[",
    "http://json-schema.org/draft-07/schema#",
    "https://json-schema.org/draft/2020-12/schema",
    "\x00",
    "http://a b/",
    "a" * 10_000,
]


@pytest.mark.parametrize("reference", REMOTE, ids=lambda text: ascii(text[:40]))
def test_a_reference_out_of_the_schema_is_never_followed(
    reference: str, offline: list[Any]
) -> None:
    for schema in ({"$ref": reference}, {"properties": {"a": {"$ref": reference}}}):
        for draft in ("4", "7", "2020"):
            answers = [ask(schema, STRING, draft), ask(STRING, schema, draft)]
            assert all(isinstance(a, Unknown | UsageError | Breaking) for a in answers)
            assert not isinstance(ask({"type": "object"}, schema, draft), Compatible)
    assert offline == []


@pytest.mark.parametrize(
    "reference",
    ["#/nowhere", "#/$defs/x", "#nowhere", "#/$defs/", "#/a/0", "#//", "#/~2", "#/%", "#/%zz"],
)
def test_a_reference_to_nowhere_is_said(reference: str) -> None:
    for draft in ("4", "7", "2020"):
        for answer in ask_all_ways({"$ref": reference}, draft):
            assert isinstance(answer, Unknown | UsageError)


def test_a_reference_to_what_is_no_schema_is_said() -> None:
    for schema in (
        {"$ref": "#/x-a", "x-a": 3},
        {"$ref": "#/x-a", "x-a": {"type": "strnig"}},
        {"$ref": "#/const", "const": "text"},
        {"$ref": "#/required", "required": ["a"]},
        {"$ref": "#/x-a/b", "x-a": {"b": {"properties": [], "required": 3, "items": 7}}},
        {"$ref": "#/x-a", "x-a": {"minimum": "x", "pattern": 3, "enum": 5, "anyOf": 1}},
    ):
        for answer in ask_all_ways(schema):
            assert isinstance(answer, Unknown | UsageError)


UNGUARDED = [
    {"$ref": "#"},
    {"allOf": [{"$ref": "#"}]},
    {"anyOf": [{"$ref": "#"}]},
    {"oneOf": [{"$ref": "#"}, STRING]},
    {"not": {"$ref": "#"}},
    {"if": {"$ref": "#"}, "then": STRING},
    {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
    {"$ref": "#/$defs/a", "$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}, STRING]}}},
    {"$dynamicRef": "#x", "$dynamicAnchor": "x"},
    {"dependentSchemas": {"a": {"$ref": "#"}}},
]


@pytest.mark.parametrize("schema", UNGUARDED, ids=str)
def test_a_schema_that_is_itself_at_the_same_place_ends(schema: Any) -> None:
    assert all(is_sound(answer) for answer in ask_all_ways(schema))


def test_guarded_recursion_through_everything_ends() -> None:
    me = {"$ref": "#"}
    for schema in (
        {"not": {"properties": {"a": me}}},
        {"properties": {"a": {"not": me}}, "required": ["a"]},
        {"items": me, "contains": me, "prefixItems": [me], "uniqueItems": True},
        {"patternProperties": {"a": me, "b": me}, "additionalProperties": me},
        {"propertyNames": me, "maxLength": 3},
        {"anyOf": [{"items": me}, {"properties": {"a": me}}, {"not": {"items": me}}]},
        {"oneOf": [{"items": me}, {"properties": {"a": me}}]},
        {"unevaluatedProperties": me, "unevaluatedItems": me},
        {"if": {"items": me}, "then": {"properties": {"a": me}}, "else": {"contains": me}},
        {"dependentSchemas": {"a": {"properties": {"a": me}}}},
    ):
        assert all(is_sound(answer) for answer in ask_all_ways(schema))


def test_ten_thousand_properties() -> None:
    names = [f"field_{number}" for number in range(10_000)]
    writer = {"type": "object", "properties": dict.fromkeys(names, STRING), "required": names}
    narrowed = {**writer, "properties": {**writer["properties"], "field_7777": {"type": "integer"}}}
    wider = {**writer, "required": names[:5_000]}
    assert not isinstance(ask(writer, narrowed), Compatible)
    assert not isinstance(ask(writer, wider), Breaking)
    assert isinstance(ask(writer, writer), Compatible)


def test_ten_thousand_values() -> None:
    values = [f"value {number}" for number in range(10_000)]
    assert not isinstance(ask({"enum": values[:9_999]}, {"enum": values}), Breaking)
    assert isinstance(ask({"enum": values}, {"enum": values[:9_999]}), Breaking | Unknown)
    assert not isinstance(ask({"enum": values}, STRING), Breaking)
    numbers = list(range(10_000))
    assert not isinstance(ask({"enum": numbers}, {"enum": numbers[::-1]}), Breaking)


def test_ten_thousand_definitions() -> None:
    chain: dict[str, Any] = {
        f"d{number}": {"$ref": f"#/$defs/d{number + 1}"} for number in range(10_000)
    }
    schema = {"$ref": "#/$defs/d0", "$defs": {**chain, "d10000": STRING}}
    assert all(is_sound(answer) for answer in ask_all_ways(schema))
    flat: dict[str, Any] = {f"d{number}": STRING for number in range(10_000)}
    wide = {"properties": {name: {"$ref": f"#/$defs/{name}"} for name in flat}, "$defs": flat}
    assert all(is_sound(answer) for answer in ask_all_ways(wide))


def nested(levels: int, wrap: Any, core: Any) -> Any:
    made = core
    for _ in range(levels):
        made = wrap(made)
    return made


WRAPS = {
    "properties": lambda inner: {"type": "object", "properties": {"a": inner}},
    "items": lambda inner: {"type": "array", "items": inner},
    "allOf": lambda inner: {"allOf": [inner]},
    "anyOf": lambda inner: {"anyOf": [inner, {"type": "null"}]},
    "oneOf": lambda inner: {"oneOf": [inner, {"type": "null"}]},
    "not": lambda inner: {"not": inner},
    "if": lambda inner: {"if": inner, "then": inner and {"minLength": 1}},
    "const": lambda inner: {"const": inner},
    "unknown": lambda inner: {"x-unknown": inner},
    "$defs": lambda inner: {"$defs": {"a": inner}},
}


@pytest.mark.parametrize("levels", [60, 200, 5_000])
@pytest.mark.parametrize("way", WRAPS)
def test_many_levels(way: str, levels: int) -> None:
    one, other = nested(levels, WRAPS[way], STRING), nested(levels, WRAPS[way], {"type": "integer"})
    for pair in ((one, one), (one, other), (STRING, one), (one, STRING)):
        assert is_sound(ask(*pair))


def test_half_a_hundred_levels_are_no_trouble() -> None:
    wrap = WRAPS["properties"]
    one, other = nested(50, wrap, {"type": "integer"}), nested(50, wrap, {"type": "number"})
    assert isinstance(ask(one, other), Compatible)


def doubled(levels: int, keyword: str, *, leaf: Any = STRING) -> Any:
    """2^levels leaves, written in full or by reference."""
    definitions: dict[str, Any] = {"d0": leaf}
    for level in range(1, levels + 1):
        below = {"$ref": f"#/$defs/d{level - 1}"}
        definitions[f"d{level}"] = {keyword: [below, below]}
    return {"$ref": f"#/$defs/d{levels}", "$defs": definitions}


@pytest.mark.parametrize("keyword", ["allOf", "anyOf", "oneOf", "prefixItems"])
def test_a_nest_that_doubles_at_each_level(keyword: str) -> None:
    one, other = doubled(20, keyword), doubled(20, keyword, leaf={"type": "integer"})
    for pair in ((one, one), (one, other), (one, STRING), (STRING, one)):
        assert is_sound(ask(*pair))


@pytest.mark.parametrize("keyword", ["anyOf", "oneOf"])
def test_a_product_of_alternatives(keyword: str) -> None:
    def product(bound: int) -> dict[str, Any]:
        return {
            "type": "object",
            "allOf": [
                {
                    keyword: [
                        {"required": [f"a{n}"]},
                        {"required": [f"b{n}"], "maxProperties": bound},
                    ]
                }
                for n in range(20)
            ],
        }

    for pair in (
        (product(30), product(30)),
        (product(30), product(20)),
        (product(20), product(30)),
    ):
        assert is_sound(ask(*pair))


def test_many_fields_with_many_alternatives() -> None:
    def union(names: str) -> dict[str, Any]:
        branches = [
            {"type": "object", "properties": {f"{n}{at}": {"type": kind} for at in range(8)}}
            for n in names
            for kind in ("string", "integer", "null", "boolean")
        ]
        return {"anyOf": branches}

    assert is_sound(ask(union("abcde"), union("abcdef")))
    assert is_sound(ask(union("abcdef"), union("abcde")))


def test_conditions_upon_conditions() -> None:
    def conditions(last: int) -> dict[str, Any]:
        return {
            "type": "object",
            "allOf": [
                {
                    "if": {"properties": {f"k{n}": {"const": n}}, "required": [f"k{n}"]},
                    "then": {"required": [f"v{n}"]},
                    "else": {"properties": {f"v{n}": False}},
                }
                for n in range(last)
            ],
        }

    assert is_sound(ask(conditions(25), conditions(24)))
    assert is_sound(ask(conditions(24), conditions(25)))


def test_a_hundred_dependent_fields() -> None:
    chain = {f"f{n}": [f"f{n + 1}"] for n in range(100)}
    writer = {"type": "object", "dependentRequired": chain}
    assert is_sound(ask(writer, {"dependentRequired": {"f0": ["f100"]}}))
    assert is_sound(ask(writer, writer))


PATTERNS = [
    "(a+)+$",
    "(a|a)*$",
    "(a|aa)+$",
    "^(a*)*b$",
    "(.*)*x",
    "(x+x+)+y",
    "((a{1,1000}){1,1000}){1,1000}",
    "(a{1,1000}){1,1000}",
    "a{1000000}",
    "a{1,99999999999999999999}",
    "(" * 200 + "a" + ")" * 200,
    "(" * 20_000 + "a" + ")" * 20_000,
    "(",
    ")",
    "[",
    "]",
    "[z-a]",
    "*",
    "+",
    "?",
    "a**",
    "a{2,1}",
    "{",
    "a{",
    "\\",
    "[\\",
    "(?",
    "(?<",
    "(?P<a>b)",
    "(?<a>b)\\k<a>",
    "(?i)a",
    "(?<!a)b",
    "(?!a)b",
    "\\1",
    "(a)\\2",
    "\\p{L}+",
    "\\p{Script=Greek}",
    "\\p{Nope}",
    "\\u{1F600}",
    "\\ud83d\\ude00",
    "\\x",
    "\\c",
    "\\Q",
    "[[:alpha:]]",
    "[a&&b]",
    "a" * 100_000,
    "(ab|cd)" * 14_000,
    "|" * 100_000,
    "[" + "".join(map(chr, range(256, 5_000))) + "]+",
    "^(?=(a+))\\1$",
    "\x00",
    "\n",
    "^.*a.{18}$",
    "(a?){30}a{30}",
    "^(([a-z])+.)+[A-Z]([a-z])+$",
]


@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda text: ascii(text[:30]) + str(len(text)))
def test_any_pattern_is_answered(pattern: str) -> None:
    text = {"type": "string", "pattern": pattern}
    named = {
        "type": "object",
        "patternProperties": {pattern: STRING},
        "additionalProperties": False,
    }
    for pair in (
        (text, STRING),
        (STRING, text),
        (text, text),
        (text, {"type": "string", "pattern": "^a"}),
        ({"type": "string", "pattern": "^a"}, text),
        ({"enum": ["a" * 40, "b", "x" * 30]}, text),
        (text, {"maxLength": 10}),
        (named, {"type": "object", "properties": {"a" * 30: STRING}}),
        ({"type": "object", "properties": {"a" * 30 + "!": STRING}}, named),
        ({"type": "object"}, {"propertyNames": text}),
    ):
        answer = ask(*pair)
        assert is_sound(answer)


INVALID_PATTERNS = ["(", "[", "*", "a{2,1}", "(?<", "[z-a]", "\\"]


@pytest.mark.parametrize("pattern", INVALID_PATTERNS)
def test_an_invalid_pattern_proves_nothing(pattern: str) -> None:
    broken = {"type": "string", "pattern": pattern}
    assert not isinstance(ask(STRING, broken), Compatible)
    assert not isinstance(ask(broken, {"type": "integer"}), Compatible)
    named = {"type": "object", "patternProperties": {pattern: False}}
    assert not isinstance(ask({"type": "object"}, named), Compatible)


@pytest.mark.parametrize("name", ["x" * 1_000_000, "\x00", "\n", "\u202e", "🙂" * 10_000, "a/b~c%"])
def test_any_name_of_a_property(name: str) -> None:
    writer = {"type": "object", "properties": {name: STRING}, "required": [name]}
    assert isinstance(ask(writer, writer), Compatible)
    answer = ask(writer, {"properties": {name: {"type": "integer"}}})
    assert isinstance(answer, Breaking)
    assert is_proof(answer.witness, writer, {"properties": {name: {"type": "integer"}}}, "2020")


@pytest.mark.parametrize(
    "bounds",
    [
        {"minLength": 10**9},
        {"minItems": 10**9},
        {"minProperties": 10**9},
        {"minLength": 10**30},
        {"maxLength": 10**30},
        {"contains": {}, "minContains": 10**9},
        {"minimum": 10**400},
        {"minimum": 10**5000},
        {"multipleOf": 10**400},
        {"multipleOf": 1e-320},
        {"multipleOf": 5e-324},
        {"minimum": -1.7976931348623157e308, "maximum": 1.7976931348623157e308},
        {"minItems": 10**6, "uniqueItems": True, "items": {"type": "boolean"}},
        {"minItems": 500, "uniqueItems": True},
        {"minProperties": 2_000},
        {"minLength": 100_000},
    ],
    ids=lambda bounds: "-".join(bounds),
)
def test_any_bound(bounds: dict[str, Any]) -> None:
    for kind in ("string", "array", "object", "number", "integer"):
        schema = {"type": kind, **bounds}
        for pair in ((schema, {"type": kind}), ({"type": kind}, schema), (schema, False)):
            answer = ask(*pair)
            assert is_sound(answer)
            if pair[1] == {"type": kind}:
                assert not isinstance(answer, Breaking)


@pytest.mark.parametrize(
    "word",
    [
        "http://json-schema.org/draft-03/schema#",
        "http://json-schema.org/schema#",
        "https://example.com/my-dialect",
        "",
        "draft-07",
        "http://json-schema.org/draft-07/schema",
        "https://json-schema.org/draft-07/schema#",
        "https://json-schema.org/draft/2019-09/schema",
        "http://json-schema.org/draft-06/schema#",
    ],
)
def test_any_dialect(word: str) -> None:
    schema = {"$schema": word, "type": "string"}
    assert not isinstance(ask(schema, STRING), Breaking)
    assert not isinstance(ask(STRING, schema), Breaking)
    assert not isinstance(ask(schema, {"type": "integer"}), Compatible)


def test_odd_ids_and_anchors_are_answered() -> None:
    for odd in (
        {"$id": "not a uri %%%"},
        {"$id": ""},
        {"$id": "#a"},
        {"$id": "http://a.b/c#d"},
        {"$id": "http://["},
        {"$anchor": ""},
        {"$defs": {"a": {"$id": "x"}, "b": {"$id": "x"}}},
        {"$defs": {"a": {"$anchor": "x"}, "b": {"$anchor": "x"}}, "$ref": "#x"},
        {"$vocabulary": {"https://example.com/v": True}},
        {"$recursiveRef": "#", "$recursiveAnchor": True},
        {"$id": "http://a.b/c", "$ref": "http://a.b/c"},
        {"$comment": 5},
        {"title": 5},
        {"description": []},
    ):
        for draft in ("4", "7", "2020"):
            assert all(is_sound(answer) for answer in ask_all_ways(odd, draft))


def test_nothing_given_is_changed() -> None:
    import copy

    writer = {"$ref": "#/$defs/a", "$defs": {"a": {"type": "object", "properties": {"b": STRING}}}}
    reader = {"allOf": [{"type": "object"}], "properties": {"b": {"minLength": 1, "default": "x"}}}
    before = copy.deepcopy((writer, reader))
    ask(writer, reader)
    assert (writer, reader) == before
