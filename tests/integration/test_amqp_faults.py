"""Failures of RabbitMQ, and mistakes of its operators, while a transport runs. The broker is real,
and only these tests use it."""

from __future__ import annotations

import asyncio
import json
import re
import secrets
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from os import environ
from pathlib import Path
from urllib.parse import urlsplit

import aiormq
import pytest
from aiormq.abc import ChannelFrame
from pamqp.body import ContentBody
from pamqp.commands import Basic
from pamqp.frame import marshal
from pamqp.header import ContentHeader
from structlog.testing import capture_logs

from eventmesh import Service
from eventmesh.clock import SystemClock
from eventmesh.errors import PublishError, Unreachable
from eventmesh.persistence import sagas
from eventmesh.persistence.sagas import SagaRow
from eventmesh.runtime.consuming import broker_dead_letters
from eventmesh.transports.base import (
    Consumer,
    Delivery,
    Subscription,
    Transport,
    TransportOptions,
    publish_or_raise,
)
from eventmesh.transports.factory import open_transport
from eventmesh.transports.outcome import DONE, Dead, Outcome, RetryAfter
from eventmesh.transports.rabbitmq import publishing as amqp_publishing
from eventmesh.transports.rabbitmq import rerouting as amqp_rerouting
from eventmesh.transports.rabbitmq import settlement as amqp_settlement
from eventmesh.transports.rabbitmq import upkeep as amqp_upkeep
from eventmesh.transports.rabbitmq.transport import AmqpTransport
from eventmesh.wire.envelope import Envelope, seal
from tests.integration.test_sagas import (
    Bill,
    Declare,
    Requested,
    answering,
    riding,
    with_saga,
)
from tests.support.moved_clock import MovedClock
from tests.support.promised_times import allowed
from tests.support.running_meshes import RunningMesh, running_mesh, until

TIMEOUT_SECONDS = 120.0
"""Seconds after which a test fails that waits for something."""

NOTICED_WITHIN_SECONDS = 3.0
"""Seconds within which a loss is noticed, as promised."""

START_TIMEOUT_SECONDS = 240.0
MAX_MESSAGE_BYTES = 200_000
TLS_PORT, PORT = "5671/tcp", "5672/tcp"

SETTINGS = f"""\
max_message_size = {MAX_MESSAGE_BYTES}
listeners.ssl.default = 5671
ssl_options.cacertfile = /eventmesh/ca.pem
ssl_options.certfile = /eventmesh/server.pem
ssl_options.keyfile = /eventmesh/server.key
ssl_options.verify = verify_peer
ssl_options.fail_if_no_peer_cert = true
"""


@dataclass(frozen=True)
class Broker:
    """A RabbitMQ in a container, at `url`. Its TLS port requires a client certificate."""

    container: str
    url: str
    tls_address: str
    password: str
    certificates: Path

    def control(self, *arguments: str) -> str:
        """Run `rabbitmqctl` with these arguments."""
        return docker("exec", self.container, "rabbitmqctl", "-q", *arguments)


def docker(*arguments: str, within: float = TIMEOUT_SECONDS) -> str:
    ran = subprocess.run(  # noqa: S603 - our own command line
        ["docker", *arguments],  # noqa: S607
        capture_output=True,
        text=True,
        timeout=within,
        check=False,
    )
    if ran.returncode:
        raise RuntimeError(f"docker {' '.join(arguments)}: {ran.stderr.strip()}")
    return ran.stdout.strip()


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate authority, and certificates of a server and a client that it signed."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl on this machine, which creates the certificates")
    folder = tmp_path_factory.mktemp("certificates")

    def run(*arguments: str) -> None:
        subprocess.run(  # noqa: S603 - our own command line
            [openssl, *arguments],
            cwd=folder,
            check=True,
            capture_output=True,
            timeout=TIMEOUT_SECONDS,
        )

    fresh = ("req", "-newkey", "rsa:2048", "-nodes")
    run(*fresh, "-x509", "-days", "2", "-subj", "/CN=ca", "-keyout", "ca.key", "-out", "ca.pem")
    for name, subject in (("server", "/CN=localhost"), ("client", "/CN=client")):
        run(*fresh, "-subj", subject, "-keyout", f"{name}.key", "-out", f"{name}.csr")
        (folder / "names").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
        signed_by = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2")
        run(
            "x509",
            "-req",
            "-in",
            f"{name}.csr",
            *signed_by,
            "-extfile",
            "names",
            "-out",
            f"{name}.pem",
        )
    for path in folder.iterdir():
        path.chmod(0o644)  # for the user in the container
    folder.chmod(0o755)
    return folder


@pytest.fixture(scope="module")
def broker(certificates: Path) -> Iterator[Broker]:
    image = environ.get("EVENTMESH_TEST_RABBITMQ_IMAGE", "rabbitmq:4")
    if shutil.which("docker") is None:
        pytest.skip("no docker on this machine for a broker that may be troubled")
    (certificates / "50-eventmesh.conf").write_text(SETTINGS)
    name, password = f"eventmesh-test-{secrets.token_hex(6)}", secrets.token_hex(16)
    try:
        docker(
            *("run", "--detach", "--rm", "--name", name, "--label", "eventmesh.testing=rabbitmq"),
            *("-p", "127.0.0.1::5671", "-p", "127.0.0.1::5672"),
            *("-e", "RABBITMQ_DEFAULT_USER=eventmesh", "-e", f"RABBITMQ_DEFAULT_PASS={password}"),
            *("-v", f"{certificates}:/eventmesh:ro"),
            *("-v", f"{certificates}/50-eventmesh.conf:/etc/rabbitmq/conf.d/50-eventmesh.conf:ro"),
            image,
            within=START_TIMEOUT_SECONDS,
        )
    except (RuntimeError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"no container of {image}: {error}")
    try:
        ports = json.loads(docker("inspect", name, "--format", "{{json .NetworkSettings.Ports}}"))
        started = Broker(
            name,
            f"amqp://eventmesh:{password}@127.0.0.1:{ports[PORT][0]['HostPort']}/",
            f"localhost:{ports[TLS_PORT][0]['HostPort']}",
            password,
            certificates,
        )
        asyncio.run(answers(started.url))
        yield started
    finally:
        docker("rm", "--force", "--volumes", name)


