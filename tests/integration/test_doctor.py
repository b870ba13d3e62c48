"""`eventmesh doctor` on real servers: what it measures, and what it finds."""

from __future__ import annotations

import asyncio
import json
import re
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import pytest
from redis.asyncio import Redis
from sqlalchemy import text

from eventmesh import Command, Event, Retry, Service, Settings, Transaction, constant
from eventmesh.cli.doctor import lines
from eventmesh.clock import Clock, SystemClock
from eventmesh.errors import Unreachable
from eventmesh.operations.doctor.checks import examine
from eventmesh.operations.doctor.measuring import measure
from eventmesh.operations.doctor.verdict import Severity, Verdict, exit_code
from eventmesh.operations.reach import Reach
from eventmesh.operations.status import mesh_status
from eventmesh.persistence import migration
from eventmesh.persistence.database import Database
from eventmesh.runtime.consuming.worker import Worker
from eventmesh.testing.servers import Server
from eventmesh.transports.base import Subscription, publish_or_raise
from eventmesh.transports.factory import open_transport
from eventmesh.transports.memory import MemoryTransport
from eventmesh.wire.envelope import seal
from tests.integration.conftest import Project
from tests.support.running_meshes import until

CLOCK = SystemClock()
OK, WARNING, FAILURE = Severity.OK, Severity.WARNING, Severity.FAILURE
AWAY, SKIPPED = Severity.AWAY, Severity.SKIPPED


class Do(Command, name="shop.do", version=1):
    number: int


class Other(Event, name="web.other", version=1):
    number: int


def make_service(retry: Retry | None = None) -> Service:
    service = Service("shop")

    @service.subscriber(retry=retry)
    async def do(command: Do, tx: Transaction) -> None: ...

    return service


class HoursOff(SystemClock):
    """The clock of a machine that nobody set."""

    def now(self) -> datetime:
        return super().now() + timedelta(hours=5)


async def verdicts(
    service: Service, settings: Settings, clock: Clock = CLOCK, **given: Any
) -> list[Verdict]:
    async with Reach([service], settings, clock, **given) as reach:
        return examine(await measure(reach))


def of(found: list[Verdict], check: str, subject: str = "") -> Verdict:
    [verdict] = [each for each in found if each.check == check and each.subject.startswith(subject)]
    return verdict


@asynccontextmanager
async def migrated(url: str) -> AsyncIterator[Database]:
    database = Database(url, service="shop")
    await migration.upgrade(database)
    try:
        yield database
    finally:
        await database.close()


@pytest.mark.parametrize(
    ("broker", "database_url"),
    [("sqlite", "sqlite"), ("redis", "mariadb"), ("amqp", "postgres")],
    indirect=["database_url"],
)
async def test_a_mesh_with_a_worker_is_well_and_without_one_it_is_not(
    durable_url: Callable[[str], str], broker: str, database_url: str, tmp_path: Path
) -> None:
    settings = Settings(
        broker_url=durable_url(broker),
        broker_prefix=f"t{uuid.uuid4().hex[:12]}",
        database_urls={"shop": database_url},
        schemas=tmp_path / "schemas",
    )
    service = make_service()
    service.configure(settings)
    url, options = settings.broker_url, settings.transport_options
    async with migrated(database_url), open_transport(url, CLOCK, options) as transport:
        stop = asyncio.Event()
        worker = Worker([service], transport, settings, CLOCK)
        running = asyncio.ensure_future(worker.run(stop))
        await asyncio.wait_for(worker.ready.wait(), 60)
        found: list[Verdict] = []

        async def is_counted() -> bool:
            """Its relay may need a moment more, by which a worker on SQLite is counted."""
            nonlocal found
            found = await verdicts(service, settings)
            asked = ("outbox", "outbox"), ("consumers", "shop.do")
            return all(of(found, check, subject).severity is OK for check, subject in asked)

        await until(is_counted)
        # The inbox window and the storage of the tests' Redis are not what is tested here.
        stop.set()
        await asyncio.wait_for(running, 60)
        stray = Subscription("gone.listen", ("shop.do",))
        earlier = Subscription("shop.do", ("shop.do", "shop.gone"))
        await transport.declare([stray, earlier])
        await publish_or_raise(transport, [seal(Do(number=1), source="/t", clock=CLOCK)])
        later = await verdicts(service, settings)

    storage = ("persistence", "eviction")
    assert [each for each in found if each.severity is FAILURE and each.check not in storage] == []
    assert [each for each in found if each.severity is AWAY] == []
    for check, subject in (
        *(("reachable", "broker"), ("version", "broker"), ("reachable", "database of shop")),
        *(("version", "database"), ("migration", "database"), ("permissions", "database")),
        *(("consumers", "shop.do"), ("outbox", "outbox"), ("leases", "outbox")),
        *(("dead letters", "shop.do"), ("inbox window", "shop"), ("schemas", "shop")),
    ):
        assert of(found, check, subject).severity is OK, (check, subject, found)
    assert {each.severity for each in found if each.check == "clock"} <= {OK, SKIPPED}

    consumers = of(later, "consumers", "shop.do")
    assert (consumers.severity, "1 message(s) wait" in consumers.says) == (FAILURE, True)
    undeclared = of(later, "undeclared subscriptions", "broker" if broker == "amqp" else "gone.")
    if broker == "amqp":
        assert undeclared.severity is SKIPPED
        assert "EVENTMESH_RABBITMQ_MANAGEMENT_URL" in undeclared.says
    else:
        assert (undeclared.subject, undeclared.severity) == ("gone.listen", WARNING)
        assert "1 message(s)" in undeclared.says
        surplus = of(later, "undeclared subscriptions", "shop.do")
        assert surplus.says.startswith("its handler takes shop.gone no more"), surplus
    assert exit_code(later) == 1


