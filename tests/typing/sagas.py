"""What type checkers make of a saga: see `public_api` for how this file is checked."""

from __future__ import annotations

from typing import Any, assert_type

from pydantic import BaseModel

from eventmesh import (
    Command,
    DeadLettered,
    Event,
    Retry,
    Saga,
    SagaFailure,
    Service,
    TimedOut,
    UndoRequested,
    constant,
)


class OrderPlaced(Event, name="orders.order_placed", version=1):
    order_id: int
    skus: list[str]


class OrderImported(Event, name="orders.order_imported", version=1):
    order_id: int


class PlaceOrder(Command, name="orders.place_order", version=1):
    order_id: int


class OrderShipped(Event, name="orders.order_shipped", version=1):
    order_id: int


class OrderCancelled(Event, name="orders.order_cancelled", version=1):
    order_id: int
    reason: str


class Reserve(Command, name="stock.reserve", version=1):
    sku: str


class Release(Command, name="stock.release", version=1):
    reservation: int | None


class Reserved(Event, name="stock.reserved", version=1):
    reservation: int


class OutOfStock(Event, name="stock.out_of_stock", version=1):
    sku: str


class Released(Event, name="stock.released", version=1):
    reservation: int


class Approved(Event, name="people.approved", version=1):
    order_id: int


class Denied(Event, name="people.denied", version=1):
    order_id: int


class OrderState(BaseModel):
    order_id: int
    skus: list[str]
    reservation: int = 0


class OtherState(BaseModel):
    pass


# A saga as the documentation writes it.

fulfil = Saga("orders.fulfil", OrderState, version=2, key=lambda state: state.order_id)
assert_type(fulfil, Saga[OrderState])


@fulfil.starts
def begin(event: OrderPlaced) -> OrderState:
    return OrderState(order_id=event.order_id, skus=event.skus)


@fulfil.starts
def begin_otherwise(message: OrderImported | PlaceOrder) -> OrderState:
    return OrderState(order_id=message.order_id, skus=[])


@fulfil.step(
    ok=Reserved,
    failed=OutOfStock,
    timeout="30s",
    retry=Retry(attempts=3, backoff=constant("5s")),
    when=lambda state: bool(state.skus),
)
def reserve(state: OrderState) -> Reserve:
    return Reserve(sku=state.skus[0])


@reserve.done
def keep(state: OrderState, reply: Reserved) -> OrderState:
    return state.model_copy(update={"reservation": reply.reservation})


@reserve.undo(ok=Released, timeout="1m")
def release(state: OrderState, reply: Reserved) -> Release:
    return Release(reservation=reply.reservation)


@fulfil.step(ok=Reserved, failed=[OutOfStock], timeout=None, each=lambda state: state.skus)
def pick(state: OrderState, sku: str) -> Reserve:
    return Reserve(sku=sku)


@pick.undo()
def put_back(state: OrderState, sku: str) -> Release:
    return Release(reservation=state.skus.index(sku))


@pick.done
def keep_pick(state: OrderState, sku: str, reply: Reserved) -> OrderState:
    return state.model_copy(update={"reservation": reply.reservation})


@fulfil.step(ok=Reserved, timeout="1m", each=lambda state: state.skus)
def wrap(state: OrderState, sku: str) -> Reserve:
    return Reserve(sku=sku)


@wrap.undo(ok=Released)
def unwrap(state: OrderState, sku: str, reply: Reserved) -> Release:
    return Release(reservation=reply.reservation)


@wrap.done
def keep_wrap(state: OrderState, reply: Reserved) -> OrderState:
    return state.model_copy(update={"reservation": reply.reservation})


@fulfil.step(ok=Reserved, timeout="1m", each=lambda state: state.skus)
def label(state: OrderState, sku: str) -> Reserve:
    return Reserve(sku=sku)


@label.undo(ok=Released)
def unlabel(state: OrderState, sku: str, reply: Reserved | None) -> Release:
    return Release(reservation=None if reply is None else reply.reservation)


@fulfil.step(ok=Reserved, timeout="1m", each=lambda state: state.skus)
def pack(state: OrderState, sku: str) -> Reserve:
    return Reserve(sku=sku)


@pack.undo(ok=Released)
def unpack(state: OrderState, reply: Reserved) -> Release:
    return Release(reservation=reply.reservation)


@fulfil.step(ok=Reserved, timeout=30)
def count(state: OrderState) -> Reserve:
    return Reserve(sku="")


@count.undo(retry=Retry(attempts=5))
def count_back(state: OrderState, reply: Reserved | None) -> Release:
    return Release(reservation=None if reply is None else reply.reservation)


@fulfil.step(ok=Reserved, timeout="1m", no_undo="it only reads")
def look(state: OrderState) -> Reserve:
    return Reserve(sku="")


approval = fulfil.wait(
    "approval",
    ok=Approved,
    failed=Denied,
    timeout="2d",
    correlate=lambda event: event.order_id,
    when=lambda state: state.order_id > 1,
)


@fulfil.pivot(ok=OrderShipped, failed=[OutOfStock], timeout="2d")
def ship(state: OrderState) -> Reserve:
    return Reserve(sku="")


@fulfil.completed
def closed(state: OrderState) -> OrderShipped | None:
    return OrderShipped(order_id=state.order_id)


@fulfil.undone
def cancelled(
    state: OrderState, failure: OutOfStock | Denied | SagaFailure
) -> OrderCancelled | None:
    match failure:
        case OutOfStock():
            return OrderCancelled(order_id=state.order_id, reason=failure.sku)
        case TimedOut() | DeadLettered() | UndoRequested():
            return OrderCancelled(order_id=state.order_id, reason=failure.reason)
        case _:
            return None


