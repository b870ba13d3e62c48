"""A message whose handler ends its process is given up after a few deliveries, on every transport;
its neighbours take effect nevertheless."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable

import pytest

from eventmesh.runtime.consuming.poison import SUSPECT_AFTER
from eventmesh.transports.base import Subscription
from tests.faults.conftest import At, Record
from tests.faults.effects import SUBSCRIPTIONS, Account
from tests.faults.faults import Fault, by_itself, nowhere
from tests.faults.mesh import RECOVERY, Mesh
from tests.faults.report import Row
from tests.faults.ride import verdict
from tests.faults.services.scribe.service import NOTES
from tests.faults.services.till.service import DEADLY

NEIGHBOURS = 20
"""Before the poison, and as many behind it."""

MOST_DEATHS = 12

BROKERS = (
    "sqlite",
    *(pytest.param(broker, marks=pytest.mark.soak) for broker in ("redis", "amqp")),
)


def poison(handler: str) -> Fault:
    return Fault(f"poison, {handler}", by_itself, ordered=nowhere)


async def prepare(mesh: Mesh, service: str, most_deliveries: int) -> int:
    """Put the poison among its neighbours; returns its number."""
    mesh.services = ("feed", service)
    mesh.harmless_codes |= {DEADLY}
    mesh.project.environment["EVENTMESH_MAX_DELIVERIES"] = str(most_deliveries)
    mesh.project.environment["EVENTMESH_VISIBILITY_TIMEOUT"] = "1s"
    await mesh.ask(NEIGHBOURS)
    [(_, number)] = await mesh.ask(1, deed="die")
    await mesh.ask(NEIGHBOURS)
    return number


async def outlive(mesh: Mesh) -> int:
    """Let workers die until one has given up a message; returns how many did."""
    await reviving(mesh, lambda: bool(given_up(mesh)), "a message that is given up")
    return len(mesh.workers) - 1


async def reviving(mesh: Mesh, done: Callable[[], bool], what: str) -> None:
    """Start a worker again each time that it has died, until it is done. It may die once more after
    it has given up: of what was handed out to it again before that was settled."""
    while not done():
        assert len(mesh.workers) <= MOST_DEATHS, f"died too often before {what}; {mesh.said()}"
        if None not in mesh.codes():
            mesh.start_worker()
        await mesh.until(lambda: done() or None not in mesh.codes(), f"{what}, or a death")


def given_up(mesh: Mesh) -> int:
    return mesh.events()["message dead-lettered"]


async def dead_numbers(mesh: Mesh, subscription: str) -> list[int]:
    """The numbers of the messages among the dead letters of a subscription."""
    async with mesh.transport() as transport:
        letters = await transport.dead_letters(Subscription(subscription, ()), limit=1000)
    return [json.loads(letter.envelope.data)["number"] for letter in letters]


@pytest.mark.parametrize("broker", BROKERS)
async def test_poison_of_a_transactional_handler(broker: str, at: At, record: Record) -> None:
    async with at(broker, "sqlite") as mesh:
        number = await prepare(mesh, "till", most_deliveries=2)
        deaths = await outlive(mesh)
        began = time.time()
        there = asyncio.ensure_future(mesh.until_effects(2 * NEIGHBOURS * len(SUBSCRIPTIONS)))
        await reviving(mesh, there.done, "the neighbours' effects")
        await there
        took = time.time() - began
        row = await verdict(mesh, poison("transactional handler"), took, took)
        record(row)
        assert await dead_numbers(mesh, "till.apply") == [number]
        assert deaths <= SUSPECT_AFTER + 2
        assert (row.account.lost, row.account.doubled) == (0, 0)


@pytest.mark.parametrize("broker", BROKERS)
async def test_poison_of_a_plain_handler(broker: str, at: At, record: Record) -> None:
    """Its effects are no database's, so a neighbour may be handled again; none is given up."""
    async with at(broker, "sqlite") as mesh:
        number = await prepare(mesh, "scribe", SUSPECT_AFTER + 3)
        deaths = await outlive(mesh)
        notes = mesh.project.root / NOTES

        def noted() -> Counter[int]:
            return Counter(int(line) for line in notes.read_text().split())

        began = time.time()
        try:
            await reviving(mesh, lambda: len(noted()) == 2 * NEIGHBOURS, "all neighbours")
        except AssertionError:
            dead = await dead_numbers(mesh, "scribe.note")
            pytest.fail(f"{deaths} deaths; dead letters: {dead}; handled: {noted()}")
        counts = noted()
        lost = len({each for _, each in mesh.asked} - counts.keys())
        doubled = counts.total() - len(counts)
        record(
            Row(
                fault="poison, plain handler",
                broker=broker,
                database="none",
                account=Account(len(mesh.asked), counts.total(), lost, doubled, in_order=False),
                order_promised=False,
                recovery=time.time() - began,
                within=RECOVERY,
                settled=time.time() - began,
                warnings=mesh.warnings_per_second(),
            )
        )
        assert await dead_numbers(mesh, "scribe.note") == [number]
        assert deaths <= SUSPECT_AFTER + 3
        assert lost == 0
