"""No trap catches the checker: nothing false is said of any, and Unknown only of the hard ones."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any

import pytest

from eventmesh.compat import Breaking, Compatible, compare
from tests.compat.oracle import BASES, dialect, is_proof, refutation
from tests.compat.traps import TRAPS, Trap


def name(trap: Trap) -> str:
    return re.sub(r"[^\w.,-]+", "-", f"{trap.truth}: {trap}", flags=re.ASCII)


every_trap = pytest.mark.parametrize("trap", TRAPS, ids=name)


@every_trap
def test_the_trap_itself_is_true(trap: Trap) -> None:
    for schema in (trap.writer, trap.reader):
        BASES[dialect(schema, trap.draft)].check_schema(schema)
    if trap.truth == "breaking":
        assert is_proof(trap.document, trap.writer, trap.reader, trap.draft)
    else:
        assert refutation(trap.writer, trap.reader, trap.draft, tries=60) is None


@every_trap
def test_the_checker_is_not_caught(trap: Trap) -> None:
    verdict = compare(trap.writer, trap.reader, draft=trap.draft)
    if isinstance(verdict, Compatible):
        assert trap.truth == "compatible", f"{trap.document!r} is written and not read"
    elif isinstance(verdict, Breaking):
        assert trap.truth == "breaking", f"{verdict.witness!r} is not a witness"
        assert is_proof(verdict.witness, trap.writer, trap.reader, trap.draft), verdict.witness
    else:
        assert trap.hard, f"this can be known: {verdict.reason}"


DEEP = 5


def outer(schema: Any, *, closed: bool) -> Any:
    """The schema deep inside objects of other fields, where a witness is hard to come upon."""
    definitions = {}
    if isinstance(schema, dict):
        kept = ("$defs", "definitions", "$schema")
        definitions = {word: schema[word] for word in kept if word in schema}
        schema = {word: value for word, value in schema.items() if word not in kept}
    for level in range(DEEP):
        beside = {f"beside_{level}": {"type": "integer"}}
        schema = {"type": "object", "properties": {f"level_{level}": schema, **beside}}
        if closed:
            schema["additionalProperties"] = False
    return {**schema, **definitions}


def outer_document(document: Any) -> Any:
    for level in range(DEEP):
        document = {f"level_{level}": document}
    return document


def can_be_moved(trap: Trap) -> bool:
    """Whether its references still lead where they did once its definitions are at the root."""
    written = json.dumps([trap.writer, trap.reader])
    references = re.findall(r'"\$(?:dynamicRef|ref)": "([^"]*)"', written)
    return '"$id"' not in written and all(
        reference.startswith(("#/$defs/", "#/definitions/")) for reference in references
    )


@pytest.mark.parametrize("trap", [trap for trap in TRAPS if can_be_moved(trap)], ids=name)
def test_the_checker_is_not_caught_deep_inside_a_document(trap: Trap) -> None:
    writer, reader = outer(trap.writer, closed=True), outer(trap.reader, closed=False)
    verdict = compare(writer, reader, draft=trap.draft)
    if isinstance(verdict, Compatible):
        assert trap.truth == "compatible", f"{trap.document!r} is written and not read"
    elif isinstance(verdict, Breaking):
        assert trap.truth == "breaking", f"{verdict.witness!r} is not a witness"
        assert is_proof(verdict.witness, writer, reader, trap.draft), verdict.witness
    elif trap.truth == "breaking":
        assert is_proof(outer_document(trap.document), writer, reader, trap.draft)


def test_the_traps_are_many_and_of_both_truths() -> None:
    truths = Counter(trap.truth for trap in TRAPS)
    assert min(truths.values()) >= 200
    assert len({name(trap) for trap in TRAPS}) == len(TRAPS)
