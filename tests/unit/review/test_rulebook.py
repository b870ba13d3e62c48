from __future__ import annotations

import re
from pathlib import Path

from eventmesh.contracts.rules import RULES
from eventmesh.review.rulebook import rulebook

PAGE = Path(__file__).resolve().parents[3] / "schemas" / "RULES.md"


def test_the_page_equals_the_output_of_the_command() -> None:
    assert PAGE.read_text() == rulebook(), "run: eventmesh schema rules --output schemas/RULES.md"


def test_every_rule_is_listed_once() -> None:
    listed = re.findall(r"^\| (EM\d{3}) \| (.+) \|$", rulebook(), re.MULTILINE)
    assert dict(listed) == dict(RULES)
    assert len(listed) == len(RULES)


def test_every_rule_code_in_the_package_is_listed() -> None:
    package = PAGE.parents[1] / "eventmesh"
    used = {
        code for path in package.rglob("*.py") for code in re.findall(r"EM\d{3}", path.read_text())
    }
    assert used - {"EM001"} <= set(RULES)
