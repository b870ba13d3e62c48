"""What is true of a schema, found without the checker: two validators, and documents to try.

A document counts for or against a schema only if `jsonschema` (in Python) and `jsonschema_rs` (in
Rust) say the same of it; where they differ, nobody can be blamed. Documents come from a fixed pool
and from a guided random generator that reads both schemas of a pair.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address
from random import Random
from typing import Any
from urllib.parse import unquote
from uuid import UUID

import jsonschema
import jsonschema_rs
from jsonschema.exceptions import ValidationError
from jsonschema.validators import extend
from pydantic import AnyUrl, EmailStr, NameEmail, TypeAdapter
from pydantic import ValidationError as PydanticError
from pydantic.networks import IPvAnyAddress

Schema = Any
Document = Any

FORMATS: dict[str, Any] = {
    "date-time": datetime,
    "date": date,
    "time": time,
    "duration": timedelta,
    "uuid": UUID,
    "email": EmailStr,
    "name-email": NameEmail,
    "ipv4": IPv4Address,
    "ipv6": IPv6Address,
    "ipvanyaddress": IPvAnyAddress,
    "ipv4network": IPv4Network,
    "uri": AnyUrl,
}
"""The formats whose meaning is asked of pydantic, each with the type that has it."""


@lru_cache(maxsize=100_000)
def has_format(name: str, text: str) -> bool:
    """Whether pydantic reads this JSON string as the type of this format."""
    try:
        adapter(name).validate_json(json.dumps(text))
    except PydanticError:
        return False
    return True


@lru_cache
def adapter(name: str) -> TypeAdapter[Any]:
    return TypeAdapter(FORMATS[name])


# The Python validator, made exact


def _multiple_of(_: Any, factor: Any, instance: Any, __: Any) -> Iterator[ValidationError]:
    if isinstance(instance, bool) or not isinstance(instance, int | float):
        return
    if exact(instance) % exact(factor):
        yield ValidationError(f"{instance} is not a multiple of {factor}")


def _format(_: Any, name: Any, instance: Any, __: Any) -> Iterator[ValidationError]:
    if isinstance(instance, str) and name in FORMATS and not has_format(name, instance):
        yield ValidationError(f"{instance!r} is not a valid {name}")


def exact(number: float | int | Decimal) -> Fraction:
    """The number as it is written in JSON, not as a float stores it."""
    return Fraction(repr(number)) if isinstance(number, float) else Fraction(number)


@lru_cache
def ecma(pattern: str) -> re.Pattern[str]:
    """A pattern as ECMA-262 means it: `$` is the very end, `\\d` is ASCII."""
    out, in_class, at = [], False, 0
    while at < len(pattern):
        char = pattern[at]
        if char == "\\" and at + 1 < len(pattern):
            following = pattern[at + 1]
            if following == "c" and at + 2 < len(pattern):
                out.append(re.escape(chr(ord(pattern[at + 2]) % 32)))
                at += 3
                continue
            out.append(following if following == "/" else char + following)
            at += 2
            continue
        if char == "[" and not in_class:
            in_class = True
        elif char == "]" and in_class:
            in_class = False
        elif char == "$" and not in_class:
            char = r"\Z"
        elif char == "." and not in_class:
            char = "[^\n\r\u2028\u2029]"
        elif char == "[" and in_class:
            char = r"\["
        out.append(char)
        at += 1
    return re.compile("(?a:" + "".join(out) + ")")


def _in_python(node: Any, draft: str) -> Any:
    """The schema as the exact validator must be given it.

    Its patterns are written as Python's `re` reads them. A `$schema` that repeats the draft is left
    out: at a subschema that has one, `jsonschema` goes on with its own class for that draft, which
    checks no formats.
    """
    if isinstance(node, list):
        return [_in_python(item, draft) for item in node]
    if not isinstance(node, dict):
        return node
    made = {}
    for keyword, value in node.items():
        if keyword == "$schema" and isinstance(value, str) and dialect(node, draft) == draft:
            continue
        if keyword == "pattern" and isinstance(value, str):
            value = _translated(value)
        elif keyword == "patternProperties" and isinstance(value, dict):
            value = {_translated(name): _in_python(inner, draft) for name, inner in value.items()}
        elif keyword not in ("enum", "const", "default", "examples"):
            value = _in_python(value, draft)
        made[keyword] = value
    return made


def _translated(pattern: str) -> str:
    try:
        return ecma(pattern).pattern
    except (re.error, RecursionError, OverflowError):
        return pattern


EXACT: dict[str, Callable[..., Any]] = {
    "multipleOf": _multiple_of,
    "format": _format,
}
BASES: dict[str, Any] = {
    "4": jsonschema.Draft4Validator,
    "7": jsonschema.Draft7Validator,
    "2020": jsonschema.Draft202012Validator,
}
PYTHON = {
    draft: extend(
        base,
        validators=EXACT,
        type_checker=base.TYPE_CHECKER.redefine(
            "integer",
            lambda _, value: (
                (isinstance(value, int) and not isinstance(value, bool))
                or (isinstance(value, float) and value.is_integer())
            ),
        ),
    )
    for draft, base in BASES.items()
}
RUST: dict[str, Any] = {
    "4": jsonschema_rs.Draft4Validator,
    "7": jsonschema_rs.Draft7Validator,
    "2020": jsonschema_rs.Draft202012Validator,
}


def dialect(schema: Schema, draft: str) -> str:
    """The draft of a schema: its own word, or else the given one."""
    named = schema.get("$schema", "") if isinstance(schema, dict) else ""
    for mark, name in (("draft-04", "4"), ("draft-07", "7"), ("2020-12", "2020")):
        if mark in str(named):
            return name
    return draft


def acceptor(schema: Schema, draft: str = "2020") -> Callable[[Document], bool | None]:
    """A function that says whether the schema accepts a document; None where it is not certain.

    A schema that is itself at the same place sends the first validator round for ever: there the
    second has the word.
    """
    own = dialect(schema, draft)
    python = PYTHON[own](_in_python(schema, own))
    second = second_opinion(schema, draft)

    def accepts(document: Document) -> bool | None:
        other = second(document)
        try:
            first = python.is_valid(document)
        except RecursionError:
            return other
        except (re.error, jsonschema.exceptions.UnknownType):
            return None
        return first if other is None or first is other else None

    return accepts


def second_opinion(schema: Schema, draft: str) -> Callable[[Document], bool | None]:
    """What `jsonschema_rs` says, which is fast; None where it says nothing."""
    try:
        rust = RUST[dialect(schema, draft)](
            schema,
            validate_formats=True,
            formats={name: _reads(name) for name in FORMATS},
            ignore_unknown_formats=True,
        )
    except Exception:  # noqa: BLE001 - the schema is not supported
        return lambda document: None

    def accepts(document: Document) -> bool | None:
        try:
            return bool(rust.is_valid(_plain(document)))
        except Exception:  # noqa: BLE001 - as above, for this document
            return None

    return accepts


def _reads(name: str) -> Callable[[str], bool]:
    return lambda text: has_format(name, text)


def _plain(document: Document) -> Document:
    """The same document with whole floats as integers, which is one number in JSON Schema."""
    if isinstance(document, float) and document.is_integer() and abs(document) < 2**63:
        return int(document)
    if isinstance(document, list):
        return [_plain(item) for item in document]
    if isinstance(document, dict):
        return {name: _plain(value) for name, value in document.items()}
    return document


def is_proof(
    document: Document, writer: Schema, reader: Schema, writer_draft: str, reader_draft: str = ""
) -> bool:
    """Whether both validators say that the writer's schema accepts it and the reader's does not."""
    return (
        acceptor(writer, writer_draft)(document) is True
        and acceptor(reader, reader_draft or writer_draft)(document) is False
    )


def refutation(
    writer: Schema, reader: Schema, draft: str = "2020", *, tries: int = 300, seed: int = 0
) -> tuple[Document] | None:
    """A document that the writer's schema accepts and the reader's does not, if one is found."""
    written, read = acceptor(writer, draft), acceptor(reader, draft)
    maybe_written, maybe_read = second_opinion(writer, draft), second_opinion(reader, draft)
    for document in candidates(writer, reader, tries=tries, seed=seed):
        if maybe_written(document) is False or maybe_read(document) is True:
            continue  # no use in asking the slow one
        if written(document) is True and read(document) is False:
            return (document,)
    return None


# Documents to try

POOL: list[Document] = [
    *(None, True, False, 0, 1, -1, 2, 3, 5, 6, 10, 100, 0.5, -0.5, 1.0, 1.5, 0.1, 0.01, 0.3, 1e308),
    *(2**53, 2**53 + 1, -(2**53) - 1, 2**63, 2**64, 10**30, 1e-300, -0.0),
    *(
        "",
        "a",
        "b",
        "ab",
        "abc",
        "A",
        "0",
        "1",
        "12",
        "\n",
        "a\n",
        " ",
        "é",
        "e\u0301",
        "\U0001f600",
    ),
    *("x" * 10, "2020-01-01", "2020-01-01T12:00:00Z", "12:00:00", "P1D", "a@b.com", "1.2.3.4"),
    *("12345678-1234-5678-1234-567812345678", "http://a.b", "::1", "null", "true", "\u0661"),
    *([], [1], [1, 2], [1, 1], [True], [1, True], [0, False], ["a"], ["a", "b"], ["a", "a"]),
    *([None], [[]], [{}], [[1]], [1, "a"], ["a", 1], [1, 2, 3], [1, 2, 3, 4], [1.0, 1], [[], []]),
    *({}, {"a": 1}, {"a": "x"}, {"a": None}, {"b": 1}, {"a": 1, "b": 1}, {"a": "x", "b": "y"}),
    *({"a": {}}, {"a": {"a": 1}}, {"a": []}, {"": 1}, {"x": 1}, {"c": 1}, {"a": 1, "b": 2, "c": 3}),
    *({"a": True}, {"a": 1.5}, {"a": {"b": 1}}, {"a": [1]}, {"a": 1, "zzz": None}, {"ab": 1}),
]
"""Documents of every kind, tried on every pair."""

FORMAT_SAMPLES: dict[str, list[str]] = {
    "date-time": ["2020-01-01T12:00:00Z", "2020-01-01T00:00:00", "1700000000", "2020-01-01"],
    "date": ["2020-01-01", "2020-02-29", "2020-01-01T00:00:00Z", "0"],
    "time": ["12:00:00", "12:00", "12:00:00Z"],
    "duration": ["P1D", "PT1S", "12:00"],
    "uuid": ["12345678-1234-5678-1234-567812345678", "12345678123456781234567812345678"],
    "email": ["a@b.com", "user@example.com"],
    "name-email": ["a@b.com", "A <a@b.com>"],
    "ipv4": ["1.2.3.4", "127.0.0.1"],
    "ipv6": ["::1", "::ffff:1.2.3.4"],
    "ipvanyaddress": ["1.2.3.4", "::1"],
    "ipv4network": ["1.2.3.4", "1.2.3.0/24"],
    "uri": ["http://a.b", "mailto:x"],
}


def candidates(*schemas: Schema, tries: int = 300, seed: int = 0) -> Iterator[Document]:
    """The pool, then documents made to touch what the schemas speak of; always the same ones."""
    yield from POOL
    generator = DocumentGenerator(schemas, Random(seed))  # noqa: S311 - documents, not secrets
    for _ in range(tries):
        yield generator.document()


class DocumentGenerator:
    """Generates random documents near the bounds of the given schemas."""

    def __init__(self, roots: Sequence[Schema], random: Random) -> None:
        self._random = random
        self._roots = roots
        self._home: dict[int, Schema] = {}
        self._names: list[str] = ["a", "b", "zz"]
        self._texts: list[str] = ["", "a", "zz", "\U0001f600"]
        self._values: list[Any] = []
        for root in roots:
            self._learn(root, root)

    def document(self) -> Document:
        return self._make(list(self._roots), 4)

    def _learn(self, node: Any, root: Schema) -> None:
        """Notes the root of every subschema, and every name, string and value worth trying."""
        if isinstance(node, list):
            for item in node:
                self._learn(item, root)
            return
        if not isinstance(node, dict):
            return
        self._home[id(node)] = root
        for keyword in ("properties", "dependentRequired", "dependentSchemas", "dependencies"):
            if isinstance(node.get(keyword), dict):
                self._names += [name for name in node[keyword] if name not in self._names]
                for named in node[keyword].values():
                    self._names += [n for n in _listed(named) if isinstance(n, str)]
        if isinstance(node.get("required"), list):
            self._names += [n for n in node["required"] if n not in self._names]
        patterns = node.get("patternProperties")
        if isinstance(patterns, dict):
            self._names += [text for p in patterns for text in self._matching(p)]
        if isinstance(node.get("pattern"), str):
            self._texts += self._matching(node["pattern"])
        if node.get("format") in FORMAT_SAMPLES:
            self._texts += FORMAT_SAMPLES[node["format"]]
        if isinstance(node.get("propertyNames"), dict):
            names = self._flat([node["propertyNames"]], 6)
            for _ in range(6):
                self._names.append(self._text(names))
        for value in (*_listed(node.get("enum")), *([node["const"]] if "const" in node else [])):
            self._values.append(value)
            (self._texts if isinstance(value, str) else []).append(value)
        for value in node.values():
            self._learn(value, root)

    def _matching(self, pattern: str) -> list[str]:
        try:
            tree = re._parser.parse(ecma(pattern).pattern)  # type: ignore[attr-defined]
        except (re.error, RecursionError, OverflowError):
            return []
        found = [sample(tree, self._random)[:200] for _ in range(4)]
        found += [text for text in ("z" + found[0], found[0] + "z") if ecma(pattern).search(text)]
        return list(dict.fromkeys(found))

    def _make(self, schemas: list[Schema], depth: int) -> Document:
        pick, rules = self._random, self._flat(schemas, 12)
        values = [v for r in rules for v in (*_listed(r.get("enum")), *_const(r))]
        if values and pick.random() < 0.8:
            return pick.choice(values)
        if self._values and pick.random() < 0.03:
            return pick.choice(self._values)
        kinds = [k for r in rules for k in _kinds(r)]
        if not kinds or pick.random() < 0.05:
            kinds = ["null", "boolean", "integer", "number", "string", "array", "object"]
        kind = pick.choice(kinds)
        if depth <= 0 and kind in ("array", "object"):
            return [] if kind == "array" else {}
        if kind == "null":
            return None
        if kind == "boolean":
            return pick.random() < 0.5
        if kind == "string":
            return self._text(rules)
        if kind == "array":
            return self._array(rules, depth)
        if kind == "object":
            return self._object(rules, depth)
        return self._number(rules, whole=kind == "integer")

    def _flat(self, schemas: Sequence[Schema], budget: int) -> list[dict[str, Any]]:
        """The schemas, and those that speak of the same place through them."""
        found: list[dict[str, Any]] = []
        waiting = list(schemas)
        while waiting and len(found) < budget:
            schema = waiting.pop(0)
            if not isinstance(schema, dict) or any(schema is known for known in found):
                continue
            found.append(schema)
            inner = [schema.get(k) for k in ("not", "if", "then", "else")]
            for keyword in ("allOf", "anyOf", "oneOf"):
                branches = _listed(schema.get(keyword))
                chosen = (
                    branches
                    if keyword == "allOf"
                    else self._random.sample(
                        branches, min(len(branches), self._random.choice((1, 1, 2)))
                    )
                )
                inner += chosen
            for keyword in ("dependentSchemas", "dependencies"):
                if isinstance(schema.get(keyword), dict):
                    inner += list(schema[keyword].values())
            for keyword in ("$ref", "$dynamicRef"):
                if isinstance(schema.get(keyword), str):
                    inner.append(self._referred(schema, schema[keyword]))
            waiting += [i for i in inner if isinstance(i, dict)]
        return found

    def _referred(self, schema: Schema, pointer: str) -> Schema:
        root = self._home.get(id(schema), schema)
        fragment = pointer.partition("#")[2]
        if fragment and not fragment.startswith("/"):
            return _anchored(root, fragment)
        node = root
        for part in fragment.split("/")[1:]:
            key = unquote(part).replace("~1", "/").replace("~0", "~")
            if isinstance(node, dict):
                node = node.get(key)
            elif isinstance(node, list) and key.isdigit() and int(key) < len(node):
                node = node[int(key)]
            else:
                return None
        return node

    def _number(self, rules: list[dict[str, Any]], *, whole: bool) -> int | float:
        pick = self._random
        edges: list[Any] = [0, 1, -1, 7]
        for rule in rules:
            for keyword in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"):
                limit = rule.get(keyword)
                if _number(limit) and math.isfinite(limit):
                    steps = (-1, 0, 0, 1, 2) if whole else (-1, -0.5, 0, 0, 0.25, 1)
                    edges += [limit + step for step in steps] * 2
            factor = rule.get("multipleOf")
            if _number(factor):
                times = [pick.randint(-5, 25) for _ in range(4)]
                edges += [_json(exact(factor) * n) for n in times]
                edges += [_json(exact(factor) * n) + pick.choice((1, 0.5)) for n in times[:1]]
        found = pick.choice(edges)
        if whole and isinstance(found, float) and math.isfinite(found):
            return math.floor(found) if pick.random() < 0.9 else float(math.floor(found))
        return found if whole else pick.choice((found, found, found + 0.5))

    def _text(self, rules: list[dict[str, Any]]) -> str:
        pick = self._random
        texts = [t for r in rules for t in FORMAT_SAMPLES.get(str(r.get("format")), [])]
        for rule in rules:
            if isinstance(rule.get("pattern"), str):
                texts += self._matching(rule["pattern"])
            values = (*_listed(rule.get("enum")), *_const(rule))
            texts += [v for v in values if isinstance(v, str)]
            for keyword in ("minLength", "maxLength"):
                if isinstance(rule.get(keyword), int) and rule[keyword] < 2_000:
                    texts += [
                        "a\U0001f600"[pick.random() < 0.2] * max(0, rule[keyword] + step)
                        for step in (-1, 0, 1)
                    ]
        if not texts or pick.random() < 0.1:
            texts = self._texts
        text = pick.choice(texts)
        if pick.random() < 0.15:
            text = text + pick.choice(("a", "\n", "1")) if pick.random() < 0.5 else text[:-1]
        return text

    def _array(self, rules: list[dict[str, Any]], depth: int) -> list[Any]:
        pick = self._random
        lengths = [0, 1, 1, 2, 2, 3]
        for rule in rules:
            for keyword in ("minItems", "maxItems", "minContains", "maxContains"):
                if isinstance(rule.get(keyword), int) and rule[keyword] < 12:
                    lengths += [max(0, rule[keyword] + step) for step in (-1, 0, 0, 1)]
        items: list[Any] = []
        for at in range(pick.choice(lengths)):
            if items and pick.random() < 0.15:
                items.append(pick.choice(items))
                continue
            inner = [s for r in rules for s in _at_index(r, at)]
            held = [r["contains"] for r in rules if "contains" in r]
            items.append(self._make(held if held and pick.random() < 0.5 else inner, depth - 1))
        return items

    def _object(self, rules: list[dict[str, Any]], depth: int) -> dict[str, Any]:
        pick = self._random
        known = list(dict.fromkeys(n for r in rules for n in _mentioned(r)))
        needed = {n for r in rules for n in _listed(r.get("required")) if isinstance(n, str)}
        odds = pick.choice((0.0, 0.3, 0.6, 1.0))
        keep = pick.choice((0.7, 1.0, 1.0, 1.0))
        names = [
            n
            for n in dict.fromkeys([*known, *needed])
            if pick.random() < (keep if n in needed else odds)
        ]
        sizes = [0, 0, 1, 2]
        for rule in rules:
            for keyword in ("minProperties", "maxProperties"):
                if isinstance(rule.get(keyword), int) and rule[keyword] < 30:
                    sizes += [max(0, rule[keyword] + step - len(names)) for step in (-1, 0, 1)] * 2
        for at in range(pick.choice(sizes)):
            names.append(pick.choice(self._names) if at < 3 else f"n{at}")
        made: dict[str, Any] = {}
        for name in dict.fromkeys(names):
            made[name] = self._make([s for r in rules for s in _of_name(r, name)], depth - 1)
        return made


def _anchored(node: Any, name: str) -> Any:
    if isinstance(node, dict):
        if name in (node.get("$anchor"), node.get("$dynamicAnchor"), node.get("$id")):
            return node
        for value in node.values():
            if (found := _anchored(value, name)) is not None:
                return found
    if isinstance(node, list):
        for value in node:
            if (found := _anchored(value, name)) is not None:
                return found
    return None


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _const(rule: dict[str, Any]) -> list[Any]:
    return [rule["const"]] if "const" in rule else []


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _json(number: Fraction) -> int | float:
    return number.numerator if number.denominator == 1 else float(number)


KEYWORDS_OF = {
    "object": (
        "properties",
        "required",
        "additionalProperties",
        "patternProperties",
        "propertyNames",
        "minProperties",
        "maxProperties",
        "dependentRequired",
        "dependentSchemas",
        "dependencies",
        "unevaluatedProperties",
    ),
    "array": (
        "items",
        "prefixItems",
        "additionalItems",
        "contains",
        "minItems",
        "maxItems",
        "uniqueItems",
        "unevaluatedItems",
    ),
    "string": ("pattern", "minLength", "maxLength", "format"),
    "number": ("minimum", "maximum", "multipleOf", "exclusiveMinimum", "exclusiveMaximum"),
}


def _kinds(rule: dict[str, Any]) -> list[str]:
    named = rule.get("type")
    if isinstance(named, str):
        return [named] * 4
    if isinstance(named, list):
        return [n for n in named if isinstance(n, str)] * 2
    return [kind for kind, words in KEYWORDS_OF.items() for word in words if word in rule]


def _mentioned(rule: dict[str, Any]) -> Iterator[str]:
    for keyword in ("properties", "dependentRequired", "dependentSchemas", "dependencies"):
        if isinstance(rule.get(keyword), dict):
            yield from rule[keyword]


def _of_name(rule: dict[str, Any], name: str) -> Iterator[Schema]:
    properties, patterns = rule.get("properties"), rule.get("patternProperties")
    matched = False
    if isinstance(properties, dict) and name in properties:
        matched = True
        yield properties[name]
    for pattern, schema in (patterns if isinstance(patterns, dict) else {}).items():
        try:
            if ecma(pattern).search(name):
                matched = True
                yield schema
        except re.error:
            continue
    if not matched:
        for keyword in ("additionalProperties", "unevaluatedProperties"):
            if keyword in rule:
                yield rule[keyword]


def _at_index(rule: dict[str, Any], at: int) -> Iterator[Schema]:
    items = rule.get("items")
    first = rule.get("prefixItems", items)
    if isinstance(first, list):
        if at < len(first):
            yield first[at]
        else:
            yield rule.get("additionalItems" if first is items else "items")
    elif items is not None:
        yield items
    if "unevaluatedItems" in rule:
        yield rule["unevaluatedItems"]


def sample(tree: Any, random: Random) -> str:
    """A string that matches a parsed pattern, as far as such a simple walk can find one."""
    out = []
    for operation, argument in tree:
        name = str(operation)
        if name == "LITERAL":
            out.append(chr(argument))
        elif name == "NOT_LITERAL":
            out.append("z" if argument != ord("z") else "y")
        elif name == "ANY":
            out.append(random.choice("az0 "))
        elif name == "IN":
            out.append(_member(argument, random))
        elif name == "BRANCH":
            out.append(sample(random.choice(argument[1]), random))
        elif name in ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT"):
            low, high, inner = argument
            count = random.choice((low, low, min(int(high), low + 1), min(int(high), low + 2)))
            out += [sample(inner, random) for _ in range(min(count, 60))]
        elif name == "SUBPATTERN":
            out.append(sample(argument[3], random))
        elif name == "ATOMIC_GROUP":
            out.append(sample(argument, random))
    return "".join(out)


def _member(parts: Any, random: Random) -> str:
    negated, members = False, []
    for operation, argument in parts:
        name = str(operation)
        if name == "NEGATE":
            negated = True
        elif name == "LITERAL":
            members.append(chr(argument))
        elif name == "RANGE":
            members += [chr(argument[0]), chr(argument[1]), chr(sum(argument) // 2)]
        elif name == "CATEGORY":
            members += {
                "CATEGORY_DIGIT": "059",
                "CATEGORY_WORD": "aZ_9",
                "CATEGORY_SPACE": " \t",
            }.get(str(argument), "-x1")
    if not negated:
        return random.choice(members or ["a"])
    return next((c for c in "az0-_ \U0001f600" if c not in members), "\u2603")