async def test_a_redis_user_without_a_right_is_found_before_a_worker_fails(
    redis_server: Server,
) -> None:
    prefix, user = f"t{uuid.uuid4().hex[:12]}", f"u{uuid.uuid4().hex[:12]}"
    async with Redis.from_url(redis_server.url) as redis:
        await redis.execute_command(
            *("ACL", "SETUSER", user, "on", ">hush-hush", f"~{prefix}:*", "+@all", "-xclaim"),
            *("-xinfo|groups", "-config|get"),
        )
        try:
            parts = urlsplit(redis_server.url)
            netloc = f"{user}:hush-hush@{parts.hostname}:{parts.port}"
            settings = Settings(
                broker_url=urlunsplit(parts._replace(netloc=netloc)), broker_prefix=prefix
            )
            found = await verdicts(Service("shop"), settings)
        finally:
            await redis.execute_command("ACL", "DELUSER", user)
    rights = of(found, "permissions", "broker")
    assert rights.severity is FAILURE
    assert "XCLAIM" in rights.says
    assert "XINFO" in rights.says
    assert "hush-hush" not in json.dumps([each.says for each in found])
    async with Redis.from_url(redis_server.url) as redis:
        assert [key async for key in redis.scan_iter(f"{prefix}:*")] == []


async def test_names_that_other_programs_made_are_printed_safely(redis_server: Server) -> None:
    prefix, hostile = f"t{uuid.uuid4().hex[:12]}", "\x1b[2J<script>alert(1)</script>\n\u202e"
    async with Redis.from_url(redis_server.url) as redis:
        await redis.xgroup_create(f"{prefix}:stream:shop.do", hostile, mkstream=True)
        settings = Settings(broker_url=redis_server.url, broker_prefix=prefix)
        found = await verdicts(Service("shop"), settings)
        await redis.delete(f"{prefix}:stream:shop.do")
    assert of(found, "undeclared subscriptions").subject == hostile
    for line in lines(found, every=True):
        assert line.plain.isprintable()


async def test_a_key_of_another_program_hides_one_subscription_only(redis_server: Server) -> None:
    prefix = f"t{uuid.uuid4().hex[:12]}"
    service = make_service()

    @service.subscriber()
    async def other(event: Other) -> None: ...

    settings = Settings(broker_url=redis_server.url, broker_prefix=prefix)
    async with Redis.from_url(redis_server.url) as redis:
        await redis.set(f"{prefix}:retry:shop.do", "mine")
        async with Reach([service], settings, CLOCK) as reach:
            [do, told] = (await mesh_status(reach)).subscriptions
        await redis.delete(f"{prefix}:retry:shop.do")
    assert (do.ready, told.ready, told.problem) == (None, 0, None)
    assert do.problem is not None
    assert "WRONGTYPE" in do.problem


async def test_clocks_that_are_hours_off_are_found(redis_server: Server, postgres_url: str) -> None:
    settings = Settings(
        broker_url=redis_server.url,
        broker_prefix=f"t{uuid.uuid4().hex[:12]}",
        database_urls={"shop": postgres_url},
    )
    async with migrated(postgres_url):
        asked_at = CLOCK.monotonic()
        found = await verdicts(make_service(), settings, HoursOff())
        took = CLOCK.monotonic() - asked_at
    clocks = [each for each in found if each.check == "clock"]
    assert [(each.subject, each.severity) for each in clocks] == [
        ("broker", FAILURE),
        ("database of shop", FAILURE),
        ("database of shop", OK),
    ]
    behind = re.match(r"its clock is ([\d,.]+) s behind this machine's clock", clocks[0].says)
    assert behind, clocks[0].says
    assert float(behind[1].replace(",", "")) == pytest.approx(5 * 3600, abs=1 + took)
    assert clocks[2].says.endswith("the broker's")