async def answers(url: str) -> None:
    """Return once the broker accepts the password."""
    async with asyncio.timeout(START_TIMEOUT_SECONDS):
        while True:
            try:
                await (await aiormq.connect(url)).close()
                return
            except (OSError, aiormq.exceptions.AMQPError):
                await asyncio.sleep(0.2)


@dataclass(frozen=True)
class Rig:
    """One test's own prefix on a broker."""

    url: str
    prefix: str

    def open(self) -> AbstractAsyncContextManager[Transport]:
        return open_transport(self.url, SystemClock(), TransportOptions(prefix=self.prefix))

    def subscription(self, name: str, message: str = "happened") -> Subscription:
        return Subscription(f"test.{name}", (f"test.{message}",))

    def envelopes(self, count: int) -> list[Envelope]:
        """New messages `test.happened`, whose data is their number."""
        clock = SystemClock()
        required = {"specversion": "1.0", "source": "/test", "type": "test.happened"}
        return [
            Envelope({**required, "id": clock.new_id()}, b'{"number":%d}' % number)
            for number in range(count)
        ]


@pytest.fixture
def rig(broker: Broker) -> Rig:
    return Rig(broker.url, f"test-{secrets.token_hex(5)}")


@pytest.fixture
async def transport(rig: Rig) -> AsyncIterator[Transport]:
    async with rig.open() as opened:
        yield opened


@pytest.fixture
async def operator(broker: Broker) -> AsyncIterator[aiormq.abc.AbstractChannel]:
    """A channel of an operator who knows nothing about EventMesh."""
    connection = await aiormq.connect(broker.url)
    try:
        yield await connection.channel(publisher_confirms=False)
    finally:
        await connection.close()


async def take(consumer: Consumer, count: int) -> list[Delivery]:
    got: list[Delivery] = []
    async with asyncio.timeout(TIMEOUT_SECONDS):
        while len(got) < count:
            got.extend(await consumer.receive(count - len(got)))
    return got


async def take_all(transport: Transport, subscription: Subscription, count: int) -> list[str]:
    """Receive this number of deliveries and settle them as done; returns their ids."""
    async with transport.consume(subscription, prefetch=100) as consumer:
        got = await take(consumer, count)
        await consumer.settle([(delivery, DONE) for delivery in got])
    return [delivery.envelope.id for delivery in got]


async def take_until(
    transport: Transport, subscription: Subscription, wanted: set[str]
) -> set[str]:
    """Consume until these ids have been delivered; returns all ids that were."""
    seen: set[str] = set()
    async with (
        asyncio.timeout(TIMEOUT_SECONDS),
        transport.consume(subscription, prefetch=100) as consumer,
    ):
        while not wanted <= seen:
            got = await consumer.receive(100)
            seen.update(delivery.envelope.id for delivery in got)
            await consumer.settle([(delivery, DONE) for delivery in got])
    return seen


async def publish(transport: Transport, envelopes: list[Envelope]) -> None:
    """Publish these, again and again until all are confirmed."""
    async with asyncio.timeout(TIMEOUT_SECONDS):
        while True:
            try:
                await publish_or_raise(transport, envelopes)
                return
            except Unreachable:
                await asyncio.sleep(0.05)


async def until_ready(transport: Transport, subscription: Subscription, count: int) -> None:
    """Return once the queue counts so many messages: it may lag behind what was confirmed."""
    async with asyncio.timeout(TIMEOUT_SECONDS):
        while (await transport.stats(subscription)).ready != count:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def lost(consumer: Consumer) -> float:
    """Wait until the consumer is lost; returns how many seconds that took."""
    began = time.monotonic()
    async with asyncio.timeout(TIMEOUT_SECONDS):
        with pytest.raises(Unreachable):
            await consumer.receive(1)
    return time.monotonic() - began


def ids(envelopes: list[Envelope]) -> list[str]:
    return [envelope.id for envelope in envelopes]


# --- lost consumers ---


