"""The worker: one process that runs the handlers and relays of some services until told to stop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import structlog

from eventmesh.clock import Clock
from eventmesh.errors import DrainTimeout, Unreachable
from eventmesh.redact import redact
from eventmesh.runtime.backoff import Reconnect
from eventmesh.runtime.cancellation import Leaked, leaks_caught
from eventmesh.runtime.consuming.group import GroupRunner, Settlement
from eventmesh.runtime.consuming.lanes import split
from eventmesh.runtime.declaring.handler import Handler
from eventmesh.runtime.declaring.service import Service
from eventmesh.runtime.declaring.settings import Settings
from eventmesh.runtime.hosting import check_before_start
from eventmesh.runtime.relaying.relay import Relay
from eventmesh.runtime.vitals import SubscriptionVitals, Vitals
from eventmesh.transports.base import Consumer, Delivery, Transport


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

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop` is set, then finish what was begun and give back the rest."""
        async with self._opened():
            self.vitals.stage = "running"
            consumers_left = asyncio.Event()
            relays = await self._relays()
            self.vitals.relays = [relay.vitals for relay in relays]
            async with asyncio.TaskGroup() as tasks:
                for relay in relays:
                    tasks.create_task(relay.run(consumers_left))
                tasks.create_task(self._consume_all(stop, consumers_left))
        self.vitals.stage = "stopped"
        self._log.info("worker has stopped")

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

    async def _consume_all(self, stop: asyncio.Event, left: asyncio.Event) -> None:
        """Run all subscriptions until `stop`; then they have `drain_timeout` to finish."""
        async with asyncio.TaskGroup() as tasks:
            stopping = tasks.create_task(stop.wait())
            consuming = [
                tasks.create_task(self._consume(service, handler, stopping))
                for service in self.services
                for handler in service.worked
            ]
            self._say_if_ready()  # a worker without subscriptions is
            await asyncio.wait([stopping])
            self.vitals.stage = "draining"
            self._log.info("worker drains", timeout=self.settings.drain_timeout)
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
        left.set()

    async def _consume(
        self, service: Service, handler: Handler, stopping: asyncio.Future[Any]
    ) -> None:
        """Consume one subscription until `stopping`, through every loss of a server."""
        reconnect = Reconnect(self._clock)
        vitals = SubscriptionVitals(service.name, handler.subscription, self._clock)
        self.vitals.subscriptions.append(vitals)
        runners = [GroupRunner(service, handler, vitals) for _ in range(handler.concurrency)]
        while not stopping.done():
            try:
                with leaks_caught():
                    await self._consume_once(handler, runners, vitals, reconnect, stopping)
            except (Unreachable, Leaked) as error:
                await self._wait(reconnect, stopping, vitals, error)

    async def _consume_once(
        self,
        handler: Handler,
        runners: Sequence[GroupRunner],
        vitals: SubscriptionVitals,
        reconnect: Reconnect,
        stopping: asyncio.Future[Any],
    ) -> None:
        """Consume, in as many lanes as there are runners, until `stopping`, or until it is to be
        done more carefully or no longer so; Unreachable once the broker is lost."""
        careful = any(runner.careful for runner in runners)
        most = 1 if careful else max(self.settings.prefetch, len(runners))
        anew: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        async with (
            self.transport.consume(handler.subscription, prefetch=most) as consumer,
            split(consumer, len(runners), most) as lanes,
        ):
            with vitals.consuming():
                self._say_if_ready()
                await _all_of(
                    self._serve(number, lane, runner, vitals, reconnect, stopping, anew)
                    for number, (lane, runner) in enumerate(zip(lanes, runners, strict=True))
                )

    async def _serve(
        self,
        number: int,
        lane: Consumer,
        runner: GroupRunner,
        vitals: SubscriptionVitals,
        reconnect: Reconnect,
        stopping: asyncio.Future[Any],
        anew: asyncio.Future[None],
    ) -> None:
        """Handle what comes to one lane, batch after batch, until either future is done."""
        careful = runner.careful
        with leaks_caught():
            while deliveries := await _receive(lane, runner.size, stopping, anew):
                with vitals.handling(number):
                    settlements = await self._run(runner, deliveries, vitals, stopping)
                await lane.settle(settlements)
                vitals.settled(outcome for _, outcome in settlements)
                reconnect.succeeded()
                if runner.careful != careful and not anew.done():
                    anew.set_result(None)

    async def _run(
        self,
        runner: GroupRunner,
        deliveries: Sequence[Delivery],
        vitals: SubscriptionVitals,
        stopping: asyncio.Future[Any],
    ) -> Sequence[Settlement]:
        """Run a batch, through every loss of the database. Meanwhile it is held: given back, it
        would come again at once, and count as handed out once more."""
        reconnect = Reconnect(self._clock)
        while not stopping.done():
            try:
                return await runner.run(deliveries, stopping.done)
            except Unreachable as error:
                await self._wait(reconnect, stopping, vitals, error)
        return ()

    async def _wait(
        self,
        reconnect: Reconnect,
        stopping: asyncio.Future[Any],
        vitals: SubscriptionVitals,
        error: Exception,
    ) -> None:
        self._log.warning(
            "subscription waits", subscription=vitals.subscription.name, error=str(error)
        )
        with vitals.standing_still(str(error)):
            await reconnect.wait(stopping)

    def _say_if_ready(self) -> None:
        """Tell, once, that everything is consumed."""
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


async def _all_of(works: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Run these lanes to their ends, also when the broker is lost in one: the others hear of it
    when they have handled what they began. Raises what the first that failed raised."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        done, others = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        if others and all(isinstance(task.exception(), Unreachable | None) for task in done):
            await asyncio.wait(others)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    errors = [error for task in tasks if not task.cancelled() and (error := task.exception())]
    if errors:
        raise next((error for error in errors if not isinstance(error, Unreachable)), errors[0])


async def _receive(
    consumer: Consumer, limit: int, *ends: asyncio.Future[Any]
) -> Sequence[Delivery]:
    """The next deliveries; none once any of these is done."""
    if any(end.done() for end in ends):
        return ()
    receiving = asyncio.ensure_future(consumer.receive(limit))
    waits: list[asyncio.Future[Any]] = [receiving, *ends]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        return receiving.result() if receiving.done() else ()
    finally:
        if not receiving.done():
            receiving.cancel()
            # Cancelled for good before the consumer is left: it may hold deliveries.
            await asyncio.wait([receiving])
