"""Simulation finds what EventMesh itself would do wrong without each of its precautions.

Each mutant takes one precaution out of EventMesh, in this process. The services are right, and pass
while nothing is taken out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from eventmesh import Clock, Command, Event, Service, Transaction
from eventmesh.persistence import inbox, leases
from eventmesh.persistence.counts import Way
from eventmesh.persistence.unit_of_work import PendingMessages, UnitOfWork
from eventmesh.runtime.consuming import batch, subscription
from eventmesh.runtime.relaying.held_leases import HeldLeases
from eventmesh.testing.mesh import Mesh
from eventmesh.testing.mesh.databases import temporary_workshop
from eventmesh.testing.mesh.running import make_mesh
from eventmesh.testing.simulation.search import Options, simulate
from eventmesh.transports.outcome import DONE, Outcome, RetryAfter

PARCELS = 4
BACK_AFTER = 1.0  # virtual seconds


class Base(DeclarativeBase):
    pass


class Label(Base):
    __tablename__ = "labels"
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    parcel: Mapped[int]


class Pack(Command, name="depot.pack", version=1, key="parcel"):
    parcel: int


class Packed(Event, name="depot.packed", version=1, key="parcel"):
    parcel: int


depot = Service("depot", metadata=Base.metadata)


@depot.subscriber(Pack)
async def pack(command: Pack, tx: Transaction) -> Packed:
    tx.session.add(Label(parcel=command.parcel))
    return Packed(parcel=command.parcel)


desk = Service("desk")


@desk.subscriber(Packed)
async def announce(event: Packed, clock: Clock) -> None:
    if clock.monotonic() < BACK_AFTER:
        raise ConnectionError("the mail server is away")


async def body(mesh: Mesh) -> None:
    @mesh.eventually
    def each_parcel_has_one_label(read: Any) -> bool:
        [(labels, parcels)] = read(depot).execute(
            select(func.count(), func.count(Label.parcel.distinct()))
        )
        return bool(labels == parcels == PARCELS)

    @mesh.eventually
    def each_parcel_is_announced(_read: Any) -> bool:
        return len(mesh.published(Packed)) == PARCELS

    await mesh.start(depot, workers=2)
    await mesh.start(desk)
    for parcel in range(PARCELS):
        await mesh.publish(Pack(parcel=parcel))


def found(seeds: int = 100) -> str:
    """What the simulation finds; nothing if all seeds pass."""
    with temporary_workshop() as workshop:
        failure = simulate(body, lambda: make_mesh(workshop), Options(seeds=seeds)).failure
    return "" if failure is None else str(failure.error)


Patch = Callable[[pytest.MonkeyPatch], None]


def without_inbox(patch: pytest.MonkeyPatch) -> None:
    """Every message is handled, whatever the inbox says."""
    claim = inbox.claim

    async def claim_all(
        session: Any, name: str, entries: Sequence[inbox.Entry], ways: Mapping[str, Way]
    ) -> inbox.Claim:
        known = (await claim(session, name, entries, ways)).digests
        return inbox.Claim({entry.message_id for entry in entries}, known)

    patch.setattr(inbox, "claim", claim_all)


def outbox_after_commit(patch: pytest.MonkeyPatch) -> None:
    """Messages are stored in a transaction of their own, after that of the state."""
    commit = UnitOfWork.commit

    async def commit_first(unit: UnitOfWork) -> None:
        kept, unit._pending = unit._pending, PendingMessages()
        await commit(unit)
        if kept.messages:
            session = unit.session.sync_session
            async with unit._engine.begin() as connection:
                await connection.run_sync(lambda sync: kept.store(session, sync, ordered=False))
            unit._sender.committed(kept.stored)

    patch.setattr(UnitOfWork, "commit", commit_first)


def leases_unchecked(patch: pytest.MonkeyPatch) -> None:
    """Each relay takes all buckets, and acts on them for ever."""
    patch.setattr(leases, "share", lambda rows, *_: frozenset(row.bucket for row in rows))
    patch.setattr(HeldLeases, "is_valid", True)


def settled_before_commit(patch: pytest.MonkeyPatch) -> None:
    """The broker is told that a message is done when it arrives."""
    receive = subscription._receive

    async def receive_and_settle(consumer: Any, limit: int, ends: Any) -> Any:
        deliveries = await receive(consumer, limit, ends)
        await consumer.settle([(delivery, DONE) for delivery in deliveries])
        return deliveries

    patch.setattr(subscription, "_receive", receive_and_settle)


def retried_at_once(patch: pytest.MonkeyPatch) -> None:
    """A message whose handler failed comes again without any delay."""
    decide = batch.decide

    def decide_without_delay(*arguments: Any) -> Outcome:
        outcome = decide(*arguments)
        return RetryAfter(0.0) if isinstance(outcome, RetryAfter) else outcome

    patch.setattr(batch, "decide", decide_without_delay)


MUTANTS: dict[Patch, str] = {
    without_inbox: "each_parcel_has_one_label",
    outbox_after_commit: "each_parcel_is_announced",
    leases_unchecked: "was published again",
    settled_before_commit: "each_parcel_has_one_label",
    retried_at_once: "dead letter",
}
"""What takes each precaution out, and what is found then."""


@contextmanager
def mutated(mutate: Patch) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        mutate(patch)
        yield


def test_with_all_precautions_nothing_is_found() -> None:
    assert found(seeds=8) == ""


@pytest.mark.parametrize(
    ("mutate", "expected"), MUTANTS.items(), ids=lambda value: getattr(value, "__name__", "")
)
def test_a_missing_precaution_is_found(mutate: Patch, expected: str) -> None:
    with mutated(mutate):
        assert expected in found()
