"""`eventmesh why` on real servers: one tree over two databases and a broker."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from eventmesh import Command, Event, Reject, Retry, Service, Transaction, constant
from eventmesh.clock import SystemClock
from eventmesh.operations.why import Trace, trace_id, trace_key
from eventmesh.persistence import journal
from eventmesh.transports.base import publish_or_raise
from eventmesh.wire.envelope import seal
from tests.integration.conftest import Project
from tests.support.running_meshes import running_mesh, until

CLOCK = SystemClock()

SEND = """
import asyncio
from services.bank.service import Deposit, deposits, service

async def main():
    async with service:
        await deposits.publish(Deposit(owner="ada", cents=5))

asyncio.run(main())
"""


class Place(Command, name="orders.place", version=1, key="order"):
    order: str


class Placed(Event, name="orders.placed", version=1, key="order"):
    order: str


class Reminded(Event, name="orders.reminded", version=1, key="order"):
    order: str


class Charge(Command, name="payments.charge", version=1, key="order"):
    order: str


def make_services() -> list[Service]:
    orders, payments = Service("orders"), Service("payments")
    orders.publisher(Placed)
    orders.publisher(Reminded)
    orders.publisher(Charge)

    @orders.subscriber(name="place")
    async def place(command: Place, tx: Transaction) -> None:
        tx.publish(Placed(order=command.order))
        tx.send(Charge(order=command.order))
        tx.publish(Reminded(order=command.order), delay="1h")

    @payments.subscriber(name="charge", retry=Retry(attempts=2, backoff=constant("10ms")))
    async def charge(command: Charge, tx: Transaction) -> None:
        raise Reject("the card is \x1b[31mstolen")

    @payments.subscriber(name="note")
    async def note(event: Placed, tx: Transaction) -> None: ...

    @payments.subscriber(name="look")
    async def look(event: Placed) -> None: ...

    return [orders, payments]


def seen(found: Trace) -> set[tuple[str | None, str, str]]:
    """The message, what is known of it and where."""
    return {
        (each.name, sighting.what, sighting.place)
        for each in found.messages
        for sighting in each.sightings
    }


WHOLE = {
    ("orders.place", "handled", "orders.place"),
    ("orders.placed", "handled", "payments.note"),
    ("orders.placed", "unknown", "payments.look"),  # it takes no transaction
    ("payments.charge", "dead", "payments.charge"),
    ("orders.reminded", "outbox", "orders"),
}


@pytest.mark.parametrize(
    ("broker", "database_url"),
    [("sqlite", "sqlite"), ("redis", "postgres"), ("amqp", "mariadb")],
    indirect=["database_url"],
)
async def test_from_any_of_its_messages_or_its_key_the_whole_tree_is_found(
    broker: str,
    database_url: str,
    durable_url: Callable[[str], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    urls = {"orders": database_url, "payments": f"sqlite:///{tmp_path}/payments.db"}
    order = f"order-{uuid.uuid4().hex}"
    first = seal(Place(order=order), source="test", clock=CLOCK)
    async with (
        running_mesh(make_services(), durable_url(broker), urls, tmp_path) as mesh,
        mesh.broker() as transport,
        mesh.reach() as reach,
    ):
        await transport.declare(list(mesh.subscriptions.values()))
        await publish_or_raise(transport, [first])

        async def is_whole() -> bool:
            return seen(await trace_id(reach, first.id)) >= WHOLE

        async with mesh.worker(transport):
            await until(is_whole)
        whole = await trace_id(reach, first.id)
        assert seen(whole) == WHOLE
        assert whole.problems == ()
        assert [each.depth for each in whole.messages] == [0, 1, 1, 1]
        assert {each.key for each in whole.messages} == {order}
        for each in whole.messages:
            assert seen(await trace_id(reach, each.id)) == WHOLE
        assert seen(await trace_key(reach, order)) == WHOLE
        assert (await trace_id(reach, str(uuid.uuid4()))).is_empty
        assert (await trace_key(reach, "nobody's")).is_empty

        late = seal(Place(order=order), source="test", clock=CLOCK, cause=first)
        await publish_or_raise(transport, [late])
        found = await trace_id(reach, first.id)
        if broker == "amqp":
            assert any("not looked into" in note for note in found.hidden)
        else:
            assert ("orders.place", "ready", "orders.place") in seen(found)
            assert (await trace_id(reach, late.id)).messages == found.messages

        assert not any("not searched" in note for note in (await trace_key(reach, order)).hidden)
        monkeypatch.setattr(journal, "MOST_SEARCHED", 0)
        unsearched = await trace_key(reach, order)
        notes = [note for note in unsearched.hidden if "were not searched for the key" in note]
        assert {note.partition(" handled until ")[0] for note in notes} == {
            "messages that orders",
            "messages that payments",
        }


def test_the_command_prints_a_tree_a_document_a_diagram_and_the_exit_code(bank: Project) -> None:
    worker = bank.worker()
    bank.python(SEND).succeeds()
    worker.until_prints("ada has 0.05")
    worker.drain()
    tree = bank.run("why", "--key", "ada").succeeds("handled by bank.deposit at")
    found = json.loads(bank.run("why", "--key", "ada", "--json").succeeds())
    [deposit] = found["messages"]
    assert deposit["id"] in tree
    drawn = bank.run("why", deposit["id"], "--mermaid").succeeds("sequenceDiagram")
    assert "s0->>s0: bank.deposit" in drawn
    bank.run("why", "no\x1b[31mbody").fails(1, "Nobody knows 'no\\x1b[31mbody'")
    bank.run("why").fails(2, "--key")
    bank.environment["EVENTMESH_BROKER_URL"] = "redis://127.0.0.1:1"
    away = bank.run("why", deposit["id"])
    assert away.code == 3
    assert "handled by bank.deposit" in away.out
    assert "does not answer" in away.out
