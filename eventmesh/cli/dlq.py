"""`eventmesh dlq`: lists, shows, replays and discards dead letters."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eventmesh.cli.actions import Reason, check_reason, reached
from eventmesh.cli.app import App
from eventmesh.cli.envelopes import as_dict, for_people
from eventmesh.cli.terminal import beginning
from eventmesh.errors import UsageError
from eventmesh.printable import printable

if TYPE_CHECKING:  # imported when a command runs; see `eventmesh.cli`
    from collections.abc import Sequence

    from eventmesh.operations.dead_letters import Deed
    from eventmesh.operations.reach import Reach
    from eventmesh.runtime.declaring.handler import Handler
    from eventmesh.runtime.declaring.service import DeclaredService as Service
    from eventmesh.saga.concerned import ConcernedSaga
    from eventmesh.transports.base import DeadLetter

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


@dataclass(frozen=True)
class Listed:
    """Dead letters, each with what is known of the saga that it concerns; `cut` are the
    subscriptions that have more."""

    letters: list[tuple[DeadLetter, dict[str, Any]]]
    cut: list[str]


_MOST_SAGAS = 10
"""How many sagas are named after one command."""


_OF_A_MESSAGE = "For the id of a message, `eventmesh why ID` names its dead letters."


@app.command("list")
def list_letters(service: ServiceName, limit: Limit = 100, as_json: AsJson = False) -> None:
    """List the dead letters of a service, the oldest of each subscription.

    Of a long reason, the list shows the beginning; `eventmesh dlq show` shows all.
    A list also ends once the data of a subscription's dead letters reach 64 MiB.
    `eventmesh status` counts all.
    """
    found = asyncio.run(_find(service, limit))
    letters = found.letters
    if found.cut:
        typer.echo(
            f"There are more dead letters of {', '.join(found.cut)}: only the oldest are listed. "
            f"See `eventmesh dlq list --help`.",
            err=True,
        )
    if as_json:
        typer.echo(json.dumps([_as_dict(*letter) for letter in letters], indent=2))
        return
    for letter, _ in letters:
        typer.echo(
            printable(
                f"{letter.id}  {letter.died_at:%Y-%m-%d %H:%M:%S}  {letter.subscription}  "
                f"{letter.envelope.name or '?'}  {beginning(letter.reason)}"
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
    found = asyncio.run(_find(service, 1, only=[letter_id])).letters
    if not found:
        raise UsageError(
            f"{service} has no dead letter {letter_id}: see `eventmesh dlq list {service}`. "
            f"{_OF_A_MESSAGE}"
        )
    details = _as_dict(*found[0])
    if as_json:
        typer.echo(json.dumps(details, indent=2))
        return
    typer.echo(for_people(details))


@app.command()
def replay(service: ServiceName, reason: Reason, ids: Ids = None, every: All = False) -> None:
    """Deliver dead letters to their subscriptions again, as new messages.

    First fix what the handler failed on; `eventmesh dlq show` shows it. A replayed
    message starts with all its attempts.

    The saga that sent a dead-lettered command was notified of that. If it has
    gone on without this step, a success now is a late answer, which it undoes;
    where nothing undoes the step, as for a pivot, the saga is parked.

    \b
    Example:
      eventmesh dlq replay bank --all --reason "the rates are there"
    """
    _act(service, ids, every, "replay", reason)


@app.command()
def discard(service: ServiceName, reason: Reason, ids: Ids = None, every: All = False) -> None:
    """Delete dead letters permanently.

    \b
    Example:
      eventmesh dlq discard bank ID --reason "was sent by a test"
    """
    _act(service, ids, every, "discard", reason)


@dataclass
class _Done:
    """What a command has done so far: how many dead letters, and which sagas they concern.
    `unknown` are the ids that no dead letter had yet."""

    unknown: set[str]
    number: int = 0
    sagas: list[ConcernedSaga] = field(default_factory=list)


def _act(service: str, ids: list[str] | None, every: bool, deed: Deed, reason: str) -> None:
    from eventmesh.operations.dead_letters import after_discard, after_replay

    if bool(ids) == every:
        raise UsageError(
            "Name the ids of dead letters or give --all, not both."
            if every
            else f"Name the ids of dead letters, as `eventmesh dlq list {service}` shows them, or "
            f"give --all."
        )
    check_reason(reason)
    done = _Done(set(ids or ()))

    async def run() -> None:
        async with reached(service) as (reach, loaded):
            for handler in loaded.handlers.values():
                await _act_on(reach, loaded, handler, ids, deed, reason, done)

    past = "replayed" if deed == "replay" else "discarded"
    consequence = after_replay if deed == "replay" else after_discard
    try:
        asyncio.run(run())
        if done.unknown:
            raise UsageError(
                f"{service} has no dead letter {', '.join(sorted(done.unknown))}: see `eventmesh "
                f"dlq list {service}`. {_OF_A_MESSAGE} The others were {past}: {done.number} dead "
                f"letter(s)."
                if done.number
                else f"{service} has no dead letter {', '.join(sorted(done.unknown))}, so nothing "
                f"was {past}: see `eventmesh dlq list {service}`. {_OF_A_MESSAGE}"
            )
        typer.echo(f"{done.number} dead letter(s) {past}")
    finally:  # also when some of the ids are unknown
        for saga in done.sagas[:_MOST_SAGAS]:
            line = f"{consequence(saga)}: see `{saga.command_to_show}`"
            typer.echo(printable(line), err=True)
        if len(done.sagas) > _MOST_SAGAS:
            typer.echo(f"… and {len(done.sagas) - _MOST_SAGAS:,} more of sagas", err=True)


async def _act_on(
    reach: Reach,
    service: Service,
    handler: Handler,
    ids: Sequence[str] | None,
    deed: Deed,
    reason: str,
    done: _Done,
) -> None:
    """Act on those of one subscription; recorded if there are any."""
    from eventmesh.operations.action_log import operator_of_machine, recorded
    from eventmesh.operations.dead_letters import (
        action_on_letters,
        choose_letters,
        discard_letters,
        replay_letters,
    )
    from eventmesh.saga.concerned import concerned_saga

    batches = choose_letters(reach, handler.subscription, ids)
    letters = await anext(batches, None)
    if letters is None:
        return
    chosen = None if ids is None else [letter.id for letter in letters]
    who, before, asked = operator_of_machine(), done.number, 0
    action = action_on_letters(handler.subscription.name, deed, who, reason, chosen)
    async with recorded(reach, action) as recording:
        while letters is not None:
            found = [letter.id for letter in letters]
            done.unknown.difference_update(found)
            if deed == "replay":
                gone = set(await replay_letters(reach, handler, found))
            else:
                gone = set(await discard_letters(reach, handler, letters))
            asked, done.number = asked + len(found), done.number + len(gone)
            sagas = [
                concerned_saga(letter.envelope, handler, service)
                for letter in letters
                if letter.id in gone
            ]
            done.sagas += [saga for saga in sagas if saga is not None]
            past = "replayed" if deed == "replay" else "discarded"
            recording.outcome = f"{done.number - before:,} of {asked:,} {past}"
            letters = await anext(batches, None)


async def _find(service: str, limit: int, *, only: Sequence[str] | None = None) -> Listed:
    from eventmesh.operations.dead_letters import ACTING_TIMEOUT, MOST_BYTES, is_cut

    found = Listed([], [])
    async with reached(service) as (reach, loaded):
        for handler in loaded.handlers.values():
            subscription = handler.subscription
            async with reach.broker(ACTING_TIMEOUT) as transport:
                # We ask for one more than we show, to know whether there are more.
                letters = await transport.dead_letters(
                    subscription, limit=limit + 1, most_bytes=MOST_BYTES, only=only
                )
            if is_cut(letters, limit + 1):
                found.cut.append(subscription.name)
            found.letters.extend(
                (letter, _saga_of(letter, handler, loaded)) for letter in letters[:limit]
            )
    return found


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
