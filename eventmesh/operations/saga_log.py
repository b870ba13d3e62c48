"""How an entry of a saga's log is shown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def log_line(entry: Mapping[str, Any]) -> str:
    """One line of the time-line."""
    words = []
    if "operator" in entry:
        words.append(f"{entry['operator']}:")
    words.append(entry["rule"])
    if "step" in entry:
        words.append(entry["step"])
    if "message" in entry:
        words.append(f"({entry['message']})")
    if "sent" in entry:
        words.append(f"-> sent {', '.join(entry['sent'])}")
    if "announced" in entry:
        words.append(f"-> published {entry['announced']}")
    # Logs of before the first release lack it where the state of the saga could not be read.
    status = entry.get("status", "parked")
    if status != "running":
        words.append(f"[{status}]")
    if "why" in entry:
        words.append(f"because {entry['why']}")
    return " ".join(words)
