"""`eventmesh status`: what waits in the running mesh."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from eventmesh.cli.terminal import NARROWEST_NAME, console
from eventmesh.duration import span
from eventmesh.errors import Unreachable
from eventmesh.printable import printable

if TYPE_CHECKING:  # imported when the command runs; see `eventmesh.cli`
    from rich.console import Console, Group, RenderableType
    from rich.table import Table
    from rich.text import Text

    from eventmesh.clock import Clock
    from eventmesh.operations.reach import Reach
    from eventmesh.operations.status import MeshStatus, Unknown

Names = Annotated[
    list[str] | None, typer.Argument(help="Services; all if none is named.", metavar="SERVICE")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]

MOST_NAMED = 4
"""How many figures are named that are unknown for one reason."""


def status(
    services: Names = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Refresh until Ctrl-C; with --json, a line each time.")
    ] = False,
    interval: Annotated[
        float,
        typer.Option(
            "--interval", min=0.1, max=86_400, help="Seconds between refreshes.", metavar="SECONDS"
        ),
    ] = 2.0,
    as_json: AsJson = False,
) -> None:
    """Show what waits: subscriptions, outboxes and sagas of all services.

    Brokers and databases are asked, not workers, so this also works while all
    workers are down. No message is taken from a queue.

    \b
    The columns are:
      ready      to be delivered next, and the age of the oldest
      delayed    waits for a retry, or for the delay of its publisher; of an ordered
                 subscription, also what is held behind an earlier one of its key
      in flight  delivered to a worker, which has not settled it
      dead       dead letters: see `eventmesh dlq list`
      rate       messages a second that took effect in the last minute
      due        in the outbox, to be published next
      parked     waits for an operator: see `eventmesh outbox list --parked`
                 and `eventmesh saga list --status parked`
      overdue    sagas that had to time out more than a minute ago
      relays     processes that publish the outbox now

    "unknown" stands where a server cannot tell; the reason is below the table.

    Exit code 3 if a server did not answer: everything else is shown all the
    same. Exit code 2 for a mistake in a service or a setting.
    """
    from eventmesh.cli.environment import settings_of_command
    from eventmesh.clock import SystemClock
    from eventmesh.operations.reach import Reach
    from eventmesh.runtime.declaring.discovery import load_services

    loaded = load_services(services or [], Path.cwd())
    settings, clock = settings_of_command(), SystemClock()

    async def run() -> MeshStatus:
        from eventmesh.operations.status import mesh_status

        async with Reach(loaded, settings, clock) as reach:
            if watch:
                await _watch(reach, clock, interval, as_json)
            return await mesh_status(reach)

    try:
        found = asyncio.run(run())
    except KeyboardInterrupt:
        if watch:  # this is how it ends
            return
        raise
    if as_json:
        typer.echo(json.dumps(as_document(found), indent=2))
    else:
        console().print(tables(found))
    if found.problems:
        raise typer.Exit(Unreachable.exit_code)


async def _watch(reach: Reach, clock: Clock, interval: float, as_json: bool) -> NoReturn:
    """Show the status again and again, until cancelled."""
    from rich.live import Live

    from eventmesh.operations.status import mesh_status

    out, task = console(), asyncio.current_task()

    async def measured() -> MeshStatus:
        found = await mesh_status(reach)
        if task is not None and task.cancelling():  # a driver may have kept it to itself
            raise asyncio.CancelledError
        return found

    if as_json or not out.is_terminal:
        while True:
            found = await measured()
            if as_json:
                typer.echo(json.dumps(as_document(found)))
            else:
                out.print(tables(found))
            await clock.sleep(interval)
    with Live(console=out, auto_refresh=False, screen=True) as live:
        while True:
            live.update(screen(await measured(), out), refresh=True)
            await clock.sleep(interval)


def as_document(found: MeshStatus) -> dict[str, Any]:
    """The answer for programs. A figure that is unknown is null, and `unknown` has the reason by
    the figure's name. Members may be added in later versions; none is removed or renamed."""
    from dataclasses import asdict

    document = asdict(found)
    for each in document["subscriptions"]:
        if each["paused"] is not None:
            each["paused"]["at"] = each["paused"]["at"].isoformat()
    return {
        **document,
        "taken_at": found.taken_at.isoformat(),
        "problems": list(found.problems),
    }


def screen(found: MeshStatus, out: Console) -> RenderableType:
    """The answer for people, as much of it as the terminal has room for. Why figures are unknown
    comes first, as it may be that a server does not answer."""
    from rich.console import Group
    from rich.segment import SegmentLines
    from rich.text import Text

    whole = tables(found, notes_first=True)
    lines = out.render_lines(whole, pad=False)
    if len(lines) <= out.height:
        return whole
    shown = lines[: out.height - 1]
    more = len(lines) - len(shown)
    return Group(
        SegmentLines(shown, new_lines=True),
        Text(f"… {more:,} more lines: make the window higher, or name services", style="yellow"),
    )


def tables(found: MeshStatus, *, notes_first: bool = False) -> Group:
    """The answer for people: tables, and why figures are unknown, below them or first."""
    from rich.console import Group

    notes = Notes()
    shown: list[RenderableType] = [_broker_line(found, notes)]
    shown += [_subscriptions(found, notes), _outboxes(found, notes)]
    if found.sagas:
        shown.append(_sagas(found, notes))
    reasons = list(notes.lines())
    if notes_first and reasons:
        shown.insert(1, Group(*reasons))
    parts = [part for each in shown for part in (each, "")]
    return Group(*parts[:-1]) if notes_first else Group(*parts, *reasons)


