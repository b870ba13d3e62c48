"""All checks of `eventmesh doctor` together, on a broker in memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from eventmesh.clock import SystemClock
from eventmesh.contracts.message import Event
from eventmesh.operations.doctor.checks import examine
from eventmesh.operations.doctor.measuring import Measured, measure
from eventmesh.operations.doctor.verdict import Severity, Verdict, exit_code
from eventmesh.operations.reach import Reach
from eventmesh.persistence import migration
from eventmesh.persistence.database import Database
from eventmesh.runtime.declaring.service import DeclaredService
from eventmesh.runtime.declaring.settings import Settings, UnknownVariable
from eventmesh.transports.base import Subscription, publish_or_raise
from eventmesh.transports.facts import KnownSubscription
from eventmesh.transports.memory import MemoryTransport
from eventmesh.transports.outcome import Dead
from eventmesh.wire.envelope import seal

CLOCK = SystemClock()


class Told(Event, name="bank.told", version=1):
    number: int


class Unheard(Event, name="bank.unheard", version=1):
    number: int


@pytest.fixture
async def measured(tmp_path: Path) -> Measured:
    """A bank without a worker: one message is dead, two wait, and two have no subscription."""
    url = f"sqlite:///{tmp_path}/bank.db"
    database = Database(url, service="bank")
    await migration.upgrade(database)
    await database.close()
    settings = Settings(
        broker_url="memory://",
        database_urls={"bank": url},
        unrouted_max=4,
        schemas=tmp_path / "schemas",
    )
    service, transport = DeclaredService("bank"), MemoryTransport(CLOCK)
    service.publisher(Unheard)

    @service.subscriber(Told)
    async def listen(event: Told) -> None: ...

    subscription = service.handlers["bank.listen"].subscription
    await transport.declare([subscription, Subscription("old.listen", ("bank.told",))])
    told = [seal(Told(number=n), source="/bank", clock=CLOCK) for n in range(3)]
    unheard = [seal(Unheard(number=n), source="/bank", clock=CLOCK) for n in range(2)]
    await publish_or_raise(transport, [*told, *unheard])
    async with transport.consume(subscription, prefetch=1) as consumer:
        [delivery] = await consumer.receive(1)
        await consumer.settle([(delivery, Dead("no"))])
    async with Reach([service], settings, CLOCK, transport) as reach:
        return await measure(reach, [UnknownVariable("EVENTMESH_X", None)])


def found(verdicts: list[Verdict], *severities: Severity) -> list[tuple[str, str, Severity]]:
    return [
        (each.check, each.subject, each.severity)
        for each in verdicts
        if each.severity in severities
    ]


async def test_what_waits_for_an_operator_is_found_and_nothing_else(measured: Measured) -> None:
    verdicts = examine(measured)
    assert found(verdicts, Severity.WARNING, Severity.FAILURE, Severity.AWAY) == [
        ("settings", "EVENTMESH_X", Severity.WARNING),
        ("undeclared subscriptions", "old.listen", Severity.WARNING),
        ("unrouted messages", "bank.unheard", Severity.WARNING),
        ("consumers", "bank.listen", Severity.FAILURE),
        ("dead letters", "bank.listen", Severity.WARNING),
    ]
    assert all(each.fix for each in verdicts if each.severity is not Severity.OK)
    assert exit_code(verdicts) == 1


async def test_everything_else_was_checked(measured: Measured) -> None:
    checked = {check for check, _, _ in found(examine(measured), Severity.OK)}
    assert checked == {
        *("inbox window", "reachable", "clock", "permissions", "version", "migration"),
        *("outbox", "parked messages", "leases", "schemas", "waiting"),
    }


async def test_a_message_that_a_handler_takes_no_more_is_found(measured: Measured) -> None:
    assert measured.broker is not None
    known = KnownSubscription("bank.listen", 3, {"bank.told": 1, "bank.gone": 2})
    broker = replace(measured.broker, subscriptions=(known,))
    settings = measured.settings.model_copy(update={"broker_url": "redis://host"})
    verdicts = examine(replace(measured, broker=broker, settings=settings))
    [surplus] = [each for each in verdicts if each.check == "undeclared subscriptions"]
    assert (surplus.subject, surplus.severity) == ("bank.listen", Severity.WARNING)
    assert "takes bank.gone no more, and the broker keeps 2 message(s)" in surplus.says
    assert "eventmesh:stream:bank.gone (XGROUP DESTROY)" in surplus.fix


async def test_the_same_facts_give_the_same_verdicts(measured: Measured) -> None:
    assert examine(measured) == examine(measured)
