"""Paused subscriptions: what a worker does with them, and what operators see and do."""

from __future__ import annotations

import asyncio
import getpass
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from eventmesh import Event, Service, Transaction
from eventmesh.errors import Unreachable, UsageError
from eventmesh.operations.action_log import newest_actions
from eventmesh.operations.pausing import Deed, pausable, pause_or_resume
from eventmesh.persistence import pauses
from eventmesh.persistence.database import Database
from eventmesh.persistence.migration import upgrade
from eventmesh.persistence.pauses import Pause
from eventmesh.runtime.consuming import pausing
from eventmesh.runtime.readiness import problems, warnings
from eventmesh.transports.base import publish_or_raise
from eventmesh.wire.envelope import seal
from tests.integration.conftest import Project
from tests.support.running_meshes import CLOCK, RunningMesh, running_mesh, until

WHY = "the ledger is being repaired"


class Do(Event, name="web.do", version=1):
    number: int


class Look(Event, name="web.look", version=1):
    number: int


class Shop:
    """Handles `Do` while its gate is open, and notes what took effect. The transaction of a handler
    would keep a SQLite file from being written meanwhile, and with it the pause."""

    def __init__(self, concurrency: int = 1, *, transactional: bool = True) -> None:
        self.service = Service("shop")
        self.began = asyncio.Event()
        self.gate = asyncio.Event()
        self.done: list[int] = []
        self.looked: list[int] = []

        async def handle(event: Do) -> None:
            self.began.set()
            await self.gate.wait()
            self.done.append(event.number)

        async def handle_in_transaction(event: Do, tx: Transaction) -> None:
            await handle(event)

        do = handle_in_transaction if transactional else handle
        self.service.subscriber(name="do", concurrency=concurrency)(do)

        @self.service.subscriber()
        async def look(event: Look, tx: Transaction) -> None:
            self.looked.append(event.number)


async def act(mesh: RunningMesh, deed: Deed, name: str = "shop.do") -> bool:
    service, handler = pausable(mesh.services, name)
    async with mesh.reach() as reach:
        return await pause_or_resume(reach, service, handler, deed, "ada", WHY)


