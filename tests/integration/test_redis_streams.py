"""What is specific to the Redis transport. What all transports promise is in tests/conformance."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from eventmesh.errors import PublishError, Unreachable
from eventmesh.testing.servers import WAYS, Way
from eventmesh.testing.servers.processes import free_port
from eventmesh.transports.base import (
    Consumer,
    Delivery,
    Order,
    Subscription,
    TransportOptions,
    publish_or_raise,
)
from eventmesh.transports.outcome import DONE, Dead, RetryAfter
from eventmesh.transports.redis import connection as redis_connection
from eventmesh.transports.redis import publishing as redis_publishing
from eventmesh.transports.redis import upkeep as redis_upkeep
from eventmesh.transports.redis.transport import RedisTransport
from eventmesh.wire.envelope import Envelope
from tests.integration.redis_nodes import TIMEOUT_SECONDS, Node, eventually, nodes
from tests.integration.redis_traffic import (
    CLOCK,
    PAID,
    Traffic,
    envelopes,
    opened,
    running,
    take,
)

if TYPE_CHECKING:
    from tests.conftest import Servers

AUDIT = Subscription("audit.note", PAID.messages)


pytest_plugins = ["tests.integration.redis_fixtures"]


def stream_of(node: Node) -> str:
    [key] = [key.decode() for key in node.tell("KEYS", "*:stream:payments.paid")]
    return key


def info(node: Node, what: str, *arguments: str) -> list[dict[str, Any]]:
    """XINFO of the stream, as dictionaries."""
    answer = node.tell("XINFO", what, stream_of(node), *arguments)
    if answer and isinstance(answer[0], dict):
        return [{str(k): v for k, v in each.items()} for each in answer]
    return [dict(zip([n.decode() for n in f[::2]], f[1::2], strict=True)) for f in answer]


async def settle(consumer: Consumer, deliveries: Sequence[Delivery]) -> None:
    await consumer.settle([(delivery, DONE) for delivery in deliveries])


@pytest.mark.parametrize("way", WAYS)
async def test_a_consumer_for_which_nothing_arrives_counts_as_alive(
    servers: Servers, way: Way
) -> None:
    async with opened(servers.had_by("redis", way).url) as transport:
        await transport.declare([PAID])
        assert (await transport.stats(PAID)).consumers == 0
        async with transport.consume(PAID, prefetch=1):
            async with asyncio.timeout(60):
                while (await transport.stats(PAID)).consumers != 1:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
        assert (await transport.stats(PAID)).consumers == 0


# --- keys that somebody deletes while consumers run ---


async def flush(node: Node) -> None:
    node.tell("FLUSHALL")


async def destroy_the_group(node: Node) -> None:
    node.tell("XGROUP", "DESTROY", stream_of(node), PAID.name)


async def delete_the_stream(node: Node) -> None:
    node.tell("DEL", stream_of(node))


async def replace_the_stream(node: Node) -> None:
    """Rename the stream away: publishing creates a new one, which has no group."""
    node.tell("RENAME", stream_of(node), "elsewhere")


async def delete_the_consumers(node: Node) -> None:
    for each in info(node, "CONSUMERS", PAID.name):
        node.tell("XGROUP", "DELCONSUMER", stream_of(node), PAID.name, each["name"].decode())


DELETIONS = [
    flush,
    destroy_the_group,
    delete_the_stream,
    replace_the_stream,
    delete_the_consumers,
]


@pytest.mark.parametrize("delete", DELETIONS)
async def test_a_blocked_consumer_continues_after(
    delete: Callable[[Node], Any], node: Node, transport: RedisTransport
) -> None:
    traffic = Traffic(transport)
    async with running(traffic.keep_consuming()):
        await traffic.publish(envelopes(1))
        await traffic.until_all_is_handled()
        for _ in range(3):
            await asyncio.sleep(0.1)  # now it is blocked in its read
            await delete(node)
            await traffic.publish(envelopes(2))
            await traffic.until_all_is_handled()
    assert not traffic.consuming_errors


@pytest.mark.parametrize("delete", DELETIONS)
async def test_a_consumer_with_unsettled_deliveries_continues_after(
    delete: Callable[[Node], Any], node: Node, transport: RedisTransport
) -> None:
    await publish_or_raise(transport, envelopes(6))
    async with transport.consume(PAID, prefetch=10) as consumer:
        first, second, third, *rest = await take(consumer, 6)
        await delete(node)
        new = envelopes(1)
        await publish_or_raise(transport, new)
        await consumer.settle([(first, DONE), (second, RetryAfter(0.1)), (third, Dead("no"))])
        await settle(consumer, rest)
        ids: set[str] = set()
        while new[0].id not in ids:
            got = await take(consumer, 1)
            ids |= {delivery.envelope.id for delivery in got}
            await settle(consumer, got)


# --- connections that are lost while Redis runs ---


async def test_a_lost_connection_neither_loses_nor_duplicates_messages_in_flight(
    node: Node, transport: RedisTransport
) -> None:
    async with transport.consume(PAID, prefetch=4) as consumer:
        await publish_or_raise(transport, envelopes(10))
        held = await take(consumer, 2)  # two more are in its buffer
        await asyncio.sleep(1.2)  # long enough to count as a stable connection
        node.tell("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        await settle(consumer, held)
        rest = []
        while len(rest) < 8:
            got = await take(consumer, 1)
            assert all(delivery.deliveries == 1 for delivery in got)
            await settle(consumer, got)
            rest += got
        ids = [delivery.envelope.id for delivery in held + rest]
        assert len(set(ids)) == 10
    assert not sum(each["pending"] for each in info(node, "GROUPS"))


async def test_a_message_lost_with_its_connection_is_delivered_at_once_as_a_first_delivery(
    node: Node,
) -> None:
    """Redis delivered to a connection that was then lost: no consumer ever saw the message."""
    async with (
        opened(node.url, visibility_timeout=60.0) as transport,
        transport.consume(PAID, prefetch=10) as consumer,
    ):
        await publish_or_raise(transport, envelopes(1))
        await settle(consumer, await take(consumer, 1))
        [me] = [each["name"] for each in info(node, "CONSUMERS", PAID.name)]
        await asyncio.sleep(1.2)  # long enough to count as a stable connection
        with node.client() as client:
            pipeline = client.pipeline(transaction=True)
            stream = stream_of(node)
            pipeline.xadd(stream, {"id": "swallowed", "type": "payments.paid", "data": b""})
            pipeline.xreadgroup(PAID.name, me, {stream: ">"})
            pipeline.client_kill_filter(_type="normal", skipme=True)
            pipeline.execute()
        [delivery] = await take(consumer, 1)
        assert (delivery.envelope.id, delivery.deliveries) == ("swallowed", 1)


async def test_unsettled_deliveries_are_redelivered_as_soon_as_redis_restarts(
    tmp_path: Path,
) -> None:
    """They are not delayed until the visibility timeout is over."""
    with nodes(tmp_path) as keep:
        node = keep(Node(tmp_path / "redis", appendonly="yes", appendfsync="always")).start()
        async with opened(node.url, visibility_timeout=60.0) as transport:
            await transport.declare([PAID])
            await publish_or_raise(transport, envelopes(5))
            held: list[Delivery] = []

            async def hold_until_redis_is_gone() -> None:
                async with transport.consume(PAID, prefetch=5) as consumer:
                    held.extend(await take(consumer, 2))
                    await asyncio.to_thread(node.kill)
                    await take(consumer, 9)

            with pytest.raises(Unreachable):
                await hold_until_redis_is_gone()
            await asyncio.to_thread(node.start)
            async with transport.consume(PAID, prefetch=5) as consumer:
                again = await take(consumer, 5)
                assert len({delivery.envelope.id for delivery in again}) == 5
                counts = {delivery.envelope.id: delivery.deliveries for delivery in again}
                assert [counts[delivery.envelope.id] for delivery in held] == [2, 2]
                await settle(consumer, again)


# --- upkeep that fails ---


async def test_upkeep_without_permission_does_not_disturb_deliveries(
    node: Node, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(redis_upkeep, "TRIM_INTERVAL", 0.05)
    node.tell("ACL", "SETUSER", "poor", "reset", "on", ">secret", "~*", "+@all", "-xtrim")
    async with (
        opened(f"redis://poor:secret@127.0.0.1:{node.port}/0") as transport,
        transport.consume(PAID, prefetch=5) as consumer,
    ):
        await publish_or_raise(transport, envelopes(2))
        first, second = await take(consumer, 2)
        await settle(consumer, [first])
        written: list[str] = []

        def has_warned() -> bool:
            written.append(capsys.readouterr().out)
            return "trimming streams failed" in "".join(written)

        await eventually(has_warned, "a warning")
        await asyncio.sleep(1.2)  # it fails again, and says nothing
        await settle(consumer, [second])
        await publish_or_raise(transport, envelopes(1))
        await settle(consumer, await take(consumer, 1))
    said = "".join(written) + capsys.readouterr().out
    assert said.count("trimming streams failed") == 1
    assert "rejected a command" in said


async def test_a_consumer_that_cannot_extend_its_deliveries_ends(node: Node) -> None:
    node.tell("ACL", "SETUSER", "poor", "reset", "on", ">secret", "~*", "+@all")

    async def hold_for_too_long(transport: RedisTransport) -> None:
        async with transport.consume(PAID, prefetch=1) as consumer:
            await publish_or_raise(transport, envelopes(1))
            await take(consumer, 1)
            node.tell("ACL", "SETUSER", "poor", "-xclaim")
            await take(consumer, 1)

    url = f"redis://poor:secret@127.0.0.1:{node.port}/0"
    async with opened(url, visibility_timeout=1.0) as transport:
        with pytest.raises(Unreachable, match="rejected a command"):
            await hold_for_too_long(transport)


async def test_one_slow_answer_to_upkeep_does_not_end_the_consumer(node: Node) -> None:
    async with (
        opened(node.url, visibility_timeout=1.0) as transport,
        transport.consume(PAID, prefetch=1) as consumer,
    ):
        await publish_or_raise(transport, envelopes(2))
        held = await take(consumer, 1)
        node.tell("CLIENT", "PAUSE", 700, "ALL")
        await settle(consumer, held)
        await settle(consumer, await take(consumer, 1))


# --- trimming ---


def taken_by(node: Node) -> list[str]:
    """The ids of the messages in the stream, in order."""
    return [fields[b"id"].decode() for _, fields in node.client().xrange(stream_of(node))]


def ids_in(node: Node) -> set[str]:
    return set(taken_by(node))


async def test_only_messages_that_every_group_has_settled_are_trimmed(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_upkeep, "TRIM_INTERVAL", 0.05)
    node.set(
        "stream-node-max-entries", 1
    )  # Redis trims whole nodes of its tree: each entry gets its own node
    sent = envelopes(20)
    ids = [envelope.id for envelope in sent]
    async with opened(node.url) as transport:
        await transport.declare([PAID, AUDIT])
        await publish_or_raise(transport, sent)
        async with transport.consume(PAID, prefetch=20) as payer:
            await settle(payer, await take(payer, 20))
            await asyncio.sleep(0.3)
            assert ids_in(node) == set(ids), "undelivered in the other group"
            async with transport.consume(AUDIT, prefetch=20) as auditor:
                held = await take(auditor, 20)
                await asyncio.sleep(0.3)
                assert ids_in(node) == set(ids), "pending in the other group"
                await settle(auditor, [each for each in held if each is not held[5]])
                await eventually(lambda: ids_in(node) == set(ids[5:]), "trimmed up to the oldest")
            await asyncio.sleep(0.3)
            assert ids_in(node) == set(ids[5:]), "given back by the other group"
            later = Subscription("later.note", PAID.messages)
            async with transport.consume(later, prefetch=20) as newcomer:
                seen = await take(newcomer, 15)
                assert [delivery.envelope.id for delivery in seen] == ids[5:]
                await settle(newcomer, seen)
            async with transport.consume(AUDIT, prefetch=20) as auditor:
                await settle(auditor, await take(auditor, 1))
                await eventually(lambda: len(ids_in(node)) <= 1, "trimmed wholly")
    node.set("stream-node-max-entries", 100)


async def test_a_stream_without_subscriptions_is_kept_for_the_first_one(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_upkeep, "TRIM_INTERVAL", 0.05)
    async with opened(node.url) as transport:
        both = Subscription("both.note", ("payments.paid", "payments.failed"))
        await publish_or_raise(transport, envelopes(300, "payments.failed"))
        async with transport.consume(both, prefetch=10) as consumer:
            await asyncio.sleep(0.3)
            await settle(consumer, await take(consumer, 10))
        assert (await transport.stats(both)).ready == 290


# --- consumers ---


async def test_a_closed_consumer_deletes_its_entry_in_the_group(
    node: Node, transport: RedisTransport
) -> None:
    for number in range(50):
        async with transport.consume(PAID, prefetch=5) as consumer:
            if number % 10 == 0:  # the consumer leaves its entry behind
                await publish_or_raise(transport, envelopes(2))
                await take(consumer, 1)
    assert [each["name"] for each in info(node, "CONSUMERS", PAID.name)] == [b"returned"]
    assert (await transport.stats(PAID)).ready == 10


async def test_entries_of_killed_consumers_are_deleted(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_upkeep, "TRIM_INTERVAL", 0.05)
    monkeypatch.setattr(redis_upkeep, "DELETE_CONSUMER_AFTER", 1.0)
    async with opened(node.url, visibility_timeout=1.0) as transport:
        await transport.declare([PAID])
        stream = stream_of(node)
        await publish_or_raise(transport, envelopes(50))
        for number in range(50):
            node.tell(
                *("XREADGROUP", "GROUP", PAID.name, f"killed-{number}", "COUNT", 1),
                *("STREAMS", stream, ">"),
            )
        async with transport.consume(PAID, prefetch=100) as consumer:
            await settle(consumer, await take(consumer, 50))

            def names() -> list[bytes]:
                return [each["name"] for each in info(node, "CONSUMERS", PAID.name)]

            await eventually(lambda: len(names()) == 1, "only the living one")
            await publish_or_raise(transport, envelopes(1))
            await settle(consumer, await take(consumer, 1))


# --- publishing ---


class Cutter:
    """A TCP proxy that cuts the connection once it has forwarded so many bytes to the server. If it
    is silent, it accepts bytes and forwards none, like a network that is down."""

    def __init__(self, port: int, most: int) -> None:
        self._port = port
        self.most = most
        self.silent = False
        self._tasks: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[int]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        async with server:
            yield server.sockets[0].getsockname()[1]
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self._port)
        answering = asyncio.ensure_future(self._answer(up_reader, writer))
        self._tasks.add(answering)
        try:
            while self.most > 0 and (data := await reader.read(4096)):
                if self.silent:
                    continue
                up_writer.write(data[: self.most])
                await up_writer.drain()
                self.most -= len(data)
        except OSError:
            pass  # the client has disconnected
        finally:
            answering.cancel()
            up_writer.close()
            writer.transport.abort()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            if not self.silent:
                writer.write(data)


@pytest.mark.parametrize("names", [["payments.paid"], ["payments.paid", "payments.failed"]])
async def test_a_batch_that_is_cut_is_stored_completely_or_not_at_all(
    names: list[str], node: Node
) -> None:
    """The cuts come after more and more bytes: the first cut the handshake, the last cut
    nothing."""
    batch = [envelopes(1, name, subject="a")[0] for _ in range(20 // len(names)) for name in names]
    outcomes = set()
    for length in range(0, 4400, 110):
        cutter = Cutter(node.port, 10**9)
        async with cutter.listening() as port:
            url = f"redis://:{node.password}@127.0.0.1:{port}/0"
            async with opened(url) as transport:
                cutter.most = length
                told = True
                try:
                    await publish_or_raise(transport, batch)
                except Unreachable:
                    told = False
        prefix = transport._options.prefix
        stored = sum(node.tell("XLEN", f"{prefix}:stream:{name}") for name in names)
        assert stored in (0, 20)
        assert stored == 20 or not told
        outcomes.add((stored, told))
    assert {(0, False), (20, True)} <= outcomes


async def test_a_silent_network_is_detected(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    cutter = Cutter(node.port, 10**9)

    async def consume_through_the_loss(transport: RedisTransport) -> None:
        async with transport.consume(PAID, prefetch=1) as consumer:
            await publish_or_raise(transport, envelopes(1))
            await settle(consumer, await take(consumer, 1))
            await asyncio.sleep(1.2)  # long enough to count as a stable connection
            monkeypatch.setattr(redis_connection, "ANSWER_TIMEOUT", 1.0)
            cutter.silent = True
            await take(consumer, 1)

    async with cutter.listening() as port:
        url = f"redis://:{node.password}@127.0.0.1:{port}/0"
        async with opened(url) as transport:
            async with asyncio.timeout(60):
                with pytest.raises(Unreachable, match="took longer than 1 s"):
                    await consume_through_the_loss(transport)
            cutter.silent = False
            monkeypatch.undo()
            await publish_or_raise(transport, envelopes(1))


async def test_a_message_without_write_permission_does_not_block_others(node: Node) -> None:
    node.tell(
        *("ACL", "SETUSER", "payments", "reset", "on", ">secret", "+@all"),
        *("~*:stream:payments.paid", "%R~*"),
    )
    async with opened(f"redis://payments:secret@127.0.0.1:{node.port}/0") as transport:
        foreign = envelopes(1, "orders.placed", partitionkey="a")
        overtaking = envelopes(1, partitionkey="a")
        others = envelopes(2, partitionkey="b")
        result = await transport.publish([others[0], *foreign, *overtaking, others[1]])
        assert set(result.rejected) == {foreign[0].id, overtaking[0].id}
        assert ids_in(node) == {envelope.id for envelope in others}


def not_a_stream(node: Node, key: str) -> None:
    """The stream's key has another type."""
    node.tell("SET", key, "something else")


