"""Ordered subscriptions on Redis: what the conformance suite cannot ask of every broker."""

from __future__ import annotations

import asyncio
import sys
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from eventmesh.transports.base import (
    Consumer,
    Delivery,
    Order,
    Subscription,
    Transport,
    publish_or_raise,
)
from eventmesh.transports.outcome import DONE, Dead, RetryAfter
from eventmesh.transports.redis import upkeep as redis_upkeep
from eventmesh.transports.redis.consumer import RedisConsumer
from eventmesh.transports.redis.ordered import consumer as ordered_consumer
from eventmesh.transports.redis.ordered.consumer import MOST_AT_ONCE, OrderedConsumer
from eventmesh.transports.redis.scripts.ordering import PEERS, TAKE_OVER
from eventmesh.transports.redis.transport import RedisTransport
from eventmesh.wire.envelope import Envelope
from tests.integration.redis_nodes import Node, eventually
from tests.integration.redis_traffic import envelopes, opened, take
from tests.support.promised_times import allowed

pytest_plugins = ["tests.integration.redis_fixtures"]

ORDERED = Subscription("shop.handle", ("shop.placed", "shop.cancelled"), Order())
UNORDERED = replace(ORDERED, order=None)
HOUR = 3600.0


def of_key(key: str, count: int, name: str = "shop.placed") -> list[Envelope]:
    return envelopes(count, name, partitionkey=key)


async def finish(consumer: Consumer, deliveries: Sequence[Delivery]) -> None:
    await consumer.settle([(each, DONE) for each in deliveries])


async def drained(transport: Transport, subscription: Subscription, count: int) -> list[str]:
    """The ids of this many messages, received and settled in turn."""
    ids: list[str] = []
    async with transport.consume(subscription, prefetch=50) as consumer:
        while len(ids) < count:
            batch = await take(consumer, 1)
            await finish(consumer, batch)
            ids += [each.envelope.id for each in batch]
    return ids


async def counts(transport: Transport, subscription: Subscription) -> dict[str, int | None]:
    stats = await transport.stats(subscription)
    return {name: getattr(stats, name) for name in ("ready", "delayed", "held", "in_flight")}


def by_key(sent: Sequence[Envelope], ids: Sequence[str]) -> dict[str | None, list[str]]:
    """The ids of each key, in the order of `ids`."""
    key_of = {each.id: each.key for each in sent}
    found: dict[str | None, list[str]] = defaultdict(list)
    for each in ids:
        found[key_of[each]].append(each)
    return found


