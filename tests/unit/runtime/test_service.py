# Annotations are not postponed here: handlers are defined inside tests.
from functools import partial
from typing import Any

import pytest
from sqlalchemy import MetaData
from sqlalchemy.orm import DeclarativeBase

from eventmesh import Service
from eventmesh.contracts.message import Command, Event
from eventmesh.errors import UndeclaredMessage, UsageError
from eventmesh.persistence.database import AsyncSession
from eventmesh.persistence.outbox import Outgoing
from eventmesh.persistence.transaction import Transaction
from eventmesh.runtime.declaring.settings import Settings


class Placed(Event, name="orders.placed", version=1):
    pass


class Place(Command, name="orders.place", version=1):
    pass


class Paid(Event, name="payments.paid", version=1):
    pass


class Pay(Command, name="payments.pay", version=1):
    pass


@pytest.fixture
def orders() -> Service:
    service = Service("orders")
    service.configure(Settings())
    return service


@pytest.mark.parametrize("name", ["", "Orders", "1orders", "or-ders", "or.ders", "orders\n", "ö"])
def test_a_name_that_cannot_start_a_message_name_is_rejected(name: str) -> None:
    with pytest.raises(UsageError, match="cannot be used: write lower-case letters"):
        Service(name)


def test_a_name_that_is_not_text_is_rejected() -> None:
    name: Any = 5
    with pytest.raises(UsageError, match="The service name 5 cannot be used"):
        Service(name)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"timeout": 0}, "timeout=0 would cancel every call"),
        ({"concurrency": True}, "has concurrency=True: give the number"),
        ({"isolated": "no"}, "has isolated='no': write True or False"),
        ({"sources": 5}, "has sources=5: write a list"),
    ],
    ids=["timeout", "concurrency", "isolated", "sources"],
)
def test_an_option_that_a_subscriber_cannot_have_is_rejected(
    orders: Service, options: dict[str, Any], why: str
) -> None:
    async def handle(event: Placed) -> None: ...

    with pytest.raises(UsageError, match=why):
        orders.subscriber(**options)(handle)


def test_what_is_not_a_function_cannot_be_a_handler(orders: Service) -> None:
    async def handle(event: Placed, times: int) -> None: ...

    with pytest.raises(UsageError, match=r"functools.partial.* cannot be a handler. Write an"):
        orders.subscriber(Placed)(partial(handle, times=3))


def test_metadata_that_is_the_class_of_the_tables_is_rejected() -> None:
    class Base(DeclarativeBase): ...

    base: Any = Base
    with pytest.raises(UsageError, match=r"write the MetaData .* metadata=Base.metadata"):
        Service("orders", metadata=base)


def test_a_publisher_of_a_message_instead_of_its_class_is_rejected(orders: Service) -> None:
    message: Any = Place()
    with pytest.raises(UsageError, match=r"Write service.publisher\(SomeEvent\)"):
        orders.publisher(message)


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ({"retry": 3}, r"note has retry=3: write a policy, such as Retry\(attempts=3\)"),
        ({"concurrency": "8"}, r"note has concurrency='8': give the number"),
    ],
    ids=["retry", "concurrency"],
)
def test_an_option_of_the_wrong_type_is_rejected_when_it_is_declared(
    orders: Service, option: dict[str, Any], words: str
) -> None:
    async def note(event: Paid) -> None: ...

    with pytest.raises(UsageError, match=words):
        orders.subscriber(Paid, **option)(note)


def test_the_subscriber_decorator_returns_the_function_unchanged(orders: Service) -> None:
    async def handle(event: Paid) -> None: ...

    assert orders.subscriber(Paid)(handle) is handle


def test_a_subscription_is_named_after_the_service_and_the_function(orders: Service) -> None:
    @orders.subscriber(Paid)
    async def note_payment(event: Paid) -> None: ...

    assert list(orders.handlers) == ["orders.note_payment"]


def test_a_renamed_handler_can_keep_its_subscription_with_name(orders: Service) -> None:
    @orders.subscriber(Paid, name="note_payment")
    async def another_name(event: Paid) -> None: ...

    assert list(orders.handlers) == ["orders.note_payment"]


def test_two_handlers_with_the_same_name_are_rejected(orders: Service) -> None:
    @orders.subscriber(Paid)
    async def handle(event: Paid) -> None: ...

    async def other(event: Placed) -> None: ...

    with pytest.raises(UsageError, match=r"two handlers of the name 'orders.handle'"):
        orders.subscriber(Placed, name="handle")(other)
    assert orders.handlers["orders.handle"].models == {"payments.paid": Paid}


def test_an_event_may_have_several_handlers(orders: Service) -> None:
    @orders.subscriber(Paid)
    async def one(event: Paid) -> None: ...

    @orders.subscriber(Paid)
    async def two(event: Paid) -> None: ...

    assert len(orders.handlers) == 2


