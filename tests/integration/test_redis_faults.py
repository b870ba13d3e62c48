"""Faults of a Redis under traffic: no message is lost, nobody retries in a busy loop, and traffic
recovers within seconds."""

from __future__ import annotations

import asyncio
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from redis.exceptions import RedisError

from eventmesh.errors import Unreachable
from eventmesh.transports.base import Subscription, publish_or_raise
from tests.integration.redis_nodes import Node, eventually, nodes, until
from tests.integration.redis_traffic import (
    IN_ORDER,
    PAID,
    Traffic,
    envelopes,
    flowing,
    opened,
    running,
)
from tests.support.promised_times import allowed

RECOVERY = 5.0
"""Seconds after the end of a fault in which a new message is published and handled, as promised."""

MOST_CONNECTIONS_PER_SECOND = 30
MOST_READS_PER_SECOND = 300
MOST_ERRORS_PER_SECOND = 20
"""For one publisher and one consumer, each of which retries at most 10 times per second."""


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    with nodes(tmp_path) as keep:
        yield keep(Node(tmp_path / "redis", appendonly="yes", appendfsync="always")).start()


# Each causes a fault that lasts until its context ends.


@contextmanager
def read_only(node: Node) -> Iterator[None]:
    node.tell("REPLICAOF", "127.0.0.1", "1")
    yield
    node.tell("REPLICAOF", "NO", "ONE")


@contextmanager
def master_down(node: Node) -> Iterator[None]:
    node.set("replica-serve-stale-data", "no")
    node.tell("REPLICAOF", "127.0.0.1", "1")
    yield
    node.tell("REPLICAOF", "NO", "ONE")


@contextmanager
def too_few_replicas(node: Node) -> Iterator[None]:
    node.set("min-replicas-to-write", 1)
    yield
    node.set("min-replicas-to-write", 0)


@contextmanager
def disk_full(node: Node) -> Iterator[None]:
    """Its folder is removed, so that it cannot save and rejects writes."""
    shutil.rmtree(node.folder / "data")
    node.set("appendonly", "no")
    node.set("save", "3600 1")
    node.tell("BGSAVE")
    until_info(node, "rdb_last_bgsave_status", "err")
    yield
    (node.folder / "data").mkdir()
    node.set("dir", str(node.folder / "data"))
    node.tell("BGSAVE")
    until_info(node, "rdb_last_bgsave_status", "ok")


@contextmanager
def password_changed(node: Node) -> Iterator[None]:
    old = node.password
    node.set("requirepass", "another")
    node.password = "another"  # noqa: S105
    node.tell("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    yield
    node.set("requirepass", old)
    node.password = old


@contextmanager
def loading(node: Node) -> Iterator[None]:
    """Killed, and restarted with so much data that loading takes a while."""
    with node.client() as client:
        for number in range(
            300
        ):  # incompressible, as the size of the file decides how long loading takes
            client.set(f"ballast-{number}", secrets.token_bytes(2_000))
        client.bgrewriteaof()
    until_info(node, "aof_rewrite_in_progress", 0)
    until_info(node, "aof_last_bgrewrite_status", "ok")
    node.kill()
    node.launch(key_load_delay="100000", loading_process_events_interval_bytes="1024")
    until_info(node, "loading", 1)
    yield
    until(lambda: node.ask("CONFIG", "SET", "key-load-delay", 0), "a server that loads faster")
    until_info(node, "loading", 0)


@contextmanager
def killed(node: Node) -> Iterator[None]:
    node.kill()
    yield
    node.start()


@contextmanager
def stopped_with_its_data_lost(node: Node) -> Iterator[None]:
    node.kill()
    shutil.rmtree(node.folder / "data")
    (node.folder / "data").mkdir()
    yield
    node.start()


def until_info(node: Node, name: str, value: object) -> None:
    """Wait until INFO shows this."""

    def says() -> bool:
        with node.client() as client, suppress(RedisError):
            told: Any = client.info("persistence")
            return bool(told[name] == value)
        return False

    until(says, f"{name} to be {value}")


@contextmanager
def every_client_killed_again_and_again(node: Node) -> Iterator[None]:
    for _ in range(20):
        node.tell("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        time.sleep(0.02)
    yield


@contextmanager
def paused(node: Node) -> Iterator[None]:
    node.tell("CLIENT", "PAUSE", 2000, "ALL")
    time.sleep(2)
    yield


Fault = Callable[[Node], AbstractContextManager[None]]


EITHER = pytest.mark.parametrize("subscription", [PAID, IN_ORDER], ids=["unordered", "ordered"])


@EITHER
@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (read_only, "READONLY"),
        (master_down, "MASTERDOWN"),
        (too_few_replicas, "NOREPLICAS"),
        (disk_full, "MISCONF"),
        (password_changed, "WRONGPASS"),
        (loading, "LOADING"),
        (killed, "does not answer"),
        (every_client_killed_again_and_again, ""),
        (paused, ""),
    ],
)
async def test_no_message_is_lost_by(
    fault: Fault, said: str, subscription: Subscription, node: Node
) -> None:
    async with opened(node.url) as transport, flowing(transport, subscription) as traffic:
        await eventually(lambda: len(traffic.handled) > 20, "messages that flow")
        made = fault(node)
        await asyncio.to_thread(made.__enter__)
        if said:
            await eventually(lambda: traffic.publishing_errors, "an error of the publisher")
            await eventually(lambda: said in str(traffic.consuming_errors), said)
        await check_back_off(node, traffic)
        await asyncio.to_thread(made.__exit__, None, None, None)
        await check_recovery(traffic)


