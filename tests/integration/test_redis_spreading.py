"""A prefix that is spread over several slots, so that several masters share its work."""

from __future__ import annotations

import asyncio
import secrets
from collections import defaultdict
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

import pytest

from eventmesh.errors import Unreachable, UsageError
from eventmesh.transports.base import (
    Order,
    Subscription,
    Transport,
    TransportOptions,
    publish_or_raise,
)
from eventmesh.transports.factory import open_transport
from eventmesh.transports.outcome import DONE, Dead
from eventmesh.transports.redis.keys import part_of_key
from eventmesh.wire.envelope import Envelope
from tests.integration.cancellation import growing_numbers, run_turns
from tests.integration.redis_clusters import PREFIX, Cluster, opened_on
from tests.integration.redis_nodes import Node, eventually
from tests.integration.redis_traffic import CLOCK, envelopes, running, take

pytest_plugins = ["tests.integration.redis_cluster_fixtures", "tests.integration.redis_fixtures"]

SPREAD = Subscription("orders.note_payment", ("payments.paid",))
IN_ORDER = Subscription("orders.settle", ("payments.paid",), Order())


def of_keys(keys: int, of_each: int) -> list[Envelope]:
    """Numbered messages of so many keys, in turn."""
    return [
        each
        for number in range(of_each)
        for key in range(keys)
        for each in envelopes(1, partitionkey=f"customer-{key}", number=str(number))
    ]


def options(prefix: str = PREFIX, *, create_missing: bool = True) -> TransportOptions:
    return TransportOptions(visibility_timeout=60.0, prefix=prefix, create_missing=create_missing)


# --- on a Cluster ---


async def test_the_masters_of_a_cluster_share_a_prefix(cluster: Cluster) -> None:
    async with opened_on(cluster, "?slots=6") as transport:
        await transport.declare([SPREAD])
        await publish_or_raise(transport, of_keys(60, 1))
        stored = [
            sum(master.tell("XLEN", key) for key in master.tell("KEYS", "{mesh*}:stream:*"))
            for master in cluster.masters
        ]
        assert sum(stored) == 60
        assert min(stored) >= 10
        async with transport.consume(SPREAD, prefetch=100) as consumer:
            got = await take(consumer, 60)
            await consumer.settle([(delivery, DONE) for delivery in got])
        assert len({each.envelope.id for each in got}) == 60
        stats = await transport.stats(SPREAD)
        assert (stats.ready, stats.in_flight) == (0, 0)


async def test_three_workers_keep_the_order_of_each_key_over_all_masters(
    cluster: Cluster,
) -> None:
    keys, of_each = 40, 15
    handled: dict[str, list[int]] = defaultdict(list)
    async with AsyncExitStack() as stack:
        transports = [
            await stack.enter_async_context(opened_on(cluster, "?slots=6")) for _ in range(3)
        ]
        await transports[0].declare([IN_ORDER])

        async def work(number: int) -> None:
            async with transports[number].consume(IN_ORDER, prefetch=20) as consumer:
                while True:
                    batch = await consumer.receive(10)
                    for delivery in batch:
                        envelope = delivery.envelope
                        handled[envelope.key or ""].append(int(envelope.attributes["number"]))
                    await asyncio.sleep(0.001)
                    await consumer.settle([(delivery, DONE) for delivery in batch])

        async with running(*(work(number) for number in range(3))):
            sent = of_keys(keys, of_each)
            for start in range(0, len(sent), 30):
                await publish_or_raise(transports[0], sent[start : start + 30])
            await eventually(
                lambda: sum(map(len, handled.values())) >= keys * of_each, "all were handled"
            )
    assert dict(handled) == {f"customer-{key}": list(range(of_each)) for key in range(keys)}


async def test_a_master_that_is_lost_leaves_the_messages_of_its_parts_unconfirmed(
    cluster: Cluster,
) -> None:
    async with opened_on(cluster, "?slots=3") as transport:
        await transport.declare([SPREAD])
        lost = next(node for node in cluster.masters if node is not cluster.owner)
        [prefix] = [
            key.decode().partition(":")[0] for key in lost.tell("KEYS", "*:stream:payments.paid")
        ]
        part = int(prefix.strip("{}").split(".")[1])
        await asyncio.to_thread(lost.kill)
        sent = of_keys(30, 1)
        result = await transport.publish(sent)
        there = {each.id for each in sent if part_of_key(each.key, 3) == part}
        assert (result.unconfirmed, result.rejected) == (there, {})
        assert isinstance(result.error, Unreachable)


# --- the record of the number of slots ---


@pytest.mark.parametrize(("first", "second"), [("?slots=3", ""), ("?slots=3", "?slots=3")])
async def test_a_url_that_says_nothing_means_the_recorded_number_of_slots(
    node: Node, first: str, second: str
) -> None:
    async with open_transport(f"{node.url}{first}", CLOCK, options()) as transport:
        await transport.declare([SPREAD])
        async with open_transport(f"{node.url}{second}", CLOCK, options()) as other:
            await publish_or_raise(other, of_keys(20, 1))
        async with transport.consume(SPREAD, prefetch=100) as consumer:
            assert len(await take(consumer, 20)) == 20


@pytest.mark.parametrize(("first", "second"), [("", 3), ("?slots=3", 1), ("?slots=3", 4)])
async def test_another_number_than_the_recorded_one_is_a_mistake(
    node: Node, first: str, second: int
) -> None:
    async with open_transport(f"{node.url}{first}", CLOCK, options()):
        pass
    with pytest.raises(UsageError) as caught:
        async with open_transport(f"{node.url}?slots={second}", CLOCK, options()):
            pass
    recorded = 3 if first else 1
    assert f"spread over {recorded} slot(s)" in str(caught.value)
    assert f"not over {second}. Drop slots={second}" in str(caught.value)
    async with open_transport(f"{node.url}?slots={second}", CLOCK, options("another")):
        pass


