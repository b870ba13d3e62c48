"""Where servers for tests come from, in which order, and that they leave nothing behind."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import pytest
from aio_pika import connect
from asyncmy.errors import OperationalError
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from eventmesh.errors import UsageError
from eventmesh.testing.servers import (
    KINDS,
    WAYS,
    ControlledServer,
    Server,
    ServerMissing,
    Way,
    fresh_database,
    required,
    serve,
    serve_controlled,
    version_of,
)
from eventmesh.testing.servers.mariadb_server import execute
from eventmesh.testing.servers.processes import CLAIMS, MEMORY, has_space
from tests.conftest import Servers
from tests.support.promised_times import allowed

NO_ENGINE = {"DOCKER_HOST": "tcp://127.0.0.1:1"}
"""An address at which no container engine ever answers."""

TIMEOUT_SECONDS = 120.0


def environment(**changes: str) -> dict[str, str]:
    """The environment without any given server, with these changes."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not re.fullmatch("EVENTMESH_TEST_([A-Z]+_URL|REQUIRE)", name)
    }
    return {**kept, **changes}


async def answers(server: Server) -> bool:
    """Whether the server answers at its URL."""
    try:
        match server.kind:
            case "redis":
                timeout = TIMEOUT_SECONDS
                async with Redis.from_url(server.url, socket_connect_timeout=timeout) as client:
                    return await client.ping()
            case "rabbitmq":
                async with await connect(server.url, timeout=TIMEOUT_SECONDS) as connection:
                    return not (await connection.channel()).is_closed
            case "mariadb":
                return bool(await execute(server.url, "SELECT 1"))
            case _:
                dsn = server.url.replace("postgresql+asyncpg://", "postgresql://")
                connection = await asyncpg.connect(dsn, timeout=TIMEOUT_SECONDS)
                await connection.close()
                return True
    except (OSError, OperationalError, RedisConnectionError):  # aio_pika's error is an OSError
        return False


def processes_of(folders: set[Path]) -> list[str]:
    """Command lines and working folders of running processes that mention one of these folders."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            said = (process / "cmdline").read_bytes().decode(errors="replace")
            where = str((process / "cwd").readlink())
        except OSError:
            continue  # has exited meanwhile
        if any(str(folder) in said or str(folder) in where for folder in folders):
            found.append(f"{said} in {where}")
    return found


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A temporary folder for servers, in which the test sees what they leave behind. The user that
    runs PostgreSQL may enter it, which pytest's own temporary folders do not allow."""
    folder = Path("/tmp") / f"em{os.getpid()}-{time.monotonic_ns()}"  # noqa: S108 - a new name
    folder.mkdir(mode=0o755)
    yield folder
    shutil.rmtree(folder)


@contextmanager
def private(kind: str, folder: Path) -> Iterator[Server]:
    """A server from the machine's own binary; the test is skipped where there is none."""
    with ExitStack() as stack:
        try:
            server = stack.enter_context(serve(kind, environment(TMPDIR=str(folder), **NO_ENGINE)))
        except ServerMissing as missing:
            pytest.skip(str(missing))
        assert server.origin.startswith("private /")
        yield server


