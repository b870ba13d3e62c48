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

    from eventmesh.runtime.declaring.handler import Handler
    from eventmesh.runtime.declaring.service import DeclaredService as Service
    from eventmesh.saga.concerned import ConcernedSaga
    from eventmesh.transports.base import DeadLetter, Subscription, Transport

app = App(help="Dead letters: messages that could not be handled.")

ServiceName = Annotated[str, typer.Argument(help="The service.", metavar="SERVICE")]
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

Letters = list[tuple["DeadLetter", dict[str, Any]]]
"""Dead letters, each with what is known of the saga that it concerns."""

_ALL = 1_000_000

_MOST_SAGAS = 10
"""How many sagas are named after one command."""


@app.command("list")
def list_letters(service: ServiceName, limit: Limit = 100, as_json: AsJson = False) -> None:
    """List the dead letters of a service."""
    letters = asyncio.run(_find(service, limit))
    if as_json:
        typer.echo(json.dumps([_as_dict(*letter) for letter in letters], indent=2))
        return
    for letter, _ in letters:
        typer.echo(
            printable(
                f"{letter.id}  {letter.died_at:%Y-%m-%d %H:%M:%S}  {letter.subscription}  "
                f"{letter.envelope.name or '?'}  {letter.reason}"
            )
        )
    typer.echo(f"{len(letters)} dead letter(s)")


@app.command()
def show(
    service: ServiceName,
    letter_id: Annotated[str, typer.Argument(help="Id of the dead letter.", metavar="ID")],
    as_json: AsJson = False,
) -> None:
    """Show one dead letter with its attributes, data and error."""
    found = [each for each in asyncio.run(_find(service, _ALL)) if each[0].id == letter_id]
    if not found:
        raise UsageError(
            f"{service} has no dead letter {letter_id}: see `eventmesh dlq list {service}`."
        )
    details = _as_dict(*found[0])
    if as_json:
        typer.echo(json.dumps(details, indent=2))
        return
    typer.echo(for_people(details))


@app.command()
def replay(service: ServiceName, ids: Ids = None, every: All = False) -> None:
    """Deliver dead letters to their subscriptions again, as new messages.

    First fix what the handler failed on; `eventmesh dlq show` shows it. A replayed
    message starts with all its attempts.

    The saga that sent a dead-lettered command was notified of that. If it has
    gone on without this step, a success now is a late answer, which it undoes.
    """
    from eventmesh.operations.dead_letters import after_replay

    _act(service, ids, every, "replayed", lambda t, s, found: t.replay(s, found), after_replay)


@app.command()
def discard(service: ServiceName, ids: Ids = None, every: All = False) -> None:
    """Delete dead letters permanently."""
    from eventmesh.operations.dead_letters import after_discard

    _act(
        service,
        ids,
        every,
        "discarded",
        lambda t, s, found: t.discard(s, found),
        after_discard,
        counts=True,
    )


def _act(
    service: str,
    ids: list[str] | None,
    every: bool,
    done: str,
    action: Callable[[Transport, Subscription, Sequence[str]], Awaitable[Sequence[str]]],
    consequence: Callable[[ConcernedSaga], str],
    *,
    counts: bool = False,
) -> None:
    if bool(ids) == every:
        raise UsageError("Name the ids of dead letters, or give --all; not both.")

    told: list[ConcernedSaga] = []

    async def run() -> int:
        from eventmesh.saga.concerned import concerned_saga

        wanted, count = set(ids or ()), 0
        async with _opened(service) as (transport, loaded):
            for handler in loaded.handlers.values():
                letters = await transport.dead_letters(handler.subscription, limit=_ALL)
                found = [letter for letter in letters if every or letter.id in wanted]
                wanted.difference_update(letter.id for letter in found)
                if found:
                    chosen = [letter.id for letter in found]
                    done_now = set(await action(transport, handler.subscription, chosen))
                    count += len(done_now)
                    if counts and handler.transactional:
                        gone = [letter for letter in found if letter.id in done_now]
                        await _count(loaded, handler, gone)
                    sagas = [
                        concerned_saga(letter.envelope, handler, loaded)
                        for letter in found
                        if letter.id in done_now
                    ]
                    told.extend(saga for saga in sagas if saga is not None)
        if wanted:
            raise UsageError(
                f"{service} has no dead letter {', '.join(sorted(wanted))}: see `eventmesh dlq "
                f"list {service}`. The others were {done}: {count} dead letter(s)."
                if count
                else f"{service} has no dead letter {', '.join(sorted(wanted))}, so nothing was "
                f"{done}: see `eventmesh dlq list {service}`."
            )
        return count

    try:
        typer.echo(f"{asyncio.run(run())} dead letter(s) {done}")
    finally:  # also when some of the ids are unknown
        for saga in told[:_MOST_SAGAS]:
            line = f"{consequence(saga)}: see `{saga.command_to_show}`"
            typer.echo(printable(line), err=True)
        if len(told) > _MOST_SAGAS:
            typer.echo(f"… and {len(told) - _MOST_SAGAS:,} more of sagas", err=True)


async def _count(service: Service, handler: Handler, letters: Sequence[DeadLetter]) -> None:
    """Count discarded dead letters, for `eventmesh audit`, in the service's database. They are gone
    whether it answers or not."""
    from eventmesh.errors import EventMeshError
    from eventmesh.operations.dead_letters import count_discarded
    from eventmesh.persistence.existing import existing

    try:
        url = service.settings.database_url(service.name)
        async with existing(url, service.name) as database:
            await count_discarded(database, handler.subscription.name, letters)
    except EventMeshError as error:
        line = f"Warning: not counted as discarded, so `eventmesh audit` misses them: {error}"
        typer.echo(printable(line), err=True)


async def _find(service: str, limit: int) -> Letters:
    async with _opened(service) as (transport, loaded):
        return [
            (letter, _saga_of(letter, handler, loaded))
            for handler in loaded.handlers.values()
            for letter in await transport.dead_letters(handler.subscription, limit=limit)
        ]


@asynccontextmanager
async def _opened(name: str) -> AsyncIterator[tuple[Transport, Service]]:
    from eventmesh.cli.environment import settings_of_command
    from eventmesh.clock import SystemClock
    from eventmesh.runtime.declaring.discovery import load_services
    from eventmesh.transports.factory import open_transport

    settings = settings_of_command()
    [service] = load_services([name], Path.cwd())
    service.configure(settings)
    subscriptions = [handler.subscription for handler in service.handlers.values()]
    async with open_transport(
        settings.broker_url, SystemClock(), settings.transport_options
    ) as transport:
        await transport.declare(subscriptions)
        yield transport, service


def _as_dict(letter: DeadLetter, saga: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": letter.id,
        "subscription": letter.subscription,
        "reason": letter.reason,
        "attempts": letter.attempts,
        "died_at": letter.died_at.isoformat(),
        **as_dict(letter.envelope),
        **saga,
        "error": letter.error,
    }


def _saga_of(letter: DeadLetter, handler: Handler, service: Service) -> dict[str, Any]:
    """The saga that a dead letter concerns, as one more detail of it; nothing where there is
    none."""
    from eventmesh.operations.dead_letters import effect_on
    from eventmesh.saga.concerned import concerned_saga

    saga = concerned_saga(letter.envelope, handler, service)
    if saga is None:
        return {}
    return {
        "saga": {
            "name": saga.name,
            "id": saga.id or None,
            "step": saga.step or None,
            "effect": effect_on(saga),
            "see": saga.command_to_show,
        }
    }
