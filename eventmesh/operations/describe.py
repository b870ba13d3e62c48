"""What a project declares: services, messages, handlers, sagas, databases and broker objects.

No server is asked. Everything is sorted and free of places of one machine (no host, no path, no
password, no time), so two descriptions of the same code on the same kind of servers are equal, and
their difference is what a change declares.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eventmesh.contracts.locks.lock_file import Lock
from eventmesh.contracts.locks.lock_folder import Locks, read_locks
from eventmesh.contracts.message import Message
from eventmesh.contracts.versions import readable_versions
from eventmesh.operations.functions import FunctionDescription, describe_functions
from eventmesh.persistence.database_url import parse_url
from eventmesh.review.foreign_imports import homes
from eventmesh.runtime.declaring.handler import Handler
from eventmesh.runtime.declaring.retry import Retry
from eventmesh.runtime.declaring.service import DeclaredService as Service
from eventmesh.runtime.declaring.settings import Settings, database_variable
from eventmesh.runtime.declaring.targets import service_targets
from eventmesh.saga.coordinator import Coordinator
from eventmesh.saga.definition import Definition, command_of
from eventmesh.saga.flow import Step
from eventmesh.transports.base import Order
from eventmesh.transports.objects import BrokerObject, broker_objects

SHOWN_DELAYS = 5
"""How many delays of a retry policy are described."""


@dataclass(frozen=True, slots=True)
class RetryDescription:
    """A retry policy. `delays` are the first ones, in seconds and without jitter; None if its
    back-off raises an error."""

    attempts: int
    delays: tuple[float, ...] | None
    jitter: float
    never_retried: tuple[str, ...]
    per_error: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class OrderDescription:
    """What becomes of the later messages of a key after a dead letter: "continue" or "hold"."""

    after_dead: str
    partitions: int


@dataclass(frozen=True, slots=True)
class HandlerDescription:
    """A handler with its options. `function` is None where it is EventMesh's own, as of a saga."""

    subscription: str
    function: str | None
    messages: tuple[str, ...]
    returns: tuple[str, ...]
    batch: bool
    transactional: bool
    isolated: bool
    concurrency: int
    ordered: OrderDescription | None
    timeout: float | None
    retry: RetryDescription
    sources: tuple[str, ...]
    runs_elsewhere: bool


@dataclass(frozen=True, slots=True)
class StepDescription:
    """A step of a saga. `command` is None where it waits for an event from outside."""

    name: str
    command: str | None
    ok: str
    failed: tuple[str, ...]
    undo: str | None
    timeout: float | None
    is_pivot: bool


@dataclass(frozen=True, slots=True)
class SagaDescription:
    name: str
    version: int
    starts: tuple[str, ...]
    steps: tuple[StepDescription, ...]
    publishes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DatabaseDescription:
    """A service's database: the variable that names it, its kind, and the service's own tables."""

    variable: str
    kind: str
    shared_with: tuple[str, ...]
    ordered_outbox: bool
    tables: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ServiceDescription:
    """`target` is where it is declared, None for a service that is not in the project's files."""

    name: str
    target: str | None
    publishes: tuple[str, ...]
    handlers: tuple[HandlerDescription, ...]
    reactions: tuple[str, ...]
    sagas: tuple[SagaDescription, ...]
    database: DatabaseDescription | None
    functions: tuple[FunctionDescription, ...]


@dataclass(frozen=True, slots=True)
class Publication:
    """Who publishes or sends a message, and in which version."""

    service: str
    version: int


@dataclass(frozen=True, slots=True)
class Reading:
    """Which subscription receives a message, and which versions it reads."""

    subscription: str
    versions: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class FrozenVersion:
    version: int
    revisions: int
    status: str