async def test_a_deleted_queue_is_noticed_at_once_and_declared_again_without_loss(
    rig: Rig,
    transport: Transport,
    operator: aiormq.abc.AbstractChannel,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("INTERVAL", "REROUTING_INTERVAL", "GRACE"):
        monkeypatch.setattr(amqp_upkeep, name, 0.5)
    subscription = rig.subscription("orphan")
    sent = rig.envelopes(5)
    async with transport.consume(subscription, prefetch=10) as consumer:
        await operator.queue_delete(f"{rig.prefix}.queue.{subscription.name}")
        assert await lost(consumer) < allowed(NOTICED_WITHIN_SECONDS)
        await publish_or_raise(transport, sent)  # while the queue does not exist
    assert await take_all(transport, subscription, 5) == ids(sent)


async def test_a_deleted_exchange_is_declared_again(
    rig: Rig, transport: Transport, operator: aiormq.abc.AbstractChannel
) -> None:
    subscription = rig.subscription("reader")
    first, second = rig.envelopes(3), rig.envelopes(3)
    async with transport.consume(subscription, prefetch=10) as consumer:
        await publish_or_raise(transport, first)
        await operator.exchange_delete(rig.prefix)
        await publish_or_raise(transport, second)
        got = await take(consumer, 3)
        await consumer.settle([(delivery, DONE) for delivery in got])
        assert [delivery.envelope.id for delivery in got] == ids(first)
    # The bindings were deleted with the exchange, so some messages were stored as unrouted.
    assert await take_all(transport, subscription, 3) == ids(second)


async def test_closed_connections_are_noticed_at_once_and_reopened(
    rig: Rig, transport: Transport, broker: Broker
) -> None:
    subscription = rig.subscription("cut")
    first, second = rig.envelopes(4), rig.envelopes(4)
    async with transport.consume(subscription, prefetch=10) as consumer:
        await publish_or_raise(transport, first)
        held = await take(consumer, 4)
        waiting = asyncio.ensure_future(lost(consumer))
        await asyncio.to_thread(broker.control, "close_all_connections", "test")
        assert await waiting < TIMEOUT_SECONDS
        with pytest.raises(Unreachable):
            await consumer.settle([(delivery, DONE) for delivery in held])
    await publish(transport, second)  # RabbitMQ may be about to close this connection, too
    wanted = set(ids([*first, *second]))
    assert await take_until(transport, subscription, wanted) == wanted


async def test_a_lost_queue_does_not_affect_other_consumers(
    rig: Rig, transport: Transport, operator: aiormq.abc.AbstractChannel
) -> None:
    doomed, spared = rig.subscription("doomed", "ended"), rig.subscription("spared")
    async with (
        transport.consume(doomed, prefetch=10) as one,
        transport.consume(spared, prefetch=10) as other,
    ):
        await operator.queue_delete(f"{rig.prefix}.queue.{doomed.name}")
        assert await lost(one) < allowed(NOTICED_WITHIN_SECONDS)
        await publish_or_raise(transport, rig.envelopes(1))
        [delivery] = await take(other, 1)
        await other.settle([(delivery, DONE)])


# --- rejected messages ---


async def test_a_message_too_large_for_the_broker_is_rejected_alone(
    rig: Rig, transport: Transport
) -> None:
    subscription = rig.subscription("reader")
    await transport.declare([subscription])
    batches = [rig.envelopes(20) for _ in range(4)]
    large = Envelope(batches[0][7].attributes, b"x" * (MAX_MESSAGE_BYTES + 1))
    batches[0][7] = large
    async with transport.consume(subscription, prefetch=10) as consumer:
        await publish_or_raise(transport, batches[1][:1])
        [delivery] = await take(consumer, 1)
        results = await asyncio.gather(
            *(
                publish_or_raise(transport, batch)
                for batch in (batches[0], batches[1][1:], *batches[2:])
            ),
            consumer.settle([(delivery, RetryAfter(0.0))]),
            return_exceptions=True,
        )
    assert isinstance(results[0], PublishError)
    assert list(results[0].rejected) == [large.id]
    assert "larger than configured max size" in results[0].rejected[large.id]
    assert results[1:] == [None] * 4
    # At least once: messages unconfirmed when the channel was closed are published again.
    wanted = {each.id for batch in batches for each in batch} - {large.id}
    assert await take_until(transport, subscription, wanted) == wanted


@asynccontextmanager
async def restricted(broker: Broker, rig: Rig, *permissions: Sequence[str]) -> AsyncIterator[Rig]:
    """The rig, used by a user with these permissions. Each is a command and its last arguments."""
    user, password = secrets.token_hex(5), secrets.token_hex(8)
    await asyncio.to_thread(broker.control, "add_user", user, password)
    try:
        for command, *patterns in permissions:
            await asyncio.to_thread(broker.control, command, user, *patterns)
        host = broker.url.partition("@")[2]
        yield Rig(f"amqp://{user}:{password}@{host}", rig.prefix)
    finally:
        await asyncio.to_thread(broker.control, "delete_user", user)


async def test_a_message_without_publish_permission_is_rejected_alone(
    broker: Broker, rig: Rig, transport: Transport
) -> None:
    subscription = rig.subscription("reader")
    await transport.declare([subscription])
    batch = rig.envelopes(20)
    forbidden = Envelope({**batch[7].attributes, "type": "test.secret"}, b"{}")
    batch[7] = forbidden
    everything = ("set_permissions", ".*", ".*", ".*")
    topics = ("set_topic_permissions", rig.prefix, r"^test\.happened$", ".*")
    async with (
        restricted(broker, rig, everything, topics) as his,
        his.open() as publishing,
    ):
        result = await publishing.publish(batch)
    assert list(result.rejected) == [forbidden.id]
    assert "access to topic 'test.secret'" in result.rejected[forbidden.id]
    wanted = {each.id for each in batch} - {forbidden.id}
    assert await take_until(transport, subscription, wanted) == wanted


async def test_without_any_publish_permission_no_message_is_rejected(
    broker: Broker, rig: Rig, transport: Transport
) -> None:
    """The fault is not in a message, so none is rejected, which would park it in the end."""
    await transport.declare([rig.subscription("reader")])
    reads = ("set_permissions", ".*", "^$", ".*")
    async with restricted(broker, rig, reads) as his, his.open() as publishing:
        with pytest.raises(Unreachable, match="refused"):
            await publish_or_raise(publishing, rig.envelopes(3))


# --- a connection that is lost in the middle of a batch ---


class LimitedProxy:
    """A proxy that forwards this number of bytes from the client to the broker, and then falls
    silent or cuts the connection."""

    def __init__(self, host: str, port: int, *, max_bytes: int, cut: bool) -> None:
        self._target = (host, port)
        self._left = max_bytes
        self._cut = cut
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: list[asyncio.StreamWriter] = []

    @asynccontextmanager
    async def open(self) -> AsyncIterator[int]:
        """Listen while the context is open; yields the port."""
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            server.close()
            for writer in self._writers:
                writer.transport.abort()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        broker_reader, broker_writer = await asyncio.open_connection(*self._target)
        self._writers += [writer, broker_writer]
        for work in (self._forward(reader, broker_writer), self._return(broker_reader, writer)):
            self._tasks.add(asyncio.ensure_future(work))

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while chunk := await reader.read(4096):
            self._left -= len(chunk)
            if self._left > 0:
                writer.write(chunk)
                await writer.drain()
            elif self._cut:
                for each in self._writers:
                    each.transport.abort()

    async def _return(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while chunk := await reader.read(65536):
            writer.write(chunk)


@pytest.mark.parametrize("cut", [False, True], ids=["silent", "cut"])
async def test_the_result_of_an_interrupted_batch_tells_what_was_confirmed(
    cut: bool, rig: Rig, transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    subscription = rig.subscription("reader")
    await transport.declare([subscription])
    monkeypatch.setattr(amqp_publishing, "PUBLISH_TIMEOUT", 10.0)
    batch = [Envelope(each.attributes, b"x" * 5_000) for each in rig.envelopes(300)]
    parts = urlsplit(rig.url)
    assert parts.hostname
    assert parts.port
    wire = LimitedProxy(parts.hostname, parts.port, max_bytes=500_000, cut=cut)
    async with wire.open() as port:
        url = rig.url.replace(f":{parts.port}/", f":{port}/")
        async with open_transport(url, SystemClock(), TransportOptions(prefix=rig.prefix)) as wired:
            result = await wired.publish(batch)
    assert result.error is not None
    confirmed = {each.id for each in batch if result.is_confirmed(each)}
    assert confirmed < set(ids(batch))
    assert cut or len(confirmed) > 50
    delivered = await take_until(transport, subscription, set(confirmed))
    assert confirmed <= delivered < set(ids(batch))


# --- the broker is short of memory ---


async def test_consuming_continues_while_the_broker_is_short_of_memory(
    rig: Rig, transport: Transport, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    subscription = rig.subscription("reader")
    backlog, more = rig.envelopes(30), rig.envelopes(5)
    await transport.declare([subscription])
    await publish_or_raise(transport, backlog)
    monkeypatch.setattr(amqp_publishing, "PUBLISH_TIMEOUT", 1.0)
    await asyncio.to_thread(broker.control, "set_vm_memory_high_watermark", "0")
    try:
        for _ in range(2):  # before and after the client knows that the connection is blocked
            with pytest.raises(Unreachable, match="memory or disk"):
                await publish_or_raise(transport, more)
        async with transport.consume(subscription, prefetch=10) as consumer:
            got: list[Delivery] = []
            while len(got) < 28:
                batch = await consumer.receive(28 - len(got))
                got += batch
                await consumer.settle([(delivery, DONE) for delivery in batch])
            [last, done] = await take(consumer, 2)
            with pytest.raises(Unreachable):
                await consumer.settle([(last, RetryAfter(0.0)), (done, DONE)])
        async with transport.consume(subscription, prefetch=10) as consumer:
            [again] = await take(consumer, 1)
            assert again.envelope.id == last.envelope.id
            await consumer.settle([(again, DONE)])
            await until_ready(transport, subscription, 0)
    finally:
        await asyncio.to_thread(broker.control, "set_vm_memory_high_watermark", "0.6")
    await publish(transport, more)
    assert await take_until(transport, subscription, set(ids(more))) == set(ids(more))


# --- invalid and hostile messages ---

TIME_OUT_OF_RANGE = (253_402_300_800_000).to_bytes(8, "big")
"""The year 10000, in milliseconds, at which the decoder of pamqp raises."""


def with_timestamp_out_of_range(properties: Basic.Properties) -> bytes:
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    properties.timestamp = moment
    raw = ContentHeader(body_size=2, properties=properties).marshal()
    return raw.replace(int(moment.timestamp()).to_bytes(8, "big"), TIME_OUT_OF_RANGE)


def with_undecodable_name(properties: Basic.Properties) -> bytes:
    properties.headers = {**(properties.headers or {}), "name": "x"}
    return ContentHeader(body_size=2, properties=properties).marshal().replace(b"name", b"\xff" * 4)


async def put(channel: aiormq.abc.AbstractChannel, exchange: str, key: str, header: bytes) -> None:
    """Publish a message with a header that aiormq itself cannot write."""
    number = channel.number
    publish = marshal(Basic.Publish(exchange=exchange, routing_key=key), number)
    empty = marshal(ContentHeader(body_size=2), number)
    frame = empty[:3] + len(header).to_bytes(4, "big") + header + empty[-1:]
    body = marshal(ContentBody(b"{}"), number)
    await channel.connection.write_queue.put(ChannelFrame(publish + frame + body, False))


@pytest.mark.parametrize(
    "make_header", [with_timestamp_out_of_range, with_undecodable_name], ids=lambda f: f.__name__
)
@pytest.mark.parametrize("when", ["before a subscription", "while consuming"])
async def test_a_message_with_an_undecodable_header_is_dead_lettered_and_blocks_no_other(
    make_header: object, when: str, rig: Rig, operator: aiormq.abc.AbstractChannel
) -> None:
    assert callable(make_header)
    [envelope] = rig.envelopes(1)
    name, subscription = "test.happened", rig.subscription("reader")
    headers = {f"cloudEvents_{key}": value for key, value in envelope.attributes.items()}
    header = make_header(
        Basic.Properties(headers=headers, message_id="undecodable", delivery_mode=2)
    )
    async with rig.open() as transport:
        if when == "before a subscription":
            # This declares the queue in which it is stored.
            await publish_or_raise(transport, [envelope])
            await put(operator, rig.prefix, name, header)
        else:
            await transport.declare([subscription])
            await put(operator, rig.prefix, name, header)
            await publish_or_raise(transport, [envelope])
        async with transport.consume(subscription, prefetch=10) as consumer:
            got = await take(consumer, 2)
            odd = [each for each in got if each.envelope.data == b"{}"]
            [good] = [each for each in got if each.envelope.data == envelope.data]
            assert good.envelope.id == envelope.id
            assert len(odd) == 1
            await consumer.settle([(good, DONE), (odd[0], RetryAfter(0.0))])
            [again] = await take(consumer, 1)
            assert again.attempt == 2
            await consumer.settle([(again, Dead("no sense"))])
        [letter] = await transport.dead_letters(subscription, limit=5)
        assert (letter.reason, letter.envelope.data) == ("no sense", b"{}")
        assert list(await transport.replay(subscription, [letter.id])) == [letter.id]
        async with transport.consume(subscription, prefetch=10) as consumer:
            [replayed] = await take(consumer, 1)
            await consumer.settle([(replayed, DONE)])
    assert replayed.envelope.data == b"{}"


# --- messages that cannot be stored unchanged ---


def text(name: bytes, raw: bytes) -> tuple[bytes, bytes]:
    return name, b"S" + len(raw).to_bytes(4, "big") + raw


def raw_header(*items: tuple[bytes, bytes], body_size: int = 2) -> bytes:
    """A content header with these headers and a message id, as any client can write it."""
    table = b"".join(bytes([len(name)]) + name + value for name, value in items)
    begin = (60).to_bytes(2, "big") + b"\0\0" + body_size.to_bytes(8, "big")
    return begin + (1 << 13).to_bytes(2, "big") + len(table).to_bytes(4, "big") + table


def nested(depth: int) -> bytes:
    value = b"V"
    for _ in range(depth):
        value = b"A" + len(value).to_bytes(4, "big") + value
    return value


HOSTILE = {
    "an attribute of 130 KB": raw_header(text(b"cloudEvents_huge", b"x" * 130_300)),
    "a header of 43,530 euro signs": raw_header(text(b"note", "€".encode() * 43_530)),
    "as large as a frame": raw_header(text(b"cloudEvents_huge", b"x" * 131_020)),
    "thousands of headers": raw_header(*((b"%05d" % number, b"V") for number in range(18_000))),
    "8,000 doubles": raw_header(
        *((b"%05d" % n, b"d" + b"\x3f\xb9" + b"\x99" * 6) for n in range(8000))
    ),
    "odd decimals": raw_header((b"a", b"D\xff\xff\xff\xff\xff"), (b"b", b"D\x05\x80\0\0\0")),
    "deeply nested": raw_header((b"deep", nested(400))),
    "names of 255 bytes": raw_header(*(text(b"n" * 254 + bytes([65 + n]), b"x") for n in range(5))),
    "no headers": raw_header(),
}


async def test_hostile_messages_are_retried_and_dead_lettered_and_block_no_other(
    rig: Rig, transport: Transport, operator: aiormq.abc.AbstractChannel
) -> None:
    subscription, good = rig.subscription("reader"), rig.envelopes(30)
    await transport.declare([subscription])
    for header in HOSTILE.values():
        await put(operator, rig.prefix, "test.happened", header)
    await publish_or_raise(transport, good)
    wanted, handled = set(ids(good)), set[str]()
    async with (
        asyncio.timeout(TIMEOUT_SECONDS),
        transport.consume(subscription, prefetch=5) as consumer,
    ):
        while not wanted <= handled or await dead_count(transport, subscription) < len(HOSTILE):
            for delivery in await consumer.receive(5):
                outcome: Outcome = DONE
                if delivery.envelope.id not in wanted:
                    again = delivery.attempt == 1
                    outcome = RetryAfter(0.0) if again else Dead("no sense", "why " * 5_000)
                await consumer.settle([(delivery, outcome)])
                handled.add(delivery.envelope.id)
    letters = await transport.dead_letters(subscription, limit=100)
    assert len(letters) == len(HOSTILE)
    assert {letter.envelope.data for letter in letters} == {b"{}"}
    cut = [letter for letter in letters if "(truncated: " in letter.reason]
    assert {letter.envelope.attributes.get("huge", "")[:9] for letter in cut} == {"", "x" * 9}


async def dead_count(transport: Transport, subscription: Subscription) -> int:
    return (await transport.stats(subscription)).dead


async def until_dead(transport: Transport, subscription: Subscription, count: int) -> None:
    """Return once there are exactly this many dead letters; the count may lag behind."""
    async with asyncio.timeout(TIMEOUT_SECONDS):
        while await dead_count(transport, subscription) != count:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


@asynccontextmanager
async def full(broker: Broker, rig: Rig, queues: str, probed: str) -> AsyncIterator[int]:
    """Let a policy make queues of the rig whose names match the pattern reject all messages.

    A quorum queue follows a policy only some time after it is set, so messages are published to the
    probed queue, which must be empty, until it rejects one. Yields how many it accepted before;
    they are deleted at the end."""
    name, queue = secrets.token_hex(5), f"{rig.prefix}.{probed}"
    limits = '{"max-length": 0, "overflow": "reject-publish"}'
    pattern = f"^{rig.prefix}\\.{queues}"
    connection = await aiormq.connect(broker.url)
    try:
        await asyncio.to_thread(broker.control, "set_policy", name, pattern, limits)
        channel = await connection.channel()
        taken = 0
        async with asyncio.timeout(TIMEOUT_SECONDS):
            while await is_accepted(channel, queue):
                taken += 1
        yield taken
        for _ in range(taken):  # the probes are the oldest
            await channel.basic_get(queue, no_ack=True)
    finally:
        await asyncio.to_thread(broker.control, "clear_policy", name)
        await connection.close()


async def is_accepted(channel: aiormq.abc.AbstractChannel, queue: str) -> bool:
    try:
        await channel.basic_publish(b"{}", routing_key=queue)
    except aiormq.exceptions.DeliveryError:
        return False
    return True


async def test_a_full_dead_letter_queue_blocks_no_message_and_gets_its_letters_later(
    rig: Rig, transport: Transport, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(amqp_settlement, "REJECTED_DELAY", 1.0)
    subscription, sent = rig.subscription("reader"), rig.envelopes(10)
    doomed, good = set(ids(sent[:5])), set(ids(sent[5:]))
    await transport.declare([subscription])
    await publish_or_raise(transport, sent)
    async with (
        asyncio.timeout(TIMEOUT_SECONDS),
        transport.consume(subscription, prefetch=2) as consumer,
    ):

        async def handle_one() -> None:
            [delivery] = await take(consumer, 1)
            assert delivery.attempt == 1
            is_doomed = delivery.envelope.id in doomed
            await consumer.settle([(delivery, Dead("no") if is_doomed else DONE)])
            good.discard(delivery.envelope.id)

        async with full(broker, rig, "dead", f"dead.{subscription.name}") as probes:
            while good:
                await handle_one()
            await until_dead(transport, subscription, probes)
        while await dead_count(transport, subscription) < len(doomed):
            await handle_one()
    letters = await transport.dead_letters(subscription, limit=10)
    assert {letter.envelope.id for letter in letters} == doomed


async def test_a_full_queue_does_not_flood_other_subscriptions_with_rerouted_messages(
    rig: Rig, broker: Broker, operator: aiormq.abc.AbstractChannel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RabbitMQ rejects a message if one of its queues does, although the others have stored it.
    Each rerouting stores another copy in these, so reroutings have to be rare."""
    monkeypatch.setattr(amqp_upkeep, "INTERVAL", 3600.0)  # the test calls it
    one, two, sent = rig.subscription("one"), rig.subscription("two"), rig.envelopes(5)
    clock = MovedClock()
    async with open_transport(rig.url, clock, TransportOptions(prefix=rig.prefix)) as transport:
        assert isinstance(transport, AmqpTransport)
        upkeep = transport._upkeep
        await transport.declare([one, two])

        async def restore_after(seconds: float) -> list[str]:
            """Let this time pass and run the upkeep; returns the logged events."""
            clock.ahead += seconds
            with capture_logs() as logs:
                await upkeep.restore()
            return [each["event"] for each in logs]

        async with full(broker, rig, "queue.*two", f"queue.{two.name}"):
            for exchange in (rig.prefix, f"{rig.prefix}.message.test.happened"):
                await operator.exchange_delete(exchange)
            await publish_or_raise(transport, sent)
            async with asyncio.timeout(TIMEOUT_SECONDS):
                events: list[str] = []
                while "unrouted messages rejected" not in events:
                    events = await restore_after(amqp_upkeep.GRACE)
            await until_ready(transport, one, 5)
            for _ in range(5):
                assert await restore_after(1.0) == []
            assert "unrouted messages rejected" in await restore_after(amqp_rerouting.FIRST_PAUSE)
            assert await restore_after(amqp_rerouting.FIRST_PAUSE * 1.5) == []
            await until_ready(transport, one, 10)
        async with asyncio.timeout(TIMEOUT_SECONDS):
            while "unrouted messages rerouted" not in events:
                events = await restore_after(amqp_rerouting.LONGEST_PAUSE)
        assert await take_until(transport, two, set(ids(sent))) == set(ids(sent))


async def test_a_full_delay_queue_loses_no_retry_and_blocks_no_message(
    rig: Rig, transport: Transport, broker: Broker
) -> None:
    """A retry that no delay queue accepts goes to the end of the subscription's queue. Settling it
    raises Unreachable, so that the worker slows down."""
    subscription, sent = rig.subscription("reader"), rig.envelopes(9)
    await transport.declare([subscription])
    await publish_or_raise(transport, sent)
    async with full(broker, rig, "(delay|dead)", f"dead.{subscription.name}"):
        refused = None
        async with transport.consume(subscription, prefetch=1) as consumer:
            while refused is None:  # a queue that has just become full accepts one more
                [delivery] = await take(consumer, 1)
                try:
                    await consumer.settle([(delivery, RetryAfter(3600.0))])
                except Unreachable as error:
                    refused = error
        assert "which policies of RabbitMQ limit it" in str(refused)
        left = ids(sent)[ids(sent).index(delivery.envelope.id) + 1 :]
        async with transport.consume(subscription, prefetch=9) as consumer:
            got = await take(consumer, len(left) + 1)
            assert [each.envelope.id for each in got] == [*left, delivery.envelope.id]
            assert [each.attempt for each in got] == [1] * len(left) + [2]
            await consumer.settle([(each, DONE) for each in got])


async def test_a_message_that_exceeds_a_lowered_limit_is_dead_lettered_truncated(
    rig: Rig, transport: Transport, broker: Broker
) -> None:
    subscription = rig.subscription("reader")
    large, small = rig.envelopes(2)
    large = Envelope(large.attributes, b"x" * 100_000)
    await transport.declare([subscription])
    await publish_or_raise(transport, [large, small])

    async def limit(size: int) -> None:
        setting = f"application:set_env(rabbit, max_message_size, {size}), "
        setting += f"persistent_term:put(max_message_size, {size})."
        await asyncio.to_thread(broker.control, "eval", setting)

    await limit(50_000)
    try:
        async with rig.open() as limited, limited.consume(subscription, prefetch=5) as consumer:
            got = await take(consumer, 2)
            assert [each.envelope.id for each in got] == ids([large, small])
            await consumer.settle([(got[0], RetryAfter(0.0)), (got[1], DONE)])
            [letter] = await limited.dead_letters(subscription, limit=5)
    finally:
        await limit(MAX_MESSAGE_BYTES)
    assert letter.envelope == Envelope(large.attributes, b"x" * 50_000)
    assert letter.reason.startswith("RabbitMQ rejected its retry (truncated: ")
    assert "larger than configured max size 50000" in letter.error


# --- foreign dead letters ---


async def test_foreign_dead_letters_are_listed_replayed_and_discarded_like_others(
    rig: Rig, transport: Transport, operator: aiormq.abc.AbstractChannel
) -> None:
    subscription = rig.subscription("reader")
    await transport.declare([subscription])
    dead = f"{rig.prefix}.dead.{subscription.name}"
    undecodable = with_timestamp_out_of_range(
        Basic.Properties(message_id="undecodable", delivery_mode=2)
    )
    for header in (raw_header(), raw_header(), raw_header(text(b"mine", b"x")), undecodable):
        await put(operator, "", dead, header)
    await until_dead(transport, subscription, 4)
    letters = await transport.dead_letters(subscription, limit=10)
    assert letters == await transport.dead_letters(subscription, limit=10)
    assert len({letter.id for letter in letters}) == 4
    assert {letter.reason for letter in letters} == {"not written by EventMesh: it has no reason"}
    replayed = [letters[0].id, letters[3].id]
    assert list(await transport.replay(subscription, replayed)) == replayed
    async with transport.consume(subscription, prefetch=10) as consumer:
        got = await take(consumer, 2)
        assert [each.envelope.data for each in got] == [b"{}", b"{}"]
        await consumer.settle([(each, DONE) for each in got])
    left = [letter.id for letter in await transport.dead_letters(subscription, limit=10)]
    assert len(left) == 2
    assert list(await transport.discard(subscription, left)) == left
    await until_dead(transport, subscription, 0)


@asynccontextmanager
async def dead_lettering(
    broker: Broker, rig: Rig, subscription: str, limit: dict[str, int]
) -> AsyncIterator[None]:
    """While it is open, a policy limits the queue of this subscription, and lets RabbitMQ move what
    is beyond the limit to its dead letters."""
    queue, dead = (f"{rig.prefix}.{kind}.{subscription}" for kind in ("queue", "dead"))
    policy = {**limit, "dead-letter-exchange": "", "dead-letter-routing-key": dead}
    name = secrets.token_hex(5)
    await asyncio.to_thread(
        broker.control, "set_policy", name, f"^{re.escape(queue)}$", json.dumps(policy)
    )
    try:
        yield
    finally:
        await asyncio.to_thread(broker.control, "clear_policy", name)


async def test_the_reason_of_a_message_that_a_policy_dead_lettered_is_shown(
    rig: Rig, transport: Transport, broker: Broker
) -> None:
    subscription, [sent] = rig.subscription("reader"), rig.envelopes(1)
    await transport.declare([subscription])
    queue = f"{rig.prefix}.queue.{subscription.name}"
    async with dead_lettering(broker, rig, subscription.name, {"message-ttl": 1}):
        await publish_or_raise(transport, [sent])
        await until_dead(transport, subscription, 1)
    [letter] = await transport.dead_letters(subscription, limit=10)
    assert letter.envelope == sent
    assert letter.reason.endswith(f"dead-lettered by RabbitMQ, expired in the queue {queue}")
    assert letter.died_at.year >= 2020
    assert letter.by_broker
    assert list(await transport.replay(subscription, [letter.id])) == [letter.id]
    assert await take_all(transport, subscription, 1) == [sent.id]


async def test_those_who_list_dead_letters_at_the_same_time_see_all_of_them(
    rig: Rig, transport: Transport
) -> None:
    subscription, count = rig.subscription("reader"), 200
    await transport.declare([subscription])
    await publish_or_raise(transport, rig.envelopes(count))
    async with transport.consume(subscription, prefetch=count) as consumer:
        await consumer.settle([(each, Dead("no")) for each in await take(consumer, count)])
    await until_dead(transport, subscription, count)
    async with rig.open() as second, rig.open() as third:
        listed = await asyncio.gather(
            *(each.dead_letters(subscription, limit=count) for each in (transport, second, third))
        )
    assert [len(letters) for letters in listed] == [count] * 3


# --- sagas, and what RabbitMQ dead-letters by itself ---


@asynccontextmanager
async def rides_run(
    broker: Broker, rig: Rig, transport: Transport, folder: Path, *declarations: Declare
) -> AsyncIterator[RunningMesh]:
    """While it is open, a worker of the saga and its participant runs, as these declare them."""
    services = rides, cars = Service("rides"), Service("cars")
    for declare in declarations:
        declare(rides, cars)
    urls = {service.name: f"sqlite:///{folder}/{service.name}.db" for service in services}
    async with (
        running_mesh(services, broker.url, urls, folder, broker_prefix=rig.prefix) as mesh,
        mesh.worker(transport),
    ):
        yield mesh


async def request(transport: Transport, ride_id: str) -> None:
    event = seal(Requested(ride_id=ride_id), source="rides", clock=SystemClock())
    await publish_or_raise(transport, [event])


async def found(mesh: RunningMesh) -> list[SagaRow]:
    async with (await mesh.services[0].database()).reading() as connection:
        return await sagas.find(connection, most=10)


async def stand(mesh: RunningMesh, *statuses: str) -> bool:
    """Whether the sagas have these statuses, in the order of the alphabet."""
    return sorted(row.status for row in await found(mesh)) == [*statuses]


@asynccontextmanager
async def returning(
    operator: aiormq.abc.AbstractChannel, queue: str, *, requeue: bool
) -> AsyncIterator[None]:
    """While it is open, a consumer that RabbitMQ prefers gives every message of the queue back."""

    async def give_back(message: aiormq.abc.DeliveredMessage) -> None:
        await operator.basic_reject(message.delivery_tag or 0, requeue=requeue)

    began = await operator.basic_consume(queue, give_back, arguments={"x-priority": 10})
    yield
    await operator.basic_cancel(began.consumer_tag or "")


@pytest.mark.parametrize(
    ("limit", "reason"),
    [({"delivery-limit": 2}, "delivery_limit"), ({}, "rejected")],
    ids=["delivery limit", "rejected"],
)
async def test_a_saga_hears_of_a_command_that_rabbitmq_has_dead_lettered(
    rig: Rig,
    transport: Transport,
    broker: Broker,
    operator: aiormq.abc.AbstractChannel,
    tmp_path: Path,
    limit: dict[str, int],
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(broker_dead_letters, "INTERVAL", 0.2)
    queue, did = f"{rig.prefix}.queue.cars.bill", list[str]()
    declared = with_saga(riding()), answering(did)
    async with rides_run(broker, rig, transport, tmp_path, *declared) as mesh:
        async with (
            dead_lettering(broker, rig, "cars.bill", limit),
            returning(operator, queue, requeue=bool(limit)),
        ):
            await request(transport, "r1")
            await until(lambda: stand(mesh, "undone"))
        await request(transport, "r2")
        await until(lambda: stand(mesh, "completed", "undone"))
        [undone] = [row for row in await found(mesh) if row.status == "undone"]
    assert did == ["reserve", "release", "reserve", "bill"]
    said = f"dead-lettered by RabbitMQ, {reason} in the queue {queue}"
    assert (undone.reason or "").endswith(said)
    assert await transport.dead_letters(Subscription("rides.ride.saga", ()), limit=10) == []


async def test_a_worker_that_starts_tells_sagas_what_was_dead_lettered_meanwhile(
    rig: Rig, transport: Transport, broker: Broker, tmp_path: Path
) -> None:
    bills, did = Subscription("cars.bill", ("cars.bill",)), list[str]()
    await transport.declare([bills])
    without_bills = with_saga(riding()), answering(did, but=Bill)
    async with (
        dead_lettering(broker, rig, bills.name, {"message-ttl": 1}),
        rides_run(broker, rig, transport, tmp_path, *without_bills),
    ):
        await request(transport, "r1")
        await until_dead(transport, bills, 1)
    declared = with_saga(riding()), answering(did)
    async with rides_run(broker, rig, transport, tmp_path, *declared) as mesh:
        await until(lambda: stand(mesh, "undone"))
    assert did == ["reserve", "release"]


# --- the addresses of the broker ---


async def test_if_a_node_does_not_answer_the_next_one_is_tried(rig: Rig, broker: Broker) -> None:
    address = broker.url.removeprefix("amqp://").rstrip("/")
    user, host = address.split("@")
    url = f"amqp://{user}@127.0.0.1:1,{host},127.0.0.1:2/"
    for _ in range(6):  # the first node is chosen at random
        options = TransportOptions(prefix=rig.prefix)
        async with open_transport(url, SystemClock(), options) as transport:
            await publish_or_raise(transport, rig.envelopes(1))


async def test_if_no_node_of_a_cluster_answers_it_is_unreachable() -> None:
    url = "amqp://u:s3cret@127.0.0.1:1,127.0.0.1:2/"
    with pytest.raises(Unreachable, match=r"u:\*\*\*@127\.0\.0\.1:1,127\.0\.0\.1:2"):
        async with open_transport(url, SystemClock(), TransportOptions()):
            pass


# --- TLS ---


async def test_tls_verifies_the_authority_and_sends_the_client_certificate(
    rig: Rig, broker: Broker
) -> None:
    at = broker.certificates
    certificate = f"certfile={at}/client.pem&keyfile={at}/client.key"
    base = f"amqps://eventmesh:{broker.password}@{broker.tls_address}/"
    options = TransportOptions(prefix=rig.prefix)
    subscription = rig.subscription("reader")
    sent = rig.envelopes(3)
    url = f"{base}?cafile={at}/ca.pem&{certificate}"
    async with open_transport(url, SystemClock(), options) as transport:
        await transport.declare([subscription])
        await publish_or_raise(transport, sent)
        assert await take_all(transport, subscription, 3) == ids(sent)
    for wrong, words in (
        (f"{base}?{certificate}", "signed by an authority that is trusted here"),
        (f"{base}?cafile={at}/ca.pem", "cannot be used"),  # the broker requires a certificate
    ):
        with pytest.raises(Unreachable, match=words) as caught:
            async with open_transport(wrong, SystemClock(), options):
                pass
        assert broker.password not in str(caught.value)
