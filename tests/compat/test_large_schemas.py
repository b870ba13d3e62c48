"""Changes in large schemas get true verdicts, and seldom none: see `large_schemas.py`."""

from __future__ import annotations

from collections import defaultdict
from functools import cache

import pytest

from eventmesh.compat import Breaking, Compatible, Unknown, Verdict, compare
from tests.compat.large_schemas import CHANGES, Pair, pairs
from tests.compat.oracle import acceptor, is_proof, refutation

MOST_UNKNOWN = 0.03
DRAFT_7 = "http://json-schema.org/draft-07/schema#"


amount = pytest.mark.parametrize("amount", ["some", pytest.param("all", marks=pytest.mark.soak)])


@cache
def answers(amount: str) -> list[tuple[Pair, Verdict]]:
    """The verdicts about all pairs, or about one pair of each change, in one schema or another."""
    chosen = [*pairs(1)]
    if amount == "some":
        by_change: dict[str, list[Pair]] = defaultdict(list)
        for pair in chosen:
            by_change[pair.change].append(pair)
        chosen = [each[n % len(each)] for n, each in enumerate(by_change.values())]
    return [(pair, compare(pair.writer, pair.reader, draft=pair.draft)) for pair in chosen]


@amount
def test_all_kinds_of_changes_are_asked_about(amount: str) -> None:
    assert len({pair.change for pair, _ in answers(amount)}) == len(CHANGES)
    assert len({pair.name for pair, _ in answers(amount)}) > 5


@amount
def test_no_verdict_is_wrong(amount: str) -> None:
    for pair, verdict in answers(amount):
        what = f"{pair.name}: {pair.change}"
        if isinstance(verdict, Breaking):
            assert pair.truth != "compatible", what
            assert acceptor(pair.writer, pair.draft)(verdict.witness) is not False, what
            assert acceptor(pair.reader, pair.draft)(verdict.witness) is not True, what
        elif isinstance(verdict, Compatible):
            assert pair.truth != "breaking", what


def test_the_oracle_checks_formats_in_definitions_that_name_their_draft() -> None:
    schema = {
        "$schema": DRAFT_7,
        "$ref": "#/definitions/address",
        "definitions": {"address": {"$schema": DRAFT_7, "type": "string", "format": "ipv4"}},
    }
    accepts = acceptor(schema, "7")
    assert accepts("1.2.3.4") is True
    assert accepts("no address") is False


@amount
def test_no_compatible_is_refuted_by_a_document(amount: str) -> None:
    proved = [pair for pair, verdict in answers(amount) if isinstance(verdict, Compatible)]
    for pair in proved[::4]:
        assert refutation(pair.writer, pair.reader, pair.draft, tries=5) is None, pair.change


@amount
def test_every_witness_is_one_by_two_validators(amount: str) -> None:
    unconfirmed = [
        f"{pair.name}: {pair.change}"
        for pair, verdict in answers(amount)
        if isinstance(verdict, Breaking)
        and not is_proof(verdict.witness, pair.writer, pair.reader, pair.draft)
    ]
    assert unconfirmed == []


@amount
def test_unknown_is_rare(amount: str) -> None:
    asked = answers(amount)
    unknown = [f"{pair.name}: {pair.change}" for pair, v in asked if isinstance(v, Unknown)]
    assert len(unknown) <= MOST_UNKNOWN * len(asked), unknown
