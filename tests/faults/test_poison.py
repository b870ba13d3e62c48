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
from tests.faults.fault_run import verdict
from tests.faults.faults import Fault, by_itself, nowhere
from tests.faults.report import Row
from tests.faults.services.scribe.service import NOTES
from tests.faults.services.till.service import DEADLY
from tests.faults.system_under_test import RECOVERY, SystemUnderTest

NEIGHBOURS = 20
"""Before the poison, and as many behind it."""

MOST_DEATHS = 12

BROKERS = (
    "sqlite",
    *(pytest.param(broker, marks=pytest.mark.soak) for broker in ("redis", "amqp")),
)


def poison(handler: str) -> Fault:
    return Fault(f"poison, {handler}", by_itself, ordered=nowhere)


async def prepare(system: SystemUnderTest, service: str, most_deliveries: int) -> int:
    """Put the poison among its neighbours; returns its number."""
    system.services = ("feed", service)
    system.harmless_codes |= {DEADLY}
    system.project.environment["EVENTMESH_MAX_DELIVERIES"] = str(most_deliveries)
    system.project.environment["EVENTMESH_VISIBILITY_TIMEOUT"] = "1s"
    await system.ask(NEIGHBOURS)
    [(_, number)] = await system.ask(1, deed="die")
    await system.ask(NEIGHBOURS)
    return number


async def workers_until_dead_letter(system: SystemUnderTest) -> int:
    """Restart workers until one has dead-lettered a message; returns how many died."""
    await reviving(system, lambda: bool(dead_lettered(system)), "a dead letter")
    return len(system.workers) - 1


async def reviving(system: SystemUnderTest, done: Callable[[], bool], what: str) -> None:
    """Start a worker again each time that it has died, until it is done. It may die once more after
    it has given up: of what was handed out to it again before that was settled."""
    while not done():
        assert len(system.workers) <= MOST_DEATHS, (
            f"too many deaths before {what}; {system.output()}"
        )
        if None not in system.codes():
            system.start_worker()
        await system.until(lambda: done() or None not in system.codes(), f"{what}, or a death")


def dead_lettered(system: SystemUnderTest) -> int:
    return system.events()["message dead-lettered"]


async def until_dead(system: SystemUnderTest, subscription: str, number: int) -> None:
    """Wait until this message is a dead letter of the subscription, which is logged shortly before
    it is stored, and check that it is the only one."""

    async def is_stored() -> bool:
        return bool(await dead_numbers(system, subscription))

    await system.until(is_stored, "a dead letter that is stored")
    assert await dead_numbers(system, subscription) == [number]


async def dead_numbers(system: SystemUnderTest, subscription: str) -> list[int]:
    """The numbers of the messages among the dead letters of a subscription."""
    async with system.transport() as transport:
        letters = await transport.dead_letters(Subscription(subscription, ()), limit=1000)
    return [json.loads(letter.envelope.data)["number"] for letter in letters]


@pytest.mark.parametrize("broker", BROKERS)
async def test_poison_of_a_transactional_handler(broker: str, at: At, record: Record) -> None:
    async with at(broker, "sqlite") as system:
        number = await prepare(system, "till", most_deliveries=2)
        deaths = await workers_until_dead_letter(system)
        began = time.time()
        there = asyncio.ensure_future(system.until_effects(2 * NEIGHBOURS * len(SUBSCRIPTIONS)))
        await reviving(system, there.done, "the neighbours' effects")
        await there
        took = time.time() - began
        row = await verdict(system, poison("transactional handler"), took, took)
        record(row)
        await until_dead(system, "till.apply", number)
        assert deaths <= SUSPECT_AFTER + 2
        assert (row.account.lost, row.account.doubled) == (0, 0)


@pytest.mark.parametrize("broker", BROKERS)
async def test_poison_of_a_plain_handler(broker: str, at: At, record: Record) -> None:
    """Its effects are no database's, so a neighbour may be handled again; none is dead-lettered."""
    async with at(broker, "sqlite") as system:
        number = await prepare(system, "scribe", SUSPECT_AFTER + 3)
        deaths = await workers_until_dead_letter(system)
        notes = system.project.root / NOTES
        notes.touch()

        def noted() -> Counter[int]:
            return Counter(int(line) for line in notes.read_text().split())

        began = time.time()
        try:
            await reviving(system, lambda: len(noted()) == 2 * NEIGHBOURS, "all neighbours")
        except AssertionError:
            dead = await dead_numbers(system, "scribe.note")
            pytest.fail(f"{deaths} deaths; dead letters: {dead}; handled: {noted()}")
        counts = noted()
        lost = len({each for _, each in system.asked} - counts.keys())
        doubled = counts.total() - len(counts)
        record(
            Row(
                fault="poison, plain handler",
                broker=broker,
                database="none",
                account=Account(len(system.asked), counts.total(), lost, doubled, in_order=False),
                order_promised=False,
                recovery=time.time() - began,
                within=RECOVERY,
                settled=time.time() - began,
                warnings=system.warnings_per_second(),
            )
        )
        await until_dead(system, "scribe.note", number)
        assert deaths <= SUSPECT_AFTER + 3
        assert lost == 0