class Notes:
    """Why figures are unknown: each reason once, with the figures and rows that it concerns."""

    def __init__(self) -> None:
        self._of: dict[str, tuple[dict[str, None], dict[str, None]]] = {}

    def add(self, why: str, row: str, figure: str = "") -> None:
        figures, rows = self._of.setdefault(why, ({}, {}))
        if figure:
            figures[figure.replace("_", " ")] = None
        rows[row] = None

    def cell(self, shown: str | None, row: str, figure: str, unknown: Mapping[str, str]) -> Text:
        """The figure as it is shown; "unknown" if there is a reason why it is None, which is noted;
        a dash if there is none."""
        from rich.text import Text

        if shown is not None:
            return Text(shown)
        if figure not in unknown:
            return Text("-")
        self.add(unknown[figure], row, figure)
        return Text("unknown", style="yellow")

    def lines(self) -> Iterator[Text]:
        from rich.text import Text

        for why, (figures, rows) in self._of.items():
            named = list(rows)[:MOST_NAMED]
            more = len(rows) - len(named)
            of = ", ".join(named) + (f" and {more:,} more" if more else "")
            what = f"unknown: {', '.join(figures)} of {of}" if figures else of
            yield Text.assemble((printable(what), "yellow"), f": {printable(why)}")


def _broker_line(found: MeshStatus, notes: Notes) -> Text:
    from rich.text import Text

    broker = found.broker
    words = [f"{found.taken_at:%Y-%m-%d %H:%M:%S %Z}", f"broker {broker.url}"]
    if broker.version is not None:
        words.append(f"version {broker.version}")
    if broker.delayed_together is not None:
        words.append(f"{broker.delayed_together:,} delayed retries of all subscriptions")
    if broker.problem is not None:
        notes.add(broker.problem, "broker")
    return Text(printable("  ".join(words)))


def _subscriptions(found: MeshStatus, notes: Notes) -> Table:
    columns = ("ready", "delayed", "in flight", "dead", "oldest", "rate/s", "consumers")
    table = _table("subscription", *columns)
    for each in found.subscriptions:
        name, unknown = each.name, each.unknown

        def count(
            figure: str, value: int | None, name: str = name, unknown: Unknown = unknown
        ) -> Text:
            shown = None if value is None else f"{value:,}"
            return notes.cell(shown, name, figure, unknown)

        table.add_row(
            _line(name),
            count("ready", each.ready),
            count("delayed", each.delayed),
            count("in_flight", each.in_flight),
            _alarming(count("dead", each.dead), each.dead),
            notes.cell(_age(each.oldest_age), name, "oldest_age", unknown),
            notes.cell(None if each.rate is None else f"{each.rate:,.1f}", name, "rate", unknown),
            count("consumers", each.consumers),
        )
        if each.declared is False:
            notes.add("not on the broker, because no worker has declared it yet", name)
        if each.paused is not None:
            notes.add(str(each.paused), name)
        if each.held:
            notes.add(f"{each.held:,} of the delayed ones are held behind one of their key", name)
    return table


def _outboxes(found: MeshStatus, notes: Notes) -> Table:
    table = _table("outbox", "due", "delayed", "parked", "oldest", "relays")
    for each in found.databases:
        name = ", ".join(each.services)
        if each.outbox is None:
            unknown = {"outbox": each.problem or ""}
            cell = notes.cell(None, name, "outbox", unknown)
            table.add_row(_line(name), *[cell] * 5)
            continue
        outbox = each.outbox
        more = "+" if outbox.is_partial else ""
        table.add_row(
            _line(name),
            f"{outbox.due:,}{more}",
            f"{outbox.delayed:,}{more}",
            _alarming(_line(f"{outbox.parked:,}"), outbox.parked),
            _age(outbox.oldest_age) or "-",
            f"{outbox.relays:,}",
        )
    return table


def _sagas(found: MeshStatus, notes: Notes) -> Table:
    table = _table("saga", "running", "undoing", "parked", "overdue", "oldest")
    for each in found.sagas:
        unknown = {} if each.problem is None else {"sagas": each.problem}
        counts = [
            notes.cell(None if value is None else f"{value:,}", each.service, "sagas", unknown)
            for value in (each.running, each.undoing, each.parked, each.overdue)
        ]
        counts[2:] = [
            _alarming(cell, value)
            for cell, value in zip(counts[2:], (each.parked, each.overdue), strict=True)
        ]
        table.add_row(
            _line(each.name),
            *counts,
            notes.cell(_age(each.oldest_age), each.service, "sagas", unknown),
        )
    return table


def _table(first: str, *columns: str) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    # A terminal of 80 columns has room for all others: these are as wide as their figures, and the
    # names are folded.
    table.add_column(first, overflow="fold", min_width=NARROWEST_NAME)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _line(text: str) -> Text:
    from rich.text import Text

    return Text(printable(text))


def _alarming(cell: Text, number: int | None) -> Text:
    """Red, if there is any."""
    if number:
        cell.stylize("bold red")
    return cell


def _age(seconds: float | None) -> str | None:
    return None if seconds is None else span(seconds)
