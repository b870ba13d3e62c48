"""`handle` calls a handler as a worker does, and tells what it published."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Annotated
from uuid import UUID

import pytest
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from eventmesh import Command, Depends, Envelope, Event, Reject, Service, Transaction
from eventmesh.clock import SystemClock
from eventmesh.errors import UndeclaredMessage, UnreadableMessage, UsageError
from eventmesh.testing.clock import ManualClock
from eventmesh.testing.unit import Delayed, handle
from eventmesh.wire.envelope import seal
from services.orders import contracts as orders_contracts
from services.orders.saga import reserve
from services.payments import models as payments_models
from services.payments.contracts import (
    CapturePayment,
    OrderCancelled,
    PaymentCaptured,
    PaymentDeclined,
    RefundPayment,
)
from services.payments.handlers import capture, refund
from services.payments.loyalty import give_points, take_back

ORDER = UUID(int=1)
CARD = "4000"


class Base(DeclarativeBase):
    pass


class Account(Base):
    __tablename__ = "accounts"

    owner: Mapped[str] = mapped_column(primary_key=True)
    balance: Mapped[int]


class Deposit(Command, name="bank.deposit", version=1, key="owner"):
    owner: str
    amount: int


class Deposited(Event, name="bank.deposited", version=1, key="owner"):
    owner: str
    balance: int


class Reminder(Event, name="bank.reminder", version=1, key="owner"):
    owner: str


class Remind(Command, name="letters.remind", version=1, key="owner"):
    owner: str


class Undeclared(Event, name="bank.undeclared", version=1):
    pass


class Placed(Event, name="shop.placed", version=1):
    number: int


bank = Service("bank")
for sent in (Reminder, Remind):
    bank.publisher(sent)


@bank.subscriber(Deposit)
async def deposit(command: Deposit, tx: Transaction) -> Deposited | None:
    if command.amount < 0:
        raise Reject("the amount is negative")
    if not command.amount:
        return None
    account = await tx.session.get(Account, command.owner)
    if account is None:
        account = Account(owner=command.owner, balance=0)
        tx.session.add(account)
    account.balance += command.amount
    return Deposited(owner=command.owner, balance=account.balance)


@bank.subscriber()
async def remind(event: Deposited, tx: Transaction) -> list[Reminder]:
    tx.send(Remind(owner=event.owner))
    tx.publish(Reminder(owner=event.owner), delay="2d")
    return [Reminder(owner="all")]


def rate(message: Placed) -> int:
    return message.number + 1


@bank.subscriber(name="priced")
async def price(
    event: Placed, envelope: Envelope, rate: Annotated[int, Depends(rate)], tx: Transaction
) -> Reminder:
    assert envelope.name == "shop.placed"
    return Reminder(owner=f"{event.number * rate} at {tx.now():%H:%M}")


@bank.subscriber(name="many")
async def book(events: list[Reminder], envelopes: list[Envelope], tx: Transaction) -> None:
    for event, envelope in zip(events, envelopes, strict=True):
        assert envelope.key == event.owner
        tx.send(Remind(owner=event.owner), cause=event)


@bank.subscriber(name="plain")
async def note(event: Placed) -> None: ...


@bank.subscriber(name="careless")
async def publish_undeclared(event: Placed, tx: Transaction) -> None:
    tx.publish(Undeclared())


@pytest.fixture
async def session() -> AsyncIterator[AsyncSession]:
    engine = create_async_engine("sqlite+aiosqlite://")
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
        await connection.run_sync(payments_models.Base.metadata.create_all)
    async with AsyncSession(engine) as made:
        yield made
    await engine.dispose()


async def test_what_a_handler_returns_is_published_and_its_changes_are_in_the_session(
    session: AsyncSession,
) -> None:
    result = await handle(deposit, Deposit(owner="ada", amount=5), session=session)
    assert result.returned == Deposited(owner="ada", balance=5)
    assert result.published(Deposited) == [result.returned]
    result = await handle(deposit, Deposit(owner="ada", amount=2), session=session)
    assert result.published(Deposited) == [Deposited(owner="ada", balance=7)]
    account = await session.get_one(Account, "ada")
    assert account.balance == 7


async def test_a_handler_that_returns_nothing_publishes_nothing() -> None:
    result = await handle(deposit, Deposit(owner="ada", amount=0))
    assert (result.returned, result.outgoing) == (None, ())
    assert result.published(Deposited) == []


async def test_what_is_sent_and_what_is_delayed_is_known_by_kind() -> None:
    result = await handle(remind, Deposited(owner="ada", balance=1))
    assert result.sent(Remind) == [Remind(owner="ada")]
    assert result.published(Reminder) == [Reminder(owner="ada"), Reminder(owner="all")]
    assert result.delayed(Reminder) == [Delayed(Reminder(owner="ada"), timedelta(days=2))]
    assert result.delayed(Remind) == []
    with pytest.raises(UsageError, match="Remind is a command: write sent"):
        result.published(Remind)  # type: ignore[type-var]
    with pytest.raises(UsageError, match="Reminder is an event: write published"):
        result.sent(Reminder)  # type: ignore[type-var]


async def test_what_is_published_has_the_message_as_its_cause() -> None:
    placed = seal(Placed(number=1), source="shop", clock=SystemClock())
    result = await handle(price, placed)
    [outgoing] = result.outgoing
    assert outgoing.envelope.attributes["causationid"] == placed.id
    assert outgoing.envelope.correlation_id == placed.correlation_id


async def test_dependencies_envelope_and_time_are_filled_in(session: AsyncSession) -> None:
    clock = ManualClock(datetime(2026, 1, 1, 7, 30, tzinfo=UTC))
    result = await handle(price, Placed(number=5), session=session, clock=clock)
    assert result.published(Reminder) == [Reminder(owner="30 at 07:30")]


async def test_a_batch_handler_takes_a_list_and_says_what_caused_what() -> None:
    result = await handle(book, [Reminder(owner="ada"), Reminder(owner="bob")])
    assert result.sent(Remind) == [Remind(owner="ada"), Remind(owner="bob")]
    assert len({each.envelope.attributes["causationid"] for each in result.outgoing}) == 2
    assert (await handle(book, Reminder(owner="ada"))).sent(Remind) == [Remind(owner="ada")]
    with pytest.raises(UsageError, match="many was called with an empty list"):
        await handle(book, [])
    with pytest.raises(UsageError, match="deposit takes one message at a time"):
        await handle(deposit, [Deposit(owner="ada", amount=1)])


async def test_what_a_handler_raises_is_raised() -> None:
    with pytest.raises(Reject, match="the amount is negative"):
        await handle(deposit, Deposit(owner="ada", amount=-1))


async def test_what_the_database_refuses_is_raised(session: AsyncSession) -> None:
    service = Service("bank")

    @service.subscriber()
    async def open_account(command: Deposit, session: AsyncSession) -> None:
        session.add(Account(owner=command.owner))

    with pytest.raises(IntegrityError):
        await handle(open_account, Deposit(owner="ada", amount=1), session=session, service=service)


async def test_what_a_rolled_back_savepoint_published_is_dropped(session: AsyncSession) -> None:
    service = Service("bank")
    service.publisher(Reminder)

    @service.subscriber()
    async def try_twice(event: Placed, tx: Transaction) -> None:
        for owner in ("ada", "bob"):
            savepoint = await tx.session.begin_nested()
            tx.publish(Reminder(owner=owner))
            await (savepoint.rollback() if owner == "ada" else savepoint.commit())

    result = await handle(try_twice, Placed(number=1), session=session, service=service)
    assert result.published(Reminder) == [Reminder(owner="bob")]


async def test_the_transaction_is_the_callers(session: AsyncSession) -> None:
    async with session.begin():
        await handle(deposit, Deposit(owner="ada", amount=5), session=session)
    await handle(deposit, Deposit(owner="ada", amount=5), session=session)
    await session.rollback()
    assert (await session.get_one(Account, "ada")).balance == 5


# As a worker does --------------------------------------------------------------------------------


async def test_a_message_that_was_not_declared_is_an_error() -> None:
    with pytest.raises(UndeclaredMessage, match=r"Service 'bank' published bank.undeclared v1 wit"):
        await handle(publish_undeclared, Placed(number=1))


async def test_a_returned_value_that_is_not_a_message_is_an_error() -> None:
    service = Service("bank")

    @service.subscriber()
    async def answer(event: Placed, tx: Transaction):  # type: ignore[no-untyped-def]
        return 42

    with pytest.raises(UsageError, match="it returned int, and a handler returns an Event"):
        await handle(answer, Placed(number=1), service=service)


async def test_a_message_that_a_plain_handler_returns_is_an_error() -> None:
    service = Service("bank")
    service.publisher(Reminder)

    @service.subscriber()
    async def answer(event: Placed):  # type: ignore[no-untyped-def]
        return Reminder(owner="ada")

    with pytest.raises(UsageError, match="returned a message without a return annotation"):
        await handle(answer, Placed(number=1), service=service)


async def test_a_publisher_of_the_service_inside_a_handler_is_an_error() -> None:
    service = Service("bank")
    publisher = service.publisher(Reminder)

    @service.subscriber()
    async def announce(event: Placed, tx: Transaction) -> None:
        await publisher.publish(Reminder(owner="ada"))

    with pytest.raises(UsageError, match="A handler of service 'bank' opened another transaction"):
        await handle(announce, Placed(number=1), service=service)


async def test_a_handler_that_ends_the_transaction_is_an_error(session: AsyncSession) -> None:
    service = Service("bank")

    @service.subscriber()
    async def commit(event: Placed, session: AsyncSession) -> None:
        await session.commit()

    with pytest.raises(UsageError, match=r"The handler of bank.commit ended the transaction"):
        await handle(commit, Placed(number=1), session=session, service=service)


async def test_publishing_after_the_handler_has_returned_is_an_error() -> None:
    service = Service("bank")
    service.publisher(Reminder)
    kept: list[Transaction] = []

    @service.subscriber()
    async def keep(event: Placed, tx: Transaction) -> None:
        kept.append(tx)

    await handle(keep, Placed(number=1), service=service)
    with pytest.raises(UsageError, match="with a transaction that has ended"):
        kept[0].publish(Reminder(owner="ada"))


async def test_a_message_is_read_by_the_model_of_the_handler() -> None:
    class TheirPlaced(Event, name="shop.placed", version=1):
        number: int
        customer: str

    result = await handle(price, TheirPlaced(number=2, customer="ada"))
    assert result.published(Reminder)[0].owner.startswith("6 at")

    class Misfit(Event, name="shop.placed", version=1):
        number: str

    with pytest.raises(UnreadableMessage, match="number"):
        await handle(price, Misfit(number="many"))


async def test_an_event_of_a_foreign_source_is_an_error() -> None:
    envelope = seal(Placed(number=1), source="mallory", clock=SystemClock())
    with pytest.raises(UnreadableMessage, match="comes from the source '/mallory'"):
        await handle(price, envelope)
    with pytest.raises(UnreadableMessage, match="not a CloudEvents message"):
        await handle(price, replace(envelope, attributes={"type": "shop.placed"}))


# What is given wrongly ---------------------------------------------------------------------------


async def test_a_handler_that_needs_a_session_says_so() -> None:
    with pytest.raises(UsageError, match=r"bank.deposit uses its session: give it one of your own"):
        await handle(deposit, Deposit(owner="ada", amount=1))


async def test_what_is_not_an_async_session_is_an_error() -> None:
    with pytest.raises(UsageError, match="'bank', which is not an AsyncSession"):
        await handle(deposit, Deposit(owner="ada", amount=1), session="bank")  # type: ignore[arg-type]


async def test_a_message_that_the_handler_does_not_take_is_an_error() -> None:
    with pytest.raises(UsageError, match=r"bank.deposit takes bank.deposit, and not shop.placed"):
        await handle(deposit, Placed(number=1))
    with pytest.raises(UsageError, match="The class Placed was passed instead of an instance"):
        await handle(price, Placed)  # type: ignore[arg-type]


async def test_a_function_that_is_not_a_handler_is_an_error() -> None:
    async def other(event: Placed) -> None: ...

    with pytest.raises(UsageError, match="other, which is not a handler of its module: declare it"):
        await handle(other, Placed(number=1))
    with pytest.raises(UsageError, match="other, which is not a handler of service 'bank'"):
        await handle(other, Placed(number=1), service=bank)


async def test_a_step_of_a_saga_is_called_as_a_function() -> None:
    with pytest.raises(UsageError, match=r"reserve, which is a step of a saga: call it as a func"):
        await handle(reserve, Placed(number=1))


async def test_a_handler_of_several_services_needs_the_service(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    second = Service("second")
    second.subscriber()(note)
    monkeypatch.setitem(globals(), "second", second)
    with pytest.raises(UsageError, match="note is a handler of several services: bank, second"):
        await handle(note, Placed(number=1))
    assert (await handle(note, Placed(number=1), service=second)).outgoing == ()


# The shop ----------------------------------------------------------------------------------------


async def test_a_payment_is_captured_once_and_declined_above_the_limit(
    session: AsyncSession,
) -> None:
    command = CapturePayment(order_id=ORDER, card=CARD, amount=Decimal(200))
    first, second = [await handle(capture, command, session=session) for _ in range(2)]
    assert len(first.published(PaymentCaptured)) == 1
    assert first.published(PaymentCaptured) == second.published(PaymentCaptured)
    another = command.model_copy(update={"order_id": UUID(int=2)})
    declined = await handle(capture, another, session=session)
    assert declined.published(PaymentDeclined) == [
        PaymentDeclined(order_id=UUID(int=2), reason="card limit reached")
    ]
    with pytest.raises(Reject, match="there is no payment"):
        await handle(refund, RefundPayment(order_id=ORDER, payment_id=ORDER), session=session)


async def test_a_reaction_and_its_undo_are_called_with_what_was_recorded(
    session: AsyncSession,
) -> None:
    placed = orders_contracts.OrderPlaced(
        order_id=ORDER, card=CARD, sku="book", quantity=1, amount=Decimal(12)
    )
    reacted = await handle(give_points, placed, session=session)
    assert reacted.returned == (CARD, 12)
    account = await session.get_one(payments_models.LoyaltyAccount, CARD)
    cancelled = OrderCancelled(order_id=ORDER)
    await handle(take_back, cancelled, reacted.returned, session=session)
    await session.refresh(account)
    assert account.points == 0
    with pytest.raises(UsageError, match="takes also what the reaction has returned; 0 further"):
        await handle(take_back, cancelled, session=session)
    with pytest.raises(UsageError, match="takes the message alone; 1 further values were given"):
        await handle(give_points, placed, 5, session=session)
    with pytest.raises(UsageError, match=r"takes orders.order_placed, and not orders.order_canc"):
        await handle(give_points, cancelled, session=session)
