"""A private Redis for the tests of a module, emptied before each, and a transport on it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from eventmesh.transports.redis.transport import RedisTransport
from tests.integration.redis_nodes import Node, nodes
from tests.integration.redis_traffic import PAID, opened


@pytest.fixture(scope="module")
def module_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    folder = tmp_path_factory.mktemp("redis")
    with nodes(folder) as keep:
        yield keep(Node(folder / "node")).start()


@pytest.fixture
def node(module_node: Node) -> Node:
    """The module's Redis, empty."""
    module_node.tell("FLUSHALL")
    return module_node


@pytest.fixture
async def transport(node: Node) -> AsyncIterator[RedisTransport]:
    """A transport on that Redis, where the subscription `PAID` is declared."""
    async with opened(node.url) as transport:
        await transport.declare([PAID])
        yield transport
