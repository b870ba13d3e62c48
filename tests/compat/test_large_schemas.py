"""Changes in large schemas get true verdicts, and seldom none: see `large_schemas.py`."""

from __future__ import annotations

from functools import cache

import pytest

from eventmesh.compat import Breaking, Compatible, Unknown, Verdict, compare
from tests.compat.large_schemas import CHANGES, Pair, pairs
from tests.compat.oracle import acceptor, is_proof, refutation

MOST_UNKNOWN = 0.03
DRAFT_7 = "http://json-schema.org/draft-07/schema#"


@cache
def answers() -> list[tuple[Pair, Verdict]]:
    chosen = [pair for number, pair in enumerate(pairs(1)) if number % 3 == 0]
    return [(pair, compare(pair.writer, pair.reader, draft=pair.draft)) for pair in chosen]


def test_all_kinds_of_changes_are_asked_about() -> None:
    assert len({pair.change for pair, _ in answers()}) >= 0.8 * len(CHANGES)
    assert len(answers()) >= 80


def test_no_verdict_is_wrong() -> None:
    for pair, verdict in answers():
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


@pytest.mark.parametrize("part", range(4))
def test_no_compatible_is_refuted_by_a_document(part: int) -> None:
    proved = [pair for pair, verdict in answers() if isinstance(verdict, Compatible)]
    for pair in proved[part::16]:
        assert refutation(pair.writer, pair.reader, pair.draft, tries=5) is None, pair.change


def test_every_witness_is_one_by_two_validators() -> None:
    unconfirmed = [
        f"{pair.name}: {pair.change}"
        for pair, verdict in answers()
        if isinstance(verdict, Breaking)
        and not is_proof(verdict.witness, pair.writer, pair.reader, pair.draft)
    ]
    assert unconfirmed == []


def test_unknown_is_rare() -> None:
    unknown = [f"{pair.name}: {pair.change}" for pair, v in answers() if isinstance(v, Unknown)]
    assert len(unknown) <= MOST_UNKNOWN * len(answers()), unknown
