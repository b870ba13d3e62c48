"""An undo that assumes that its step was done.

It is asked for after a time-out, when nobody knows. Here the step was late and refused, as the last
book was gone, and its undo puts a book back that never left.
"""

from __future__ import annotations

from pydantic import BaseModel
from sqlalchemy import func, select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from eventmesh import Command, Event, Saga, SagaFailure, Service, Transaction
from eventmesh.testing.mesh import Mesh


class PlaceOrder(Command, name="sales.place_order", version=1, key="order"):
    order: str


class OrderDone(Event, name="sales.order_done", version=1, key="order"):
    order: str


class OrderDropped(Event, name="sales.order_dropped", version=1, key="order"):
    order: str


class TakeBook(Command, name="store.take_book", version=1, key="order"):
    order: str


class BookTaken(Event, name="store.book_taken", version=1, key="order"):
    order: str


class NoBook(Event, name="store.no_book", version=1, key="order"):
    order: str


class PutBack(Command, name="store.put_back", version=1, key="order"):
    order: str


class BookPutBack(Event, name="store.book_put_back", version=1, key="order"):
    order: str


class OrderState(BaseModel):
    order: str


saga = Saga("sales.sell", OrderState, key=lambda state: state.order)


@saga.starts
def begin(command: PlaceOrder) -> OrderState:
    return OrderState(order=command.order)


@saga.step(ok=BookTaken, failed=NoBook, timeout="5s")
def take(state: OrderState) -> TakeBook:
    return TakeBook(order=state.order)


@take.undo(ok=BookPutBack)
def untake(state: OrderState) -> PutBack:
    return PutBack(order=state.order)


saga.flow(take)


@saga.completed
def done(state: OrderState) -> OrderDone:
    return OrderDone(order=state.order)


@saga.undone
def dropped(state: OrderState, failure: NoBook | SagaFailure) -> OrderDropped:
    return OrderDropped(order=state.order)


sales = Service("sales")
sales.include(saga)


class Base(DeclarativeBase):
    pass


class Shelf(Base):
    __tablename__ = "shelf"

    sku: Mapped[str] = mapped_column(primary_key=True)
    books: Mapped[int]


class Taken(Base):
    """`is_undone` also for what was undone first: then it must not be done any more."""

    __tablename__ = "taken"

    order: Mapped[str] = mapped_column(primary_key=True)
    is_undone: Mapped[bool] = mapped_column(default=False)


async def take_book(command: TakeBook, tx: Transaction) -> BookTaken | NoBook:
    taken = await tx.session.get(Taken, command.order)
    if taken is not None:
        return (NoBook if taken.is_undone else BookTaken)(order=command.order)
    shelf = await tx.session.get_one(Shelf, "book")
    if shelf.books == 0:
        return NoBook(order=command.order)
    shelf.books -= 1
    tx.session.add(Taken(order=command.order))
    return BookTaken(order=command.order)


broken = Service("store", metadata=Base.metadata)
broken.subscriber(TakeBook)(take_book)


@broken.subscriber(PutBack, name="put_back")
async def put_back_whatever(command: PutBack, tx: Transaction) -> BookPutBack:
    taken = await tx.session.get(Taken, command.order)
    if taken is None or not taken.is_undone:
        await tx.session.merge(Taken(order=command.order, is_undone=True))
        (await tx.session.get_one(Shelf, "book")).books += 1
    return BookPutBack(order=command.order)


corrected = Service("store", metadata=Base.metadata)
corrected.subscriber(TakeBook)(take_book)


@corrected.subscriber(PutBack)
async def put_back(command: PutBack, tx: Transaction) -> BookPutBack:
    taken = await tx.session.get(Taken, command.order)
    if taken is None:
        tx.session.add(Taken(order=command.order, is_undone=True))
    elif not taken.is_undone:
        taken.is_undone = True
        (await tx.session.get_one(Shelf, "book")).books += 1
    return BookPutBack(order=command.order)


async def body(mesh: Mesh, store: Service) -> None:
    @mesh.always
    def no_book_comes_from_nowhere(read):  # type: ignore[no-untyped-def]
        shelf = read(store).get(Shelf, "book")
        out = select(func.count()).select_from(Taken).where(~Taken.is_undone)
        assert shelf is None or shelf.books + read(store).scalar(out) == 1

    await mesh.start(sales, store)
    async with mesh.session(store) as session:
        session.add(Shelf(sku="book", books=1))
    await mesh.publish(PlaceOrder(order="o1"))
    await mesh.publish(PlaceOrder(order="o2"))
