"""Which messages are still in flight in a mesh, and when a version can be retired."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import aio_pika
import pytest
from redis.asyncio import Redis

from eventmesh.clock import SystemClock
from eventmesh.contracts.message import Event
from eventmesh.errors import Unreachable
from eventmesh.persistence import migration, outbox
from eventmesh.persistence.database import Database
from eventmesh.persistence.outbox import Outgoing
from eventmesh.transports.base import (
    Delivery,
    Subscription,
    Transport,
    TransportOptions,
    publish_or_raise,
)
from eventmesh.transports.factory import open_transport
from eventmesh.transports.outcome import DONE, Dead, RetryAfter
from eventmesh.wire.envelope import Envelope, seal
from tests.integration.conftest import BECAUSE
from tests.support import units
from tests.support.proxy import Proxy, proxy_before

if TYPE_CHECKING:
    from tests.integration.conftest import Project

BANK = """
from eventmesh import Event, Service
class Deposited(Event, name="bank.deposited", version=1, key="owner"):
    owner: str
    cents: int
service = Service("bank")
deposited = service.publisher(Deposited)
"""

SECOND_VERSION = """
from eventmesh import Event, Service
class Deposited(Event, name="bank.deposited", version=2, key="owner"):
    owner: str
    cents: int
    note: str
@Deposited.upcaster(from_version=1)
def add_note(data: dict) -> dict:
    return data | {"note": ""}
service = Service("bank")
deposited = service.publisher(Deposited)
"""

MAIL = """
from eventmesh import Event, Reject, Service, Transaction
class Deposited(Event, name="bank.deposited", version=2, key="owner"):
    owner: str
@Deposited.upcaster(from_version=1)
def same(data: dict) -> dict:
    return data
service = Service("mail")
@service.subscriber(Deposited)
async def tell(event: Deposited, tx: Transaction) -> None:
    print("told", event.owner, flush=True)
"""

PUBLISH = """
import asyncio
from services.bank.service import Deposited, deposited, service
async def main():
    async with service:
        for delay in %s:
            event = Deposited(**{"owner": "ada", "cents": 5, "note": ""})
            await deposited.publish(event, delay=delay)
asyncio.run(main())
"""

TELL = Subscription("mail.tell", ("bank.deposited",))


def message(version: int | None, owner: str = "ada") -> Envelope:
    """A message of that version."""
    clock = SystemClock()
    return Envelope(
        {
            "specversion": "1.0",
            "id": clock.new_id(),
            "source": "/bank",
            "type": "bank.deposited",
            "dataschema": f"urn:eventmesh:bank.deposited:{version}" if version else "urn:else",
            "datacontenttype": "application/json",
            "time": (clock.now() - timedelta(days=1)).isoformat(),
            "partitionkey": owner,
        },
        b'{"owner": "ada", "cents": 1, "note": ""}',
    )


@pytest.fixture
def mesh(project: Project, durable_url: Callable[[str], str]) -> Callable[[str], Project]:
    """Projects on a given broker: a bank whose message has a frozen version 1 and version 2 in the
    code, and a mail service that subscribes to it."""

    def make(broker: str) -> Project:
        project.environment["EVENTMESH_BROKER_URL"] = durable_url(broker)
        project.service(BANK)
        project.service(MAIL, "mail")
        project.run("schema", "freeze").succeeds("bank.deposited v1")
        project.service(SECOND_VERSION)
        return project

    return make


def publish(project: Project, *delays: int) -> None:
    """Let the bank publish one message for each delay in seconds, in the version of its code."""
    project.python(PUBLISH % (delays,)).succeeds()


def opened(project: Project) -> Any:
    """A transport on the project's broker."""
    options = TransportOptions(prefix=project.prefix)
    return open_transport(project.environment["EVENTMESH_BROKER_URL"], SystemClock(), options)


async def fill(transport: Transport) -> None:
    """Fill mail.tell: one dead letter, one message that waits for its retry, and four that are
    ready."""
    await transport.declare([TELL])
    sent = [message(1), message(2), message(1), message(1), message(2), message(None)]
    await publish_or_raise(transport, sent)
    async with transport.consume(TELL, prefetch=2) as consumer:
        first, second = [*await consumer.receive(1), *await consumer.receive(1)]
        await consumer.settle([(first, Dead("no")), (second, RetryAfter(600))])


