"""Random pairs: nothing that is said of them is refuted, and what cannot matter does not.

The examples are few and always the same, unless EVENTMESH_FUZZ_SECONDS says how long to search.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from random import Random
from secrets import randbits
from time import monotonic
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eventmesh.compat import Breaking, Compatible, Unknown, Verdict, accepts, compare, documents
from tests.compat.making import changed, random_root
from tests.compat.oracle import BASES, POOL, acceptor, is_proof, refutation

FUZZ_SECONDS = float(os.environ.get("EVENTMESH_FUZZ_SECONDS", "0"))
EXAMPLES = 80

always_the_same = settings(
    max_examples=EXAMPLES,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)

Pair = tuple[Any, Any]


def seeded(seed: int) -> Random:
    return Random(seed)  # noqa: S311  # for schemas, not for secrets


def make_pair(pick: Random) -> Pair:
    """Two valid schemas; mostly one is the other with a few small changes."""
    while True:
        reader = random_root(pick)
        writer = changed(pick, reader, pick.choice((0, 1, 1, 2, 2, 3)))
        if pick.random() < 0.5:
            writer, reader = reader, writer
        if pick.random() < 0.1:
            writer = random_root(pick)
        if isinstance(writer, dict) and writer.get("type") == "object" and pick.random() < 0.4:
            writer = {**writer, "additionalProperties": False}
        if all(BASES["2020"](BASES["2020"].META_SCHEMA).is_valid(s) for s in (writer, reader)):
            return writer, reader


def make_schema(pick: Random) -> Any:
    return make_pair(pick)[0]


seeds = st.integers(min_value=0, max_value=2**32).map(seeded)
pairs = seeds.map(make_pair)
schemas = seeds.map(make_schema)


def check(writer: Any, reader: Any, *, tries: int = 100) -> Verdict:
    """The verdict, which must not be refuted."""
    verdict = compare(writer, reader)
    if isinstance(verdict, Compatible):
        found = refutation(writer, reader, tries=tries)
        assert found is None, f"{found} is written and not read"
    elif isinstance(verdict, Breaking):
        assert is_proof(verdict.witness, writer, reader, "2020"), (
            f"{verdict.witness!r} is not a proof"
        )
    return verdict


@given(pairs)
@always_the_same
def test_no_verdict_is_refuted(pair: Pair) -> None:
    check(*pair)


@pytest.mark.skipif(not FUZZ_SECONDS, reason="EVENTMESH_FUZZ_SECONDS says how long to search")
def test_no_verdict_is_refuted_in_a_long_search() -> None:
    ends, seed, counts = monotonic() + FUZZ_SECONDS, randbits(32), Counter[str]()
    while monotonic() < ends:
        seed += 1
        writer, reader = make_pair(seeded(seed))
        try:
            counts[type(check(writer, reader, tries=400)).__name__] += 1
        except BaseException as error:
            error.add_note(f"{writer!r} -> {reader!r}, of seed {seed}")
            raise
    assert counts["Unknown"] <= 0.03 * counts.total(), counts


def test_both_truths_are_common_and_unknown_is_rare() -> None:
    counts = Counter(type(compare(*make_pair(seeded(seed)))).__name__ for seed in range(200))
    assert counts["Compatible"] >= 50
    assert counts["Breaking"] >= 50
    assert counts["Unknown"] <= 6, counts


@given(schemas)
@always_the_same
def test_a_schema_is_compatible_with_itself(schema: Any) -> None:
    assert isinstance(compare(schema, schema), Compatible)


@given(pairs)
@always_the_same
def test_a_schema_is_compatible_with_less_and_more_of_itself(pair: Pair) -> None:
    one, other = (apart(schema, prefix) for schema, prefix in zip(pair, "xy", strict=True))
    definitions = one.pop("$defs", {}) | other.pop("$defs", {})
    both = {"allOf": [one, other], "$defs": definitions}
    either = {"anyOf": [one, other], "$defs": definitions}
    first = {**one, "$defs": definitions}
    assert not isinstance(check(both, first, tries=20), Breaking)
    assert not isinstance(check(first, either, tries=20), Breaking)
    assert not isinstance(check(both, either, tries=20), Breaking)


def apart(schema: Any, prefix: str) -> dict[str, Any]:
    """The schema with names of definitions that meet no other's."""

    def renamed(node: Any) -> Any:
        if isinstance(node, list):
            return [renamed(entry) for entry in node]
        if not isinstance(node, dict):
            return node
        made = {}
        for keyword, value in node.items():
            if keyword in ("enum", "const"):
                made[keyword] = value
            elif keyword == "$ref" and isinstance(value, str):
                made[keyword] = value.replace("#/$defs/", f"#/$defs/{prefix}")
            elif keyword == "$defs":
                made[keyword] = {prefix + name: renamed(inner) for name, inner in value.items()}
            else:
                made[keyword] = renamed(value)
        return made

    if isinstance(schema, bool):
        return {} if schema else {"not": {}}
    made: dict[str, Any] = renamed(schema)
    return made


def without_definitions(schema: Any) -> tuple[Any, dict[str, Any]]:
    if not isinstance(schema, dict):
        return schema, {}
    bare = {keyword: value for keyword, value in schema.items() if keyword != "$defs"}
    return bare, schema.get("$defs", {})


