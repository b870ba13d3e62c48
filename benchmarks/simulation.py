"""What simulation costs: `python -m benchmarks.simulation [SEEDS]`, half a minute for 200.

    seed   one run of the shop's purchase: four services, a saga, faults, a predicate that is asked
           after each write, and all that is checked at the end
    start  in a test with the fixture `mesh`, from its set-up until the four services have their
           tables and consume
    test   the same until its end: an order goes through all of them, and all is torn down

CPU milliseconds of this process, for others use the machine, too; nothing here waits. The first run
of each, which compiles statements and makes the databases, is left out.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Generator, Sequence
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from uuid import UUID

import pytest
from sqlalchemy import select

from eventmesh.runtime.declaring.settings import load_settings
from eventmesh.testing.mesh import Mesh
from eventmesh.testing.mesh.databases import temporary_workshop
from eventmesh.testing.mesh.predicates import Read
from eventmesh.testing.mesh.running import make_mesh
from eventmesh.testing.simulation.search import Options, Report, simulate
from services.inventory.models import Stock
from services.inventory.service import service as inventory
from services.orders.contracts import OrderPlaced
from services.orders.service import service as orders
from services.payments.service import service as payments
from services.shipping.service import service as shipping

SEEDS = 200

GOALS = {"seed": 60.0, "start": 50.0}
"""CPU milliseconds: 1,000 seeds a minute, and a test that one does not wait for."""

TESTS = """
import time

import pytest

from benchmarks.simulation import buy
from services.inventory.service import service as inventory
from services.orders.contracts import OrderClosed
from services.orders.service import service as orders
from services.payments.service import service as payments
from services.shipping.service import service as shipping


@pytest.mark.parametrize("number", range(21))
async def test_an_order_is_closed(mesh, number, request):
    await mesh.start(orders, payments, inventory, shipping)
    request.node.started_at = time.process_time()
    await buy(mesh)
    await mesh.quiet()
    assert mesh.published(OrderClosed)
"""


async def purchase(mesh: Mesh) -> None:
    """What is simulated."""

    @mesh.always
    def stock_is_never_negative(read: Read) -> bool:
        return all(stock.on_hand >= 0 for stock in read(inventory).scalars(select(Stock)))

    await mesh.start(orders, payments, inventory, shipping)
    await buy(mesh)


async def buy(mesh: Mesh) -> None:
    async with mesh.session(inventory) as session:
        session.add(Stock(sku="book", supplied=1, on_hand=1))
    await mesh.publish(
        OrderPlaced(
            order_id=UUID(int=1),
            card="4000-0000-0000-0001",
            sku="book",
            quantity=1,
            amount=Decimal(20),
        )
    )


def seeds(number: int) -> list[float]:
    """CPU seconds of each of the first seeds, after the run without faults."""
    moments: list[float] = []

    def note(_: Report) -> None:
        moments.append(time.process_time())

    settings = load_settings()
    with temporary_workshop() as workshop:
        options = Options(seeds=number + 1)
        report = simulate(purchase, lambda: make_mesh(workshop, settings), options, note)
    if report.failure is not None:
        raise SystemExit(f"The shop failed: {report.failure.error}")
    moments.append(time.process_time())
    return [after - before for before, after in pairwise(moments)]


class Stopwatch:
    """A pytest plugin that takes the CPU seconds of each test: until its services are started, and
    until its end."""

    def __init__(self) -> None:
        self.starts: list[float] = []
        self.tests: list[float] = []

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        began_at = time.process_time()
        result = yield
        self.tests.append(time.process_time() - began_at)
        self.starts.append(item.started_at - began_at)  # type: ignore[attr-defined]  # by the test
        return result


def tests() -> Stopwatch:
    """CPU seconds of tests with a mesh, but for the first."""
    watch = Stopwatch()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "test_orders.py"
        path.write_text(TESTS)
        options = ["-q", "--no-header", "-p", "no:cacheprovider", f"--rootdir={folder}"]
        if pytest.main([*options, str(path)], plugins=[watch]) != 0:
            raise SystemExit("The tests with a mesh failed.")
    del watch.starts[0], watch.tests[0]
    return watch


def row(name: str, seconds: Sequence[float]) -> str:
    least, mean, most = (
        1000 * each for each in (min(seconds), statistics.mean(seconds), max(seconds))
    )
    goal = f"goal: {GOALS[name]:.0f}" if name in GOALS else ""
    return f"{name:6} {mean:8.1f} ms CPU on average ({least:.1f} to {most:.1f})  {goal}".rstrip()


def main(arguments: Sequence[str]) -> None:
    taken = seeds(int(arguments[0]) if arguments else SEEDS)
    watch = tests()
    print(row("seed", taken))
    print(row("start", watch.starts))
    print(row("test", watch.tests))


if __name__ == "__main__":
    main(sys.argv[1:])
