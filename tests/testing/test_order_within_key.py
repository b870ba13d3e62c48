"""Simulation checks the order within a key, where a subscription promises it."""

from __future__ import annotations

import re

import pytest

from eventmesh import Command, Service, Transaction
from eventmesh.runtime.consuming import lanes
from eventmesh.testing.mesh import Mesh
from eventmesh.testing.mesh.databases import temporary_workshop
from eventmesh.testing.mesh.running import make_mesh
from eventmesh.testing.simulation.search import Failure, Options, simulate
from eventmesh.wire.envelope import Envelope


class Note(Command, name="diary.note", version=1, key="owner"):
    owner: str
    number: int


diary = Service("diary")


@diary.subscriber(Note, concurrency=3)
async def write(_command: Note, _tx: Transaction) -> None:
    """What counts is when it is committed."""


def found(*, workers: int, seeds: int) -> Failure | None:
    async def body(mesh: Mesh) -> None:
        await mesh.start(diary, workers=workers)
        for number in range(4):
            for owner in ("ada", "bob"):
                await mesh.publish(Note(owner=owner, number=number))

    with temporary_workshop() as workshop:
        return simulate(body, lambda: make_mesh(workshop), Options(seeds=seeds)).failure


def test_messages_of_a_key_in_lanes_of_their_own_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def lane_of_any_message(envelope: Envelope, count: int) -> int:
        return int(envelope.id[-1], 16) % count

    assert found(workers=1, seeds=10) is None
    monkeypatch.setattr(lanes, "lane_of", lane_of_any_message)
    failure = found(workers=1, seeds=1)
    assert failure is not None
    assert re.search(r"took effect in diary\.write before note .* same key", str(failure.error))


def test_workers_that_compete_for_messages_promise_no_order() -> None:
    assert found(workers=2, seeds=10) is None
