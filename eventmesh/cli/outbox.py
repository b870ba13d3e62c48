"""`eventmesh outbox`: messages that a service has committed and the broker does not have yet.

Relays publish them without help. A command is needed only for a parked message, which the broker
has rejected too often: it is retried once its cause is fixed, or skipped.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eventmesh.cli.actions import Reason, check_reason, reached
from eventmesh.cli.app import App, utf8
from eventmesh.cli.envelopes import as_dict, for_people
from eventmesh.cli.terminal import beginning
from eventmesh.errors import UsageError
from eventmesh.printable import printable

if TYPE_CHECKING:  # imported when a command runs; see `eventmesh.cli`
    from eventmesh.persistence.outbox.parked import Waiting

app = App(help="Messages in the outbox, waiting to be published.")


_MOST = 1_000_000

STATES = ("ready", "delayed", "rejected", "blocked", "parked")

Name = Annotated[str, typer.Argument(help="The service.", metavar="SERVICE")]
Limit = Annotated[
    int, typer.Option(min=1, max=_MOST, help="List at most N, oldest first.", metavar="N")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def stats(
    service: Name,
    limit: Annotated[
        int,
        typer.Option(
            min=1, max=_MOST, help="Show at most N keys, longest parked first.", metavar="N"
        ),
    ] = 20,
    as_json: AsJson = False,
) -> None:
    """Count waiting messages by name, and by parked key.

    The age (`oldest_age` in --json, in seconds) is that of the oldest message
    that could have been published; parked and delayed messages do not count.
    `eventmesh outbox list --help` explains the states.
    """
    counted = asyncio.run(_count(service, limit))
    if as_json:
        typer.echo(json.dumps(counted, indent=2))
        return
    age = counted["oldest_age"]
    if not any(counted[state] for state in STATES):
        # Otherwise it sounds as if nothing waited anywhere.
        typer.echo(
            f"{service}: nothing waits to be published; what waits to be handled is shown by "
            f"`eventmesh status {service}`"
        )
        return
    typer.echo(
        f"{service}: {_numbers(counted)}"
        + (f"; the oldest has waited for {age:,.1f} s" if age is not None else "")
    )
    for share in counted["names"]:
        typer.echo(f"{_line(share['name'])}: {_numbers(share)}{_attempts(share['attempts'])}")
    for key in counted["parked_keys"]:
        title = "without a key" if key["key"] is None else f"key {_quoted(key['key'])}"
        typer.echo(f"{title}: {_numbers(key)}{_attempts(key['attempts'])}")


@app.command("list")
def list_messages(
    service: Name,
    parked: Annotated[bool, typer.Option("--parked", help="Only parked messages.")] = False,
    key: Annotated[
        str | None, typer.Option(help="Only messages with this key.", callback=utf8, metavar="KEY")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Only messages of this name.", callback=utf8, metavar="NAME")
    ] = None,
    limit: Limit = 100,
    as_json: AsJson = False,
) -> None:
    """List waiting messages in the order of their commits.

    \b
    The states are:
      ready     published next
      delayed   published once its delay is over
      rejected  the broker rejected it; tried again soon
      blocked   waits behind a rejected or parked message of its key
      parked    rejected too often; it and all later messages of its key
                wait until it is retried or skipped

    Each line shows the id, the time the message was created, the state, the
    name, the key and the broker's last error, of which `eventmesh outbox show`
    shows all. Times are in UTC.

    \b
    Example:
      eventmesh outbox list bank --parked --key ada
    """

    async def run() -> Sequence[Waiting]:
        from eventmesh.operations.outbox import list_outbox

        async with reached(service) as (reach, loaded):
            return await list_outbox(reach, loaded, limit=limit, parked=parked, key=key, name=name)

    messages = asyncio.run(run())
    if as_json:
        typer.echo(json.dumps([_summary(message) for message in messages], indent=2))
        return
    for message in messages:
        envelope = message.envelope
        state = message.state
        if state == "delayed" and message.due_at is not None:
            state = f"delayed until {message.due_at:%Y-%m-%d %H:%M:%S}"
        words = (envelope.id, envelope.attributes.get("time", ""), state, envelope.name)
        typer.echo(
            "  ".join(_line(word) or "?" for word in words)
            + ("" if envelope.key is None else f"  {_quoted(envelope.key)}")
            + (f"  {_line(beginning(message.error))}" if message.error else "")
        )
    typer.echo(f"{len(messages)} message(s)")


@app.command()
def show(
    service: Name,
    message_id: Annotated[
        str, typer.Argument(help="Id of the message.", metavar="ID", callback=utf8)
    ],
    as_json: AsJson = False,
) -> None:
    """Show one message with its attributes, data and error."""
    details = _whole(_known(service, asyncio.run(_find(service, [message_id])), [message_id])[0])
    typer.echo(json.dumps(details, indent=2) if as_json else for_people(details))


@app.command()
def retry(
    service: Name,
    reason: Reason,
    ids: Annotated[
        list[str] | None,
        typer.Argument(help="Ids of parked messages.", metavar="ID", callback=utf8),
    ] = None,
    key: Annotated[
        str | None,
        typer.Option(help="All parked messages with this key.", callback=utf8, metavar="KEY"),
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="All parked messages.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the ids as JSON.")] = False,
) -> None:
    """Publish parked messages again, in their original order.

    First fix why the broker rejects them: `eventmesh outbox show` prints its
    error. Each message gets all its attempts again. A message still waits while
    an earlier one of its key is parked.

    \b
    Example:
      eventmesh outbox retry bank --key ada --reason "the queue has room again"
    """
    if bool(ids) + (key is not None) + every != 1:
        raise UsageError(
            "Name the ids of parked messages, or give --key or --all: exactly one of these."
        )

    check_reason(reason)

    async def run() -> list[str]:
        from eventmesh.operations.action_log import operator_of_machine
        from eventmesh.operations.outbox import retry_parked

        async with reached(service) as (reach, loaded):
            return await retry_parked(
                reach, loaded, operator_of_machine(), reason, ids=ids or None, key=key
            )

    retried = asyncio.run(run())
    if key is not None and not retried:
        raise UsageError(
            f"{service} has no parked message with the key {key!r}: see `eventmesh outbox list "
            f"{service} --parked`."
        )
    missing = set(ids or ()) - set(retried)
    if missing and not retried:
        raise _not_parked(service, missing)
    if as_json:
        typer.echo(json.dumps(retried, indent=2))
    else:
        typer.echo(f"{len(retried)} message(s) to be retried")
    if missing:
        raise _not_parked(service, missing)


@app.command()
def skip(
    service: Name,
    ids: Annotated[
        list[str],
        typer.Argument(help="Ids of parked messages.", metavar="ID", callback=utf8),
    ],
    reason: Reason,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
    as_json: AsJson = False,
) -> None:
    """Delete parked messages, so that later ones of their keys are published.

    Skipped messages are never delivered. Each is printed completely before it is
    deleted, and the log of actions keeps a copy for as long as it keeps actions.

    \b
    Example:
      eventmesh outbox skip bank ID --reason "sent twice" --yes --json > skipped.json
    """
    check_reason(reason)
    messages = _known(service, asyncio.run(_find(service, ids)), ids)
    if not_parked := {each.envelope.id for each in messages if each.state != "parked"}:
        raise _not_parked(service, not_parked)
    details = [_whole(message) for message in messages]
    if as_json:
        typer.echo(json.dumps(details, indent=2))
    else:
        typer.echo("\n\n".join(map(for_people, details)))
    _confirm(len(messages), yes)

    async def run() -> set[str]:
        from eventmesh.operations.action_log import operator_of_machine
        from eventmesh.operations.outbox import skip_parked

        who = operator_of_machine()
        async with reached(service) as (reach, loaded):
            return {
                message.envelope.id
                for message in messages
                if not await skip_parked(reach, loaded, message, who, reason)
            }

    left = asyncio.run(run())
    typer.echo(f"{len(messages) - len(left)} message(s) skipped", err=True)
    if left:
        raise _not_parked(service, left)


def _confirm(number: int, yes: bool) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        raise UsageError(
            "Nothing was skipped: there is no terminal to ask for confirmation, so add --yes."
        )
    typer.confirm(f"Permanently delete {number} message(s)?", abort=True, err=True)


def _known(service: str, messages: Sequence[Waiting], ids: Iterable[str]) -> Sequence[Waiting]:
    """The messages; UsageError for an id that none of them has."""
    if missing := set(ids) - {message.envelope.id for message in messages}:
        raise UsageError(
            f"{service} has no message {', '.join(sorted(missing))} in its outbox: it was "
            f"published or skipped, or never existed. See `eventmesh outbox list {service}`."
        )
    return messages


def _not_parked(service: str, ids: Iterable[str]) -> UsageError:
    return UsageError(
        f"{service} has no parked message {', '.join(sorted(ids))}: what is not parked is "
        f"published without help. See `eventmesh outbox list {service} --parked`."
    )


async def _find(service: str, ids: Sequence[str]) -> Sequence[Waiting]:
    from eventmesh.operations.outbox import find_waiting

    async with reached(service) as (reach, loaded):
        return await find_waiting(reach, loaded, ids)


async def _count(service: str, limit: int) -> dict[str, Any]:
    from eventmesh.operations.outbox import count_outbox

    async with reached(service) as (reach, loaded):
        counts = await count_outbox(reach, loaded, limit)
    names: dict[str, dict[str, Any]] = {}
    total = dict.fromkeys(STATES, 0)
    for share in counts.shares:
        fresh = {"name": share.name, **dict.fromkeys(STATES, 0), "attempts": 0}
        name = names.setdefault(share.name, fresh)
        name[share.state] = share.number
        name["attempts"] = max(name["attempts"], share.attempts)
        total[share.state] += share.number
    return {
        "service": service,
        **total,
        "oldest_age": counts.oldest_age,
        "names": list(names.values()),
        "parked_keys": [
            {"key": key.key, "parked": key.parked, "blocked": key.blocked, "attempts": key.attempts}
            for key in counts.keys
        ],
    }


def _whole(message: Waiting) -> dict[str, Any]:
    return _summary(message) | as_dict(message.envelope)


def _summary(message: Waiting) -> dict[str, Any]:
    envelope = message.envelope
    return {
        "id": envelope.id,
        "name": envelope.name,
        "key": envelope.key,
        "state": message.state,
        "attempts": message.attempts,
        "due_at": message.due_at and message.due_at.isoformat(),
        "time": envelope.attributes.get("time"),
        "bytes": message.size,
        "error": message.error,
    }


def _numbers(counted: dict[str, Any]) -> str:
    return ", ".join(f"{counted[state]} {state}" for state in STATES if counted.get(state))


def _attempts(number: int) -> str:
    return f"; rejected {number} times" if number else ""


def _quoted(key: str) -> str:
    return _line(json.dumps(key, ensure_ascii=False))


def _line(text: str) -> str:
    """One line without control characters."""
    return printable(text)
