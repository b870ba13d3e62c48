"""Who competes on Redis Streams: EventMesh, redis-py by itself, and FastStream."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from faststream.redis import RedisBroker, StreamSub
from redis.asyncio import Redis

from benchmarks.measure import BATCH, Contender, Handle, Make
from benchmarks.messages import OrderPlaced
from benchmarks.ours import SUBSCRIPTION, ours
from eventmesh.wire.cloudevents import to_fields
from eventmesh.wire.envelope import Envelope

BLOCK_MS = 100

_PROTOCOL = 2
"""Of raw redis-py: its replies in RESP2 are flat lists, which it reads faster than RESP3's."""


class RedisContenders:
    """The contenders on one Redis, each made anew for every run."""

    def __init__(self, url: str) -> None:
        self._url = url

    async def version(self) -> str:
        """Of the server, with what makes a difference to its speed."""
        async with Redis.from_url(self._url, protocol=_PROTOCOL) as client:
            info: dict[str, Any] = await client.info()
        persistence = "on" if info["aof_enabled"] else "off"
        return f"Redis {info['redis_version']}, append-only file {persistence}"

    def ours(self) -> Make:
        @asynccontextmanager
        async def make() -> AsyncIterator[Contender]:
            name = _fresh_name()
            message = SUBSCRIPTION.messages[0]
            async with (
                _place(self._url, name, f"{name}:stream:{message}", SUBSCRIPTION.name) as place,
                ours(self._url, name, place) as contender,
            ):
                yield contender

        return make

    def raw(self, *, transaction: bool = False) -> Make:
        @asynccontextmanager
        async def make() -> AsyncIterator[Contender]:
            async with _stream(self._url) as place:
                yield _Raw(place, transaction)

        return make

    def faststream(
        self, *, publishing: str = "pipeline", batch: bool = False, max_workers: int | None = None
    ) -> Make:
        """`batch` gives the handler a list; then it has one acknowledgement for all of it."""

        @asynccontextmanager
        async def make() -> AsyncIterator[Contender]:
            async with (
                _stream(self._url) as place,
                # Its own logging off: two lines a message would be its slowest part.
                RedisBroker(self._url, logger=None) as broker,  # type: ignore[arg-type]
            ):
                yield _FastStream(
                    place, broker, await broker.connect(), publishing, batch, max_workers
                )

        return make


@dataclass
class _Place:
    client: Any  # redis-py's stubs know neither its replies in RESP2 nor bytes as names
    stream: str
    group: str

    async def stored(self, count: int) -> list[bytes]:
        entries = await self.client.xrange(self.stream, count=count + 1)
        return [b" ".join(fields.values()) for _, fields in entries]

    async def count(self) -> int:
        """How many messages have come here."""
        return await self.client.xlen(self.stream)

    async def unsettled(self) -> int:
        groups = await self.client.xinfo_groups(self.stream)
        return sum(group["pending"] + (group["lag"] or 0) for group in groups)


@dataclass
class _Raw:
    """The plain loop: read a hundred, validate and handle them, acknowledge them at once."""

    place: _Place
    transaction: bool

    async def publish(self, envelopes: Sequence[Envelope]) -> None:
        pipeline = self.place.client.pipeline(transaction=self.transaction)
        for envelope in envelopes:
            pipeline.xadd(self.place.stream, to_fields(envelope))
        await pipeline.execute()

    async def consume(self, handle: Handle, until: asyncio.Event) -> None:
        client, stream, group = self.place.client, self.place.stream, self.place.group
        validate = OrderPlaced.model_validate_json
        while not until.is_set():
            answer = await client.xreadgroup(
                group, "raw", {stream: ">"}, count=BATCH, block=BLOCK_MS
            )
            for _, entries in answer:
                for _, fields in entries:
                    handle(validate(fields[b"data"]))
                await client.xack(stream, group, *[entry_id for entry_id, _ in entries])


class _FastStream:
    """A stream subscriber with a group. The envelope's attributes are its headers."""

    def __init__(
        self,
        place: _Place,
        broker: RedisBroker,
        client: Any,
        publishing: str,
        batch: bool,
        max_workers: int | None,
    ) -> None:
        self.place = place
        self.broker = broker
        self._client = client
        self._publishing = publishing
        self._batch = batch
        self._max_workers = max_workers

    async def publish(self, envelopes: Sequence[Envelope]) -> None:
        match self._publishing:
            case "loop":
                for envelope in envelopes:
                    await self._publish(envelope)
            case "gather":
                await asyncio.gather(*map(self._publish, envelopes))
            case _:
                pipeline = self._client.pipeline(transaction=False)
                for envelope in envelopes:
                    await self._publish(envelope, pipeline=pipeline)
                await pipeline.execute()

    async def _publish(self, envelope: Envelope, **options: Any) -> None:
        await self.broker.publish(
            envelope.data,
            stream=self.place.stream,
            headers={**envelope.attributes, "content-type": "application/json"},
            **options,
        )

    async def consume(self, handle: Handle, until: asyncio.Event) -> None:
        async def take(event: OrderPlaced) -> None:
            if (waiting := handle(event)) is not None:
                await waiting

        async def take_all(events: list[OrderPlaced]) -> None:
            for event in events:
                handle(event)

        subscription = StreamSub(
            self.place.stream,
            group=self.place.group,
            consumer="faststream",
            max_records=BATCH,
            batch=self._batch,
        )
        subscriber = self.broker.subscriber(stream=subscription, max_workers=self._max_workers)
        subscriber(take_all if self._batch else take)
        await self.broker.start()
        await until.wait()
        await self.broker.stop()


def _fresh_name() -> str:
    return f"bench-{secrets.token_hex(6)}"


@asynccontextmanager
async def _stream(url: str) -> AsyncIterator[_Place]:
    """A new stream with a group that reads it from its beginning."""
    name = _fresh_name()
    async with _place(url, name, f"{name}:stream", "bench") as place:
        await place.client.xgroup_create(place.stream, place.group, id="0", mkstream=True)
        yield place


@asynccontextmanager
async def _place(url: str, name: str, stream: str, group: str) -> AsyncIterator[_Place]:
    """A place whose keys all begin with `name`; they are deleted on leaving."""
    async with Redis.from_url(url, protocol=_PROTOCOL) as client:
        try:
            yield _Place(client, stream, group)
        finally:
            if keys := [key async for key in client.scan_iter(f"{name}:*", count=1000)]:
                await client.delete(*keys)
