"""One subscription of a worker, consumed until the worker stops, through every lost connection.

Messages are received in batches, each batch goes through the handler, and the broker is told what
became of every message. With `concurrency=n` this happens in n lanes (see `lanes`).

A lost broker ends the consumer: what was not settled will be delivered again, so its lanes finish
what they began, and the subscription is consumed anew when the broker is back. A lost database does
not: the batch is held until the database is back, because a batch that was given back would come
again at once, and its redelivery count would grow as if it had killed its worker.

| state                | until                                | in the log                         |
|----------------------|--------------------------------------|------------------------------------|
| consuming            | a server is lost, the worker stops   | subscription consuming again       |
| consuming cautiously | as above, or ten first deliveries    | subscription entered cautious mode |
| waiting for broker   | it accepts a consumer                | subscription waiting for broker    |
| waiting for database | a batch has been committed           | subscription waiting for database  |
| paused               | an operator resumes it               | subscription paused, resumed       |
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import Any

import structlog

from eventmesh.clock import Clock
from eventmesh.errors import Unreachable
from eventmesh.runtime.backoff import Reconnect
from eventmesh.runtime.cancellation import LeakedCancellation, leaked_cancellations_raised
from eventmesh.runtime.consuming.batch import BatchRunner
from eventmesh.runtime.consuming.dead_letter_signal import tell_sagas
from eventmesh.runtime.consuming.lanes import split
from eventmesh.runtime.consuming.pausing import PauseSwitch
from eventmesh.runtime.consuming.poison import CautiousMode
from eventmesh.runtime.declaring.handler import Handler
from eventmesh.runtime.declaring.service import DeclaredService as Service
from eventmesh.runtime.outage_log import OutageLog
from eventmesh.runtime.vitals import SubscriptionVitals
from eventmesh.transports.base import Consumer, Delivery, Transport


class ConsumedSubscription:
    """Consumes the subscription of one handler until `stopping` is set.

    `on_consuming` is called each time that the broker has accepted a consumer, and when the
    subscription turns out to be paused. All subscriptions of a worker share `suspects`, see
    `poison`.
    """

    def __init__(
        self,
        service: Service,
        handler: Handler,
        transport: Transport,
        clock: Clock,
        stopping: asyncio.Event,
        switch: PauseSwitch,
        on_consuming: Callable[[], None],
        suspects: asyncio.Lock,
    ) -> None:
        self.vitals = SubscriptionVitals(service.name, handler.subscription, clock)
        self._handler = handler
        self._transport = transport
        self._clock = clock
        self._prefetch = service.settings.prefetch
        self._stopping = stopping
        self._switch = switch
        self._on_consuming = on_consuming
        self._broker_reconnect = Reconnect(clock)
        self._database_reconnect = Reconnect(clock)
        # A database counts the starts of suspects, which is more exact than what the broker counts.
        self._cautious_mode = CautiousMode(is_on=not service.needs_database)
        self._observes_deliveries = not service.needs_database
        self._tracing = service.tracing
        self._runners = [
            BatchRunner(
                service,
                handler,
                self.vitals,
                lambda: stopping.is_set() or switch.off.is_set(),
                self._wait_for_database,
                handler.traced_by(service.tracing),
                suspects,
            )
            for _ in range(handler.concurrency)
        ]
        self._log: structlog.stdlib.BoundLogger = structlog.get_logger("eventmesh.worker").bind(
            service=service.name, subscription=handler.subscription.name
        )
        self._outage = OutageLog(clock, self._log)

    async def run(self) -> None:
        """Consume until `stopping`, then finish the messages that were begun; the rest of what was
        received goes back to the broker."""
        while not self._stopping.is_set():
            try:
                with leaked_cancellations_raised():
                    await self._wait_while_paused()
                    if not self._stopping.is_set():
                        await self._consume()
            except Unreachable as error:
                await self._wait(self._broker_reconnect, "subscription waiting for broker", error)
            except LeakedCancellation as error:
                await self._wait(self._broker_reconnect, "subscription interrupted", error)

    async def _wait_while_paused(self) -> None:
        """Return once the subscription may be consumed, or the worker stops."""
        pause = self._switch.pause
        if pause is None:
            return
        self._log.warning("subscription paused", by=pause.who, reason=pause.reason)
        ends = [
            asyncio.ensure_future(self._switch.on.wait()),
            asyncio.ensure_future(self._stopping.wait()),
        ]
        self.vitals.paused = str(pause)
        try:
            self._on_consuming()
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.vitals.paused = ""
            for end in ends:
                end.cancel()
        if not self._stopping.is_set():
            self._log.info("subscription resumed")

    async def _consume(self) -> None:
        """Consume until `stopping`, or a pause, or until cautious mode begins or ends, for which
        another prefetch is needed; Unreachable once the broker is lost."""
        subscription = self._handler.subscription
        is_cautious = self._cautious_mode.is_on
        prefetch = 1 if is_cautious else max(self._prefetch, len(self._runners))
        ends: list[asyncio.Future[Any]] = [
            asyncio.ensure_future(self._stopping.wait()),
            asyncio.ensure_future(self._switch.off.wait()),
            mode_changed := asyncio.get_running_loop().create_future(),
        ]

        async def receive(lane: Consumer, runner: BatchRunner) -> Sequence[Delivery]:
            with runner.tracing.receiving() as received:
                deliveries = await _receive(lane, 1 if is_cautious else runner.size, ends)
                received(deliveries)
            return deliveries

        async def work_in_lane(number: int, lane: Consumer, runner: BatchRunner) -> None:
            with leaked_cancellations_raised():
                while deliveries := await receive(lane, runner):
                    if self._observes_deliveries:
                        self._cautious_mode = self._cautious_mode.after(deliveries)
                        if self._cautious_mode.is_on and not is_cautious:
                            if not mode_changed.done():
                                self._log.warning("subscription entered cautious mode")
                                mode_changed.set_result(None)
                            return  # what it received goes back, to be fetched one by one
                    with self.vitals.handling(number):
                        settlements = await runner.run(deliveries)
                    await tell_sagas(
                        settlements,
                        self._handler.models,
                        self._transport,
                        service=self.vitals.service,
                        clock=self._clock,
                        log=self._log,
                        tracing=self._tracing,
                    )
                    with runner.tracing.settling(settlements):
                        await lane.settle(settlements)
                    self.vitals.settled(outcome for _, outcome in settlements)
                    self._broker_reconnect.succeeded()
                    if settlements:
                        self._database_reconnect.succeeded()
                        self._note_recovery()
                    if is_cautious and not self._cautious_mode.is_on and not mode_changed.done():
                        mode_changed.set_result(None)

        try:
            async with (
                self._transport.consume(subscription, prefetch=prefetch) as consumer,
                split(
                    consumer,
                    len(self._runners),
                    prefetch,
                    is_ordered=subscription.order is not None,
                ) as lanes,
            ):
                with self.vitals.consuming():
                    self._note_recovery()
                    self._on_consuming()
                    await _all_of(
                        partial(work_in_lane, number, lane, runner)
                        for number, (lane, runner) in enumerate(
                            zip(lanes, self._runners, strict=True)
                        )
                    )
        finally:
            for end in ends:
                end.cancel()

    async def _wait_for_database(self, error: Unreachable) -> None:
        """What a lane does between two tries of its batch."""
        await self._wait(self._database_reconnect, "subscription waiting for database", error)

    async def _wait(self, reconnect: Reconnect, event: str, error: Exception) -> None:
        if self._outage.failed(event, error):
            self.vitals.interruptions += 1
        with self.vitals.waiting_for_server(str(error)):
            await reconnect.wait(self._stopping)

    def _note_recovery(self) -> None:
        if self._outage.ended():
            self._log.info("subscription consuming again")


async def _all_of(lanes: Iterable[Callable[[], Awaitable[None]]]) -> None:
    """Run these lanes to their ends. When the broker is lost in one, the others finish the batches
    that they began and then notice it, too. Raises the first error that is more than that;
    LeakedCancellation for a lane that was cancelled by what it called."""
    is_ending = False

    async def run(lane: Callable[[], Awaitable[None]]) -> None:
        try:
            await lane()
        except asyncio.CancelledError as error:
            if is_ending:
                raise
            # `asyncio.wait` would not return for it, and the lane would stand still.
            raise LeakedCancellation("a handler cancelled the task that it runs in") from error

    tasks = [asyncio.ensure_future(run(lane)) for lane in lanes]
    try:
        done, others = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        if others and all(isinstance(task.exception(), Unreachable | None) for task in done):
            await asyncio.wait(others)
    finally:
        is_ending = True
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    errors = [error for task in tasks if not task.cancelled() and (error := task.exception())]
    if errors:
        raise next((error for error in errors if not isinstance(error, Unreachable)), errors[0])


async def _receive(
    consumer: Consumer, limit: int, ends: Sequence[asyncio.Future[Any]]
) -> Sequence[Delivery]:
    """The next deliveries; none once one of `ends` is done."""
    if any(end.done() for end in ends):
        return ()
    receiving = asyncio.ensure_future(consumer.receive(limit))
    try:
        await asyncio.wait([receiving, *ends], return_when=asyncio.FIRST_COMPLETED)
        return receiving.result() if receiving.done() else ()
    finally:
        if not receiving.done():
            receiving.cancel()
            # Wait until it is cancelled, before the consumer is left: it may hold deliveries.
            await asyncio.wait([receiving])
