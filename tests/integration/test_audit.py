"""`eventmesh audit` on real servers: the sheet balances, and finds what vanishes anywhere."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Table, func, select, text

from eventmesh import Event, Reject, Service, Transaction
from eventmesh.operations import audit as auditing
from eventmesh.operations.action_log import newest_actions
from eventmesh.operations.audit import BalanceSheet, DeliveryLine, accept, audit
from eventmesh.operations.reach import Reach
from eventmesh.persistence import counts, tables
from eventmesh.transports.base import Transport, publish_or_raise
from eventmesh.transports.rabbitmq.topology import Topology
from eventmesh.wire.envelope import seal
from tests.integration.conftest import Project
from tests.support.running_meshes import CLOCK, RunningMesh, running_mesh, until


class Placed(Event, name="orders.placed", version=1, key="number"):
    number: int


def make_services() -> list[Service]:
    orders, payments = Service("orders"), Service("payments")
    orders.publisher(Placed)

    @payments.subscriber(name="charge")
    async def charge(event: Placed, tx: Transaction) -> None:
        if event.number == 3:
            raise Reject("three")

    @payments.subscriber(name="note")
    async def note(event: Placed, tx: Transaction) -> None: ...

    return [orders, payments]


@dataclass
class Mesh(RunningMesh):
    transport: Transport
    asked: Reach

    async def place(self, *numbers: int, delay: str = "0s") -> None:
        async with self.services[0].transaction() as tx:
            for number in numbers:
                tx.publish(Placed(number=number), delay=delay)

    async def until(self, holds: Callable[[BalanceSheet], bool]) -> BalanceSheet:
        """The first sheet for which this holds; counts of a broker may come late."""
        async with asyncio.timeout(60):
            while not holds(sheet := await audit(self.asked)):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        return sheet

    async def execute(self, service: int, statement: str) -> None:
        database = await self.services[service].database()
        async with database.connection() as connection:
            done = await connection.execute(text(statement))
            assert done.rowcount == 1

    async def fold_counters(self) -> None:
        """Fold the counters of every connection into those of nobody, as if all were idle."""
        for service in self.services:
            database = await service.database()
            async with database.connection() as connection:
                later = await database.time.ask(connection) + timedelta(hours=1)
                await connection.run_sync(counts.fold, later)

    async def number(self, service: int, table: Table) -> int:
        """How many rows a table has."""
        database = await self.services[service].database()
        async with database.reading() as connection:
            return await connection.scalar(select(func.count()).select_from(table)) or 0


@pytest.fixture
async def make_mesh(
    durable_url: Callable[[str], str], database_url: str, tmp_path: Path
) -> AsyncIterator[Callable[[str], Awaitable[Mesh]]]:
    stack = AsyncExitStack()

    async def make(broker: str) -> Mesh:
        urls = {"orders": database_url, "payments": f"sqlite:///{tmp_path}/payments.db"}
        running = running_mesh(make_services(), durable_url(broker), urls, tmp_path)
        mesh = await stack.enter_async_context(running)
        return Mesh(
            mesh.services,
            mesh.settings,
            await stack.enter_async_context(mesh.broker()),
            await stack.enter_async_context(mesh.reach()),
        )

    async with stack:
        yield make


def line(sheet: BalanceSheet, subscription: str) -> DeliveryLine:
    [found] = [each for each in sheet.deliveries if each.subscription == subscription]
    return found


def differences(sheet: BalanceSheet) -> list[tuple[str, str, int]]:
    return [(each.equation, each.where, each.missing) for each in sheet.differences]


ON_EACH_BROKER = pytest.mark.parametrize(
    ("broker", "database_url"),
    [("sqlite", "sqlite"), ("redis", "postgres"), ("amqp", "mariadb")],
    indirect=["database_url"],
)


@ON_EACH_BROKER
async def test_the_sheet_balances_and_finds_what_vanishes_in_each_place(
    make_mesh: Callable[[str], Awaitable[Mesh]], broker: str, tmp_path: Path
) -> None:
    mesh = await make_mesh(broker)
    async with mesh.worker(mesh.transport):
        await mesh.place(1, 2, 3, 4)
        await mesh.place(5, delay="1h")
        sheet = await mesh.until(
            lambda sheet: (
                [(each.relayed, each.handled, each.dead, each.missing) for each in sheet.deliveries]
                == [(4, 3, 1, 0), (4, 4, 0, 0)]
            )
        )
    assert differences(sheet) == []
    assert (sheet.late, sheet.problems) == ((), ())
    [outbox] = sheet.outboxes
    assert (outbox.stored, outbox.relayed, outbox.waiting, outbox.missing) == (5, 4, 1, 0)
    assert [each.handled for each in sheet.inboxes] == [3, 4]

    # What waits on the broker is counted, too.
    await mesh.place(6, 7)
    async with mesh.services[0].relay():
        ready = await mesh.until(
            lambda sheet: (sheet.outboxes[0].relayed, line(sheet, "payments.note").ready) == (6, 2)
        )
    assert differences(ready) == []

    # In each place, one vanishes.
    await mesh.execute(0, "DELETE FROM eventmesh_outbox")
    lost_row = ("outbox", "outbox of orders", 1)
    await mesh.execute(
        1,
        "DELETE FROM eventmesh_inbox WHERE subscription = 'payments.charge' AND message_id IN "
        "(SELECT min(message_id) FROM eventmesh_inbox WHERE subscription = 'payments.charge')",
    )
    lost_memory = ("inbox", "inbox of payments.charge", 1)
    subscription = mesh.subscriptions["payments.charge"]
    [letter] = await mesh.transport.dead_letters(subscription, limit=10)
    await mesh.transport.discard(subscription, [letter.id])
    lost_letter = ("delivery", "payments.charge", 1)
    found = await mesh.until(lambda sheet: line(sheet, "payments.charge").dead == 0)
    assert differences(found) == [lost_row, lost_memory, lost_letter]
    gone = await vanish_from_broker(mesh, broker, tmp_path)
    lost_entry = ("delivery", "payments.note", gone)
    expected = {lost_row, lost_memory, lost_letter, lost_entry}
    if broker == "redis":  # both subscriptions read the same entry
        expected = {lost_row, lost_memory, ("delivery", "payments.charge", 2), lost_entry}
    found = await mesh.until(lambda sheet: set(differences(sheet)) == expected)
    assert all(each.suspects for each in found.differences)
    assert found.unaccounted == sum(missing for _, _, missing in expected)

    await accept(mesh.asked, found.differences, "ada", "a purged queue")
    assert differences(await audit(mesh.asked)) == []
    log = await newest_actions(mesh.asked, 10)
    assert {row.subject for row in log.rows} == {each.where for each in found.differences}
    assert {(row.who, row.what, row.reason) for row in log.rows} == {
        ("ada", "accept difference", "a purged queue")
    }
    assert all(row.outcome and row.outcome.startswith("accepted: ") for row in log.rows)
    async with mesh.worker(mesh.transport):
        await mesh.until(
            lambda sheet: (
                (line(sheet, "payments.note").handled, line(sheet, "payments.note").ready)
                == (6 - gone, 0)
            )
        )
    assert differences(await audit(mesh.asked)) == []


async def vanish_from_broker(mesh: Mesh, broker: str, tmp_path: Path) -> int:
    """Delete what waits for `payments.note`, as somebody may do by hand; returns how many."""
    prefix, url = mesh.settings.broker_prefix, mesh.settings.broker_url
    if broker == "sqlite":
        with sqlite3.connect(tmp_path / "broker.db") as connection:
            connection.execute(
                "DELETE FROM queue WHERE sequence = "
                "(SELECT min(sequence) FROM queue WHERE subscription = 'payments.note')"
            )
        connection.close()
        return 1
    if broker == "redis":
        from redis.asyncio import Redis

        async with Redis.from_url(url) as redis:
            streams = [key async for key in redis.scan_iter(f"*{prefix}*orders.placed*")]
            [stream] = [key for key in streams if await redis.type(key) == b"stream"]
            newest: Sequence[Any] = await redis.xrevrange(stream, count=1)
            assert await redis.xdel(stream, newest[0][0]) == 1
        return 1
    import aio_pika

    async with await aio_pika.connect(url) as connection, connection.channel() as channel:
        name = Topology(prefix).queue(mesh.subscriptions["payments.note"])
        queue = await channel.get_queue(name, ensure=False)
        await queue.purge()
    return 2


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_copies_and_what_passes_by_the_outbox_are_no_difference(
    make_mesh: Callable[[str], Awaitable[Mesh]],
) -> None:
    mesh = await make_mesh("sqlite")
    sent = [seal(Placed(number=n), source="bridge", clock=CLOCK) for n in range(2)]
    async with mesh.worker(mesh.transport):
        await mesh.place(1, 2)
        await mesh.until(
            lambda sheet: len(sheet.deliveries) == 2 and line(sheet, "payments.note").handled == 2
        )
    await mesh.transport.declare(list(mesh.subscriptions.values()))
    await publish_or_raise(mesh.transport, sent)  # as another program does
    sheet = await audit(mesh.asked)
    assert (differences(sheet), line(sheet, "payments.note").ready) == ([], 0)
    # A relay that was killed before it deleted its rows has published them twice.
    await mesh.place(4)
    database = await mesh.services[0].database()
    async with database.reading() as connection:
        [row] = await connection.execute(text("SELECT headers, data FROM eventmesh_outbox"))
    from eventmesh.wire.envelope import Envelope

    again = Envelope(json.loads(row.headers), row.data)
    await publish_or_raise(mesh.transport, [again])
    early = await audit(mesh.asked)
    assert differences(early) == []
    assert any("on their way" in note for note in early.notes)
    async with mesh.worker(mesh.transport):
        sheet = await mesh.until(
            lambda sheet: (
                line(sheet, "payments.note").handled == 3
                and line(sheet, "payments.note").on_its_way == 0
            )
        )
    assert differences(sheet) == []


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_messages_that_are_sent_and_handled_during_each_measurement_are_no_difference(
    make_mesh: Callable[[str], Awaitable[Mesh]], monkeypatch: pytest.MonkeyPatch
) -> None:
    mesh = await make_mesh("sqlite")
    effects = 0  # each message is handled by both subscriptions

    async def place_and_handle(*numbers: int) -> None:
        nonlocal effects
        await mesh.place(*numbers)
        effects += 2 * len(numbers)

        async def are_handled() -> bool:
            waiting = await mesh.number(0, tables.outbox)
            return (waiting, await mesh.number(1, tables.inbox)) == (0, effects)

        await until(are_handled)

    ask_broker = auditing._ask_broker

    async def ask_slowly(reach: Reach) -> Any:
        answer = await ask_broker(reach)
        await place_and_handle(4, 5, 6)
        return answer

    async with mesh.worker(mesh.transport):
        await place_and_handle(1, 2)
        monkeypatch.setattr(auditing, "_ask_broker", ask_slowly)
        sheet = await audit(mesh.asked)
        assert differences(sheet) == []
        assert [each.missing for each in sheet.deliveries] == [0, 0]
        assert [note for note in sheet.notes if note.startswith("3 of orders.placed")]

        # One that nobody has stored is found all the same, and only that one.
        foreign = [seal(Placed(number=7), source="orders", clock=CLOCK)]
        await publish_or_raise(mesh.transport, foreign)
        effects += 2
        sheet = await audit(mesh.asked)
        assert differences(sheet) == [
            ("delivery", "payments.charge", -1),
            ("delivery", "payments.note", -1),
        ]
        await accept(mesh.asked, sheet.differences, "ada", "a bridge")
        assert differences(await audit(mesh.asked)) == []
    monkeypatch.undo()
    at_rest = await audit(mesh.asked)
    assert (differences(at_rest), at_rest.notes) == ([], ())


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_the_balance_of_a_subscription_that_came_later_begins_when_it_is_accepted(
    make_mesh: Callable[[str], Awaitable[Mesh]],
) -> None:
    mesh = await make_mesh("sqlite")
    async with mesh.worker(mesh.transport):
        await mesh.place(1, 2)
        await mesh.until(
            lambda sheet: len(sheet.deliveries) == 2 and line(sheet, "payments.note").handled == 2
        )

    @mesh.services[1].subscriber(name="later")
    async def later(event: Placed, tx: Transaction) -> None: ...

    absent = await audit(mesh.asked)
    assert absent.notes[0] == (
        "not balanced: payments.later, because no worker has declared it on the broker yet"
    )
    async with mesh.worker(mesh.transport):
        sheet = await mesh.until(lambda sheet: len(sheet.deliveries) == 3)
        assert differences(sheet) == []
        assert [(each.where, each.missing) for each in sheet.late] == [("payments.later", 2)]
        await mesh.fold_counters()  # which forgets nothing of when counting began
        folded = await audit(mesh.asked)
        assert (differences(folded), folded.late) == ([], sheet.late)
        await accept(mesh.asked, sheet.late, "ada", "declared later")
        await mesh.place(4)
        sheet = await mesh.until(lambda sheet: line(sheet, "payments.later").handled == 1)
    assert (differences(sheet), sheet.late) == ([], ())


def test_the_command_prints_a_sheet_and_finds_a_loss(bank: Project) -> None:
    worker = bank.worker()
    bank.python(SEND).succeeds()
    worker.until_prints("ada has 0.05")
    worker.drain()
    sheet = bank.run("audit").succeeds("bank.deposit", "balanced: nothing is missing")
    assert "not balanced: bank.tell, because a handler without a transaction" in sheet
    assert json.loads(bank.run("audit", "--json").succeeds())["unaccounted"] == 0
    assert 'eventmesh_unaccounted_messages{service=""' in bank.run("audit", "--prometheus").out
    with sqlite3.connect(bank.root / ".eventmesh" / "bank.db") as connection:
        connection.execute("DELETE FROM eventmesh_inbox")
    connection.close()
    lost = bank.run("audit")
    assert lost.code == 1
    assert "inbox of bank.deposit: 1 of messages missing" in lost.out
    assert "perhaps: rows deleted from eventmesh_inbox" in lost.out
    metric = bank.run("audit", "--prometheus")
    assert metric.code == 1
    assert 'where="inbox of bank.deposit",message=""} 1' in metric.out
    bank.run("audit", "--accept", " ").fails(2, "reason")
    accepted = bank.run("audit", "--accept", "a test")
    assert accepted.code == 0, accepted.said
    assert "accepted, because a test: inbox of bank.deposit" in accepted.err
    bank.run("audit").succeeds("balanced")
    bank.environment["EVENTMESH_BROKER_URL"] = "redis://127.0.0.1:1"
    assert bank.run("audit").code == 3


SEND = """
import asyncio
from services.bank.service import Deposit, deposits, service

async def main():
    async with service:
        await deposits.publish(Deposit(owner="ada", cents=5))

asyncio.run(main())
"""
