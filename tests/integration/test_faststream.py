"""A FastStream app as a service of the mesh, on RabbitMQ and on Redis, with a real service of
EventMesh on the other side."""

from __future__ import annotations

import asyncio
import gc
import json
import time
import uuid
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import aio_pika
import pytest
import structlog
from faststream import BaseMiddleware, FastStream
from faststream.exceptions import AckMessage, RejectMessage
from faststream.rabbit import RabbitBroker
from faststream.redis import RedisBroker, StreamSub
from pamqp.header import ContentHeader
from redis.asyncio import Redis
from sqlalchemy import select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from eventmesh import Command, Event, Reject, Retry, Service, Settings, constant
from eventmesh import Transaction as MeshTransaction
from eventmesh.clock import SystemClock
from eventmesh.contracts.locks.freezing import freeze
from eventmesh.errors import UndeclaredMessage, Unreachable, UsageError
from eventmesh.integrations.faststream.annotations import Envelope, Session, Transaction
from eventmesh.integrations.faststream.rabbit import RabbitMesh
from eventmesh.integrations.faststream.redis import RedisMesh
from eventmesh.persistence import pauses
from eventmesh.runtime.consuming import broker_dead_letters, pausing
from eventmesh.runtime.consuming.worker import Worker
from eventmesh.transports.base import DeadLetter, Subscription, Transport, publish_or_raise
from eventmesh.transports.factory import open_transport
from eventmesh.transports.rabbitmq import upkeep as amqp_upkeep
from eventmesh.transports.rabbitmq.topology import Topology
from eventmesh.wire.cloudevents import to_fields, to_headers
from eventmesh.wire.envelope import Envelope as MeshEnvelope
from eventmesh.wire.envelope import seal
from tests.support.traced import Traced, ids, linked

TIMEOUT_SECONDS = 60.0
"""Seconds after which a test fails that waits for something."""

VISIBILITY = 60.0
"""Seconds. A process that stands still loses no message meanwhile, however slow the machine is."""

SOON_VISIBLE = pytest.mark.parametrize("visibility", [2.0])
"""For tests of what is delivered again."""

STOP_SECONDS = 3600.0
"""For how long FastStream would wait for handlers that do not end when the app stops."""

DELAY = 0.15
SOON = Retry(attempts=3, backoff=constant(f"{DELAY}s"), jitter=0)
SEND_INVOICE = "billing.send_invoice"

pytestmark = pytest.mark.filterwarnings("error")


class Base(DeclarativeBase):
    pass


class Invoice(Base):
    """An invoice. There is no unique constraint: only the inbox prevents a second one."""

    __tablename__ = "invoices"

    number: Mapped[int] = mapped_column(primary_key=True)
    order: Mapped[str]
    currency: Mapped[str] = mapped_column(default="")


class OtherBase(DeclarativeBase):
    pass


class Receipt(OtherBase):
    __tablename__ = "receipts"

    number: Mapped[int] = mapped_column(primary_key=True)
    order: Mapped[str]


class OrderPlaced(Event, name="orders.order_placed", version=2, key="order"):
    """The version that billing reads."""

    order: str
    currency: str


@OrderPlaced.upcaster(from_version=1)
def add_currency(data: dict[str, Any]) -> dict[str, Any]:
    return data | {"currency": "USD"}


class OrderPlacedOnce(Event, name="orders.order_placed", version=1, key="order"):
    """The version that orders used to write."""

    order: str


class OrderPlacedLater(Event, name="orders.order_placed", version=3, key="order"):
    """The version that orders writes now."""

    order: str
    currency: str
    note: str = ""


class OrderClosed(Event, name="orders.order_closed", version=1, key="order"):
    order: str


class InvoiceSent(Event, name="billing.invoice_sent", version=1, key="order"):
    order: str


class Charge(Command, name="billing.charge", version=1, key="order"):
    order: str


class Unheard(Event, name="billing.unheard", version=1):
    pass


