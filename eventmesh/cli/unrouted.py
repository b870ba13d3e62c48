"""`eventmesh unrouted`: messages that no subscription takes, seen and deleted."""

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

from eventmesh.duration import seconds
from eventmesh.errors import UsageError
from eventmesh.printable import printable

if TYPE_CHECKING:  # imported when a command runs; see `eventmesh.cli`
    from eventmesh.transports.base import Subscription, Transport, Unrouted

app = typer.Typer(
    no_args_is_help=True,
    help="Messages that no subscription takes: kept for the first that does.",
)

Names = Annotated[
    list[str] | None,
    typer.Option("--message", help="Only messages of this name; may be repeated.", metavar="NAME"),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command("list")
def list_unrouted(names: Names = None, as_json: AsJson = False) -> None:
    """Count the messages that no subscription takes, by name.

    SQLite and Redis list all. RabbitMQ does not list its queues, so the
    messages that the services of this project publish or subscribe to are
    looked for, and those of --message. "foreign" are RabbitMQ's messages of
    names that no EventMesh publisher has used.
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
    names: Names = None,
    older_than: Annotated[
        str | None, typer.Option(help="Only messages older than this, such as 12h or 7d.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Delete messages that no subscription takes, for good.

    What a subscription takes is never deleted, and a subscription that is
    declared meanwhile gets what was not. The age is counted from when the
    broker got the message; on RabbitMQ from when the message says that it was
    made, and messages that say nothing have no age.
    For example: eventmesh unrouted purge --message bank.closed --older-than 7d
    """
    age = None if older_than is None else seconds(older_than)

    async def run() -> list[Unrouted]:
        async with _opened(names) as asked:
            found = await asked.found()
            _make_sure(found, older_than, yes)
            if names is None:
                found = _foreign_together(found)
            return [each for each in [await asked.purged(one, age) for one in found] if each.number]

    gone = asyncio.run(run())
    if as_json:
        shown = [{"message": each.message, "number": each.number} for each in gone]
        typer.echo(json.dumps(shown, indent=2))
        return
    for each in gone:
        typer.echo(f"{_name(each)}  {each.number}")
    typer.echo(f"{sum(each.number for each in gone)} unrouted message(s) purged")


@dataclass(frozen=True)
class _Asked:
    """The broker, and what of it is asked for: these names, or all that are known here."""

    transport: Transport
    subscriptions: Sequence[Subscription]
    known: frozenset[str]
    names: frozenset[str] | None

    async def found(self) -> Sequence[Unrouted]:
        wanted = self.known if self.names is None else self.names
        found = await self.transport.unrouted(wanted, self.subscriptions, thorough=True)
        return [each for each in found if self.names is None or each.message in self.names]

    async def purged(self, one: Unrouted, age: float | None) -> Unrouted:
        """What was deleted of these."""
        number = await self.transport.purge_unrouted(
            one.message, self.subscriptions, older_than=age
        )
        return replace(one, number=number)


@asynccontextmanager
async def _opened(names: Sequence[str] | None) -> AsyncIterator[_Asked]:
    """The broker, of which nothing is made, and all that this project knows of its messages."""
    from dataclasses import replace as changed

    from eventmesh.clock import SystemClock
    from eventmesh.runtime.declaring.discovery import load_services, service_targets
    from eventmesh.runtime.declaring.settings import load_settings
    from eventmesh.transports.factory import open_transport

    settings = load_settings()
    if settings.broker_url.startswith("memory:"):
        raise UsageError(
            "The broker memory:// is known to its own process only, so nobody else can count what "
            "it holds. Set EVENTMESH_BROKER_URL to the broker of the running mesh."
        )
    services = load_services([], Path.cwd()) if service_targets(Path.cwd()) else []
    handlers = [each for service in services for each in service.handlers.values()]
    subscriptions = [handler.subscription for handler in handlers]
    known = {name for each in subscriptions for name in each.messages}
    for service in services:
        known |= service.registry.published_names()
    options = changed(settings.transport_options, looking=True)
    async with open_transport(settings.broker_url, SystemClock(), options) as transport:
        asked = None if names is None else frozenset(names)
        yield _Asked(transport, subscriptions, frozenset(known), asked)


def _foreign_together(found: Sequence[Unrouted]) -> list[Unrouted]:
    """The same with all foreign messages under the empty name, by which all are deleted at once."""
    foreign = [each for each in found if each.foreign]
    others = [each for each in found if not each.foreign]
    return [*others, replace(foreign[0], message="")] if foreign else others


def _make_sure(found: Sequence[Unrouted], older_than: str | None, yes: bool) -> None:
    """Show what is about to be deleted, and ask."""
    if yes or not found:
        return
    if not sys.stdin.isatty():
        raise UsageError("Nothing was purged: nobody can confirm without a terminal, so add --yes.")
    for each in found:
        typer.echo(_line(each), err=True)
    which = "all of these" if older_than is None else f"those of them older than {older_than}"
    typer.confirm(f"Delete {which} for good?", abort=True, err=True)


def _line(unrouted: Unrouted) -> str:
    parts = [_name(unrouted), str(unrouted.number)]
    if unrouted.bytes is not None:
        parts.append(f"{unrouted.bytes} bytes")
    if unrouted.oldest_age is not None:
        parts.append(f"the oldest since {_span(unrouted.oldest_age)}")
    return "  ".join(parts)


def _name(unrouted: Unrouted) -> str:
    name = printable(" ".join(unrouted.message.split()))
    return f"{name} (foreign)".strip() if unrouted.foreign else name or "?"


def _span(age: float) -> str:
    """An age in its largest unit, rounded down: `eventmesh unrouted purge` takes it as written."""
    for unit, size in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if age >= size:
            return f"{int(age // size)}{unit}"
    return f"{int(age)}s"
