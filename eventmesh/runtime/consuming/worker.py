"""The worker: one process that runs the handlers and relays of some services until told to stop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import structlog

from eventmesh.clock import Clock
from eventmesh.errors import DrainTimeout
from eventmesh.redact import redact
from eventmesh.runtime.consuming.subscription import ConsumedSubscription
from eventmesh.runtime.declaring.service import Service
from eventmesh.runtime.declaring.settings import Settings
from eventmesh.runtime.hosting import check_before_start
from eventmesh.runtime.relaying.relay import Relay
from eventmesh.runtime.vitals import Vitals
from eventmesh.transports.base import Transport


class Worker:
    """Runs services on a connected transport.

    `run` returns after a clean drain. It raises what made it stop otherwise: Unreachable or Drift
    at the start, DrainTimeout, or a defect. A server lost later is waited for instead.
    """

    def __init__(
        self, services: Sequence[Service], transport: Transport, settings: Settings, clock: Clock
    ) -> None:
        self.services = services
        self.transport = transport
        self.settings = settings
        self._clock = clock
        self._log: structlog.stdlib.BoundLogger = structlog.get_logger("eventmesh.worker")
        self.vitals = Vitals()
        self.ready = asyncio.Event()
        """Set once every subscription has been consumed."""

    async def run(self, stopping: asyncio.Event) -> None:
        """Work until `stopping` is set, then finish what was begun and give back the rest."""
        async with self._opened():
            self.vitals.stage = "running"
            relays = await self._relays()
            self.vitals.relays = [relay.vitals for relay in relays]
            relays_stopping = asyncio.Event()  # later: what the last messages published is relayed
            async with asyncio.TaskGroup() as tasks:
                for relay in relays:
                    tasks.create_task(relay.run(relays_stopping))
                await self._consume_all(stopping)
                relays_stopping.set()
        self.vitals.stage = "stopped"
        self._log.info("worker stopped")

    async def try_out(self) -> None:
        """Do all that comes before the first message, and no more; raises as `run`."""
        async with self._opened():
            pass

    @asynccontextmanager
    async def _opened(self) -> AsyncIterator[None]:
        """Everything that must be there before the first message is touched, closed on leaving."""
        async with AsyncExitStack() as stack:
            for service in self.services:
                service.configure(self.settings)
                check_before_start(service, self.settings)
                if service.needs_database:
                    stack.push_async_callback(service.close)
                    await service.database()
            await self.transport.declare(
                [handler.subscription for service in self.services for handler in service.worked]
            )
            yield

    async def _relays(self) -> list[Relay]:
        relays = []
        for service in self.services:
            if service.needs_database:
                relay = Relay(
                    service.name,
                    await service.database(),
                    self.transport,
                    self._clock,
                    self.settings.lease_time,
                    purging=self.settings,
                    published=service.registry.published_names(),
                    subscriptions=[handler.subscription for handler in service.worked],
                )
                service.on_commit(relay.wake)
                relays.append(relay)
        return relays

    async def _consume_all(self, stopping: asyncio.Event) -> None:
        """Consume all subscriptions until `stopping`; then they have `drain_timeout` to finish."""
        subscriptions = [
            ConsumedSubscription(
                service, handler, self.transport, self._clock, stopping, self._announce_if_ready
            )
            for service in self.services
            for handler in service.worked
        ]
        self.vitals.subscriptions = [subscription.vitals for subscription in subscriptions]
        async with asyncio.TaskGroup() as tasks:
            consuming = [tasks.create_task(subscription.run()) for subscription in subscriptions]
            self._announce_if_ready()  # a worker without subscriptions is
            await stopping.wait()
            self.vitals.stage = "draining"
            self._log.info("worker draining", timeout=self.settings.drain_timeout)
            late: set[asyncio.Task[None]] = set()
            if consuming:
                _, late = await asyncio.wait(consuming, timeout=self.settings.drain_timeout)
            if late:
                raise DrainTimeout(
                    f"{len(late)} subscription(s) were still handling messages "
                    f"{self.settings.drain_timeout:g} s after the worker was told to stop; their "
                    f"messages will be delivered again. Raise EVENTMESH_DRAIN_TIMEOUT if handlers "
                    f"need longer."
                )

    def _announce_if_ready(self) -> None:
        """Set `ready`, and log it, once every subscription is being consumed."""
        expected = sum(len(service.worked) for service in self.services)
        consumed = [vitals for vitals in self.vitals.subscriptions if not vitals.trouble]
        if self.ready.is_set() or len(consumed) < expected:
            return
        self.ready.set()
        self._log.info(
            "worker is ready",
            services=[service.name for service in self.services],
            subscriptions=expected,
            broker=redact(self.settings.broker_url),
            prefix=self.settings.broker_prefix,
            databases={
                service.name: redact(self.settings.database_url(service.name))
                for service in self.services
                if service.needs_database
            },
        )