def without_ids(node: Node, key: str) -> None:
    """The stream has no free ids left."""
    node.tell("XADD", key, f"{2**64 - 1}-{2**64 - 1}", "id", "last")


@pytest.mark.parametrize("spoil", [not_a_stream, without_ids])
async def test_no_message_overtakes_a_rejected_one_of_its_key(
    spoil: Callable[[Node, str], None], node: Node, transport: RedisTransport
) -> None:
    """Not even in another stream, where Redis would have accepted the message."""
    spoil(node, stream_of(node).replace("payments.paid", "orders.placed"))
    ahead, behind = (envelopes(1, partitionkey="a") for _ in range(2))
    refused = envelopes(2, "orders.placed", partitionkey="a")
    without_key = envelopes(1, "orders.placed")
    others = [*envelopes(2, partitionkey="b"), *envelopes(2)]
    result = await transport.publish([*ahead, *refused, *without_key, *others, *behind])
    reasons = result.rejected
    assert list(reasons) == [each.id for each in [*refused, *without_key, *behind]]
    assert reasons[refused[0].id] == reasons[without_key[0].id]
    assert reasons[behind[0].id] == "an earlier message of its key was rejected"
    assert taken_by(node) == [each.id for each in [*ahead, *others]]


async def test_rejected_messages_and_messages_without_permission_do_not_block_each_other(
    node: Node,
) -> None:
    """And the other way round: each of them blocks only its own key."""
    node.tell(
        *("ACL", "SETUSER", "payments", "reset", "on", ">secret", "+@all"),
        *("~*:stream:payments.*", "%R~*"),
    )
    async with opened(f"redis://payments:secret@127.0.0.1:{node.port}/0") as transport:
        not_a_stream(node, f"{transport._options.prefix}:stream:payments.failed")
        names = ("orders.placed", "payments.failed", "payments.paid")
        a, b = ([envelopes(1, name, partitionkey=key)[0] for name in names] for key in "ab")
        [c] = envelopes(1, partitionkey="c")
        result = await transport.publish([*a, *b[1:], c])
        assert result.rejected.keys() == {each.id for each in [*a, *b[1:]]}
        assert taken_by(node) == [c.id]


