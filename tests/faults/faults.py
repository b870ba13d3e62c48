"""The faults: each breaks something while its context is open and repairs it on leaving."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing, suppress
from dataclasses import dataclass
from urllib.parse import urlsplit

import asyncpg
import pytest
from redis.asyncio import Redis
from sqlalchemy import make_url

from tests.faults.system_under_test import RECOVERY, TIMEOUT, SystemUnderTest, kill
from tests.support.proxy import Direction, Proxy

KILLS = 2
CUTS = 4
SILENCE = 2.0
"""Seconds beyond those that a fault lasts anyway."""

QUEUE_AGE = 5.0
"""Seconds after its declaration from which RabbitMQ remembers a quorum queue even when killed.
Before that it may start the queue anew, without messages and without a leader (issue 15725)."""

MOST_BYTES = 20_000
"""Some tens of messages."""

Make = Callable[[SystemUnderTest], AbstractAsyncContextManager[None]]


@dataclass(frozen=True)
class Fault:
    """`ordered` tells of a broker whether messages of a key stay in their order, as there is one
    consumer process all the while, and none is retried."""

    name: str
    make: Make
    through: str = ""
    options: tuple[str, ...] = ()
    processes: int = 1
    ordered: Callable[[str], bool] = lambda _broker: True
    stops: bool = False
    """Whether nothing takes effect while it lasts."""
    within: float = RECOVERY
    """Seconds in which it goes on afterwards, as promised."""
    exit_code: int = 0
    """How the last worker then ends: 1, if it has lost children."""


def nowhere(_broker: str) -> bool:
    """Order is promised on no broker."""
    return False


@asynccontextmanager
async def by_itself(_system: SystemUnderTest) -> AsyncIterator[None]:
    """A fault that its test makes."""
    yield


# Processes


@asynccontextmanager
async def workers_killed(system: SystemUnderTest) -> AsyncIterator[None]:
    """The only worker, several times; each time another is started."""
    for _ in range(KILLS):
        await a_few_effects(system)
        kill(system.workers[-1])
        await system.until_ready(system.start_worker())
    await a_few_effects(system)
    kill(system.workers[-1])
    yield
    await system.until_ready(system.start_worker())


@asynccontextmanager
async def children_killed(system: SystemUnderTest) -> AsyncIterator[None]:
    """One of the children, several times; their parent replaces it."""
    for _ in range(KILLS):
        await a_few_effects(system)
        with suppress(ProcessLookupError):
            os.kill(system.chance.choice(system.workers[-1].children()), signal.SIGKILL)
    yield


@asynccontextmanager
async def parent_killed(system: SystemUnderTest) -> AsyncIterator[None]:
    """With it end its children."""
    await a_few_effects(system)
    kill(system.workers[-1])
    yield
    await system.until_ready(system.start_worker("--workers", "2"), 2)


async def a_few_effects(system: SystemUnderTest) -> None:
    """Return once there are some more, at no certain point."""
    counted: list[int] = []

    async def count() -> bool:
        counted.append(await system.effects.count())
        return True

    await system.until(count, "a database that can be asked")
    await system.until_effects(counted[-1] + system.chance.randrange(5, 60))


# The broker


@asynccontextmanager
async def broker_stopped(system: SystemUnderTest) -> AsyncIterator[None]:
    await system.endpoints.broker_server.stop()
    try:
        yield
    finally:
        await system.endpoints.broker_server.start()


@asynccontextmanager
async def broker_killed(system: SystemUnderTest) -> AsyncIterator[None]:
    if system.endpoints.broker == "amqp":
        await asyncio.sleep(QUEUE_AGE)
    await system.endpoints.broker_server.kill()
    try:
        yield
    finally:
        await system.endpoints.broker_server.start()


@asynccontextmanager
async def redis_read_only(system: SystemUnderTest) -> AsyncIterator[None]:
    async with Redis.from_url(system.endpoints.broker_url) as redis:
        await redis.execute_command("REPLICAOF", "127.0.0.1", 1)
        try:
            yield
        finally:
            await redis.execute_command("REPLICAOF", "NO", "ONE")


@asynccontextmanager
async def redis_out_of_memory(system: SystemUnderTest) -> AsyncIterator[None]:
    async with Redis.from_url(system.endpoints.broker_url) as redis:
        await redis.config_set("maxmemory-policy", "noeviction")
        await redis.config_set("maxmemory", 1)
        try:
            yield
        finally:
            await redis.config_set("maxmemory", 0)


@asynccontextmanager
async def redis_cannot_save(system: SystemUnderTest) -> AsyncIterator[None]:
    """Its snapshots fail, as on a full disk, and it takes no writes for that (MISCONF)."""
    async with Redis.from_url(system.endpoints.broker_url) as redis:
        told = await redis.config_get("dir", "dbfilename", "save")
        in_the_way = f"{told['dir']}/{told['dbfilename']}"  # what a snapshot is renamed to
        await on_broker_host(system, "rm", "-f", in_the_way)  # an earlier fault may have left one
        await on_broker_host(system, "mkdir", "-p", f"{in_the_way}/not-empty")
        await redis.config_set("save", "3600 1")
        try:
            await snapshot(system, redis, "err")
            yield
        finally:
            await on_broker_host(system, "rm", "-r", in_the_way)
            await snapshot(system, redis, "ok")
            await redis.config_set("save", told["save"])


async def snapshot(system: SystemUnderTest, redis: Redis, ends: str) -> None:
    """Have Redis write a snapshot; return once one has ended so."""

    async def ended_so() -> bool:
        told = await redis.info("persistence")
        if told["rdb_last_bgsave_status"] == ends:
            return True
        if not told["rdb_bgsave_in_progress"]:
            await redis.bgsave(schedule=True)
        return False

    await system.until(ended_so, f"a snapshot that ends with {ends}")


@asynccontextmanager
async def disk_alarm(system: SystemUnderTest) -> AsyncIterator[None]:
    """RabbitMQ takes nothing from connections that publish."""
    await rabbitmqctl(system, "set_disk_free_limit", "1000GB")
    try:
        yield
    finally:
        await rabbitmqctl(system, "set_disk_free_limit", "50MB")


async def rabbitmqctl(system: SystemUnderTest, *arguments: str) -> None:
    if not in_container(system):
        pytest.skip("rabbitmqctl is run inside a container, and this RabbitMQ is in none")
    await on_broker_host(system, "rabbitmqctl", "-q", *arguments)


async def on_broker_host(system: SystemUnderTest, *command: str) -> None:
    """Run this where our broker runs: in its container, which is found by its port, or here."""
    if in_container(system):
        port = urlsplit(system.endpoints.broker_url).port
        container = await output("docker", "ps", "-q", "--filter", f"publish={port}")
        command = ("docker", "exec", container, *command)
    await output(*command)


def in_container(system: SystemUnderTest) -> bool:
    return system.endpoints.broker_server.origin.startswith("container")


async def output(*command: str) -> str:
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await asyncio.wait_for(process.communicate(), TIMEOUT)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)}: {err.decode().strip()}")
    return out.decode().strip()


# Connections


def cut_in_a_batch(of: Callable[[SystemUnderTest], Proxy]) -> Make:
    """Cut after a random number of bytes, now in what is sent and now in what is answered."""

    @asynccontextmanager
    async def fault(system: SystemUnderTest) -> AsyncIterator[None]:
        for number in range(CUTS):
            direction = list(Direction)[number % 2]
            count = system.chance.randrange(1, MOST_BYTES)
            cutting = asyncio.ensure_future(of(system).cut_after(count, direction))
            try:
                await system.until(cutting.done, f"{count} bytes {direction.name}")
            finally:
                cutting.cancel()
        yield

    return fault


def refused(of: Callable[[SystemUnderTest], Proxy]) -> Make:
    """Nobody listens at the address."""

    @asynccontextmanager
    async def fault(system: SystemUnderTest) -> AsyncIterator[None]:
        async with of(system).refusing():
            yield

    return fault


def silent(of: Callable[[SystemUnderTest], Proxy]) -> Make:
    """Nothing passes for a while, and nobody is told."""

    @asynccontextmanager
    async def fault(system: SystemUnderTest) -> AsyncIterator[None]:
        with of(system).silent():
            yield
            await asyncio.sleep(SILENCE)

    return fault


def forgotten(of: Callable[[SystemUnderTest], Proxy]) -> Make:
    """Connections that are open never answer again, and are never closed; new ones work."""

    @asynccontextmanager
    async def fault(system: SystemUnderTest) -> AsyncIterator[None]:
        of(system).forget()
        yield

    return fault


def broker_link(system: SystemUnderTest) -> Proxy:
    return system.endpoints.broker_proxy


def database_link(system: SystemUnderTest) -> Proxy:
    return system.endpoints.database_proxy


# The database


@asynccontextmanager
async def database_stopped(system: SystemUnderTest) -> AsyncIterator[None]:
    await system.endpoints.database_server.stop()
    try:
        yield
    finally:
        await system.endpoints.database_server.start()


@asynccontextmanager
async def database_killed(system: SystemUnderTest) -> AsyncIterator[None]:
    await system.endpoints.database_server.kill()
    try:
        yield
    finally:
        await system.endpoints.database_server.start()


@asynccontextmanager
async def backends_killed(system: SystemUnderTest) -> AsyncIterator[None]:
    """All connections to the till's database, again and again."""
    name = make_url(system.endpoints.database_url).database
    for _ in range(CUTS):
        await a_few_effects(system)
        await on_database_server(
            system,
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "  # noqa: S608
            f"WHERE datname = '{name}' AND pid <> pg_backend_pid()",
        )
    yield


