"""The mesh of a FastStream app on Redis Streams.

FastStream reads the streams and acknowledges. What its read loop does not do is done beside it, by
the code of EventMesh's own consumer: extending leases during handling, delayed retries, dead
letters, and trimming. A FastStream subscriber reads one stream, so a handler has several
subscribers: two for each message's stream and two for the stream of its retries, of which one reads
new entries and one recovers entries that a dead process left pending.
"""

from __future__ import annotations

import asyncio
import math
import os
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any

from faststream import AckPolicy, PublishCommand, StreamMessage
from faststream.redis import RedisBroker, RedisPublishCommand, StreamSub
from faststream.redis.message import RedisStreamMessage

from eventmesh.contracts.message import Message, identity_of
from eventmesh.errors import Unreachable, UsageError
from eventmesh.integrations.faststream.intake import Arrival, Intake
from eventmesh.integrations.faststream.mesh import Mesh
from eventmesh.runtime.backoff import Reconnect
from eventmesh.runtime.declaring.handler import Handler
from eventmesh.runtime.declaring.service import DeclaredService as Service
from eventmesh.runtime.outage_log import OutageLog
from eventmesh.transports.base import Delivery
from eventmesh.transports.outcome import Done, Outcome, RetryAfter
from eventmesh.transports.redis.address import locator_for, parse_broker_url
from eventmesh.transports.redis.connection import Redis
from eventmesh.transports.redis.entries import read_entry, read_parcel
from eventmesh.transports.redis.keys import Keys, Layout
from eventmesh.transports.redis.settlement import SettlementCommands
from eventmesh.transports.redis.transport import RedisTransport
from eventmesh.transports.redis.upkeep import Token, Upkeep

BLOCK_MS = 500
"""Milliseconds that a read waits for the next message."""

RECOVERIES = 4
"""How often, in each visibility timeout, FastStream looks for entries that were left pending."""

_FASTSTREAM_DATA = b"__data__"


