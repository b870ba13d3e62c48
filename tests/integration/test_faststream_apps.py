"""FastStream apps as processes: the documented app runs with a worker, is killed and gets a poison
message; another app knows nothing about EventMesh."""

from __future__ import annotations

import json
import sqlite3
import sys
import textwrap
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

import eventmesh.integrations.faststream as package
from tests.integration.conftest import until

if TYPE_CHECKING:
    from tests.integration.conftest import Project, Running

ORDERS = """
from uuid import UUID
from eventmesh import Event, Service, Transaction
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

class Base(DeclarativeBase): ...
class Told(Base):
    __tablename__ = "told"
    number: Mapped[int] = mapped_column(primary_key=True)
    order_id: Mapped[UUID]

class OrderPlaced(Event, name="orders.order_placed", version=1, key="order_id"):
    order_id: UUID
class InvoiceSent(Event, name="billing.invoice_sent", version=1, key="order_id"):
    order_id: UUID

service = Service("orders", metadata=Base.metadata)
placed = service.publisher(OrderPlaced)

@service.subscriber(InvoiceSent)
async def note(event: InvoiceSent, tx: Transaction) -> None:
    tx.session.add(Told(order_id=event.order_id))
"""

PLACE = """
import asyncio, sys
from uuid import UUID
from services.orders.service import OrderPlaced, placed, service

async def main():
    async with service:
        for number in sys.argv[1:]:
            await placed.publish(OrderPlaced(order_id=UUID(int=int(number))))

asyncio.run(main())
"""

KILLED_AFTER_COMMIT = """
import os
from pathlib import Path
from faststream import BaseMiddleware

class Killed(BaseMiddleware):
    async def consume_scope(self, call_next, msg):
        result = await call_next(msg)
        if not Path("killed").exists():
            Path("killed").touch()
            os._exit(9)
        return result

broker.insert_middleware(Killed)
"""

POISONED = """
import os
from faststream import BaseMiddleware

class Poisoned(BaseMiddleware):
    async def consume_scope(self, call_next, msg):
        if b"0000000000dd" in msg.body:
            os._exit(9)
        return await call_next(msg)

broker.add_middleware(Poisoned)  # inside the mesh's middleware, as if the handler did it
"""

PATIENT = """
import asyncio, os
import billing

def run():
    if child := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    asyncio.run(billing.app.run())
    os._exit(0)

while run() == 9:
    print("started again", flush=True)
"""

UNCHANGED = """
import os
from uuid import UUID

from faststream import FastStream
from faststream.rabbit import ExchangeType, RabbitBroker, RabbitExchange, RabbitQueue
from pydantic import BaseModel

class Order(BaseModel):
    order_id: UUID

broker = RabbitBroker(os.environ["AMQP_URL"])
app = FastStream(broker)
prefix = os.environ["PREFIX"]

@broker.subscriber(
    RabbitQueue(f"{prefix}.reports", routing_key="orders.order_placed"),
    RabbitExchange(prefix, type=ExchangeType.TOPIC, declare=False),
)
async def report(order: Order) -> None:
    print("ordered", order.order_id.int, flush=True)

@app.after_startup
async def ready() -> None:
    print("ready", flush=True)
"""


def documented(broker: str) -> str:
    """The app in the package's docstring, for this broker."""
    indented = (package.__doc__ or "").partition("\n\n")[2].partition("\nOn Redis, ")[0]
    source = textwrap.dedent(indented)
    assert "RabbitMesh(service, broker)" in source
    if broker == "redis":
        source = source.replace("Rabbit", "Redis").replace("rabbit", "redis")
    return source


class Bill:
    """A project with the documented app and the service orders."""

    def __init__(self, project: Project, url: str, source: str) -> None:
        self.project = project
        project.environment |= {
            "EVENTMESH_BROKER_URL": url,
            "EVENTMESH_VISIBILITY_TIMEOUT": "500ms",
            "EVENTMESH_MAX_DELIVERIES": "1",
        }
        project.service(ORDERS, "orders")
        project.write("billing.py", source)
        project.write("pyproject.toml", '[tool.eventmesh.services]\nbilling = "billing:service"\n')
        project.write("place.py", PLACE)
        project.write("patient.py", PATIENT)

    def start(self, *program: str) -> Running:
        return self.project.start_file(*program)

    def place(self, *numbers: int) -> None:
        ended = self.project.start_file("place.py", *map(str, numbers)).ended()
        assert ended.code == 0, ended.said

    def rows(self, service: str, table: str) -> list[int]:
        """The orders of the rows in a table."""
        try:
            connection = sqlite3.connect(
                f"file:{self.project.root}/.eventmesh/{service}.db?mode=ro", uri=True
            )
            with connection:
                found = connection.execute(f"SELECT order_id FROM {table}")  # noqa: S608
                return sorted(int(value.replace("-", ""), 16) for (value,) in found)
        except sqlite3.OperationalError:  # it does not exist yet
            return []
        finally:
            connection.close()

    def until_rows(self, service: str, table: str, *numbers: int) -> None:
        until(lambda: set(self.rows(service, table)) >= set(numbers), f"{numbers} in {table}")

    def letters(self) -> list[dict[str, Any]]:
        ended = self.project.run("dlq", "list", "billing", "--json")
        found: list[dict[str, Any]] = json.loads(ended.succeeds())
        return found


@pytest.mark.parametrize("broker", ["amqp", "redis"])
def test_the_documented_app_works_with_a_service_and_survives_kills(
    broker: str, project: Project, durable_url: Callable[[str], str]
) -> None:
    bill = Bill(project, durable_url(broker), documented(broker) + KILLED_AFTER_COMMIT + POISONED)
    worker = project.start("worker", "orders")
    patient = bill.start("patient.py")
    bill.place(1, 0xDD, 2)
    # Although the app was killed after order 1, and repeatedly by order 0xDD.
    bill.until_rows("orders", "told", 1, 2)
    [letter] = until(bill.letters, "a dead letter")
    assert "may be killing its worker" in letter["reason"]
    assert letter["attributes"]["subject"].endswith("0000000000dd")
    assert bill.rows("billing", "invoices") == [1, 2]
    assert bill.rows("orders", "told") == [1, 2]
    assert patient.out.count("started again") > 2
    worker.drain()


def test_a_rabbitmq_app_without_eventmesh_can_read_its_messages(
    project: Project, durable_url: Callable[[str], str]
) -> None:
    assert "eventmesh" not in UNCHANGED
    bill = Bill(project, durable_url("amqp"), documented("amqp"))
    project.write("reports.py", UNCHANGED)
    worker = project.start("worker", "orders")
    worker.until_says("worker is ready")
    app = project.start_program(
        *(sys.executable, "-m", "faststream", "run", "reports:app"),
        AMQP_URL=project.environment["EVENTMESH_BROKER_URL"],
        PREFIX=project.prefix,
    )
    app.until_prints("ready")
    bill.place(7, 8)
    app.until_prints("ordered 8")
    assert [line for line in app.out.splitlines() if line[0] == "o"] == ["ordered 7", "ordered 8"]
    worker.drain()
