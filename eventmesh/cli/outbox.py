"""`eventmesh outbox`: what a service has promised and the broker has not yet, seen and decided."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eventmesh.cli.envelopes import as_dict, for_people
from eventmesh.errors import UsageError
from eventmesh.printable import printable

if TYPE_CHECKING:  # imported when a command runs; see `eventmesh.cli`
    from eventmesh.persistence.database import Database
    from eventmesh.persistence.parked import Waiting

app = typer.Typer(no_args_is_help=True, help="Messages that wait to be brought to the broker.")


def _readable(value: Any) -> Any:
    """What can be looked for in a database; a shell may give other bytes."""
    for text in [value] if isinstance(value, str) else value or ():
        if not text.isascii() and text.encode(errors="ignore").decode() != text:
            raise typer.BadParameter(f"{text!r} is not UTF-8")
    return value


_MOST = 1_000_000

Name = Annotated[str, typer.Argument(help="The service.", metavar="SVC")]
Limit = Annotated[
    int, typer.Option(min=1, max=_MOST, help="How many at the most, the oldest first.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def stats(
    service: Name,
    limit: Annotated[
        int, typer.Option(min=1, max=_MOST, help="How many keys, those parked the longest first.")
    ] = 20,
    as_json: AsJson = False,
) -> None:
    """Count what waits, by name, and by parked key.

    The age of the oldest is of what could have been relayed, which leaves
    out parked and delayed messages; in seconds, as `oldest_age` of --json.
    What the states mean, `eventmesh outbox list --help` says.
    """
    counted = asyncio.run(_count(service, limit))
    if as_json:
        typer.echo(json.dumps(counted, indent=2))
        return
    age = counted["oldest_age"]
    typer.echo(
        f"{service}: {_numbers(counted)}"
        + (f"; the oldest waits for {age:,.1f} s" if age is not None else "")
    )
    for share in counted["names"]:
        typer.echo(f"{_line(share['name'])}: {_numbers(share)}{_attempts(share['attempts'])}")
    for key in counted["parked_keys"]:
        title = "without a key" if key["key"] is None else f"key {_quoted(key['key'])}"
        typer.echo(f"{title}: {_numbers(key)}{_attempts(key['attempts'])}")


@app.command("list")
def list_messages(
    service: Name,
    parked: Annotated[bool, typer.Option("--parked", help="Only those that are parked.")] = False,
    key: Annotated[
        str | None, typer.Option(help="Only those with this key.", callback=_readable)
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Only those of this name.", callback=_readable)
    ] = None,
    limit: Limit = 100,
    as_json: AsJson = False,
) -> None:
    """List what waits, in the order in which it was committed.

    Ready: a relay takes it next. Delayed: as it was asked for.
    Refused: by the broker, and tried again soon.
    Held: by a refused or parked message of its key.
    Parked: refused too often; nothing publishes it, nor what comes
    after it with its key, until it is retried or skipped.

    Each line has the id, when the message was made, the state, the name,
    the key and what the broker has said. For example:
    eventmesh outbox list bank --parked --key ada
    """

    async def run() -> list[Waiting]:
        from eventmesh.persistence import parked as queries

        async with _opened(service) as (database, now), database.reading() as connection:
            return await queries.listed(
                connection, now, limit=limit, parked=parked, key=key, name=name
            )

    messages = asyncio.run(run())
    if as_json:
        typer.echo(json.dumps([_summary(message) for message in messages], indent=2))
        return
    for message in messages:
        envelope = message.envelope
        words = (envelope.id, envelope.attributes.get("time", ""), message.state, envelope.name)
        typer.echo(
            "  ".join(_line(word) or "?" for word in words)
            + ("" if envelope.key is None else f"  {_quoted(envelope.key)}")
            + (f"  {_line(message.error)}" if message.error else "")
        )
    typer.echo(f"{len(messages)} message(s)")


@app.command()
def show(
    service: Name,
    message_id: Annotated[str, typer.Argument(help="Its id.", metavar="ID", callback=_readable)],
    as_json: AsJson = False,
) -> None:
    """Show one message with its data and what the broker has said of it."""
    details = _whole(_known(service, asyncio.run(_find(service, [message_id])), [message_id])[0])
    typer.echo(json.dumps(details, indent=2) if as_json else for_people(details))


@app.command()
def retry(
    service: Name,
    ids: Annotated[
        list[str] | None,
        typer.Argument(help="Their ids.", metavar="[ID]...", callback=_readable),
    ] = None,
    key: Annotated[
        str | None, typer.Option(help="All that are parked with this key.", callback=_readable)
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="All that are parked.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print their ids as JSON.")] = False,
) -> None:
    """Let relays publish parked messages again, in their old order, once more with all attempts.

    First mend what the broker refuses them for: `eventmesh outbox show`
    says it. A message behind a parked one of its key waits for that one.
    For example: eventmesh outbox retry bank --key ada
    """
    if bool(ids) + (key is not None) + every != 1:
        raise UsageError("Name the ids of parked messages, or write --key, or --all; one of these.")

    async def run() -> list[str]:
        from eventmesh.persistence import parked as queries

        async with _opened(service) as (database, now):
            async with database.connection() as connection:
                found = await queries.retry(connection, now, ids=ids, key=key)
            await _tell_relays(database)
        return found

    retried = asyncio.run(run())
    if as_json:
        typer.echo(json.dumps(retried, indent=2))
    else:
        typer.echo(f"{len(retried)} message(s) to be retried")
    if missing := set(ids or ()) - set(retried):
        raise _not_parked(service, missing)
    if key is not None and not retried:
        raise UsageError(
            f"{service} has no parked message with the key {key!r}: see `eventmesh outbox list "
            f"{service} --parked`."
        )


@app.command()
def skip(
    service: Name,
    ids: Annotated[
        list[str], typer.Argument(help="Their ids.", metavar="ID...", callback=_readable)
    ],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Delete parked messages for good, so that what comes after them with their keys flows.

    Each is printed first, whole: that is all that stays of it, and nobody
    will ever get it. So keep what is printed:
    eventmesh outbox skip bank ID --yes --json >skipped.json
    """
    messages = _known(service, asyncio.run(_find(service, ids)), ids)
    if ready := {each.envelope.id for each in messages if each.state != "parked"}:
        raise _not_parked(service, ready)
    details = [_whole(message) for message in messages]
    if as_json:
        typer.echo(json.dumps(details, indent=2))
    else:
        typer.echo("\n\n".join(map(for_people, details)))
    _make_sure(len(messages), yes)

    async def run() -> list[int]:
        from eventmesh.persistence import parked as queries

        async with _opened(service) as (database, _):
            async with database.connection() as connection:
                gone = await queries.skip(connection, [message.seq for message in messages])
            await _tell_relays(database)
        return gone

    skipped = set(asyncio.run(run()))
    typer.echo(f"{len(skipped)} message(s) skipped", err=True)
    if left := {each.envelope.id for each in messages if each.seq not in skipped}:
        raise _not_parked(service, left)


