"""A saga of three steps over four services, each with a database of its own: trips asks hotels,
flights and payments, one after another.

The participants only answer. Each step has a time-out, as nearly every step of a real saga has, so
that a delayed message is written to the outbox and deleted again. Nothing has to be undone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from pydantic import BaseModel

from eventmesh import Command, Event, Saga, Service

NAME = "trips.book"
STEPS = 3


class BookTrip(Command, name="trips.book_trip", version=1, key="trip"):
    trip: str


class BookRoom(Command, name="hotels.book_room", version=1, key="trip"):
    trip: str


class RoomBooked(Event, name="hotels.room_booked", version=1, key="trip"):
    trip: str


class BookSeat(Command, name="flights.book_seat", version=1, key="trip"):
    trip: str


class SeatBooked(Event, name="flights.seat_booked", version=1, key="trip"):
    trip: str


class ChargeCard(Command, name="payments.charge_card", version=1, key="trip"):
    trip: str


class CardCharged(Event, name="payments.card_charged", version=1, key="trip"):
    trip: str


class TripState(BaseModel):
    """What the steps need to know."""

    trip: str


def ignore(trip: str) -> None:
    """For a program that need not know which trips come to their end."""


def make_trips(on_last_answer: Callable[[str], None] = ignore) -> Service:
    """The service that owns the saga. `on_last_answer` is called in the transaction in which a saga
    ends, with its trip."""
    saga = Saga(NAME, TripState, key=lambda state: state.trip)

    @saga.starts
    def begin(command: BookTrip) -> TripState:
        return TripState(trip=command.trip)

    @saga.step(ok=RoomBooked, timeout="1m", no_undo="nothing was booked")
    def room(state: TripState) -> BookRoom:
        return BookRoom(trip=state.trip)

    @saga.step(ok=SeatBooked, timeout="1m", no_undo="nothing was booked")
    def seat(state: TripState) -> BookSeat:
        return BookSeat(trip=state.trip)

    @saga.step(ok=CardCharged, timeout="1m", no_undo="nothing was charged")
    def card(state: TripState) -> ChargeCard:
        return ChargeCard(trip=state.trip)

    @card.done
    def note_last_answer(state: TripState, answer: CardCharged) -> TripState:
        on_last_answer(state.trip)
        return state

    saga.flow(room >> seat >> card)
    service = Service("trips")
    service.publisher(BookTrip)
    service.include(saga)
    return service


def make_participants() -> list[Service]:
    """The services that the saga asks."""
    hotels, flights, payments = Service("hotels"), Service("flights"), Service("payments")

    @hotels.subscriber()
    async def book_room(command: BookRoom) -> RoomBooked:
        return RoomBooked(trip=command.trip)

    @flights.subscriber()
    async def book_seat(command: BookSeat) -> SeatBooked:
        return SeatBooked(trip=command.trip)

    @payments.subscriber()
    async def charge_card(command: ChargeCard) -> CardCharged:
        return CardCharged(trip=command.trip)

    return [hotels, flights, payments]


class Endings:
    """Tells callers when their sagas' last transactions were committed.

    A saga's last answer is noted by the task that handles it, and the same task commits it.
    """

    def __init__(self) -> None:
        self._waiting: dict[str, asyncio.Future[None]] = {}
        self._noted: dict[object, set[str]] = {}

    def wait_for(self, trip: str) -> asyncio.Future[None]:
        """Done once this trip's saga has ended."""
        return self._waiting.setdefault(trip, asyncio.get_running_loop().create_future())

    def note(self, trip: str) -> None:
        self._noted.setdefault(asyncio.current_task(), set()).add(trip)

    def committed(self, _session: object) -> None:
        for trip in self._noted.pop(asyncio.current_task(), ()):
            ended = self._waiting.pop(trip, None)
            if ended is not None and not ended.done():
                ended.set_result(None)
