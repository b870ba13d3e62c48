"""Start-up: what must hold before the first message, the same for every program that runs services.

    check      services get their settings; their messages match the frozen schemas; the inbox
               window is longer than any redelivery may take; the broker's URL is valid
    databases  each one answers, and has the tables that this version needs
    broker     it answers, and has what the program's subscriptions need
    relays     one for each service with an outbox, woken by that service's commits

The steps run in this order and are undone in reverse. The first three fail with the error that says
what to correct: UsageError, Drift or Unreachable. Programs differ in these points only:

    program              subscriptions   relays for                     no broker at the start
    worker               its handlers'   services that need a database  fails
    FastStream app       its handlers'   its service                    fails
    service.relay()      none            its service                    serves, and relays later

A database that is away at the start is an error in all of them, because nothing could be published
without it. Servers that are lost later are waited for. After any other error a worker ends, and is
replaced; a program with `service.relay()` serves on, and its relay is tried again.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    ExitStack,
    asynccontextmanager,
    nullcontext,
)
from dataclasses import dataclass
from functools import partial

import structlog

from eventmesh.clock import Clock
from eventmesh.contracts.locks.drift import refuse_drift
from eventmesh.errors import Unreachable
from eventmesh.persistence import counts
from eventmesh.redact import redact
from eventmesh.runtime.backoff import Reconnect
from eventmesh.runtime.declaring.service import DeclaredService as Service
from eventmesh.runtime.declaring.settings import Settings
from eventmesh.runtime.outage_log import LONGEST_PAUSE, OutageLog
from eventmesh.runtime.relaying.purger import check_window
from eventmesh.runtime.relaying.relay import Relay
from eventmesh.transports.base import Subscription, Transport
from eventmesh.transports.factory import make_transport, open_transport


@dataclass(frozen=True, slots=True)
class Started:
    """What start-up has opened. The relays are not running yet."""

    transport: Transport
    relays: Sequence[Relay]


@dataclass(frozen=True, slots=True)
class Host:
    """A program that runs services, as far as start-up must know it.

    `relayed` are the services whose outbox it relays, `subscriptions` those that it consumes.
    `transport`, if given, is connected already, and is not closed. `is_checked` says that another
    program with the same services and settings has passed the checks, and this one need not.
    """

    services: Sequence[Service]
    settings: Settings
    clock: Clock
    relayed: Sequence[Service]
    subscriptions: Sequence[Subscription] = ()
    transport: Transport | None = None
    is_checked: bool = False

    @asynccontextmanager
    async def start(self) -> AsyncIterator[Started]:
        """All steps; raises Unreachable, Drift or UsageError when one of them fails."""
        self._check()
        async with self._databases(), self._broker() as started:
            yield started

    @asynccontextmanager
    async def start_relaying(self) -> AsyncIterator[None]:
        """All steps, and the relays run while the context is open. A broker that is away is waited
        for in the background. After any other error, once the databases are open, the relays are
        tried again. Raises otherwise as `start`. On leaving, the relays publish what is left, for a
        lease time at the most."""
        self._check()
        stopping = asyncio.Event()
        async with self._databases(), asyncio.TaskGroup() as tasks:
            tasks.create_task(self._relay(stopping))
            try:
                yield
            finally:
                stopping.set()

    def log_ready(self) -> None:
        """Log, once all subscriptions are consumed, what this program works on."""
        structlog.get_logger("eventmesh.worker").info(
            "worker is ready",
            services=[service.name for service in self.services],
            subscriptions=len(self.subscriptions),
            broker=redact(self.settings.broker_url),
            prefix=self.settings.broker_prefix,
            databases={
                service.name: redact(self.settings.database_url(service.name))
                for service in self.relayed
            },
        )

    def _check(self) -> None:
        for service in self.services:
            service.configure(self.settings)
        if self.is_checked:
            return
        for service in self.services:
            refuse_drift(service.registry.owned(), self.settings.schemas)
            for saga in service.sagas.values():
                saga.refuse_drift(self.settings.schemas)
            for reaction in service.reactions:
                reaction.require_undo()
        for service in self.relayed:  # whose relay purges the inbox
            check_window(service.handlers.values(), self.settings)
        if self.transport is None:
            make_transport(
                self.settings.broker_url, self.clock, self.settings.transport_options
            )  # UsageError for a URL that cannot be used

    @asynccontextmanager
    async def _databases(self) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            for service in self.relayed:
                stack.push_async_callback(service.close)
                await service.database()
                if not self.is_checked:
                    await service.refuse_stranded_sagas()
                await service.claim_saga_keys()
            yield

    @asynccontextmanager
    async def _broker(self) -> AsyncIterator[Started]:
        """The connected broker with its topology, and a relay for each outbox."""
        settings = self.settings
        connection: AbstractAsyncContextManager[Transport] = (
            open_transport(settings.broker_url, self.clock, settings.transport_options)
            if self.transport is None
            else nullcontext(self.transport)
        )
        async with connection as transport:
            for service in self.services:
                service.tracing.over(transport)
            await transport.declare(self.subscriptions)
            if self.subscriptions:
                await self._record_declared()
            relays = []
            with ExitStack() as notices:
                for service in self.relayed:
                    relay = Relay(
                        service.name,
                        await service.database(),
                        transport,
                        self.clock,
                        settings.lease_time,
                        purging=settings,
                        published=service.registry.published_names(),
                        subscriptions=[handler.subscription for handler in service.worked],
                        tracing=service.tracing,
                    )
                    notices.callback(service.on_commit(relay.notice))
                    relays.append(relay)
                yield Started(transport, relays)

    async def _record_declared(self) -> None:
        """Let an audit know since when these subscriptions have received their messages."""
        names = {subscription.name for subscription in self.subscriptions}
        for service in self.relayed:
            pairs = [
                (name, message)
                for name, handler in service.handlers.items()
                if name in names
                for message in handler.subscription.messages
            ]
            database = await service.database()
            await database.transact(partial(counts.declare, pairs=pairs))

    async def _relay(self, stopping: asyncio.Event) -> None:
        """Relay until `stopping`, as soon as the broker answers, whatever fails meanwhile: an error
        that came out of here would cancel the program's own work."""
        log: structlog.stdlib.BoundLogger = structlog.get_logger("eventmesh.relay").bind(
            service=",".join(service.name for service in self.relayed)
        )
        reconnect, outage = Reconnect(self.clock), OutageLog(self.clock, log)
        crashes = OutageLog(self.clock, log)  # of its own: the broker answers between two of them
        while not stopping.is_set():
            began_at = self.clock.monotonic()
            try:
                async with self._broker() as started, asyncio.TaskGroup() as tasks:
                    if outage.ended():
                        log.info("outbox relay publishing again")
                    for relay in started.relays:
                        tasks.create_task(relay.run(stopping))
            except Unreachable as error:
                outage.failed("outbox relay waiting for broker", error)
                await reconnect.wait(stopping)
            except Exception as error:  # noqa: BLE001  # whatever it is, the program serves on
                if self.clock.monotonic() - began_at > LONGEST_PAUSE:  # it had worked meanwhile
                    crashes.ended()
                    reconnect.succeeded()
                cause = _alone(error)
                crashes.failed("outbox relay failed, trying again", cause, is_unexpected=True)
                await reconnect.wait(stopping)


def _alone(error: Exception) -> Exception:
    """The error that is alone in its groups, which says more than they do."""
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error
