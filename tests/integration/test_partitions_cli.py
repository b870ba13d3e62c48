"""`eventmesh partitions set` on a real RabbitMQ, with a backlog and with bad input."""

from __future__ import annotations

import asyncio
import getpass
import json
import signal
import sqlite3
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, closing
from typing import TYPE_CHECKING

import pytest

from eventmesh.clock import SystemClock
from eventmesh.transports.base import (
    Order,
    Subscription,
    Transport,
    TransportOptions,
    publish_or_raise,
)
from eventmesh.transports.factory import open_transport
from eventmesh.transports.outcome import DONE
from eventmesh.wire.envelope import Envelope

if TYPE_CHECKING:
    from tests.integration.conftest import Project

BANK = """
from sqlalchemy import MetaData
from eventmesh import Command, Service

class Deposit(Command, name="bank.deposit", version=1, key="owner"):
    owner: str
    cents: int

class Close(Command, name="bank.close", version=1, key="owner"):
    owner: str

service = Service("bank", metadata=MetaData())

@service.subscriber(ordered=True, partitions=3)
async def deposit(command: Deposit) -> None:
    print(command.owner, command.cents, flush=True)

@service.subscriber()
async def close(command: Close) -> None: ...
"""

DYING = """
import os, signal, sys
from eventmesh.cli.main import main
from eventmesh.transports.rabbitmq import relocation

relocation.AT_ONCE = 20
publish, replace = relocation.Relocation._publish, relocation.Relocation._replace
portions = int(sys.argv.pop(1))

async def publish_and_die(self, copies):
    global portions
    await publish(self, copies)
    portions -= 1
    if not portions:
        os.kill(os.getpid(), signal.SIGKILL)  # nothing is acknowledged yet

async def die_at_the_end(self, exchange):
    if not exchange.alternate.endswith("moving"):
        os.kill(os.getpid(), signal.SIGKILL)
    await replace(self, exchange)

relocation.Relocation._publish = publish_and_die
relocation.Relocation._replace = die_at_the_end
main()
"""

WHY = "for more workers"
SET = ("partitions", "set", "--reason", WHY)
SET_8 = (*SET, "bank.deposit", "8")

OWNERS = 20
EACH = 12


def deposits() -> list[Envelope]:
    """EACH deposits of each owner, which are numbered by their cents."""
    clock = SystemClock()
    return [
        Envelope(
            {
                "specversion": "1.0",
                "id": clock.new_id(),
                "source": "/bank",
                "type": "bank.deposit",
                "dataschema": "urn:eventmesh:bank.deposit:1",
                "datacontenttype": "application/json",
                "partitionkey": f"owner-{owner}",
            },
            b'{"owner":"owner-%d","cents":%d}' % (owner, number),
        )
        for number in range(EACH)
        for owner in range(OWNERS)
    ]


def opened(project: Project) -> AbstractAsyncContextManager[Transport]:
    options = TransportOptions(prefix=project.prefix)
    return open_transport(project.environment["EVENTMESH_BROKER_URL"], SystemClock(), options)


def with_partitions(number: int) -> Subscription:
    return Subscription("bank.deposit", ("bank.deposit",), Order(partitions=number))


def handled(project: Project) -> dict[str, list[int]]:
    """The numbers of the deposits of each owner, as a worker handles them until it has all."""

    def numbers(said: str) -> dict[str, list[int]]:
        found: dict[str, list[int]] = defaultdict(list)
        for line in said.splitlines():
            owner, _, cents = line.partition(" ")
            if owner.startswith("owner-"):
                found[owner].append(int(cents))
        return found

    def has_all(said: str) -> bool:
        return sum(len(set(each)) for each in numbers(said).values()) == OWNERS * EACH

    worker = project.start("worker", "bank")
    worker.until(has_all, "all deposits")
    worker.drain()
    return numbers(worker.out)


@pytest.fixture
async def bank(
    project: Project, durable_url: Callable[[str], str]
) -> AsyncIterator[tuple[Project, Transport]]:
    """The project with a database, and a transport on the same RabbitMQ."""
    project.environment["EVENTMESH_BROKER_URL"] = durable_url("amqp")
    project.service(BANK)
    project.run("db", "upgrade", "bank").succeeds()
    async with opened(project) as transport:
        yield project, transport


async def test_a_backlog_is_in_order_after_the_number_of_partitions_was_set(
    bank: tuple[Project, Transport],
) -> None:
    project, transport = bank
    await transport.declare([with_partitions(3)])
    await publish_or_raise(transport, deposits())

    changed = project.run(*SET_8)
    assert changed.succeeds() == "bank.deposit: 8 partitions instead of 3\n"
    again = project.run(*SET_8)
    assert again.succeeds() == "bank.deposit: has 8 partitions already\n"
    old = project.start("worker", "bank").ended()
    old.fails(2, "has another number of partitions", "partitions set bank.deposit 3")

    project.change_service("partitions=3", "partitions=8")
    assert handled(project) == {f"owner-{each}": list(range(EACH)) for each in range(OWNERS)}


