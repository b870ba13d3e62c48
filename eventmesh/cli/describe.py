"""`eventmesh describe`: what a project declares."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eventmesh.duration import exact_span
from eventmesh.errors import UsageError
from eventmesh.printable import printable_lines

if TYPE_CHECKING:  # imported when the command runs; see `eventmesh.cli`
    from eventmesh.operations.describe import (
        HandlerDescription,
        MeshDescription,
        MessageDescription,
        SagaDescription,
        ServiceDescription,
    )

Name = Annotated[
    str | None, typer.Argument(help="A service; all if none is named.", metavar="SERVICE")
]


def describe(
    service: Name = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON, the same for the same declarations.")
    ] = False,
    as_mermaid: Annotated[
        bool, typer.Option("--mermaid", help="Print who sends what to whom as a Mermaid chart.")
    ] = False,
) -> None:
    """Describe what services declare: messages, handlers, sagas, databases.

    It also names the objects on the broker, and functions that look like
    handlers and are none, with the reason. No server is asked.

    --json is sorted and has no host, path or time of this machine, so that two of
    them can be compared: keep one in version control, and let a build fail when
    it differs.

    \b
    Example:
      eventmesh describe --json > declared.json
      eventmesh describe orders
    """
    if as_json and as_mermaid:
        raise UsageError("Give --json or --mermaid, not both.")
    from eventmesh.operations import describe as operations
    from eventmesh.runtime.declaring.discovery import load_services
    from eventmesh.runtime.declaring.settings import load_settings
    from eventmesh.runtime.declaring.targets import known_targets

    root = Path.cwd()
    if service is not None:
        known_targets([service], root)
    services = load_services([], root)
    found = operations.describe(services, load_settings(), root, only=service)
    if as_json:
        typer.echo(json.dumps(as_document(found), indent=2))
    elif as_mermaid:
        typer.echo(operations.mermaid(found), nl=False)
    else:
        typer.echo(printable_lines("\n".join(as_lines(found))))


def as_document(found: MeshDescription) -> dict[str, Any]:
    """The description for programs. Members may be added in later versions; none is removed or
    renamed."""
    from dataclasses import asdict

    return asdict(found)


_NONE_IN_MEMORY = "the broker is in the memory of a process"
_NONE_DECLARED = "nothing is subscribed to, and publishing needs none"


def as_lines(found: MeshDescription) -> Iterator[str]:
    """The description for people."""
    for service in found.services:
        yield from _service(service)
        yield ""
    yield "messages"
    for message in found.messages:
        yield from _message(message)
    yield ""
    yield f"broker objects ({found.broker.kind}, prefix {found.broker.prefix})"
    if not found.broker.objects:
        in_memory = found.broker.kind == "memory"
        yield f"  none: {_NONE_IN_MEMORY if in_memory else _NONE_DECLARED}"
    for each in found.broker.objects:
        yield f"  {each.kind} {each.name} ({each.purpose})"


def _service(service: ServiceDescription) -> Iterator[str]:
    where = "" if service.target is None else f" ({service.target})"
    yield f"service {service.name}{where}"
    if service.publishes:
        yield f"  publishes {', '.join(service.publishes)}"
    if service.database is None:
        yield "  needs no database"
    else:
        database = service.database
        shared = f", shared with {', '.join(database.shared_with)}" * bool(database.shared_with)
        ordered = ", ordered outbox" * database.ordered_outbox
        yield f"  database {database.kind}{shared}{ordered}, set by {database.variable}"
        if database.tables:
            yield f"    own tables {', '.join(database.tables)}"
    for handler in service.handlers:
        yield from _handler(handler)
    for reaction in service.reactions:
        yield f"  reaction {reaction}"
    for saga in service.sagas:
        yield from _saga(saga)
    for function in service.functions:
        if function.subscription is None:
            yield f"  not a handler: {function.module}.{function.name}".rstrip(".")
            yield f"    {function.why}"


def _handler(handler: HandlerDescription) -> Iterator[str]:
    yield f"  subscription {handler.subscription}: {', '.join(handler.messages)}"
    options = [
        "a batch at a time" if handler.batch else "a message at a time",
        "in a transaction" if handler.transactional else "without a transaction",
    ]
    options += ["isolated"] * handler.isolated
    options += ["run by another program than a worker"] * handler.runs_elsewhere
    if handler.concurrency > 1:
        options.append(f"{handler.concurrency} at a time")
    if handler.ordered is not None:
        holds = ", a dead letter holds its key" * (handler.ordered.after_dead == "hold")
        options.append(f"in order within a key{holds}")
    if handler.timeout is not None:
        options.append(f"timeout {handler.timeout:g} s")
    if handler.returns:
        options.append(f"publishes {', '.join(handler.returns)}")
    if handler.sources:
        options.append(f"also from {', '.join(handler.sources)}")
    function = "" if handler.function is None else f"{handler.function}: "
    yield f"    {function}{', '.join(options)}"
    retry = handler.retry
    words = [f"{retry.attempts} attempt{'s' * (retry.attempts != 1)}"]
    if retry.delays is None:
        words.append("its back-off raises an error")
    elif retry.delays:
        more = ", …" if retry.attempts > len(retry.delays) + 1 else ""
        words.append(f"after {', '.join(f'{each:g}' for each in retry.delays)}{more} s")
    if retry.never_retried:
        words.append(f"never after {', '.join(retry.never_retried)}")
    words += retry.per_error
    yield f"    retry: {'; '.join(words)}"


def _saga(saga: SagaDescription) -> Iterator[str]:
    yield f"  saga {saga.name} v{saga.version}, started by {', '.join(saga.starts)}"
    for step in saga.steps:
        sends = "waits" if step.command is None else f"sends {step.command}"
        failed = f", failed by {', '.join(step.failed)}" if step.failed else ""
        undo = f", undone by {step.undo}" if step.undo else ""
        timeout = "" if step.timeout is None else f", times out after {exact_span(step.timeout)}"
        pivot = " (pivot)" if step.is_pivot else ""
        yield f"    {step.name}{pivot}: {sends}, answered by {step.ok}{failed}{undo}{timeout}"


def _message(message: MessageDescription) -> Iterator[str]:
    key = "" if message.key is None else f", key {message.key}"
    yield f"  {message.name} v{message.version}: {message.kind} of {message.owner}{key}"
    for publication in message.published:
        yield f"    from {publication.service}, as v{publication.version}"
    for reading in message.read:
        versions = ", ".join(f"v{version}" for version in reading.versions)
        yield f"    to {reading.subscription}, which reads {versions}"
    frozen = [f"v{each.version} {each.status}" for each in message.frozen]
    yield f"    frozen: {', '.join(frozen) or 'no version'}"
    for note in message.notes:
        yield f"    note: {note}"
