"""`eventmesh audit`: the balance sheet of all messages."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eventmesh.cli.actions import log_actions
from eventmesh.cli.terminal import NARROWEST_NAME, console
from eventmesh.errors import Unreachable, UsageError
from eventmesh.printable import printable

if TYPE_CHECKING:  # imported when the command runs; see `eventmesh.cli`
    from rich.console import Group

    from eventmesh.operations.audit import BalanceSheet, Difference

METRIC = "eventmesh_unaccounted_messages"

_SHOWN_IF_ANY = (
    "outbox",
    "parked",
    "waiting",
    "delayed",
    "in flight",
    "dead",
    "discarded",
    "accepted",
)
"""Columns that are left out while they have no figure but 0, so that the table fits a terminal."""

LABELS = ("service", "equation", "where", "message")


def audit(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    as_metric: Annotated[
        bool, typer.Option("--prometheus", help="Print a metric, in Prometheus's text format.")
    ] = False,
    accepted: Annotated[
        str | None,
        typer.Option(
            "--accept",
            help="Count the differences of now as explained, for this reason, which the log of "
            "actions keeps.",
            metavar="REASON",
        ),
    ] = None,
) -> None:
    """Check that no message is missing: what was sent must be somewhere.

    For every message and every subscription that takes it: sent = handled +
    waiting + delayed + in flight + dead + discarded + parked. Brokers and
    databases are asked, not workers; everything may go on meanwhile. RabbitMQ
    shows messages only by delivering them: they are received and given
    back at once, which counts as a delivery of each, and workers get nothing
    new for a moment.

    Exit code 1 if something is missing or too much, with where, how many and
    why that may be; 3 if a server did not answer. What only one sheet shows
    while messages move is not a difference.

    \b
    The columns, of which those that are 0 throughout are left out, are:
      sent       by transactions of the publishing service
      handled    took effect, each once
      outbox     not yet on the broker; parked is beside it
      discarded  dead letters that an operator deleted, and parked messages
                 that an operator skipped
      accepted   differences that an operator has explained
      missing    sent, and nowhere
    """
    from eventmesh.cli.environment import settings_of_command
    from eventmesh.clock import SystemClock
    from eventmesh.operations.reach import Reach
    from eventmesh.runtime.declaring.discovery import load_services

    if as_json and as_metric:
        raise UsageError("Choose --json or --prometheus, not both.")
    if accepted is not None and not accepted.strip():
        raise UsageError("--accept needs a reason.")
    loaded = load_services([], Path.cwd())
    settings, clock = settings_of_command(), SystemClock()
    if accepted is not None:
        log_actions(settings, is_recorded=True)

    async def run() -> BalanceSheet:
        from eventmesh.operations import audit as auditing
        from eventmesh.operations.action_log import operator_of_machine

        async with Reach(loaded, settings, clock) as reach:
            sheet = await auditing.audit(reach)
            if accepted is None or not (sheet.differences or sheet.late):
                return sheet
            if sheet.problems:
                raise Unreachable(f"Nothing is accepted, as not all answered. {sheet.problems[0]}")
            for each in (*sheet.differences, *sheet.late):
                line = f"accepted, because {accepted}: {auditing.sentence(each)}"
                typer.echo(printable(line), err=True)
            found = [*sheet.differences, *sheet.late]
            await auditing.accept(reach, found, operator_of_machine(), accepted.strip())
            return await auditing.audit(reach)

    sheet = asyncio.run(run())
    if as_json:
        typer.echo(json.dumps(as_document(sheet), indent=2))
    elif as_metric:
        typer.echo("\n".join(metric(sheet)))
    else:
        console().print(table(sheet))
    if sheet.problems:
        raise typer.Exit(Unreachable.exit_code)
    if sheet.differences:
        raise typer.Exit(1)


def as_document(sheet: BalanceSheet) -> dict[str, Any]:
    """The sheet for programs. Members may be added in later versions; none is removed."""
    from dataclasses import asdict

    lines = {
        part: [asdict(line) | {"missing": line.missing} for line in getattr(sheet, part)]
        for part in ("outboxes", "deliveries", "inboxes")
    }
    return {
        "taken_at": sheet.taken_at.isoformat(),
        **lines,
        "differences": [_difference_document(each) for each in sheet.differences],
        "late": [_difference_document(each) for each in sheet.late],
        "unaccounted": sheet.unaccounted,
        "notes": list(sheet.notes),
        "problems": list(sheet.problems),
    }


def _difference_document(difference: Difference) -> dict[str, Any]:
    return {
        "equation": difference.equation,
        "where": difference.where,
        "message": difference.name,
        "source": difference.source,
        "missing": difference.missing,
        "suspects": list(difference.suspects),
    }


def metric(sheet: BalanceSheet) -> Iterator[str]:
    """The number of messages that are missing, or too many, by service, where and message. Nothing
    is 0 that could not be measured: then there is no sample."""
    yield f"# HELP {METRIC} Messages that are missing, or too many, on the last balance sheet."
    yield f"# TYPE {METRIC} gauge"
    if sheet.problems:
        return
    for each in sheet.differences:
        values = (each.service, each.equation, each.where, each.name)
        yield f"{METRIC}{{{_labels(values)}}} {abs(each.missing)}"
    if not sheet.differences:
        yield f"{METRIC}{{{_labels([''] * len(LABELS))}}} 0"


def _labels(values: Iterable[str]) -> str:
    return ",".join(
        f'{name}="{_escaped(value)}"' for name, value in zip(LABELS, values, strict=True)
    )


def _escaped(text: str) -> str:
    return printable(text).replace("\\", "\\\\").replace('"', '\\"')


def table(sheet: BalanceSheet) -> Group:
    """The sheet for people."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from eventmesh.operations.audit import sentence

    stored = {(line.source, line.name): line for line in sheet.outboxes}
    rows: list[tuple[str, str, dict[str, int]]] = []
    for line in sheet.deliveries:
        outbox = stored[line.source, line.name]
        figures = {
            "sent": outbox.stored,
            "handled": line.handled,
            "outbox": outbox.waiting,
            "parked": outbox.parked,
            "waiting": line.ready,
            "delayed": line.delayed,
            "in flight": line.in_flight,
            "dead": line.dead,
            "discarded": line.discarded + outbox.skipped,
            "accepted": line.accepted + outbox.accepted,
            "missing": line.missing + outbox.missing,
        }
        rows.append((line.subscription, line.name, figures))
    shown = Table(box=None, pad_edge=False, header_style="bold")
    shown.add_column("subscription", overflow="fold", min_width=NARROWEST_NAME)
    shown.add_column("message", overflow="fold", min_width=NARROWEST_NAME)
    columns = [
        column
        for column in ("sent", "handled", *_SHOWN_IF_ANY, "missing")
        if column not in _SHOWN_IF_ANY or any(figures[column] for _, _, figures in rows)
    ]
    for column in columns:
        shown.add_column(column, justify="right", overflow="fold")
    for subscription, name, figures in rows:
        cells = [Text(f"{figures[column]:,}") for column in columns]
        if figures["missing"]:
            cells[-1].stylize("bold red")
        shown.add_row(Text(printable(subscription)), Text(printable(name)), *cells)
    below: list[Text] = []
    for each in sheet.differences:
        below.append(Text(printable(sentence(each)), style="red"))
        below += [Text(printable(f"  perhaps: {suspect}")) for suspect in each.suspects]
    for each in sheet.late:
        below.append(
            Text(
                printable(
                    f"{each.where} was declared after the first {each.name} were sent, and did not "
                    f"get {each.missing:,} of them: its balance begins with `eventmesh audit "
                    f"--accept 'declared later'`"
                )
            )
        )
    below += [Text(printable(f"note: {note}")) for note in (*sheet.problems, *sheet.notes)]
    if not sheet.problems:
        balanced = "balanced: nothing is missing" if not sheet.differences else "NOT balanced"
        below.append(Text(balanced, style="bold"))
    return Group(shown, "", *below)