@pytest.mark.parametrize("setting", ["maxmemory", "min-replicas-to-write"])
@pytest.mark.parametrize("names", [["payments.paid"], ["payments.paid", "orders.placed"]])
async def test_an_error_that_affects_every_message_rejects_none(
    names: list[str], setting: str, node: Node, transport: RedisTransport
) -> None:
    """Redis will accept the same messages later, so none of them may be parked."""
    batch = [envelopes(1, name, partitionkey="a")[0] for name in names]
    node.set(setting, 1)
    try:
        with pytest.raises(Unreachable, match=r"OOM|NOREPLICAS"):
            await publish_or_raise(transport, batch)
    finally:
        node.set(setting, 0)
    assert taken_by(node) == []
    await publish_or_raise(transport, batch)
    assert taken_by(node) == [batch[0].id]


@pytest.mark.parametrize("names", [["payments.paid"], ["payments.paid", "orders.placed"]])
async def test_without_the_required_replicas_no_message_is_confirmed(
    names: list[str], node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_publishing, "REPLICA_TIMEOUT", 0.1)
    batch = [envelopes(1, name, partitionkey="a")[0] for name in names]
    async with opened(f"{node.url}?wait_replicas=1") as transport:
        with pytest.raises(Unreachable, match="0 instead of 1 of its replicas"):
            await publish_or_raise(transport, batch)


