"""The virtual world: one thread, in which time, processes and databases obey the test."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from eventmesh.testing.virtual import sqlite
from eventmesh.testing.virtual.loop import NeverEnds, Stalled, VirtualLoop
from eventmesh.testing.virtual.process import Answer, Process


def run(main: Coroutine[Any, Any, Any], *, with_servers: bool = False) -> Any:
    loop, connections = VirtualLoop(with_servers=with_servers), sqlite.KeptConnections()
    try:
        with sqlite.on_the_loop(connections):
            return loop.run_until_complete(main)
    finally:
        connections.close()
        loop.close()


def the_loop() -> VirtualLoop:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    return loop


def start(process: Process, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    return asyncio.get_running_loop().create_task(work, context=process.context())


class Undisturbed:
    """Counts, and changes nothing."""

    def before_step(self, process: Process, task: asyncio.Task[Any]) -> None:
        pass

    def answer(self, process: Process, server: str, call: str) -> Answer:
        return Answer()

    def copies(self, number: int) -> int:
        return 1


async def make_table(path: Path) -> AsyncEngine:
    engine = create_async_engine(f"sqlite+aiosqlite:///{path}")
    async with engine.begin() as connection:
        await connection.execute(text("PRAGMA journal_mode = WAL"))
        await connection.execute(text("CREATE TABLE note (number INTEGER)"))
    return engine


async def numbers(engine: AsyncEngine) -> list[int]:
    async with engine.connect() as connection:
        return list((await connection.execute(text("SELECT number FROM note"))).scalars())


async def add(engine: AsyncEngine, number: int, pause: float = 0.0) -> None:
    async with engine.connect() as connection:
        await connection.execute(text("BEGIN IMMEDIATE"))
        await connection.execute(text("INSERT INTO note VALUES (:n)"), {"n": number})
        await asyncio.sleep(pause)
        await connection.commit()


# Time


def test_two_days_pass_at_once_and_in_order() -> None:
    woken: list[tuple[float, str]] = []

    async def sleeper(name: str, seconds: float) -> None:
        await asyncio.sleep(seconds)
        woken.append((the_loop().time(), name))

    async def main() -> None:
        await asyncio.gather(sleeper("day", 86_400), sleeper("second", 1), sleeper("two", 172_800))

    run(main())
    assert woken == [(1, "second"), (86_400, "day"), (172_800, "two")]


def test_what_waits_for_ever_is_named_and_does_not_hang() -> None:
    async def main() -> None:
        await asyncio.get_running_loop().create_future()

    with pytest.raises(Stalled, match=r"nothing can happen any more.* in main"):
        run(main())


def test_what_never_waits_is_named_and_does_not_hang() -> None:
    async def spin() -> None:
        while True:  # noqa: ASYNC110  # it is to wait for nothing
            await asyncio.sleep(0)

    with pytest.raises(NeverEnds, match=r"without end while the time stays 0\.000 s.* in spin"):
        run(spin())


def test_idle_returns_when_all_has_run_and_before_time_goes_on() -> None:
    async def main() -> tuple[list[int], float]:
        done: list[int] = []

        async def count() -> None:
            for number in range(3):
                await asyncio.sleep(0)
                done.append(number)
            await asyncio.sleep(1)
            done.append(99)

        task = asyncio.ensure_future(count())
        await the_loop().idle()
        task.cancel()
        return done, the_loop().time()

    assert run(main()) == ([0, 1, 2], 0.0)


def test_sets_of_tasks_have_the_same_order_in_each_run() -> None:
    async def main() -> list[str]:
        tasks = {asyncio.create_task(asyncio.sleep(0), name=f"task {n}") for n in range(50)}
        await asyncio.wait(tasks)
        return [task.get_name() for task in tasks]

    assert run(main()) == run(main())


# Processes


def test_a_killed_process_takes_no_further_step_and_runs_no_clean_up() -> None:
    seen: list[str] = []

    async def work() -> None:
        try:
            seen.append("began")
            await asyncio.sleep(1)
            seen.append("went on")
        finally:
            seen.append("cleaned up")

    async def main() -> None:
        process = Process("orders")
        process.disturbances = Undisturbed()
        start(process, work())
        await asyncio.sleep(0.5)
        process.kill()
        await asyncio.sleep(5)
        assert seen == ["began"]
        process.revive()
        for task in process.tasks:
            task.cancel()
        await asyncio.wait(process.tasks)

    run(main())


def test_a_paused_process_goes_on_where_it_was() -> None:
    times: list[float] = []

    async def work() -> None:
        for _ in range(3):
            await asyncio.sleep(1)
            times.append(the_loop().time())

    async def main() -> None:
        process = Process("orders")
        process.disturbances = Undisturbed()
        task = start(process, work())
        await asyncio.sleep(1.5)
        process.pause()
        await asyncio.sleep(10)
        process.resume()
        await task

    run(main())
    assert times == [1, 11.5, 12.5]


def test_time_goes_on_when_a_process_is_killed_while_it_connects() -> None:
    async def main() -> float:
        process, loop = Process("worker"), asyncio.get_running_loop()
        with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as client:
            client.setblocking(False)
            connecting = start(process, loop.sock_connect(client, server.getsockname()))
            await asyncio.sleep(0)
            process.kill()
            await asyncio.sleep(1.0)
            assert not connecting.done()
            process.revive()
            connecting.cancel()
            await asyncio.wait([connecting])
            return the_loop().time()

    assert run(main(), with_servers=True) == 1.0


# SQLite


def test_what_a_killed_process_had_not_committed_is_undone_and_its_lock_is_free(
    tmp_path: Path,
) -> None:
    async def main() -> list[int]:
        engine = await make_table(tmp_path / "notes.db")
        its_own = create_async_engine(engine.url)
        process = Process("orders")
        process.disturbances = Undisturbed()
        start(process, add(its_own, 1, pause=10))
        await asyncio.sleep(1)
        process.kill()
        await add(engine, 2)
        found = await numbers(engine)
        assert the_loop().time() == 1.0
        process.revive()
        for task in process.tasks:
            task.cancel()
        await asyncio.wait(process.tasks)
        await engine.dispose()
        return found

    assert run(main()) == [2]


def test_a_lock_is_waited_for_in_virtual_time(tmp_path: Path) -> None:
    async def main() -> tuple[list[int], float]:
        engine = await make_table(tmp_path / "notes.db")
        first = asyncio.create_task(add(engine, 1, pause=5))
        await the_loop().idle()
        await add(engine, 2)
        await first
        found = await numbers(engine), the_loop().time()
        await engine.dispose()
        return found

    found, time = run(main())
    assert found == [1, 2]
    assert 5 <= time < 5.1


def test_sqlite_tells_the_virtual_time(tmp_path: Path) -> None:
    async def main() -> str:
        engine = await make_table(tmp_path / "notes.db")
        await asyncio.sleep(86_400)
        statement = text("SELECT strftime('%Y-%m-%d %H:%M:%f', 'now')")
        async with engine.connect() as connection:
            found = str((await connection.execute(statement)).scalar_one())
        await engine.dispose()
        return found

    assert run(main()) == "2026-01-02 00:00:00.000"


def test_an_option_that_ends_with_its_transaction_is_set_in_each(tmp_path: Path) -> None:
    async def main() -> list[int]:
        engine = await make_table(tmp_path / "notes.db")
        found: list[int] = []
        async with engine.connect() as connection:
            for _ in range(2):
                await connection.execute(text("BEGIN"))
                await connection.execute(text("PRAGMA defer_foreign_keys = ON"))
                option = await connection.execute(text("PRAGMA defer_foreign_keys"))
                found.append(int(option.scalar_one()))
                await connection.commit()
        await engine.dispose()
        return found

    assert run(main()) == [1, 1]


def writes_of(path: Path, *statements: str) -> list[str]:
    """The files that the loop is told of, when these statements are committed."""

    async def main() -> list[str]:
        engine = await make_table(path)
        told: list[str] = []
        async with engine.begin() as connection:
            await connection.execute(text("CREATE TABLE eventmesh_outbox (number INTEGER)"))
            await connection.execute(text("INSERT INTO note VALUES (1)"))
        the_loop().on_write = told.append
        async with engine.connect() as connection:
            await connection.execute(text("BEGIN IMMEDIATE"))
            for statement in statements:
                await connection.execute(text(statement))
            assert told == []
            await connection.commit()
        await engine.dispose()
        return told

    found: list[str] = run(main())
    return found


WRITES = {
    "insert": "INSERT INTO note VALUES (2)",
    "insert of what is read": "INSERT INTO note SELECT number FROM eventmesh_outbox UNION SELECT 2",
    "update": "UPDATE note SET number = 2",
    "delete": "DELETE FROM note",
    "replace": "REPLACE INTO note VALUES (2)",
    "with": "WITH new AS (SELECT 2 AS number) INSERT INTO note SELECT number FROM new",
    "comment": "/* why */ INSERT INTO note VALUES (2)",
    "returning": "INSERT INTO note VALUES (2) RETURNING number",
}


@pytest.mark.parametrize("how", WRITES)
def test_each_commit_that_has_written_is_told(how: str, tmp_path: Path) -> None:
    path = tmp_path / "notes.db"
    assert writes_of(path, WRITES[how]) == [str(path)]


def test_a_write_that_is_committed_by_itself_is_told(tmp_path: Path) -> None:
    async def main() -> tuple[list[str], list[str]]:
        engine = await make_table(tmp_path / "notes.db")
        told: list[str] = []
        the_loop().on_write = told.append
        by_itself = engine.execution_options(isolation_level="AUTOCOMMIT")
        async with by_itself.connect() as connection:
            await connection.execute(text("INSERT INTO note VALUES (2)"))
            at_once = [*told]
            await connection.commit()
        await engine.dispose()
        return at_once, told

    path = str(tmp_path / "notes.db")
    assert run(main()) == ([path], [path])


def test_a_commit_is_not_told_that_only_read_or_wrote_to_tables_of_eventmesh(
    tmp_path: Path,
) -> None:
    assert not writes_of(
        tmp_path / "notes.db",
        "WITH old AS (SELECT number FROM note) SELECT number FROM old",
        "INSERT INTO eventmesh_outbox SELECT number FROM note",
        "UPDATE eventmesh_outbox SET number = 2",
        "DELETE FROM eventmesh_outbox WHERE number IN (SELECT number FROM note)",
        "DELETE FROM note WHERE number = 7",
    )


@pytest.mark.parametrize(("error", "left"), [("before", []), ("after", [1])])
def test_a_commit_whose_connection_is_lost_is_done_or_not(
    error: Any, left: list[int], tmp_path: Path
) -> None:
    class LosesCommits(Undisturbed):
        def answer(self, process: Process, server: str, call: str) -> Answer:
            assert server == "database notes"
            return Answer(error=error if call == "COMMIT" else "")

    async def main() -> list[int]:
        engine = await make_table(tmp_path / "notes.db")
        process = Process("orders")
        process.disturbances = LosesCommits()
        with pytest.raises(Exception, match="disk I/O error"):
            await start(process, add(engine, 1))
        found = await numbers(engine)
        await engine.dispose()
        return found

    assert run(main()) == left
