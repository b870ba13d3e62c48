"""What cannot be simulated is named where it is used, and what never ends does end."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from time import sleep
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from eventmesh import Event, Service, Transaction
from eventmesh.errors import UsageError
from eventmesh.testing.mesh import Mesh
from eventmesh.testing.mesh.databases import temporary_workshop
from eventmesh.testing.mesh.predicates import BrokenPredicate, Read, Violation
from eventmesh.testing.mesh.running import make_mesh, run
from eventmesh.testing.mesh.virtual_mesh import VirtualMesh
from eventmesh.testing.virtual.loop import NeverEnds, Stalled
from eventmesh.testing.virtual.real_world import RealWorld


async def starts_thread() -> None:
    threading.Thread(target=print).start()


async def sleeps() -> None:
    time.sleep(60)  # noqa: ASYNC251


async def sleeps_by_name() -> None:
    sleep(60)  # noqa: ASYNC251


async def keeps_it_to_itself() -> None:
    with suppress(UsageError):
        time.sleep(60)  # noqa: ASYNC251


async def runs_program() -> None:
    subprocess.run(["true"], check=True)  # noqa: ASYNC221, S607


async def connects() -> None:
    socket.create_connection(("127.0.0.1", 9)).close()


async def uses_running_pool() -> None:
    with ThreadPoolExecutor(1) as pool:
        await asyncio.get_running_loop().run_in_executor(pool, print)


async def never() -> None:
    await asyncio.Event().wait()


Work = Callable[[], Awaitable[Any]]

ESCAPES: Mapping[str, tuple[Work, str]] = {
    "to_thread": (lambda: asyncio.to_thread(print), "runs a function in a thread"),
    "executor": (uses_running_pool, "runs a function in a thread"),
    "thread": (starts_thread, "starts a thread"),
    "sleep": (sleeps, "sleeps, which blocks the whole process"),
    "sleep by name": (sleeps_by_name, "sleeps, which blocks the whole process"),
    "kept to itself": (keeps_it_to_itself, "sleeps, which blocks the whole process"),
    "program": (runs_program, "starts a process"),
    "async program": (lambda: asyncio.create_subprocess_exec("true"), "starts a process"),
    "socket": (connects, "looks up a host"),
    "stream": (lambda: asyncio.open_connection("127.0.0.1", 9), "connects a socket"),
    "host": (lambda: asyncio.open_connection("localhost", 9), "runs a function in a thread"),
}


class Base(DeclarativeBase): ...


class Row(Base):
    __tablename__ = "rows"
    id: Mapped[int] = mapped_column(primary_key=True)


class Worked(Event, name="bad.worked", version=1):
    how: str = ""


service = Service("bad", metadata=Base.metadata)


@service.subscriber(Worked)
async def work(event: Worked, tx: Transaction) -> None:
    tx.session.add(Row())
    if event.how == "never":
        await never()
    elif event.how:
        await ESCAPES[event.how][0]()


@pytest.mark.parametrize("how", ESCAPES)
async def test_a_handler_that_leaves_the_virtual_world_ends_the_test_and_is_named(
    mesh: Mesh, how: str
) -> None:
    await mesh.start(service)
    await mesh.publish(Worked(how=how))
    with pytest.raises(RealWorld) as raised:
        await mesh.quiet()
    assert f"{__file__}:" in str(raised.value)
    assert ESCAPES[how][1] in str(raised.value)


@pytest.fixture
def fresh_mesh() -> Iterator[VirtualMesh]:
    with temporary_workshop() as workshop:
        yield make_mesh(workshop)


def test_it_ends_a_test_that_does_not_wait_for_it(fresh_mesh: VirtualMesh) -> None:
    async def body() -> None:
        await fresh_mesh.start(service)
        await fresh_mesh.publish(Worked(how="sleep"))
        await asyncio.sleep(1)

    with pytest.raises(RealWorld, match="in sleeps sleeps"):
        run(fresh_mesh, body)


def test_the_real_world_is_back_after_a_test(fresh_mesh: VirtualMesh) -> None:
    before = time.sleep, sleep, threading.Thread.start

    async def body() -> None:
        assert time.sleep is not before[0]

    run(fresh_mesh, body)
    assert (time.sleep, sleep, threading.Thread.start) == before


class Counted(Event, name="absent.counted", version=1): ...


absent = Service("absent", metadata=Base.metadata)
counted = absent.publisher(Counted)
absent_engine = create_async_engine("sqlite+aiosqlite://")


async def publishes() -> None:
    await counted.publish(Counted())


async def begins() -> None:
    async with absent.transaction():
        pass


async def joins() -> None:
    async with AsyncSession(absent_engine) as session:
        absent.join(session)


ABSENT = r"^The service absent is not in the mesh: call mesh.start first\."


OFF_ITS_LOOP: Mapping[str, Callable[[Mesh], Awaitable[Any]]] = {
    "start": lambda mesh: mesh.start(service),
    "restart": lambda mesh: mesh.restart(service),
    "publish": lambda mesh: mesh.publish(Worked()),
    "quiet": lambda mesh: mesh.quiet(),
    "advance": lambda mesh: mesh.advance("1s"),
    "settle": lambda mesh: mesh.settle(),
}


@pytest.mark.parametrize("call", OFF_ITS_LOOP)
def test_a_mesh_that_is_used_on_another_event_loop_says_so(mesh: Mesh, call: str) -> None:
    async def elsewhere() -> None:
        with pytest.raises(UsageError, match=r"^The mesh was used outside of its test"):
            await OFF_ITS_LOOP[call](mesh)

    asyncio.run(elsewhere())


@pytest.mark.parametrize("uses", [publishes, begins, joins])
async def test_a_service_that_was_not_started_does_not_use_the_database_of_its_settings(
    mesh: Mesh, uses: Work
) -> None:
    await mesh.start(service)
    with pytest.raises(UsageError, match=ABSENT):
        await uses()


async def test_a_handler_that_uses_a_service_that_was_not_started_ends_the_test(mesh: Mesh) -> None:
    counting = Service("counting", metadata=Base.metadata)

    @counting.subscriber(Worked)
    async def count(event: Worked, tx: Transaction) -> None:
        with suppress(UsageError):
            await publishes()

    await mesh.start(counting)
    await mesh.publish(Worked())
    with pytest.raises(UsageError, match=ABSENT):
        await mesh.quiet()


async def test_a_predicate_that_raises_is_named_and_nothing_is_retried(mesh: Mesh) -> None:
    @mesh.always
    def wrong(read: Read) -> bool:
        return bool({}["missing"])

    await mesh.start(service)
    await mesh.publish(Worked())
    with pytest.raises(BrokenPredicate, match=rf"wrong raised KeyError at {__file__}:\d+"):
        await mesh.quiet()
    mesh.predicates.always.clear()


async def test_a_predicate_that_raises_in_the_end_is_named(mesh: Mesh) -> None:
    @mesh.eventually
    def wrong(read: Read) -> bool:
        return bool(1 / 0)

    with pytest.raises(BrokenPredicate, match="wrong raised ZeroDivisionError"):
        mesh.predicates.ask_at_end()


async def test_a_predicate_that_fails_without_words_is_told_by_its_line(mesh: Mesh) -> None:
    @mesh.eventually
    def wrong(read: Read) -> None:
        raise AssertionError

    place = rf"raise AssertionError at {__file__}:\d+"
    with pytest.raises(Violation, match=f"wrong must hold in the end, and does not: {place}"):
        mesh.predicates.ask_at_end()


async def test_what_must_hold_once_may_raise_assertion_errors_until_then(mesh: Mesh) -> None:
    @mesh.sometimes
    def has_rows(read: Read) -> None:
        assert read(service).get(Row, 2)

    await mesh.start(service)
    await mesh.publish(Worked())
    await mesh.quiet()
    assert mesh.predicates.held == set()
    await mesh.publish(Worked())
    await mesh.quiet()
    assert mesh.predicates.held == {"has_rows"}


async def test_a_coroutine_function_is_not_a_predicate(mesh: Mesh) -> None:
    async def wrong(read: Read) -> bool:
        return False

    for takes in (mesh.always, mesh.eventually, mesh.sometimes):
        with pytest.raises(UsageError, match=r"wrong is a coroutine function: write it with `def`"):
            takes(wrong)  # type: ignore[arg-type]  # what is wrong


async def always_again() -> None:
    while True:  # noqa: ASYNC110
        await asyncio.sleep(0)


async def every_second() -> None:
    while True:  # noqa: ASYNC110
        await asyncio.sleep(1)


@pytest.mark.parametrize("waits", [never, always_again, every_second])
def test_a_test_that_never_ends_is_ended_with_the_places_where_it_waits(
    fresh_mesh: VirtualMesh, waits: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eventmesh.testing.virtual.loop.MOST_IDLE_TURNS", 100)
    monkeypatch.setattr("eventmesh.testing.virtual.loop.MOST_TURNS_AT_ONCE", 1_000)
    cleaned_up = False

    async def body() -> None:
        nonlocal cleaned_up
        await fresh_mesh.start(service)
        try:
            await waits()
        finally:
            cleaned_up = True

    with pytest.raises(NeverEnds, match=rf"{Path(__file__).name}:\d+ in {waits.__name__}"):
        run(fresh_mesh, body)
    assert cleaned_up


async def test_a_handler_that_never_ends_is_named_with_the_place_where_it_waits(
    mesh: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eventmesh.testing.mesh.virtual_mesh.LONGEST_HANDLING", 5.0)
    await mesh.start(service)
    await mesh.publish(Worked(how="never"))
    with pytest.raises(AssertionError) as raised:
        await mesh.quiet()
    [what, *_] = str(raised.value).split("\n")
    assert "this is still going on: bad.work handles 1 messages" in what
    assert what.endswith(" in never waits")
    assert f"bad: tests/testing/{Path(__file__).name}:" in what
    await mesh.kill(service)


def test_a_test_that_waits_for_nothing_is_told_so(fresh_mesh: VirtualMesh) -> None:
    with pytest.raises(Stalled, match="nothing can happen any more, and the test waits"):
        run(fresh_mesh, never)