@dataclass(frozen=True, slots=True)
class MessageDescription:
    """A message: what its owner declares, who publishes and reads it here, and what is frozen.
    `notes` say what is missing, in words for people."""

    name: str
    kind: str
    owner: str
    key: str | None
    version: int
    published: tuple[Publication, ...]
    read: tuple[Reading, ...]
    frozen: tuple[FrozenVersion, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class BrokerDescription:
    kind: str
    prefix: str
    objects: tuple[BrokerObject, ...]


@dataclass(frozen=True, slots=True)
class MeshDescription:
    """Everything, sorted by name."""

    services: tuple[ServiceDescription, ...]
    messages: tuple[MessageDescription, ...]
    broker: BrokerDescription


def describe(
    services: Sequence[Service], settings: Settings, root: Path, *, only: str | None = None
) -> MeshDescription:
    """Describe the services of the project in the folder `root`; or `only` one of them, with its
    messages and broker objects. All of them are given, so that it is known who else publishes and
    reads these messages. UsageError for a database URL that is not valid."""
    everybody = sorted(services, key=lambda service: service.name)
    ordered = [service for service in everybody if only in (None, service.name)]
    targets = service_targets(root)
    places = homes(targets, root)
    return MeshDescription(
        tuple(
            ServiceDescription(
                name=service.name,
                target=targets.get(service.name),
                publishes=tuple(sorted(_names(service.registry.published()))),
                handlers=tuple(
                    _handler(handler) for _, handler in sorted(service.handlers.items())
                ),
                reactions=tuple(sorted(each.subscription for each in service.reactions)),
                sagas=tuple(_saga(each) for each in _definitions(service)),
                database=_database(service, settings),
                functions=tuple(describe_functions(service, places.get(service.name))),
            )
            for service in ordered
        ),
        tuple(
            message
            for message in _messages(everybody, read_locks(settings.schemas))
            if only is None or only in _users(message)
        ),
        _broker(ordered, settings),
    )


def _names(models: Iterable[type[Message]]) -> Iterator[str]:
    return (model.__identity__.name for model in models)


def _handler(handler: Handler) -> HandlerDescription:
    function = handler.function
    return HandlerDescription(
        subscription=handler.subscription.name,
        function=None
        if function is None
        else f"{getattr(function, '__module__', '?')}.{getattr(function, '__qualname__', '?')}",
        messages=tuple(
            str(model.__identity__)
            for _, model in sorted(handler.models.items())
            if not model.__is_internal__
        ),
        returns=tuple(sorted(_names(handler.returns))),
        batch=handler.call_batch is not None,
        transactional=handler.transactional,
        isolated=handler.isolated,
        concurrency=handler.concurrency,
        ordered=_order(handler.subscription.order),
        timeout=handler.timeout,
        retry=_retry(handler.retry),
        sources=handler.sources,
        runs_elsewhere=handler.elsewhere,
    )


def _order(order: Order | None) -> OrderDescription | None:
    return None if order is None else OrderDescription(order.after_dead, order.partitions)


def _retry(policy: Retry) -> RetryDescription:
    return RetryDescription(
        attempts=policy.attempts,
        delays=_delays(policy),
        jitter=policy.jitter,
        never_retried=tuple(sorted(each.__name__ for each in policy.give_up_on)),
        per_error=tuple(
            sorted(
                f"{each.__name__}: {own.attempts} attempts"
                for each, own in policy.per_error.items()
            )
        ),
    )


def _delays(policy: Retry) -> tuple[float, ...] | None:
    try:
        return tuple(
            policy.backoff(attempt) for attempt in range(1, min(policy.attempts, SHOWN_DELAYS + 1))
        )
    except Exception:  # noqa: BLE001  # a user's back-off may raise anything
        return None


def _definitions(service: Service) -> list[Definition]:
    sagas = [each for each in service.sagas.values() if isinstance(each, Coordinator)]
    return sorted((each.definition for each in sagas), key=lambda each: each.name)


def _saga(definition: Definition) -> SagaDescription:
    return SagaDescription(
        definition.name,
        definition.version,
        starts=tuple(sorted(_names(definition.starts))),
        steps=tuple(_step(step) for step in definition.steps.values()),
        publishes=tuple(sorted(_names(definition.publishes))),
    )


def _step(step: Step[Any, Any]) -> StepDescription:
    undo = step.undoing
    return StepDescription(
        step.name,
        None if step.command is None else command_of(step.command, str(step)).__identity__.name,
        step.ok.__identity__.name,
        tuple(sorted(_names(step.failed))),
        None if undo is None else command_of(undo.command, str(step)).__identity__.name,
        step.timeout,
        step.is_pivot,
    )


def _database(service: Service, settings: Settings) -> DatabaseDescription | None:
    if not service.needs_database:
        return None
    url = parse_url(settings.database_url(service.name), service.name)
    tables = () if service.metadata is None else service.metadata.tables
    return DatabaseDescription(
        database_variable(service.name),
        url.get_backend_name(),
        tuple(sorted(service.shares_database_with)),
        service.ordered_outbox,
        tuple(sorted(tables)),
    )


def _messages(services: Sequence[Service], locks: Locks) -> Iterator[MessageDescription]:
    models: dict[str, dict[str, type[Message]]] = {}
    published: dict[str, list[Publication]] = {}
    read: dict[str, list[Reading]] = {}
    for service in services:
        for model in service.registry.published():
            name = model.__identity__.name
            models.setdefault(name, {})[service.name] = model
            publication = Publication(service.name, service.registry.written(model))
            published.setdefault(name, []).append(publication)
        for subscription, handler in sorted(service.handlers.items()):
            for name, model in handler.models.items():
                if not model.__is_internal__:
                    models.setdefault(name, {})[service.name] = model
                    reading = Reading(subscription, tuple(readable_versions(model)))
                    read.setdefault(name, []).append(reading)
        for model in service.registry.owned():
            models.setdefault(model.__identity__.name, {})[service.name] = model
    known = {service.name for service in services}
    for name, by_service in sorted(models.items()):
        newest = max(by_service.values(), key=lambda model: model.__identity__.version)
        identity = by_service.get(newest.__identity__.owner, newest).__identity__
        publishers, readers = published.get(name, []), read.get(name, [])
        yield MessageDescription(
            name,
            identity.kind,
            identity.owner,
            identity.key,
            identity.version,
            tuple(publishers),
            tuple(readers),
            tuple(_frozen(locks.of(name))),
            tuple(_notes(identity.kind, identity.owner, known, publishers, readers)),
        )


def _users(message: MessageDescription) -> set[str]:
    """The services that own, publish or receive a message."""
    readers = {reading.subscription.partition(".")[0] for reading in message.read}
    return {message.owner, *(each.service for each in message.published), *readers}


def _frozen(versions: Mapping[int, Sequence[Lock]]) -> Iterator[FrozenVersion]:
    for version, revisions in sorted(versions.items()):
        yield FrozenVersion(version, len(revisions), revisions[-1].status)


def _notes(
    kind: str,
    owner: str,
    known: set[str],
    published: Sequence[Publication],
    read: Sequence[Reading],
) -> Iterator[str]:
    if not published:
        sends = "sends" if kind == "command" else "publishes"
        yield f"no service of this project {sends} it"
    if not read:
        if kind == "command" and owner not in known:
            yield f"its owner {owner} is not a service of this project"
        else:
            yield "no subscription of this project receives it"


def _broker(services: Sequence[Service], settings: Settings) -> BrokerDescription:
    subscriptions = [
        handler.subscription for service in services for handler in service.handlers.values()
    ]
    published = {name for service in services for name in service.registry.published_names()}
    kind = settings.broker_url.partition(":")[0]
    objects = broker_objects(settings.broker_url, settings.broker_prefix, subscriptions, published)
    return BrokerDescription(kind, settings.broker_prefix, tuple(objects))


def mermaid(found: MeshDescription) -> str:
    """Who sends what to whom, as a Mermaid flow chart. Names have no character that has a meaning
    in one. A message that nobody here publishes comes from outside; one without a subscription ends
    there."""
    lines = ["flowchart LR"]
    for service in found.services:
        lines.append(f"  subgraph service_{service.name}[{service.name}]")
        lines += [
            f'    {_node("to", handler.subscription)}["{handler.subscription}"]'
            for handler in service.handlers
        ]
        if any(each.service == service.name for m in found.messages for each in m.published):
            lines.append(f'    {_node("from", service.name)}(["outbox"])')
        lines.append("  end")
    for message in found.messages:
        node = _node("message", message.name)
        shape = f'[/"{message.name}"/]' if message.kind == "command" else f'("{message.name}")'
        lines.append(f"  {node}{shape}")
        lines += [f"  {_node('from', each.service)} --> {node}" for each in message.published]
        lines += [f"  {node} --> {_node('to', each.subscription)}" for each in message.read]
    return "\n".join(lines) + "\n"


def _node(kind: str, name: str) -> str:
    """An identifier for a chart, different for different names: a dot, which a letter follows, is
    one underscore, and an underscore is two."""
    return f"{kind}_{name.replace('_', '__').replace('.', '_')}"