async def test_looking_records_nothing(node: Node) -> None:
    looking = options(create_missing=False)
    async with open_transport(f"{node.url}?slots=2", CLOCK, looking) as transport:
        await transport.stats(SPREAD)
    assert node.tell("KEYS", "*") == []
    async with open_transport(f"{node.url}?slots=3", CLOCK, options()):
        pass


async def test_the_record_is_restored_if_redis_has_lost_its_data(node: Node) -> None:
    async with open_transport(f"{node.url}?slots=3", CLOCK, options()) as transport:
        node.tell("FLUSHALL")
        await transport.declare([SPREAD])
        async with open_transport(node.url, CLOCK, options()) as other:
            await publish_or_raise(other, of_keys(20, 1))
        assert (await transport.stats(SPREAD)).ready == 20


# --- one consumer over several parts ---


async def test_parts_with_a_backlog_take_turns(node: Node) -> None:
    async with open_transport(f"{node.url}?slots=4", CLOCK, options()) as transport:
        await transport.declare([SPREAD])
        await publish_or_raise(transport, of_keys(100, 4))
        async with transport.consume(SPREAD, prefetch=40) as consumer:
            parts: list[int] = []
            while len(parts) < 160:  # four turns of half the prefetch, and as many again
                batch = await consumer.receive(20)
                parts += [part_of_key(each.envelope.key, 4) for each in batch]
                await consumer.settle([(each, DONE) for each in batch])
        assert sorted(set(parts)) == [0, 1, 2, 3]


@pytest.mark.parametrize("subscription", [SPREAD, IN_ORDER], ids=["spread", "in-order"])
async def test_a_consumer_waits_in_all_parts_while_nothing_arrives(
    node: Node, subscription: Subscription
) -> None:
    async with (
        open_transport(f"{node.url}?slots=4", CLOCK, options()) as transport,
        transport.consume(subscription, prefetch=40),
    ):
        await eventually(
            lambda: node.tell("INFO", "clients")["blocked_clients"] == 4, "four waiting reads"
        )


async def publish(transport: Transport) -> None:
    """Of new keys: those of a consumer that was cancelled in the middle may be held for as long as
    the visibility timeout."""
    keys = [f"customer-{secrets.token_hex(4)}" for _ in range(8)]
    sent = [each for key in keys for each in envelopes(1, partitionkey=key)]
    await publish_or_raise(transport, sent)


async def consume(transport: Transport) -> None:
    await publish(transport)
    async with transport.consume(IN_ORDER, prefetch=10) as consumer:
        await consumer.settle([(each, DONE) for each in await consumer.receive(10)])


@pytest.mark.parametrize("call", [publish, consume])
async def test_a_call_that_is_cancelled_while_it_asks_all_parts_raises_cancelled_error(
    node: Node, call: Callable[[Transport], Awaitable[None]]
) -> None:
    async with open_transport(f"{node.url}?slots=3", CLOCK, options()) as transport:
        for turns in growing_numbers(every_position=False):
            caller = asyncio.ensure_future(call(transport))
            await run_turns(turns)
            was_done = caller.done()
            caller.cancel()
            await asyncio.wait([caller])
            assert was_done or caller.cancelled(), f"after {turns} turns: {caller}"
            if was_done:
                break
    assert turns > 1


async def test_dead_letters_of_all_parts_are_replayed_and_discarded_by_their_ids(
    node: Node,
) -> None:
    async with open_transport(f"{node.url}?slots=3", CLOCK, options()) as transport:
        await transport.declare([SPREAD])
        sent = of_keys(9, 1)
        await publish_or_raise(transport, sent)
        async with transport.consume(SPREAD, prefetch=9) as consumer:
            got = {each.envelope.id: each for each in await take(consumer, 9)}
            for envelope in sent:
                await consumer.settle([(got[envelope.id], Dead("no"))])
                await asyncio.sleep(0.002)  # so that Redis's clock goes on
            letters = await transport.dead_letters(SPREAD, limit=100)
            assert [each.envelope.id for each in letters] == [each.id for each in sent]
            assert len({each.id[0] for each in letters}) == 3
            ids = [each.id for each in letters]
            assert list(await transport.replay(SPREAD, ids[5:], {ids[5]: b"other"})) == ids[5:]
            again = {each.envelope.id: each for each in await take(consumer, 4)}
            assert again.keys() == {each.id for each in sent[5:]}
            assert again[sent[5].id].envelope.data == b"other"
            assert list(await transport.discard(SPREAD, [ids[1], "0-1-0", ids[0]])) == [
                ids[1],
                ids[0],
            ]
            await consumer.settle([(each, DONE) for each in again.values()])
        assert (await transport.stats(SPREAD)).dead == 3


async def test_the_pattern_of_keys_in_the_documentation_suffices(node: Node) -> None:
    node.tell("ACL", "SETUSER", "least", "reset", "on", ">secret", "~mesh*", "+@all")
    url = f"redis://least:secret@127.0.0.1:{node.port}/0?slots=5"
    async with open_transport(url, CLOCK, options()) as transport:
        await transport.declare([SPREAD])
        await publish_or_raise(transport, of_keys(20, 1))
        assert (await transport.stats(SPREAD)).ready == 20
