"""Messages without a subscription: they can be listed and purged, and their number is limited."""

from __future__ import annotations

import asyncio
import getpass
import json
import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aio_pika
import pytest
from structlog.testing import capture_logs

from eventmesh import Service
from eventmesh.clock import SystemClock
from eventmesh.contracts.message import Event
from eventmesh.observability.metrics import WorkerMetrics
from eventmesh.runtime.consuming.worker import Worker
from eventmesh.runtime.declaring.settings import Settings
from eventmesh.runtime.relaying.unrouted_bound import COUNT_INTERVAL, UnroutedBound
from eventmesh.runtime.vitals import RelayVitals
from eventmesh.transports.base import Subscription, Transport, TransportOptions, publish_or_raise
from eventmesh.transports.factory import open_transport
from eventmesh.transports.memory import MemoryTransport
from eventmesh.wire.envelope import Envelope

if TYPE_CHECKING:
    from tests.integration.conftest import Project

CLOSED = "bank.closed"
WHY = "nobody will read them"
AUDIT = Subscription("audit.closed", (CLOSED,))

BANK = """
from eventmesh import Event, Service
class Closed(Event, name="bank.closed", version=1):
    number: int
service = Service("bank")
closed = service.publisher(Closed)
"""


class Closed(Event, name="bank.closed", version=1):
    number: int


def messages(count: int, name: str = CLOSED, **attributes: str) -> list[Envelope]:
    clock = SystemClock()
    return [
        Envelope(
            {
                "specversion": "1.0",
                "id": clock.new_id(),
                "source": "/bank",
                "type": name,
                "dataschema": f"urn:eventmesh:{name}:1",
                "datacontenttype": "application/json",
                "time": clock.now().isoformat(),
                **attributes,
            },
            b'{"number":%d}' % number,
        )
        for number in range(count)
    ]


def opened(project: Project) -> AbstractAsyncContextManager[Transport]:
    options = TransportOptions(prefix=project.prefix)
    return open_transport(project.environment["EVENTMESH_BROKER_URL"], SystemClock(), options)


def counted(project: Project, *arguments: str) -> dict[str, tuple[int, bool]]:
    """The output of `eventmesh unrouted`: numbers by message, and whether they are foreign."""
    why = ["--reason", WHY] if arguments[0] == "purge" else []
    rows = json.loads(project.run("unrouted", *arguments, *why, "--json").succeeds())
    return {row["message"]: (row["number"], row.get("foreign", False)) for row in rows}


async def numbers_of(transport: Transport, least: int) -> list[str]:
    """Wait until the first subscription has this many messages; returns their data in order."""
    await transport.declare([AUDIT])
    ready = 0

    async def are_enough() -> bool:
        nonlocal ready
        ready = (await transport.stats(AUDIT)).ready
        return ready >= least

    await until(are_enough)  # another process may just have published some or given them back
    got: list[str] = []
    async with transport.consume(AUDIT, prefetch=1_000) as consumer:
        while len(got) < ready:
            got += [each.envelope.data.decode() for each in await consumer.receive(1_000)]
    return got


@pytest.mark.parametrize("broker", ["sqlite", "redis", "amqp"])
async def test_unrouted_messages_can_be_listed_and_purged(
    project: Project, durable_url: Callable[[str], str], broker: str
) -> None:
    project.environment["EVENTMESH_BROKER_URL"] = durable_url(broker)
    project.service(BANK)
    project.run("unrouted", "list").succeeds("0 unrouted message(s)")
    async with opened(project) as transport:
        await publish_or_raise(transport, [*messages(3), *messages(2, "bank.opened")])
        named = ["--message", "bank.opened"] if broker == "amqp" else []
        assert counted(project, "list") | counted(project, "list", *named) == {
            CLOSED: (3, False),
            "bank.opened": (2, False),
        }
        listed = project.run("unrouted", "list", "--message", CLOSED).succeeds()
        assert listed.startswith(f"{CLOSED}  3  ")
        assert "oldest " in listed
        assert listed.endswith("3 unrouted message(s)\n")
        project.run("unrouted", "purge", "--reason", WHY).fails(2, "add --yes")
        without = project.run("unrouted", "purge", "--yes")
        assert (without.code, "Missing option '--reason'" in without.err) == (2, True)
        purge = ("unrouted", "purge", "--yes", "--reason", WHY)
        project.run(*purge).fails(3, "The database of service 'bank'", "is not there")
        project.run("db", "upgrade", "bank").succeeds()
        assert counted(project, "purge", "--older-than", "7d", "--yes") == {}
        project.run(*purge, "--older-than", "soon").fails(2, "duration")
        purged = counted(project, "purge", "--message", "bank.opened", "--yes")
        assert purged == {"bank.opened": (2, False)}
        assert await numbers_of(transport, 3) == [f'{{"number":{number}}}' for number in range(3)]
        assert counted(project, "list", "--message", CLOSED) == {}
        project.run(*purge, "--message", CLOSED).succeeds("0 unrouted")


