from __future__ import annotations

import re
from pathlib import Path

from eventmesh.contracts.rules import RULES
from eventmesh.review.rulebook import rulebook

PAGE = Path(__file__).resolve().parents[3] / "schemas" / "RULES.md"


def test_the_page_is_what_the_command_prints() -> None:
    assert PAGE.read_text() == rulebook(), "run: eventmesh schema rules --output schemas/RULES.md"


def test_every_rule_is_told_once() -> None:
    told = re.findall(r"^\| (EM\d{3}) \| (.+) \|$", rulebook(), re.MULTILINE)
    assert dict(told) == dict(RULES)
    assert len(told) == len(RULES)


def test_every_rule_that_the_code_tells_is_in_the_book() -> None:
    package = PAGE.parents[1] / "eventmesh"
    said = {
        code for path in package.rglob("*.py") for code in re.findall(r"EM\d{3}", path.read_text())
    }
    assert said - {"EM001"} <= set(RULES)
