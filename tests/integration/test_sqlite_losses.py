"""A broker file may be deleted or replaced while it is used. Publishers and consumers notice it and
create the file again, and later messages reach their subscriptions."""

from __future__ import annotations

import asyncio
import sqlite3
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from eventmesh.errors import Unreachable
from eventmesh.transports.base import TransportOptions, publish_or_raise
from eventmesh.transports.outcome import DONE
from eventmesh.transports.sqlite.transport import SqliteTransport
from tests.integration.redis_traffic import CLOCK, PAID, Traffic, envelopes, running, take

if TYPE_CHECKING:
    from tests.integration.conftest import Project, Put

ROOT = Path(__file__).parents[2]

FILES = ("broker.db-wal", "broker.db-shm", "broker.db")
"""Deleted in this order, so that no process creates a new file while old companions still exist."""

PUBLISHER = """
import asyncio, sys
from eventmesh.transports.base import publish_or_raise
from tests.integration.redis_traffic import PAID, envelopes
from tests.integration.test_sqlite_losses import opened
from pathlib import Path

async def main():
    async with opened(Path(sys.argv[1])) as transport:
        await transport.declare([PAID])
        for line in iter(sys.stdin.readline, ""):
            await publish_or_raise(transport, envelopes(int(line)))
            print("published", flush=True)

asyncio.run(main())
"""
"""Another process: it publishes as many messages as each line of its input says."""


@asynccontextmanager
async def opened(folder: Path) -> AsyncIterator[SqliteTransport]:
    transport = SqliteTransport(f"sqlite:///{folder}/broker.db", CLOCK, TransportOptions())
    await transport.connect()
    try:
        yield transport
    finally:
        await transport.close()


def delete_the_subscriptions(folder: Path) -> None:
    with closing(sqlite3.connect(folder / "broker.db", timeout=60)) as file, file:
        file.execute("DELETE FROM binding")


def delete_the_file(folder: Path) -> None:
    for name in FILES:
        (folder / name).unlink(missing_ok=True)


def delete_the_file_only(folder: Path) -> None:
    """Delete the file, but not its `-wal` and `-shm`."""
    (folder / "broker.db").unlink()


def move_the_folder(folder: Path) -> None:
    folder.rename(folder.with_name(f"{folder.name}-{len(list(folder.parent.iterdir()))}"))


def replace_the_file(folder: Path) -> None:
    """Replace the file by a database without any table."""
    other = folder / "other.db"
    with closing(sqlite3.connect(other)) as file, file:
        file.execute("PRAGMA user_version = 0")
    for name in FILES[:-1]:
        (folder / name).unlink(missing_ok=True)
    other.rename(folder / "broker.db")


LOSSES = [
    delete_the_subscriptions,
    delete_the_file,
    delete_the_file_only,
    move_the_folder,
    replace_the_file,
]


@pytest.mark.parametrize("lose", LOSSES)
async def test_publishers_and_consumers_continue_after(
    lose: Callable[[Path], None], tmp_path: Path
) -> None:
    folder = tmp_path / "broker"
    async with opened(folder) as publishing, opened(folder) as consuming:
        publisher, consumer = Traffic(publishing), Traffic(consuming)
        await consuming.declare([PAID])

        async def publish_and_handle() -> None:
            await publisher.publish(envelopes(3))
            consumer.published = publisher.published
            await consumer.until_all_is_handled()

        async with running(consumer.keep_consuming()):
            await publish_and_handle()
            for _ in range(3):
                lose(folder)
                await publish_and_handle()
        assert all("was deleted or replaced" in error for error in consumer.consuming_errors)
        assert not publisher.publishing_errors


@asynccontextmanager
async def publishing_process(folder: Path) -> AsyncIterator[Callable[[int], Awaitable[None]]]:
    """Start another process, which has the file open, and yield a function that publishes from
    it."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", PUBLISHER, str(folder)), stdin=PIPE, stdout=PIPE, cwd=ROOT
    )
    assert process.stdin is not None
    assert process.stdout is not None
    commands, answers = process.stdin, process.stdout

    async def publish(count: int) -> None:
        commands.write(b"%d\n" % count)
        assert await answers.readline() == b"published\n"

    try:
        yield publish
        commands.close()
        assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_a_deleted_file_that_another_process_has_open_is_created_again(
    tmp_path: Path,
) -> None:
    """The remaining `-wal` and `-shm` belong to the deleted file."""
    async with publishing_process(tmp_path) as publish_elsewhere:
        await publish_elsewhere(200)
        async with opened(tmp_path) as transport:
            for _ in range(2):
                delete_the_file_only(tmp_path)
                await transport.declare([PAID])
                await publish_or_raise(transport, envelopes(3))
                await publish_elsewhere(4)
                assert (await transport.stats(PAID)).ready == 7
    with closing(sqlite3.connect(tmp_path / "broker.db")) as file:
        assert file.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert file.execute("SELECT count(*) FROM queue").fetchone() == (7,)


async def test_deliveries_of_a_deleted_file_settle_nothing_in_the_new_one(
    tmp_path: Path,
) -> None:
    """Messages of both files have the same numbers."""
    async with opened(tmp_path) as transport:
        await transport.declare([PAID])
        await publish_or_raise(transport, envelopes(2))

        async def settle_deleted() -> None:
            async with transport.consume(PAID, prefetch=4) as consumer:
                held = await take(consumer, 2)
                delete_the_file(tmp_path)
                await transport.declare([PAID])
                await publish_or_raise(transport, new)
                for _ in range(2):
                    with pytest.raises(Unreachable, match="was deleted or replaced"):
                        await consumer.settle([(delivery, DONE) for delivery in held])
                await consumer.receive(2)

        new = envelopes(2)
        with pytest.raises(Unreachable, match="was deleted or replaced"):
            await settle_deleted()
        async with transport.consume(PAID, prefetch=4) as consumer:
            got = await take(consumer, 2)
            assert [delivery.envelope for delivery in got] == new
            assert [delivery.deliveries for delivery in got] == [1, 1]


async def test_a_census_does_not_create_a_deleted_file_again(tmp_path: Path) -> None:
    async with opened(tmp_path) as transport:
        await transport.declare([PAID])
    options = TransportOptions(create_missing=False)
    looking = SqliteTransport(f"sqlite:///{tmp_path}/broker.db", CLOCK, options)
    await looking.connect()
    try:
        delete_the_file(tmp_path)
        with pytest.raises(Unreachable, match="was deleted or replaced"):
            await looking.census([PAID])
        assert not (tmp_path / "broker.db").exists()
    finally:
        await looking.close()


@pytest.mark.parametrize("lose", [delete_the_subscriptions, delete_the_file])
async def test_a_worker_continues_after(
    lose: Callable[[Path], None],
    bank: Project,
    put: Put,
    attributes: Callable[..., dict[str, str]],
) -> None:
    worker = bank.worker()
    await asyncio.to_thread(lose, bank.root / ".eventmesh")
    await put(bank, attributes(), b'{"owner": "ada", "cents": 1250}')
    worker.until_prints("ada has 12.50")
    worker.drain()