async def test_no_message_overtakes_another_of_its_key_on_a_cluster(tmp_path: Path) -> None:
    with nodes(tmp_path) as keep:
        bus = str(free_port())
        member = keep(Node(tmp_path / "member", cluster_enabled="yes", cluster_port=bus)).start()
        member.tell("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        await eventually(
            lambda: b"cluster_state:ok" in member.tell("CLUSTER", "INFO"), "a cluster that is whole"
        )
        url = f"redis+cluster://:{member.password}@127.0.0.1:{member.port}/"
        async with opened(url) as transport:
            await transport.declare([PAID])
            not_a_stream(member, stream_of(member).replace("payments.paid", "orders.placed"))
            ahead, behind = envelopes(2, partitionkey="a")
            [refused] = envelopes(1, "orders.placed", partitionkey="a")
            result = await transport.publish([ahead, refused, behind])
            assert result.rejected.keys() == {refused.id, behind.id}
            assert taken_by(member) == [ahead.id]


async def test_a_missing_permission_for_scripts_is_an_error_before_anything_is_stored(
    node: Node,
) -> None:
    node.tell("ACL", "SETUSER", "poor", "reset", "on", ">secret", "~*", "+@all", "-eval")
    batch = [envelopes(1, name, partitionkey="a")[0] for name in ("orders.placed", "payments.paid")]
    async with opened(f"redis://poor:secret@127.0.0.1:{node.port}/0") as transport:
        with pytest.raises(Unreachable, match="NOPERM"):
            await publish_or_raise(transport, batch)
    assert node.tell("KEYS", "*:stream:*") == []


