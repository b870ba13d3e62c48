"""Simulation: what is right holds under any schedule, and what is wrong is found and made small."""

from __future__ import annotations

import functools
import hashlib
import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import configuration
from sqlalchemy import select

from eventmesh import Service, Transaction
from eventmesh.contracts.message import Message
from eventmesh.testing.mesh import Mesh
from eventmesh.testing.mesh.databases import Workshop, temporary_workshop
from eventmesh.testing.mesh.predicates import Read
from eventmesh.testing.mesh.running import make_mesh
from eventmesh.testing.simulation import workload
from eventmesh.testing.simulation.plan import Plan
from eventmesh.testing.simulation.report import describe
from eventmesh.testing.simulation.search import Options, Report, replay, simulate
from services.inventory.models import Stock
from services.inventory.service import service as inventory
from services.orders.contracts import OrderPlaced
from services.orders.service import service as orders
from services.payments.service import service as payments
from services.shipping.service import service as shipping
from tests.testing.accounts import Bank, Base, Charge, ChargeCard, make_service, simulate_charges


@pytest.fixture
def workshop() -> Iterator[Workshop]:
    with temporary_workshop() as made:
        yield made


@pytest.mark.mesh(seeds=6)
async def test_the_shop_keeps_its_promises(mesh: Mesh) -> None:
    @mesh.always
    def stock_is_never_negative(read) -> bool:  # type: ignore[no-untyped-def]
        return all(stock.on_hand >= 0 for stock in read(inventory).scalars(select(Stock)))

    await mesh.start(orders, payments, inventory, shipping)
    async with mesh.session(inventory) as session:
        session.add(Stock(sku="book", supplied=1, on_hand=1))
    for number, amount in enumerate((20, 30)):
        await mesh.publish(
            OrderPlaced(
                order_id=UUID(int=number + 1),
                card="4000-0000-0000-0001",
                sku="book",
                quantity=1,
                amount=Decimal(amount),
            )
        )


def test_the_report_of_a_simulation_counts_faults_and_places(workshop: Workshop) -> None:
    async def body(mesh: Mesh) -> None:
        await mesh.start(shipping)
        await mesh.quiet()

    report = simulate(body, lambda: make_mesh(workshop), Options(seeds=6))
    assert report.faults.total() > 0
    assert report.places >= len(report.killed_at) > 0


def search(workshop: Workshop, *, is_broken: bool, seeds: int) -> Report:
    return simulate(
        lambda mesh: simulate_charges(mesh, is_broken=is_broken),
        lambda: make_mesh(workshop),
        Options(seeds=seeds),
    )


def test_a_right_service_passes_whatever_goes_wrong(workshop: Workshop) -> None:
    report = search(workshop, is_broken=False, seeds=20)
    assert report.failure is None
    assert report.runs == 20
    assert report.faults["kill"] > 5
    assert len(report.killed_at) > 4
    assert report.handlers["accounts.charge"] >= 3 * 20


def test_a_defect_is_found_made_small_and_found_again(workshop: Workshop) -> None:
    failure = search(workshop, is_broken=True, seeds=100).failure
    assert failure is not None
    assert "each_card_is_charged_once must hold in the end" in str(failure.error)
    assert len(failure.plan.faults) <= 2
    assert not failure.needs_earlier_runs
    told = describe(failure, "pytest …")
    assert "charge_card #1" in told
    assert all(fault.in_words() in told for fault in failure.plan.faults)

    def again(*, is_broken: bool) -> bool:
        plan = Plan.parse(str(failure.plan))
        body = functools.partial(simulate_charges, is_broken=is_broken)
        return replay(body, lambda: make_mesh(workshop), plan, Options()) is not None

    assert again(is_broken=True)
    assert not again(is_broken=False)


def test_generating_messages_leaves_no_folder_of_hypothesis(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / ".hypothesis"
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYPOTHESIS_STORAGE_DIRECTORY", raising=False)
    # As in a process that is started in this folder, and has drawn nothing yet.
    monkeypatch.setattr(configuration, "__hypothesis_home_directory_default", folder)
    monkeypatch.setattr(configuration, "__hypothesis_home_directory", None)
    used: list[Path] = []

    def draw(_model: type[Message]) -> list[Message]:
        storage = configuration.storage_directory("constants")
        storage.create_if_missing()
        used.append(storage.path)
        return []

    monkeypatch.setattr(workload, "_drawn", draw)
    workload.generated([shipping])
    assert used
    assert not any(path.exists() for path in (folder, *used))
    folder.mkdir()
    workload.generated([shipping])
    assert used[-1].parent == folder  # which the project has


def test_a_failure_that_needs_what_earlier_runs_have_left_says_so(workshop: Workshop) -> None:
    charged = set[str]()  # as in a variable of a module

    async def body(mesh: Mesh) -> None:
        service = Service("accounts", metadata=Base.metadata)

        @service.subscriber(ChargeCard)
        async def charge(command: ChargeCard, tx: Transaction) -> None:
            if command.order not in charged:
                charged.add(command.order)
                tx.session.add(Charge(order=command.order))

        @mesh.eventually
        def is_charged(read: Read) -> bool:
            return read(service).get(Charge, "first") is not None

        await mesh.start(service)
        await mesh.publish(ChargeCard(order="first"))

    failure = simulate(body, lambda: make_mesh(workshop), Options(seeds=2)).failure
    assert failure is not None
    assert failure.needs_earlier_runs
    assert "earlier runs had a part in it: something outlives a run" in describe(failure, "")


def test_a_request_that_loses_its_database_is_answered_with_an_error_and_does_not_fail_the_run(
    workshop: Workshop,
) -> None:
    """Whichever of its calls is cut, in the request's own queries, too."""
    came_to_its_end: list[bool] = []

    async def body(mesh: Mesh) -> None:
        accounts = make_service(Bank(), is_broken=False)

        async def open_account() -> None:
            async with accounts.transaction() as tx:
                if await tx.session.get(Charge, "first") is None:
                    tx.session.add(Charge(order="first"))

        await mesh.start(accounts)
        came_to_its_end.append(await mesh.request(accounts, open_account))

    calls = range(1, 6)
    for number, how in itertools.product(calls, ("before", "after")):
        plan = Plan.parse(f"1~cut:accounts.web/1:{number}:{how}")
        failure = replay(body, lambda: make_mesh(workshop), plan, Options())
        assert failure is None, f"{plan}: {failure.error}"
    assert came_to_its_end == [False, False] * (len(calls) - 1) + [True, True]


def digests(seeds: int) -> list[str]:
    """The stories of the first seeds of the shop, hashed."""
    found: list[str] = []
    with temporary_workshop() as workshop:

        def make() -> Mesh:
            made.append(make_mesh(workshop))
            return made[-1]

        made: list[Mesh] = []
        simulate(test_the_shop_keeps_its_promises, make, Options(seeds=seeds))
        found += [hashlib.sha256(mesh.story().encode()).hexdigest() for mesh in made]
    return found


def test_the_same_seeds_give_the_same_runs_in_another_process() -> None:
    seeds = 3
    program = f"from tests.testing.test_simulation import digests; print(*digests({seeds}))"
    there = subprocess.run(  # noqa: S603  # this very module
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONHASHSEED": "4711"},
        capture_output=True,
        text=True,
        check=True,
    )
    here = digests(seeds)
    assert len(set(here)) > seeds / 2
    assert there.stdout.split() == here
