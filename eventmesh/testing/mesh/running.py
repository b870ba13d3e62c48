"""Running a test in the virtual world, or on real servers, from its beginning to its end."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from eventmesh.persistence.database import Database
from eventmesh.persistence.joined import AnySession
from eventmesh.persistence.transaction import Transaction
from eventmesh.runtime.declaring.service import DeclaredService as Service
from eventmesh.runtime.declaring.settings import Settings, load_settings
from eventmesh.testing.mesh.base import Mesh
from eventmesh.testing.mesh.databases import Workshop
from eventmesh.testing.mesh.garbage import collected_afterwards
from eventmesh.testing.mesh.logs import taken_by
from eventmesh.testing.mesh.real_mesh import RealMesh
from eventmesh.testing.mesh.virtual_mesh import VirtualMesh
from eventmesh.testing.virtual import real_world, sqlite
from eventmesh.testing.virtual.clock import wall_clock
from eventmesh.testing.virtual.loop import NeverEnds, Stalled, VirtualLoop

_ENDING = 60.0
"""Seconds for the tasks that a test has left to end, once they are cancelled."""


def run(mesh: VirtualMesh, body: Callable[[], Awaitable[None]], *, seed: int = 0) -> None:
    """Run `body` in the world of this mesh, then end all workers. Raises what the body raised, or
    else what ended a worker."""
    with in_world(mesh, seed):
        whole = mesh.loop.create_task(_run(mesh, body))
        try:
            mesh.loop.run_until_complete(whole)
        except (NeverEnds, Stalled):  # of the loop, which has stopped in the middle of the body
            if not whole.done():
                mesh.loop.restart_limits()
                whole.cancel()
                with suppress(asyncio.CancelledError, Exception):
                    mesh.loop.run_until_complete(whole)
            raise


def run_on_servers(mesh: RealMesh, body: Callable[[], Awaitable[None]]) -> None:
    """Run `body` on real servers and in real time, then end all workers. Raises as `run`."""

    async def opened() -> None:
        await mesh.open()
        await body()

    # With a factory, the runner leaves alone which loop the thread has.
    runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
    with _only_members(mesh), taken_by(_noting(mesh)), runner:
        runner.run(_run(mesh, opened))


async def _run(mesh: Mesh, body: Callable[[], Awaitable[None]]) -> None:
    try:
        await body()
    except BaseException:
        await _end(mesh, is_failed=True)
        raise
    await _end(mesh, is_failed=False)


async def _end(mesh: Mesh, *, is_failed: bool) -> None:
    try:
        await mesh.close()
    except Exception:
        if not is_failed:
            raise
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    if left:
        await asyncio.wait(left, timeout=_ENDING)


@contextmanager
def in_world(mesh: VirtualMesh, seed: int) -> Iterator[None]:
    """While the context is open, what runs on the mesh's loop has its time, and SQLite runs on it;
    the loop is closed afterwards. Threads, sockets and sleeps are refused, and so are databases of
    services that are not in the mesh."""

    with ExitStack() as stack:
        stack.callback(mesh.loop.close)
        stack.enter_context(mesh.workshop.mesh())
        stack.enter_context(_only_members(mesh))
        stack.enter_context(taken_by(_noting(mesh)))
        stack.enter_context(sqlite.on_the_loop(mesh.workshop.connections))
        stack.enter_context(collected_afterwards())
        stack.enter_context(wall_clock(mesh.loop, seed))
        stack.enter_context(real_world.refused(mesh.notice))
        yield


@contextmanager
def _only_members(mesh: Mesh) -> Iterator[None]:
    """While the context is open, no service uses a database that is not the mesh's: a publisher of
    one that was not started would write to the database that a developer works with."""
    database, join = Service.database, Service.join

    async def own_database(service: Service) -> Database:
        mesh.require_member(service)
        return await database(service)

    def own_join(service: Service, session: AnySession) -> Transaction:
        mesh.require_member(service)
        return join(service, session)

    Service.database, Service.join = own_database, own_join  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        Service.database, Service.join = database, join  # type: ignore[method-assign]


def _noting(mesh: Mesh) -> Callable[[str, MutableMapping[str, Any]], None]:
    """Takes log lines into the story."""

    def take(_level: str, fields: MutableMapping[str, Any]) -> None:
        where = str(fields.get("service", "test"))
        reason = str(fields.get("error") or fields.get("reason") or "").split("\n")[0]
        mesh.record.note(where, f"{fields['event']}: {reason}" if reason else fields["event"])

    return take


def make_mesh(workshop: Workshop, settings: Settings | None = None) -> VirtualMesh:
    """A mesh on a loop of its own, to be `run`; with these settings, or those of the environment,
    which take a while to load."""
    return VirtualMesh(VirtualLoop(), workshop, load_settings() if settings is None else settings)
