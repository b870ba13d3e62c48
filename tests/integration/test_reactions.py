"""Reactions that can be undone: each once for a key, in whatever order the events come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

import pytest
from pydantic import BaseModel
from sqlalchemy import String, select
from sqlalchemy import event as listening
from sqlalchemy.engine import Engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from eventmesh import Event, Retry, Service, Settings, Transaction, constant
from eventmesh.clock import SystemClock
from eventmesh.errors import UsageError
from eventmesh.persistence import migration, tables
from eventmesh.persistence.database import Database
from eventmesh.runtime.consuming.batch import BatchRunner
from eventmesh.runtime.consuming.worker import Worker
from eventmesh.runtime.vitals import SubscriptionVitals
from eventmesh.transports.base import DeadLetter, Delivery, Subscription, publish_or_raise
from eventmesh.transports.memory import MemoryTransport
from eventmesh.transports.outcome import DONE, Dead
from eventmesh.wire.envelope import Envelope, seal

pytestmark = pytest.mark.parametrize(
    "database_url", ["sqlite", "postgres", "mariadb"], indirect=True
)


class Base(DeclarativeBase): ...


class Account(Base):
    """The points of a customer: what the reactions change."""

    __tablename__ = "accounts"
    owner: Mapped[str] = mapped_column(String(255), primary_key=True)
    points: Mapped[int]


class Bought(Event, name="shop.bought", version=1, key="order"):
    order: str
    points: int = 10


class Returned(Event, name="shop.returned", version=1, key="order"):
    order: str


class Collected(Event, name="points.collected", version=1, key="order"):
    order: str


class Points(BaseModel):
    number: int
    value: Decimal


@dataclass
class Loyalty:
    """A service whose reaction collects points."""

    service: Service
    undone: list[Points]

    async def points(self) -> int | None:
        async with self.service.transaction() as tx:
            return await tx.session.scalar(select(Account.points))

    async def rows(self) -> list[tuple[str, str]]:
        reaction = tables.reaction.c
        async with self.service.transaction() as tx:
            rows = await tx.session.execute(
                select(reaction.key, reaction.status).order_by(reaction.key)
            )
            return [(key, status) for key, status in rows]

    async def outbox(self) -> list[str]:
        async with self.service.transaction() as tx:
            return list(await tx.session.scalars(select(tables.outbox.c.name)))

    async def tell(self, *events: Event) -> list[object]:
        """Handle these events in one batch; returns the outcomes."""
        sealed = [seal(event, source="shop", clock=SystemClock()) for event in events]
        return await self.deliver(*sealed)

    async def deliver(self, *envelopes: Envelope) -> list[object]:
        handler = self.service.handlers["points.collect"]
        vitals = SubscriptionVitals("points", handler.subscription, SystemClock())
        runner = BatchRunner(self.service, handler, vitals)
        runner.size = 100
        deliveries = [
            Delivery(envelope, attempt=1, token=number) for number, envelope in enumerate(envelopes)
        ]
        settlements = await asyncio.create_task(runner.run(deliveries))  # as a worker does
        return [outcome for _, outcome in settlements]


def loyalty_service(undone: list[Points]) -> Service:
    service = Service("points", metadata=Base.metadata)
    service.publisher(Collected)

    async def add(tx: Transaction, number: int) -> None:
        account = await tx.session.get(Account, "ada", with_for_update=True)
        if account is None:
            tx.session.add(account := Account(owner="ada", points=0))
        account.points += number
        await tx.session.flush()

    @service.reaction(Bought, undone_by=Returned, retry=Retry(2, constant("10ms")))
    async def collect(event: Bought, tx: Transaction) -> Points:
        if event.points < 0:
            raise ValueError("points cannot be negative")
        await add(tx, event.points)
        tx.publish(Collected(order=event.order))
        return Points(number=event.points, value=Decimal("0.10") * event.points)

    @collect.undo
    async def give_back(event: Returned, points: Points, tx: Transaction) -> None:
        undone.append(points)
        await add(tx, -points.number)

    return service


@pytest.fixture
async def loyalty(database_url: str) -> AsyncIterator[Loyalty]:
    undone: list[Points] = []
    service = loyalty_service(undone)
    database = Database(database_url, service="points")
    await migration.upgrade(database, Base.metadata)
    await database.close()
    service.configure(Settings(database_urls={"points": database_url}))
    async with service:
        yield Loyalty(service, undone)


async def test_what_a_reaction_returned_is_handed_to_its_undo(loyalty: Loyalty) -> None:
    assert await loyalty.tell(Bought(order="a")) == [DONE]
    assert (await loyalty.points(), await loyalty.rows()) == (10, [("a", "done")])
    assert await loyalty.tell(Returned(order="a")) == [DONE]
    assert loyalty.undone == [Points(number=10, value=Decimal("1.00"))]
    assert (await loyalty.points(), await loyalty.rows()) == (0, [("a", "undone")])


async def test_an_undo_that_comes_first_cancels_the_reaction_that_comes_later(
    loyalty: Loyalty,
) -> None:
    await loyalty.tell(Returned(order="a"))
    assert await loyalty.tell(Bought(order="a")) == [DONE]
    assert await loyalty.tell(Returned(order="a")) == [DONE]
    assert (await loyalty.points(), await loyalty.rows()) == (None, [("a", "cancelled")])
    assert loyalty.undone == []


async def test_a_reaction_is_undone_once_and_not_done_again_after_that(loyalty: Loyalty) -> None:
    for event in (Bought(order="a"), Returned(order="a"), Returned(order="a"), Bought(order="a")):
        assert await loyalty.tell(event) == [DONE]
    assert (await loyalty.points(), len(loyalty.undone)) == (0, 1)


async def test_a_second_event_of_a_key_is_a_dead_letter_and_a_copy_is_skipped(
    loyalty: Loyalty,
) -> None:
    bought = seal(Bought(order="a"), source="shop", clock=SystemClock())
    assert await loyalty.deliver(bought) == [DONE]
    async with loyalty.service.transaction() as tx:
        await tx.session.execute(tables.inbox.delete())  # it was purged
    assert await loyalty.deliver(bought) == [DONE]
    [outcome] = await loyalty.tell(Bought(order="a"))
    assert isinstance(outcome, Dead)
    assert "a reaction happens once for each key" in outcome.reason
    assert await loyalty.points() == 10


async def test_the_key_of_a_foreign_event_may_hold_a_nul(loyalty: Loyalty) -> None:
    """PostgreSQL cannot store it as it is, and nobody here can change it."""
    for event in (Returned(order="a"), Bought(order="a")):
        own = seal(event, source="shop", clock=SystemClock())
        foreign = Envelope({**own.attributes, "partitionkey": "a\0"}, rb'{"order":"a\u0000"}')
        assert await loyalty.deliver(foreign) == [DONE]
    assert await loyalty.rows() == [("a\\x00", "cancelled")]


async def test_a_group_has_both_events_of_one_key_and_those_of_others(loyalty: Loyalty) -> None:
    await loyalty.tell(Bought(order="c"))
    events = (
        *(Bought(order="a"), Returned(order="a"), Returned(order="b"), Bought(order="b")),
        *(Returned(order="c"), Bought(order="d", points=3)),
    )
    assert await loyalty.tell(*events) == [DONE] * len(events)
    assert await loyalty.rows() == [
        ("a", "undone"),
        ("b", "cancelled"),
        ("c", "undone"),
        ("d", "done"),
    ]
    assert await loyalty.points() == 3


async def test_a_reaction_that_fails_has_no_effect_and_the_others_of_its_group_have(
    loyalty: Loyalty,
) -> None:
    first, second, _ = await loyalty.tell(
        Bought(order="a"), Bought(order="b", points=-1), Bought(order="c")
    )
    assert (first, second == DONE) == (DONE, False)
    assert await loyalty.rows() == [("a", "done"), ("c", "done")]
    assert (await loyalty.points(), await loyalty.outbox()) == (20, ["points.collected"] * 2)


async def test_what_a_reaction_publishes_in_a_group_has_its_event_as_the_cause(
    loyalty: Loyalty,
) -> None:
    sealed = [seal(Bought(order=order), source="shop", clock=SystemClock()) for order in "ab"]
    await loyalty.deliver(*sealed)
    async with loyalty.service.transaction() as tx:
        headers = list(await tx.session.scalars(select(tables.outbox.c.headers)))
    assert {each["causationid"] for each in headers} == {envelope.id for envelope in sealed}


async def test_a_group_costs_one_read_and_one_write_of_reactions(loyalty: Loyalty) -> None:
    statements: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if "eventmesh_reaction" in statement:
            statements.append(statement.split()[0])

    listening.listen(Engine, "before_cursor_execute", note)
    try:
        await loyalty.tell(*(Bought(order=str(number)) for number in range(20)))
    finally:
        listening.remove(Engine, "before_cursor_execute", note)
    assert statements == ["SELECT", "INSERT"]


async def test_both_events_at_once_in_two_workers_leave_nothing_behind(
    database_url: str, tmp_path: Path
) -> None:
    database = Database(database_url, service="points")
    await migration.upgrade(database, Base.metadata)
    settings = Settings(database_urls={"points": database_url}, schemas=tmp_path / "schemas")
    transport, orders = MemoryTransport(SystemClock()), [str(number) for number in range(30)]
    undone: list[Points] = []

    async def is_settled() -> bool:
        async with database.reading() as connection:
            rows = list(await connection.scalars(select(tables.reaction.c.status)))
        return len(rows) == len(orders) and "done" not in rows

    async with worker(transport, settings, undone), worker(transport, settings, undone):
        events = [
            event for order in orders for event in (Bought(order=order), Returned(order=order))
        ]
        sealed = [seal(event, source="shop", clock=SystemClock()) for event in events]
        await publish_or_raise(transport, sealed)
        await until(is_settled)
    async with database.reading() as connection:
        points = await connection.scalar(select(Account.points))
    await database.close()
    assert points in (0, None)
    assert await dead(transport) == []


async def test_a_reaction_without_an_undo_does_not_start(database_url: str, tmp_path: Path) -> None:
    service = Service("points")

    @service.reaction(Bought, undone_by=Returned)
    async def collect(event: Bought, tx: Transaction) -> None: ...

    settings = Settings(database_urls={"points": database_url}, schemas=tmp_path / "schemas")
    worker = Worker([service], MemoryTransport(SystemClock()), settings, SystemClock())
    with pytest.raises(UsageError, match=r"points\.collect has no undo: .* @collect\.undo"):
        await worker.run(asyncio.Event())


@asynccontextmanager
async def worker(
    transport: MemoryTransport, settings: Settings, undone: list[Points]
) -> AsyncIterator[None]:
    stop = asyncio.Event()
    service = loyalty_service(undone)
    running = asyncio.ensure_future(Worker([service], transport, settings, SystemClock()).run(stop))
    try:
        yield
    finally:
        stop.set()
        await asyncio.wait_for(running, 60)


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(60):
        while not await condition():  # noqa: ASYNC110  # the condition lies in a database
            await asyncio.sleep(0.01)


async def dead(transport: MemoryTransport) -> list[DeadLetter]:
    return list(await transport.dead_letters(Subscription("points.collect", ()), limit=10))