class RedisMesh(Mesh["_RedisIntake"]):
    """A service whose handlers run in the FastStream app of this broker."""

    schemes = ("redis", "rediss")

    def __init__(self, service: Service, broker: RedisBroker) -> None:
        super().__init__(service)
        self._broker = broker
        self._layout = Layout(service.settings.broker_prefix, one_slot=False)
        self._consumer = f"{socket.gethostname()}-{os.getpid()}-{service.clock.new_id()}"
        broker.add_middleware(self)

    def subscribe(self, handler: Handler, function: Callable[..., Any], **options: Any) -> Any:
        intake = _RedisIntake(self.service, handler, self._layout, self._consumer)
        self._intakes.append(intake)
        for stream in intake.keys.streams:
            function = self._read(intake, stream, handler.concurrency, options)(function)
            function = self._recover(intake, stream, options)(function)
        return function

    def publisher(self, message: type[Message], **options: Any) -> Any:
        """A FastStream publisher of this message, which our service owns or sends. `options` are
        those of `broker.publisher`."""
        self.service.publisher(message)
        return self._broker.publisher(
            stream=self.destination(message), **{"schema": message, **options}
        )

    def destination(self, message: type[Message]) -> str:
        return self._layout.stream(identity_of(message).name)

    def is_addressed_by(self, command: PublishCommand) -> bool:
        return isinstance(command, RedisPublishCommand) and command.destination.startswith(
            self._layout.stream("")
        )

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        url = self.service.settings.broker_url
        self.check_broker(url)
        place = parse_broker_url(url)
        redis = Redis(url, dict(place.options), locator_for(place, self._layout.stream("any")))
        for intake in self._intakes:
            intake.redis = redis
        try:
            await self._check_one_slot(url)
            async with super().lifespan():
                yield
        finally:
            await redis.close()

    async def _check_one_slot(self, url: str) -> None:
        """UsageError if the prefix is spread over several slots: FastStream reads one."""
        transport = RedisTransport(url, self.service.clock, self.service.settings.transport_options)
        try:
            await transport.connect()
        finally:
            await transport.close()
        if transport.slots > 1:
            prefix = self.service.settings.broker_prefix
            raise UsageError(
                f"The prefix {prefix!r} is spread over {transport.slots} slots, and a FastStream "
                f"app reads one. Run the handlers in a worker (service.subscriber), or use another "
                f"prefix (EVENTMESH_BROKER_PREFIX)."
            )

    def upkeep(self) -> Sequence[Coroutine[Any, Any, None]]:
        return [intake.keep_up() for intake in self._intakes]

    def _read(
        self, intake: _RedisIntake, stream: str, concurrency: int, options: dict[str, Any]
    ) -> Any:
        """A subscriber to new entries of a stream, one at a time, so that whatever FastStream has
        read is being handled."""
        subscriber = self._broker.subscriber(
            stream=StreamSub(
                stream,
                group=intake.keys.group,
                consumer=self._consumer,
                max_records=1,
                polling_interval=BLOCK_MS,
            ),
            parser=intake.parse,
            decoder=intake.decode,
            ack_policy=AckPolicy.NACK_ON_ERROR,
            no_reply=True,
            max_workers=concurrency if concurrency > 1 else None,
            **{"include_in_schema": stream != intake.keys.retry, **options},
        )
        intake.serve(subscriber)
        return subscriber

    def _recover(self, intake: _RedisIntake, stream: str, options: dict[str, Any]) -> Any:
        """A subscriber to entries of a stream that a dead process left pending."""
        min_idle_ms = math.ceil(intake.visibility_timeout * 1000)
        subscriber = self._broker.subscriber(
            stream=StreamSub(
                stream,
                group=intake.keys.group,
                consumer=self._consumer,
                min_idle_time=min_idle_ms,
                polling_interval=max(1, min_idle_ms // RECOVERIES),
            ),
            parser=intake.parse_recovered,
            decoder=intake.decode,
            ack_policy=AckPolicy.NACK_ON_ERROR,
            no_reply=True,
            **{**options, "include_in_schema": False},
        )
        intake.serve(subscriber)
        return subscriber


class _RedisIntake(Intake):
    """The streams of one subscription. `redis` is set while the mesh runs."""

    redis: Redis

    def __init__(self, service: Service, handler: Handler, layout: Layout, consumer: str) -> None:
        super().__init__(service, handler)
        self.keys: Keys = layout.of(handler.subscription)
        self.visibility_timeout = service.settings.visibility_timeout
        self._clock = service.clock
        self._consumer = consumer
        self._commands = SettlementCommands(self.keys, consumer, service.clock)
        self._held: set[Token] = set()
        self._upkeep: Upkeep | None = None

    async def parse(self, incoming: Any, original: Callable[[Any], Any]) -> StreamMessage[Any]:
        """FastStream's parser for an entry that is delivered for the first time."""
        message: StreamMessage[Any] = await self._parse(incoming, original)
        self._note(message, incoming, 1)
        return message

    async def parse_recovered(
        self, incoming: Any, original: Callable[[Any], Any]
    ) -> StreamMessage[Any]:
        """FastStream's parser for an entry that was delivered before."""
        message: RedisStreamMessage = await self._parse(incoming, original)
        self._note(message, incoming, await message.get_delivery_count())
        return message

    async def settle(self, delivery: Delivery, outcome: Outcome) -> bool:
        if isinstance(outcome, Done):
            stream, _ = delivery.token
            if stream == self.keys.retry:
                await self.redis.batch(self._commands.finish([delivery]))
            return True
        await self.redis.batch([self._commands.move(delivery, outcome)])
        if isinstance(outcome, RetryAfter) and outcome.delay > 0 and self._upkeep is not None:
            self._upkeep.delay_asked()
        # The move has acknowledged it, or it is not ours any more and must not be acknowledged.
        return False

    def let_go(self, arrival: Arrival) -> None:
        if not arrival.held_already:
            self._held.discard(arrival.delivery.token)

    async def keep_up(self) -> None:
        """Run the upkeep of EventMesh's own consumers until cancelled."""
        reconnect = Reconnect(self._clock)
        log = self._log.bind(subscription=self.handler.subscription.name)
        outage = OutageLog(self._clock, log)
        while True:
            self._upkeep = Upkeep(
                self.redis,
                self.keys,
                self._consumer,
                self._held,
                self._clock,
                self.visibility_timeout,
            )
            tasks = self._upkeep.start()
            try:
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
            except Unreachable as error:
                outage.failed("subscription waiting for broker", error)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks)
            await reconnect.wait()

    async def _parse(self, incoming: Any, original: Callable[[Any], Any]) -> Any:
        """FastStream's message for an entry of its own format, because it cannot read ours."""
        return await original({**incoming, "data": {_FASTSTREAM_DATA: b"{}"}})

    def _note(self, message: StreamMessage[Any], incoming: Any, deliveries: int) -> None:
        token = (incoming["channel"], incoming["message_ids"][0])
        fields = [part for pair in incoming["data"].items() for part in pair]
        retry = token[0] == self.keys.retry
        opened, attempt = read_parcel(fields) if retry else (read_entry(fields), 1)
        delivery = Delivery.of(opened, attempt, deliveries, token)
        message.body = delivery.envelope.data
        message.headers = dict(delivery.envelope.attributes)
        self.note(message, Arrival(self, delivery, incoming, held_already=token in self._held))
        self._held.add(token)