async def until(condition: Callable[[], Awaitable[Any]], what: str) -> Any:
    """Wait for the first true result of the condition."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not (result := await condition()):
        assert time.monotonic() < deadline, f"waited {TIMEOUT_SECONDS:g} s for {what}"
        await asyncio.sleep(0.02)
    return result


class Notes(BaseMiddleware):
    """An outer middleware that records which messages arrive and with which error each ends."""

    received: list[str]

    async def consume_scope(self, call_next: Any, msg: Any) -> Any:
        self.received.append("")
        try:
            return await call_next(msg)
        except Exception as error:
            self.received[-1] = str(error)
            raise


@dataclass
class Stage:
    """A billing service in a FastStream app, its broker, and what the tests observe."""

    kind: str
    settings: Settings
    service: Service
    broker: Any
    mesh: Any
    app: FastStream
    transport: Transport
    calls: list[str] = field(default_factory=list)
    received: list[str] = field(default_factory=list)

    def listen(self) -> None:
        """Record what FastStream receives, in a middleware around that of the mesh."""
        self.broker.insert_middleware(type("Noting", (Notes,), {"received": self.received}))

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with self.mesh.lifespan():
            await self.app.start()
            try:
                yield
            finally:
                async with asyncio.timeout(TIMEOUT_SECONDS):
                    await self.app.stop()

    @property
    def subscription(self) -> Subscription:
        return self.service.handlers[SEND_INVOICE].subscription

    def place(self, order: str, message: type[Event] = OrderPlaced, **more: str) -> MeshEnvelope:
        """The envelope of a new message from orders."""
        given = {"order": order, "currency": "EUR"} | more
        fields = {name: value for name, value in given.items() if name in message.model_fields}
        return seal(message(**fields), source="orders", clock=SystemClock())

    async def publish(self, *envelopes: MeshEnvelope) -> None:
        await publish_or_raise(self.transport, envelopes)

    async def publish_raw(self, attributes: dict[str, str], data: bytes) -> None:
        """Publish these attributes and data, valid or not."""
        envelope = MeshEnvelope(attributes, data)
        if self.kind == "amqp":
            async with await aio_pika.connect(self.settings.broker_url) as connection:
                channel = await connection.channel()
                exchange = await channel.get_exchange(self.settings.broker_prefix)
                message = aio_pika.Message(data, headers=dict(to_headers(envelope)))
                await exchange.publish(message, "orders.order_placed")
        else:
            async with Redis.from_url(self.settings.broker_url) as redis:
                stream = f"{self.settings.broker_prefix}:stream:orders.order_placed"
                await redis.xadd(stream, {**to_fields(envelope)})

    async def invoices(self) -> list[tuple[str, str]]:
        database = await self.service.database()
        async with database.connection() as connection:
            rows = await connection.execute(
                select(Invoice.order, Invoice.currency).order_by(Invoice.number)
            )
            return [(order, currency) for order, currency in rows]

    async def invoiced(self, *orders: str) -> list[tuple[str, str]]:
        """Wait until each of these orders has an invoice; returns all invoices."""

        async def there() -> list[tuple[str, str]]:
            found = await self.invoices()
            return found if {order for order, _ in found} >= set(orders) else []

        found: list[tuple[str, str]] = await until(there, f"invoices for {orders}")
        return found

    async def letters(self, count: int = 1) -> Sequence[DeadLetter]:
        """Wait for this number of dead letters."""

        async def there() -> Sequence[DeadLetter]:
            found = await self.transport.dead_letters(self.subscription, limit=100)
            return found if len(found) >= count else ()

        found: Sequence[DeadLetter] = await until(there, f"{count} dead letter(s)")
        return found

    async def settled(self, *, dead: int = 0) -> None:
        """Wait until no message of the subscription waits and it has this many dead letters.
        RabbitMQ counts letters again only some time after they were listed."""

        async def nothing_waits() -> bool:
            stats = await self.transport.stats(self.subscription)
            waiting = (stats.ready, stats.delayed or 0, stats.in_flight or 0)
            return not any(waiting) and stats.dead == dead

        await until(nothing_waits, f"an empty subscription with {dead} dead letters")


@pytest.fixture(params=["amqp", "redis"])
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def visibility() -> float:
    return VISIBILITY


@pytest.fixture
async def stage(
    kind: str, durable_url: Callable[[str], str], tmp_path: Path, visibility: float
) -> AsyncIterator[Stage]:
    settings = Settings(
        broker_url=durable_url(kind),
        broker_prefix=f"t{uuid.uuid4().hex[:12]}",
        visibility_timeout=visibility,
        schemas=tmp_path / "schemas",
        lease_time=0.5,
        database_urls={name: f"sqlite:///{tmp_path}/{name}.db" for name in ("billing", "orders")},
    )
    service = Service("billing", metadata=Base.metadata)
    service.configure(settings)
    brokers: dict[str, Any] = {"amqp": RabbitBroker, "redis": RedisBroker}
    broker = brokers[kind](settings.broker_url, graceful_timeout=STOP_SECONDS)
    mesh = {"amqp": RabbitMesh, "redis": RedisMesh}[kind](service, broker)
    untouched = not structlog.is_configured()
    async with open_transport(
        settings.broker_url, service.clock, settings.transport_options
    ) as transport:
        yield Stage(
            kind, settings, service, broker, mesh, FastStream(broker, logger=None), transport
        )
    if untouched:  # the mesh has set up the broker
        structlog.reset_defaults()


def invoicing(stage: Stage, **options: Any) -> None:
    """Declare the handler that most tests use."""

    @stage.mesh.subscriber(OrderPlaced, **options)
    async def send_invoice(order: OrderPlaced, tx: Transaction) -> None:
        stage.calls.append(order.order)
        tx.session.add(Invoice(order=order.order, currency=order.currency))


@asynccontextmanager
async def orders_worker(stage: Stage) -> AsyncIterator[list[str]]:
    """An EventMesh worker of the service orders; yields the invoices that it was notified of."""
    service = Service("orders", metadata=OtherBase.metadata)
    service.configure(stage.settings)
    notified: list[str] = []

    @service.subscriber(InvoiceSent)
    async def note(event: InvoiceSent, tx: MeshTransaction) -> None:
        notified.append(event.order)
        tx.session.add(Receipt(order=event.order))

    stop = asyncio.Event()
    async with open_transport(
        stage.settings.broker_url, service.clock, stage.settings.transport_options
    ) as transport:
        worker = Worker([service], transport, stage.settings, service.clock)
        running = asyncio.create_task(worker.run(stop))
        try:
            await asyncio.wait_for(worker.ready.wait(), TIMEOUT_SECONDS)
            yield notified
        finally:
            stop.set()
            await running


# Consuming


async def test_a_message_that_is_published_several_times_takes_effect_once(stage: Stage) -> None:
    invoicing(stage)
    envelope = stage.place("a")
    async with stage.running():
        await stage.publish(envelope, envelope)
        await stage.publish(envelope, stage.place("b"))
        assert await stage.invoiced("a", "b") == [("a", "EUR"), ("b", "EUR")]
        await stage.settled()
    assert stage.calls == ["a", "b"]
    assert await stage.invoices() == [("a", "EUR"), ("b", "EUR")]


async def test_messages_published_before_the_app_first_ran_are_delivered(stage: Stage) -> None:
    invoicing(stage)
    await stage.publish(stage.place("early"))
    async with stage.running():
        await stage.invoiced("early")


class FailsAfterCommit(BaseMiddleware):
    """An outer middleware that fails once, after the transaction was committed."""

    failed = 0

    async def consume_scope(self, call_next: Any, msg: Any) -> Any:
        result = await call_next(msg)
        if not type(self).failed:
            type(self).failed += 1
            raise ConnectionResetError("between the commit and the acknowledgement")
        return result


@SOON_VISIBLE
async def test_a_committed_but_unacknowledged_message_has_no_second_effect(
    stage: Stage,
) -> None:
    dies = type("Dies", (FailsAfterCommit,), {"failed": 0})
    stage.broker.insert_middleware(dies)
    invoicing(stage)
    async with stage.running():
        await stage.publish(stage.place("a"))
        await stage.invoiced("a")
        await stage.settled()  # it was redelivered, and then acknowledged
    assert dies.failed == 1
    assert stage.calls == ["a"]
    assert await stage.invoices() == [("a", "EUR")]


@pytest.mark.parametrize(
    ("attributes", "data", "reason"),
    [
        ({}, b"\x00\xff garbage", "not a CloudEvents message"),
        ({"huge": "x" * 130_900}, b"{}", "CloudEvents"),
        (
            {"id": "1", "source": "/orders", "type": "orders.order_placed", "specversion": "1.0"},
            b"{}",
            "does not name a version",
        ),
    ],
)
async def test_an_unreadable_message_is_dead_lettered(
    stage: Stage, attributes: dict[str, str], data: bytes, reason: str
) -> None:
    invoicing(stage)
    async with stage.running():
        await stage.publish_raw(attributes, data)
        await stage.publish(stage.place("good"))
        await stage.invoiced("good")
        [letter] = await stage.letters()
        await stage.settled(dead=1)
    assert reason in letter.reason
    assert letter.envelope.data == data
    assert letter.attempts == 1
    assert stage.calls == ["good"]


async def test_an_event_from_another_source_is_accepted_if_the_subscriber_names_that_source(
    stage: Stage,
) -> None:
    invoicing(stage, sources=["/bridge"])

    async def publish_from(source: str, order: str) -> None:
        placed = stage.place(order)
        await stage.publish(MeshEnvelope({**placed.attributes, "source": source}, placed.data))

    async with stage.running():
        await publish_from("/elsewhere", "forged")
        await publish_from("/bridge", "bridged")
        await stage.invoiced("bridged")
        [letter] = await stage.letters()
    assert "comes from the source '/elsewhere'" in letter.reason
    assert stage.calls == ["bridged"]


@pytest.mark.parametrize("kind", ["redis"])
@pytest.mark.parametrize(
    "fields",
    [{"parcel": b"1 x\n[1,2]\n{}"}, {"parcel": b"\xff"}, {"x": "y"}, {b"\xff": b"\xff"}],
)
async def test_an_invalid_retry_is_dead_lettered(stage: Stage, fields: dict[Any, Any]) -> None:
    invoicing(stage)
    retries = f"{stage.settings.broker_prefix}:retry:{stage.subscription.name}"
    async with stage.running(), Redis.from_url(stage.settings.broker_url) as redis:
        await redis.xadd(retries, fields)
        await stage.publish(stage.place("good"))
        await stage.invoiced("good")
        [letter] = await stage.letters()
        assert letter.reason
        await stage.settled(dead=1)
    assert stage.calls == ["good"]


async def test_data_that_is_not_valid_is_dead_lettered(stage: Stage) -> None:
    invoicing(stage)
    good = stage.place("a")
    unfit = MeshEnvelope(good.attributes, b'{"order": 7}')
    newer = MeshEnvelope(
        {**stage.place("b").attributes, "dataschema": "urn:eventmesh:orders.order_placed:3"},
        good.data,
    )
    async with stage.running():
        await stage.publish(unfit, newer)
        letters = await stage.letters(2)
    assert "currency: Field required" in letters[0].reason
    assert "version 3 of orders.order_placed is not known here" in letters[1].reason
    assert stage.calls == []


async def test_an_older_version_is_upcast(stage: Stage) -> None:
    invoicing(stage)
    async with stage.running():
        await stage.publish(stage.place("old", OrderPlacedOnce))
        assert await stage.invoiced("old") == [("old", "USD")]


async def test_a_newer_version_is_read_if_the_frozen_schemas_prove_it_compatible(
    stage: Stage,
) -> None:
    freeze([OrderPlacedLater], stage.settings.schemas)
    invoicing(stage)
    async with stage.running():
        await stage.publish(stage.place("new", OrderPlacedLater))
        assert await stage.invoiced("new") == [("new", "EUR")]


async def test_a_failing_message_is_rolled_back_retried_and_then_dead_lettered(
    stage: Stage,
) -> None:
    tried_at: list[float] = []

    @stage.mesh.subscriber(OrderPlaced, retry=SOON)
    async def send_invoice(order: OrderPlaced, tx: Transaction) -> InvoiceSent:
        stage.calls.append(order.order)
        if order.order == "bad":
            tried_at.append(time.monotonic())
        tx.session.add(Invoice(order=order.order))
        await tx.session.flush()
        if order.order == "bad" or stage.calls.count(order.order) == 1:
            raise ValueError(f"no invoice for {order.order}")
        return InvoiceSent(order=order.order)

    stage.mesh.publisher(InvoiceSent)
    async with orders_worker(stage) as notified, stage.running():
        await stage.publish(stage.place("bad"), stage.place("shaky"))
        await stage.invoiced("shaky")
        [letter] = await stage.letters()
        await until(lambda: _async(notified), "an invoice")
        await stage.settled(dead=1)
    assert [letter.envelope.attributes["partitionkey"], letter.attempts] == ["bad", 3]
    assert letter.reason == "failed 3 times: ValueError: no invoice for bad"
    assert "Traceback" in letter.error
    assert (stage.calls.count("bad"), stage.calls.count("shaky")) == (3, 2)
    assert all(later - sooner >= DELAY for sooner, later in pairwise(tried_at))
    assert await stage.invoices() == [("shaky", "")]
    assert notified == ["shaky"]


@pytest.mark.parametrize("kind", ["amqp"])  # RabbitMQ keeps all headers in one frame
async def test_a_message_without_room_for_its_attempt_is_dead_lettered_instead_of_retried(
    stage: Stage,
) -> None:
    @stage.mesh.subscriber(OrderPlaced, retry=SOON)
    async def send_invoice(order: OrderPlaced, tx: Transaction) -> None:
        stage.calls.append(order.order)
        raise ValueError("no invoice")

    placed = stage.place("a")
    headers = dict(to_headers(MeshEnvelope({**placed.attributes, "filler": ""}, b"")))
    identified = aio_pika.Message(b"", headers=headers, message_id="m" * 32)  # as aiormq adds one
    room = 131_064 - len(ContentHeader(properties=identified.properties).marshal())
    async with stage.running():
        await stage.publish_raw({**placed.attributes, "filler": "x" * room}, placed.data)
        [letter] = await stage.letters()
        await stage.settled(dead=1)
    assert stage.calls == ["a"]
    assert letter.reason.startswith("RabbitMQ rejected its retry (truncated: ")
    assert (letter.attempts, letter.envelope.data) == (1, placed.data)


async def _async(value: Any) -> Any:
    return value


async def test_a_dead_letter_is_replayed_to_the_app(stage: Stage) -> None:
    broken = True

    @stage.mesh.subscriber(OrderPlaced, retry=Retry(attempts=1))
    async def send_invoice(order: OrderPlaced, session: Session) -> None:
        if broken:
            raise ValueError("the printer is out of paper")
        session.add(Invoice(order=order.order))

    async with stage.running():
        await stage.publish(stage.place("a"))
        [letter] = await stage.letters()
        broken = False
        assert await stage.transport.replay(stage.subscription, [letter.id]) == [letter.id]
        await stage.invoiced("a")
        await stage.settled()


async def test_a_saga_is_told_that_its_command_was_dead_lettered_by_the_app(stage: Stage) -> None:
    @stage.mesh.subscriber(Charge)
    async def charge(command: Charge, tx: Transaction) -> None:
        raise Reject("the bank is closed")

    saga_id = str(uuid.uuid4())
    signals = Subscription("orders.fulfil.saga", ("orders.fulfil.signal",))
    labels = {"sagaid": f"orders.fulfil/{saga_id}", "sagastep": "pay"}
    command = Charge(order="a")
    unlabelled = seal(command, source="orders", clock=SystemClock())
    labelled = seal(command, source="orders", clock=SystemClock(), extensions=labels)
    async with stage.running():
        await stage.transport.declare([signals])
        await stage.publish(unlabelled, labelled)
        async with stage.transport.consume(signals, prefetch=10) as consumer:
            told = [each.envelope for each in await consumer.receive(10)]
        letters = await stage.transport.dead_letters(
            stage.service.handlers["billing.charge"].subscription, limit=100
        )
    assert [(each.name, each.attributes["causationid"]) for each in told] == [
        ("orders.fulfil.signal", labelled.id)
    ]
    assert json.loads(told[0].data) == {
        "saga_id": saga_id,
        "label": "pay",
        "what": "dead_lettered",
        "reason": "the bank is closed",
    }
    assert unlabelled.id in {letter.envelope.id for letter in letters}


@pytest.mark.parametrize("kind", ["amqp"])  # Redis dead-letters nothing by itself
async def test_a_saga_is_told_that_its_command_was_dead_lettered_by_rabbitmq(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broker_dead_letters, "INTERVAL", 0.1)

    @stage.mesh.subscriber(Charge)
    async def charge(command: Charge, tx: Transaction) -> None: ...

    labels = {"sagaid": f"orders.fulfil/{uuid.uuid4()}", "sagastep": "pay"}
    command = seal(Charge(order="a"), source="orders", clock=SystemClock(), extensions=labels)
    signals = Subscription("orders.fulfil.saga", ("orders.fulfil.signal",))
    async with stage.running(), await aio_pika.connect(stage.settings.broker_url) as connection:
        await stage.transport.declare([signals])
        channel = await connection.channel()
        short_lived = await channel.declare_queue(
            exclusive=True,
            arguments={
                "x-message-ttl": 1,
                "x-dead-letter-exchange": "",
                "x-dead-letter-routing-key": f"{stage.settings.broker_prefix}.dead.billing.charge",
            },
        )
        message = aio_pika.Message(command.data, headers=dict(to_headers(command)))
        await channel.default_exchange.publish(message, short_lived.name)
        async with stage.transport.consume(signals, prefetch=10) as consumer:
            [told] = await consumer.receive(10)
    assert told.envelope.attributes["causationid"] == command.id
    signal = json.loads(told.envelope.data)
    assert (signal["what"], signal["label"]) == ("dead_lettered", "pay")
    assert "dead-lettered by RabbitMQ, expired" in signal["reason"]


async def set_pause(stage: Stage, *, paused: bool) -> None:
    """Pause the subscription, or resume it, as operators do."""
    async with (await stage.service.database()).connection() as connection:
        if paused:
            await pauses.pause(connection, SEND_INVOICE, "ada", "the ledger is being repaired")
        else:
            await pauses.resume(connection, SEND_INVOICE)


@SOON_VISIBLE
async def test_a_paused_subscription_keeps_what_arrives_until_it_is_resumed(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(pausing, "READ_INTERVAL", 0.02)
    caplog.set_level("INFO")
    stage.listen()
    invoicing(stage)

    def is_said(event: str) -> Callable[[], Awaitable[bool]]:
        return lambda: _async(event in caplog.text)

    async with stage.running():
        await stage.publish(stage.place("a"))
        await stage.invoiced("a")
        await set_pause(stage, paused=True)
        await until(is_said("subscription paused"), "the pause")
        await stage.publish(stage.place("b"))
        await until(lambda: _async(len(stage.received) >= 2), "the message")
    assert stage.calls == ["a"]
    async with stage.running():  # again, and it is paused before the first message arrives
        await until(lambda: _async(len(stage.received) >= 3), "the message")
        assert stage.calls == ["a"]
        await set_pause(stage, paused=False)
        await stage.invoiced("b")
        assert "subscription resumed" in caplog.text
        await stage.settled()
    assert stage.calls == ["a", "b"]


async def test_the_app_can_stop_while_its_subscription_is_paused(stage: Stage) -> None:
    stage.listen()
    invoicing(stage)
    async with stage.running():
        await set_pause(stage, paused=True)
    async with stage.running():
        await stage.publish(stage.place("a"))
        await until(lambda: _async(stage.received), "the message")
    assert stage.calls == []


# RabbitMQ takes no delivery back from a connected consumer.
@pytest.mark.parametrize("kind", ["redis"])
@pytest.mark.parametrize("visibility", [6.0])
async def test_a_message_is_not_redelivered_while_a_slow_handler_runs(
    stage: Stage, visibility: float
) -> None:
    stage.listen()

    @stage.mesh.subscriber(OrderPlaced)
    async def send_invoice(order: OrderPlaced, tx: Transaction) -> None:
        stage.calls.append(order.order)
        await asyncio.sleep(visibility * 1.25)
        tx.session.add(Invoice(order=order.order))

    async with stage.running():
        await stage.publish(stage.place("slow"))
        await stage.invoiced("slow")
        await stage.settled()
    assert stage.calls == ["slow"]
    assert len(stage.received) == 1


async def test_a_message_waits_while_the_database_is_unreachable(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.listen()
    invoicing(stage, retry=Retry(attempts=1))
    database, away = stage.service.database, 3

    async def flaky() -> Any:
        nonlocal away
        if away:
            away -= 1
            raise Unreachable("The database of service 'billing' does not answer.")
        return await database()

    async with stage.running():
        monkeypatch.setattr(stage.service, "database", flaky)
        await stage.publish(stage.place("a"))
        await until(lambda: _async(not away), "the database to be asked")
        await stage.invoiced("a")
        await stage.settled()
    assert stage.calls == ["a"]
    assert len(stage.received) == 1


async def test_the_app_can_stop_while_the_database_is_unreachable(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.listen()
    invoicing(stage)

    async def away() -> Any:
        raise Unreachable("The database of service 'billing' does not answer.")

    async with stage.running():
        monkeypatch.setattr(stage.service, "database", away)
        await stage.publish(stage.place("a"))
        await until(lambda: _async(stage.received), "the message")
    assert stage.calls == []


@SOON_VISIBLE
async def test_a_message_whose_outer_middleware_failed_is_delivered_again(stage: Stage) -> None:
    failures = [ConnectionError("the token service is away")]

    class Flaky(BaseMiddleware[Any, Any]):
        async def consume_scope(self, call_next: Any, msg: Any) -> Any:
            if failures:
                raise failures.pop()
            return await call_next(msg)

    stage.broker.insert_middleware(Flaky)
    stage.listen()
    invoicing(stage)
    async with stage.running():
        await stage.publish(stage.place("a"))
        await stage.invoiced("a")
        await stage.settled()
    assert stage.calls == ["a"]
    assert len(stage.received) == 2


async def test_a_message_is_forgotten_once_it_is_processed(stage: Stage) -> None:
    seen: list[weakref.ref[Any]] = []

    class Seeing(BaseMiddleware[Any, Any]):
        async def consume_scope(self, call_next: Any, msg: Any) -> Any:
            seen.append(weakref.ref(msg))
            return await call_next(msg)

    async def are_gone() -> bool:
        gc.collect()
        return not any(message() for message in seen[:-1])  # a client may keep the last one

    stage.broker.insert_middleware(Seeing)
    invoicing(stage, retry=Retry(attempts=1))
    async with stage.running():
        await stage.publish(*map(stage.place, "abc"))
        await stage.invoiced("a", "b", "c")
        await stage.settled()
        await until(are_gone, "the messages to be forgotten")


@pytest.mark.parametrize("kind", ["redis"])
@SOON_VISIBLE
async def test_a_redelivery_while_an_outer_middleware_runs_is_skipped(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_heartbeats(monkeypatch)
    waiting = asyncio.Event()

    class Waiting(BaseMiddleware[Any, Any]):
        async def consume_scope(self, call_next: Any, msg: Any) -> Any:
            if len(stage.received) == 1:
                await waiting.wait()
            return await call_next(msg)

    stage.broker.insert_middleware(Waiting)
    stage.listen()
    invoicing(stage)
    async with stage.running():
        await stage.publish(stage.place("a"))
        await until(lambda: _async("Message was nacked" in stage.received), "a second delivery")
        assert stage.calls == []
        waiting.set()
        await stage.invoiced("a")
        await stage.settled()
    assert stage.calls == ["a"]


def without_heartbeats(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing extends the lease of a message that is being processed."""
    monkeypatch.setattr(
        "eventmesh.integrations.faststream.redis.Upkeep.start",
        lambda _: [asyncio.create_task(asyncio.sleep(TIMEOUT_SECONDS))],
    )


