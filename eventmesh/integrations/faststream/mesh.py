"""A FastStream app as one service of the mesh, whatever its broker: start-up and relay, declaring
handlers, and publishing. `rabbit` and `redis` add what depends on the broker."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any, ClassVar, Generic, TypeVar, get_args, get_type_hints
from urllib.parse import urlsplit

import structlog
from faststream import ContextRepo, PublishCommand, StreamMessage

from eventmesh.contracts.message import Message, check_message, identity_of
from eventmesh.errors import UndeclaredMessage, UsageError
from eventmesh.integrations.faststream.intake import Arrival, Intake
from eventmesh.integrations.faststream.middleware import EventMeshMiddleware
from eventmesh.persistence.transaction import Transaction
from eventmesh.redact import redact
from eventmesh.runtime.consuming.broker_dead_letters import BrokerDeadLetters
from eventmesh.runtime.consuming.pausing import PauseWatch
from eventmesh.runtime.declaring.handler import (
    Handler,
    Returned,
    checked_concurrency,
    checked_sources,
    takes_list_of_messages,
)
from eventmesh.runtime.declaring.retry import Retry
from eventmesh.runtime.declaring.service import DeclaredService as Service
from eventmesh.runtime.hosting import Host
from eventmesh.transports.base import Subscription, Transport
from eventmesh.wire.envelope import Envelope, seal

AnyIntake = TypeVar("AnyIntake", bound=Intake)


class Mesh(ABC, Generic[AnyIntake]):
    """One service whose handlers run in a FastStream app; the package has an example.

    It is a factory of FastStream middlewares, and adds itself to its broker. It connects to nothing
    before `lifespan` is entered.
    """

    schemes: ClassVar[tuple[str, ...]]
    """The schemes of EVENTMESH_BROKER_URL for this kind of broker."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self._intakes: list[AnyIntake] = []
        self._transport: Transport | None = None

    def __call__(self, msg: Any, /, *, context: ContextRepo) -> EventMeshMiddleware:
        """FastStream calls this to create a middleware for each message."""
        return EventMeshMiddleware(msg, context=context, mesh=self)

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        """For `FastStream(…, lifespan=mesh.lifespan)`: start-up before the first message; and while
        the app runs, the relay of the outbox, the pauses of operators, and a watch for what the
        broker dead-letters by itself.

        Raises Unreachable, Drift or UsageError like the start-up of a worker.
        """
        _log_where_the_app_does()
        service, settings = self.service, self.service.settings
        self.check_broker(settings.broker_url)
        host = Host(
            [service],
            settings,
            service.clock,
            relayed=[service],
            subscriptions=[intake.handler.subscription for intake in self._intakes],
        )
        switches = {intake.handler.subscription.name: intake.switch for intake in self._intakes}
        pauses = PauseWatch(service, switches, service.clock)
        async with host.start() as started:
            self._transport, stopping = started.transport, asyncio.Event()
            try:
                await pauses.begin(stopping)
                async with asyncio.TaskGroup() as tasks:
                    for relay in started.relays:
                        tasks.create_task(relay.run(stopping))
                    dead_letters = [
                        BrokerDeadLetters(
                            service,
                            intake.handler,
                            intake.vitals,
                            started.transport,
                            service.clock,
                            stopping,
                        ).run()
                        for intake in self._intakes
                        if BrokerDeadLetters.are_needed(intake.handler, started.transport)
                    ]
                    work = [pauses.run(), *(each.note_pauses() for each in self._intakes)]
                    upkeep = [
                        tasks.create_task(each) for each in (*work, *dead_letters, *self.upkeep())
                    ]
                    try:
                        yield
                    finally:
                        stopping.set()
                        for task in upkeep:
                            task.cancel()
            finally:
                self._transport = None

    def upkeep(self) -> Sequence[Coroutine[Any, Any, None]]:
        """What runs for this kind of broker as long as the app does."""
        return ()

    async def publish(self, message: Message) -> None:
        """Publish a message outside of any transaction; returns once the broker has it.

        UndeclaredMessage if the service did not declare it; Unreachable or PublishError if the
        broker is lost or rejects it.
        """
        check_message(message)
        sender = self.service.sender()
        if not sender.registry.publishes(type(message)):
            raise UndeclaredMessage(
                f"Service {self.service.name!r} published {type(message).__name__} without "
                f"declaring it. Add mesh.publisher({type(message).__name__})."
            )
        envelope = seal(
            message,
            source=sender.service,
            clock=sender.clock,
            max_bytes=sender.max_bytes,
            version=sender.registry.written(type(message)),
        )
        envelope, transport = sender.tracing.created(envelope), self.check_open()
        with sender.tracing.sending([envelope]) as answered:
            result = await transport.publish([envelope])
            answered(result)
        result.raise_for_failures()

    def check_open(self) -> Transport:
        """The connected transport; UsageError outside of `lifespan`."""
        if self._transport is None:
            raise UsageError(
                f"The mesh of service {self.service.name!r} is not running: write "
                f"FastStream(broker, lifespan=mesh.lifespan)."
            )
        return self._transport

    def arrival_of(self, message: StreamMessage[Any]) -> Arrival | None:
        """What arrived as this message, if it belongs to one of our subscriptions."""
        for intake in self._intakes:
            if (arrival := intake.arrival_of(message)) is not None:
                return arrival
        return None

    def processed(self, received: Any) -> None:
        """FastStream has processed what it got from its client, for one of our subscriptions or
        not."""
        for intake in self._intakes:
            intake.processed(received)

    @abstractmethod
    def destination(self, message: type[Message]) -> str:
        """What FastStream calls the destination of this message."""

    @abstractmethod
    def is_addressed_by(self, command: PublishCommand) -> bool:
        """Whether this is published to the mesh, and not elsewhere."""

    def check_destination(self, message: Message, command: PublishCommand) -> None:
        """UsageError if this message does not belong where it is published to."""
        if command.destination != self.destination(type(message)):
            raise UsageError(
                f"{type(message).__name__} was published to {command.destination!r}, which is not "
                f"its destination. Use mesh.publisher({type(message).__name__})."
            )

    def subscriber(
        self,
        *messages: type[Message],
        name: str | None = None,
        retry: Retry | None = None,
        concurrency: int = 1,
        sources: Sequence[str] = (),
        **options: Any,
    ) -> Callable[[Callable[..., Any]], Any]:
        """Like `service.subscriber`, for a handler that FastStream calls. `options` are those of
        `broker.subscriber`, such as `title` and `dependencies`.

        `concurrency` messages are handled at a time; with more than one, order is not kept.
        """

        def declare(function: Callable[..., Any]) -> Any:
            where = f"The FastStream handler {getattr(function, '__qualname__', function)!r}"
            handler_name = name or getattr(function, "__name__", None)
            if handler_name is None:
                raise UsageError(
                    f"{where} of service {self.service.name!r} has no __name__, because it is "
                    f"decorated already: write mesh.subscriber(…, name=…)."
                )
            models = {identity_of(message).name: message for message in messages}
            if not models:
                raise UsageError(
                    f"{where} subscribes to nothing: write mesh.subscriber(SomeEvent)."
                )
            _check_takes(function, messages, where)
            handler = Handler(
                subscription=Subscription(f"{self.service.name}.{handler_name}", tuple(models)),
                models=models,
                call=_runs_elsewhere,
                retry=retry or Retry(),
                transactional=True,
                isolated=True,
                concurrency=checked_concurrency(concurrency, where),
                sources=checked_sources(sources, where),
                elsewhere=True,
                function=function,
            )
            self.service.add_handler(handler)
            return self.subscribe(handler, function, **options)

        return declare

    @abstractmethod
    def subscribe(self, handler: Handler, function: Callable[..., Any], **options: Any) -> Any:
        """Let FastStream call this function for each message of the handler's subscription."""

    def check_broker(self, url: str) -> None:
        """UsageError if this is not a URL of the app's kind of broker."""
        if urlsplit(url).scheme not in self.schemes:
            raise UsageError(
                f"EVENTMESH_BROKER_URL is {redact(url)!r}, but {type(self).__name__} needs the "
                f"broker of its FastStream app: {' or '.join(f'{s}://…' for s in self.schemes)}."
            )


