"""`schemas/RULES.md`: the rules for people."""

from __future__ import annotations

from eventmesh.contracts.rules import RULES

_CHAPTERS = {
    "EM00": "What differs between a writer's schema and a reader's",
    "EM03": "Versions of one message",
    "EM05": "The whole mesh",
    "EM06": "Waivers",
    "EM07": "What nobody uses",
}


def rulebook() -> str:
    """The page, in Markdown."""
    lines = [
        "# What `eventmesh schema check` can find",
        "",
        "What `eventmesh schema rules` prints. A code never changes its meaning.",
    ]
    for rule, meaning in RULES.items():
        if rule[:4] in _CHAPTERS and (rule[4:] == "0" or rule == "EM001"):
            lines += ["", f"## {_CHAPTERS[rule[:4]]}", "", "| code | meaning |", "|---|---|"]
        lines.append(f"| {rule} | {meaning} |")
    return "\n".join(lines) + "\n"
