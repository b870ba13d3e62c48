"""A Redis Cluster for tests: three masters, of which one has a replica."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redis.exceptions import RedisError

from eventmesh.testing.servers.processes import free_port
from eventmesh.transports.base import TransportOptions
from eventmesh.transports.redis.transport import RedisTransport
from tests.integration.redis_nodes import Node, until
from tests.integration.redis_traffic import CLOCK


@dataclass
class Cluster:
    """Three masters, and a replica of the one that has the tests' slot."""

    members: list[Node]
    owner: Node
    replica: Node

    @property
    def url(self) -> str:
        # One node is enough: it knows the others.
        return f"redis+cluster://:{self.owner.password}@127.0.0.1:{self.members[0].port}/"

    @property
    def masters(self) -> list[Node]:
        """The masters that it began with."""
        return [node for node in self.members if node is not self.replica]

    def others(self) -> list[Node]:
        return [node for node in self.members if node is not self.owner]


PREFIX = "mesh"


def member(folder: Path) -> Node:
    return Node(
        folder,
        cluster_enabled="yes",
        cluster_node_timeout="15000",
        cluster_port=str(free_port()),
        repl_diskless_sync_delay="0",
    )


def create_cluster(members: list[Node]) -> Cluster:
    *masters, replica = members
    bounds = [0, 5461, 10923, 16384]
    for number, node in enumerate(masters):
        node.tell("CLUSTER", "ADDSLOTSRANGE", bounds[number], bounds[number + 1] - 1)
        node.tell("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
    for node in members[1:]:
        bus = int(node.settings["cluster-port"])
        members[0].tell("CLUSTER", "MEET", "127.0.0.1", node.port, bus)
    until(lambda: all(knows(node, 4) for node in members), "members that know each other")
    slot = int(masters[0].tell("CLUSTER", "KEYSLOT", f"{{{PREFIX}}}"))
    owner = masters[next(n for n in range(3) if slot < bounds[n + 1])]
    identity = owner.tell("CLUSTER", "MYID").decode()
    until(lambda: replica.ask("CLUSTER", "REPLICATE", identity), "a replica")
    until(lambda: all(state(node) == "ok" for node in members), "a cluster that is whole")
    until(lambda: online_replicas(owner) == 1, "a replica that is online")
    return Cluster(members, owner, replica)


def knows(node: Node, count: int) -> bool:
    return len((node.ask("CLUSTER", "NODES") or b"").strip().splitlines()) == count


def state(node: Node) -> str:
    told = (node.ask("CLUSTER", "INFO") or b"").decode()
    return "ok" if "cluster_state:ok" in told else "down"


def role(node: Node) -> str:
    """The node's role; empty while it does not answer, as a demoted one closes all connections."""
    answer = node.ask("ROLE")
    return answer[0].decode() if answer else ""


def online_replicas(node: Node) -> int:
    with suppress(RedisError), node.client() as client:
        told: Any = client.info("replication")
        return sum(
            isinstance(value, dict) and value.get("state") == "online" for value in told.values()
        )
    return 0


@asynccontextmanager
async def opened_on(cluster: Cluster, query: str = "") -> AsyncIterator[RedisTransport]:
    transport = RedisTransport(
        cluster.url + query, CLOCK, TransportOptions(visibility_timeout=60.0, prefix=PREFIX)
    )
    try:
        await transport.connect()
        yield transport
    finally:
        await transport.close()
