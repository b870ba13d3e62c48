"""A disk that is full: of a service's database, of the broker file, and of PostgreSQL."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from eventmesh.testing.servers.processes import unprivileged_account
from tests.faults.conftest import At, Record
from tests.faults.disks import NoDisk, full, small_disk
from tests.faults.fault_run import check, run_through_fault
from tests.faults.faults import Fault, Make
from tests.faults.system_under_test import SystemUnderTest

MEGABYTES = 24


@pytest.fixture
def disk() -> Iterator[Path]:
    """A small disk."""
    try:
        with small_disk(MEGABYTES) as folder:
            yield folder
    except NoDisk as why:
        pytest.skip(f"{why}: run as root to have this tested")


def filled(disk: Path) -> Make:
    @asynccontextmanager
    async def fault(_system: SystemUnderTest) -> AsyncIterator[None]:
        with full(disk):
            yield

    return fault


@pytest.mark.parametrize(
    "broker",
    ["sqlite", *(pytest.param(name, marks=pytest.mark.soak) for name in ("redis", "amqp"))],
)
async def test_the_disk_of_a_sqlite_database_is_full(
    broker: str, disk: Path, at: At, record: Record, amount: int, hold: float
) -> None:
    fault = Fault("disk full under the database", filled(disk), stops=True)
    async with at(broker, "sqlite", database_folder=disk) as system:
        row = await run_through_fault(system, fault, amount, hold)
        record(row)
        check(system, row)


@pytest.mark.parametrize("database", ["sqlite", pytest.param("postgres", marks=pytest.mark.soak)])
async def test_the_disk_of_the_broker_file_is_full(
    database: str, disk: Path, at: At, record: Record, amount: int, hold: float
) -> None:
    fault = Fault("disk full under the broker", filled(disk), stops=True)
    async with at("sqlite", database, broker_folder=disk) as system:
        row = await run_through_fault(system, fault, amount, hold)
        record(row)
        check(system, row)


@pytest.mark.parametrize(
    "broker",
    ["redis", *(pytest.param(name, marks=pytest.mark.soak) for name in ("sqlite", "amqp"))],
)
async def test_the_disk_of_a_postgres_table_space_is_full(
    broker: str, disk: Path, at: At, record: Record, amount: int, hold: float
) -> None:
    fault = Fault("disk full under the table space", filled(disk), stops=True)
    if (account := unprivileged_account()) is not None:
        os.chown(disk, account.user, account.group)  # PostgreSQL takes no other
    async with at(broker, "postgres", tablespace=disk) as system:
        row = await run_through_fault(system, fault, amount, hold)
        record(row)
        check(system, row)