def _log_where_the_app_does() -> None:
    """Send our log events to the standard library's logging, unless the app has configured
    structlog, which otherwise prints each of them."""
    if structlog.is_configured():
        return
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.contextvars.merge_contextvars,
            structlog.processors.KeyValueRenderer(key_order=["event"]),
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
    )


async def _runs_elsewhere(
    message: Message, envelope: Envelope, transaction: Transaction | None
) -> Returned:
    raise RuntimeError(
        f"the handler of {envelope.name} runs inside its FastStream app: start that, and not "
        f"`eventmesh worker`"
    )


def _check_takes(
    function: Callable[..., Any], messages: Sequence[type[Message]], where: str
) -> None:
    """UsageError if no parameter of the function is annotated with these messages."""
    try:
        hints = get_type_hints(function)
    except (NameError, AttributeError, TypeError):
        return  # FastStream raises its own error for them
    hints.pop("return", None)
    for hint in hints.values():
        if takes_list_of_messages(hint):
            raise UsageError(
                f"{where} takes a list of messages, but FastStream hands over one at a time: take "
                f"one, or declare a batch handler with service.subscriber and run it in a worker."
            )
        members = get_args(hint) or (hint,)
        if all(message in members for message in messages):
            return
    spelled = " | ".join(message.__name__ for message in messages)
    raise UsageError(f"{where} has no parameter annotated with {spelled}: add one.")
