"""A master that is killed under traffic, sentinel_group by Sentinels or as part of a Cluster.

Redis replicates after it has answered, so the last messages may be lost with a master that dies.
With `wait_replicas=1` they must not be lost, which these tests check.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from redis.asyncio.cluster import RedisCluster

from eventmesh.errors import Unreachable
from eventmesh.transports.base import Subscription, TransportOptions, publish_or_raise
from eventmesh.transports.outcome import DONE
from eventmesh.transports.redis import transport as redis_streams
from eventmesh.transports.redis.address import locator_for, parse_broker_url
from eventmesh.transports.redis.transport import RedisTransport
from tests.integration.redis_clusters import PREFIX, Cluster, online_replicas, opened_on, role
from tests.integration.redis_nodes import Node, eventually, nodes, until
from tests.integration.redis_traffic import (
    CLOCK,
    IN_ORDER,
    PAID,
    Traffic,
    envelopes,
    flowing,
    opened,
)
from tests.support.promised_times import allowed

pytest_plugins = ["tests.integration.redis_cluster_fixtures"]

EITHER = pytest.mark.parametrize("subscription", [PAID, IN_ORDER], ids=["unordered", "ordered"])

RECOVERY = 5.0
"""Seconds after the failover within which traffic continues, as promised."""


async def check_recovery(traffic: Traffic) -> None:
    """Check that new messages are handled soon, and all published ones in the end."""
    ended = time.monotonic()
    await eventually(
        lambda: (
            any(at > ended for at in traffic.handled_at.values())
            and any(at > ended for at in traffic.published_at.values())
        ),
        f"traffic; {traffic.consuming_errors[-2:]} {traffic.publishing_errors[-2:]}",
        allowed(RECOVERY),
    )
    print(f"recovered in {time.monotonic() - ended:.2f} s", end=" ")  # noqa: T201
    traffic.stop_publishing.set()
    await traffic.until_all_is_handled(allowed(RECOVERY))


# --- Sentinel ---


@dataclass
class SentinelGroup:
    """A master with two replicas, and three Sentinels that watch it."""

    servers: list[Node]
    sentinels: list[Node]

    @property
    def url(self) -> str:
        hosts = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
        return f"redis+sentinel://:{self.servers[0].password}@{hosts}/shop/0"

    def master(self) -> Node | None:
        """The server that the first Sentinel names as master, once it answers as one."""
        answer = self.sentinels[0].ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "shop")
        for server in self.servers:
            if answer and server.port == int(answer[1]):
                return server if role(server) == "master" else None
        return None


@pytest.fixture
def sentinel_group(tmp_path: Path) -> Iterator[SentinelGroup]:
    with nodes(tmp_path) as keep:
        servers = [
            keep(Node(tmp_path / f"server{n}", repl_diskless_sync_delay="0")) for n in range(3)
        ]
        password = servers[0].password
        for each in servers:
            each.password = password
            each.settings |= {"requirepass": password, "masterauth": password}
        for each in servers[1:]:
            each.settings["replicaof"] = f"127.0.0.1 {servers[0].port}"
        sentinels = [keep(sentinel(tmp_path / f"sentinel{n}", servers[0])) for n in range(3)]
        # Sentinels query a master for its replicas every ten seconds, so all servers answer before
        # the Sentinels start, and the first query finds the replicas.
        for group in (servers, sentinels):
            for node in group:
                node.launch()
            for node in group:
                node.until_it_answers()
            until(lambda: online_replicas(servers[0]) == 2, "replicas that are online")
        made = SentinelGroup(servers, sentinels)
        until(lambda: ready_to_fail_over(made), "Sentinels that know all")
        yield made


def server(folder: Path) -> Node:
    return Node(folder, repl_diskless_sync_delay="0")


def sentinel(folder: Path, master: Node) -> Node:
    node = Node(folder, "--sentinel")
    for unknown in ("save", "enable-debug-command", "enable-protected-configs", "requirepass"):
        node.settings.pop(unknown)
    node.client_options = {"password": None}
    node.settings |= {
        "sentinel monitor": f"shop 127.0.0.1 {master.port} 2",
        "sentinel auth-pass": f"shop {master.password}",
        "sentinel down-after-milliseconds": "shop 500",
        "sentinel failover-timeout": "shop 5000",
    }
    return node


def ready_to_fail_over(made: SentinelGroup) -> bool:
    for each in made.sentinels:
        answer = each.ask("SENTINEL", "MASTER", "shop") or []
        told = dict(zip(answer[::2], answer[1::2], strict=True))
        if (told.get(b"num-slaves"), told.get(b"num-other-sentinels")) != (b"2", b"2"):
            return False
    return True


@EITHER
async def test_after_a_sentinel_failover_traffic_continues_and_no_message_is_lost(
    subscription: Subscription,
    sentinel_group: SentinelGroup,
) -> None:
    async with (
        opened(f"{sentinel_group.url}?wait_replicas=1") as transport,
        flowing(transport, subscription) as traffic,
    ):
        await eventually(lambda: len(traffic.handled) > 50, "messages that flow")
        old = await asyncio.to_thread(until, sentinel_group.master, "a master")
        await asyncio.to_thread(old.kill)
        await asyncio.to_thread(
            until, lambda: (sentinel_group.master() or old) is not old, "another master"
        )
        await check_recovery(traffic)


async def test_clients_leave_a_demoted_master(sentinel_group: SentinelGroup) -> None:
    """It continues as a replica, and answers READONLY."""
    async with opened(sentinel_group.url) as transport, flowing(transport) as traffic:
        await eventually(lambda: len(traffic.handled) > 50, "messages that flow")
        old = await asyncio.to_thread(until, sentinel_group.master, "a master")
        # This is an error while the Sentinel sees no good replica.
        failover = ("SENTINEL", "FAILOVER", "shop")
        await asyncio.to_thread(
            until, lambda: sentinel_group.sentinels[0].ask(*failover), "a failover"
        )
        await asyncio.to_thread(
            until, lambda: (sentinel_group.master() or old) is not old, "another master"
        )
        await asyncio.to_thread(until, lambda: role(old) == "slave", "a demoted master")
        # In a planned failover, too, the master replicates after it has answered.
        traffic.published.clear()
        await check_recovery(traffic)


async def test_a_master_name_unknown_to_the_sentinels_is_an_error(
    sentinel_group: SentinelGroup,
) -> None:
    with pytest.raises(Unreachable, match="No master found for 'other'"):
        async with opened(sentinel_group.url.replace("/shop/", "/other/")):
            pass


async def test_publishing_fails_if_too_few_replicas_confirm(sentinel_group: SentinelGroup) -> None:
    async with opened(f"{sentinel_group.url}?wait_replicas=2") as transport:
        await publish_or_raise(transport, envelopes(1))
        await asyncio.to_thread(sentinel_group.servers[2].kill)
        with pytest.raises(Unreachable, match="1 instead of 2 of its replicas"):
            await publish_or_raise(transport, envelopes(1))


# --- Cluster ---


async def test_all_keys_of_a_prefix_are_on_one_node(cluster: Cluster) -> None:
    async with opened_on(cluster) as transport:
        await publish_or_raise(transport, envelopes(5))
        await publish_or_raise(transport, envelopes(5, "payments.failed"))
        await transport.declare([PAID])
        async with transport.consume(PAID, prefetch=5) as consumer:
            got = [each for _ in range(5) for each in await consumer.receive(1)]
            await consumer.settle([(delivery, DONE) for delivery in got])
    keys = {key.decode() for key in cluster.owner.tell("KEYS", "*")}
    assert {f"{{{PREFIX}}}:stream:payments.paid", f"{{{PREFIX}}}:stream:payments.failed"} <= keys
    for other in cluster.others():
        if other is not cluster.replica:
            assert other.tell("KEYS", "*") == []


async def test_the_documented_permissions_are_sufficient_on_a_cluster(cluster: Cluster) -> None:
    keys, commands = f"~{{{PREFIX}}}:*", [*least_commands(), "+cluster|slots", "+command", "+wait"]
    for node in cluster.members:
        node.tell("ACL", "SETUSER", "least", "reset", "on", ">secret", keys, *commands)
        node.tell("ACL", "LOG", "RESET")
    url = cluster.url.replace(f":{cluster.owner.password}@", "least:secret@")
    options = TransportOptions(visibility_timeout=60.0, prefix=PREFIX)
    transport = RedisTransport(f"{url}?wait_replicas=1", CLOCK, options)
    await transport.connect()
    await transport.declare([PAID])
    await publish_or_raise(transport, envelopes(1))
    async with transport.consume(PAID, prefetch=5) as consumer:
        [delivery] = await consumer.receive(1)
        await consumer.settle([(delivery, DONE)])
    await publish_or_raise(transport, envelopes(1))
    async with transport.consume(IN_ORDER, prefetch=5) as consumer:
        [delivery] = await consumer.receive(1)
        await consumer.settle([(delivery, DONE)])
    await transport.close()
    for node in cluster.members:
        refused = [dict(zip(e[::2], e[1::2], strict=True)) for e in node.tell("ACL", "LOG")]
        assert {entry[b"object"] for entry in refused} <= {b"client|setinfo"}


def least_commands() -> list[str]:
    """The commands that the module's docstring lists."""
    return [word for word in (redis_streams.__doc__ or "").split() if word.startswith("+")]