async def check_back_off(node: Node, traffic: Traffic) -> None:
    """Check that commands and connection attempts come no faster than the back-off allows."""
    tries = len(traffic.publishing_errors) + len(traffic.consuming_errors)
    connections, reads = node.counters() or (0, 0)
    began = time.monotonic()
    await asyncio.sleep(1)
    more_connections, more_reads = node.counters() or (0, 0)
    more_tries = len(traffic.publishing_errors) + len(traffic.consuming_errors)
    seconds = time.monotonic() - began
    assert more_connections - connections <= MOST_CONNECTIONS_PER_SECOND * seconds
    assert more_reads - reads <= MOST_READS_PER_SECOND * seconds
    assert more_tries - tries <= MOST_ERRORS_PER_SECOND * seconds


async def check_recovery(traffic: Traffic) -> None:
    """Check that a message published from now on is handled soon, and all published ones in the
    end."""
    ended = time.monotonic()

    def recovered() -> bool:
        return any(
            traffic.published_at.get(id_, 0) > ended and at > ended
            for id_, at in traffic.handled_at.items()
        )

    await eventually(recovered, "traffic after the fault", allowed(RECOVERY))
    traffic.stop_publishing.set()
    await traffic.until_all_is_handled(allowed(RECOVERY))
    print(f"recovered in {time.monotonic() - ended:.2f} s", end=" ")  # noqa: T201


@EITHER
async def test_traffic_recovers_after_redis_lost_its_data(
    subscription: Subscription, node: Node
) -> None:
    async with opened(node.url) as transport, flowing(transport, subscription) as traffic:
        await eventually(lambda: len(traffic.handled) > 20, "messages that flow")
        made = stopped_with_its_data_lost(node)
        await asyncio.to_thread(made.__enter__)
        await eventually(lambda: traffic.publishing_errors, "an error")
        traffic.published.clear()  # they may be lost, as the disk was
        await asyncio.to_thread(made.__exit__, None, None, None)
        await check_recovery(traffic)


@EITHER
async def test_a_redis_out_of_memory_rejects_new_messages_and_delivers_the_stored_ones(
    subscription: Subscription, node: Node
) -> None:
    async with opened(node.url) as transport:
        await transport.declare([subscription])
        traffic = Traffic(transport, subscription)
        await traffic.publish(envelopes(200))
        node.set("maxmemory-policy", "noeviction")
        node.set("maxmemory", 1)
        with pytest.raises(Unreachable, match="OOM"):
            await publish_or_raise(transport, envelopes(3))
        async with running(traffic.keep_consuming()):
            await traffic.until_all_is_handled()
            assert not traffic.consuming_errors
            node.set("maxmemory", 0)
            await traffic.publish(envelopes(3))
            await traffic.until_all_is_handled()
        assert len(traffic.handled) == 203
