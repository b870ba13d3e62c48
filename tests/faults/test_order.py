"""An ordered subscription with three workers, whose handler fails at random. One is killed, one
stands still until others have its messages and then wakes, and one is drained."""

from __future__ import annotations

import signal
import time
from collections import Counter

import pytest

from eventmesh.persistence import migration
from eventmesh.persistence.database import Database
from eventmesh.transports.base import Subscription
from tests.faults.conftest import At
from tests.faults.services.feed import service as feed
from tests.faults.services.ledger import service as ledger
from tests.faults.system_under_test import SystemUnderTest, kill

ACCOUNTS = 40
AT_ONCE = 4
"""Messages of each account that are published in one transaction."""

STANDSTILL = 3.0
"""Seconds: more than the visibility timeout of these tests."""


class Ledger:
    """The ledger's entries, and what was asked for."""

    def __init__(self, system: SystemUnderTest) -> None:
        self._system = system
        self._asked = 0

    async def ask(self) -> None:
        """Publish the next messages of each account."""
        numbers = range(self._asked, self._asked + AT_ONCE)
        for account in range(ACCOUNTS):
            async with self._system.source.transaction() as tx:
                for number in numbers:
                    tx.publish(feed.Asked(account=f"account-{account}", number=number))
        self._asked += AT_ONCE

    async def rows(self) -> list[tuple[str, int, int]]:
        found = await self._system.effects.ask("SELECT account, number, before FROM entries")
        return [(str(a), int(str(n)), int(str(b))) for a, n, b in found]

    async def count(self) -> int:
        return len(await self.rows())

    async def has_more(self, share: float = 0.2) -> None:
        """Wait for this share of what is asked for and has no entry yet."""
        there = await self.count()
        left = self._asked * ACCOUNTS - there
        await self._system.until_counted(self.count, there + round(left * share), "entries")

    async def has_all(self) -> None:
        await self._system.until_counted(self.count, self._asked * ACCOUNTS, "entries")

    async def check(self) -> None:
        """Each message has one entry, in its place."""
        rows = await self.rows()
        counts = Counter((account, number) for account, number, _ in rows)
        assert len(counts) == self._asked * ACCOUNTS
        assert set(counts.values()) == {1}
        assert [row for row in rows if row[1] != row[2]] == [], "out of order"


@pytest.mark.parametrize(
    ("broker", "database"),
    [
        ("sqlite", "sqlite"),
        pytest.param("sqlite", "postgres", marks=pytest.mark.soak),
        ("redis", "postgres"),
        ("amqp", "postgres"),
    ],
)
async def test_each_key_is_in_order_through_kills_standstills_and_drains(
    broker: str, database: str, at: At
) -> None:
    async with at(broker, database) as system:
        entries = await prepared(system)
        for _ in range(3):
            await system.until_ready(system.start_worker())
        killed, stands_still, drained = system.workers

        await entries.ask()
        await entries.has_more()
        kill(killed)
        await system.until_ready(system.start_worker())

        for _ in range(2):  # not later: what stands still may hold the lock of the feed's file
            await entries.ask()
        await entries.has_more()
        stands_still.process.send_signal(signal.SIGSTOP)
        began = time.monotonic()
        # Others may have to wait for it: its transaction may hold what they need.
        await system.until(lambda: time.monotonic() - began > STANDSTILL, "the end of its lease")
        stands_still.process.send_signal(signal.SIGCONT)

        await entries.ask()
        system.harmless_codes |= {0}
        drained.tell(signal.SIGTERM)
        await entries.has_all()
        assert drained.ended().code == 0
        await entries.check()
        await is_empty(system)


async def prepared(system: SystemUnderTest) -> Ledger:
    """The ledger instead of the till, in the same database."""
    url = system.endpoints.database_url
    system.services = ("feed", "ledger")
    system.project.environment["EVENTMESH_LEDGER_DATABASE_URL"] = url
    database = Database(url, service="ledger")
    try:
        await migration.upgrade(database, ledger.Base.metadata)
    finally:
        await database.close()
    return Ledger(system)


async def is_empty(system: SystemUnderTest) -> None:
    subscription: Subscription = ledger.service.handlers["ledger.post"].subscription

    async def nothing_waits() -> bool:
        async with system.transport() as transport:
            stats = await transport.stats(subscription)
        assert stats.dead == 0
        return not (stats.ready or stats.delayed or stats.in_flight or stats.held)

    await system.until(nothing_waits, "a queue that is empty")
