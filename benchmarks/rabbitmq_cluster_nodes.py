"""A RabbitMQ cluster of three nodes in containers, by the `docker` command."""

from __future__ import annotations

import asyncio
import json
import secrets
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

NODES = ("one", "two", "three")

DOCKER_PATIENCE = 120.0
"""Seconds for one command of Docker; the first may have to pull the image."""

CLUSTER_PATIENCE = 120.0
"""Seconds for the nodes to find each other, or to come back."""

_CLASSIC_CONFIG = "".join(
    f"cluster_formation.classic_config.nodes.{number} = rabbit@{node}\n"
    for number, node in enumerate(NODES, 1)
)
CONFIGURATION = f"cluster_formation.peer_discovery_backend = classic_config\n{_CLASSIC_CONFIG}"


class Failed(Exception):
    """A run could not be made; the text says why."""


@dataclass(frozen=True)
class Node:
    """A container with one node, reached at `port` of this machine."""

    name: str
    container: str
    port: int

    async def control(self, *arguments: str) -> str:
        """What `rabbitmqctl` says on it."""
        return await docker("exec", self.container, "rabbitmqctl", "--quiet", *arguments)


@dataclass(frozen=True)
class Cluster:
    """The nodes, and the user that they know."""

    nodes: Sequence[Node]
    password: str

    @property
    def url(self) -> str:
        """The URL that names all of them."""
        hosts = ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)
        return f"amqp://eventmesh:{self.password}@{hosts}/"

    async def leader(self, queue: str) -> Node:
        """The node that leads this queue."""
        said = await self.nodes[0].control(
            "list_queues", "--formatter", "json", "name", "leader", "members"
        )
        for found in json.loads(said):
            if found["name"] == queue:
                if len(found["members"]) != len(self.nodes):
                    raise Failed(f"{queue} has only the members {found['members']}.")
                return self.node(found["leader"].removeprefix("rabbit@"))
        raise Failed(f"The cluster has no queue {queue}: {said}")

    async def consumed_from(self, queue: str) -> Node:
        """The node to which a consumer of this queue is connected."""
        said = await self.nodes[0].control(
            "--no-table-headers", "list_consumers", "queue_name", "channel_pid"
        )
        for line in said.splitlines():  # the process is written <rabbit@one.1667.832.0>
            name, process = line.split()
            if name == queue:
                return self.node(process.removeprefix("<rabbit@").partition(".")[0])
        raise Failed(f"Nobody consumes {queue}: {said}")

    def node(self, name: str) -> Node:
        """The node of this name."""
        for node in self.nodes:
            if node.name == name:
                return node
        raise Failed(f"The cluster has no node {name!r}.")

    async def whole(self) -> None:
        """Return once all nodes run, and each queue has all its members again."""
        await until(self._is_whole, "the cluster to be whole", CLUSTER_PATIENCE)

    async def _is_whole(self) -> bool:
        node = self.nodes[0]  # one is enough, and each command starts a virtual machine
        try:
            said = json.loads(await node.control("cluster_status", "--formatter", "json"))
            if len(said["running_nodes"]) != len(self.nodes):
                return False
            queues = await node.control("list_queues", "--formatter", "json", "type", "online")
        except (Failed, ValueError):  # it has no answer yet
            return False
        return all(
            len(queue["online"]) == len(self.nodes)
            for queue in json.loads(queues)
            if "quorum" in queue["type"]  # the queues in which workers hear each other are not
        )


@asynccontextmanager
async def running_cluster(image: str, folder: Path) -> AsyncIterator[Cluster]:
    """Three nodes on a network of their own, removed on leaving."""
    network = f"eventmesh-{secrets.token_hex(6)}"
    configuration = folder / "cluster.conf"
    configuration.write_text(CONFIGURATION)
    configuration.chmod(0o644)
    password, cookie = secrets.token_hex(16), secrets.token_hex(16)
    ports = free_ports(len(NODES))
    nodes = [Node(name, f"{network}-{name}", port) for name, port in zip(NODES, ports, strict=True)]
    label = ("--label", f"eventmesh.cluster={network}")
    async with AsyncExitStack() as stack:
        await docker("network", "create", *label, network)
        stack.push_async_callback(docker, "network", "rm", network)
        for node in nodes:
            # Before it is there, because being told to stop may come in between.
            stack.push_async_callback(removed, node.container)
            await docker(
                *("run", "--detach", "--name", node.container, *label),
                *("--network", network, "--network-alias", node.name, "--hostname", node.name),
                *("--publish", f"127.0.0.1:{node.port}:5672"),
                *("--volume", f"{configuration}:/etc/rabbitmq/conf.d/50-cluster.conf:ro"),
                *environment(
                    RABBITMQ_DEFAULT_USER="eventmesh",
                    RABBITMQ_DEFAULT_PASS=password,
                    RABBITMQ_NODENAME=f"rabbit@{node.name}",
                    RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS=f"-setcookie {cookie}",
                    RABBITMQ_CTL_ERL_ARGS=f"-setcookie {cookie}",
                ),
                image,
            )
        cluster = Cluster(nodes, password)
        await cluster.whole()
        yield cluster


async def removed(container: str) -> None:
    """See that there is no such container."""
    await docker("rm", "--force", "--volumes", container)


def environment(**variables: str) -> list[str]:
    """Options by which a container gets these."""
    return [word for name, value in variables.items() for word in ("--env", f"{name}={value}")]


async def docker(*arguments: str) -> str:
    """What Docker says; Failed when it fails."""
    try:
        process = await asyncio.create_subprocess_exec(
            "docker",
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
    except FileNotFoundError:
        raise Failed("There is no `docker` on this machine: install Docker.") from None
    try:
        async with asyncio.timeout(DOCKER_PATIENCE):
            out, err = await process.communicate()
    except TimeoutError:
        raise Failed(f"docker {arguments[0]} took over {DOCKER_PATIENCE:.0f} s.") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        raise Failed(f"docker {arguments[0]} failed: {err.decode(errors='replace').strip()}")
    return out.decode()


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that were free a moment ago. Chosen here, because Docker would choose
    another for a container that is started again."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


async def until(condition: Callable[[], Awaitable[bool]], what: str, patience: float) -> None:
    """Return once the condition holds; Failed when it does not in time."""
    deadline = time.monotonic() + patience
    while not await condition():
        if time.monotonic() > deadline:
            raise Failed(f"Waited {patience:.0f} s for {what}.")
        await asyncio.sleep(0.2)
