"""What others have put into Redis where EventMesh keeps its own: it is understood, or it becomes a
dead letter that can be listed, shown, replayed and discarded. It never stops a worker, and where
something else has the name of a key of EventMesh's, nothing is lost."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import TYPE_CHECKING

import pytest
from redis import Redis
from redis.exceptions import ResponseError

from eventmesh.errors import PublishError, Unreachable
from eventmesh.transports import redis_upkeep
from eventmesh.transports.outcome import DONE, Dead, RetryAfter
from eventmesh.transports.redis_scripts import MOVE_DUE, call
from eventmesh.transports.redis_streams import RedisStreamsTransport
from tests.integration.redis_nodes import Node, eventually, nodes
from tests.integration.redis_traffic import PAID, Traffic, envelopes, opened, running, take

if TYPE_CHECKING:
    from tests.integration.conftest import Project, Put

GOOD = b'{"owner": "ada", "cents": 1250}'

PARCELS = (
    b"1 x\n[1,2]\n{}",  # the head of the envelope is JSON, and not an object
    b"1 y\nnull\n{}",
    b'1 z\n{"id": 7}\n{}',  # an attribute that is not a text
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

ALIKE = 2
"""Of the entries with an id, which are one message wherever they are, these are not listed."""


async def test_a_worker_makes_dead_letters_of_hostile_content_and_goes_on(
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
    count = 2 * len(PARCELS) + 3 * len(ENTRIES) - ALIKE
    letters = bank.letters(count)
    assert len(letters) == count
    assert all(letter["reason"] for letter in letters)
    as_they_came = {letter["data"] for letter in letters if not letter["attributes"]}
    assert "1 x\n[1,2]\n{}" in as_they_came
    assert "subscription waits" not in worker.events()
    worker.drain()

    bank.run("dlq", "list", "bank").succeeds(
        f"{count} dead letter(s)", "not written by EventMesh: it has no field named envelope"
    )
    bank.run("dlq", "show", "bank", letters[0]["id"]).succeeds("'x': 'y'")
    bank.run("dlq", "replay", "bank", "--all").succeeds(f"{count} dead letter(s) replayed")
    worker = bank.worker()
    assert len(bank.letters(count)) == count
    assert "subscription waits" not in worker.events()
    worker.drain()
    bank.run("dlq", "discard", "bank", "--all").succeeds(f"{count} dead letter(s) discarded")
    bank.run("dlq", "list", "bank").succeeds("0 dead letter(s)")


# --- a private Redis ---


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    with nodes() as keep:
        yield keep(Node(tmp_path_factory.mktemp("redis") / "node")).start()


@pytest.fixture
def node(shared: Node) -> Node:
    shared.tell("FLUSHALL")
    return shared


@pytest.fixture
async def transport(node: Node) -> AsyncIterator[RedisStreamsTransport]:
    async with opened(node.url) as transport:
        await transport.declare([PAID])
        yield transport


def key_of(node: Node, kind: str) -> str:
    """The key of this kind that the subscription has, or would have."""
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
    node: Node, transport: RedisStreamsTransport
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


async def test_foreign_dead_letters_are_replayed_as_they_came(
    node: Node, transport: RedisStreamsTransport
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


@pytest.mark.parametrize(
    ("kind", "outcome"),
    [("dead", Dead("no")), ("delayed", RetryAfter(0.1)), ("retry", RetryAfter(0.0))],
)
async def test_what_cannot_be_settled_comes_again_and_the_rest_is_settled(
    kind: str, outcome: Dead | RetryAfter, node: Node, transport: RedisStreamsTransport
) -> None:
    sent = envelopes(3)
    await transport.publish(sent)
    name = key_of(node, kind)

    async def settle_all() -> None:
        async with transport.consume(PAID, prefetch=3) as consumer:
            first, second, third = await take(consumer, 3)
            node.tell("DEL", name)
            node.tell("SET", name, "something else")
            await consumer.settle([(first, DONE), (second, outcome), (third, DONE)])

    with pytest.raises(Unreachable, match=f"WRONGTYPE the key {name} .* rename or delete it"):
        await settle_all()
    node.tell("DEL", name)
    async with transport.consume(PAID, prefetch=3) as consumer:
        [again] = await take(consumer, 1)
        assert again.envelope == sent[1]
        await consumer.settle([(again, outcome)])
        if isinstance(outcome, RetryAfter):
            [again] = await take(consumer, 1)
            assert (again.envelope, again.attempt) == (sent[1], 2)
            await consumer.settle([(again, DONE)])
    stats = await transport.stats(PAID)
    assert (stats.ready, stats.dead) == (0, isinstance(outcome, Dead))


async def test_a_retry_that_cannot_be_moved_is_kept(
    node: Node, transport: RedisStreamsTransport
) -> None:
    """What is due stays in its set while something else is in the place of the retry stream."""
    [sent] = envelopes(1)
    await transport.publish([sent])
    retry = key_of(node, "retry")
    async with transport.consume(PAID, prefetch=1) as consumer:
        [delivery] = await take(consumer, 1)
        await consumer.settle([(delivery, RetryAfter(3600.0))])
    [(parcel, _)] = node.client().zrange(key_of(node, "delayed"), 0, -1, withscores=True)
    node.client().zadd(key_of(node, "delayed"), {parcel: 0})
    node.tell("DEL", retry)
    node.tell("SET", retry, "something else")
    with node.client() as client, pytest.raises(ResponseError, match=f"the key {retry} "):
        client.execute_command(*call(MOVE_DUE, (key_of(node, "delayed"), retry), 100, "nothing"))
    node.tell("DEL", retry)
    async with transport.consume(PAID, prefetch=1) as consumer:
        [again] = await take(consumer, 1)
        assert (again.envelope, again.attempt) == (sent, 2)
        await consumer.settle([(again, DONE)])


async def test_a_dead_letter_that_cannot_be_replayed_is_kept(
    node: Node, transport: RedisStreamsTransport
) -> None:
    put_foreign_letters(node)
    retry = key_of(node, "retry")
    node.tell("DEL", retry)
    node.tell("SET", retry, "something else")
    letters = await transport.dead_letters(PAID, limit=10)
    with pytest.raises(Unreachable, match=f"WRONGTYPE the key {retry} "):
        await transport.replay(PAID, [letter.id for letter in letters])
    assert await transport.dead_letters(PAID, limit=10) == letters


@pytest.mark.parametrize("kind", ["stream", "retry", "delayed", "dead"])
async def test_a_key_of_another_type_is_named_and_waited_for(
    kind: str, node: Node, transport: RedisStreamsTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the place of a stream, consuming waits, and goes on as soon as it is gone; in the place of
    what is needed for retries and dead letters only, other messages are handled."""
    monkeypatch.setattr(redis_upkeep, "TIDY_INTERVAL", 0.05)
    traffic = Traffic(transport)
    async with running(traffic.keep_consuming()):
        await traffic.publish(envelopes(1))
        await traffic.until_all_is_handled()
        name = key_of(node, kind)
        node.tell("DEL", name)
        node.tell("SET", name, "something else")
        if kind in ("stream", "retry"):
            await eventually(lambda: traffic.consuming_errors, "an error that says so")
            assert f"WRONGTYPE the key {name} is in the place" in traffic.consuming_errors[-1]
        if kind != "stream":
            await traffic.publish(envelopes(1))
        if kind in ("delayed", "dead"):
            await traffic.until_all_is_handled()
        node.tell("DEL", name)
        await traffic.publish(envelopes(1))
        await traffic.until_all_is_handled()


