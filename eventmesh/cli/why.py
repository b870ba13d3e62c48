"""`eventmesh why`: what happened to a message, and what came of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eventmesh.duration import span
from eventmesh.errors import EventMeshError, Unreachable, UsageError
from eventmesh.operations.saga_log import log_line
from eventmesh.printable import printable

if TYPE_CHECKING:  # imported when the command runs; see `eventmesh.cli`
    from datetime import datetime

    from eventmesh.operations.evidence import SagaHistory
    from eventmesh.operations.why import Sighting, Trace, TracedMessage

DEEPEST = 20
"""Steps of indentation; deeper effects are shown at this depth."""

MOST_ARROWS = 200
"""In a diagram; nobody reads a larger one."""


def why(
    wanted: Annotated[
        str | None,
        typer.Argument(
            help="Id of a message, of a saga, or of a chain of causes (correlation id).",
            metavar="ID",
        ),
    ] = None,
    key: Annotated[
        str | None, typer.Option(help="All messages and sagas with this key.", metavar="KEY")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    as_mermaid: Annotated[
        bool, typer.Option("--mermaid", help="Print a Mermaid sequence diagram.")
    ] = False,
) -> None:
    """Show what happened to a message, and everything that came of it.

    All services' databases and the broker are asked: which subscriptions have
    handled it, when, at which attempt and for how long (10 ms or more); what
    still waits in an outbox or on the broker; dead letters; sagas. Nothing is
    taken from a queue: what waits on RabbitMQ is only counted. What could not
    be looked into is listed at the end.

    Exit code 1 if nobody knows the id, 3 if a server did not answer:
    everything else is shown all the same.

    \b
    Examples:
      eventmesh why 019ad1c8-4f3e-7c55-9d5e-2b8e4d3c1a00
      eventmesh why --key order-7 --mermaid > order-7.mmd
    """
    from eventmesh.cli.environment import settings_of_command
    from eventmesh.clock import SystemClock
    from eventmesh.operations.reach import Reach
    from eventmesh.runtime.declaring.discovery import load_services

    if (wanted is None) == (key is None):
        raise UsageError(
            "Name the id of a message or saga, or give --key KEY."
            if wanted is None
            else "Name an id or give --key, not both."
        )
    if as_json and as_mermaid:
        raise UsageError("Choose --json or --mermaid, not both.")
    for text in (wanted, key):
        if text is not None and ("\0" in text or not _is_utf8(text)):
            raise UsageError(f"{text!r} is not text: no message can have it.")
    loaded = load_services([], Path.cwd())
    settings, clock = settings_of_command(), SystemClock()

    async def run() -> Trace:
        from eventmesh.operations.why import trace_id, trace_key

        async with Reach(loaded, settings, clock) as reach:
            return await (trace_id(reach, wanted or "") if key is None else trace_key(reach, key))

    found = asyncio.run(run())
    if found.is_empty:
        _refuse(found)
    if as_json:
        typer.echo(json.dumps(as_document(found), indent=2))
    elif as_mermaid:
        typer.echo("\n".join(mermaid(found)))
    else:
        typer.echo("\n".join(lines(found)))
    if found.problems:
        raise typer.Exit(Unreachable.exit_code)


def _refuse(found: Trace) -> None:
    if found.problems:
        raise Unreachable(f"Nobody who answered knows {found.asked!r}. {' '.join(found.problems)}")
    hidden = "".join(f" {each[:1].upper()}{each[1:]}." for each in found.hidden)
    raise EventMeshError(
        f"Nobody knows {found.asked!r}: it is in no inbox, outbox, dead letter or saga of the "
        f"services here, and nowhere on the broker that can be looked into. An inbox remembers a "
        f"message for EVENTMESH_INBOX_WINDOW. A dead letter has an id of its own: the id of its "
        f"message is printed by `eventmesh dlq show`.{hidden}"
    )


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def as_document(found: Trace) -> dict[str, Any]:
    """The answer for programs. Members may be added in later versions; none is removed."""
    return {
        "asked": found.asked,
        "messages": [_message_document(each) for each in found.messages],
        "sagas": [_saga_document(each) for each in found.sagas],
        "hidden": list(found.hidden),
        "problems": list(found.problems),
        "is_cut": found.is_cut,
    }


def _message_document(message: TracedMessage) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        **asdict(message),
        "created_at": _iso(message.created_at),
        "sightings": [{**asdict(each), "at": _iso(each.at)} for each in message.sightings],
    }


def _saga_document(saga: SagaHistory) -> dict[str, Any]:
    row = saga.row
    return {
        "id": row.id,
        "saga": row.name,
        "version": row.version,
        "status": row.status,
        "key": row.key,
        "waiting_for": [label for label in (row.waiting_for or "").split(",") if label],
        "reason": row.reason,
        "started_at": _iso(row.started_at),
        "ended_at": _iso(row.ended_at),
        "log": [{"at": _iso(at), **entry} for at, entry in saga.log],
    }


def _iso(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat()


def lines(found: Trace) -> Iterator[str]:
    """The answer for people."""
    for message in found.messages:
        indent = "  " * min(message.depth, DEEPEST)
        words = [message.name or "(nothing else is known of this cause)", message.id]
        if message.key is not None:
            words.append(f"key {json.dumps(message.key, ensure_ascii=False)}")
        if message.created_at is not None:
            words.append(f"created {_time(message.created_at)}")
        yield indent + printable("  ".join(words))
        for sighting in message.sightings:
            yield f"{indent}  - {printable(sentence(sighting, message.created_at))}"
    for saga in found.sagas:
        row = saga.row
        words = [f"saga {row.name} v{row.version}", row.id, row.status]
        if row.waiting_for:
            words.append(f"waits for {row.waiting_for}")
        if row.reason:
            words.append(row.reason)
        yield ""
        yield printable("  ".join(words))
        for at, entry in saga.log:
            yield f"  - {_time(at)}  {printable(log_line(entry))}"
    notes = [*found.problems, *found.hidden]
    if found.is_cut:
        notes.append(f"these are the first {len(found.messages):,} messages; there are more")
    if notes:
        yield ""
        yield from (f"note: {printable(each)}" for each in notes)


def sentence(sighting: Sighting, created_at: datetime | None) -> str:
    """What was seen of a message in one place."""
    at = "" if sighting.at is None else f" at {_time(sighting.at)}"
    place, state = sighting.place, sighting.state
    match sighting.what:
        case "handled":
            parts = [f"handled by {place}{at}{_after(sighting.at, created_at)}"]
            if (sighting.attempt or 1) > 1:
                parts.append(f"attempt {sighting.attempt}")
            if sighting.took is not None:
                parts.append(f"took {span(sighting.took)}")
            if sighting.detail:
                parts.append(sighting.detail)
            return ", ".join(parts)
        case "begun":
            return f"being handled by {place}: {sighting.detail}{at}"
        case "dead":
            service = place.partition(".")[0]
            return (
                f"dead letter of {place}{at} after {sighting.attempt} attempt(s): "
                f"{sighting.detail} (eventmesh dlq show {service} {sighting.letter_id})"
            )
        case "outbox":
            due = f", due{at}" if at and state in ("delayed", "rejected") else ""
            error = f": {sighting.detail}" if sighting.detail else ""
            tries = f" after {sighting.attempt} attempt(s)" if sighting.attempt else ""
            return f"{state} in the outbox of {place}{due}{tries}{error}"
        case "ready":
            return f"waits for {place}"
        case "delayed":
            return f"waits for {place}, to be retried later"
        case "in_flight":
            return f"delivered to a worker of {place}, not settled yet"
        case "unrouted":
            return "unrouted: no subscription takes it yet"
        case "unknown":
            return f"{place}: {sighting.detail}"


def _after(at: datetime | None, created_at: datetime | None) -> str:
    """How long after its creation; nothing where clocks differ."""
    if at is None or created_at is None or at < created_at:
        return ""
    return f" ({span((at - created_at).total_seconds())} after it was created)"


def _time(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S.%f}"[:-3]


def mermaid(found: Trace) -> Iterator[str]:
    """A sequence diagram: services, and an arrow for each message that was handled (solid), waits
    (open) or was dead-lettered (crossed)."""
    from eventmesh.operations.why import services_of

    services = services_of(found.messages)
    alias = {name: f"s{number}" for number, name in enumerate(services)}
    yield "sequenceDiagram"
    yield from (
        f"    participant {alias[name]} as {_label(name or 'unknown')}" for name in services
    )
    by_id = {each.id: each for each in found.messages}
    arrows = sorted(
        (
            (sighting.at or message.created_at, number, message, sighting)
            for number, message in enumerate(found.messages)
            for sighting in message.sightings
            if sighting.what not in ("unknown", "unrouted")
        ),
        key=lambda each: (each[0] is None, each[0].timestamp() if each[0] else 0.0, each[1]),
    )
    for _, _, message, sighting in arrows[:MOST_ARROWS]:
        sender = alias[_sender(message, by_id, found.publishers)]
        if sighting.what == "outbox":
            yield f"    Note over {sender}: {_label(f'{message.name}: {sighting.state} in outbox')}"
            continue
        receiver = alias[sighting.place.partition(".")[0]]
        arrow = {"handled": "->>", "dead": "-x"}.get(sighting.what, "-)")
        text = f"{message.name}"
        if sighting.what != "handled":
            text += f" ({sighting.what.replace('_', ' ')})"
        elif (sighting.attempt or 1) > 1:
            text += f" (attempt {sighting.attempt})"
        yield f"    {sender}{arrow}{receiver}: {_label(text)}"
    if len(arrows) > MOST_ARROWS:
        yield f"    Note over s0: {len(arrows) - MOST_ARROWS} more are left out"


def _sender(
    message: TracedMessage,
    by_id: Mapping[str, TracedMessage],
    publishers: Mapping[str, Sequence[str]],
) -> str:
    """The service that published it. Where several have handled its cause, it is one that declares
    to publish it; else its owner, which publishes its events; else the first."""
    owner = (message.name or "").partition(".")[0]
    cause = by_id.get(message.causation_id or "")
    handlers = [] if cause is None else [s.place for s in cause.sightings if s.what == "handled"]
    senders = [place.partition(".")[0] for place in handlers]
    declared = [each for each in senders if each in publishers.get(message.name or "", ())]
    if declared:
        return declared[0]
    return owner if not senders or owner in senders else senders[0]


def _label(text: str) -> str:
    """Text that Mermaid shows as it is: its own signs are written by their numbers."""
    plain = "".join(
        char if char.isalnum() or char in " ._-()" else f"#{ord(char)};" for char in text
    )
    return printable(plain)
