"""The page `schemas/RULES.md`: every rule code with its meaning."""

from __future__ import annotations

from eventmesh.contracts.rules import RULES

_CHAPTERS = {
    "EM001": "Differences between a writer's schema and a reader's",
    "EM030": "Versions of one message",
    "EM050": "All services together",
    "EM060": "Waivers",
    "EM070": "Unused messages",
    "EM080": "Sagas",
}
"""The first code of each chapter, and its title."""


def rulebook() -> str:
    """The page, in Markdown."""
    lines = [
        "# Rules of `eventmesh schema check`",
        "",
        "This page is the output of `eventmesh schema rules`. The codes of the first table explain",
        "a finding: they name each difference between the two schemas. A code never changes its",
        "meaning.",
    ]
    for rule, meaning in RULES.items():
        if rule in _CHAPTERS:
            lines += ["", f"## {_CHAPTERS[rule]}", "", "| code | meaning |", "|---|---|"]
        lines.append(f"| {rule} | {meaning} |")
    return "\n".join(lines) + "\n"
