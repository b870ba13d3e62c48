"""Foreign content under the keys that EventMesh uses in Redis. It is either handled or becomes a
dead letter that can be listed, shown, replayed and discarded. It never stops a worker, and if
another program uses a key of EventMesh's for something else, nothing is lost."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest
from redis import Redis
from redis.exceptions import ResponseError

from eventmesh.errors import Unreachable
from eventmesh.transports.base import publish_or_raise
from eventmesh.transports.outcome import DONE, Dead, RetryAfter
from eventmesh.transports.redis import consumer as redis_consumer
from eventmesh.transports.redis import upkeep as redis_upkeep
from eventmesh.transports.redis.scripts.common import call
from eventmesh.transports.redis.scripts.upkeep import MOVE_DUE
from eventmesh.transports.redis.transport import RedisTransport
from tests.integration.conftest import BECAUSE
from tests.integration.redis_nodes import Node, eventually
from tests.integration.redis_traffic import PAID, Traffic, envelopes, running, take

if TYPE_CHECKING:
    from tests.integration.conftest import Project, Put

GOOD = b'{"owner": "ada", "cents": 1250}'

PARCELS = (
    b"1 x\n[1,2]\n{}",  # the head of the envelope is JSON, but not an object
    b"1 y\nnull\n{}",
    b'1 z\n{"id": 7}\n{}',  # an attribute that is not a string
    b"1 x\n{nothing\n{}",
    b'999999999999999999999 x\n{"id": "a"}\n{}',
    b'-1 x\n{"id": "a"}\n{}',
    b"",
    b"\n",
    b"\xff\xfe\x00",
)
"""Members of the set of delayed retries, and values of the field `parcel` in the retry stream."""

ENTRIES: tuple[dict[bytes, bytes], ...] = (
    {b"x": b"y"},
    {b"\xff": b"\xff", b"data": b"\xff"},
    {b"id": b"", b"type": b"bank.deposit", b"data": b"{}"},
    {b"specversion": b"1.0", b"id": b"a", b"source": b"/a", b"type": b"bank.deposit"},
)
"""Fields of entries in the stream of a message, the retry stream, and the dead letters."""

DUPLICATES = 2
"""Entries that are not listed again: those with an id are the same message in every place."""


async def test_a_worker_dead_letters_hostile_content_and_handles_the_rest(
    on: Callable[[str], Project], put: Put, attributes: Callable[..., dict[str, str]]
) -> None:
    bank = on("redis")
    with Redis.from_url(bank.environment["EVENTMESH_BROKER_URL"]) as redis:
        for parcel in PARCELS:
            redis.xadd(f"{bank.prefix}:retry:bank.deposit", {b"parcel": parcel})
            redis.zadd(f"{bank.prefix}:delayed:bank.deposit", {parcel: 0})
        for entry in ENTRIES:
            redis.xadd(f"{bank.prefix}:stream:bank.deposit", dict(entry))
            redis.xadd(f"{bank.prefix}:retry:bank.deposit", dict(entry))
            redis.xadd(f"{bank.prefix}:dead:bank.deposit", dict(entry))
    worker = bank.worker()
    await put(bank, attributes(), GOOD)
    worker.until_prints("ada has 12.50")
    count = 2 * len(PARCELS) + 3 * len(ENTRIES) - DUPLICATES
    letters = bank.letters(count)
    assert len(letters) == count
    assert all(letter["reason"] for letter in letters)
    as_they_came = {letter["data"] for letter in letters if not letter["attributes"]}
    assert "1 x\n[1,2]\n{}" in as_they_came
    assert "subscription waiting for broker" not in worker.events()
    worker.drain()

    bank.run("dlq", "list", "bank").succeeds(
        f"{count} dead letter(s)", "not written by EventMesh: it has no field named envelope"
    )
    bank.run("dlq", "show", "bank", letters[0]["id"]).succeeds("x = y")
    bank.run("dlq", "replay", "bank", *BECAUSE, "--all").succeeds(
        f"{count} dead letter(s) replayed"
    )
    worker = bank.worker()
    assert len(bank.letters(count)) == count
    assert "subscription waiting for broker" not in worker.events()
    worker.drain()
    bank.run("dlq", "discard", "bank", *BECAUSE, "--all").succeeds(
        f"{count} dead letter(s) discarded"
    )
    bank.run("dlq", "list", "bank").succeeds("0 dead letter(s)")


pytest_plugins = ["tests.integration.redis_fixtures"]


def key_of(node: Node, kind: str) -> str:
    """The subscription's key of this kind, whether it exists or not."""
    [stream] = [key.decode() for key in node.tell("KEYS", "*:stream:payments.paid")]
    prefix = stream.partition(":stream:")[0]
    return stream if kind == "stream" else f"{prefix}:{kind}:{PAID.name}"


