"""`eventmesh status` on real servers: what it counts, and what it says of servers that are away."""

from __future__ import annotations

import json
import signal
import sys
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import pytest
from sqlalchemy import text

from eventmesh import Command, Event, Reject, Retry, Service, Settings, Transaction, constant
from eventmesh.cli.status import as_document
from eventmesh.clock import SystemClock
from eventmesh.operations import status
from eventmesh.operations.reach import OWN_PROCESS, Reach
from eventmesh.operations.status import MeshStatus, mesh_status
from eventmesh.persistence import inbox, migration
from eventmesh.persistence.database import Database
from eventmesh.transports.base import publish_or_raise
from eventmesh.transports.factory import open_transport
from eventmesh.transports.memory import MemoryTransport
from eventmesh.wire.envelope import Envelope, seal
from tests.integration.conftest import Project
from tests.support.proxy import proxy_before
from tests.support.running_meshes import RunningMesh, running_mesh, until

CLOCK = SystemClock()


class Do(Command, name="shop.do", version=1, key="key"):
    number: int
    key: str = "k"


class Done(Event, name="shop.done", version=1):
    number: int


class Looked(Event, name="web.looked", version=1):
    number: int


def make_service() -> Service:
    service = Service("shop")
    service.publisher(Done)

    @service.subscriber(retry=Retry(attempts=2, backoff=constant("1h")))
    async def do(command: Do, tx: Transaction) -> None:
        if command.number == 2:
            raise Reject("two")
        if command.number == 3:
            raise ValueError("three")

    @service.subscriber()
    async def look(event: Looked) -> None: ...

    return service


def sent(*numbers: int) -> list[Envelope]:
    return [seal(Do(number=number), source="/test", clock=CLOCK) for number in numbers]


@pytest.fixture
async def make_mesh(
    durable_url: Callable[[str], str], database_url: str, tmp_path: Path
) -> AsyncIterator[Callable[..., Awaitable[RunningMesh]]]:
    async with AsyncExitStack() as stack:

        async def make(broker: str, **changes: Any) -> RunningMesh:
            broker_url = durable_url(broker) if "://" not in broker else broker
            urls = {"shop": database_url}
            made = running_mesh([make_service()], broker_url, urls, tmp_path, **changes)
            return await stack.enter_async_context(made)

        yield make


EACH_BROKER = pytest.mark.parametrize("broker", ["sqlite", "redis", "amqp"])