def until_nothing_is_left(folders: set[Path], temporary: Path) -> None:
    """Wait until no process uses these folders, and `temporary` is empty."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while left := [*processes_of(folders), *contents(temporary)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


def contents(folder: Path) -> set[Path]:
    """All but the claims of ports, which stay for a while."""
    return {each for each in folder.iterdir() if not each.name.startswith(CLAIMS)}


# --- first choice: a server that the environment names ---


@pytest.mark.parametrize(
    ("kind", "url"),
    [
        ("redis", "redis://given.example:1/0"),
        ("rabbitmq", "amqps://given.example:1/"),
        ("postgres", "postgresql+asyncpg://given.example:1/x"),
        ("mariadb", "mariadb://given.example:1/x"),
    ],
)
def test_a_url_in_the_environment_is_used_and_nothing_is_started(kind: str, url: str) -> None:
    # Without PATH and container engine nothing can be started, and the host does not exist.
    given = {f"EVENTMESH_TEST_{kind.upper()}_URL": url, "PATH": "", **NO_ENGINE}
    with serve(kind, given) as server:
        assert server == Server(kind, url, "environment")


def test_a_url_of_postgres_may_be_written_as_psql_and_services_take_it() -> None:
    given = {"EVENTMESH_TEST_POSTGRES_URL": "postgresql://given.example:1/x", **NO_ENGINE}
    with serve("postgres", given) as server:
        assert server.url == "postgresql+asyncpg://given.example:1/x"


def test_a_url_of_another_kind_is_an_error() -> None:
    given = {"EVENTMESH_TEST_REDIS_URL": "amqp://given.example/"}
    with (
        pytest.raises(UsageError, match=r"EVENTMESH_TEST_REDIS_URL.*redis://"),
        serve("redis", given),
    ):
        pass


def test_an_unknown_kind_is_an_error() -> None:
    with pytest.raises(UsageError, match=r"'kafka'.*redis, rabbitmq, postgres"), serve("kafka"):
        pass


# RabbitMQ takes as long to start as several others, and the run has a container of it anyway.
KINDS_IN_TURN = [
    pytest.param(kind, marks=[pytest.mark.soak] if kind == "rabbitmq" else []) for kind in KINDS
]


# --- second choice: a container ---


@pytest.mark.parametrize("kind", KINDS_IN_TURN)
async def test_a_container_starts_answers_and_is_removed(kind: str) -> None:
    try:
        with serve(kind, environment()) as server:
            if not server.origin.startswith("container "):
                pytest.skip(f"no engine or image for a container: {server.origin} instead")
            assert await answers(server)
    except ServerMissing as missing:
        pytest.skip(str(missing))
    assert not await answers(server)


def test_a_container_engine_that_does_not_answer_is_given_up_within_seconds() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        host, port = silent.getsockname()
        begun = time.monotonic()
        with (
            pytest.raises(ServerMissing, match=r"container: .*timed out"),
            serve("redis", environment(PATH="", DOCKER_HOST=f"tcp://{host}:{port}")),
        ):
            pass
        assert time.monotonic() - begun < allowed(10.0)


def test_an_image_that_cannot_be_pulled_is_given_up_within_seconds() -> None:
    # RFC 2606 reserves the domain `invalid`, so no engine can ever pull this.
    image = "registry.invalid/redis:8"
    begun = time.monotonic()
    with (
        pytest.raises(ServerMissing) as missing,
        serve("redis", environment(PATH="", EVENTMESH_TEST_REDIS_IMAGE=image)),
    ):
        pass
    assert time.monotonic() - begun < allowed(20.0)
    assert "container: " in str(missing.value)


# --- third choice: a private server ---


@pytest.mark.parametrize("kind", KINDS_IN_TURN)
async def test_a_private_server_is_separate_from_others_and_is_removed(
    kind: str, temporary: Path, servers: Servers
) -> None:
    of_another_run = servers.had_by(kind, "private")
    with private(kind, temporary) as server:
        assert server.url != of_another_run.url
        assert await answers(server)
        assert await answers(of_another_run)
        [folder] = contents(temporary)
        assert folder.name.startswith(f"eventmesh-{kind}-")
        assert processes_of({folder})
    assert not await answers(server)
    assert not contents(temporary)
    until_nothing_is_left({folder}, temporary)
    assert await answers(of_another_run)


def test_a_private_server_is_removed_even_if_the_tests_are_killed(temporary: Path) -> None:
    killed = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, time\n"
            "from eventmesh.testing.servers import serve\n"
            "with serve('redis') as server:\n"
            "    print(server.origin, flush=True)\n"
            "    time.sleep(600)\n",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment(TMPDIR=str(temporary), **NO_ENGINE),
    )
    with killed:
        assert killed.stdout is not None
        origin = killed.stdout.readline()
        folders = contents(temporary)
        killed.send_signal(signal.SIGKILL)
    if not origin:
        pytest.skip("no private redis on this machine")
    assert folders
    until_nothing_is_left(folders, temporary)


# --- servers in memory ---


WAITING_FOR_DISKS = ["rabbitmq", "postgres", "mariadb"]


@pytest.mark.parametrize("kind", WAITING_FOR_DISKS)
def test_a_container_in_memory_has_a_file_system_in_memory_where_it_stores(
    kind: str, servers: Servers
) -> None:
    server = servers.had_by(kind, "container")  # those that tests share are in memory
    port = urlsplit(server.url).port
    listed = docker("ps", "--quiet", "--no-trunc", "--filter", f"publish={port}")
    written = docker("exec", listed, "sh", "-c", "df -k --type=tmpfs --output=used,target | cat")
    used = [line.split() for line in written.splitlines()[1:]]
    assert [target for kilobytes, target in used if int(kilobytes) and target[:5] != "/dev/"]


@pytest.mark.parametrize("kind", WAITING_FOR_DISKS)
def test_a_private_server_in_memory_has_its_folder_there(kind: str, servers: Servers) -> None:
    if not has_space(MEMORY):
        pytest.skip(f"no space in {MEMORY}")
    servers.had_by(kind, "private")
    assert processes_of(set(MEMORY.glob(f"eventmesh-{kind}-*")))


def docker(*arguments: str) -> str:
    return subprocess.run(  # noqa: S603
        ["docker", *arguments],  # noqa: S607
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()


# --- controlled servers ---


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "kind", ["redis", "postgres"]
)  # RabbitMQ is slow, and tested by conformance
async def test_a_controlled_server_can_be_killed_stopped_started_and_emptied(
    kind: str, way: Way
) -> None:
    with controlled(kind, way) as server:
        url, version = server.url, server.version
        assert re.match(r"\d+\.\d+", version or "")
        assert await version_of(Server(kind, url, "environment")) == version
        await store(server)
        for end in (server.kill, server.stop):
            await end()
            await end()  # the second call changes nothing
            assert not await answers(server)
            await server.start()
            await server.start()
            assert await answers(server)
            assert await stored(server)
        await server.lose_data()
        assert await answers(server)
        assert not await stored(server)
        assert (server.url, server.version) == (url, version)
        await server.kill()
    assert not await answers(server)


async def test_requests_of_several_tasks_are_executed_one_after_another() -> None:
    with controlled("redis", "private") as server:
        await store(server)
        requests = [server.kill(), server.start(), server.stop(), server.start()]
        async with asyncio.TaskGroup() as tasks:
            for request in requests:
                tasks.create_task(request)
        await server.start()
        assert await stored(server)


async def test_the_answer_to_a_cancelled_request_is_not_mistaken_for_the_next_answer() -> None:
    with controlled("redis", "private") as server:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(server.lose_data(), 0.001)
        await server.start()
        assert await answers(server)
        await server.kill()
        assert not await answers(server)


def test_a_server_from_the_environment_cannot_be_controlled() -> None:
    given = {"EVENTMESH_TEST_REDIS_URL": "redis://given.example:1/0", "PATH": "", **NO_ENGINE}
    with (
        pytest.raises(ServerMissing, match="EVENTMESH_TEST_REDIS_URL may be used by others"),
        serve_controlled("redis", given),
    ):
        pass


@contextmanager
def controlled(kind: str, way: Way) -> Iterator[ControlledServer]:
    """A controlled server of this origin; the test is skipped where there is none."""
    with ExitStack() as stack:
        try:
            server = stack.enter_context(serve_controlled(kind, environment(), way=way))
        except ServerMissing as missing:
            pytest.skip(str(missing))
        assert server.origin.startswith(f"{way} ")
        yield server


async def store(server: Server) -> None:
    """Store something: a table in PostgreSQL, a key in Redis."""
    if server.kind == "redis":
        async with Redis.from_url(server.url) as client:
            await client.set("kept", "yes")
    else:
        connection = await asyncpg.connect(server.url.replace("+asyncpg", ""))
        await connection.execute("CREATE TABLE kept ()")
        await connection.close()


async def stored(server: Server) -> bool:
    """Whether the server still has what `store` stored."""
    if server.kind == "redis":
        async with Redis.from_url(server.url) as client:
            return bool(await client.exists("kept"))
    connection = await asyncpg.connect(server.url.replace("+asyncpg", ""))
    found = await connection.fetchval("SELECT count(*) FROM pg_tables WHERE tablename = 'kept'")
    await connection.close()
    return bool(found)


# --- no server at all ---


def test_the_error_for_a_missing_server_has_every_reason() -> None:
    with (
        pytest.raises(ServerMissing) as missing,
        serve("redis", environment(PATH="", **NO_ENGINE)),
    ):
        pass
    given, container, binary = missing.value.reasons
    assert given == "environment: EVENTMESH_TEST_REDIS_URL is not set"
    assert container.startswith("container: ")
    assert "127.0.0.1" in container
    assert binary == "private: there is no redis-server in $PATH, /usr/sbin"
    assert all(reason in str(missing.value) for reason in missing.value.reasons)


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        ("", False),
        ("rabbitmq", False),
        ("redis", True),
        (" rabbitmq , redis ", True),
        ("all", True),
    ],
)
def test_a_server_is_required_if_it_is_named_or_all_are(named: str, expected: bool) -> None:
    assert required("redis", {"EVENTMESH_TEST_REQUIRE": named}) is expected
    assert not required("redis", {})


def test_requiring_an_unknown_server_is_an_error() -> None:
    with pytest.raises(UsageError, match="kafka"):
        required("redis", {"EVENTMESH_TEST_REQUIRE": "redis,kafka"})


async def test_the_redis_fixture_answers(redis_server: Server) -> None:
    assert await answers(redis_server)


async def test_the_rabbitmq_fixture_answers(rabbitmq_server: Server) -> None:
    assert await answers(rabbitmq_server)


@pytest.mark.parametrize(
    ("named", "outcome"), [("rabbitmq", "1 skipped"), ("rabbitmq,redis", "1 error")]
)
def test_a_test_without_its_server_is_skipped_or_fails_if_it_is_required(
    named: str, outcome: str
) -> None:
    ran = subprocess.run(  # noqa: S603 - our own interpreter
        [
            *(sys.executable, "-m", "pytest", "-p", "no:cacheprovider"),
            f"{__file__}::{test_the_redis_fixture_answers.__name__}",
        ],
        env=environment(PATH="", EVENTMESH_TEST_REQUIRE=named, **NO_ENGINE),
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert re.search(rf"= {outcome} in ", ran.stdout), ran.stdout + ran.stderr
    assert (ran.returncode != 0) == ("error" in outcome)
    unset = "environment: EVENTMESH_TEST_REDIS_URL is not set"
    assert f"redis (container): MISSING. {unset}; container: " in ran.stdout
    assert f"redis (private): MISSING. {unset}; private: there is no redis-server" in ran.stdout


# --- databases ---


async def test_a_fresh_database_is_empty_and_is_dropped_even_while_somebody_is_connected(
    postgres_server: Server,
) -> None:
    async with fresh_database(postgres_server) as one, fresh_database(postgres_server) as two:
        assert one != two
        busy = await asyncpg.connect(one.replace("+asyncpg", ""))
        assert await busy.fetchval("SELECT count(*) FROM pg_tables WHERE schemaname='public'") == 0
        await busy.execute("CREATE TABLE something (id int)")
        name = await busy.fetchval("SELECT current_database()")
    busy.terminate()
    admin = await asyncpg.connect(postgres_server.url.replace("+asyncpg", ""))
    try:
        assert (
            await admin.fetchval("SELECT count(*) FROM pg_database WHERE datname = $1", name) == 0
        )
    finally:
        await admin.close()


async def test_the_postgres_fixture_gives_each_test_its_own_database(
    postgres_url: str, postgres_server: Server
) -> None:
    assert await answers(Server("postgres", postgres_url, "test"))
    assert postgres_url != postgres_server.url