# --- foreign dead letters ---

FOREIGN: tuple[dict[bytes, bytes], ...] = (
    {b"x": b"y"},
    {b"id": b"a", b"type": b"payments.paid", b"data": b"bare"},
    {b"envelope": b"[1]", b"reason": b"mine"},
    {b"reason": b"\xff", b"attempts": b"9" * 30, b"diedat": b"never"},
)


def put_foreign_letters(node: Node) -> None:
    with node.client() as client:
        for fields in FOREIGN:
            client.xadd(key_of(node, "dead"), dict(fields))
        client.xadd(key_of(node, "dead"), {"x": "y"}, id="18446744073709551614-1")


async def test_foreign_dead_letters_are_listed_and_discarded(
    node: Node, transport: RedisTransport
) -> None:
    put_foreign_letters(node)
    letters = await transport.dead_letters(PAID, limit=10)
    assert [letter.reason for letter in letters] == [
        "not written by EventMesh: it has no field named envelope",
        "not written by EventMesh: it has no field named envelope",
        "mine",
        "\\xff",
        "not written by EventMesh: it has no field named envelope",
    ]
    assert letters[1].envelope.attributes == {"id": "a", "type": "payments.paid"}
    assert letters[2].envelope.data == b"[1]"
    ids = [letter.id for letter in letters]
    assert await transport.discard(PAID, ids) == ids
    assert not await transport.dead_letters(PAID, limit=10)


async def test_foreign_dead_letters_are_replayed_unchanged(
    node: Node, transport: RedisTransport
) -> None:
    put_foreign_letters(node)
    letters = await transport.dead_letters(PAID, limit=10)
    ids = [letter.id for letter in letters]
    assert await transport.replay(PAID, ids) == ids
    async with transport.consume(PAID, prefetch=10) as consumer:
        got = await take(consumer, len(ids))
        assert got[1].envelope == letters[1].envelope
        assert (got[2].unreadable, got[2].envelope.data[-3:]) != ("", b"[1]")
        await consumer.settle([(delivery, DONE) for delivery in got])
    assert not await transport.dead_letters(PAID, limit=10)


# --- keys of another type ---


def wrong_type(key: str) -> str:
    """The error for a key of another type."""
    return (
        f"rejected a command: WRONGTYPE the key {key} does not hold what EventMesh keeps there. "
        f"Another program uses that key: rename or delete it, and EventMesh goes on"
    )


