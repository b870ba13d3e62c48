"""Prints verdicts as JSON lines: `python -m tests.compat.verdict_process plain|starved`.

`starved` makes everything worse that a verdict must not depend on: a thread of its own competes
for the interpreter, the clocks leap by an hour each time they are read, and the caller has used up
most of the stack.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

from eventmesh.compat import compare, documents
from tests.compat.traps import TRAPS

PAIRS = Path(__file__).parent / "schema-pairs.json"


def pairs() -> Iterator[tuple[Any, Any, str]]:
    for pair in json.loads(PAIRS.read_text())[::24]:
        yield pair["writer"], pair["reader"], pair["draft"]
    for trap in TRAPS[::24]:
        yield trap.writer, trap.reader, trap.draft
    yield from expensive_pairs()


def expensive_pairs() -> Iterator[tuple[Any, Any, str]]:
    """Pairs on which a search or a proof spends its whole step budget."""
    for bound in (19, 21):
        yield alternatives(20), alternatives(bound), "2020"
    text = {"type": "string"}
    yield {**text, "pattern": "^.*a.{18}$"}, {**text, "pattern": "^.*b.{18}$"}, "2020"
    yield conditions(25), conditions(24), "2020"


def alternatives(bound: int) -> dict[str, Any]:
    branches = [
        {"oneOf": [{"required": [f"a{n}"]}, {"required": [f"b{n}"], "maxProperties": bound}]}
        for n in range(20)
    ]
    return {"type": "object", "allOf": branches}


def conditions(last: int) -> dict[str, Any]:
    branches = [
        {
            "if": {"properties": {f"k{n}": {"const": n}}, "required": [f"k{n}"]},
            "then": {"required": [f"v{n}"]},
            "else": {"properties": {f"v{n}": False}},
        }
        for n in range(last)
    ]
    return {"type": "object", "allOf": branches}


def print_verdicts() -> None:
    for writer, reader, draft in pairs():
        verdict = compare(writer, reader, draft=draft)
        fields = {name: getattr(verdict, name) for name in verdict.__slots__ if name != "changes"}
        print(json.dumps([type(verdict).__name__, fields]))  # noqa: T201
    print(json.dumps(documents(alternatives(20), limit=20)))  # noqa: T201


def starve() -> None:
    threading.Thread(target=busy, daemon=True).start()
    hours = count(step=3600)
    for clock in ("monotonic", "time", "perf_counter", "process_time"):
        setattr(time, clock, lambda: float(next(hours)))


def busy() -> None:
    while True:
        sum(range(1_000))


def deep_down(levels: int, function: Callable[[], None]) -> None:
    if levels:
        deep_down(levels - 1, function)
    else:
        function()


if __name__ == "__main__":
    if sys.argv[1] == "starved":
        starve()
        deep_down(700, print_verdicts)
    else:
        print_verdicts()