@pytest.mark.parametrize(
    ("broker", "database_url"),
    [("sqlite", "sqlite"), ("redis", "postgres"), ("amqp", "sqlite")],
    indirect=["database_url"],
)
async def test_everything_that_waits_is_counted_with_and_without_workers(
    make_mesh: Callable[..., Awaitable[RunningMesh]], broker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status, "RATE_SECONDS", 3600.0)  # longer than a slow machine takes
    mesh = await make_mesh(broker, lease_time=60.0)  # so that a relay counts, however slow it is
    async with mesh.broker() as transport:
        await transport.declare([each.subscription for each in mesh.service.handlers.values()])
        await publish_or_raise(transport, sent(1, 2, 3))
        async with mesh.worker(transport):

            async def is_handled() -> bool:
                database = await mesh.service.database()
                async with database.reading() as connection:
                    effects = await inbox.count_since(connection, CLOCK.now() - timedelta(hours=1))
                stats = await transport.stats(mesh.service.handlers["shop.do"].subscription)
                return (stats.ready, stats.dead, effects) == (0, 1, {"shop.do": 1})

            async def has_a_relay() -> bool:
                nonlocal running
                running = await mesh.status()
                [database] = running.databases
                return database.outbox is not None and database.outbox.relays == 1

            running: MeshStatus | None = None
            await until(is_handled)
            await until(has_a_relay)
            assert running is not None
            assert running.subscriptions[0].rate == 1 / 3600
        await publish_or_raise(transport, sent(4, 5))
    async with mesh.service.transaction() as tx:
        tx.add(Done(number=1))
        tx.add(Done(number=2), delay="1h")
    await mesh.service.close()

    found = await mesh.status()
    assert found.problems == running.problems == ()
    [do, look] = found.subscriptions
    assert (do.name, do.service, do.declared, do.ready, do.dead) == (
        "shop.do",
        "shop",
        True,
        2,
        1,
    )
    assert (look.ready, look.dead) == (0, 0)
    assert look.rate is None
    assert "without a transaction" in look.unknown["rate"]
    if broker == "amqp":
        assert (do.delayed, do.in_flight, do.oldest_age) == (None, None, None)
        assert "EVENTMESH_RABBITMQ_MANAGEMENT_URL" in do.unknown["in_flight"]
        assert found.broker.delayed_together == 1
    else:
        assert (do.delayed, do.in_flight) == (1, 0)
        assert do.oldest_age is not None
        assert 0 <= do.oldest_age < 60
        assert look.oldest_age is None
        assert "oldest_age" not in look.unknown
    if broker == "sqlite":
        assert do.consumers is None
        assert "consumers" in do.unknown
    else:
        assert (running.subscriptions[0].consumers, do.consumers) == (1, 0)
    [database], [was] = found.databases, running.databases
    assert database.outbox is not None
    assert was.outbox is not None
    assert (was.outbox.relays, was.outbox.due) == (1, 0)
    assert (database.outbox.due, database.outbox.delayed, database.outbox.parked) == (1, 1, 0)
    assert (database.outbox.relays, database.services) == (0, ("shop",))
    assert database.clock_ahead == pytest.approx(0, abs=60)
    assert json.loads(json.dumps(as_document(found)))["subscriptions"][0]["ready"] == 2


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@EACH_BROKER
async def test_a_subscription_that_nobody_has_declared_is_reported_and_not_created(
    make_mesh: Callable[..., Awaitable[RunningMesh]], broker: str
) -> None:
    mesh = await make_mesh(broker)
    if broker == "sqlite":
        async with mesh.broker():  # makes the file
            pass
    async with Reach([mesh.service], mesh.settings, CLOCK) as reach:
        for _ in range(2):
            found = await mesh_status(reach)
            assert [each.declared for each in found.subscriptions] == [False, False]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("redis://127.0.0.1:1", "does not answer"),
        ("amqp://u:secret@127.0.0.1:1/", "cannot be used"),
        ("sqlite:///absent/broker.db", "is not there"),
        ("memory://", OWN_PROCESS),
        ("none", "has no scheme"),
    ],
)
async def test_without_a_broker_the_databases_are_counted_all_the_same(
    make_mesh: Callable[..., Awaitable[RunningMesh]], url: str, says: str
) -> None:
    mesh = await make_mesh("sqlite", broker_url=url)
    found = await mesh.status()
    [problem] = found.problems
    assert says in problem
    assert "secret" not in json.dumps(as_document(found))
    [do, _] = found.subscriptions
    assert (do.ready, do.dead, do.declared, do.problem) == (None, None, None, problem)
    assert do.unknown["ready"] == problem
    assert do.rate == 0
    assert found.databases[0].outbox is not None


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_a_broker_in_the_memory_of_the_asking_process_can_be_given(
    make_mesh: Callable[..., Awaitable[RunningMesh]],
) -> None:
    mesh = await make_mesh("memory://")
    transport = MemoryTransport(CLOCK)
    await transport.declare([mesh.service.handlers["shop.do"].subscription])
    await publish_or_raise(transport, sent(1))
    async with Reach([mesh.service], mesh.settings, CLOCK, transport) as reach:
        [do, look] = (await mesh_status(reach)).subscriptions
    assert (do.ready, do.consumers, look.declared) == (1, 0, False)