async def test_a_message_that_cannot_be_dead_lettered_is_delayed_and_the_rest_is_handled(
    node: Node, transport: RedisTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many there are, they do not block the messages behind them."""
    monkeypatch.setattr(redis_consumer, "REJECTED_DELAY", 0.3)
    dead = key_of(node, "dead")
    node.tell("SET", dead, "something else")
    bad, good = envelopes(5), envelopes(1)
    async with transport.consume(PAID, prefetch=2) as consumer:
        await publish_or_raise(transport, [*bad, *good])
        seen: set[str] = set()
        while good[0].id not in seen:
            got = await take(consumer, 1)
            seen.update(delivery.envelope.id for delivery in got)
            await consumer.settle(
                [(each, DONE if each.envelope in good else Dead("no")) for each in got]
            )
        node.tell("DEL", dead)
        for _ in bad:
            [again] = await take(consumer, 1)
            assert again.envelope in bad
            assert again.attempt == 1
            await consumer.settle([(again, Dead("no"))])
    assert len(await transport.dead_letters(PAID, limit=10)) == len(bad)


async def test_a_message_that_cannot_be_delayed_either_is_redelivered_and_the_rest_is_settled(
    node: Node, transport: RedisTransport
) -> None:
    sent = envelopes(3)
    await publish_or_raise(transport, sent)
    dead, delayed = key_of(node, "dead"), key_of(node, "delayed")

    async def settle_all() -> None:
        async with transport.consume(PAID, prefetch=3) as consumer:
            first, second, third = await take(consumer, 3)
            node.tell("SET", dead, "something else")
            node.tell("SET", delayed, "something else")
            await consumer.settle([(first, DONE), (second, Dead("no")), (third, DONE)])

    with pytest.raises(Unreachable, match=wrong_type(dead)):
        await settle_all()
    node.tell("DEL", dead, delayed)
    async with transport.consume(PAID, prefetch=3) as consumer:
        [again] = await take(consumer, 1)
        assert (again.envelope, again.deliveries) == (sent[1], 2)
        await consumer.settle([(again, Dead("no"))])
    stats = await transport.stats(PAID)
    assert (stats.ready, stats.delayed, stats.dead) == (0, 0, 1)


async def test_a_dead_letter_stream_without_free_ids_loses_no_message(
    node: Node, transport: RedisTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_consumer, "REJECTED_DELAY", 0.1)
    [sent] = envelopes(1)
    await publish_or_raise(transport, [sent])
    async with transport.consume(PAID, prefetch=1) as consumer:
        [delivery] = await take(consumer, 1)
        node.tell("XADD", key_of(node, "dead"), f"{2**64 - 1}-{2**64 - 1}", "x", "y")
        await consumer.settle([(delivery, Dead("no"))])
        [again] = await take(consumer, 1)
        assert again.envelope == sent
        await consumer.settle([(again, DONE)])


def out_of_memory(node: Node) -> None:
    node.set("maxmemory", 1)


def short_of_replicas(node: Node) -> None:
    node.set("min-replicas-to-write", 1)


def without_rights(node: Node) -> None:
    node.tell("ACL", "SETUSER", "default", "-zadd", "-xadd")


@pytest.fixture
def restore(node: Node) -> Iterator[Callable[[], None]]:
    def restore_node() -> None:
        node.set("maxmemory", 0)
        node.set("min-replicas-to-write", 0)
        node.tell("ACL", "SETUSER", "default", "+zadd", "+xadd")

    yield restore_node
    restore_node()


@pytest.mark.parametrize("break_node", [short_of_replicas, without_rights])
@pytest.mark.parametrize("outcome", [Dead("no"), RetryAfter(0.0)])
async def test_a_message_whose_outcome_redis_rejects_is_redelivered(
    outcome: Dead | RetryAfter,
    break_node: Callable[[Node], None],
    node: Node,
    transport: RedisTransport,
    restore: Callable[[], None],
) -> None:
    [sent] = envelopes(1)
    await publish_or_raise(transport, [sent])

    async def settle_it() -> None:
        async with transport.consume(PAID, prefetch=1) as consumer:
            [delivery] = await take(consumer, 1)
            break_node(node)
            try:
                await consumer.settle([(delivery, outcome)])
            finally:
                restore()

    with pytest.raises(Unreachable, match="rejected a command"):
        await settle_it()
    async with transport.consume(PAID, prefetch=1) as consumer:
        [delivery] = await take(consumer, 1)
        assert (delivery.envelope, delivery.deliveries) == (sent, 2)
        await consumer.settle([(delivery, DONE)])


async def test_every_outcome_can_be_settled_while_redis_is_out_of_memory(
    node: Node, transport: RedisTransport, restore: Callable[[], None]
) -> None:
    node.set("maxmemory-policy", "noeviction")
    sent = envelopes(4)
    await publish_or_raise(transport, sent)
    async with transport.consume(PAID, prefetch=4) as consumer:
        done, dead, now, later = await take(consumer, 4)
        out_of_memory(node)
        await consumer.settle(
            [(done, DONE), (dead, Dead("no")), (now, RetryAfter(0.0)), (later, RetryAfter(0.1))]
        )
        again = await take(consumer, 2)
        assert [each.envelope for each in again] == [now.envelope, later.envelope]
        await consumer.settle([(delivery, DONE) for delivery in again])
        [letter] = await transport.dead_letters(PAID, limit=10)
        assert letter.envelope == dead.envelope
    restore()


async def test_a_census_counts_entries_that_it_cannot_read(
    node: Node, transport: RedisTransport
) -> None:
    with node.client() as client:
        for parcel in PARCELS:
            client.xadd(key_of(node, "retry"), {b"parcel": parcel})
            client.zadd(key_of(node, "delayed"), {parcel: 0})
            client.xadd(key_of(node, "dead"), {b"envelope": parcel})
        for entry in ENTRIES:
            for kind in ("stream", "retry", "dead"):
                client.xadd(key_of(node, kind), dict(entry))
    census = await transport.census([PAID], PAID.messages)
    count = 3 * len(PARCELS) + 3 * len(ENTRIES)
    assert sum(lot.number for lot in census.lots.values()) == count


async def test_a_due_retry_that_cannot_be_moved_is_kept(
    node: Node, transport: RedisTransport
) -> None:
    """A due retry stays in the delayed set while the key of the retry stream has another type."""
    [sent] = envelopes(1)
    await publish_or_raise(transport, [sent])
    retry = key_of(node, "retry")
    async with transport.consume(PAID, prefetch=1) as consumer:
        [delivery] = await take(consumer, 1)
        await consumer.settle([(delivery, RetryAfter(3600.0))])
    [(parcel, _)] = node.client().zrange(key_of(node, "delayed"), 0, -1, withscores=True)
    node.client().zadd(key_of(node, "delayed"), {parcel: 0})
    node.tell("DEL", retry)
    node.tell("SET", retry, "something else")
    with node.client() as client, pytest.raises(ResponseError, match=f"the key {retry} does"):
        client.execute_command(*call(MOVE_DUE, (key_of(node, "delayed"), retry), 100, "nothing"))
    node.tell("DEL", retry)
    async with transport.consume(PAID, prefetch=1) as consumer:
        [again] = await take(consumer, 1)
        assert (again.envelope, again.attempt) == (sent, 2)
        await consumer.settle([(again, DONE)])


async def test_a_dead_letter_that_cannot_be_replayed_is_kept(
    node: Node, transport: RedisTransport
) -> None:
    put_foreign_letters(node)
    retry = key_of(node, "retry")
    node.tell("DEL", retry)
    node.tell("SET", retry, "something else")
    letters = await transport.dead_letters(PAID, limit=10)
    with pytest.raises(Unreachable, match=wrong_type(retry)):
        await transport.replay(PAID, [letter.id for letter in letters])
    assert await transport.dead_letters(PAID, limit=10) == letters


async def test_the_error_for_a_key_of_another_type_names_the_key(
    node: Node, transport: RedisTransport
) -> None:
    dead, delayed = key_of(node, "dead"), key_of(node, "delayed")
    node.tell("SET", dead, "something else")
    node.tell("SET", delayed, "something else")
    with pytest.raises(Unreachable, match=wrong_type(dead)):
        await transport.dead_letters(PAID, limit=10)
    with pytest.raises(Unreachable, match=wrong_type(dead)):
        await transport.discard(PAID, ["1-0"])
    with pytest.raises(Unreachable, match=wrong_type(delayed)):
        await transport.stats(PAID)


@pytest.mark.parametrize("kind", ["stream", "retry", "delayed", "dead"])
async def test_consuming_resumes_once_a_key_of_another_type_is_deleted(
    kind: str, node: Node, transport: RedisTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a stream is affected, consuming waits until the key is deleted. If only the keys for
    retries or dead letters are, other messages are still handled."""
    monkeypatch.setattr(redis_upkeep, "TRIM_INTERVAL", 0.05)
    traffic = Traffic(transport)
    async with running(traffic.keep_consuming()):
        await traffic.publish(envelopes(1))
        await traffic.until_all_is_handled()
        name = key_of(node, kind)
        node.tell("DEL", name)
        node.tell("SET", name, "something else")
        if kind in ("stream", "retry"):
            await eventually(
                lambda: re.search(wrong_type(name), "\n".join(traffic.consuming_errors)),
                "an error that names the key",
            )
        if kind != "stream":
            await traffic.publish(envelopes(1))
        if kind in ("delayed", "dead"):
            await traffic.until_all_is_handled()
        node.tell("DEL", name)
        await traffic.publish(envelopes(1))
        await traffic.until_all_is_handled()


async def test_of_a_batch_only_the_message_with_too_many_attributes_is_rejected(
    transport: RedisTransport,
) -> None:
    """It is part of a batch whose messages of one key go to several streams, by a script."""
    [small] = envelopes(1, partitionkey="k")
    [big] = envelopes(1, "payments.failed", partitionkey="k")
    [other] = envelopes(1, partitionkey="other")
    big.attributes.update({f"x{number}": "" for number in range(5000)})  # type: ignore[attr-defined]
    result = await transport.publish([small, big, other])
    assert list(result.rejected) == [big.id]
    assert (await transport.stats(PAID)).ready == 2


# --- keys deleted while messages are handled ---


@pytest.mark.parametrize("kind", ["retry", "delayed"])
async def test_retries_continue_after_their_keys_were_deleted(
    kind: str, node: Node, transport: RedisTransport
) -> None:
    await publish_or_raise(transport, envelopes(1))
    async with transport.consume(PAID, prefetch=1) as consumer:
        for attempt in range(1, 7):
            [delivery] = await take(consumer, 1)
            assert delivery.attempt == attempt
            node.tell("DEL", key_of(node, kind))
            await consumer.settle([(delivery, RetryAfter(0.05 * (attempt % 2)))])


@pytest.mark.parametrize("outcome", [Dead("no"), RetryAfter(0.1)])
async def test_a_delivery_is_not_lost_if_its_stream_is_deleted_before_it_is_settled(
    outcome: Dead | RetryAfter, node: Node, transport: RedisTransport
) -> None:
    [sent] = envelopes(1)
    await publish_or_raise(transport, [sent])
    async with transport.consume(PAID, prefetch=1) as consumer:
        [delivery] = await take(consumer, 1)
        node.tell("DEL", key_of(node, "stream"))
        await consumer.settle([(delivery, outcome)])
        if isinstance(outcome, RetryAfter):
            [again] = await take(consumer, 1)
            assert (again.envelope, again.attempt) == (sent, 2)
            await consumer.settle([(again, DONE)])
        else:
            [letter] = await transport.dead_letters(PAID, limit=10)
            assert letter.envelope == sent
