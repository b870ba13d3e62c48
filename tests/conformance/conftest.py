"""The brokers that the guarantees are tried on; what came out is in `build/conformance.md`."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from eventmesh.testing.conformance import (
    Rig,
    a_restart_loses_nothing,
    each_key_is_in_order_whatever_happens,
    topology_is_declared_again_after_data_loss,
)
from eventmesh.testing.servers import WAYS, ControlledServer, Way, serve_controlled, version_of
from tests.conformance.rigs import rig_in_memory, rig_on_file, rig_on_server
from tests.support.conformance_table import BROKER, GUARANTEE

if TYPE_CHECKING:
    from tests.conftest import Servers

_SERVERS = {"redis": "redis", "amqp": "rabbitmq"}


def brokers() -> list[str]:
    """Every broker that can be had: of a server either the one that the environment gives, or one
    of each generation, which differ by where they come from."""
    found = ["memory", "sqlite"]
    for transport, kind in _SERVERS.items():
        given = os.environ.get(f"EVENTMESH_TEST_{kind.upper()}_URL")
        found += [f"{transport}-given"] if given else [f"{transport}-{way}" for way in WAYS]
    return found


ENDING_SERVERS = (a_restart_loses_nothing, topology_is_declared_again_after_data_loss)
"""The guarantees that restart a server, or take its data, and so need one of their own."""

LONG = (*ENDING_SERVERS, each_key_is_in_order_whatever_happens)
"""The guarantees that take the longest. Where there are containers, an older RabbitMQ beside them
is asked for these in `make soak` only."""


@pytest.hookimpl(tryfirst=True)  # before those of `make soak` are left out
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if "DOCKER_HOST" not in os.environ and not Path("/var/run/docker.sock").exists():
        return
    for item in items:
        params = item.callspec.params if hasattr(item, "callspec") else {}
        if params.get("rig") == "amqp-private" and params.get("guarantee") in LONG:
            item.add_marker(pytest.mark.soak)


@pytest.fixture(scope="module")
def own_server() -> Iterator[Callable[[str, Way], ControlledServer]]:
    """Returns a server that tests may stop, one of each kind and way at a time."""
    with ExitStack() as stack:
        started: dict[tuple[str, Way], ControlledServer] = {}

        def start(kind: str, way: Way) -> ControlledServer:
            if (kind, way) not in started:
                started[kind, way] = stack.enter_context(serve_controlled(kind, way=way))
            return started[kind, way]

        yield start


@pytest.fixture(params=brokers())
async def rig(
    request: pytest.FixtureRequest,
    servers: Servers,
    own_server: Callable[[str, Way], ControlledServer],
    tmp_path: Path,
) -> AsyncIterator[Rig]:
    """A rig on each broker in turn, noted with its version for the table."""
    transport, _, origin = request.param.partition("-")
    match transport:
        case "memory":
            note(request, "memory")
            yield rig_in_memory()
        case "sqlite":
            note(request, f"sqlite {sqlite3.sqlite_version}")
            yield rig_on_file(f"sqlite:///{tmp_path}/broker.db")
        case _:
            kind = _SERVERS[transport]
            note(request, f"{kind} ({origin}: missing)")
            server = servers.find(kind) if origin == "given" else servers.had_by(kind, origin)
            note(request, f"{kind} {await version_of(server)}")
            if origin != "given" and request.node.callspec.params["guarantee"] in ENDING_SERVERS:
                server = own_server(kind, origin)
            async with rig_on_server(server) as on_server:
                yield on_server


@pytest.fixture
async def spread_rig(
    request: pytest.FixtureRequest,
    servers: Servers,
    own_server: Callable[[str, Way], ControlledServer],
) -> AsyncIterator[Rig]:
    """A rig on a Redis, with a prefix that is spread over three slots. A server by itself has no
    slots, but the keys are those of a Cluster, without the braces."""
    server = servers.find("redis")
    note(request, f"redis {await version_of(server)}, 3 slots")
    [way] = [way for way in WAYS if server.origin.startswith(way)] or [None]
    if way is not None and request.node.callspec.params["guarantee"] in ENDING_SERVERS:
        server = own_server("redis", way)
    async with rig_on_server(server, slots=3) as rig:
        yield rig


def note(request: pytest.FixtureRequest, broker: str) -> None:
    """Have what comes out of this test in this column; a later note replaces an earlier one."""
    properties = request.node.user_properties
    properties.append((BROKER, broker))
    properties.append((GUARANTEE, request.node.callspec.params["guarantee"].__name__))