async def test_a_database_that_is_lost_in_the_middle_is_a_row_and_is_asked_again_later(
    postgres_url: str, tmp_path: Path
) -> None:
    database = Database(postgres_url, service="shop")
    await migration.upgrade(database)
    await database.close()
    service = make_service()
    async with proxy_before(postgres_url) as proxy:
        settings = Settings(
            broker_url=f"sqlite:///{tmp_path}/broker.db", database_urls={"shop": proxy.url}
        )
        async with open_transport(settings.broker_url, CLOCK, settings.transport_options):
            pass
        async with Reach([service], settings, CLOCK) as reach:
            assert (await mesh_status(reach)).problems == ()
            async with proxy.refusing():
                lost = await mesh_status(reach)
            assert "does not answer" in lost.problems[0]
            assert lost.databases[0].outbox is None
            assert lost.subscriptions[0].ready == 0
            assert lost.subscriptions[0].unknown["rate"] == lost.problems[0]
            assert (await mesh_status(reach)).problems == ()


async def test_a_database_whose_tables_may_not_be_read_is_a_row(
    postgres_url: str, tmp_path: Path
) -> None:
    database = Database(postgres_url, service="shop")
    await migration.upgrade(database)
    name = f"reader_{uuid.uuid4().hex}"
    async with database.connection() as connection:
        await connection.execute(text(f"CREATE ROLE {name} LOGIN PASSWORD 'hush-hush'"))
    try:
        parts = urlsplit(postgres_url)
        netloc = f"{name}:hush-hush@{parts.hostname}:{parts.port}"
        settings = Settings(
            broker_url="memory://",
            database_urls={"shop": urlunsplit(parts._replace(netloc=netloc))},
        )
        service = make_service()
        async with Reach([service], settings, CLOCK, MemoryTransport(CLOCK)) as reach:
            [problem] = (await mesh_status(reach)).problems
        assert "permission denied" in problem
        assert "EVENTMESH_SHOP_DATABASE_URL" in problem
        assert "hush-hush" not in problem
    finally:
        async with database.connection() as connection:
            await connection.execute(text(f"DROP ROLE {name}"))
        await database.close()


async def test_a_database_of_another_migration_is_a_row_that_says_what_to_run(
    postgres_url: str, tmp_path: Path
) -> None:
    settings = Settings(broker_url="memory://", database_urls={"shop": postgres_url})
    async with Reach([make_service()], settings, CLOCK, MemoryTransport(CLOCK)) as reach:
        [problem] = (await mesh_status(reach)).problems
    assert "eventmesh db upgrade shop" in problem


@pytest.mark.parametrize("broker", ["sqlite", "redis"])
def test_the_command_prints_a_table_a_document_and_the_exit_code(
    on: Callable[[str], Project], broker: str
) -> None:
    bank = on(broker)
    worker = bank.worker()
    said = bank.run("status").succeeds("bank.tell", "outbox", "relays")
    assert "unknown: rate of bank.tell: a handler without a transaction" in said
    worker.drain()
    found = json.loads(bank.run("status", "bank", "--json").succeeds())
    assert found["problems"] == []
    assert found["subscriptions"][0]["ready"] == 0
    bank.environment["EVENTMESH_BANK_DATABASE_URL"] = "postgresql://u:secret@127.0.0.1:1/x"
    ended = bank.run("status")
    assert ended.code == 3
    assert "unknown: " in ended.out
    assert "does not answer" in ended.out
    assert "secret" not in ended.said


def test_a_broker_that_is_away_is_said_by_our_own_lines_only(on: Callable[[str], Project]) -> None:
    bank = on("sqlite")
    away = "amqp://u:secret@127.0.0.1:1/"
    for command in ("status", "audit", "doctor"):
        ended = bank.start_program(
            sys.executable, "-m", "eventmesh", command, EVENTMESH_BROKER_URL=away
        ).ended()
        assert (ended.code, ended.err) == (3, ""), ended.said
        assert "amqp://u:***@127.0.0.1:1/ cannot be used" in ended.out


def test_watching_prints_again_and_again_until_it_is_interrupted(
    on: Callable[[str], Project],
) -> None:
    bank = on("sqlite")
    watching = bank.start("status", "--watch", "--json", "--interval", "0.1")
    watching.until(lambda said: said.count("taken_at") >= 3, "three documents")
    watching.tell(signal.SIGINT)
    ended = watching.ended()
    assert ended.code == 0
    documents = [json.loads(line) for line in ended.out.splitlines()]
    assert documents[0]["taken_at"] < documents[2]["taken_at"]
