"""`eventmesh dlq`: lists, shows, replays and discards dead letters."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eventmesh.cli.app import App
from eventmesh.cli.envelopes import as_dict, for_people
from eventmesh.errors import UsageError
from eventmesh.printable import printable

if TYPE_CHECKING:  # imported when a command runs; see `eventmesh.cli`
    from collections.abc import Sequence

    from eventmesh.transports.base import DeadLetter, Subscription, Transport

app = App(help="Dead letters: messages that could not be handled.")

Name = Annotated[str, typer.Argument(help="The service.", metavar="SERVICE")]
Ids = Annotated[list[str] | None, typer.Argument(help="Ids of dead letters.", metavar="ID")]
All = Annotated[bool, typer.Option("--all", help="All dead letters of the service.")]
Limit = Annotated[
    int,
    typer.Option(
        min=1,
        max=1_000_000,
        help="List at most N dead letters of each subscription.",
        metavar="N",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]

Letters = list[tuple["Subscription", "DeadLetter"]]

_ALL = 1_000_000


@app.command("list")
def list_letters(service: Name, limit: Limit = 100, as_json: AsJson = False) -> None:
    """List the dead letters of a service."""
    letters = asyncio.run(_find(service, limit))
    if as_json:
        typer.echo(json.dumps([_as_dict(letter) for _, letter in letters], indent=2))
        return
    for _, letter in letters:
        typer.echo(
            printable(
                f"{letter.id}  {letter.died_at:%Y-%m-%d %H:%M:%S}  {letter.subscription}  "
                f"{letter.envelope.name or '?'}  {letter.reason}"
            )
        )
    typer.echo(f"{len(letters)} dead letter(s)")


@app.command()
def show(
    service: Name,
    letter_id: Annotated[str, typer.Argument(help="Id of the dead letter.", metavar="ID")],
    as_json: AsJson = False,
) -> None:
    """Show one dead letter with its attributes, data and error."""
    found = [letter for _, letter in asyncio.run(_find(service, _ALL)) if letter.id == letter_id]
    if not found:
        raise UsageError(
            f"{service} has no dead letter {letter_id}: see `eventmesh dlq list {service}`."
        )
    details = _as_dict(found[0])
    if as_json:
        typer.echo(json.dumps(details, indent=2))
        return
    typer.echo(for_people(details))


@app.command()
def replay(service: Name, ids: Ids = None, every: All = False) -> None:
    """Deliver dead letters to their subscriptions again, as new messages.

    First fix what the handler failed on; `eventmesh dlq show` shows it. A replayed
    message starts with all its attempts.
    """
    _act(service, ids, every, "replayed", lambda t, s, found: t.replay(s, found))


@app.command()
def discard(service: Name, ids: Ids = None, every: All = False) -> None:
    """Delete dead letters permanently."""
    _act(service, ids, every, "discarded", lambda t, s, found: t.discard(s, found))


def _act(
    service: str,
    ids: list[str] | None,
    every: bool,
    done: str,
    action: Callable[[Transport, Subscription, Sequence[str]], Awaitable[Sequence[str]]],
) -> None:
    if bool(ids) == every:
        raise UsageError("Name the ids of dead letters, or give --all; not both.")

    async def run() -> int:
        wanted, count = set(ids or ()), 0
        async with _opened(service) as (transport, subscriptions):
            for subscription in subscriptions:
                letters = await transport.dead_letters(subscription, limit=_ALL)
                found = [letter.id for letter in letters if every or letter.id in wanted]
                wanted.difference_update(found)
                if found:
                    count += len(await action(transport, subscription, found))
        if wanted:
            raise UsageError(
                f"{service} has no dead letter {', '.join(sorted(wanted))}: see `eventmesh dlq "
                f"list {service}`. The others were {done}: {count} dead letter(s)."
                if count
                else f"{service} has no dead letter {', '.join(sorted(wanted))}, so nothing was "
                f"{done}: see `eventmesh dlq list {service}`."
            )
        return count

    typer.echo(f"{asyncio.run(run())} dead letter(s) {done}")


async def _find(service: str, limit: int) -> Letters:
    async with _opened(service) as (transport, subscriptions):
        return [
            (subscription, letter)
            for subscription in subscriptions
            for letter in await transport.dead_letters(subscription, limit=limit)
        ]


@asynccontextmanager
async def _opened(name: str) -> AsyncIterator[tuple[Transport, list[Subscription]]]:
    from eventmesh.cli.environment import settings_of_command
    from eventmesh.clock import SystemClock
    from eventmesh.runtime.declaring.discovery import load_services
    from eventmesh.transports.factory import open_transport

    settings = settings_of_command()
    [service] = load_services([name], Path.cwd())
    subscriptions = [handler.subscription for handler in service.handlers.values()]
    async with open_transport(
        settings.broker_url, SystemClock(), settings.transport_options
    ) as transport:
        await transport.declare(subscriptions)
        yield transport, subscriptions


def _as_dict(letter: DeadLetter) -> dict[str, Any]:
    return {
        "id": letter.id,
        "subscription": letter.subscription,
        "reason": letter.reason,
        "attempts": letter.attempts,
        "died_at": letter.died_at.isoformat(),
        **as_dict(letter.envelope),
        "error": letter.error,
    }
