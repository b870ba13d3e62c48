"""`make demo`, which installs the project for those who only try it."""

from __future__ import annotations

from pathlib import Path

MAKEFILE = Path(__file__).parents[3] / "Makefile"


def test_make_demo_installs_what_serving_the_dashboard_needs() -> None:
    _, _, rule = MAKEFILE.read_text().partition("\n$(VENV)/.run:")
    recipe, _, _ = rule.partition("\n\n")
    assert "--editable '.[dashboard]'" in recipe