async def test_a_database_without_tables_or_rights_is_told_what_to_do(postgres_url: str) -> None:
    settings = Settings(broker_url="memory://", database_urls={"shop": postgres_url})
    transport, service = MemoryTransport(CLOCK), make_service()
    found = await verdicts(service, settings, transport=transport)
    assert of(found, "migration").fix == "Run `eventmesh db upgrade shop`."
    assert exit_code(found) == 1

    name = f"reader_{uuid.uuid4().hex}"
    async with migrated(postgres_url) as database:
        async with database.connection() as connection:
            await connection.execute(text(f"CREATE ROLE {name} LOGIN PASSWORD 'hush-hush'"))
            await connection.execute(text(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {name}"))
        try:
            parts = urlsplit(postgres_url)
            netloc = f"{name}:hush-hush@{parts.hostname}:{parts.port}"
            reader = urlunsplit(parts._replace(netloc=netloc))
            settings = Settings(broker_url="memory://", database_urls={"shop": reader})
            found = await verdicts(service, settings, transport=transport)
            with pytest.raises(Unreachable, match=r"permission denied .* `eventmesh doctor` lists"):
                await Worker([service], transport, settings, CLOCK).try_out()
            publishing = Service("shop")
            publishing.configure(settings)
            async with publishing:
                with pytest.raises(Unreachable, match="Grant the user in EVENTMESH_SHOP_"):
                    await publishing.publisher(Do).publish(Do(number=1))
            async with database.connection() as connection:
                for grant in DOCUMENTED_GRANTS:
                    await connection.execute(text(grant.replace("bank_app", name)))
            enough = await verdicts(service, settings, transport=transport)
            await handle_one(service, transport, settings)
        finally:
            async with database.connection() as connection:
                await connection.execute(text(f"DROP OWNED BY {name}"))
                await connection.execute(text(f"DROP ROLE {name}"))
    rights = of(found, "permissions", "database")
    assert rights.severity is FAILURE
    assert "INSERT of eventmesh_" in rights.says
    assert "permission denied" in rights.says
    assert "DELETE of eventmesh_outbox" in rights.says
    assert of(enough, "permissions", "database").severity is OK


DOCUMENTED_GRANTS = re.findall(
    r"^GRANT .*(?=;$)",
    (Path(__file__).parents[2] / "docs/settings.md").read_text(encoding="utf-8"),
    re.MULTILINE,
)


async def handle_one(service: Service, transport: MemoryTransport, settings: Settings) -> None:
    """Run a worker until one message has been published, relayed and handled."""
    worker, stopping = Worker([service], transport, settings, CLOCK), asyncio.Event()
    running = asyncio.ensure_future(worker.run(stopping))
    await asyncio.wait(
        [running, asyncio.ensure_future(worker.ready.wait())], return_when="FIRST_COMPLETED"
    )
    if not running.done():
        await service.publisher(Do).publish(Do(number=1))
        await until(lambda: worker.vitals.subscriptions[0].outcomes["done"] == 1)
    stopping.set()
    await running


async def test_a_server_that_is_away_is_said_and_everything_else_is_checked(
    postgres_url: str,
) -> None:
    settings = Settings(
        broker_url="redis://127.0.0.1:1", database_urls={"shop": postgres_url}, inbox_window=3600
    )
    async with migrated(postgres_url):
        service = make_service(Retry(attempts=9, backoff=constant("2h")))
        found = await verdicts(service, settings)
    assert of(found, "reachable", "broker").severity is AWAY
    assert of(found, "reachable", "database").severity is OK
    assert of(found, "outbox", "outbox").severity is OK
    window = of(found, "inbox window", "shop")
    assert (window.severity, "EVENTMESH_INBOX_WINDOW" in window.says) == (FAILURE, True)
    assert exit_code(found) == 3


def test_the_command_prints_findings_a_document_and_the_exit_code(
    bank: Project, wait_until: Callable[..., Any]
) -> None:
    worker = bank.worker()
    wait_until(lambda: bank.run("doctor").code == 0, "the worker's relay")
    ended = bank.run("doctor", "--all", EVENTMESH_PREFECTH="500")
    assert ended.code == 1, ended.said
    assert "warning settings, EVENTMESH_PREFECTH: " in ended.out
    assert "Did you mean EVENTMESH_PREFETCH?" in ended.out
    assert "ok      dead letters, bank.deposit, bank.tell" in ended.out
    document = json.loads(bank.run("doctor", "--json").succeeds())
    assert (document["exit_code"], document["counts"]["failure"]) == (0, 0)
    worker.drain()
    ended = bank.run("doctor")
    assert ended.code == 1
    assert "eventmesh worker bank" in ended.out
    away = bank.run("doctor", EVENTMESH_BROKER_URL="amqp://u:secret@127.0.0.1:1/")
    assert away.code == 3
    assert "away    reachable, broker" in away.out
    assert "secret" not in away.said