def wrapped(schema: Any, wrap: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
    bare, definitions = without_definitions(schema)
    return {**wrap(bare), **({"$defs": definitions} if definitions else {})}


def referred(schema: Any) -> dict[str, Any]:
    bare, definitions = without_definitions(schema)
    return {"$ref": "#/$defs/whole", "$defs": {**definitions, "whole": bare}}


REWORDINGS: dict[str, Callable[[Any], Any]] = {
    "allOf of one": lambda s: wrapped(s, lambda bare: {"allOf": [bare]}),
    "anyOf of one": lambda s: wrapped(s, lambda bare: {"anyOf": [bare]}),
    "oneOf of one": lambda s: wrapped(s, lambda bare: {"oneOf": [bare]}),
    "a reference": referred,
    "twice not": lambda s: wrapped(s, lambda bare: {"not": {"not": bare}}),
    "anyOf with nothing": lambda s: wrapped(s, lambda bare: {"anyOf": [False, bare]}),
    "allOf with anything": lambda s: wrapped(s, lambda bare: {"allOf": [bare, True]}),
    "if true": lambda s: wrapped(s, lambda bare: {"if": True, "then": bare, "else": False}),
    "annotations": lambda s: wrapped(
        s, lambda bare: {"title": "x", "description": "y", "x-z": {"a": 1}, "allOf": [bare]}
    ),
}
CONTEXTS: dict[str, Callable[[Any], Any]] = {
    "a required property": lambda s: wrapped(
        s, lambda bare: {"type": "object", "properties": {"p": bare}, "required": ["p"]}
    ),
    "items": lambda s: wrapped(s, lambda bare: {"type": "array", "items": bare}),
    "additional properties": lambda s: wrapped(
        s, lambda bare: {"type": "object", "additionalProperties": bare}
    ),
    "the first item": lambda s: wrapped(
        s, lambda bare: {"type": "array", "prefixItems": [bare], "minItems": 1}
    ),
}


def deep(schema: Any) -> Any:
    """Within objects of other fields, so deep that a witness is hard to come upon."""
    for level in range(4):
        schema = wrapped(
            schema,
            lambda bare, level=level: {
                "type": "object",
                "properties": {f"in_{level}": bare, f"by_{level}": {"type": "integer"}},
            },
        )
    return schema


CONTEXTS["many levels"] = deep


def agree(one: Verdict, other: Verdict) -> bool:
    """Whether two verdicts do not contradict each other."""
    if isinstance(one, Unknown) or isinstance(other, Unknown):
        return True
    return type(one) is type(other)


@pytest.mark.parametrize("way", REWORDINGS)
@given(pair=pairs)
@settings(always_the_same, max_examples=12)
def test_other_words_for_the_same_give_the_same_verdict(way: str, pair: Pair) -> None:
    writer, reader = pair
    reword = REWORDINGS[way]
    plain = compare(writer, reader)
    for one, other in ((reword(writer), reader), (writer, reword(reader))):
        assert agree(plain, check(one, other, tries=10)), way
    assert not isinstance(compare(writer, reword(writer)), Breaking)
    assert not isinstance(compare(reword(writer), writer), Breaking)


@pytest.mark.parametrize("way", CONTEXTS)
@given(pair=pairs)
@settings(always_the_same, max_examples=12)
def test_the_same_within_a_document_gives_the_same_verdict(way: str, pair: Pair) -> None:
    writer, reader = pair
    put = CONTEXTS[way]
    assert agree(compare(writer, reader), check(put(writer), put(reader), tries=10)), way


def annotated(node: Any, pick: Random) -> Any:
    """The same schema with words that refuse nothing, at every level."""
    if not isinstance(node, dict):
        return node
    made = {}
    for keyword, value in node.items():
        if keyword in ("properties", "patternProperties", "dependentSchemas", "$defs"):
            made[keyword] = {name: annotated(inner, pick) for name, inner in value.items()}
        elif keyword in ("allOf", "anyOf", "oneOf", "prefixItems"):
            made[keyword] = [annotated(inner, pick) for inner in value]
        elif keyword in ("enum", "const", "required", "dependentRequired"):
            made[keyword] = value
        else:
            made[keyword] = annotated(value, pick)
    words = {"title": "t", "default": 5, "examples": [1], "x-y": {"type": "null"}, "$comment": "c"}
    words |= {"deprecated": True, "readOnly": True, "contentEncoding": "base64"}
    return made | {word: words[word] for word in pick.sample(sorted(words), 3)}


@given(pairs)
@always_the_same
def test_annotations_never_change_a_verdict(pair: Pair) -> None:
    writer, reader = pair
    pick = seeded(5)
    plain = compare(writer, reader)
    noisy = compare(annotated(writer, pick), annotated(reader, pick))
    assert type(plain) is type(noisy)


@given(seeds)
@always_the_same
def test_compatible_is_transitive(pick: Random) -> None:
    middle, last = make_pair(pick)
    first = changed(pick, middle, 1)
    if not BASES["2020"](BASES["2020"].META_SCHEMA).is_valid(first):
        return
    steps = [compare(first, middle), compare(middle, last)]
    if all(isinstance(step, Compatible) for step in steps):
        assert not isinstance(compare(first, last), Breaking)


@given(pairs)
@always_the_same
def test_a_verdict_is_the_same_each_time(pair: Pair) -> None:
    assert compare(*pair) == compare(*pair)


@given(pairs)
@settings(always_the_same, max_examples=40)
def test_documents_are_accepted_and_the_same_each_time(pair: Pair) -> None:
    schema, other = pair
    made = documents(schema, also=[other], limit=40)
    assert repr(made) == repr(documents(schema, also=[other], limit=40))
    assert len(made) <= 40
    accepted = acceptor(schema)
    refused = [document for document in made if accepted(document) is False]
    assert refused == []


@given(schemas)
@settings(always_the_same, max_examples=40)
def test_accepts_is_what_both_validators_say(schema: Any) -> None:
    ours, theirs = accepts(schema), acceptor(schema)
    for document in POOL:
        truth = theirs(document)
        assert truth is None or ours(document) is truth, document
