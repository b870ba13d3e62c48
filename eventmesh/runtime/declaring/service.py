"""A service: the owner of messages, handlers and one database.

There is no global registry: what a service subscribes to, publishes and stores hangs on its Service
object, so several of them can live in one process. Declaring needs no server and no settings; the
database is opened when it is first needed, with the settings of `configure` or the environment.
"""

from __future__ import annotations

import asyncio
import copy
import inspect
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from threading import Lock
from typing import Any, Generic, Protocol, Self, TypeVar

from eventmesh.clock import Clock, SystemClock
from eventmesh.contracts.message import Command, Event, Message, check_message, identity_of
from eventmesh.contracts.registry import Registry
from eventmesh.duration import Duration, seconds
from eventmesh.errors import Drift, UsageError
from eventmesh.persistence import joined, migration
from eventmesh.persistence.database import Database, MetaData
from eventmesh.persistence.joined import AnySession
from eventmesh.persistence.outbox import Stored
from eventmesh.persistence.own_tables import require_own_tables
from eventmesh.persistence.sagas import SagaLot, census
from eventmesh.persistence.transaction import Sender, Transaction
from eventmesh.runtime.declaring.handler import (
    Handler,
    bind,
    checked_concurrency,
    checked_sources,
)
from eventmesh.runtime.declaring.order import WithoutKey
from eventmesh.runtime.declaring.reaction import React, Reaction
from eventmesh.runtime.declaring.reading import Readings
from eventmesh.runtime.declaring.retry import Retry, checked_retry
from eventmesh.runtime.declaring.settings import Settings, load_settings, warn_of_unknown_variables
from eventmesh.runtime.declaring.targets import service_targets
from eventmesh.tracing.loading import make_providers, make_tracing
from eventmesh.tracing.port import Tracing
from eventmesh.transports.base import AfterDead
from eventmesh.transports.factory import place_of

M = TypeVar("M", bound=Message)
Reacted = TypeVar("Reacted", bound=Event)
Undoing = TypeVar("Undoing", bound=Event)
Result = TypeVar("Result")
Function = TypeVar("Function", bound=Callable[..., Awaitable[Any]])


HANDLING: ContextVar[Handling | None] = ContextVar("eventmesh_handling", default=None)
"""What runs in this context, if it is a handler that has a transaction."""


class Handling:
    """While the context is open, a handler of this service runs in it, with a transaction. A task
    that the handler started inherits this, and may outlive the handler."""

    __slots__ = ("_before", "is_open", "service")

    def __init__(self, service: str) -> None:
        self.service = service
        self.is_open = True

    def __enter__(self) -> None:
        self._before = HANDLING.set(self)

    def __exit__(self, *_: object) -> None:
        self.is_open = False
        HANDLING.reset(self._before)


_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")
_SUBSCRIPTION = re.compile(r"[a-z][a-z0-9_.]{0,199}")


class Extension(Protocol):
    """Something that adds handlers and messages of its own to a service, such as a saga."""

    def extend(self, service: DeclaredService) -> None:
        """Declare them on the service."""
        ...


class SagaCoordinator(Protocol):
    """What a service must know of one of its sagas."""

    def refuse_drift(self, schemas: Path) -> None:
        """Drift where the saga differs from what is frozen of its version in this folder."""
        ...

    def refuse_unknown_steps(self, lots: Sequence[SagaLot]) -> None:
        """Drift where open sagas stand in a step, or have a version, that the code does not
        know."""
        ...

    async def claim_keys(self, database: Database) -> None:
        """Give their keys to open sagas that were started before the code had keys. Unreachable."""
        ...

    def unmatched_events(self) -> Mapping[str, int]:
        """How many events that it subscribes to matched no saga, by message name, since this
        process began."""
        ...


class Publisher(Generic[M]):
    """Publishes one message of a service from outside its handlers, through the outbox."""

    def __init__(self, service: DeclaredService, message: type[M]) -> None:
        self.message = message
        self._service = service

    async def publish(self, message: M, *, delay: Duration = 0) -> None:
        """Return once the message is safe in the outbox, in a transaction of its own.

        In a handler, or together with changes of state, use a Transaction's `publish` instead.
        """
        check_message(message)
        if type(message) is not self.message:
            raise UsageError(
                f"This publisher of {self.message.__name__} was given a {type(message).__name__}."
            )
        async with self._service.transaction() as transaction:
            transaction.add(message, delay=delay)


