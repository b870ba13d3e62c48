"""Versions at run time, with real workers: which are read, which are dead-lettered and why, and
what prevents a worker from starting."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.integration.conftest import Project, Put, Running

SHOP = '''\
"""Sells what it is told to."""

from eventmesh import Command, Event, Service, Transaction

class Sell(Command, name="shop.sell", version=1):
    item: str

SOLD

service = Service("shop")
sold = service.publisher(PUBLISHER)

@service.subscriber(Sell)
async def sell(command: Sell, tx: Transaction) -> Sold:
    return Sold(ARGUMENTS)
'''

SOLD_1 = """\
class Sold(Event, name="shop.sold", version=1, key="item"):
    item: str
    cents: int
"""

SOLD_2 = """\
class Sold(Event, name="shop.sold", version=2, key="item"):
    item: str
    price: str
"""

LEDGER = '''\
"""Hears of what was sold, and knows nothing of the shop's code."""

from eventmesh import Envelope, Event, Service

SOLD

service = Service("ledger")

@service.subscriber(Sold)
async def note(event: Sold, envelope: Envelope) -> None:
    print(envelope.attributes["dataschema"].rpartition(":")[2], dict(event), flush=True)
'''

DOWN = """
@Sold.downcaster(to_version=1)
def to_cents(data: dict) -> dict:
    return {"item": data["item"], "cents": round(float(data["price"]) * 100)}
"""

UP = """
@Sold.upcaster(from_version=1)
def to_price(data: dict) -> dict:
    return {"item": data["item"], "price": f"{data['cents'] / 100:.2f}"}
"""


class Mall:
    """A project with two services, each of which can be rewritten."""

    def __init__(self, project: Project, put: Put) -> None:
        self.project = project
        self._put = put

    def shop(self, sold: str, arguments: str, publisher: str = "Sold") -> None:
        text = SHOP.replace("SOLD", sold).replace("PUBLISHER", publisher)
        self.project.service(text.replace("ARGUMENTS", arguments), "shop")

    def ledger(self, sold: str) -> None:
        self.project.service(LEDGER.replace("SOLD", sold), "ledger")

    def freeze(self) -> None:
        self.project.run("schema", "freeze").succeeds()

    def worker(self, *services: str) -> Running:
        running = self.project.start("worker", *(services or ("shop", "ledger")))
        running.until_says("worker is ready")
        return running

    async def put(self, name: str, version: int, **data: Any) -> None:
        attributes = {
            "specversion": "1.0",
            "id": str(uuid.uuid4()),
            "source": f"/{name.partition('.')[0]}",
            "type": name,
            "dataschema": f"urn:eventmesh:{name}:{version}",
            "datacontenttype": "application/json",
        }
        await self._put(self.project, attributes, json.dumps(data).encode())

    async def sell(self, item: str) -> None:
        await self.put("shop.sell", 1, item=item)

    def reason(self) -> str:
        """The reason of the ledger's only dead letter."""
        [letter] = self.project.letters(service="ledger")
        return str(letter["reason"])


@pytest.fixture
def mall(project: Project, put: Put) -> Mall:
    return Mall(project, put)


PRICE = 'item=command.item, price="12.50"'
CENTS = "item=command.item, cents=1250"


async def test_an_older_version_is_upcast(mall: Mall) -> None:
    mall.shop(SOLD_1, CENTS)
    mall.ledger(SOLD_2 + UP)
    worker = mall.worker()
    await mall.sell("hat")
    worker.until_prints("1 {'item': 'hat', 'price': '12.50'}")
    worker.drain()


async def test_a_newer_version_is_read_if_the_frozen_schemas_prove_it_compatible(
    mall: Mall,
) -> None:
    mall.shop(SOLD_1.replace("version=1", "version=2") + "    note: str = ''\n", CENTS)
    mall.ledger(SOLD_1)
    mall.freeze()
    worker = mall.worker()
    await mall.sell("hat")
    worker.until_prints("2 {'item': 'hat', 'cents': 1250}")
    worker.drain()


async def test_a_newer_version_that_breaks_the_reader_is_dead_lettered_with_a_witness(
    mall: Mall,
) -> None:
    mall.shop(SOLD_2, PRICE)
    mall.ledger(SOLD_1)
    mall.freeze()
    worker = mall.worker()
    await mall.sell("hat")
    worker.until_says("message dead-lettered")
    reason = mall.reason()
    assert reason.startswith("version 2 of shop.sold is not known here: this service reads version")
    assert "schemas/shop/sold/v2.json" in reason
    assert '{"item": ' in reason  # the witness
    assert "cents: Field required" in reason
    worker.drain()


async def test_a_compatible_older_version_is_read_without_an_upcaster(mall: Mall) -> None:
    mall.shop(SOLD_1, CENTS)
    mall.ledger(SOLD_1.replace("version=1", "version=2") + "    note: str = 'none'\n")
    mall.freeze()
    worker = mall.worker()
    await mall.sell("hat")
    worker.until_prints("1 {'item': 'hat', 'cents': 1250, 'note': 'none'}")
    worker.drain()


async def test_a_version_frozen_while_the_worker_runs_is_read_without_a_restart(
    mall: Mall, wait_until: Callable[..., Any]
) -> None:
    mall.shop(SOLD_1, CENTS)
    mall.ledger(SOLD_1)
    mall.freeze()
    worker = mall.worker("ledger")
    await mall.put("shop.sold", 2, item="hat", cents=1, note="")
    worker.until_says("message dead-lettered")
    assert "schemas/shop/sold has no frozen schema" in mall.reason()

    mall.shop(SOLD_1.replace("version=1", "version=2") + "    note: str = ''\n", CENTS)
    mall.freeze()
    for sent in range(2, 1_000):  # the worker reads the lock files again every few seconds
        await mall.put("shop.sold", 2, item="hat", cents=1, note="")
        wait_until(
            lambda sent=sent: (
                worker.events().count("message dead-lettered") == sent or "2 {" in worker.out
            ),
            "the message settled",
        )
        if "2 {" in worker.out:
            break
    worker.until_prints("2 {'item': 'hat', 'cents': 1}")
    worker.drain()


async def test_many_unknown_versions_are_dead_lettered_and_block_no_other_message(
    mall: Mall,
) -> None:
    mall.ledger(SOLD_1)
    mall.shop(SOLD_1, CENTS)
    mall.freeze()
    worker = mall.worker("ledger")
    for version in range(100, 200):
        await mall.put("shop.sold", version, item="hat", cents=1)
    await mall.put("shop.sold", 1, item="cap", cents=2)
    worker.until_prints("1 {'item': 'cap', 'cents': 2}")
    worker.until_says("message dead-lettered", 100)
    worker.drain()


async def test_a_publisher_can_downcast_for_an_old_subscriber(mall: Mall) -> None:
    mall.shop(SOLD_1, CENTS)
    mall.freeze()
    mall.shop(SOLD_2 + UP + DOWN, PRICE, "Sold, version=1")
    mall.ledger(SOLD_1)
    mall.freeze()
    worker = mall.worker()
    await mall.sell("hat")
    worker.until_prints("1 {'item': 'hat', 'cents': 1250}")
    worker.drain()


async def test_a_failing_downcaster_is_named_in_the_dead_letter_and_nothing_is_published(
    mall: Mall,
) -> None:
    mall.shop(SOLD_2 + DOWN.replace("float", "broken"), PRICE, "Sold, version=1")
    mall.ledger(SOLD_1)
    worker = mall.worker()
    await mall.sell("hat")
    worker.until_says("message dead-lettered")
    [letter] = mall.project.letters(service="shop")
    assert "downcaster to_cents of shop.sold v2 to version 1 failed: NameError" in letter["reason"]
    worker.drain()


def test_publishing_an_older_version_without_a_downcaster_is_a_usage_error(mall: Mall) -> None:
    mall.shop(SOLD_2, PRICE, "Sold, version=1")
    mall.project.run("worker", "shop").fails(2, "no downcaster to version 1", "@Sold.downcaster")


DRIFTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "compatible and not recorded": (
        SOLD_1 + "    note: str = ''\n",
        ("field 'note' was added", "not frozen yet", "Run `eventmesh schema freeze`"),
    ),
    "breaking": (
        SOLD_1 + "    note: str\n",
        ("field 'note' was added", "raise its version by one to 2", "from_version=1"),
    ),
    "another key": (SOLD_1.replace(', key="item"', ""), ("the key changed from 'item' to None",)),
}


@pytest.mark.parametrize("what", DRIFTS)
@pytest.mark.parametrize("options", [(), ("--try-out",)])
def test_drift_prevents_a_worker_from_starting(
    mall: Mall, what: str, options: tuple[str, ...]
) -> None:
    changed, words = DRIFTS[what]
    mall.shop(SOLD_1, CENTS)
    mall.freeze()
    mall.shop(changed, CENTS)
    mall.project.run("worker", "shop", *options).fails(4, "shop.sold v1", *words)


def test_an_edited_lock_file_prevents_a_worker_from_starting(mall: Mall) -> None:
    mall.shop(SOLD_1, CENTS)
    mall.freeze()
    path = mall.project.root / "schemas/shop/sold/v1.json"
    path.write_text(path.read_text().replace('"integer"', '"number"'))
    mall.project.run("worker", "shop").fails(4, "v1.json was edited", "from version control")


def test_a_worker_starts_with_a_recorded_compatible_change(mall: Mall) -> None:
    mall.shop(SOLD_1, CENTS)
    mall.freeze()
    mall.shop(SOLD_1 + "    note: str = ''\n", CENTS)
    mall.freeze()
    assert (mall.project.root / "schemas/shop/sold/v1.2.json").exists()
    mall.worker("shop").drain()


def test_a_worker_starts_with_schemas_that_are_not_frozen_yet(mall: Mall) -> None:
    mall.shop(SOLD_1, CENTS)
    mall.worker("shop").drain()
