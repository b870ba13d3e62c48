"""A broker that comes back without its data. What it had confirmed is gone with its disk; what was
still in an outbox, and what is published afterwards, arrives, without anybody's help."""

from __future__ import annotations

import asyncio
import time

import pytest
from redis.asyncio import Redis

from eventmesh.transports.rabbitmq.upkeep import GRACE
from tests.faults.conftest import At, Record
from tests.faults.fault_run import check, verdict
from tests.faults.faults import Fault, by_itself
from tests.faults.system_under_test import RECOVERY


def with_the_stream(broker: str) -> bool:
    """In Redis, a message makes its stream anew. In RabbitMQ, those that come before their queue is
    there again are kept aside meanwhile, and may be overtaken."""
    return broker == "redis"


def recovery_time(broker: str) -> float:
    """Seconds. What RabbitMQ kept aside is brought back once all processes had time to restore
    their queues: else the first one would take what is for the others, too."""
    return RECOVERY + GRACE if broker == "amqp" else RECOVERY


@pytest.mark.parametrize(
    ("broker", "database"),
    [
        ("amqp", "sqlite"),
        pytest.param("redis", "sqlite", marks=pytest.mark.soak),
        pytest.param("redis", "postgres", marks=pytest.mark.soak),
        pytest.param("amqp", "postgres", marks=pytest.mark.soak),
    ],
)
async def test_a_broker_that_lost_its_data_is_used_again(
    broker: str, database: str, at: At, record: Record, amount: int, hold: float
) -> None:
    fault = Fault(
        "broker lost its data", by_itself, ordered=with_the_stream, within=recovery_time(broker)
    )
    async with at(broker, database) as system:
        server = system.endpoints.broker_server
        async with system.working():
            await system.ask(amount // 3)
            await system.until_all_effects()  # nothing is on the broker
            await server.kill()
            await system.ask(amount // 3)  # in the outbox
            await asyncio.sleep(hold)
            await server.lose_data()
            ended = time.time()
            recovery = await system.recovery(ended, fault.within)
            await system.ask(amount // 3)
            await system.until_all_effects()
            settled = time.time() - ended
        row = await verdict(system, fault, recovery, settled)
        record(row)
        check(system, row)


@pytest.mark.parametrize("broker", ["redis"])
async def test_a_redis_that_is_emptied_while_it_runs_is_used_again(
    broker: str, at: At, record: Record, amount: int
) -> None:
    """FLUSHALL: no connection breaks, but every stream and group is gone."""
    fault = Fault("FLUSHALL", by_itself)
    async with at(broker, "sqlite") as system:
        async with system.working():
            await system.ask(amount // 2)
            await system.until_all_effects()
            async with Redis.from_url(system.endpoints.broker_url) as redis:
                await redis.flushall()
            ended = time.time()
            await system.ask(amount // 2)
            recovery = await system.recovery(ended)
            await system.until_all_effects()
            settled = time.time() - ended
        row = await verdict(system, fault, recovery, settled)
        record(row)
        check(system, row)
