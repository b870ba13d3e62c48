"""The score over 416 pairs that others have labelled, written to `build/schema-pairs.md`.

The true answer is the label, except where the label answers another question than ours: `TRUTHS`
lists those pairs, each with the reason. A Breaking is only believed with a witness, and a witness
is only one if both validators of the oracle say so.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import process_time
from typing import Any

import pytest

from eventmesh.compat import Breaking, Compatible, Unknown, Verdict, compare
from tests.compat.oracle import is_proof, refutation

HERE = Path(__file__).parent
REPORT = HERE.parents[1] / "build" / "schema-pairs.md"
CAP = 20.0
"""Seconds of the processor that no pair may take, whoever else it works for."""

_ANNOTATION = "content… is an annotation, which refuses no document"
_EVERY_TEXT = "`[a-z]*` is searched for and found in every text"
TRUTHS: dict[str, tuple[bool, str]] = {
    "apicurio:10:String: pattern 1:F": (True, _EVERY_TEXT),
    "apicurio:11:String: pattern 2:B": (True, _EVERY_TEXT),
    "apicurio:11:String: pattern 2:F": (True, _EVERY_TEXT),
    "apicurio:14:String: format 2:F": (True, "pydantic reads every date as a date-time"),
    "apicurio:30:Number: exclusiveMinimum 5:B": (True, "the same bound in two drafts"),
    "apicurio:35:Number: exclusiveMaximum 5:F": (True, "the same bound in two drafts"),
    "apicurio:96:Const:B": (True, "a text that is a list: nothing can be written"),
    "apicurio:96:Const:F": (True, "a text that is a list: nothing can be written"),
    "apicurio:100:String: contentEncoding 2:F": (True, _ANNOTATION),
    "apicurio:101:String: contentEncoding 3:B": (True, _ANNOTATION),
    "apicurio:101:String: contentEncoding 3:F": (True, _ANNOTATION),
    "apicurio:103:String: contentMediaType 2:F": (True, _ANNOTATION),
    "apicurio:104:String: contentMediaType 3:B": (True, _ANNOTATION),
    "apicurio:104:String: contentMediaType 3:F": (True, _ANNOTATION),
    "apicurio:108:Complex: anyOf 1:F": (True, "a text or a short text or no text: everything"),
    "apicurio:117:Complex: oneOf 1:F": (True, "the longer texts, and all that is no text"),
    "apicurio:124:Conditional: if:B": (True, _EVERY_TEXT),
    "apicurio:124:Conditional: if:F": (True, _EVERY_TEXT),
    "apicurio:125:Conditional: then:F": (True, _EVERY_TEXT),
    "apicurio:126:Conditional: else:F": (True, _EVERY_TEXT),
    "jsoncompat:unsupported_subset_pattern_properties_additional_fallback:S": (
        True,
        "the writer writes no name but a control character",
    ),
    "jsoncompat:format_annotation_changed:S": (False, "pydantic enforces the format"),
    "jsoncompat:format_annotation_changed:D": (False, "pydantic enforces the format"),
}
"""Pairs whose label is not the true answer, with that answer and why."""


@dataclass(frozen=True)
class Answer:
    pair: dict[str, Any]
    label: bool
    truth: bool
    verdict: Verdict
    seconds: float

    @property
    def agrees(self) -> bool:
        return _agrees(self.verdict, self.truth)


def _agrees(verdict: Verdict, truth: bool) -> bool:
    return isinstance(verdict, Compatible if truth else Breaking)


@pytest.fixture(scope="module")
def answers() -> list[Answer]:
    pairs = json.loads((HERE / "schema-pairs.json").read_text())
    compare({"type": "string"}, {"format": "date"})  # what is imported once is not of a pair
    return [_answer(pair) for pair in pairs]


def _answer(pair: dict[str, Any]) -> Answer:
    label = pair["compatible"] and "refuted_by" not in pair
    truth, _ = TRUTHS.get(pair["id"], (label, ""))
    begun = process_time()
    verdict = compare(pair["writer"], pair["reader"], draft=pair["draft"])
    return Answer(pair, label, truth, verdict, process_time() - begun)


def _names(answers: list[Answer]) -> list[str]:
    return [answer.pair["id"] for answer in answers]


def test_the_file_is_whole(answers: list[Answer]) -> None:
    assert len(answers) == 416
    assert set(_names(answers)) >= set(TRUTHS)


def test_no_compatible_is_refuted_by_a_document(answers: list[Answer]) -> None:
    refuted = []
    for answer in answers:
        if isinstance(answer.verdict, Compatible):
            pair = answer.pair
            found = refutation(pair["writer"], pair["reader"], pair["draft"], tries=100)
            if found or not answer.truth:
                refuted.append((pair["id"], found))
    assert refuted == []


def test_no_breaking_is_without_a_witness(answers: list[Answer]) -> None:
    unproved = []
    for answer in answers:
        if isinstance(answer.verdict, Breaking):
            pair, witness = answer.pair, answer.verdict.witness
            if not is_proof(witness, pair["writer"], pair["reader"], pair["draft"]):
                unproved.append((pair["id"], witness))
    assert unproved == []


def test_the_answers_are_the_true_ones(answers: list[Answer]) -> None:
    others = [answer for answer in answers if not answer.agrees]
    assert len(others) <= 0.03 * len(answers), _names(others)


def test_unknown_is_rare(answers: list[Answer]) -> None:
    unknown = [answer for answer in answers if isinstance(answer.verdict, Unknown)]
    assert len(unknown) <= 0.03 * len(answers), _names(unknown)


def test_no_pair_takes_long(answers: list[Answer]) -> None:
    assert [a.pair["id"] for a in answers if a.seconds > CAP] == []


def test_labels_are_corrected_only_with_a_reason(answers: list[Answer]) -> None:
    """A label is contradicted by a document, or by no document that can be found."""
    for answer in answers:
        pair = answer.pair
        if pair["id"] in TRUTHS:
            found = refutation(pair["writer"], pair["reader"], pair["draft"], tries=300)
            assert (found is None) is answer.truth, (pair["id"], found)


def test_the_score_is_written_down(answers: list[Answer]) -> None:
    REPORT.parent.mkdir(exist_ok=True)
    REPORT.write_text(_report(answers))
    assert f"| {len(answers)} |" in REPORT.read_text()


def _report(answers: list[Answer]) -> str:
    times = sorted(answer.seconds for answer in answers)
    slowest = max(answers, key=lambda answer: answer.seconds)
    unknown = [answer for answer in answers if isinstance(answer.verdict, Unknown)]
    refuted = [
        a for a in answers if isinstance(a.verdict, Compatible) and not a.truth
    ]  # fmt: skip
    agreeing = sum(answer.agrees for answer in answers)
    labelled = sum(_agrees(answer.verdict, answer.label) for answer in answers)
    rows = [
        ("pairs", len(answers)),
        ("agree with the true answer", f"{agreeing} ({agreeing / len(answers):.1%})"),
        ("agree with the label as it came", f"{labelled} ({labelled / len(answers):.1%})"),
        ("Unknown", f"{len(unknown)} ({len(unknown) / len(answers):.1%})"),
        ("Compatible that a document refutes", len(refuted)),
        ("median", f"{median(times) * 1000:.2f} ms"),
        ("99 of 100 within", f"{times[int(len(times) * 0.99)] * 1000:.1f} ms"),
        ("slowest", f"{slowest.seconds * 1000:.0f} ms: {slowest.pair['id']}"),
    ]
    lines = ["# The 416 pairs", "", "| what | figure |", "|---|---|"]
    lines += [f"| {what} | {figure} |" for what, figure in rows]
    lines += [
        "",
        "## Where the label is not the true answer",
        "",
        "| pair | true | verdict | why |",
    ]
    lines += ["|---|---|---|---|"]
    said = {True: "compatible", False: "breaking"}
    for answer in answers:
        if answer.pair["id"] in TRUTHS:
            why = TRUTHS[answer.pair["id"]][1]
            verdict = type(answer.verdict).__name__
            lines.append(f"| {answer.pair['id']} | {said[answer.truth]} | {verdict} | {why} |")
    others = [answer for answer in answers if not answer.agrees]
    lines += ["", "## Where the verdict is not the true answer", ""]
    lines += [f"- {a.pair['id']}: {type(a.verdict).__name__}" for a in others] or ["Nowhere."]
    return "\n".join(lines) + "\n"
