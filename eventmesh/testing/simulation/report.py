"""Tells what a simulation has tried and what it has found: for people, and for programs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from eventmesh.testing.simulation.plan import Plan
from eventmesh.testing.simulation.search import Failure, Report

_NEEDS_EARLIER_RUNS = (
    "earlier runs had a part in it: something outlives a run, such as a variable of a module, so "
    "that this plan alone may pass"
)


def describe(failure: Failure, replay_command: str) -> str:
    """The failure for people: what failed, after which faults, the story and how to run it
    again."""
    lines: Sequence[str] = [
        f"{type(failure.error).__name__}: {str(failure.error).split(chr(10) * 2)[0]}",
        "",
        f"found by {'the run without faults' if failure.found_by == Plan(0) else failure.found_by}",
        "what had to go wrong:" if failure.plan.faults else "no fault was needed for it",
        *(f"  - {fault.in_words()}" for fault in failure.plan.faults),
        *(["  - calls that take times of their own"] * failure.plan.has_pace),
        *([_NEEDS_EARLIER_RUNS] * failure.needs_earlier_runs),
        "",
        failure.story,
        "",
        f"Run it again: {replay_command}",
    ]
    return "\n".join(lines)


def lines(report: Report | None, failure: Failure | None, replay_command: str) -> Iterator[str]:
    """All lines for people to read. `report` is None where a single plan was run again."""
    if report is not None:
        yield from _tried(report)
    if failure is None:
        yield "no run failed"
        return
    yield ""
    yield from describe(failure, replay_command).split("\n")


def _tried(report: Report) -> Iterator[str]:
    yield f"{report.runs:,} run{'' if report.runs == 1 else 's'} in {report.seconds:.1f} s"
    yield f"faults: {_counted(report.faults)}"
    plural = "" if len(report.killed_at) == 1 else "s"
    yield (
        f"killed at {len(report.killed_at):,} place{plural} of the code; "
        f"a run without faults passes {report.places:,}"
    )
    yield f"handlers called: {_counted(report.handlers)}"
    never = [name for name, times in sorted(report.handlers.items()) if not times]
    if never:
        yield f"never called: {', '.join(never)}"
    if report.endings:
        yield f"sagas: {_counted(report.endings)}"


def _counted(numbers: Counter[str]) -> str:
    return ", ".join(f"{what} {n:,}" for what, n in sorted(numbers.items()) if n) or "none"


def as_document(
    report: Report | None, failure: Failure | None, replay_command: str
) -> dict[str, Any]:
    """All of it for programs. Members may be added in later versions; none is removed."""
    document: dict[str, Any] = {}
    if report is not None:
        document = {
            "runs": report.runs,
            "seconds": round(report.seconds, 3),
            "faults": dict(sorted(report.faults.items())),
            "places": report.places,
            "killed_at": sorted(report.killed_at),
            "handlers": dict(sorted(report.handlers.items())),
            "sagas": dict(sorted(report.endings.items())),
        }
    if failure is None:
        return document | {"failure": None}
    return document | {
        "failure": {
            "error": f"{type(failure.error).__name__}: {failure.error}",
            "plan": str(failure.plan),
            "found_by": str(failure.found_by),
            "faults": [fault.in_words() for fault in failure.plan.faults],
            "needs_earlier_runs": failure.needs_earlier_runs,
            "story": failure.story,
            "replay": replay_command,
        }
    }
