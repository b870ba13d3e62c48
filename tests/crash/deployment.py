"""Two databases and a broker's file: everything that outlives a worker process.

`seed` puts a deployment into the state in which every schedule begins, and `Deployment.query`
reads what is in it, past the code under test.
"""

from __future__ import annotations

import asyncio
import sqlite3
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import asyncpg
from sqlalchemy import func, make_url, select, update

from eventmesh import Settings
from eventmesh.clock import Clock
from eventmesh.persistence import migration
from eventmesh.persistence.database import Database
from eventmesh.persistence.tables import outbox
from eventmesh.runtime.relaying.relay import PARK_AFTER
from eventmesh.transports.base import Subscription, TransportOptions, publish_or_raise
from eventmesh.transports.factory import open_transport
from eventmesh.wire.envelope import seal
from tests.crash.services import (
    DELAY,
    METADATA,
    ORDERED,
    REFUSED,
    SPECIAL,
    SUBSCRIPTIONS,
    Take,
    make_desk,
)
from tests.crash.virtual_loop import ThreadlessLoop

Rows = list[tuple[Any, ...]]

_LOCK_RETRY = 0.001  # of the loop's seconds
_LEASE_TIME = 3.0  # of the loop's seconds
_SERVER_LEASE_TIME = 60.0  # real seconds: no lease expires while a relay runs

LONG_AGO = "2000-01-01"
"""An expiry that lies in the past for every clock."""

_TABLES = ("outbox", "inbox", "start", "relay", "saga", "saga_log", "count")


@dataclass(frozen=True)
class Deployment:
    """The databases and files of one schedule."""

    folder: str
    desk: str
    ledger: str
    atomic_batches: bool
    """Whether the broker stores a batch completely or not at all, or message by message."""
    has_sagas: bool = False
    """Whether its services are those of `sagas`, in the place of those of `services`."""

    @property
    def broker_file(self) -> Path:
        return Path(self.folder) / "broker.db"

    @property
    def has_server(self) -> bool:
        return not self.desk.startswith("sqlite")

    @property
    def taken_over_after(self) -> float:
        """Seconds of loop time until another relay has the leases of a dead one. With a server
        they were expired before, so one renewal interval is enough; on files, they expire within
        this time."""
        return 0.6 * _SERVER_LEASE_TIME if self.has_server else 1.2 * _LEASE_TIME

    def settings(self) -> Settings:
        return Settings(
            broker_url=f"sqlite:///{self.broker_file}",
            database_urls={"desk": self.desk, "ledger": self.ledger},
            schemas=Path(self.folder) / "schemas",
            visibility_timeout=2.0,
            lease_time=_SERVER_LEASE_TIME if self.has_server else _LEASE_TIME,
        )

    def json(self) -> dict[str, Any]:
        return asdict(self)

    async def query(self, service: str, *statements: str) -> list[Rows]:
        """The rows of each statement in a service's database, read past the code under test."""
        url = make_url(getattr(self, service))
        if url.get_backend_name() == "sqlite":
            while True:
                try:
                    return query_file(url.database or "", *statements)
                except sqlite3.OperationalError as error:
                    if "locked" not in str(error):
                        raise
                    await asyncio.sleep(_LOCK_RETRY)
        connection = await _connected(
            url.set(drivername="postgresql").render_as_string(hide_password=False)
        )
        return [
            [tuple(row) for row in await connection.fetch(statement)] for statement in statements
        ]

    def query_broker(self, *statements: str) -> list[Rows]:
        """The rows of each statement in the broker's file."""
        return query_file(str(self.broker_file), *statements)