async def _tell_relays(database: Database) -> None:
    if database.is_postgresql:  # elsewhere they find out soon
        await database.doorbell.tell()


def _make_sure(number: int, yes: bool) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        raise UsageError(
            "Nothing was skipped: nobody can confirm without a terminal, so add --yes."
        )
    typer.confirm(f"Delete {number} message(s) for good?", abort=True, err=True)


def _known(service: str, messages: list[Waiting], ids: Iterable[str]) -> list[Waiting]:
    """These messages; UsageError when one of the ids is of none."""
    if missing := set(ids) - {message.envelope.id for message in messages}:
        raise UsageError(
            f"{service} has no message {', '.join(sorted(missing))} in its outbox: it was "
            f"published, or skipped, or never there. See `eventmesh outbox list {service}`."
        )
    return messages


def _not_parked(service: str, ids: Iterable[str]) -> UsageError:
    return UsageError(
        f"{service} has no parked message {', '.join(sorted(ids))}: what is not parked, relays "
        f"publish by themselves. See `eventmesh outbox list {service} --parked`."
    )


async def _find(service: str, ids: Sequence[str]) -> list[Waiting]:
    from eventmesh.persistence import parked as queries

    async with _opened(service) as (database, now), database.reading() as connection:
        return await queries.found(connection, now, ids)


async def _count(service: str, limit: int) -> dict[str, Any]:
    from eventmesh.persistence import outbox
    from eventmesh.persistence import parked as queries

    async with _opened(service) as (database, now), database.reading() as connection:
        shares = await queries.shares(connection, now)
        keys = await queries.parked_keys(connection, limit)
        oldest = await outbox.oldest(connection, now)
    names: dict[str, dict[str, Any]] = {}
    total = dict.fromkeys(queries.STATES, 0)
    for share in shares:
        fresh = {"name": share.name, **dict.fromkeys(queries.STATES, 0), "attempts": 0}
        name = names.setdefault(share.name, fresh)
        name[share.state] = share.number
        name["attempts"] = max(name["attempts"], share.attempts)
        total[share.state] += share.number
    return {
        "service": service,
        **total,
        "oldest_age": oldest and max((now - oldest).total_seconds(), 0.0),
        "names": list(names.values()),
        "parked_keys": [
            {"key": key.key, "parked": key.parked, "held": key.held, "attempts": key.attempts}
            for key in keys
        ],
    }


@asynccontextmanager
async def _opened(name: str) -> AsyncIterator[tuple[Database, datetime]]:
    """The service's database, and what time it is there."""
    from eventmesh.cli.environment import settings_of_command
    from eventmesh.persistence.existing import existing
    from eventmesh.runtime.declaring.discovery import load_services

    [service] = load_services([name], Path.cwd())
    if not service.needs_database:
        raise UsageError(f"Service {name!r} has no outbox: it declares nothing that it publishes.")
    async with existing(settings_of_command().database_url(name), name) as database:
        async with database.reading() as connection:
            now = await database.time.ask(connection)
        yield database, now


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
    states = ("ready", "delayed", "refused", "held", "parked")
    some = [f"{counted[state]} {state}" for state in states if counted.get(state)]
    return ", ".join(some) or "nothing waits"


def _attempts(number: int) -> str:
    return f"; refused {number} times" if number else ""


def _quoted(key: str) -> str:
    return _line(json.dumps(key, ensure_ascii=False))


def _line(text: str) -> str:
    """One line that does not command the terminal."""
    return printable(text)
