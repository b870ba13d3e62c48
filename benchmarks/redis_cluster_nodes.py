"""A Redis Cluster in containers, by the `docker` command: three masters, each with a share of the
slots. The one with the slot of EventMesh's prefix has two replicas, so that publishing can wait for
one of them while the master is down. The others may have one each, which they need if the prefix is
spread over their slots, too."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from benchmarks.rabbitmq_cluster_nodes import (
    CLUSTER_PATIENCE,
    Failed,
    docker,
    free_ports,
    removed,
    until,
)

MASTERS, REPLICAS = 3, 2
BOUNDS = (0, 5461, 10923, 16384)
PREFIX = "eventmesh"


@dataclass(frozen=True)
class Node:
    """A container with one node, on the host's network."""

    name: str
    container: str
    port: int
    bus_port: int
    password: str

    async def ask(self, *command: str | int) -> Any:
        """The answer to a command; RedisError while there is none."""
        retry = Retry(NoBackoff(), 0)
        async with Redis(
            host="127.0.0.1", port=self.port, password=self.password, protocol=2, retry=retry
        ) as client:
            return await client.execute_command(*command)

    async def has_slots_and_replicas(self, replicas: int) -> bool:
        """Whether it is a master that serves the slot of the prefix, with so many replicas."""
        try:
            role, _, online = await self.ask("ROLE")
            return role == b"master" and len(online) >= replicas
        except (RedisError, ValueError):  # a replica's answer has more parts
            return False


@dataclass(frozen=True)
class Cluster:
    """The nodes: first the masters, of which the last has the slot of the prefix, then its
    replicas, then those of the others."""

    nodes: Sequence[Node]

    @property
    def url(self) -> str:
        """The URL that names one of them, which knows the others."""
        first = self.nodes[0]
        return f"redis+cluster://:{first.password}@127.0.0.1:{first.port}/?wait_replicas=1"

    @property
    def masters(self) -> Sequence[Node]:
        """The masters that it began with."""
        return self.nodes[:MASTERS]

    @property
    def of_the_prefix(self) -> Sequence[Node]:
        return self.nodes[MASTERS - 1 : MASTERS + REPLICAS]

    async def master(self) -> Node:
        """The node that serves the slot of the prefix now."""
        for node in self.of_the_prefix:
            if await node.has_slots_and_replicas(1):
                return node
        raise Failed("No node serves the slot of the prefix.")

    async def whole(self) -> None:
        """Return once one of the prefix's nodes is its master, and the others are online."""
        await until(self._is_whole, "the cluster to be whole", CLUSTER_PATIENCE)

    async def _is_whole(self) -> bool:
        masters = [await node.has_slots_and_replicas(REPLICAS) for node in self.of_the_prefix]
        return masters.count(True) == 1


@asynccontextmanager
async def running_cluster(image: str, *, replicas_of_all: bool = False) -> AsyncIterator[Cluster]:
    """All nodes, which know each other; removed on leaving."""
    name, password = f"eventmesh-{secrets.token_hex(6)}", secrets.token_hex(16)
    count = MASTERS + REPLICAS + (MASTERS - 1 if replicas_of_all else 0)
    ports = free_ports(2 * count)
    nodes = [
        Node(f"node-{number}", f"{name}-{number}", ports[number], ports[count + number], password)
        for number in range(count)
    ]
    async with AsyncExitStack() as stack:
        for node in nodes:
            # Before it is there, because being told to stop may come in between.
            stack.push_async_callback(removed, node.container)
            await docker(
                *("run", "--detach", "--name", node.container, "--network", "host"),
                *("--label", f"eventmesh.cluster={name}", "--entrypoint", "redis-server", image),
                *("--port", str(node.port), "--cluster-port", str(node.bus_port)),
                *("--bind", "127.0.0.1", "--requirepass", password, "--masterauth", password),
                *("--cluster-enabled", "yes", "--cluster-node-timeout", "1000"),
                *("--dir", "/tmp", "--appendonly", "yes", "--repl-diskless-sync-delay", "0"),  # noqa: S108  # in the container
            )
        cluster = Cluster(nodes)
        for node in nodes:
            await until(lambda node=node: _answers(node), f"{node.name}", CLUSTER_PATIENCE)  # type: ignore[misc]
        await _join(nodes)
        await cluster.whole()
        yield cluster


async def _join(nodes: Sequence[Node]) -> None:
    """Divide the slots so that the last master has that of the prefix, and make the replicas."""
    masters, replicas = nodes[:MASTERS], nodes[MASTERS:]
    slot = int(await masters[0].ask("CLUSTER", "KEYSLOT", f"{{{PREFIX}}}"))
    shares = [(BOUNDS[n], BOUNDS[n + 1] - 1) for n in range(MASTERS)]
    shares.sort(key=lambda share: share[0] <= slot <= share[1])
    for number, (node, share) in enumerate(zip(masters, shares, strict=True), 1):
        await node.ask("CLUSTER", "ADDSLOTSRANGE", *share)
        await node.ask("CLUSTER", "SET-CONFIG-EPOCH", number)
    for node in nodes[1:]:
        await nodes[0].ask("CLUSTER", "MEET", "127.0.0.1", node.port, node.bus_port)

    async def all_know_all() -> bool:
        known = [await node.ask("CLUSTER", "NODES") for node in nodes]
        return all(len(each.strip().splitlines()) == len(nodes) for each in known)

    await until(all_know_all, "nodes that know each other", CLUSTER_PATIENCE)
    of_masters = [masters[-1]] * REPLICAS + [*masters[:-1]]
    for replica, master in zip(replicas, of_masters, strict=False):
        identity = (await master.ask("CLUSTER", "MYID")).decode()

        async def replicates(replica: Node = replica, identity: str = identity) -> bool:
            try:
                await replica.ask("CLUSTER", "REPLICATE", identity)
            except RedisError:  # it does not know the master's role yet
                return False
            return True

        await until(replicates, "a replica", CLUSTER_PATIENCE)

    async def all_are_ok() -> bool:
        said = await asyncio.gather(*(node.ask("CLUSTER", "INFO") for node in nodes))
        return all(b"cluster_state:ok" in each for each in said)

    await until(all_are_ok, "a cluster that is whole", CLUSTER_PATIENCE)


async def _answers(node: Node) -> bool:
    try:
        await node.ask("PING")
    except RedisError:
        return False
    return True