async def _connected(url: str) -> Any:
    """A connection of the test's own, kept for as long as its loop and its process."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, ThreadlessLoop)
    kept = loop.observers
    if url not in kept:
        kept[url] = await asyncpg.connect(url)
    return kept[url]


def sqlite_deployment(folder: Path, *, atomic_batches: bool = True) -> Deployment:
    """A deployment on SQLite files."""
    urls = (f"sqlite+aiosqlite:///{folder}/{name}.db" for name in ("desk", "ledger"))
    return Deployment(str(folder), *urls, atomic_batches)


def query_file(path: str, *statements: str) -> list[Rows]:
    connection = sqlite3.connect(path, isolation_level=None, timeout=0)
    connection.execute("PRAGMA synchronous = OFF")
    try:
        return [connection.execute(statement).fetchall() for statement in statements]
    finally:
        connection.close()


async def create_tables(deployment: Deployment) -> None:
    """Create the tables. For each schedule they are emptied, not created again."""
    Path(deployment.folder).mkdir(parents=True, exist_ok=True)  # noqa: ASYNC240  # nothing else runs
    for service in SUBSCRIPTIONS:
        database = Database(getattr(deployment, service), service=service)
        await migration.upgrade(database, METADATA)
        await database.close()


async def empty(deployment: Deployment) -> None:
    """Reset everything, as before the first message."""
    for file in Path(deployment.folder).glob("broker.db*"):  # noqa: ASYNC240  # as above
        file.unlink()
    for service in SUBSCRIPTIONS:
        await deployment.query(
            service,
            *(f"DELETE FROM eventmesh_{table}" for table in _TABLES),  # noqa: S608  # constants
            "DELETE FROM effects",
            "UPDATE eventmesh_lease SET owner = NULL, expires_at = NULL",
        )


async def seed(deployment: Deployment, clock: Clock) -> None:
    """Begin a schedule: unpublished messages in the desk's outbox, and undelivered ones in the
    broker."""
    await empty(deployment)
    desk = make_desk(clock)
    desk.configure(deployment.settings())
    async with desk:
        async with desk.transaction() as tx:
            for account, numbers in ORDERED.items():
                for number in numbers:
                    tx.send(Take(account=account, number=number))
            for account in ("faulty", "slow", "later"):
                tx.send(
                    Take(account=account, number=SPECIAL[account]),
                    delay=DELAY if account == "later" else 0,
                )
            for number in (98, 99):
                tx.send(Take(account=REFUSED, number=number))
        async with (await desk.database()).connection() as connection:
            first = select(func.min(outbox.c.seq)).where(outbox.c.key == REFUSED).scalar_subquery()
            await connection.execute(
                update(outbox)
                .where(outbox.c.seq == first)
                .values(attempts=PARK_AFTER - 1, last_error="so far", due_at=clock.now())
            )
        max_bytes = desk.settings.max_message_bytes
    sealed = [
        seal(Take(account=each, number=SPECIAL[each]), source="x", clock=clock, max_bytes=max_bytes)
        for each in ("twin", "suspect")
    ]
    options = TransportOptions()
    async with open_transport(f"sqlite:///{deployment.broker_file}", clock, options) as transport:
        await transport.declare(
            [
                Subscription(name, ("desk.take",) if service == "desk" else ("desk.taken",))
                for service, names in SUBSCRIPTIONS.items()
                for name in names
            ]
        )
        await publish_or_raise(transport, [sealed[0], *sealed])
    suspect = sealed[1].id
    deployment.query_broker(f"UPDATE queue SET deliveries = 3 WHERE attributes LIKE '%{suspect}%'")  # noqa: S608


async def expire_leases(deployment: Deployment) -> None:
    """Make the leases of a dead relay expire.

    A server's clock cannot be moved, so its leases are given an expiry in the past. SELECT FOR
    UPDATE comes first, because the server may still be committing the dead relay's last statement.
    """
    if not deployment.has_server:
        return
    for service in SUBSCRIPTIONS:
        await deployment.query(
            service,
            "SELECT bucket FROM eventmesh_lease FOR UPDATE",
            *(
                f"UPDATE eventmesh_{table} SET expires_at = '{LONG_AGO}' "  # noqa: S608
                f"WHERE expires_at IS NOT NULL"
                for table in ("lease", "relay")
            ),
        )