@asynccontextmanager
async def killed_while_holding(node: Node, transport: RedisTransport) -> AsyncIterator[None]:
    """A process that has received five messages is killed on entering."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "eventmesh.testing.conformance.hostage", node.url),
        *(transport._options.prefix, "60", "5", "ordered", ORDERED.name, *ORDERED.messages),
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        assert await process.stdout.readline() == b"holding\n"
    finally:
        process.kill()
        await process.wait()
    yield


async def test_keys_of_a_killed_consumer_are_free_within_five_seconds(node: Node) -> None:
    """Although the visibility timeout is a minute: its connection is gone."""
    async with opened(node.url, visibility_timeout=60.0) as transport:
        await transport.declare([ORDERED])
        sent = of_key("a", 5)
        await publish_or_raise(transport, sent)
        async with (
            killed_while_holding(node, transport),
            transport.consume(ORDERED, prefetch=10) as consumer,
            asyncio.timeout(allowed(5.0)),
        ):
            got = await take(consumer, 5)
        assert [each.envelope.id for each in got] == [each.id for each in sent]
        assert {each.deliveries for each in got} == {2}


async def test_without_the_right_to_list_clients_keys_are_free_after_the_visibility_timeout(
    node: Node,
) -> None:
    node.tell("ACL", "SETUSER", "plain", "reset", "on", ">secret", "~*", "+@all", "-client|list")
    url = f"redis://plain:secret@127.0.0.1:{node.port}/0"
    async with opened(url, visibility_timeout=2.0) as transport:
        await transport.declare([ORDERED])
        await publish_or_raise(transport, of_key("a", 1))
        async with transport.consume(ORDERED, prefetch=1) as first:
            assert isinstance(first, OrderedConsumer)
            await take(first, 1)
            async with transport.consume(ORDERED, prefetch=1) as second:
                first._reader._tasks[1].cancel()  # its heartbeats, as if its process stood still
                [delivery] = await take(second, 1)
                assert delivery.deliveries == 2


async def test_a_consumer_that_lost_its_keys_delivers_and_settles_nothing_of_them(
    node: Node,
) -> None:
    async with opened(node.url, visibility_timeout=3.0) as transport:
        await transport.declare([ORDERED])
        sent = of_key("a", 4)
        await publish_or_raise(transport, sent)
        keys = transport._layout.of(ORDERED)
        async with transport.consume(ORDERED, prefetch=4) as first:
            assert isinstance(first, OrderedConsumer)
            held = await take(first, 2)
            async with transport.consume(ORDERED, prefetch=10) as second:
                peers = await transport._redis.run(PEERS, keys.ordered, keys.group, second._name)
                await transport._redis.run(TAKE_OVER, keys.ordered, keys.group, *peers[0])
                got = await take(second, 4)
                assert [each.envelope.id for each in got] == [each.id for each in sent]
                assert [each.deliveries for each in got] == [2, 2, 2, 2]
                await first.settle([(held[0], DONE), (held[1], RetryAfter(60.0))])
                await eventually(
                    lambda: not first._holdings.buffered, "it knows that it lost its keys"
                )
                await finish(second, got)
                await publish_or_raise(transport, of_key("b", 1))
        assert await counts(transport, ORDERED) == {
            "ready": 1,
            "delayed": 0,
            "held": 0,
            "in_flight": 0,
        }


async def test_messages_of_several_types_are_in_order(node: Node) -> None:
    """Published one by one as fast as possible, so that many share a millisecond, and in batches
    that have a key's messages in several streams."""
    async with opened(node.url) as transport:
        await transport.declare([ORDERED])
        sent: list[Envelope] = []
        for number in range(300):
            name = ORDERED.messages[number * 7 % 3 % 2]
            sent += of_key(f"key-{number % 3}", 1, name)
            await publish_or_raise(transport, sent[-1:])
        for number in range(10):
            mixed = [
                each
                for place in range(20)
                for each in of_key(f"key-{place % 4}", 1, ORDERED.messages[(place + number) % 2])
            ]
            await publish_or_raise(transport, mixed)
            sent += mixed
        got: list[str] = []
        async with transport.consume(ORDERED, prefetch=37) as consumer:
            while len(got) < len(sent):
                batch = await consumer.receive(20)
                await finish(consumer, batch)
                got += [each.envelope.id for each in batch]
        assert by_key(sent, got) == by_key(sent, [each.id for each in sent])


