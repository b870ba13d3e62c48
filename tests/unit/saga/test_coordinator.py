# ruff: noqa: N805  # the functions of a saga take its state, there is no self
"""What a saga keeps in its row comes back as it was, through a real database."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import date
from decimal import Decimal
from pathlib import Path
from uuid import UUID

import pytest
from pydantic import BaseModel, Field

from eventmesh.contracts.message import Command, Event, Message
from eventmesh.errors import Conflict
from eventmesh.persistence import tables
from eventmesh.persistence.database import Database
from eventmesh.persistence.transaction import Sender, Transaction
from eventmesh.runtime.service import Service
from eventmesh.saga.coordinator import Coordinator
from eventmesh.saga.definition import Saga, step
from eventmesh.testing.clock import ManualClock
from eventmesh.wire.envelope import DEFAULT_MAX_BYTES, Envelope, open_envelope, seal

SAGA_ID = "01900000-0000-7000-8000-0000000000aa"


class Trip(BaseModel, strict=True):
    trip_id: UUID = Field(alias="tripId")
    on: date
    price: Decimal


class Booked(Event, name="trips.booked", version=1):
    trip_id: UUID


class Reserve(Command, name="parts.reserve", version=1):
    trip_id: UUID
    on: date
    price: Decimal


class Release(Command, name="parts.release", version=1):
    part_id: UUID
    until: date


class Reserved(Event, name="parts.reserved", version=1, strict=True):
    part_id: UUID = Field(alias="partId")
    until: date


class Refused(Event, name="parts.refused", version=1):
    pass


class Book(Saga[Trip], name="trips.book", started_by=Booked):
    def begin(event: Booked) -> Trip:
        return Trip(tripId=event.trip_id, on=date(2026, 1, 2), price=Decimal("1.10"))

    @step(ok=Reserved)
    def first(state: Trip) -> Reserve:
        return Reserve(trip_id=state.trip_id, on=state.on, price=state.price)

    @first.undo
    def undo_first(state: Trip, reply: Reserved) -> Release:
        return Release(part_id=reply.part_id, until=reply.until)

    @step(ok=Reserved, failed=Refused)
    def second(state: Trip) -> Reserve:
        return Reserve(trip_id=state.trip_id, on=state.on, price=state.price)

    flow = first >> second


class Trips:
    """The service trips with its saga and its database, without a worker."""

    def __init__(self, database: Database) -> None:
        self._service = Service("trips")
        self._coordinator = Coordinator(Book.definition)
        self._coordinator.extend(self._service)
        self._database = database
        self._clock = ManualClock()

    async def handle(self, message: Message, **attributes: str) -> list[Message]:
        """Handle this message in a transaction of its own; returns what is to be sent."""
        cause = seal(message, source="test", clock=self._clock, extensions=attributes)
        registry = self._service.registry
        sender = Sender("trips", registry, self._clock, DEFAULT_MAX_BYTES)
        async with self._database.session() as session:
            transaction = Transaction(session, sender, cause)
            await self._coordinator.handle(message, cause, transaction)
            await session.finish(proved=True)
        return [self._open(outgoing.envelope) for outgoing in transaction.outgoing]

    async def reply(self, label: str, message: Message) -> list[Message]:
        """Handle this reply to the step of this name."""
        return await self.handle(message, sagaid=f"trips.book/{SAGA_ID}", sagastep=label)

    def _open(self, envelope: Envelope) -> Message:
        model = self._service.registry.get(envelope.name)
        assert model is not None
        return open_envelope(envelope, model)


@pytest.fixture
async def trips(tmp_path: Path) -> AsyncIterator[Trips]:
    database = Database(f"sqlite:///{tmp_path}/trips.db", service="trips")
    async with database.connection() as connection:
        await connection.run_sync(tables.metadata.create_all)
    yield Trips(database)
    await database.close()


BOOKED = Booked(trip_id=UUID(int=1))
RESERVE = Reserve(trip_id=UUID(int=1), on=date(2026, 1, 2), price=Decimal("1.10"))
RESERVED = Reserved(partId=UUID(int=3), until=date(2026, 3, 4))


async def test_a_strict_state_with_aliases_comes_back_from_its_row(trips: Trips) -> None:
    assert await trips.handle(BOOKED, id=SAGA_ID) == [RESERVE]
    assert await trips.reply("first", RESERVED) == [RESERVE]
    assert await trips.reply("second", RESERVED) == []


async def test_a_strict_reply_with_aliases_comes_back_for_its_undo(trips: Trips) -> None:
    await trips.handle(BOOKED, id=SAGA_ID)
    await trips.reply("first", RESERVED)
    assert await trips.reply("second", Refused()) == [
        Release(part_id=UUID(int=3), until=date(2026, 3, 4))
    ]


async def test_a_reply_that_comes_again_sends_nothing(trips: Trips) -> None:
    await trips.handle(BOOKED, id=SAGA_ID)
    await trips.reply("first", RESERVED)
    assert await trips.reply("first", RESERVED) == []


async def test_a_reply_before_its_saga_is_there_is_tried_again(trips: Trips) -> None:
    with pytest.raises(Conflict, match="not there"):
        await trips.reply("first", RESERVED)


@pytest.mark.parametrize("saga_id", ["", "trips.other/started-1"])
async def test_an_event_in_answer_to_somebody_else_is_left_alone(
    trips: Trips, saga_id: str
) -> None:
    assert await trips.handle(RESERVED, sagaid=saga_id, sagastep="first") == []