@pytest.mark.parametrize("kind", ["redis"])
@SOON_VISIBLE
async def test_a_redelivery_while_the_handler_runs_is_skipped(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.listen()
    without_heartbeats(monkeypatch)
    handling = asyncio.Event()

    @stage.mesh.subscriber(OrderPlaced)
    async def send_invoice(order: OrderPlaced, tx: Transaction) -> None:
        stage.calls.append(order.order)
        await handling.wait()
        tx.session.add(Invoice(order=order.order))

    async with stage.running():
        await stage.publish(stage.place("a"))
        await until(lambda: _async(len(stage.received) > 1), "it to be claimed from ourselves")
        handling.set()
        await stage.invoiced("a")
        await stage.settled()
    assert stage.calls == ["a"]
    assert set(stage.received) == {"", "Message was nacked"}


async def test_faststreams_exceptions_for_outcomes_are_supported(stage: Stage) -> None:
    @stage.mesh.subscriber(OrderPlaced, retry=SOON)
    async def send_invoice(order: OrderPlaced, tx: Transaction) -> None:
        stage.calls.append(order.order)
        tx.session.add(Invoice(order=order.order))
        raise AckMessage if order.order == "enough" else RejectMessage

    async with stage.running():
        await stage.publish(stage.place("enough"), stage.place("refused"))
        await stage.invoiced("enough")
        [letter] = await stage.letters()
        await stage.settled(dead=1)
    assert letter.reason == "the handler rejected it"
    assert stage.calls == ["enough", "refused"]
    assert await stage.invoices() == [("enough", "")]


async def test_one_handler_can_take_several_messages_and_their_envelopes(stage: Stage) -> None:
    seen: list[tuple[str, str]] = []

    @stage.mesh.subscriber(OrderPlaced, OrderClosed, name="watch", concurrency=3)
    async def anything(
        event: OrderPlaced | OrderClosed, envelope: Envelope, session: Session
    ) -> None:
        await session.execute(select(1))
        seen.append((type(event).__name__, envelope.id))

    placed, closed = stage.place("a"), stage.place("a", OrderClosed)
    async with stage.running():
        await stage.publish(placed, closed)
        await until(lambda: _async(len(seen) == 2), "both")
    assert sorted(seen) == [("OrderClosed", closed.id), ("OrderPlaced", placed.id)]


async def test_log_events_go_where_the_app_logs(
    stage: Stage, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    invoicing(stage)
    async with stage.running():
        await stage.publish(stage.place("a"))
        await stage.publish_raw({}, b"garbage")
        await stage.letters()
        await stage.invoiced("a")
    lines = [line for line in caplog.messages if "message dead-lettered" in line]
    assert len(lines) == 1
    assert "subscription='billing.send_invoice'" in lines[0]
    assert "message dead-lettered" not in capfd.readouterr().out  # where structlog would print


# Publishing


async def test_what_a_handler_publishes_is_committed_with_its_effects(stage: Stage) -> None:
    sent = stage.mesh.publisher(InvoiceSent)

    @stage.mesh.subscriber(OrderPlaced, retry=SOON)
    async def send_invoice(order: OrderPlaced, tx: Transaction) -> None:
        stage.calls.append(order.order)
        tx.session.add(Invoice(order=order.order))
        await sent.publish(InvoiceSent(order=order.order))
        if len(stage.calls) < 3:
            raise ValueError("not yet")

    async with orders_worker(stage) as notified, stage.running():
        await stage.publish(stage.place("a"))
        await until(lambda: _async(notified), "an invoice")
        await stage.settled()
        await asyncio.sleep(0.1)  # time in which a second message would arrive
    assert stage.calls == ["a"] * 3
    assert notified == ["a"]


async def test_a_returned_message_is_published_once_even_with_a_publisher_as_decorator(
    stage: Stage,
) -> None:
    sent = stage.mesh.publisher(InvoiceSent)

    @sent
    @stage.mesh.subscriber(OrderPlaced)
    async def send_invoice(order: OrderPlaced, tx: Transaction) -> InvoiceSent | None:
        stage.calls.append(order.order)
        return InvoiceSent(order=order.order) if order.order != "silent" else None

    async with orders_worker(stage) as notified, stage.running():
        twice = stage.place("a")
        await stage.publish(stage.place("silent"), twice, twice)
        await until(lambda: _async(notified), "an invoice")
        await stage.publish(stage.place("z"))
        await until(lambda: _async("z" in notified), "the last")
    assert notified == ["a", "z"]
    assert stage.calls == ["silent", "a", "z"]


async def test_a_plain_publisher_of_the_app_publishes_only_the_returned_message(
    stage: Stage,
) -> None:
    heard: list[Any] = []
    place, address = elsewhere(stage)

    @stage.broker.publisher(**address)
    @stage.mesh.subscriber(OrderPlaced, name="send_invoice", retry=SOON)
    async def send_invoice(order: OrderPlaced, tx: Transaction) -> str:
        stage.calls.append(order.order)
        if len(stage.calls) == 1:
            raise ValueError("not yet")
        return f"invoiced {order.order}"

    @stage.broker.subscriber(**place)
    async def plain(body: Any) -> None:
        heard.append(body)

    async with stage.running():
        twice = stage.place("a")
        await stage.publish(twice)
        await until(lambda: _async(heard), "the answer")
        await stage.publish(twice, stage.place("b"))
        await until(lambda: _async("invoiced b" in heard), "the last answer")
        await stage.settled()
    assert heard == ["invoiced a", "invoiced b"]
    assert stage.calls == ["a", "a", "b"]


async def test_messages_published_outside_a_handler_are_accepted_and_deduplicated(
    stage: Stage,
) -> None:
    sent = stage.mesh.publisher(InvoiceSent)
    subscription = Subscription("archive.keep", ("billing.invoice_sent",))
    await stage.transport.declare([subscription])
    async with orders_worker(stage) as notified, stage.running():
        await sent.publish(InvoiceSent(order="a"))
        await until(lambda: _async(notified), "an invoice")
        async with stage.transport.consume(subscription, prefetch=1) as consumer:
            [delivery] = await consumer.receive(1)
        await stage.publish(delivery.envelope)  # the same message again
        await sent.publish(InvoiceSent(order="b"))
        await until(lambda: _async("b" in notified), "the last")
    assert notified == ["a", "b"]
    assert delivery.envelope.attributes["source"] == "/billing"
    assert delivery.envelope.attributes["dataschema"] == "urn:eventmesh:billing.invoice_sent:1"
    assert delivery.envelope.data == b'{"order":"a"}'


async def test_a_message_must_be_declared_and_published_to_its_destination(
    stage: Stage,
) -> None:
    sent = stage.mesh.publisher(InvoiceSent)
    async with stage.running():
        with pytest.raises(UsageError, match="which is not its destination"):
            await sent.publish(Unheard())
        with pytest.raises(UsageError, match="takes EventMesh messages only"):
            await sent.publish({"order": "a"})
        with pytest.raises(UndeclaredMessage, match=r"Add mesh\.publisher\(Unheard\)"):
            await stage.mesh.publish(Unheard())


def elsewhere(stage: Stage) -> tuple[dict[str, Any], dict[str, Any]]:
    """A destination outside the mesh, for a subscriber and for a publisher."""
    name = f"{stage.settings.broker_prefix}.plain"
    if stage.kind == "amqp":
        return {"queue": name}, {"queue": name}
    return {"stream": StreamSub(name, last_id="0")}, {"stream": name}


async def test_other_handlers_of_the_app_are_unaffected(stage: Stage) -> None:
    invoicing(stage)
    heard: list[Any] = []
    place, address = elsewhere(stage)

    @stage.broker.subscriber(**place)
    async def plain(body: dict[str, str]) -> None:
        heard.append(body)

    async with stage.running():
        await stage.broker.publish({"hello": "there"}, **address)
        await stage.broker.publish(InvoiceSent(order="as plain JSON"), **address)
        await until(lambda: _async(len(heard) == 2), "plain messages")
    assert heard == [{"hello": "there"}, {"order": "as plain JSON"}]


@pytest.mark.parametrize("kind", ["amqp"])
async def test_what_an_app_consumes_is_restored_in_every_round(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for a worker: what this process does not consume is restored rarely."""
    monkeypatch.setattr(amqp_upkeep, "INTERVAL", 10 * TIMEOUT_SECONDS)  # the test calls it
    invoicing(stage)
    names, [message] = Topology(stage.settings.broker_prefix), stage.subscription.messages
    queue = names.queue(stage.subscription)
    async with (
        stage.running(),
        await aio_pika.connect(stage.settings.broker_url) as connection,
    ):
        operator = await (await connection.channel()).get_queue(queue)
        for order in ("a", "b"):
            await operator.unbind(names.exchange, message)
            await operator.unbind(names.message_exchange(message), "")
            await stage.mesh.check_open()._upkeep.restore()
            await stage.publish(stage.place(order))
            await stage.invoiced(order)


# Errors


@SOON_VISIBLE
async def test_without_the_lifespan_no_message_is_handled_and_none_is_lost(stage: Stage) -> None:
    stage.listen()
    invoicing(stage)
    await stage.transport.declare([stage.subscription])
    await stage.app.start()
    await stage.publish(stage.place("a"))
    await until(lambda: _async(any(stage.received)), "the error")
    assert "FastStream(broker, lifespan=mesh.lifespan)" in stage.received[0]
    assert stage.calls == []
    async with stage.mesh.lifespan():
        await stage.invoiced("a")
        await stage.app.stop()


def test_a_handler_that_could_never_be_called_is_a_usage_error(stage: Stage) -> None:
    with pytest.raises(UsageError, match="no parameter annotated with OrderPlaced: add one"):

        @stage.mesh.subscriber(OrderPlaced)
        async def wrong(order: dict[str, str]) -> None: ...

    with pytest.raises(UsageError, match="subscribes to nothing"):

        @stage.mesh.subscriber()
        async def nothing(order: OrderPlaced) -> None: ...

    with pytest.raises(UsageError, match="concurrency=0"):

        @stage.mesh.subscriber(OrderPlaced, concurrency=0)
        async def idle(order: OrderPlaced) -> None: ...


async def test_a_broker_of_another_kind_is_a_usage_error(stage: Stage) -> None:
    stage.service.configure(stage.settings.model_copy(update={"broker_url": "sqlite:///b.db"}))
    with pytest.raises(UsageError, match=r"EVENTMESH_BROKER_URL is 'sqlite:///b\.db'"):
        async with stage.mesh.lifespan():
            pass


@pytest.mark.parametrize("kind", ["redis"])
async def test_an_app_does_not_start_on_a_prefix_that_is_spread(stage: Stage) -> None:
    """It would read one part of several."""
    settings = stage.settings.model_copy(
        update={
            "broker_url": f"{stage.settings.broker_url}?slots=3",
            "broker_prefix": f"{stage.settings.broker_prefix}.spread",
        }
    )
    stage.service.configure(settings)
    with pytest.raises(UsageError, match=r"is spread over 3 slots, and a FastStream app reads one"):
        async with stage.mesh.lifespan():
            pass


async def test_a_too_short_inbox_window_is_a_usage_error_as_in_a_worker(
    stage: Stage,
) -> None:
    """The app's relay purges the inbox too, while a copy of a message may still wait for its
    retry."""
    invoicing(stage)
    stage.service.configure(stage.settings.model_copy(update={"inbox_window": 1.0}))
    with pytest.raises(UsageError, match=r"EVENTMESH_INBOX_WINDOW is 1 s.*billing\.send_invoice"):
        async with stage.mesh.lifespan():
            pass


# Traces


async def test_the_messages_of_an_app_are_traced(stage: Stage) -> None:
    traced = Traced()
    traced.trace(stage.service)
    sent = stage.mesh.publisher(InvoiceSent)

    @sent
    @stage.mesh.subscriber(OrderPlaced)
    async def send_invoice(order: OrderPlaced, tx: Transaction) -> InvoiceSent:
        tx.session.add(Invoice(order=order.order))
        return InvoiceSent(order=order.order)

    async with stage.running():
        await stage.publish(stage.place("a"))
        await stage.invoiced("a")
        await sent.publish(InvoiceSent(order="by hand"))
        await stage.settled()
        await until(lambda: _async(len(traced.spans("send")) == 2), "two send spans")
    [processed] = traced.spans("process")
    created = traced.spans("create")
    assert {span.parent.span_id if span.parent else None for span in created} == {
        None,
        ids(processed)[1],
    }
    assert {each for span in traced.spans("send") for each in linked(span)} == set(
        map(ids, created)
    )
    assert traced.counts("messaging.client.consumed.messages") == {(): 1}
    assert traced.problems() == []
    traced.close()


async def test_a_dead_letter_of_an_app_has_a_settle_span(stage: Stage) -> None:
    traced = Traced()
    traced.trace(stage.service)

    @stage.mesh.subscriber(OrderPlaced)
    async def refuse(order: OrderPlaced, tx: Transaction) -> None:
        raise Reject("no credit")

    async with stage.running():
        await stage.publish(stage.place("a"))
        await until(lambda: _async(len(traced.spans("settle")) == 1), "a settle span")
    [settled] = traced.spans("settle")
    assert settled.attributes is not None
    assert settled.attributes["eventmesh.outcome"] == "dead"
    assert traced.problems() == []
    traced.close()
