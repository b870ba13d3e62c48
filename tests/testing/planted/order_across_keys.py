"""A service that assumes that an event of one key comes after an event of another.

They are published in that order, and mostly handled in that order. But only messages of one key
have an order, and these two even come to different subscriptions.
"""

from __future__ import annotations

from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from eventmesh import Command, Event, Retry, Service, Transaction, exponential
from eventmesh.testing.mesh import Mesh


class CustomerJoined(Event, name="front.customer_joined", version=1, key="customer"):
    customer: str


class OrderTaken(Event, name="front.order_taken", version=1, key="order"):
    order: str
    customer: str


class OrderFirstTime(Command, name="front.order_first_time", version=1, key="order"):
    order: str
    customer: str


front = Service("front")


@front.subscriber(OrderFirstTime)
async def take(command: OrderFirstTime) -> list[CustomerJoined | OrderTaken]:
    return [
        CustomerJoined(customer=command.customer),
        OrderTaken(order=command.order, customer=command.customer),
    ]


class Base(DeclarativeBase):
    pass


class Customer(Base):
    __tablename__ = "customers"

    customer: Mapped[str] = mapped_column(primary_key=True)


class Invoice(Base):
    __tablename__ = "invoices"

    order: Mapped[str] = mapped_column(primary_key=True)
    is_welcome_price: Mapped[bool]


async def note_customer(event: CustomerJoined, tx: Transaction) -> None:
    tx.session.add(Customer(customer=event.customer))


invoicing = Service("invoicing", metadata=Base.metadata)
invoicing.subscriber(CustomerJoined)(note_customer)


@invoicing.subscriber(OrderTaken, name="invoice")
async def invoice_if_known(event: OrderTaken, tx: Transaction) -> None:
    is_known = await tx.session.get(Customer, event.customer) is not None
    tx.session.add(Invoice(order=event.order, is_welcome_price=is_known))


broken = invoicing

corrected = Service("invoicing", metadata=Base.metadata)
corrected.subscriber(CustomerJoined)(note_customer)


class NotYetKnown(Exception):
    """The order has come before its customer."""


@corrected.subscriber(OrderTaken, retry=Retry(attempts=20, backoff=exponential("1s", cap="1m")))
async def invoice(event: OrderTaken, tx: Transaction) -> None:
    if await tx.session.get(Customer, event.customer) is None:
        raise NotYetKnown(event.customer)
    tx.session.add(Invoice(order=event.order, is_welcome_price=True))


async def body(mesh: Mesh, service: Service) -> None:
    @mesh.eventually
    def who_is_new_has_the_welcome_price(read):  # type: ignore[no-untyped-def]
        assert read(service).get_one(Invoice, "o1").is_welcome_price

    await mesh.start(front, service)
    await mesh.publish(OrderFirstTime(order="o1", customer="ada"))
