from __future__ import annotations

import json
import re
from dataclasses import replace
from datetime import date
from typing import Any
from xml.etree import ElementTree as Xml

import pytest

from eventmesh.compat import Change
from eventmesh.contracts.problem import Place, Problem, Witness
from eventmesh.contracts.rules import RULES
from eventmesh.review.formats import FORMATS
from eventmesh.review.formats.common import sentence
from eventmesh.review.report import Finding, Report, make_report, rebase
from eventmesh.review.waivers import Waiver

EVIL = 'a\x1b[31m\x00b\r\nc ]]> <&> "q" \u009b, 50%: \ud800 \ufffe\U0001f600'

BROKEN = Problem(
    "EM031",
    "error",
    "payments.payment_captured v1",
    "field 'currency' was added",
    "Raise the version.",
    parties=("orders", "shipping"),
    place=Place("services/pay, ments/contracts:a.py", 17),
    witness=Witness({"order_id": "1", "amount": 0}, "currency: Field required"),
    changes=(Change("EM001", "/properties/currency", "currency", "is required", "give a default"),),
)
WARNING = replace(
    BROKEN, rule="EM040", severity="warning", subject="orders.placed v2", witness=None
)
WAIVER = Waiver(
    BROKEN.fingerprint, "the reader is gone", date(2026, 12, 31), Place("pyproject.toml")
)
FAILING = Finding(BROKEN)
WAIVED = Finding(replace(BROKEN, subject="payments.declined v1"), WAIVER)
EXPIRED = Finding(replace(BROKEN, subject="payments.refused v1"), WAIVER, expired=True)
HOSTILE = Finding(
    Problem(
        "EM050", "error", EVIL, EVIL, EVIL, parties=(EVIL,), place=Place(EVIL, 1),
        witness=Witness({EVIL: [EVIL, float("nan"), {"x": float("inf")}]}, EVIL),
        changes=(Change("EM001", EVIL, EVIL, EVIL, EVIL),),
    )
)  # fmt: skip
EVERYTHING = make_report([WAIVED, Finding(WARNING), FAILING, EXPIRED], ["payments.fine v1"])


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("report", [Report(()), make_report([HOSTILE], [EVIL]), EVERYTHING])
def test_every_format_renders_every_report_without_control_characters(
    form: str, report: Report
) -> None:
    text = FORMATS[form](report)
    assert text.endswith("\n") or (text == "" and form == "github")
    if form != "text":  # the command line escapes it for the terminal
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f]", text)
        assert not re.search("[\ud800-\udfff]", text)


# Text


def test_text_shows_the_services_the_witness_the_reason_and_the_fix() -> None:
    text = FORMATS["text"](make_report([FAILING], ["payments.fine v1"]))
    assert (
        text
        == f"""\
error    EM031 payments.payment_captured v1
  services/pay, ments/contracts:a.py:17
  Field 'currency' was added.
  Services: orders, shipping
  This document fails: currency: Field required
    {{
      "order_id": "1",
      "amount": 0
    }}
  - EM001 currency: is required
    at /properties/currency
    fix: give a default
  Fix: Raise the version.
  fingerprint {BROKEN.fingerprint}

ok       payments.fine v1: as frozen

1 error, 0 warnings, 0 waived, 1 as frozen
"""
    )


def test_text_is_wrapped_at_80_columns() -> None:
    wordy = replace(BROKEN, summary="so many words " * 40, fix="do this and that " * 40)
    assert max(map(len, FORMATS["text"](make_report([Finding(wordy)], [])).splitlines())) <= 80


def test_a_large_witness_is_shortened_in_text_and_complete_in_json() -> None:
    large = {f"field_{number}": "x" * 1000 for number in range(10_000)}
    finding = Finding(replace(BROKEN, witness=Witness(large, "no")))
    text = FORMATS["text"](make_report([finding], []))
    assert "more lines" in text
    assert len(text) < 50_000
    [problem] = json.loads(FORMATS["json"](make_report([finding], [])))["problems"]
    assert problem["witness"]["document"] == large


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_shows_waived_findings_and_expired_waivers(form: str) -> None:
    waived, expired = (FORMATS[form](make_report([each], [])) for each in (WAIVED, EXPIRED))
    assert "waived" in waived.lower() or "suppressions" in waived
    assert "the reader is gone" in waived
    assert "expired" in expired


# JSON


def test_json_contains_every_part_of_the_report() -> None:
    report = json.loads(FORMATS["json"](EVERYTHING))
    assert (report["errors"], report["warnings"], report["waived"]) == (2, 1, 1)
    assert report["passed"] == ["payments.fine v1"]
    first = report["problems"][0]
    assert first["fingerprint"] == BROKEN.fingerprint
    assert first["witness"] == {
        "document": {"order_id": "1", "amount": 0},
        "reason": "currency: Field required",
    }
    assert first["changes"][0]["pointer"] == "/properties/currency"
    assert first["waiver"] is None
    assert report["problems"][-1]["waiver"] == {
        "reason": "the reader is gone",
        "expires": "2026-12-31",
        "expired": False,
    }


def test_json_is_valid_whatever_a_witness_contains() -> None:
    def fail(constant: str) -> Any:
        raise AssertionError(constant)

    json.loads(FORMATS["json"](make_report([HOSTILE], [])), parse_constant=fail)


# GitHub

COMMAND = re.compile(r"::(error|warning|notice) ((?:\w+=[^,:]*,?)+)::(.*)")