async def test_a_missing_permission_for_transactions_is_an_error_before_anything_is_stored(
    node: Node,
) -> None:
    node.tell("ACL", "SETUSER", "poor", "reset", "on", ">secret", "~*", "+@all", "-multi")
    with pytest.raises(Unreachable, match="NOPERM"):
        async with opened(f"redis://poor:secret@127.0.0.1:{node.port}/0"):
            pass


async def test_an_attribute_may_have_any_text(transport: RedisTransport) -> None:
    names = ("source", "subject", "partitionkey", "correlationid", "traceparent", "überschrift")
    texts = {name: f"Łódź \u2028 日本 🚀 {name}\n\r\0" for name in names}
    [sent] = envelopes(1, **texts)
    await publish_or_raise(transport, [sent])
    async with transport.consume(PAID, prefetch=1) as consumer:
        for outcome in (RetryAfter(0.05), RetryAfter(0.0), Dead("Grund: ü", "日本")):
            [delivery] = await take(consumer, 1)
            assert delivery.envelope == sent
            await consumer.settle([(delivery, outcome)])
    [letter] = await transport.dead_letters(PAID, limit=2)
    assert letter.envelope == sent
    assert (letter.reason, letter.error) == ("Grund: ü", "日本")


# --- permissions ---

LEAST_COMMANDS = (
    "+multi +exec +eval +time +xadd +xreadgroup +xack +xdel +xclaim +xpending +xrange +xlen +xtrim"
    " +xinfo|groups +xinfo|consumers +xgroup|create +xgroup|delconsumer"
    " +zadd +zrem +zcard +zrange +zrangebyscore +client|id +client|unblock"
    " +del +hget +hset +hdel +hgetall +hincrby +rpush +ltrim +lindex +lset +lrange +llen +linsert"
    " +zscore +zcount +xread +xrevrange +xgroup|setid +xinfo|stream"
)


