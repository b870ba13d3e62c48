"""`eventmesh doctor`: checks the running mesh, and says what to do."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eventmesh.cli.terminal import console
from eventmesh.printable import printable

if TYPE_CHECKING:  # imported when the command runs; see `eventmesh.cli`
    from rich.text import Text

    from eventmesh.operations.doctor.verdict import Verdict

_ORDER = ("failure", "away", "warning", "skipped", "ok")
_STYLES = {
    "failure": "bold red",
    "away": "bold magenta",
    "warning": "yellow",
    "skipped": "dim",
    "ok": "green",
}


def doctor(
    every: Annotated[
        bool, typer.Option("--all", help="Also show the checks that found nothing.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check settings, servers, and what waits; say what is wrong, and the fix.

    All services of the project are checked, and every server that they use.
    Nothing is changed, and no message is taken from a queue.

    \b
    Each check ends as
      failure  messages are, or may be, lost or stuck: do what it says
      warning  worth a look
      away     could not be checked: a server did not answer
      skipped  could not be checked without a setting or a right
      ok       fine; shown with --all

    \b
    Exit codes:
      0  nothing was found
      1  there are failures or warnings
      2  a service or a setting cannot be loaded
      3  something could not be checked because it is away
    """
    from eventmesh.operations.doctor.verdict import exit_code

    found = asyncio.run(_examine())
    if as_json:
        typer.echo(json.dumps(as_document(found), indent=2))
    else:
        out = console()
        for line in lines(found, every=every):
            out.print(line)
    raise typer.Exit(exit_code(found))


async def _examine() -> list[Verdict]:
    from eventmesh.clock import SystemClock
    from eventmesh.operations.doctor.checks import examine
    from eventmesh.operations.doctor.measuring import measure
    from eventmesh.operations.reach import Reach
    from eventmesh.runtime.declaring.discovery import load_services, service_targets
    from eventmesh.runtime.declaring.settings import load_settings, unknown_variables

    services, settings = load_services([], Path.cwd()), load_settings()
    unknown = unknown_variables(settings, service_targets(Path.cwd()))
    async with Reach(services, settings, SystemClock()) as reach:
        return examine(await measure(reach, unknown))


def as_document(found: Sequence[Verdict]) -> dict[str, Any]:
    """The verdicts for programs. Members may be added in later versions; none is removed or
    renamed."""
    from dataclasses import asdict

    from eventmesh.operations.doctor.verdict import exit_code

    return {
        "exit_code": exit_code(found),
        "counts": dict.fromkeys(_ORDER, 0) | Counter(each.severity for each in found),
        "verdicts": [asdict(each) for each in found],
    }


def _count(number: int, severity: str) -> str:
    """Failures and warnings are counted as nouns; the other severities are adjectives."""
    plural = "s" if severity in ("failure", "warning") and number > 1 else ""
    return f"{number} {severity}{plural}"


def lines(found: Sequence[Verdict], *, every: bool = False) -> Iterator[Text]:
    """The verdicts for people, the worst first, and how many there are of each. What is said of
    several subjects is said once."""
    from rich.text import Text

    for severity in _ORDER if every else _ORDER[:-1]:
        subjects: dict[tuple[str, str, str], list[str]] = {}
        for each in found:
            if each.severity == severity:
                subjects.setdefault((each.check, each.says, each.fix), []).append(each.subject)
        for (check, says, fix), of in subjects.items():
            title = ", ".join([check, *of])
            yield Text.assemble(
                (f"{severity:<8}", _STYLES[severity]),
                (printable(title), "bold"),
                f": {printable(says)}",
            )
            if fix:
                yield Text(f"{'':<8}-> {printable(fix)}")
    counts = Counter(str(each.severity) for each in found)
    numbers = [_count(counts[severity], severity) for severity in _ORDER if counts[severity]]
    yield Text(f"{len(found)} checks: {', '.join(numbers)}")