def counted(project: Project, *services: str) -> dict[tuple[str, int | None, str], int]:
    """What the inventory counts of the bank's message, by place, version and owner."""
    told = json.loads(project.run("schema", "inventory", "--json", *services).succeeds())
    assert told["hidden"] == []
    return {
        (each["place"], each["version"], each["subscription"] or each["service"] or ""): each[
            "number"
        ]
        for each in told["messages"]
    }


def forget_delayed(project: Project) -> None:
    """Let delayed messages in the bank's outbox be due now."""
    with sqlite3.connect(project.root / ".eventmesh/bank.db") as connection:
        connection.execute("UPDATE eventmesh_outbox SET due_at = NULL")
    connection.close()


@pytest.mark.parametrize("broker", ["sqlite", "redis", "amqp"])
async def test_a_version_can_be_retired_once_no_message_of_it_is_in_flight(
    mesh: Callable[[str], Project], wait_until: Callable[..., Any], broker: str
) -> None:
    project = mesh(broker)
    publish(project, 0)
    project.service(BANK)
    publish(project, 0, 600)
    project.service(SECOND_VERSION)
    async with opened(project) as transport:
        await fill(transport)
    found = {
        ("outbox", 1, "bank"): 1,
        ("outbox, due later", 1, "bank"): 1,
        ("outbox", 2, "bank"): 1,
        ("waiting", 1, "mail.tell"): 2,
        ("waiting", 2, "mail.tell"): 1,
        ("waiting", None, "mail.tell"): 1,
        ("dead letters", 1, "mail.tell"): 1,
        ("delayed for a retry", 2, "mail.tell"): 1,
    }
    assert counted(project) == found
    assert counted(project) == found, "counting changed the messages"
    in_mail = {kind: number for kind, number in found.items() if kind[2] == "mail.tell"}
    assert counted(project, "mail") == in_mail

    refused = project.run("schema", "retire", "bank.deposited", "1").fails(
        4, "bank.deposited v1", "1 outbox of bank", "1 outbox, due later of bank"
    )
    assert "2 waiting of mail.tell, the oldest from 2" in refused
    assert "1 dead letters of mail.tell" in refused
    assert "delayed" not in refused, "the delayed message has another version"

    forget_delayed(project)
    worker = project.start("worker", "bank", "mail")
    worker.until_says("worker is ready")
    wait_until(lambda: worker.out.count("told") >= 6, "six messages told")
    worker.drain()
    project.run("schema", "retire", "bank.deposited", "1").fails(4, "1 dead letters of mail.tell")
    letters = json.loads(project.run("dlq", "list", "mail", "--json").succeeds())
    v1 = [each["id"] for each in letters if each["attributes"]["dataschema"].endswith(":1")]
    project.run("dlq", "discard", "mail", *BECAUSE, *v1).succeeds("1 dead letter")
    project.run("schema", "retire", "bank.deposited", "1").succeeds("retired bank.deposited v1")
    lock = json.loads((project.root / "schemas/bank/deposited/v1.json").read_text())
    assert lock["status"] == "retired"
    left = {("delayed for a retry", 2, "mail.tell"): 1, ("dead letters", None, "mail.tell"): 1}
    assert counted(project) == left


async def test_messages_held_by_workers_on_rabbitmq_count_as_unknown_and_not_as_zero(
    mesh: Callable[[str], Project], wait_until: Callable[..., Any]
) -> None:
    project = mesh("amqp")
    publish(project, 0)
    worker = project.start("worker", "bank", "mail")
    worker.until_says("worker is ready")
    wait_until(lambda: worker.out.count("told") >= 1, "a message told")
    unknown = "an unknown number of messages in flight of mail.tell"
    project.run("schema", "inventory").succeeds(unknown, "stop them")
    project.run("schema", "retire", "bank.deposited", "1").fails(4, "stop them", "mail.tell")
    worker.drain()
    project.run("schema", "retire", "bank.deposited", "1").succeeds("retired")


@pytest.mark.parametrize("broker", ["sqlite", "redis", "amqp"])
async def test_an_inventory_of_a_mesh_that_never_ran_is_empty_and_creates_nothing(
    mesh: Callable[[str], Project], broker: str
) -> None:
    project = mesh(broker)
    url = project.environment["EVENTMESH_BROKER_URL"]
    assert counted(project) == {}
    assert not (project.root / ".eventmesh").exists()
    match urlsplit(url).scheme:
        case "sqlite":
            assert not list(project.root.glob("broker.db*"))
        case "redis":
            async with Redis.from_url(url) as redis:
                assert await redis.keys(f"{project.prefix}*") == []
        case "amqp":
            for name in ("census", "foreign", "queue.mail.tell", "unrouted.bank.deposited"):
                async with await aio_pika.connect(url) as connection:
                    channel = await connection.channel()
                    with pytest.raises(aio_pika.exceptions.ChannelNotFoundEntity):
                        await channel.get_queue(f"{project.prefix}.{name}")