def user_with_least_permissions(node: Node, *but: str) -> str:
    """The URL of a user with the permissions that the module's docstring lists, except `but`."""
    rights = [right for right in LEAST_COMMANDS.split() if right not in but]
    node.tell("ACL", "SETUSER", "least", "reset", "on", ">secret", "~mesh:*", *rights)
    return f"redis://least:secret@127.0.0.1:{node.port}/0"


async def use_every_function(url: str) -> None:
    """Use every function of the transport once."""
    transport = RedisTransport(url, CLOCK, TransportOptions(visibility_timeout=1.0, prefix="mesh"))
    try:
        await transport.connect()
        await transport.declare([PAID])
        await publish_or_raise(transport, envelopes(5))
        async with transport.consume(PAID, prefetch=9) as consumer:
            first, second, third, fourth, _ = await take(consumer, 5)
            await consumer.settle([(first, DONE), (second, RetryAfter(0.1))])
            await settle(consumer, await take(consumer, 1))
            await consumer.settle([(third, Dead("no")), (fourth, Dead("no"))])
            await asyncio.sleep(0.5)  # time to extend the delivery and to tidy up
        assert (await transport.stats(PAID)).ready == 1
        assert (await transport.census([PAID])).lots
        one, two = await transport.dead_letters(PAID, limit=9)
        assert await transport.replay(PAID, [one.id]) == [one.id]
        assert await transport.discard(PAID, [two.id]) == [two.id]
        async with transport.consume(PAID, prefetch=9) as consumer:
            await settle(consumer, await take(consumer, 2))
        await use_order(transport)
    finally:
        await transport.close()