@pytest.fixture
def noticed(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Set once a worker has read that something is paused; it looks all the time."""
    monkeypatch.setattr(pausing, "READ_INTERVAL", 0.02)
    found = asyncio.Event()
    turn = pausing.PauseSwitch.turn

    def note(switch: pausing.PauseSwitch, pause: Pause | None) -> None:
        turn(switch, pause)
        if pause is not None:
            found.set()

    monkeypatch.setattr(pausing.PauseSwitch, "turn", note)
    return found


@pytest.mark.parametrize("concurrency", [1, 3])
@pytest.mark.parametrize(
    ("broker", "database_url"),
    [("sqlite", "sqlite"), ("redis", "postgres"), ("amqp", "mariadb")],
    indirect=["database_url"],
)
async def test_a_paused_subscription_finishes_what_it_began_and_keeps_the_rest_until_resumed(
    broker: str,
    concurrency: int,
    database_url: str,
    durable_url: Callable[[str], str],
    tmp_path: Path,
    noticed: asyncio.Event,
) -> None:
    shop = Shop(concurrency, transactional=broker != "sqlite")
    urls = {"shop": database_url}
    numbers = list(range(40))
    async with (
        running_mesh([shop.service], durable_url(broker), urls, tmp_path) as mesh,
        mesh.broker() as transport,
    ):
        do = mesh.subscriptions["shop.do"]
        async with mesh.worker(transport) as worker:
            [doing, _] = worker.vitals.subscriptions
            await publish_or_raise(
                transport, [seal(Do(number=each), source="web", clock=CLOCK) for each in numbers]
            )
            await shop.began.wait()
            assert await act(mesh, "pause")
            assert not await act(mesh, "pause")
            await noticed.wait()
            shop.gate.set()
            await until(lambda: doing.paused)
            finished = list(shop.done)
            assert 1 <= len(finished) < len(numbers)
            look = seal(Look(number=1), source="web", clock=CLOCK)
            await publish_or_raise(transport, [look])
            await until(lambda: shop.looked == [1])
            assert await problems(worker, outbox_max_age=60) == []
            [warning] = await warnings(worker)
            assert warning.startswith("subscription shop.do is paused since ")
            assert f" by ada: {WHY}; resume it by `eventmesh resume shop.do`" in warning

        async def all_wait() -> bool:
            stats = await transport.stats(do)
            return stats.ready == len(numbers) - len(finished) and stats.in_flight in (0, None)

        await until(all_wait)
        [status, other] = (await mesh.status()).subscriptions
        assert status.paused is not None
        assert (status.paused.who, status.paused.reason) == ("ada", WHY)
        assert other.paused is None

        async with mesh.worker(transport) as worker:  # another one, after a restart
            assert worker.vitals.subscriptions[0].paused
            assert shop.done == finished
            assert await act(mesh, "resume")
            assert not await act(mesh, "resume")
            await until(lambda: len(shop.done) >= len(numbers))
            await until(lambda: not worker.vitals.subscriptions[0].why_not_consuming)
        assert sorted(shop.done) == numbers
        assert (await transport.stats(do)).dead == 0
        async with mesh.reach() as reach:
            log = await newest_actions(reach, 10)
    assert [(row.what, row.subject, row.who, row.reason, row.outcome) for row in log.rows] == [
        ("resume", "shop.do", "ada", WHY, "nothing changed"),
        ("resume", "shop.do", "ada", WHY, "done"),
        ("pause", "shop.do", "ada", WHY, "nothing changed"),
        ("pause", "shop.do", "ada", WHY, "done"),
    ]


@pytest.mark.parametrize("database_url", ["sqlite", "postgres", "mariadb"], indirect=True)
async def test_a_pause_is_of_one_subscription_and_the_first_one_counts(database_url: str) -> None:
    database = Database(database_url, service="shop")
    await upgrade(database)
    async with database.connection() as connection:
        assert await connection.run_sync(pauses.paused) == {}
        assert await pauses.pause(connection, "shop.do", "ada", WHY)
        assert not await pauses.pause(connection, "shop.do", "eve", "another reason")
        found = await connection.run_sync(pauses.paused)
        assert {name: each.who for name, each in found.items()} == {"shop.do": "ada"}
        assert not await pauses.resume(connection, "shop.look")
        assert await pauses.resume(connection, "shop.do")
        assert await connection.run_sync(pauses.paused) == {}
    await database.close()


async def test_a_pause_holds_while_the_database_is_away(
    tmp_path: Path, noticed: asyncio.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop, asked = Shop(), asyncio.Event()

    def away(_: object) -> dict[str, Pause]:
        asked.set()
        raise Unreachable("the database is away")

    urls = {"shop": f"sqlite:///{tmp_path}/shop.db"}
    broker = f"sqlite:///{tmp_path}/broker.db"
    async with running_mesh([shop.service], broker, urls, tmp_path) as mesh:
        await act(mesh, "pause")
        switch = pausing.PauseSwitch()
        watch = pausing.PauseWatch(shop.service, {"shop.do": switch}, CLOCK)
        await watch.read()
        with monkeypatch.context() as changed:
            changed.setattr(pauses, "paused", away)
            watching = asyncio.ensure_future(watch.run())
            await asked.wait()
            assert switch.off.is_set()
        await act(mesh, "resume")
        await asyncio.wait_for(switch.on.wait(), 60)
        assert not switch.off.is_set()
        watching.cancel()


async def test_what_cannot_be_paused_says_what_to_do_instead() -> None:
    plain = Service("plain")

    @plain.subscriber()
    async def look(event: Look) -> None: ...

    service, handler = pausable([plain], "plain.look")
    async with RunningMesh([plain], plain.settings).reach() as reach:
        with pytest.raises(UsageError, match="stop its workers instead"):
            await pause_or_resume(reach, service, handler, "pause", "ada", WHY)
    with pytest.raises(UsageError, match=r"no subscription 'plain.see'.*plain.look"):
        pausable([plain], "plain.see")


def test_the_commands_pause_a_running_worker_and_say_what_happened(
    on: Callable[[str], Project],
) -> None:
    bank = on("sqlite")
    worker = bank.worker()
    said = bank.run("pause", "bank.deposit", "--reason", WHY).succeeds()
    assert said == "bank.deposit: paused; workers notice within a few seconds\n"
    worker.until_says("subscription paused")
    said = bank.run("pause", "bank.deposit", "--reason", "again").succeeds()
    assert said == "bank.deposit: is paused already, see `eventmesh status`\n"
    said = bank.run("status").succeeds("bank.deposit: paused since ")
    assert f" by {getpass.getuser()}: {WHY}" in said
    found = json.loads(bank.run("status", "--json").succeeds())
    assert found["subscriptions"][0]["paused"]["reason"] == WHY
    assert found["subscriptions"][1]["paused"] is None
    doctor = bank.run("doctor", "--all")
    assert "warning consumers, bank.deposit: paused since " in doctor.out
    assert "Resume it by `eventmesh resume bank.deposit`" in doctor.out
    said = bank.run("resume", "bank.deposit", "--reason", "it is repaired").succeeds()
    assert said == "bank.deposit: resumed; workers notice within a few seconds\n"
    worker.until_says("subscription resumed")
    said = bank.run("resume", "bank.deposit", "--reason", "again").succeeds()
    assert said == "bank.deposit: is not paused\n"
    bank.run("pause", "bank.deposit", "--reason", " ").fails(2, "Say why")
    bank.run("pause", "bank.depost", "--reason", WHY).fails(2, "bank.depost", "bank.deposit")
    worker.drain()