@pytest.mark.parametrize("broker", ["sqlite", "redis", "amqp"])
async def test_unrouted_messages_and_those_of_a_removed_subscription_are_counted(
    mesh: Callable[[str], Project], broker: str
) -> None:
    project = mesh(broker)
    (project.root / "services/mail/service.py").unlink()
    async with opened(project) as transport:
        await publish_or_raise(transport, [message(1), message(1)])
        assert counted(project) == {("unrouted, kept for a first subscription", 1, ""): 2}
        project.run("schema", "retire", "bank.deposited", "1").fails(4, "2 unrouted")
        if broker != "amqp":  # RabbitMQ does not list its queues
            await transport.declare([TELL])
            assert counted(project) == {("waiting", 1, "mail.tell"): 2}
            project.run("schema", "retire", "bank.deposited", "1").fails(4, "of mail.tell")
        async with transport.consume(TELL, prefetch=2) as consumer:
            for _ in range(2):
                await consumer.settle([(each, DONE) for each in await consumer.receive(1)])
    project.run("schema", "retire", "bank.deposited", "1").succeeds("retired")


def test_an_unreachable_place_is_an_error_and_not_zero(mesh: Callable[[str], Project]) -> None:
    project = mesh("sqlite")
    places = {
        "EVENTMESH_BANK_DATABASE_URL": ("postgresql://nobody@127.0.0.1:1/nothing", 3, "'bank'"),
        "EVENTMESH_BROKER_URL": ("redis://127.0.0.1:1", 3, "does not answer"),
        "EVENTMESH_BROKER_PREFIX": ("UPPER", 2, "EVENTMESH_BROKER_PREFIX"),
    }
    for variable, (value, code, words) in places.items():
        for command in (["inventory"], ["retire", "bank.deposited", "1"]):
            project.run("schema", *command, **{variable: value}).fails(code, words)
    project.run("schema", "inventory", EVENTMESH_BROKER_URL="memory://").fails(2, "memory://")


def test_a_version_that_may_still_be_sent_cannot_be_retired(mesh: Callable[[str], Project]) -> None:
    project = mesh("sqlite")
    project.run("schema", "retire", "bank.deposited", "2").fails(2, "no frozen version 2")
    project.run("schema", "retire", "bank.nothing", "1").fails(2, "is not frozen")
    project.service(BANK)
    project.run("schema", "retire", "bank.deposited", "1").fails(4, "bank", "still sends it")


def test_a_shared_outbox_is_counted_once(mesh: Callable[[str], Project]) -> None:
    project = mesh("sqlite")
    publish(project, 0)
    project.environment["EVENTMESH_MAIL_DATABASE_URL"] = "sqlite:///.eventmesh/bank.db"
    assert counted(project) == {("outbox", 2, "bank, mail"): 1}


class Paid(Event, name="shop.paid", version=3, key="order"):
    order: str


async def test_an_outbox_is_counted_by_version_and_state(empty_database_url: str) -> None:
    clock = SystemClock()
    database = Database(empty_database_url, service="shop")
    try:
        async with database.reading() as connection:
            assert await outbox.census(connection, clock.now()) == []
        await migration.upgrade(database)
        sent = [
            Outgoing(seal(Paid(order=str(n)), source="shop", clock=clock), delay=delay)
            for n, delay in enumerate([0, 0, 600, 0])
        ]
        async with database.connection() as connection:
            await units.store(connection, sent)
        async with database.connection() as connection:
            refusal = outbox.Rejection(1, "too large", clock.now())
            await outbox.mark_rejected(connection, [refusal], park_after=1)
            lots = await outbox.census(connection, clock.now())
        assert {(lot.state, lot.number) for lot in lots} == {
            ("due", 2),
            ("delayed", 1),
            ("parked", 1),
        }
        assert {(lot.name, lot.dataschema) for lot in lots} == {
            ("shop.paid", "urn:eventmesh:shop.paid:3")
        }
        assert min(lot.oldest for lot in lots) == sent[0].envelope.attributes["time"]
    finally:
        await database.close()