async def use_order(transport: RedisTransport) -> None:
    """Use every function of an ordered subscription once."""
    ordered = Subscription("ordered", ("payments.refunded",), Order(after_dead="hold"))
    await transport.declare([ordered])
    sent = [replace_name(each, "payments.refunded") for each in envelopes(5, partitionkey="a")]
    await publish_or_raise(transport, sent)
    async with transport.consume(ordered, prefetch=9) as consumer:
        first, second, *_ = await take(consumer, 5)
        await consumer.settle([(first, DONE)])
        await consumer.settle([(second, RetryAfter(0.1))])
        second, third, *_ = await take(consumer, 4)
        await consumer.settle([(second, DONE), (third, Dead("no"))])
        await asyncio.sleep(0.5)  # time for a heartbeat
    assert (await transport.stats(ordered)).held == 2
    assert (await transport.census([ordered])).lots
    [letter] = await transport.dead_letters(ordered, limit=9)
    assert await transport.replay(ordered, [letter.id]) == [letter.id]
    async with transport.consume(ordered, prefetch=9) as consumer:
        await settle(consumer, await take(consumer, 3))


def replace_name(envelope: Envelope, name: str) -> Envelope:
    return Envelope({**envelope.attributes, "type": name}, envelope.data)


async def test_the_documented_permissions_are_sufficient(
    node: Node, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(redis_upkeep, "TRIM_INTERVAL", 0.05)
    monkeypatch.setattr(redis_upkeep, "DELETE_CONSUMER_AFTER", 0.0)
    node.tell("ACL", "LOG", "RESET")
    await use_every_function(user_with_least_permissions(node))
    # redis-py introduces itself to the server, and accepts that this is not permitted.
    assert refused_objects(node) <= {b"client|setinfo"}
    assert "not" not in capsys.readouterr().out


def refused_objects(node: Node) -> set[bytes]:
    """What users had no permission for."""
    entries = [dict(zip(e[::2], e[1::2], strict=True)) for e in node.tell("ACL", "LOG")]
    return {entry[b"object"] for entry in entries}


def test_the_docstring_lists_the_least_permissions() -> None:
    from eventmesh.transports.redis import transport as redis_streams

    assert LEAST_COMMANDS.split() == [
        word for word in (redis_streams.__doc__ or "").split() if word.startswith("+")
    ]


@pytest.mark.parametrize("right", LEAST_COMMANDS.split())
async def test_every_documented_permission_is_necessary(
    right: str, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_upkeep, "TRIM_INTERVAL", 0.05)
    monkeypatch.setattr(redis_upkeep, "DELETE_CONSUMER_AFTER", 0.0)
    url = user_with_least_permissions(node, right)
    node.tell("ACL", "LOG", "RESET")

    deadline, seconds = time.monotonic() + TIMEOUT_SECONDS, 3.0
    while right[1:].encode() not in refused_objects(node):
        assert time.monotonic() < deadline, f"nothing was refused without {right}"
        node.tell("FLUSHALL")
        # Where messages do not come any more without it, it waits for them until it is cancelled.
        with suppress(Unreachable, PublishError, TimeoutError, AssertionError):
            async with asyncio.timeout(seconds):
                await use_every_function(url)
        seconds *= 2  # a slow machine needs longer to come to what is refused