async def test_a_key_may_have_a_large_backlog_of_many_types(node: Node) -> None:
    names = tuple(f"shop.kind{number}" for number in range(10))
    many = Subscription("shop.handle", names, Order())
    async with opened(node.url) as transport:
        await transport.declare([many])
        for _ in range(MOST_AT_ONCE // 50):  # so that all streams have entries of the same time
            mixed = [each for name in names for each in of_key("one", 50, name)]
            await publish_or_raise(transport, mixed)
        await publish_or_raise(transport, of_key("another", 1, names[0]))
        count, ids = len(names) * MOST_AT_ONCE + 1, set[str]()
        async with transport.consume(many, prefetch=MOST_AT_ONCE) as consumer:
            while len(ids) < count:
                batch = await consumer.receive(MOST_AT_ONCE)
                await finish(consumer, batch)
                ids.update(each.envelope.id for each in batch)


async def test_ids_grow_across_streams_although_the_clock_went_back(node: Node) -> None:
    """After a failover, Redis's clock can be behind the ids of the last messages."""
    async with opened(node.url) as transport:
        await transport.declare([ORDERED])
        first, second = of_key("a", 1), of_key("a", 1, "shop.cancelled")
        stream = transport._layout.stream("shop.placed")
        milliseconds = int(node.tell("TIME")[0]) * 1000 + 20_000
        node.tell("XADD", stream, f"{milliseconds}-0", "type", "shop.placed", "partitionkey", "a")
        await publish_or_raise(transport, first)  # its id comes after that of the stream
        transport._parts[0].publisher._be_careful(60.0)  # as after a lost connection
        await publish_or_raise(transport, second)
        got = await drained(transport, ORDERED, 3)
        assert got[1:] == [first[0].id, second[0].id]


async def test_order_is_switched_on_with_a_backlog(node: Node) -> None:
    """What was returned, retried and delayed before comes, and all that is new is in order."""
    async with opened(node.url) as transport:
        await transport.declare([UNORDERED])
        old = [each for key in "abcde" for each in of_key(key, 2)]
        await publish_or_raise(transport, old)
        async with transport.consume(UNORDERED, prefetch=8) as consumer:
            first, second, third, *_ = await take(consumer, 8)
            await consumer.settle(
                [(first, RetryAfter(1.0)), (second, RetryAfter(0.0)), (third, RetryAfter(0.05))]
            )
        new = [each for key in "abcde" for each in of_key(key, 3)]
        await publish_or_raise(transport, new)
        await transport.declare([ORDERED])
        assert (await transport.stats(ORDERED)).declared
        attempts: Counter[str] = Counter()
        got: list[str] = []
        async with transport.consume(ORDERED, prefetch=4) as consumer:
            while len(got) < len(old) + len(new):
                for each in await take(consumer, 1):
                    got.append(each.envelope.id)
                    attempts[each.envelope.id] = each.attempt
                    await finish(consumer, [each])
        assert sorted(got) == sorted(each.id for each in [*old, *new])
        ids = by_key([*old, *new], got)
        for key, expected in by_key(new, [each.id for each in new]).items():
            assert ids[key][-3:] == expected
        assert {attempts[each.envelope.id] for each in (first, second, third)} == {2}
        assert await counts(transport, ORDERED) == dict.fromkeys(
            ("ready", "delayed", "held", "in_flight"), 0
        )


async def test_an_ordered_consumer_waits_for_workers_without_order(
    node: Node, capsys: pytest.CaptureFixture[str]
) -> None:
    """What they have was published before. It comes first once they are stopped."""
    async with opened(node.url) as transport:
        await transport.declare([UNORDERED])
        sent = of_key("a", 3)
        await publish_or_raise(transport, sent)
        async with transport.consume(UNORDERED, prefetch=1) as old:
            assert isinstance(old, RedisConsumer)
            await take(old, 1)
            async with transport.consume(ORDERED, prefetch=10) as consumer:
                written: list[str] = []

                def has_warned() -> bool:
                    written.append(capsys.readouterr().out)
                    return "waiting for a worker without order" in "".join(written)

                await eventually(has_warned, "a warning")
                await old.leave()
                [first] = await take(consumer, 1)
                assert (first.envelope.id, first.deliveries) == (sent[0].id, 2)
                await finish(consumer, [first])
                rest = await take(consumer, 2)
                assert [each.envelope.id for each in rest] == [each.id for each in sent[1:]]
                await finish(consumer, rest)


async def test_order_is_switched_off_with_a_backlog(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mailboxes are emptied; retries keep their time and attempt, and what was held is released."""
    monkeypatch.setattr(redis_upkeep, "TRIM_INTERVAL", 0.05)
    monkeypatch.setattr(redis_upkeep, "MOVE_INTERVAL", 0.1)
    ordered = replace(ORDERED, order=Order(after_dead="hold"))
    async with opened(node.url) as transport:
        await transport.declare([ordered])
        sent = [each for key in "abc" for each in of_key(key, 3)]
        await publish_or_raise(transport, sent)
        async with transport.consume(ordered, prefetch=9) as consumer:
            got = {each.envelope.id: each for each in await take(consumer, 9)}
            failed = got[sent[0].id]
            await consumer.settle(
                [(failed, RetryAfter(HOUR)), (got[sent[3].id], Dead("no")), (got[sent[6].id], DONE)]
            )
        assert await counts(transport, ordered) == {
            "ready": 2,
            "delayed": 5,
            "held": 4,
            "in_flight": 0,
        }
        delayed = transport._layout.of(UNORDERED).delayed
        async with transport.consume(UNORDERED, prefetch=20) as consumer:
            found = await take(consumer, 6)
            await finish(consumer, found)
            [(parcel, due)] = await eventually(
                lambda: node.client().zrange(delayed, 0, -1, withscores=True), "the retry"
            )
            assert due / 1000 == pytest.approx(time.time() + HOUR, abs=HOUR / 2)
            node.client().zadd(delayed, {parcel: 0})
            [last] = await take(consumer, 1)
            await finish(consumer, [last])
        left = {each.id for each in sent} - {sent[3].id, sent[6].id, failed.envelope.id}
        assert {each.envelope.id for each in found} == left
        assert (last.envelope, last.attempt) == (failed.envelope, 2)
        async with transport.consume(UNORDERED, prefetch=20):
            await eventually(lambda: _is_gone(node), "nothing of the order is left")


async def test_nothing_is_counted_that_has_left_its_mailbox_as_order_is_off(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that was killed a moment ago still counts as one with order, so that the count is
    kept meanwhile."""
    monkeypatch.setattr(redis_upkeep, "TRIM_INTERVAL", 0.05)
    async with opened(node.url) as transport:
        await transport.declare([ORDERED])
        sent = [each for key in "abc" for each in of_key(key, 3)]
        await publish_or_raise(transport, sent)
        async with transport.consume(ORDERED, prefetch=9) as consumer:
            got = await take(consumer, 9)
            first_of_a = next(each for each in got if each.envelope.id == sent[0].id)
            await consumer.settle([(first_of_a, RetryAfter(60.0))])
        keys = transport._layout.of(ORDERED)
        node.tell("ZADD", keys.ordering[4], "+inf", "killed")
        async with transport.consume(UNORDERED, prefetch=9) as consumer:
            await take(consumer, 8)
            await eventually(
                lambda: node.tell("HGET", keys.order, "messages") == b"0", "all has left"
            )


def _is_gone(node: Node) -> bool:
    kinds = {key.decode().split(":")[1] for key in node.tell("KEYS", "*")}
    return kinds <= {"layout", "stream", "retry", "delayed", "dead"}


async def test_full_mailboxes_stop_the_intake(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ordered_consumer, "MOST_IN_MAILBOXES", 30)
    async with opened(node.url) as transport:
        await transport.declare([ORDERED])
        sent = of_key("failing", 100)
        await publish_or_raise(transport, sent)
        async with transport.consume(ORDERED, prefetch=10) as consumer:
            first, *_ = await take(consumer, 10)
            await consumer.settle([(first, RetryAfter(1.5))])
            others = of_key("other", 1)
            await publish_or_raise(transport, others)
            keys = transport._layout.of(ORDERED)
            await eventually(
                lambda: int(node.tell("HGET", keys.order, "messages")) >= 30, "mailboxes are full"
            )
            before, began = node.counters(), time.monotonic()
            await asyncio.sleep(1.0)
            after, seconds = node.counters(), time.monotonic() - began
            assert before is not None
            assert after is not None
            assert after[1] - before[1] < 150 * seconds, "it polls without pause"
            assert int(node.tell("HGET", keys.order, "messages")) < 50
            got: list[str] = []
            while len(got) < 101:  # the retry makes room
                batch = await take(consumer, 1)
                await finish(consumer, batch)
                got += [each.envelope.id for each in batch]
        assert by_key(sent, [each for each in got if each != others[0].id])["failing"] == [
            each.id for each in sent
        ]


@pytest.mark.parametrize("lost", ["order", "stream", "ready", "consumers", "everything"])
async def test_deleted_keys_are_restored(lost: str, node: Node) -> None:
    async with opened(node.url) as transport:
        await transport.declare([ORDERED])
        async with transport.consume(ORDERED, prefetch=10) as consumer:
            await publish_or_raise(transport, of_key("a", 1))
            await finish(consumer, await take(consumer, 1))
            if lost == "everything":
                node.tell("FLUSHALL")
            else:
                name = "shop.placed" if lost == "stream" else ORDERED.name
                node.tell("DEL", f"{transport._options.prefix}:{lost}:{name}")
            await publish_or_raise(transport, sent := of_key("b", 2))
            wanted = {each.id for each in sent}
            while wanted:
                batch = await take(consumer, 1)
                await finish(consumer, batch)
                wanted -= {each.envelope.id for each in batch}
        assert (await transport.stats(ORDERED)).declared


async def test_a_lost_count_is_made_again(node: Node) -> None:
    """And a mailbox that somebody deleted does not stop the others."""
    async with opened(node.url) as transport:
        await transport.declare([ORDERED])
        await publish_or_raise(transport, [*of_key("a", 3), *of_key("b", 2), *of_key("c", 2)])
        keys = transport._layout.of(ORDERED)
        async with transport.consume(ORDERED, prefetch=10) as consumer:
            got = await take(consumer, 7)
            first_of = {each.envelope.key: each for each in reversed(got)}
            await consumer.settle([(first_of["a"], RetryAfter(60.0))])
            node.tell("DEL", keys.order, f"{keys.ordering[1]}:c")
            await transport.declare([ORDERED])
            expected = {"ready": 0, "delayed": 3, "held": 2}
            found = await counts(transport, ORDERED)
            assert {name: found[name] for name in expected} == expected
            await consumer.settle([(first_of["c"], RetryAfter(60.0))])
            await consumer.settle([(first_of["b"], DONE)])
            assert await counts(transport, ORDERED) == expected | {"in_flight": 1}


async def test_streams_are_trimmed_although_keys_are_held(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eventmesh.transports.redis.ordered.upkeep.TRIM_INTERVAL", 0.05)
    node.set("stream-node-max-entries", 10)
    async with opened(node.url) as transport:
        await transport.declare([ORDERED])
        await publish_or_raise(transport, of_key("failing", 200))
        async with transport.consume(ORDERED, prefetch=300) as consumer:
            first, *_ = await take(consumer, 200)
            await consumer.settle([(first, RetryAfter(60.0))])
            stream = transport._layout.stream("shop.placed")
            await eventually(lambda: node.tell("XLEN", stream) < 20, "the stream is trimmed")
            assert (await counts(transport, ORDERED))["held"] == 199
            facts = await transport.examine(thorough=True)
            assert [each.waiting for each in facts.subscriptions or ()] == [200]


async def test_bytes_that_are_not_utf_8_pass_through_mailboxes(node: Node) -> None:
    async with opened(node.url) as transport:
        await transport.declare([ORDERED])
        data = bytes(range(256))
        sent = Envelope({"id": "ü\x7f\n\0", "type": "shop.placed", "partitionkey": "日本"}, data)
        await publish_or_raise(transport, [sent])
        async with transport.consume(ORDERED, prefetch=9) as consumer:
            for attempt in (1, 2):
                [delivery] = await take(consumer, 1)
                assert (delivery.envelope, delivery.attempt) == (sent, attempt)
                await consumer.settle([(delivery, RetryAfter(0.0))])
            [delivery] = await take(consumer, 1)
            await consumer.settle([(delivery, Dead("no"))])
            [letter] = await transport.dead_letters(ORDERED, limit=9)
            assert letter.envelope == sent
            await transport.replay(ORDERED, [letter.id])
            [delivery] = await take(consumer, 1)
            assert (delivery.envelope, delivery.attempt) == (sent, 1)
            found = await transport.find([ORDERED], [], ["日本"])
            assert [each.state for each in found.messages] == ["in_flight"]