async def test_a_message_of_too_many_attributes_is_refused_alone(
    transport: RedisStreamsTransport,
) -> None:
    """Where messages of one key go to several streams, which a script does."""
    [small] = envelopes(1, partitionkey="k")
    [big] = envelopes(1, "payments.failed", partitionkey="k")
    [other] = envelopes(1, partitionkey="other")
    big.attributes.update({f"x{number}": "" for number in range(5000)})  # type: ignore[attr-defined]
    with pytest.raises(PublishError) as error:
        await transport.publish([small, big, other])
    assert list(error.value.refused) == [big.id]
    assert (await transport.stats(PAID)).ready == 2


# --- what is deleted while messages are handled ---


@pytest.mark.parametrize("kind", ["retry", "delayed"])
async def test_retries_go_on_after_what_they_wait_in_was_deleted(
    kind: str, node: Node, transport: RedisStreamsTransport
) -> None:
    await transport.publish(envelopes(1))
    async with transport.consume(PAID, prefetch=1) as consumer:
        for attempt in range(1, 7):
            [delivery] = await take(consumer, 1)
            assert delivery.attempt == attempt
            node.tell("DEL", key_of(node, kind))
            await consumer.settle([(delivery, RetryAfter(0.05 * (attempt % 2)))])


@pytest.mark.parametrize("outcome", [Dead("no"), RetryAfter(0.1)])
async def test_what_is_held_while_its_stream_is_deleted_is_not_lost(
    outcome: Dead | RetryAfter, node: Node, transport: RedisStreamsTransport
) -> None:
    [sent] = envelopes(1)
    await transport.publish([sent])
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
