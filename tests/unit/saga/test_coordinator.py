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

from eventmesh import Service
from eventmesh.contracts.message import Command, Event, Message
from eventmesh.errors import Reject, UnknownSaga
from eventmesh.persistence import tables
from eventmesh.persistence.database import Database
from eventmesh.persistence.outbox import Outgoing
from eventmesh.persistence.transaction import Sender, Transaction
from eventmesh.runtime.declaring.retry import Retry, decide
from eventmesh.saga.authoring import Saga, step
from eventmesh.saga.coordinator import Coordinator
from eventmesh.testing.clock import ManualClock
from eventmesh.transports.outcome import Dead, RetryAfter
from eventmesh.wire.envelope import DEFAULT_MAX_BYTES, Envelope, open_envelope, seal
from tests.support.units import unit_of_work

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
        return await self.handle_as(message, attributes)

    async def handle_as(self, message: Message, attributes: dict[str, str]) -> list[Message]:
        """Handle this message with attributes that a foreign program may have written."""
        sealed = seal(message, source="test", clock=self._clock)
        cause = Envelope({**sealed.attributes, **attributes}, sealed.data)
        registry = self._service.registry
        sender = Sender("trips", registry, self._clock, DEFAULT_MAX_BYTES)
        sent: list[Outgoing] = []
        async with unit_of_work(self._database) as unit:
            transaction = Transaction(unit.session, sender, sent.append, [(message, cause)])
            await self._coordinator.handle(message, cause, transaction)
            await unit.commit()
        return [self._open(outgoing.envelope) for outgoing in sent]

    @property
    def retry(self) -> Retry:
        """The policy of the saga's subscription."""
        return self._service.handlers["trips.book.saga"].retry

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


@pytest.mark.parametrize(
    ("other_failures", "at_least", "at_most"), [(0, 540, 800), (8, 480, 740), (12, 300, 480)]
)
async def test_a_reply_whose_saga_is_not_there_is_tried_again_for_minutes(
    trips: Trips, other_failures: int, at_least: float, at_most: float
) -> None:
    """Also one that was retried before, for a Conflict."""
    with pytest.raises(UnknownSaga, match=f"no saga {SAGA_ID} of trips.book exists") as raised:
        await trips.reply("first", RESERVED)
    delays, attempt = [], 1 + other_failures
    while isinstance(outcome := decide(trips.retry, attempt, raised.value, 0.0), RetryAfter):
        delays.append(outcome.delay)
        attempt += 1
    assert isinstance(outcome, Dead)
    assert "no saga" in outcome.reason
    assert attempt == 20
    assert at_least <= sum(delays) * 0.75 <= sum(delays) <= at_most


@pytest.mark.parametrize(
    "saga_id", ["", "1", "no\0where", "x" * 300, f"{SAGA_ID}/", "sha256:", f"{SAGA_ID}\n"]
)
async def test_a_saga_id_that_cannot_be_one_is_rejected_at_once(trips: Trips, saga_id: str) -> None:
    labels = {"sagaid": f"trips.book/{saga_id}", "sagastep": "first"}
    with pytest.raises(Reject, match="the attribute sagaid"):
        await trips.handle_as(RESERVED, labels)


@pytest.mark.parametrize("saga_id", ["", "trips.other/started-1"])
async def test_an_event_in_answer_to_somebody_else_is_left_alone(
    trips: Trips, saga_id: str
) -> None:
    assert await trips.handle(RESERVED, sagaid=saga_id, sagastep="first") == []