def test_a_command_may_have_only_one_handler(orders: Service) -> None:
    @orders.subscriber(Place)
    async def one(command: Place) -> None: ...

    async def two(command: Place | Paid) -> None: ...

    with pytest.raises(
        UsageError,
        match=r"orders.place has two handlers, orders.one and orders.two: .*handled once",
    ):
        orders.subscriber()(two)


def test_a_command_of_another_service_cannot_be_handled(orders: Service) -> None:
    async def handle(command: Pay) -> None: ...

    with pytest.raises(UsageError, match=r"cannot handle payments.pay: .*only its owner handles"):
        orders.subscriber(Pay)(handle)


def test_an_event_of_another_service_cannot_be_published(orders: Service) -> None:
    with pytest.raises(UsageError, match=r"'orders' cannot publish payments.paid"):
        orders.publisher(Paid)


def test_an_event_of_another_service_cannot_be_returned(orders: Service) -> None:
    async def handle(command: Place) -> Paid: ...

    with pytest.raises(UsageError, match=r"'orders' cannot publish payments.paid"):
        orders.subscriber(Place)(handle)
    assert orders.handlers == {}


def test_a_command_of_another_service_can_be_sent(orders: Service) -> None:
    assert orders.publisher(Pay).message is Pay
    assert orders.registry.publishes(Pay)


def test_the_return_annotation_of_a_handler_declares_published_messages(orders: Service) -> None:
    @orders.subscriber(Place)
    async def place(command: Place) -> Placed | Pay: ...

    assert orders.registry.publishes(Placed)
    assert orders.registry.publishes(Pay)
    assert not orders.registry.publishes(Place)


async def test_a_publisher_rejects_other_messages(orders: Service) -> None:
    with pytest.raises(UsageError, match="publisher of Placed was given a Place"):
        await orders.publisher(Placed).publish(Place())


@pytest.mark.parametrize(
    ("declare", "needs"),
    [
        (lambda service: None, False),
        (lambda service: service.subscriber(Paid)(plain), False),
        (lambda service: service.subscriber(Paid)(transactional), True),
        (lambda service: service.publisher(Placed), True),
    ],
)
def test_a_service_needs_a_database_only_if_it_publishes_or_is_transactional(
    orders: Service, declare: Any, needs: bool
) -> None:
    declare(orders)
    assert orders.needs_database is needs


async def plain(event: Paid) -> None: ...
async def transactional(event: Paid, tx: Transaction) -> None: ...


def test_a_service_with_its_own_tables_needs_a_database() -> None:
    assert Service("orders", metadata=MetaData()).needs_database


def test_isolation_and_retries_are_set_per_handler(orders: Service) -> None:
    orders.subscriber(Paid, isolated=True)(plain)
    handler = orders.handlers["orders.plain"]
    assert handler.isolated
    assert handler.retry.attempts == 8


def test_an_extension_can_add_handlers(orders: Service) -> None:
    class Extension:
        def extend(self, service: Service) -> None:
            service.subscriber(Paid)(plain)

    orders.include(Extension())
    assert list(orders.handlers) == ["orders.plain"]


# What a transaction accepts, before any database is used


def open_transaction(service: Service, sent: list[Outgoing] | None = None) -> Transaction:
    keep = [] if sent is None else sent
    return Transaction(AsyncSession(), service.sender(), keep.append)


def test_an_undeclared_message_cannot_be_published(orders: Service) -> None:
    with pytest.raises(UndeclaredMessage, match=r"orders.placed v1 without .*publisher\(Placed\)"):
        open_transaction(orders).publish(Placed())


def test_publish_accepts_only_events_and_send_only_commands(orders: Service) -> None:
    orders.publisher(Placed)
    orders.publisher(Pay)
    sent: list[Outgoing] = []
    transaction = open_transaction(orders, sent)
    with pytest.raises(UsageError, match=r"payments.pay v1 is not an event: use send"):
        transaction.publish(Pay())
    with pytest.raises(UsageError, match=r"orders.placed v1 is not a command: use publish"):
        transaction.send(Placed())
    transaction.publish(Placed())
    transaction.send(Pay(), delay="2m")
    assert [(each.envelope.name, each.delay) for each in sent] == [
        ("orders.placed", 0.0),
        ("payments.pay", 120.0),
    ]


def test_a_value_that_is_not_a_message_is_rejected(orders: Service) -> None:
    transaction = open_transaction(orders)
    for accept in (transaction.publish, transaction.send, transaction.add):
        with pytest.raises(UsageError, match=r"^A str is not a message: pass an instance of"):
            accept("text")
        with pytest.raises(UsageError, match=r"^The class Placed was passed .* Placed\(…\)"):
            accept(Placed)