@asynccontextmanager
async def database_read_only(system: SystemUnderTest) -> AsyncIterator[None]:
    """As a standby, or a server that fails over."""
    await on_database_server(
        system, "ALTER SYSTEM SET default_transaction_read_only = on", "SELECT pg_reload_conf()"
    )
    try:
        yield
    finally:
        await on_database_server(
            system, "ALTER SYSTEM RESET default_transaction_read_only", "SELECT pg_reload_conf()"
        )


async def on_database_server(system: SystemUnderTest, *statements: str) -> None:
    """Do this, also on a server that is read-only by default."""
    url = make_url(system.endpoints.database_server.url).set(drivername="postgresql")
    connection = await asyncpg.connect(
        url.render_as_string(hide_password=False),
        server_settings={"default_transaction_read_only": "off"},
    )
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()


# SQLite files


def locked(url: Callable[[SystemUnderTest], str]) -> Make:
    """Another process writes, in a transaction that does not end."""

    @asynccontextmanager
    async def fault(system: SystemUnderTest) -> AsyncIterator[None]:
        path = make_url(url(system)).database or ""
        # In one thread each, but not in the same.
        connecting = sqlite3.connect(
            path, timeout=TIMEOUT, isolation_level=None, check_same_thread=False
        )
        with closing(connecting) as connection:
            await asyncio.to_thread(connection.execute, "BEGIN IMMEDIATE")
            try:
                yield
            finally:
                connection.execute("ROLLBACK")

    return fault


def broker_file(system: SystemUnderTest) -> str:
    return system.endpoints.broker_url


def database_file(system: SystemUnderTest) -> str:
    return system.endpoints.database_url
