"""The worker: runs the handlers and the relays of some services until it is told to stop.

After the start-up, each subscription and each relay is a task of its own. On `stopping`, the
subscriptions finish the messages that they began and give back the others; only then do the relays
stop, so that what the last messages published is relayed, too. A server that is lost while the
worker runs is waited for; one that is away at the start is an error.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import structlog

from eventmesh.clock import Clock
from eventmesh.errors import DrainTimeout
from eventmesh.runtime.consuming.broker_dead_letters import BrokerDeadLetters
from eventmesh.runtime.consuming.pausing import PauseSwitch, PauseWatch
from eventmesh.runtime.consuming.subscription import ConsumedSubscription
from eventmesh.runtime.declaring.service import DeclaredService as Service
from eventmesh.runtime.declaring.settings import Settings
from eventmesh.runtime.hosting import Host
from eventmesh.runtime.vitals import Vitals
from eventmesh.transports.base import Transport


class Worker:
    """Runs services on a connected transport.

    `run` returns after a clean drain. It raises what made it stop otherwise: Unreachable or Drift
    at the start, DrainTimeout, or a defect. A server lost later is waited for instead. For
    `is_checked`, see `Host`.
    """

    def __init__(
        self,
        services: Sequence[Service],
        transport: Transport,
        settings: Settings,
        clock: Clock,
        *,
        is_checked: bool = False,
    ) -> None:
        self.services = services
        self.transport = transport
        self.settings = settings
        self._clock = clock
        self._is_checked = is_checked
        self._log: structlog.stdlib.BoundLogger = structlog.get_logger("eventmesh.worker")
        self.vitals = Vitals()
        self.ready = asyncio.Event()
        """Set once every subscription is being consumed, or is paused."""

    async def run(self, stopping: asyncio.Event) -> None:
        """Work until `stopping` is set, then finish what was begun and give back the rest."""
        async with self._host().start() as started:
            self.vitals.stage = "running"
            self.vitals.relays = [relay.vitals for relay in started.relays]
            relays_stopping = asyncio.Event()  # later: what the last messages published is relayed
            async with asyncio.TaskGroup() as tasks:
                for relay in started.relays:
                    tasks.create_task(relay.run(relays_stopping))
                await self._consume_all(stopping)
                relays_stopping.set()
        self.vitals.stage = "stopped"
        self._log.info("worker stopped")

    async def try_out(self) -> None:
        """Do all that comes before the first message, and no more; raises as `run`."""
        async with self._host().start():
            pass

    def _host(self) -> Host:
        return Host(
            self.services,
            self.settings,
            self._clock,
            relayed=[service for service in self.services if service.needs_database],
            subscriptions=[
                handler.subscription for service in self.services for handler in service.worked
            ],
            transport=self.transport,
            is_checked=self._is_checked,
        )

    async def _consume_all(self, stopping: asyncio.Event) -> None:
        """Consume all subscriptions until `stopping`; then they have `drain_timeout` to finish."""
        worked = [(service, handler) for service in self.services for handler in service.worked]
        switches = {handler.subscription.name: PauseSwitch() for _, handler in worked}
        watches = [
            PauseWatch(service, switches, self._clock)
            for service in self.services
            if service.worked and service.needs_database
        ]
        for watch in watches:
            await watch.begin(stopping)
        suspects = asyncio.Lock()
        subscriptions = [
            ConsumedSubscription(
                service,
                handler,
                self.transport,
                self._clock,
                stopping,
                switches[handler.subscription.name],
                self._announce_if_ready,
                suspects,
            )
            for service, handler in worked
        ]
        self.vitals.subscriptions = [subscription.vitals for subscription in subscriptions]
        async with asyncio.TaskGroup() as tasks:
            watching = [tasks.create_task(watch.run()) for watch in watches]
            consuming = [tasks.create_task(subscription.run()) for subscription in subscriptions]
            looking = [
                tasks.create_task(
                    BrokerDeadLetters(
                        service, handler, vitals, self.transport, self._clock, stopping
                    ).run()
                )
                for (service, handler), vitals in zip(
                    worked, self.vitals.subscriptions, strict=True
                )
                if BrokerDeadLetters.are_needed(handler, self.transport)
            ]
            self._announce_if_ready()  # a worker without subscriptions is
            await stopping.wait()
            self.vitals.stage = "draining"
            self._log.info("worker draining", timeout=self.settings.drain_timeout)
            late: set[asyncio.Task[None]] = set()
            if consuming:
                _, late = await asyncio.wait(consuming, timeout=self.settings.drain_timeout)
            for task in (*looking, *watching):
                task.cancel()
            if late:
                raise DrainTimeout(
                    f"{len(late)} subscription(s) were still handling messages "
                    f"{self.settings.drain_timeout:g} s after the worker was told to stop; their "
                    f"messages will be delivered again. Raise EVENTMESH_DRAIN_TIMEOUT if handlers "
                    f"need longer."
                )

    def _announce_if_ready(self) -> None:
        """Set `ready`, and log it, once every subscription is being consumed, or is paused."""
        expected = sum(len(service.worked) for service in self.services)
        consumed = [each for each in self.vitals.subscriptions if each.paused or not each.trouble]
        if self.ready.is_set() or len(consumed) < expected:
            return
        self.ready.set()
        self._host().log_ready()