@fulfil.migrate(from_version=1)
def add_skus(state: dict[str, Any]) -> dict[str, Any]:
    return {**state, "skus": []}


fulfil.flow((reserve & pick & wrap & label & pack >> count) >> approval >> look >> ship)
Service("orders").include(fulfil)

# Steps can be called in unit tests.

assert_type(reserve(OrderState(order_id=1, skus=[])), Command)

# A decorated function keeps its own types.

assert_type(keep(OrderState(order_id=1, skus=[]), Reserved(reservation=1)), OrderState)
assert_type(cancelled(OrderState(order_id=1, skus=[]), OutOfStock(sku="")), OrderCancelled | None)
assert_type(closed(OrderState(order_id=1, skus=[])), OrderShipped | None)
assert_type(release(OrderState(order_id=1, skus=[]), Reserved(reservation=1)), Release)
assert_type(put_back(OrderState(order_id=1, skus=["a"]), "a"), Release)
assert_type(unlabel(OrderState(order_id=1, skus=[]), "a", None), Release)

# A time-out must be given.

fulfil.step(ok=Reserved)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
fulfil.pivot(ok=Reserved)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
fulfil.wait("w", ok=Approved, correlate=lambda event: event.order_id)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]

# What answers is an event.

fulfil.step(ok=Reserve, timeout="1m")  # type: ignore[type-var]  # pyright: ignore[reportArgumentType]
fulfil.step(ok=Reserved, failed=Reserve, timeout="1m")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
fulfil.step(ok=Reserved, failed=[OutOfStock, "Denied"], timeout="1m")  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
fulfil.pivot(ok=Reserved, failed=OrderState, timeout="1m")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
reserve.undo(ok=Release)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]

# A flow is made of the steps of sagas with the same state.

fulfil.flow(reserve >> keep)  # type: ignore[operator]  # pyright: ignore[reportOperatorIssue, reportUnknownArgumentType]
fulfil.flow(reserve & "pick")  # type: ignore[operator]  # pyright: ignore[reportOperatorIssue, reportUnknownArgumentType]
fulfil.flow(release)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]

# Functions take the saga's state, and the reply of their step.


@fulfil.starts  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
def wrong_start(event: OrderPlaced) -> OtherState:
    return OtherState()


@fulfil.step(ok=Reserved, timeout="1m", no_undo="none")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
def wrong_state(state: OtherState) -> Reserve:
    return Reserve(sku="")


@fulfil.step(ok=Reserved, timeout="1m", no_undo="none")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
def wrong_result(state: OrderState) -> OutOfStock:
    return OutOfStock(sku="")


@fulfil.step(ok=Reserved, timeout="1m", each=lambda state: state.skus, no_undo="none")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
def wrong_item(state: OrderState, sku: int) -> Reserve:
    return Reserve(sku=str(sku))


@reserve.undo(ok=Released)  # type: ignore[arg-type]  # pyright: ignore[reportCallIssue, reportArgumentType, reportUntypedFunctionDecorator]
def wrong_reply(state: OrderState, reply: OutOfStock) -> Release:
    return Release(reservation=1)


@reserve.undo(ok=Released)  # type: ignore[arg-type]  # pyright: ignore[reportCallIssue, reportArgumentType, reportUntypedFunctionDecorator]
def wrong_undo_state(state: OtherState) -> Release:
    return Release(reservation=1)


@reserve.undo(ok=Released)  # type: ignore[type-var]  # pyright: ignore[reportCallIssue, reportArgumentType, reportUntypedFunctionDecorator]
def wrong_undo_result(state: OrderState) -> Released:
    return Released(reservation=1)


# What undoes an item is told which one, unless it waits for the reply.


@pick.undo()  # type: ignore[arg-type]  # pyright: ignore[reportCallIssue, reportArgumentType, reportUntypedFunctionDecorator]
def back_by_state(state: OrderState) -> Release:
    return Release(reservation=1)


@pick.undo()  # type: ignore[arg-type]  # pyright: ignore[reportCallIssue, reportArgumentType, reportUntypedFunctionDecorator]
def back_by_wrong_item(state: OrderState, sku: int) -> Release:
    return Release(reservation=1)


@pick.undo()  # type: ignore[arg-type]  # pyright: ignore[reportCallIssue, reportArgumentType, reportUntypedFunctionDecorator]
def back_by_wrong_reply(state: OrderState, sku: str, reply: OutOfStock) -> Release:
    return Release(reservation=1)


@reserve.undo()  # type: ignore[arg-type]  # pyright: ignore[reportCallIssue, reportArgumentType, reportUntypedFunctionDecorator]
def back_by_item(state: OrderState, sku: str, reply: Reserved) -> Release:
    return Release(reservation=1)


@pick.done  # type: ignore[arg-type]  # pyright: ignore[reportCallIssue, reportArgumentType, reportUntypedFunctionDecorator]
def wrong_item_folded(state: OrderState, sku: int, reply: Reserved) -> OrderState:
    return state


@reserve.done  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
def item_folded(state: OrderState, sku: str, reply: Reserved) -> OrderState:
    return state


@reserve.done  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
def wrong_fold(state: OrderState, reply: OutOfStock) -> OrderState:
    return state


@reserve.done  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
def wrong_folded(state: OrderState, reply: Reserved) -> OtherState:
    return OtherState()


@fulfil.completed  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
def wrong_completed(state: OtherState) -> OrderShipped:
    return OrderShipped(order_id=1)


@fulfil.undone  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
def wrong_undone(state: OtherState, failure: OutOfStock) -> OrderCancelled:
    return OrderCancelled(order_id=1, reason="")