async def test_a_purge_is_recorded_in_the_database_of_the_owner_of_the_name(
    project: Project, durable_url: Callable[[str], str]
) -> None:
    project.environment["EVENTMESH_BROKER_URL"] = durable_url("sqlite")
    project.service(BANK)
    project.run("db", "upgrade", "bank").succeeds()
    async with opened(project) as transport:
        await publish_or_raise(transport, [*messages(3), *messages(2, "crm.won")])
    everything = ("--older-than", "0s", "--yes", "--reason", WHY)
    purge = project.run("unrouted", "purge", *everything)
    purge.succeeds("bank.closed  3", "crm.won  2", "5 unrouted message(s) purged")
    with closing(sqlite3.connect(project.root / ".eventmesh/bank.db")) as connection:
        rows = connection.execute(
            "SELECT service, who, what, subject, reason, details, outcome FROM eventmesh_action"
        ).fetchall()
    [(service, who, what, subject, reason, details, outcome)] = rows
    assert (service, who, what) == ("bank", getpass.getuser(), "purge unrouted")
    assert (subject, reason, outcome) == (CLOSED, WHY, "3 purged")
    assert json.loads(details) == {"older_than": "0s"}
    logged = [json.loads(line) for line in purge.err.splitlines()]
    assert [(each["event"], each["subject"], each["who"], each["reason"]) for each in logged] == [
        ("operator acts", "crm.won", getpass.getuser(), WHY),
        ("operator has acted", "crm.won", getpass.getuser(), WHY),
    ]
    assert logged[1]["outcome"] == "2 purged"


async def test_foreign_messages_on_rabbitmq_can_be_listed_and_purged(
    project: Project, durable_url: Callable[[str], str]
) -> None:
    url = project.environment["EVENTMESH_BROKER_URL"] = durable_url("amqp")
    async with opened(project) as transport, await aio_pika.connect(url) as connection:
        await publish_or_raise(transport, messages(1))  # this declares the exchanges
        channel = await connection.channel()
        exchange = await channel.get_exchange(project.prefix)
        for name in ("crm.won", "crm.lost", "crm.won"):
            sent = aio_pika.Message(b"{}", headers={"cloudEvents_type": name})
            await exchange.publish(sent, routing_key=name)
        assert [(each.message, each.number) for each in await transport.unrouted([CLOSED])] == [
            (CLOSED, 1),
            ("", 3),
        ]
        expected = {"crm.won": (2, True), "crm.lost": (1, True)}
        assert counted(project, "list") == expected
        listed = project.run("unrouted", "list").succeeds("crm.won (foreign)  2")
        assert "bank" not in listed, "no service of the project has this message"
        assert counted(project, "purge", "--older-than", "1s", "--yes") == {}
        assert counted(project, "purge", "--message", "crm.won", "--yes") == {"crm.won": (2, False)}
        assert counted(project, "list") == {"crm.lost": (1, True)}
        assert counted(project, "purge", "--yes") == {"": (1, False)}
        assert await transport.purge_unrouted(CLOSED) == 1


@pytest.mark.parametrize("broker", ["sqlite", "redis", "amqp"])
async def test_the_oldest_messages_above_the_limit_are_purged_after_a_warning(
    project: Project, durable_url: Callable[[str], str], broker: str
) -> None:
    project.environment["EVENTMESH_BROKER_URL"] = durable_url(broker)
    vitals = RelayVitals("bank")
    async with opened(project) as transport:
        bound = UnroutedBound(transport, SystemClock(), 10, [CLOSED], [], vitals, lambda: True)

        async def check() -> list[tuple[str, Any]]:
            with capture_logs() as logs:
                await bound.check()
            return [(each["event"], each["number"]) for each in logs]

        sent = messages(14)
        await publish_or_raise(transport, sent[:4])
        assert await check() == []
        assert vitals.unrouted == {CLOSED: 4}
        await publish_or_raise(transport, sent[4:8])
        assert await check() == [("unrouted messages near their limit", 8)]
        assert await check() == []
        await publish_or_raise(transport, sent[8:])
        assert await check() == [("unrouted messages purged", 4)]
        assert await check() == []
        assert vitals.unrouted == {CLOSED: 10}
        assert vitals.unrouted_purged == {CLOSED: 4}
        assert await numbers_of(transport, 10) == [each.data.decode() for each in sent[4:]]
        assert await check() == []
        assert vitals.unrouted == {}


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(60):
        while not await condition():  # noqa: ASYNC110  # there is no event
            await asyncio.sleep(0.02)


class HurriedClock(SystemClock):
    """A clock that sleeps a moment instead of a minute."""

    async def sleep(self, seconds: float) -> None:
        await super().sleep(0.01 if seconds >= COUNT_INTERVAL / 2 else seconds)


async def test_a_worker_limits_and_counts_unrouted_messages_of_its_services(tmp_path: Path) -> None:
    clock = HurriedClock()
    transport = MemoryTransport(clock)
    await transport.connect()
    service = Service("bank", clock=clock)
    service.publisher(Closed)
    settings = Settings(
        unrouted_max=3, database_urls={"bank": f"sqlite:///{tmp_path}/bank.db"}, schemas=tmp_path
    )
    worker, stop = Worker([service], transport, settings, clock), asyncio.Event()
    running, said = asyncio.ensure_future(worker.run(stop)), ""
    try:
        await asyncio.wait_for(worker.ready.wait(), 60)
        async with service.transaction() as tx:
            for number in range(5):
                tx.publish(Closed(number=number))

        async def has_purged() -> bool:
            nonlocal said
            said = (await WorkerMetrics(worker).text()).decode()
            return 'unrouted_purged_total{message="bank.closed",service="bank"} 2.0' in said

        await until(has_purged)
        assert 'unrouted_messages{message="bank.closed",service="bank"} 3.0' in said
    finally:
        stop.set()
        await asyncio.wait_for(running, 60)


async def test_a_message_is_either_purged_or_delivered_to_a_subscription_declared_meanwhile(
    project: Project, durable_broker_url: str
) -> None:
    """The subscription gets every message that was not purged."""
    project.environment["EVENTMESH_BROKER_URL"] = durable_broker_url
    async with opened(project) as transport, opened(project) as other:
        await publish_or_raise(transport, messages(60))
        purged, _ = await asyncio.gather(
            transport.purge_unrouted(CLOSED, [AUDIT], keep=20), other.declare([AUDIT])
        )
        assert len(await numbers_of(transport, 60 - purged)) == 60 - purged
        assert purged <= 40
