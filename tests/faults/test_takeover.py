"""Two relays share an outbox, and one of them is killed."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest
from sqlalchemy import select

from eventmesh import Service, Settings
from eventmesh.persistence.database import Database
from eventmesh.persistence.outbox import bucket_of
from eventmesh.persistence.tables import BUCKETS, lease
from tests.faults.conftest import At
from tests.faults.services.till import service as till
from tests.faults.system_under_test import SystemUnderTest, kill
from tests.support.promised_times import allowed

TAKEOVER = 10.0
"""Seconds after a SIGKILL within which another relay publishes what the dead one would have, in the
soak; five are promised, and measured by `benchmarks.takeover`."""

ACCOUNTS = {bucket_of(name, ""): name for name in (f"account-{n}" for n in range(1000))}
"""One for each bucket."""


@dataclass
class Till:
    """The till's outbox and what comes of it, as a process sees it that is no worker."""

    source: Service
    database: Database

    async def publish(self, number: int) -> None:
        """A message of this number in each bucket."""
        for account in ACCOUNTS.values():
            async with self.source.transaction() as tx:
                tx.publish(till.Applied(account=account, number=number))

    async def shared(self) -> bool:
        """Whether two relays have half of the buckets each."""
        async with self.database.reading() as connection:
            held = Counter(await connection.scalars(select(lease.c.owner)))
        return None not in held and list(held.values()) == [BUCKETS // 2] * 2

    async def noted(self, number: int) -> bool:
        """Whether all messages of this number have had their effect, each once."""
        query = select(till.Effect.account).where(till.Effect.number == number)
        async with self.database.reading() as connection:
            return sorted(await connection.scalars(query)) == sorted(ACCOUNTS.values())


@asynccontextmanager
async def till_of(system: SystemUnderTest) -> AsyncIterator[Till]:
    url = system.endpoints.database_url
    source = Service("till")
    source.publisher(till.Applied)
    source.configure(Settings(database_urls={"till": url}, schemas=system.project.root / "schemas"))
    async with source:
        yield Till(source, await source.database())


@pytest.mark.parametrize(("broker", "database"), [("sqlite", "sqlite"), ("redis", "postgres")])
async def test_another_relay_takes_over_in_time(at: At, broker: str, database: str) -> None:
    async with at(broker, database) as system, till_of(system) as its:
        system.services = ("till",)
        del system.project.environment["EVENTMESH_LEASE_TIME"]  # as it is where nobody sets it
        for _ in range(2):
            await system.until_ready(system.start_worker())
        await system.until(its.shared, "two relays with half of the buckets each")
        await its.publish(1)
        await system.until(lambda: its.noted(1), "what both relays bring")

        kill(system.workers[-1])
        killed_at = time.monotonic()
        await its.publish(2)
        left = killed_at + allowed(TAKEOVER) - time.monotonic()
        await system.until(lambda: its.noted(2), "what the dead one would have brought", left)