def unescaped(text: str) -> str:
    for code, char in (("%0D", "\r"), ("%0A", "\n"), ("%3A", ":"), ("%2C", ","), ("%25", "%")):
        text = text.replace(code, char)
    return text


def test_github_has_one_workflow_command_on_one_line_for_each_finding() -> None:
    lines = FORMATS["github"](EVERYTHING).splitlines()
    found = [COMMAND.fullmatch(line) for line in lines]
    assert [match and match[1] for match in found] == ["error", "error", "warning", "notice"]
    assert found[0] is not None
    properties = dict(part.split("=") for part in found[0][2].split(","))
    assert {name: unescaped(value) for name, value in properties.items()} == {
        "file": "services/pay, ments/contracts:a.py",
        "line": "17",
        "title": "EM031 payments.payment_captured v1",
    }
    assert '"amount": 0' in unescaped(found[0][3])


def test_hostile_text_cannot_start_another_workflow_command() -> None:
    [line] = FORMATS["github"](make_report([HOSTILE], [])).splitlines()
    assert COMMAND.fullmatch(line)


# JUnit


def suite_of(report: Report) -> Xml.Element:
    """The suite, checked against what the JUnit schema of Jenkins requires."""
    root = Xml.fromstring(FORMATS["junit"](report))  # noqa: S314  # our own text
    assert root.tag == "testsuites"
    [suite] = root
    assert suite.tag == "testsuite"
    assert suite.attrib.keys() == {"name", "tests", "failures", "errors", "skipped", "time"}
    for case in suite:
        assert case.tag == "testcase"
        assert case.attrib.keys() == {"classname", "name", "time"}
        tags = [part.tag for part in case]
        order = [tag for tag in ("skipped", "failure", "system-out") if tag in tags]
        assert tags == order
        for part in case:
            assert part.attrib.keys() <= {"message", "type"}
    for name, count in (("tests", len(suite)), ("errors", 0)):
        assert suite.get(name) == str(count)
    for name, tag in (("failures", "failure"), ("skipped", "skipped")):
        assert suite.get(name) == str(len(suite.findall(f"testcase/{tag}")))
    return suite


def test_junit_has_a_test_case_for_each_subject_including_those_that_passed() -> None:
    cases = {case.get("name"): [part.tag for part in case] for case in suite_of(EVERYTHING)}
    assert cases == {
        "payments.payment_captured v1": ["failure"],
        "payments.refused v1": ["failure"],
        "payments.declined v1": ["skipped"],
        "orders.placed v2": ["system-out"],
        "payments.fine v1": [],
    }


def test_junit_drops_characters_that_xml_cannot_contain() -> None:
    [case] = suite_of(make_report([HOSTILE], []))
    assert "\U0001f600" in str(case.get("name"))
    assert "\x1b" not in Xml.tostring(case, "unicode")


def test_junit_reports_several_findings_of_a_subject_as_one_failure() -> None:
    second = replace(BROKEN, rule="EM036")
    [case] = suite_of(make_report([FAILING, Finding(second)], []))
    [failure] = case
    assert "EM031" in str(failure.text)
    assert "EM036" in str(failure.text)


# SARIF


def test_sarif_has_what_the_standard_requires() -> None:
    log = json.loads(FORMATS["sarif"](EVERYTHING))
    assert log["version"] == "2.1.0"
    [run] = log["runs"]
    driver = run["tool"]["driver"]
    assert driver["name"] == "eventmesh"
    rules = driver["rules"]
    assert len({rule["id"] for rule in rules}) == len(rules)
    for rule in rules:
        words = RULES[rule["id"]]
        assert words[1:] in rule["help"]["text"]
        assert rule["help"]["markdown"]
        assert words[1:] in rule["shortDescription"]["text"]
    for result in run["results"]:
        assert rules[result["ruleIndex"]]["id"] == result["ruleId"]
        assert result["level"] in ("none", "note", "warning", "error")
        assert result["message"]["text"]
        assert all(isinstance(v, str) and v for v in result["partialFingerprints"].values())
        [location] = result["locations"]
        assert location["logicalLocations"]
        physical = location["physicalLocation"]
        assert physical["region"]["startLine"] >= 1
        assert physical["artifactLocation"] == {
            "uri": "services/pay%2C%20ments/contracts%3Aa.py",
            "uriBaseId": "%SRCROOT%",
        }


def test_sarif_suppresses_only_waived_findings() -> None:
    results = json.loads(FORMATS["sarif"](EVERYTHING))["runs"][0]["results"]
    suppressed = [result for result in results if result["suppressions"]]
    [result] = suppressed
    [suppression] = result["suppressions"]
    assert suppression["kind"] in ("inSource", "external")
    assert suppression["status"] == "accepted"
    assert "the reader is gone" in suppression["justification"]


def test_places_are_relative_to_the_root_of_the_repository() -> None:
    place = rebase(FAILING, "shop/").problem.place
    assert place == Place("shop/services/pay, ments/contracts:a.py", 17)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("bank sends it", "bank sends it."),
        ("bank.deposited v1 allows 3", "bank.deposited v1 allows 3."),
        ("bank.deposited: it differs.", "bank.deposited: it differs."),
        ("field 'a' was added", "Field 'a' was added."),
        ("why?", "Why?"),
    ],
    ids=["a service", "a message", "with a colon", "words", "a question"],
)
def test_a_sentence_keeps_the_spelling_of_the_name_that_it_begins_with(
    text: str, expected: str
) -> None:
    assert sentence(text, ["bank", "shop"]) == expected
