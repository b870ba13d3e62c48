"""`eventmesh unrouted`: counts and deletes messages that no subscription receives.

An unrouted message is on the broker and in no database. But its name says whose it is:
`branch.opened` belongs to the service `branch`, and so does the record of its deletion in the log
of actions. A message whose owner has no database here, because it belongs to another project or to
a program without EventMesh, has that record in the command's log.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from eventmesh.cli.actions import SERVER_TIMEOUT, Reason, check_reason, log_actions
from eventmesh.cli.app import App
from eventmesh.duration import seconds
from eventmesh.errors import EventMeshError, UsageError
from eventmesh.printable import printable

if TYPE_CHECKING:  # imported when a command runs; see `eventmesh.cli`
    from eventmesh.operations.reach import Reach
    from eventmesh.transports.base import Subscription, Transport, Unrouted

app = App(help="Messages without a subscription, kept for the first one.")

Names = Annotated[
    list[str] | None,
    typer.Option("--message", help="Only messages of this name; can be repeated.", metavar="NAME"),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command("list")
def list_unrouted(names: Names = None, as_json: AsJson = False) -> None:
    """Count the messages without a subscription, by name.

    SQLite and Redis list all of them. RabbitMQ does not list its queues, so
    only names that this project's services publish or subscribe to are looked
    up, and those of --message. "(foreign)" marks messages on RabbitMQ whose
    names no EventMesh publisher has used.
    """

    async def run() -> Sequence[Unrouted]:
        async with _opened(names) as asked:
            return await asked.found()

    found = asyncio.run(run())
    if as_json:
        typer.echo(json.dumps([asdict(each) for each in found], indent=2))
        return
    for each in found:
        typer.echo(_line(each))
    typer.echo(f"{sum(each.number for each in found)} unrouted message(s)")


@app.command()
def purge(
    reason: Reason,
    names: Names = None,
    older_than: Annotated[
        str | None,
        typer.Option(help="Only messages older than this, such as 12h or 7d.", metavar="AGE"),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
    as_json: AsJson = False,
) -> None:
    """Permanently delete messages without a subscription.

    Messages of a subscription are never deleted, and a subscription declared
    meanwhile receives what is left. The age counts from when the broker stored
    the message. On RabbitMQ it counts from the message's own `time`, and a
    message without one has no age.

    \b
    Example:
      eventmesh unrouted purge --message bank.closed --reason "no reader"
    """
    age = None if older_than is None else seconds(older_than)
    check_reason(reason)
    gone: list[Unrouted] = []

    async def run() -> None:
        async with _opened(names) as asked:
            found = await asked.found()
            _confirm(found, older_than, yes)
            for each in found if names is not None else _foreign_together(found):
                purged = await asked.purged(each, age, older_than, reason)
                if purged.number:
                    gone.append(purged)

    try:
        asyncio.run(run())
    except EventMeshError:
        if gone:
            _tell_purged(gone, as_json)
        raise
    _tell_purged(gone, as_json)


def _tell_purged(gone: Sequence[Unrouted], as_json: bool) -> None:
    if as_json:
        shown = [{"message": each.message, "number": each.number} for each in gone]
        typer.echo(json.dumps(shown, indent=2))
        return
    for each in gone:
        typer.echo(f"{_name(each)}  {each.number}")
    typer.echo(f"{sum(each.number for each in gone)} unrouted message(s) purged")


@dataclass(frozen=True)
class _Selection:
    """The broker, and the selected message names: those of --message, or all known ones."""

    reach: Reach
    transport: Transport
    subscriptions: Sequence[Subscription]
    known: frozenset[str]
    names: frozenset[str] | None

    async def found(self) -> Sequence[Unrouted]:
        wanted = self.known if self.names is None else self.names
        found = await self.transport.unrouted(wanted, self.subscriptions, thorough=True)
        return [each for each in found if self.names is None or each.message in self.names]

    async def purged(
        self, one: Unrouted, age: float | None, older_than: str | None, reason: str
    ) -> Unrouted:
        """Delete these messages, which is recorded; returns how many were deleted."""
        from eventmesh.operations.action_log import Action, operator_of_machine, recorded

        action = Action(
            service=one.message.partition(".")[0],
            who=operator_of_machine(),
            what="purge unrouted",
            subject=_name(one),
            reason=reason,
            details={} if older_than is None else {"older_than": older_than},
        )
        is_recorded = self.reach.place_of(action.service) is not None
        log_actions(self.reach.settings, is_recorded=is_recorded)
        async with recorded(self.reach, action) as recording:
            number = await self.transport.purge_unrouted(
                one.message, self.subscriptions, older_than=age
            )
            recording.outcome = f"{number:,} purged"
        return replace(one, number=number)


@asynccontextmanager
async def _opened(names: Sequence[str] | None) -> AsyncIterator[_Selection]:
    """Connect without declaring anything, and collect the names that this project knows."""
    from dataclasses import replace as changed

    from eventmesh.cli.environment import settings_of_command
    from eventmesh.clock import SystemClock
    from eventmesh.operations.reach import Reach
    from eventmesh.runtime.declaring.discovery import load_services, service_targets
    from eventmesh.transports.factory import open_transport

    settings = settings_of_command()
    if settings.broker_url.startswith("memory:"):
        raise UsageError(
            "The broker memory:// exists only inside one process, so its messages cannot be "
            "counted from here. Set EVENTMESH_BROKER_URL to the broker of the running services."
        )
    services = load_services([], Path.cwd()) if service_targets(Path.cwd()) else []
    handlers = [each for service in services for each in service.handlers.values()]
    subscriptions = [handler.subscription for handler in handlers]
    known = {name for each in subscriptions for name in each.messages}
    for service in services:
        known |= service.registry.published_names()
    options = changed(settings.transport_options, create_missing=False)
    clock = SystemClock()
    async with (
        open_transport(settings.broker_url, clock, options) as transport,
        Reach(services, settings, clock, answer_timeout=SERVER_TIMEOUT) as reach,
    ):
        asked = None if names is None else frozenset(names)
        yield _Selection(reach, transport, subscriptions, frozenset(known), asked)


def _foreign_together(found: Sequence[Unrouted]) -> list[Unrouted]:
    """Combine all foreign messages under the empty name, by which they are deleted at once."""
    foreign = [each for each in found if each.foreign]
    others = [each for each in found if not each.foreign]
    return [*others, replace(foreign[0], message="")] if foreign else others


def _confirm(found: Sequence[Unrouted], older_than: str | None, yes: bool) -> None:
    """Show what is about to be deleted, and ask for confirmation."""
    if yes or not found:
        return
    if not sys.stdin.isatty():
        raise UsageError(
            "Nothing was purged: there is no terminal to ask for confirmation, so add --yes."
        )
    for each in found:
        typer.echo(_line(each), err=True)
    which = "all of these" if older_than is None else f"those of them older than {older_than}"
    typer.confirm(f"Permanently delete {which}?", abort=True, err=True)


def _line(unrouted: Unrouted) -> str:
    parts = [_name(unrouted), str(unrouted.number)]
    if unrouted.bytes is not None:
        parts.append(f"{unrouted.bytes} bytes")
    if unrouted.oldest_age is not None:
        parts.append(f"oldest {_span(unrouted.oldest_age)}")
    return "  ".join(parts)


def _name(unrouted: Unrouted) -> str:
    name = printable(" ".join(unrouted.message.split()))
    return f"{name} (foreign)".strip() if unrouted.foreign else name or "?"


def _span(age: float) -> str:
    """An age in its largest unit, rounded down, in a form that --older-than accepts."""
    for unit, size in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if age >= size:
            return f"{int(age // size)}{unit}"
    return f"{int(age)}s"