async def test_a_census_of_untouched_subscriptions_consumes_none_of_their_messages_on_rabbitmq(
    project: Project, durable_url: Callable[[str], str]
) -> None:
    project.environment["EVENTMESH_BROKER_URL"] = durable_url("amqp")
    async with opened(project) as transport:
        await transport.declare([TELL])
        await publish_or_raise(transport, [message(1) for _ in range(3)])
        async with transport.consume(TELL, prefetch=1) as consumer:
            await consumer.settle([(each, RetryAfter(600)) for each in await consumer.receive(1)])
        expected = {("delayed", 1), ("ready", 2)}
        for _ in range(2):
            census = await transport.census([TELL], untouched={TELL.name})
            assert not census.lots
            assert {(hidden.state, hidden.number) for hidden in census.hidden} == expected
        async with transport.consume(TELL, prefetch=3) as consumer:
            [first, *_] = await consumer.receive(3)
            assert first.deliveries <= 2, "only the consumer itself may have added a delivery"


async def test_only_one_process_counts_on_a_rabbitmq_at_a_time(
    project: Project, durable_url: Callable[[str], str]
) -> None:
    project.environment["EVENTMESH_BROKER_URL"] = url = durable_url("amqp")
    async with opened(project) as transport:
        async with await aio_pika.connect(url) as other:
            channel = await other.channel()
            await channel.declare_queue(f"{project.prefix}.census", exclusive=True)
            with pytest.raises(Unreachable, match="process is counting"):
                await transport.census([TELL])
        await transport.census([TELL])


def test_a_retired_version_does_not_have_to_be_readable(mesh: Callable[[str], Project]) -> None:
    project = mesh("sqlite")
    upcaster = MAIL[MAIL.index("@Deposited.upcaster") : MAIL.index("service = Service")]
    reads_notes = MAIL.replace("owner: str\n", "owner: str\n    note: str\n").replace(upcaster, "")
    project.service(reads_notes, "mail")
    project.run("schema", "freeze").succeeds("bank.deposited v2")
    broken = project.run("schema", "check")
    assert broken.code == 4
    assert "EM050 bank.deposited v1" in broken.said
    project.run("schema", "retire", "bank.deposited", "1").succeeds("retired")
    project.run("schema", "check").succeeds("0 errors")


async def test_many_messages_are_all_counted(project: Project, durable_broker_url: str) -> None:
    project.environment["EVENTMESH_BROKER_URL"] = durable_broker_url
    async with opened(project) as transport:
        await transport.declare([TELL])
        await publish_or_raise(transport, [message(1 + number % 2) for number in range(900)])
        async with transport.consume(TELL, prefetch=400) as consumer:
            got: list[Delivery] = []
            while len(got) < 400:
                got += await consumer.receive(400 - len(got))
            await consumer.settle([(each, RetryAfter(600)) for each in got[:200]])
            await consumer.settle([(each, Dead("no")) for each in got[200:300]])
        expected = {
            (version, state): number
            for version in (1, 2)
            for state, number in (("ready", 300), ("delayed", 100), ("dead", 50))
        }
        for _ in range(2):
            census = await transport.census([TELL], TELL.messages)
            assert not census.hidden
            counted = {(kind.version, kind.state): n.number for kind, n in census.lots.items()}
            assert counted == expected


async def cut_while_counting(proxy: Proxy, transport: Transport) -> None:
    while True:
        counting = asyncio.ensure_future(transport.census([TELL]))
        # Until the census holds them; on a busy machine they may be given back before stats are
        # read.
        while not counting.done() and (await transport.stats(TELL)).ready:
            pass
        proxy.cut()
        await counting


async def test_a_lost_connection_to_rabbitmq_ends_the_count_and_loses_nothing(
    project: Project, durable_url: Callable[[str], str]
) -> None:
    async with proxy_before(durable_url("amqp")) as proxy:
        project.environment["EVENTMESH_BROKER_URL"] = proxy.url
        async with opened(project) as transport:
            await transport.declare([TELL])
            await publish_or_raise(transport, [message(1) for _ in range(2000)])
            with pytest.raises(Unreachable):
                await cut_while_counting(proxy, transport)
            census = await transport.census([TELL])
            assert [lot.number for lot in census.lots.values()] == [2000]