async def test_a_change_that_is_killed_is_finished_in_order(
    bank: tuple[Project, Transport],
) -> None:
    """What a killed change has copied and not acknowledged comes twice, in its order."""
    project, transport = bank
    project.write("dying.py", DYING)
    arguments = SET_8
    await transport.declare([with_partitions(3)])
    sent = deposits()
    await publish_or_raise(transport, sent[:180])
    deaths = (1, 3, 1_000)  # after so many portions, or at the end
    for number, portions in enumerate(deaths):
        died = project.start_file("dying.py", str(portions), *arguments).ended()
        assert died.code == -signal.SIGKILL, died.said
        await publish_or_raise(transport, sent[180 + 20 * number :][:20])
        if portions == 3:
            other = project.run(*SET, "bank.deposit", "5")
            other.fails(2, "to 8 partitions was interrupted", "partitions set bank.deposit 8")
            back = project.run(*SET, "bank.deposit", "3")
            back.fails(2, "to 8 partitions was interrupted", "partitions set bank.deposit 8")
            project.run("worker", "bank").fails(2, "partitions set bank.deposit")
    project.run(*arguments).succeeds("8 partitions")

    project.change_service("partitions=3", "partitions=8")
    taken = handled(project)
    repeated = sum(map(len, taken.values())) - len(sent)
    assert 0 <= repeated <= 20 * len(deaths)
    firsts = {owner: list(dict.fromkeys(numbers)) for owner, numbers in taken.items()}
    assert firsts == {f"owner-{each}": list(range(EACH)) for each in range(OWNERS)}


async def test_setting_partitions_refuses_what_cannot_be_set(
    bank: tuple[Project, Transport],
) -> None:
    project, transport = bank
    undeclared, zero, too_many, unknown, unordered = project.run_all(
        SET_8,
        (*SET, "bank.deposit", "0"),
        (*SET, "bank.deposit", "257"),
        (*SET, "bank.withdraw", "8"),
        (*SET, "bank.close", "8"),
    )
    undeclared.fails(2, "bank.deposit has no partitions on the broker", "start its workers")
    for out_of_range in (zero, too_many):
        assert out_of_range.code == 2
        assert "Invalid value for 'partitions'" in out_of_range.err
    unknown.fails(2, "no subscription 'bank.withdraw'", "bank.deposit")
    unordered.fails(2, "bank.close has no order")

    await transport.declare([with_partitions(3)])
    await publish_or_raise(transport, deposits()[:1])
    async with asyncio.timeout(240), transport.consume(with_partitions(3), prefetch=1) as consumer:
        consumed = await asyncio.to_thread(project.run, *SET_8)
        consumed.fails(
            2,
            "1 worker with order still consumes bank.deposit",
            "stop it, wait until it has ended, and try again",
        )
        [delivery] = await consumer.receive(1)  # as before
        await consumer.settle([(delivery, DONE)])


async def test_setting_partitions_is_recorded_in_the_database_of_the_service(
    bank: tuple[Project, Transport],
) -> None:
    project, transport = bank
    await transport.declare([with_partitions(3)])
    unexplained = project.run("partitions", "set", "bank.deposit", "8")
    assert (unexplained.code, "Missing option '--reason'" in unexplained.err) == (2, True)
    project.run(*SET_8).succeeds("8 partitions instead of 3")
    async with transport.consume(with_partitions(8), prefetch=1):
        consumed = await asyncio.to_thread(project.run, *SET, "bank.deposit", "4")
        consumed.fails(2, "1 worker with order still consumes bank.deposit")
    with closing(sqlite3.connect(project.root / ".eventmesh/bank.db")) as connection:
        rows = connection.execute(
            "SELECT service, who, what, subject, reason, details, outcome "
            "FROM eventmesh_action ORDER BY seq"
        ).fetchall()
    done, failed = rows
    assert done[:5] == ("bank", getpass.getuser(), "set partitions", "bank.deposit", WHY)
    assert (json.loads(done[5]), done[6]) == ({"partitions": 8}, "8 instead of 3")
    assert failed[6].startswith("failed: 1 worker with order still consumes bank.deposit")


@pytest.mark.parametrize("broker", ["sqlite", "redis"])
def test_partitions_are_refused_by_a_broker_that_has_none(
    project: Project, durable_url: Callable[[str], str], broker: str
) -> None:
    project.environment["EVENTMESH_BROKER_URL"] = durable_url(broker)
    project.service(BANK)
    refused = project.run(*SET_8)
    refused.fails(2, "without partitions, so there is nothing to set")