class DeclaredService:
    """All of `eventmesh.Service`, which documents it, except what runs a relay."""

    def __init__(
        self,
        name: str,
        *,
        metadata: MetaData | None = None,
        clock: Clock | None = None,
        shares_database_with: Sequence[str] = (),
        ordered_outbox: bool = False,
    ) -> None:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise UsageError(
                f"The service name {name!r} cannot be used: write lower-case letters, digits and "
                f'underscores, such as Service("payments").'
            )
        joined.note_commits()
        self.name = name
        if metadata is not None and not isinstance(metadata, MetaData):
            raise UsageError(
                f"Service {name!r} has metadata={metadata!r}: write the MetaData of its tables, "
                f"such as metadata=Base.metadata."
            )
        if isinstance(shares_database_with, str):
            raise UsageError(
                f"Service {name!r} has shares_database_with={shares_database_with!r}: write a list "
                f"of names, such as [{shares_database_with!r}]."
            )
        self.metadata = metadata
        self.clock = clock or SystemClock()
        self.shares_database_with = tuple(shares_database_with)
        self.ordered_outbox = ordered_outbox
        self.registry = Registry(name)
        self.handlers: dict[str, Handler] = {}
        self.sagas: dict[str, SagaCoordinator] = {}
        """The coordinators of its sagas, by the sagas' names."""
        self.reactions: list[Reaction[Any, Any, Any]] = []
        self.has_publishers = False
        self._settings: Settings | None = None
        self._readings: Readings | None = None
        self._tracing: Tracing | None = None
        self._providers: Any = None
        self._database: Database | None = None
        self._database_ready = False
        self._loop: asyncio.AbstractEventLoop | None = None
        """To which the database's connections belong, if it is open."""
        self._entering = Lock()
        self._on_commit: list[
            tuple[asyncio.AbstractEventLoop, Callable[[Sequence[Stored]], None]]
        ] = []

    def __repr__(self) -> str:
        return f"Service({self.name!r}, handlers={sorted(self.handlers)})"

    def subscriber(
        self,
        *messages: type[Message],
        name: str | None = None,
        retry: Retry | None = None,
        isolated: bool = False,
        concurrency: int = 1,
        timeout: Duration | None = None,
        sources: Sequence[str] = (),
        ordered: bool = False,
        partitions: int | None = None,
        after_dead: AfterDead | None = None,
        without_key: WithoutKey | None = None,
    ) -> Callable[[Function], Function]:
        """Declare a handler; the decorated function stays an ordinary function.

        A handler that takes a message is called for each; a batch handler, which takes a list of
        messages, is called for those of a whole group.

        The subscription is called `<service>.<name>`, by default after the function; on the broker
        it outlives the process, so a handler that is renamed needs `name=` to keep its backlog.
        `isolated` gives each message a transaction of its own. `concurrency` is how many messages,
        or groups of them, a process handles at a time. One process handles messages of one key one
        after another and in order, except that a message that is retried, or delivered again after
        a lost connection, comes after the later ones. Several processes keep no order, unless the
        handler is `ordered`.

        With `ordered`, the messages of a key take effect in the order of their publication,
        whatever the number of workers and whatever fails. A message that is retried holds back the
        later ones of its key; others go on. `after_dead` says what a dead letter does: the later
        messages of its key `continue`, by default, or it `hold`s them until it is replayed or
        discarded. Messages without a key are refused when the handler is declared, or, with
        `without_key="together"`, are in one order. On RabbitMQ the keys are divided among
        `partitions`, 1 to 256, by default 16; other brokers need none.

        A call of the handler, or a commit of its effects, that takes longer than `timeout` is
        cancelled and rolled back, and its messages are retried as after any error. Where the commit
        took effect before it could be cancelled, its messages count as handled.

        An event is taken only from its owner: the CloudEvents source of `bank.deposited` must be
        `/bank`, or begin with `/bank/`; with another one it becomes a dead letter. `sources` names
        further ones that may publish the events of this subscription, such as a bridge from another
        system: `sources=["/bridge"]`, or `["/bridges/*"]` for a prefix. Raises UsageError.
        """

        for message in messages:
            self._check_is_message("subscriber", message)

        def declare(function: Function) -> Function:
            if not hasattr(function, "__name__"):  # such as a partial, or an object with __call__
                raise UsageError(
                    f"Service {self.name!r}: {function!r} cannot be a handler. Write an "
                    f"`async def` function that calls it."
                )
            self.add_handler(
                bind(
                    function,
                    messages,
                    subscription=f"{self.name}.{name or function.__name__}",
                    retry=Retry() if retry is None else retry,
                    isolated=isolated,
                    concurrency=concurrency,
                    timeout=_timeout(timeout),
                    sources=sources,
                    ordered=ordered,
                    partitions=partitions,
                    after_dead=after_dead,
                    without_key=without_key,
                )
            )
            return function

        return declare

    def reaction(
        self,
        event: type[Reacted],
        *,
        undone_by: type[Undoing],
        name: str | None = None,
        retry: Retry | None = None,
        isolated: bool = False,
        concurrency: int = 1,
        timeout: Duration | None = None,
        sources: Sequence[str] = (),
    ) -> Callable[[React[Reacted, Result]], Reaction[Reacted, Undoing, Result]]:
        """Declare a handler of an event together with what undoes it.

        The decorated function takes the event and a Transaction. What it returns is recorded with
        its effect: a pydantic model, a value such as an int, or None. When an event `undone_by`
        comes with the same key, the function decorated with `@….undo` is called with that event,
        the recorded value and a Transaction. For each key, both happen once at the most; when the
        event that undoes comes first, neither happens. So it needs no order. Both events must have
        a key. The other parameters are those of `subscriber`. Raises UsageError.
        """

        def declare(function: React[Reacted, Result]) -> Reaction[Reacted, Undoing, Result]:
            subscription = f"{self.name}.{name or getattr(function, '__name__', '')}"
            reaction = Reaction(subscription, event, undone_by, function)
            self.add_handler(
                reaction.handler(
                    retry=checked_retry(Retry() if retry is None else retry, str(reaction)),
                    isolated=isolated,
                    concurrency=checked_concurrency(concurrency, str(reaction)),
                    timeout=_timeout(timeout),
                    sources=checked_sources(sources, str(reaction)),
                )
            )
            self.reactions.append(reaction)
            return reaction

        return declare

    def publisher(self, message: type[M], *, version: int | None = None) -> Publisher[M]:
        """Declare that this service publishes an event of its own, or sends a command.

        With `version`, the data of this message is written as that older version, by the model's
        downcasters, for as long as some subscriber cannot read a newer one.
        """
        self._check_is_message("publisher", message)
        self.registry.add_published(message, version=version)
        self.has_publishers = True
        return Publisher(self, message)

    def include(self, extension: Extension) -> None:
        """Add the handlers and messages of an extension, such as a Saga."""
        extension.extend(self)

    def add_handler(self, handler: Handler) -> None:
        """Add a bound handler; UsageError for a name, or a command, that has a handler already."""
        name = handler.subscription.name
        if not _SUBSCRIPTION.fullmatch(name):
            raise UsageError(
                f"The subscription {name!r} of service {self.name!r} has a name that cannot be "
                f"used: write at most 200 lower-case letters, digits, underscores and dots."
            )
        if name in self.handlers:
            raise UsageError(
                f"Service {self.name!r} has two handlers of the name {name!r}. Rename one of the "
                f"functions, or give one subscriber(…, name=…)."
            )
        for model in handler.models.values():
            self._check_subscribes(handler, model)
        for model in handler.models.values():
            self.registry.add(model)
        for model in handler.returns:
            self.registry.add_published(model)
        self.handlers[name] = handler

    @property
    def worked(self) -> Sequence[Handler]:
        """The handlers that a worker runs: all but those of a FastStream app."""
        return [handler for handler in self.handlers.values() if not handler.elsewhere]

    @property
    def needs_database(self) -> bool:
        """Whether anything of this service reads or writes its database."""
        return (
            self.metadata is not None
            or self.has_publishers
            or any(handler.transactional for handler in self.handlers.values())
        )

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        """A transaction outside any handler: committed on leaving, with its messages."""
        self._refuse_in_handler(
            "opened another transaction of the service, by a publisher or by service.transaction()"
        )
        async with (await self.database()).unit_of_work(self.sender()) as unit:
            with unit.transaction() as transaction:
                yield transaction
                await unit.flush()  # where listeners of the application may publish
            await unit.commit()

    def join(self, session: AnySession) -> Transaction:
        """Publish with a SQLAlchemy session of the application's own, which is bound to this
        service's database: messages are in the outbox if and only if the session's own commit
        succeeds. They are kept with the transaction that the session is in, or begins next;
        `tx.session` is the session. Joining again in the same transaction does no harm. It may be
        joined in a listener, such as a `before_commit` or `after_flush` hook for domain events.

        UsageError for a session of another database, and in a handler of the service.
        """
        self._refuse_in_handler("joined a session")
        url = self.settings.database_url(self.name)
        return joined.join(session, self.sender(), url)

    def committed(self, stored: Sequence[Stored]) -> None:
        """Messages have come into the outbox, `stored` if that is certain: tell those who relay
        them. From any thread."""
        for loop, notice in tuple(self._on_commit):
            if not loop.is_closed():
                loop.call_soon_threadsafe(notice, stored)

    def on_commit(self, notice: Callable[[Sequence[Stored]], None]) -> Callable[[], None]:
        """Call this, on the running event loop, after each commit of this process that put messages
        into the outbox, until the service is closed, or what this returns is called: with the
        messages if they surely are in it, otherwise with none."""
        called = asyncio.get_running_loop(), notice
        self._on_commit.append(called)

        def end() -> None:
            with suppress(ValueError):  # the service was closed
                self._on_commit.remove(called)

        return end

    def sender(self) -> Sender:
        """What the service's transactions share."""
        most = self.settings.max_message_bytes
        return Sender(
            self.name,
            self.registry,
            self.clock,
            most,
            self.ordered_outbox,
            self.committed,
            self.tracing,
        )

    def trace_with(self, *, tracer: Any = None, meter: Any = None, logger: Any = None) -> None:
        """Use these providers of OpenTelemetry instead of the global ones. UsageError where
        OpenTelemetry is not installed."""
        self._providers, self._tracing = make_providers(tracer, meter, logger), None

    @property
    def tracing(self) -> Tracing:
        """What records what becomes of the service's messages."""
        if self._tracing is None:
            settings = self.settings
            place = place_of(settings.broker_url, settings.transport_options)
            self._tracing = make_tracing(place, self.clock, settings.trace_parents, self._providers)
        return self._tracing

    @property
    def settings(self) -> Settings:
        """The settings given to `configure`, or else those of the environment."""
        if self._settings is None:
            self._settings = load_settings()
            warn_of_unknown_variables(self._settings, self._known_services())
        return self._settings

    def _known_services(self) -> set[str]:
        """Of which services this program may have settings, as far as this one can tell: itself,
        and those of the project in the current folder."""
        known = {self.name, *self.shares_database_with}
        with suppress(UsageError):  # commands say what is wrong with pyproject.toml
            known.update(service_targets(Path.cwd()))
        return known

    def configure(self, settings: Settings) -> None:
        """Use these settings; UsageError when the database is open already with others."""
        if self._database is not None and settings is not self._settings:
            raise UsageError(f"Service {self.name!r} is running: close it before configuring it.")
        self._settings, self._readings, self._tracing = settings, None, None

    def replica(self, clock: Clock, settings: Settings, database: Database) -> Self:
        """The same declarations, with this clock, these settings and this database, which is ready:
        the service as another process has it. For tests that run several in one."""
        other = copy.copy(self)
        other.clock, other.handlers = clock, dict(self.handlers)
        other._settings, other._readings, other._tracing = settings, None, None
        other._database, other._database_ready, other._on_commit = database, True, []
        other._loop, other._entering = None, Lock()
        return other

    @property
    def readings(self) -> Readings:
        """Which versions of what it subscribes to can be read as they are."""
        if self._readings is None:
            self._readings = Readings(self.settings.schemas)
        return self._readings

    async def database(self) -> Database:
        """The open database, at the migration this version needs; SQLite is migrated by itself.

        Unreachable; or Drift, with what to do, when EventMesh's tables are not at that migration,
        or the service's own lack a table or a column of its metadata. UsageError while it is open
        in another event loop.
        """
        await self._enter_loop()
        if self._database is None:
            self._database = Database(
                self.settings.database_url(self.name),
                service=self.name,
                connections=sum(handler.concurrency for handler in self.handlers.values()),
            )
        database = self._database
        if not self._database_ready:  # callers at the same time may each see to it: it does no harm
            await database.connect(largest=self.settings.max_message_bytes)
            if database.dialect.is_file:
                await migration.upgrade(database, self.metadata)
            else:
                await migration.require_current(database)
            if self.metadata is not None:
                await require_own_tables(database, self.metadata)
            if self.ordered_outbox and not database.dialect.can_order_keys:
                raise UsageError(
                    f"Service {self.name!r} has ordered_outbox=True, for which MariaDB has no lock "
                    f"that ends with a transaction. Use PostgreSQL, or lock a row by the key."
                )
            self.on_commit(lambda _: database.notifier.notify_soon())
            self._database_ready = True
        return database

    async def refuse_stranded_sagas(self) -> None:
        """Drift where open sagas cannot go on with this code: their saga, their version, or the
        step that they wait for is not in it. Unreachable."""
        database = await self.database()
        async with database.reading() as connection:
            self.refuse_stranded(await census(connection))

    async def claim_saga_keys(self) -> None:
        """Give their keys to open sagas that have none yet. Unreachable."""
        for saga in self.sagas.values():
            await saga.claim_keys(await self.database())

    def refuse_stranded(self, lots: Sequence[SagaLot]) -> None:
        """Drift as `refuse_stranded_sagas`, for these open sagas of the database."""
        own = [lot for lot in lots if lot.name.startswith(f"{self.name}.")]
        for name in sorted({lot.name for lot in own}):
            of_saga = [lot for lot in own if lot.name == name]
            if name not in self.sagas:
                number = sum(lot.count for lot in of_saga)
                raise Drift(
                    f"{number:,} saga(s) {name} are open, and service {self.name!r} does not "
                    f"include this saga any more, so that nobody would handle their answers. "
                    f"Include it until they have ended, or settle each by hand and end it: "
                    f"`eventmesh saga list {self.name}`, then `eventmesh saga cancel {self.name} "
                    f"ID --reason …`."
                )
            self.sagas[name].refuse_unknown_steps(of_saga)

    async def __aenter__(self) -> Self:
        """The service, for a program that publishes and runs no worker: its database is open, and
        closed on leaving. Raises as `database`."""
        if self.needs_database:
            await self._enter_loop()  # not to close what is open in another one
            try:
                await self.database()
            except BaseException:
                await self.close()
                raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the database; it is opened again when it is next needed. UsageError while it is
        open in another event loop."""
        await self._enter_loop()
        database, self._readings = self._take_database(), None
        self._on_commit.clear()
        try:
            if database is not None:
                await database.close()
        finally:
            if self._database is None:  # else it was opened again meanwhile
                self._loop = None

    async def _enter_loop(self) -> None:
        """Use the database in the running event loop. One that was opened in a loop that does not
        run any more is given up. In one that does, it is a UsageError: drivers would mix up loops,
        and may wait for ever."""
        loop, given_up = asyncio.get_running_loop(), None
        if self._loop is loop:
            return
        with self._entering:  # threads may each have a loop
            if self._loop is not None:
                if self._loop.is_running():
                    raise UsageError(
                        f"Service {self.name!r} is open in another event loop, which is running, "
                        f"such as that of service.relay() or of another thread. Publish in that "
                        f"loop; or, in a thread, with a plain Session of SQLAlchemy: "
                        f"service.join(session).publish(…)."
                    )
                self._on_commit = [each for each in self._on_commit if each[0] is not self._loop]
                given_up = self._take_database()
            self._loop = loop
        if given_up is not None:
            await given_up.abandon()

    def _take_database(self) -> Database | None:
        """What was open; the service does not have it any more."""
        database, self._database = self._database, None
        self._database_ready = False
        return database

    def _refuse_in_handler(self, did: str) -> None:
        handling = HANDLING.get()
        if handling is not None and handling.is_open and handling.service == self.name:
            raise UsageError(
                f"A handler of service {self.name!r} {did}: it would not be committed together "
                f"with the handler's own. Take a Transaction as a parameter and use tx.publish."
            )

    def _check_is_message(self, method: str, message: object) -> None:
        """UsageError unless it is a class of messages, as this method of the service takes."""
        if method == "subscriber" and inspect.isroutine(message):
            raise UsageError(
                f"Service {self.name!r}: {message.__name__} is decorated without parentheses. "
                f"Write @service.subscriber()."
            )
        if not (isinstance(message, type) and issubclass(message, Message)):
            raise UsageError(
                f"Service {self.name!r}: {method} was given {message!r}, which is not a class "
                f"derived from Event or Command. Write service.{method}(SomeEvent)."
            )

    def _check_subscribes(self, handler: Handler, model: type[Message]) -> None:
        identity = identity_of(model)
        if not issubclass(model, Command):
            return
        if identity.owner != self.name:
            raise UsageError(
                f"Service {self.name!r} cannot handle {identity.name}: that command belongs to "
                f"service {identity.owner!r}, and only its owner handles a command."
            )
        for other in self.handlers.values():
            if identity.name in other.models:
                raise UsageError(
                    f"The command {identity.name} has two handlers, {other.subscription.name} and "
                    f"{handler.subscription.name}: a command is handled once. Remove one, or "
                    f"publish an event that several may handle."
                )


def _timeout(timeout: Duration | None) -> float | None:
    """The seconds that a call may take; UsageError where it could take none."""
    most = None if timeout is None else seconds(timeout)
    if most == 0:
        raise UsageError(
            f"timeout={timeout!r} would cancel every call: write a longer one, or leave it out for "
            f"no limit."
        )
    return most