@EITHER
async def test_after_a_cluster_failover_traffic_continues_and_no_message_is_lost(
    subscription: Subscription,
    cluster: Cluster,
) -> None:
    async with (
        opened_on(cluster, "?wait_replicas=1") as transport,
        flowing(transport, subscription) as traffic,
    ):
        await eventually(lambda: len(traffic.handled) > 50, "messages that flow")
        for node in cluster.members:  # not before: one that stands still would be failed over, too
            node.set("cluster-node-timeout", 1000)
        await asyncio.to_thread(cluster.owner.kill)
        await asyncio.to_thread(
            until, lambda: role(cluster.replica) == "master", "a promoted replica"
        )
        # No replica is left, and publishing waits for one; consuming does not.
        traffic.stop_publishing.set()
        await traffic.until_all_is_handled(allowed(RECOVERY))


async def test_who_stops_looking_for_a_node_leaves_no_connection(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as a client that is closed after a failover, while it closes what it has asked by."""
    url = parse_broker_url(f"{cluster.url}?client_name=asking")
    close = RedisCluster.aclose

    def asking() -> list[bytes]:
        lists = (node.tell("CLIENT", "LIST") for node in cluster.members)
        return [line for each in lists for line in each.splitlines() if b"name=asking" in line]

    open_then: list[bytes] = []
    for turns in range(4):
        closing = asyncio.Event()

        async def tell_and_close(client: RedisCluster, closing: asyncio.Event = closing) -> None:
            closing.set()
            open_then.extend(asking())
            await close(client)

        monkeypatch.setattr(RedisCluster, "aclose", tell_and_close)
        locating = asyncio.ensure_future(locator_for(url, f"{{{PREFIX}}}").locate())
        await closing.wait()
        for _ in range(turns):
            await asyncio.sleep(0)
        locating.cancel()
        await asyncio.wait([locating])
        await eventually(lambda: not asking(), "no connection that is left")
    assert open_then


def promoted(replica: Node) -> bool:
    """Begin a planned failover; returns whether the replica is the master soon afterwards. It is
    refused while the replica has no connection to its master, and given up after 5 s."""
    replica.ask("CLUSTER", "FAILOVER")
    given_up = time.monotonic() + 6.0
    while time.monotonic() < given_up:
        if role(replica) == "master":
            return True
        time.sleep(0.05)
    return False


@EITHER
async def test_clients_follow_a_moved_slot(subscription: Subscription, cluster: Cluster) -> None:
    """A planned failover moves it: the old master answers MOVED."""
    async with opened_on(cluster) as transport, flowing(transport, subscription) as traffic:
        await eventually(lambda: len(traffic.handled) > 50, "messages that flow")
        await asyncio.to_thread(until, lambda: promoted(cluster.replica), "a promoted replica")
        await check_recovery(traffic)


async def test_clients_wait_while_a_slot_is_being_moved(cluster: Cluster) -> None:
    """Redis answers ASK and TRYAGAIN: nothing is half done, and traffic continues after the
    move."""
    async with opened_on(cluster) as transport, flowing(transport) as traffic:
        await eventually(lambda: len(traffic.handled) > 50, "messages that flow")
        source = cluster.owner
        target = next(each for each in cluster.others() if each is not cluster.replica)
        slot = int(source.tell("CLUSTER", "KEYSLOT", f"{{{PREFIX}}}"))
        from_id, to_id = (n.tell("CLUSTER", "MYID").decode() for n in (source, target))
        target.tell("CLUSTER", "SETSLOT", slot, "IMPORTING", from_id)
        source.tell("CLUSTER", "SETSLOT", slot, "MIGRATING", to_id)
        await asyncio.sleep(0.5)
        for key in source.tell("CLUSTER", "GETKEYSINSLOT", slot, 100):
            source.tell(
                *("MIGRATE", "127.0.0.1", target.port, "", 0, 5000),
                *("AUTH", source.password, "KEYS", key.decode()),
            )
            await asyncio.sleep(0.2)
        await eventually(lambda: traffic.publishing_errors, "an error")
        for node in (target, source):
            node.tell("CLUSTER", "SETSLOT", slot, "NODE", to_id)
        await check_recovery(traffic)


async def test_clients_wait_while_a_slot_is_not_served(cluster: Cluster) -> None:
    async with opened_on(cluster) as transport, flowing(transport) as traffic:
        await eventually(lambda: len(traffic.handled) > 50, "messages that flow")
        slot = int(cluster.owner.tell("CLUSTER", "KEYSLOT", f"{{{PREFIX}}}"))
        unserved = (slot + 1) % 16384
        cluster.owner.tell("CLUSTER", "DELSLOTS", unserved)
        await eventually(lambda: "CLUSTERDOWN" in str(traffic.consuming_errors), "CLUSTERDOWN")
        cluster.owner.tell("CLUSTER", "ADDSLOTS", unserved)
        await check_recovery(traffic)
