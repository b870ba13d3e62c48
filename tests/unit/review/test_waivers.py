from __future__ import annotations

from datetime import date, timedelta
from pathlib import Path

import pytest

from eventmesh.contracts.problem import Problem
from eventmesh.errors import UsageError
from eventmesh.review.report import Finding, apply_waivers
from eventmesh.review.waivers import Waiver, read_waivers

PROBLEM = Problem("EM031", "error", "shop.sold v1", "it breaks", "raise the version")
OTHER = Problem("EM031", "error", "shop.bought v1", "it breaks", "raise the version")
TODAY = date(2026, 11, 21)


def waivers_of(folder: Path, *tables: str) -> list[Waiver]:
    text = "\n".join(f"[[tool.eventmesh.waivers]]\n{table}\n" for table in tables)
    (folder / "pyproject.toml").write_text(text)
    return read_waivers(folder / "pyproject.toml")


def waiver_table(fingerprint: str, expires: date) -> str:
    return f'fingerprint = "{fingerprint}"\nreason = "its reader is gone"\nexpires = {expires}'


def findings(folder: Path, *tables: str, today: date = TODAY) -> list[Finding]:
    return apply_waivers([PROBLEM, OTHER], waivers_of(folder, *tables), today)


def test_a_waiver_applies_only_to_the_problem_with_its_fingerprint(tmp_path: Path) -> None:
    found = findings(tmp_path, waiver_table(PROBLEM.fingerprint, TODAY))
    assert [(finding.problem, finding.fails) for finding in found] == [
        (PROBLEM, False),
        (OTHER, True),
    ]
    assert found[0].waived


def test_a_waiver_applies_until_the_end_of_its_last_day(tmp_path: Path) -> None:
    table = waiver_table(PROBLEM.fingerprint, TODAY)
    [on_the_day, _] = findings(tmp_path, table)
    [the_day_after, _] = findings(tmp_path, table, today=TODAY + timedelta(days=1))
    assert not on_the_day.fails
    assert the_day_after.fails
    assert the_day_after.expired


@pytest.mark.parametrize(
    ("line", "missing"),
    [
        ("expires = 2026-12-31", "a reason"),
        ('reason = "  "\nexpires = 2026-12-31', "a reason"),
        ('reason = "its reader is gone"', "an expiry date"),
        ("", "a reason and an expiry date"),
    ],
)
def test_a_waiver_without_reason_or_expiry_date_has_no_effect_and_is_a_problem(
    tmp_path: Path, line: str, missing: str
) -> None:
    found = findings(tmp_path, f'fingerprint = "{PROBLEM.fingerprint}"\n{line}')
    assert all(finding.fails for finding in found)
    assert found[-1].problem.rule == "EM060"
    assert missing in found[-1].problem.summary
    assert found[-1].problem.place is not None
    assert found[-1].problem.place.line == 2


def test_a_waiver_that_matches_no_problem_is_a_warning(tmp_path: Path) -> None:
    found = findings(tmp_path, waiver_table("0123456789abcdef", TODAY))
    assert found[-1].problem.rule == "EM061"
    assert not found[-1].fails


def test_a_project_without_waivers_has_none(tmp_path: Path) -> None:
    assert read_waivers(tmp_path / "pyproject.toml") == []
    (tmp_path / "pyproject.toml").write_text("[tool.other]\nx = 1\n")
    assert read_waivers(tmp_path / "pyproject.toml") == []


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ('fingerprint = "abc"', "fingerprint = abc"),
        ("fingerprint = 5", "fingerprint = 5"),
        ("", "no content"),
        ('fingerprint = "0123456789abcdef"\nreason = 5', "reason = 5"),
        ('fingerprint = "0123456789abcdef"\nexpires = "2026-12-31"', "without quotes"),
        ('fingerprint = "0123456789abcdef"\nuntil = 2026-12-31', "'until'"),
        ('fingerprint = "0123456789abcdef"\nexpires = 2026-02-31', "cannot be read"),
    ],
)
def test_the_error_for_an_invalid_waiver_quotes_it(tmp_path: Path, table: str, words: str) -> None:
    with pytest.raises(UsageError, match=r"pyproject\.toml") as caught:
        waivers_of(tmp_path, table)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "[tool.eventmesh.waivers]\nfingerprint = 'x'",
        "[tool.eventmesh]\nwaivers = 5",
        "[tool.eventmesh]\nwaivers = [5]",
        "tool = 5",
    ],
)
def test_a_setting_that_is_not_a_list_of_waivers_is_rejected(tmp_path: Path, text: str) -> None:
    (tmp_path / "pyproject.toml").write_text(text)
    with pytest.raises(UsageError, match="waivers"):
        read_waivers(tmp_path / "pyproject.toml")


def test_two_waivers_for_the_same_problem_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="keep one"):
        waivers_of(tmp_path, *[waiver_table(PROBLEM.fingerprint, TODAY)] * 2)


def test_the_time_of_day_of_an_expiry_date_is_ignored(tmp_path: Path) -> None:
    [waiver] = waivers_of(
        tmp_path,
        f'fingerprint = "{PROBLEM.fingerprint}"\nreason = "x"\nexpires = 2026-11-21T08:00:00',
    )
    assert waiver.expires == TODAY
