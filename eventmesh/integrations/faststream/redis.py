"""The mesh of a FastStream app on Redis Streams.

FastStream reads the streams and acknowledges. What its loop leaves out is done beside it, with the
commands of EventMesh's own consumer: keeping alive what is being handled, delayed retries, dead
letters, and trimming. A FastStream subscriber reads one stream, so a handler has several: for each
message's stream and for the stream of its retries, one for what is new there, and one for what a
process left behind that is gone.
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
from eventmesh.errors import Unreachable
from eventmesh.integrations.faststream.intake import Arrival, Intake
from eventmesh.integrations.faststream.mesh import Mesh
from eventmesh.runtime.backoff import Reconnect
from eventmesh.runtime.declaring.handler import Handler
from eventmesh.runtime.declaring.service import Service
from eventmesh.transports.base import Delivery
from eventmesh.transports.outcome import Dead, Done, Outcome, RetryAfter
from eventmesh.transports.redis import scripts
from eventmesh.transports.redis.address import locator_for, understand
from eventmesh.transports.redis.connection import Redis
from eventmesh.transports.redis.entries import letter_fields, open_entry, open_parcel, parcel
from eventmesh.transports.redis.keys import Keys, Layout
from eventmesh.transports.redis.upkeep import Token, Upkeep

BLOCK_MS = 500
"""Milliseconds that a read waits for the next message."""

LOOKS = 4
"""How often, in each visibility timeout, FastStream looks for what was left behind."""

_FASTSTREAM_DATA = b"__data__"


class RedisMesh(Mesh):
    """A service whose handlers run in the FastStream app of this broker."""

    schemes = ("redis", "rediss")

    def __init__(self, service: Service, broker: RedisBroker) -> None:
        super().__init__(service)
        self._broker = broker
        self._layout = Layout(service.settings.broker_prefix, one_slot=False)
        self._consumer = f"{socket.gethostname()}-{os.getpid()}-{service.clock.new_id()}"
        self._redis_intakes: list[_RedisIntake] = []
        broker.add_middleware(self)

    def subscribe(self, handler: Handler, function: Callable[..., Any], **options: Any) -> Any:
        intake = _RedisIntake(self.service, handler, self._layout, self._consumer)
        self._intakes.append(intake)
        self._redis_intakes.append(intake)
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
        place = understand(url)
        redis = Redis(url, dict(place.options), locator_for(place, self._layout.stream("any")))
        for intake in self._redis_intakes:
            intake.redis = redis
        try:
            async with super().lifespan():
                yield
        finally:
            await redis.close()

    def upkeep(self) -> Sequence[Coroutine[Any, Any, None]]:
        return [intake.keep_up() for intake in self._redis_intakes]

    def _read(
        self, intake: _RedisIntake, stream: str, concurrency: int, options: dict[str, Any]
    ) -> Any:
        """A subscriber to what is new in a stream, one message at a time, so that what FastStream
        has taken is being handled."""
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
        """A subscriber to what has been left pending in a stream by a process that is gone."""
        silence_ms = math.ceil(intake.visibility_timeout * 1000)
        subscriber = self._broker.subscriber(
            stream=StreamSub(
                stream,
                group=intake.keys.group,
                consumer=self._consumer,
                min_idle_time=silence_ms,
                polling_interval=max(1, silence_ms // LOOKS),
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
    """The streams of one subscription. `redis` is there while the mesh runs."""

    redis: Redis

    def __init__(self, service: Service, handler: Handler, layout: Layout, consumer: str) -> None:
        super().__init__(service, handler)
        self.keys: Keys = layout.of(handler.subscription)
        self.visibility_timeout = service.settings.visibility_timeout
        self._clock = service.clock
        self._consumer = consumer
        self._held: set[Token] = set()
        self._upkeep: Upkeep | None = None

    async def parse(self, incoming: Any, original: Callable[[Any], Any]) -> StreamMessage[Any]:
        """FastStream's parser, of an entry that is delivered for the first time."""
        message: StreamMessage[Any] = await self._parse(incoming, original)
        self._note(message, incoming, 1)
        return message

    async def parse_recovered(
        self, incoming: Any, original: Callable[[Any], Any]
    ) -> StreamMessage[Any]:
        """FastStream's parser, of an entry that was delivered to somebody before."""
        message: RedisStreamMessage = await self._parse(incoming, original)
        self._note(message, incoming, await message.get_delivery_count())
        return message

    async def settle(self, delivery: Delivery, outcome: Outcome) -> bool:
        stream, entry_id = delivery.token
        match outcome:
            case Done():
                if stream == self.keys.retry:
                    await self.redis.run(scripts.FINISH, (stream,), self.keys.group, entry_id)
                return True
            case RetryAfter(delay) if delay > 0:
                content = parcel(delivery.envelope, delivery.attempt + 1, self._clock)
                await self._move(delivery, self.keys.delayed, math.ceil(delay * 1000), (content,))
                if self._upkeep is not None:
                    self._upkeep.delay_asked()
            case RetryAfter():
                content = parcel(delivery.envelope, delivery.attempt + 1, self._clock)
                await self._move(delivery, self.keys.retry, "", ("parcel", content))
            case Dead():
                fields = letter_fields(delivery, outcome, self._clock)
                await self._move(delivery, self.keys.dead, "", fields)
        # Acknowledged in the same step, or not ours any more: then it must not be acknowledged.
        return False

    def let_go(self, delivery: Delivery) -> None:
        self._held.discard(delivery.token)

    async def keep_up(self) -> None:
        """The upkeep of EventMesh's own consumers, until it is cancelled."""
        reconnect = Reconnect(self._clock)
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
                self._log.warning(
                    "subscription waiting for broker",
                    subscription=self.handler.subscription.name,
                    error=str(error),
                )
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks)
            await reconnect.wait()

    async def _parse(self, incoming: Any, original: Callable[[Any], Any]) -> Any:
        """What FastStream makes of an entry that it wrote itself, for it cannot read ours."""
        return await original({**incoming, "data": {_FASTSTREAM_DATA: b"{}"}})

    def _note(self, message: StreamMessage[Any], incoming: Any, deliveries: int) -> None:
        token = (incoming["channel"], incoming["message_ids"][0])
        fields = [part for pair in incoming["data"].items() for part in pair]
        retry = token[0] == self.keys.retry
        opened, attempt = open_parcel(fields) if retry else (open_entry(fields), 1)
        delivery = Delivery.of(opened, attempt, deliveries, token)
        message.body = delivery.envelope.data
        message.headers = dict(delivery.envelope.attributes)
        self.note(message, Arrival(self, delivery, held_already=token in self._held))
        self._held.add(token)

    async def _move(
        self, delivery: Delivery, target: str, delay_ms: int | str, content: Sequence[str | bytes]
    ) -> None:
        stream, entry_id = delivery.token
        await self.redis.run(
            scripts.RESETTLE,
            (stream, self.keys.retry, target),
            self.keys.group,
            self._consumer,
            entry_id,
            delay_ms,
            *content,
        )
