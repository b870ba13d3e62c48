"""Simulation finds lost messages: of those that were published after a subscription was declared,
and those that nobody took until then."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from eventmesh import Command, Event, Service, Transaction
from eventmesh.testing.mesh import Mesh
from eventmesh.testing.mesh.databases import temporary_workshop
from eventmesh.testing.mesh.running import make_mesh
from eventmesh.testing.simulation.plan import Plan
from eventmesh.testing.simulation.search import Options, replay
from eventmesh.transports.memory_queue import MemoryQueue, QueuedMessage


class Parked(Event, name="garage.parked", version=1):
    pass


class Park(Command, name="garage.park", version=1):
    pass


garage = Service("garage")


@garage.subscriber(Park)
async def park(_command: Park, _tx: Transaction) -> Parked:
    return Parked()


def subscribing(name: str) -> Service:
    service = Service(name)

    @service.subscriber(Parked)
    async def see(_event: Parked, _tx: Transaction) -> None:
        """What counts is when it is committed."""

    return service


def violation(*groups: Sequence[Service]) -> str:
    """What does not hold in a run in which each group of services is started after a message, and
    a last message comes after all of them."""

    async def body(mesh: Mesh) -> None:
        await mesh.start(garage)
        for group in groups:
            await mesh.publish(Park())
            await mesh.quiet()
            await mesh.start(*group)
        await mesh.publish(Park())

    with temporary_workshop() as workshop:
        failure = replay(body, lambda: make_mesh(workshop), Plan(0), Options())
    return "" if failure is None else str(failure.error)


@pytest.fixture
def loses_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """The broker loses the first event of each subscription."""
    put, known = MemoryQueue.put_last, list[MemoryQueue]()

    def put_but_the_first(queue: MemoryQueue, message: QueuedMessage) -> None:
        if message.envelope.name != "garage.parked" or any(each is queue for each in known):
            put(queue, message)
        else:
            known.append(queue)

    monkeypatch.setattr(MemoryQueue, "put_last", put_but_the_first)


def test_a_subscription_need_not_get_what_another_took_before_it_was_declared() -> None:
    assert violation([subscribing("early")], [subscribing("late")]) == ""


def test_a_new_version_need_not_get_what_was_published_before_it_subscribed() -> None:
    first_version = Service("late")
    assert violation([first_version, subscribing("early")], [subscribing("late")]) == ""


@pytest.mark.usefixtures("loses_first")
def test_a_message_that_nobody_took_before_the_first_subscription_must_not_be_lost() -> None:
    assert violation([subscribing("late")]) == "parked #2 was lost: late.see has not handled it"


@pytest.mark.usefixtures("loses_first")
def test_what_is_published_after_a_late_start_must_not_be_lost() -> None:
    assert violation([subscribing("early")], [subscribing("late")]).split("\n") == [
        "parked #2 was lost: early.see has not handled it",
        "parked #6 was lost: late.see has not handled it",
    ]
