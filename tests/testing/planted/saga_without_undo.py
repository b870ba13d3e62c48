"""A saga that says that a step needs no undo, wrongly.

The definition is accepted: somebody has given a reason. But when a later step is not answered in
time, the trip is cancelled and the room stays booked.
"""

from __future__ import annotations

from pydantic import BaseModel
from sqlalchemy import select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from eventmesh import Command, Event, Saga, SagaFailure, Service, Transaction
from eventmesh.testing.mesh import Mesh


class BookTrip(Command, name="trips.book", version=1, key="trip"):
    trip: str


class TripBooked(Event, name="trips.booked", version=1, key="trip"):
    trip: str


class TripCancelled(Event, name="trips.cancelled", version=1, key="trip"):
    trip: str


class BookRoom(Command, name="hotels.book_room", version=1, key="trip"):
    trip: str


class RoomBooked(Event, name="hotels.room_booked", version=1, key="trip"):
    trip: str


class CancelRoom(Command, name="hotels.cancel_room", version=1, key="trip"):
    trip: str


class RoomCancelled(Event, name="hotels.room_cancelled", version=1, key="trip"):
    trip: str


class ChargeCard(Command, name="cards.charge", version=1, key="trip"):
    trip: str


class CardCharged(Event, name="cards.charged", version=1, key="trip"):
    trip: str


class RefundCard(Command, name="cards.refund", version=1, key="trip"):
    trip: str


class Base(DeclarativeBase):
    pass


class Room(Base):
    __tablename__ = "rooms"

    trip: Mapped[str] = mapped_column(primary_key=True)


hotels = Service("hotels", metadata=Base.metadata)


@hotels.subscriber(BookRoom)
async def book_room(command: BookRoom, tx: Transaction) -> RoomBooked:
    await tx.session.merge(Room(trip=command.trip))
    return RoomBooked(trip=command.trip)


@hotels.subscriber(CancelRoom)
async def cancel_room(command: CancelRoom, tx: Transaction) -> RoomCancelled:
    room = await tx.session.get(Room, command.trip)
    if room is not None:
        await tx.session.delete(room)
    return RoomCancelled(trip=command.trip)


cards = Service("cards")


@cards.subscriber(ChargeCard)
async def charge_card(command: ChargeCard) -> CardCharged:
    return CardCharged(trip=command.trip)


@cards.subscriber(RefundCard)
async def refund_card(command: RefundCard) -> None:
    """The refund is what a test of another module is about."""


class TripState(BaseModel):
    trip: str


def make_trips(*, undoes_room: bool) -> Service:
    trip = Saga("trips.book_trip", TripState, key=lambda state: state.trip)

    @trip.starts
    def begin(command: BookTrip) -> TripState:
        return TripState(trip=command.trip)

    @trip.step(
        ok=RoomBooked,
        timeout="10m",
        no_undo="" if undoes_room else "hotels charge only for nights that were slept",
    )
    def room(state: TripState) -> BookRoom:
        return BookRoom(trip=state.trip)

    if undoes_room:

        @room.undo(ok=RoomCancelled)
        def no_room(state: TripState) -> CancelRoom:
            return CancelRoom(trip=state.trip)

    @trip.step(ok=CardCharged, timeout="5s")
    def card(state: TripState) -> ChargeCard:
        return ChargeCard(trip=state.trip)

    @card.undo()
    def no_charge(state: TripState) -> RefundCard:
        return RefundCard(trip=state.trip)

    trip.flow(room >> card)

    @trip.completed
    def booked(state: TripState) -> TripBooked:
        return TripBooked(trip=state.trip)

    @trip.undone
    def cancelled(state: TripState, failure: SagaFailure) -> TripCancelled:
        return TripCancelled(trip=state.trip)

    trips = Service("trips")
    trips.include(trip)
    return trips


broken = make_trips(undoes_room=False)
corrected = make_trips(undoes_room=True)


async def body(mesh: Mesh, trips: Service) -> None:
    @mesh.eventually
    def a_room_is_kept_for_a_trip_that_takes_place(read):  # type: ignore[no-untyped-def]
        rooms = set(read(hotels).scalars(select(Room.trip)))
        assert rooms == {event.trip for event in mesh.published(TripBooked)}

    await mesh.start(trips, hotels, cards)
    await mesh.publish(BookTrip(trip="t1"))
