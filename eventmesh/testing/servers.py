"""Servers for tests: given by the environment, else in a container, else private to this run.

    with serve("postgres") as server:
        async with fresh_database(server) as url:
            ...

A server comes from, in this order:

1. its URL in the environment: EVENTMESH_TEST_REDIS_URL, EVENTMESH_TEST_RABBITMQ_URL,
   EVENTMESH_TEST_POSTGRES_URL. It is used as it is, and never started or stopped;
2. Docker, by testcontainers (`pip install 'testcontainers[postgres,rabbitmq,redis]'`); the image is
   EVENTMESH_TEST_REDIS_IMAGE and so on, and is pulled when it is not there;
3. a server binary found on this machine, run on a free port of 127.0.0.1 in a temporary folder.

Else `ServerMissing` tells why each of them failed. No other server is ever talked to: what is
started here has a random password, and counts as started only once it took that password.

Containers and private servers are held by a process of their own, the keeper, which ends them when
it is told to, on leaving `serve`, and when its standard input ends, because the test process was
killed without a word. So Ryuk, the container by which testcontainers would do the latter, is not
used: its image is one more that may be missing. Only a keeper that is itself killed by SIGKILL
leaves something behind: containers with the label `eventmesh.testing`, or processes in temporary
folders named `eventmesh-redis-*` and so on.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import (
    AbstractContextManager,
    ExitStack,
    asynccontextmanager,
    contextmanager,
    suppress,
)
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

from eventmesh.errors import EventMeshError, UsageError

if TYPE_CHECKING:
    from testcontainers.core.container import DockerContainer

REQUIRE_VARIABLE = "EVENTMESH_TEST_REQUIRE"

ENGINE_PATIENCE = 5.0
"""Seconds within which a container engine answers, or counts as not there."""

REGISTRY_PATIENCE = 10.0
"""Seconds within which an image registry answers; a pull then takes as long as it takes."""

START_PATIENCE = 60.0
"""Seconds within which a started server answers."""

STOP_PATIENCE = 20.0
"""Seconds a private server has to end by itself."""

START_ATTEMPTS = 3
"""Between finding a free port and a server's taking it, somebody else may take it: try again."""

GREETING_PATIENCE = 5.0
"""Seconds that one attempt to talk to a server may take."""

POLL_INTERVAL = 0.05

SUPERUSER = "eventmesh"

_ENDED_BY_US = 128 + signal.SIGTERM


class ServerMissing(EventMeshError):
    """A server for tests was neither given nor could be started: give its URL, or start Docker,
    or install the server. `reasons` has one line for each way that was tried."""

    exit_code = 3

    def __init__(self, kind: str, reasons: Sequence[str]) -> None:
        self.kind = kind
        self.reasons = tuple(reasons)
        super().__init__(f"no {kind} for tests: {'; '.join(self.reasons)}")


@dataclass(frozen=True, slots=True)
class Server:
    """A running server. `origin` is "environment", "container IMAGE" or "private BINARY"."""

    kind: str
    url: str
    origin: str


def required(kind: str, environment: Mapping[str, str] | None = None) -> bool:
    """Whether EVENTMESH_TEST_REQUIRE (a comma-separated list, or `all`) names this server, so that
    a test must fail without it rather than be skipped. UsageError when it names an unknown one."""
    environment = os.environ if environment is None else environment
    named = {name.strip() for name in environment.get(REQUIRE_VARIABLE, "").split(",")} - {""}
    if unknown := named - {*KINDS, "all"}:
        raise UsageError(
            f"{REQUIRE_VARIABLE} names {', '.join(sorted(unknown))}; known are "
            f"{', '.join(KINDS)} and all."
        )
    return kind in named or "all" in named


@contextmanager
def serve(kind: str, environment: Mapping[str, str] | None = None) -> Iterator[Server]:
    """A server of this kind ("redis", "rabbitmq" or "postgres") while the context is open.

    `environment` is used instead of the process's own. ServerMissing when there is none.
    """
    _recipe(kind)
    environment = os.environ if environment is None else environment
    given = _given(kind, environment)
    if given is not None:
        yield given
        return
    with _kept(kind, environment) as server:
        yield server


@asynccontextmanager
async def fresh_database(server: Server) -> AsyncIterator[str]:
    """The URL of a new, empty database on a Postgres server; dropped on leaving, whoever is
    connected to it."""
    name = f"test_{secrets.token_hex(8)}"
    # template0, because nobody can be connected to it: template1 in use makes this fail.
    await _execute(server.url, f'CREATE DATABASE "{name}" TEMPLATE template0')
    try:
        yield urlunsplit(urlsplit(server.url)._replace(path=f"/{name}"))
    finally:
        await _execute(server.url, f'DROP DATABASE "{name}" WITH (FORCE)')


# --- the first way: given ---


def _given(kind: str, environment: Mapping[str, str]) -> Server | None:
    """The server that the environment gives, or None; UsageError for a URL of another kind."""
    variable = _variable(kind, "URL")
    url = environment.get(variable, "")
    if not url:
        return None
    schemes = _recipe(kind).schemes
    if urlsplit(url).scheme not in schemes:
        raise UsageError(
            f"{variable} begins with {urlsplit(url).scheme!r}; a URL of a {kind} for tests begins "
            f"with {' or '.join(f'{scheme}://' for scheme in schemes)}."
        )
    return Server(kind, url, "environment")


def _variable(kind: str, what: str) -> str:
    return f"EVENTMESH_TEST_{kind.upper()}_{what}"


# --- the keeper: a process that holds a container or a private server ---


@contextmanager
def _kept(kind: str, environment: Mapping[str, str]) -> Iterator[Server]:
    """A server held by a keeper, which ends it on leaving, or when this process is gone."""
    with subprocess.Popen(  # noqa: S603 - our own interpreter and module
        [sys.executable, "-W", "ignore", "-m", "eventmesh.testing.servers", kind],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=dict(environment),
        start_new_session=True,  # Ctrl-C is for the tests, which then leave this context
    ) as keeper:
        try:
            line = keeper.stdout.readline() if keeper.stdout else b""
            if line:
                yield _answered(kind, json.loads(line))
        finally:
            # Not by the end of its input alone, which a forked child of ours may hold open.
            keeper.terminate()
    if not line or keeper.returncode not in (0, _ENDED_BY_US):
        raise EventMeshError(
            f"The process that keeps a {kind} for tests ended with code {keeper.returncode}; its "
            f"traceback is on standard error. Look for what it left behind."
        )


def _answered(kind: str, answer: dict[str, Any]) -> Server:
    """What a keeper answered: its server, or ServerMissing with its reasons."""
    if "reasons" in answer:
        raise ServerMissing(
            kind, [f"environment: {_variable(kind, 'URL')} is not set", *answer["reasons"]]
        )
    return Server(kind, answer["url"], answer["origin"])


def keep(kind: str, asked_to_end: IO[bytes], answer: IO[bytes]) -> None:
    """Start a server, say where it is or why there is none, and hold it until asked to end."""
    try:
        with _started(kind) as server:
            _say(answer, {"url": server.url, "origin": server.origin})
            asked_to_end.read()
    except ServerMissing as missing:
        _say(answer, {"reasons": missing.reasons})


def _say(stream: IO[bytes], answer: Mapping[str, object]) -> None:
    stream.write(json.dumps(answer).encode() + b"\n")
    stream.flush()


@contextmanager
def _started(kind: str) -> Iterator[Server]:
    """A server from the first way that works; ServerMissing with the reasons when none does."""
    ways: dict[str, Callable[[str], AbstractContextManager[Server]]] = {
        "container": _in_container,
        "private": _private,
    }
    reasons: list[str] = []
    for name, way in ways.items():
        with ExitStack() as stack:
            try:
                server = stack.enter_context(way(kind))
            except _Unavailable as reason:
                reasons.append(f"{name}: {reason}")
                continue
            yield server
            return
    raise ServerMissing(kind, reasons)


class _Unavailable(Exception):
    """This way gives no server, for this reason."""


class _EndedEarly(_Unavailable):
    """The server ended before it answered."""


# --- the second way: a container ---


@contextmanager
def _in_container(kind: str) -> Iterator[Server]:
    try:
        from docker.errors import DockerException  # type: ignore[import-untyped]
        from redis.exceptions import RedisError
        from testcontainers.core.config import testcontainers_config
        from urllib3.exceptions import HTTPError
    except ImportError as error:
        raise _Unavailable(f"testcontainers is not installed ({error})") from error
    # Settings of the keeper's process, which has no other use for testcontainers.
    testcontainers_config.ryuk_disabled = True
    testcontainers_config.sleep_time = POLL_INTERVAL
    testcontainers_config.max_tries = round(START_PATIENCE / POLL_INTERVAL)

    recipe = _recipe(kind)
    image = os.environ.get(_variable(kind, "IMAGE")) or recipe.image
    with ExitStack() as stack:
        try:
            _fetch(testcontainers_config.hub_image_name_prefix + image)
            container, url_of = recipe.container(image)
            container.with_kwargs(labels={"eventmesh.testing": kind})
            stack.enter_context(container)
            url = url_of()
        # testcontainers lets the errors of the libraries below it through; requests' are OSErrors.
        except (
            *(DockerException, HTTPError, RedisError),
            *(OSError, RuntimeError, ImportError),
        ) as error:
            raise _Unavailable(_one_line(error)) from error
        _wait_until_it_answers(kind, url)
        yield Server(kind, url, f"container {image}")


def _fetch(image: str) -> None:
    """See that the engine answers and has the image, pulling it if need be; fail fast."""
    from docker.errors import ImageNotFound, NotFound
    from testcontainers.core.docker_client import DockerClient

    with ExitStack() as stack:
        engine = DockerClient(timeout=ENGINE_PATIENCE).client
        stack.callback(engine.close)
        try:
            engine.images.get(image)
            return
        except ImageNotFound:
            puller = DockerClient(timeout=REGISTRY_PATIENCE).client
            stack.callback(puller.close)
        # A pull waits without a limit, so ask the registry something short first. Podman cannot
        # ask, and says "not found"; so does a registry without the image, where pulling fails fast.
        with suppress(NotFound):
            puller.images.get_registry_data(image)
        puller.images.pull(image)


_Container = tuple["DockerContainer", Callable[[], str]]
"""A container to start, and what then gives its URL."""


def _redis_container(image: str) -> _Container:
    from testcontainers.community.redis import RedisContainer

    password = secrets.token_hex(16)
    container = RedisContainer(image, password=password)
    container.with_command(["redis-server", "--requirepass", password, "--appendonly", "yes"])

    def url() -> str:
        host, port = container.get_container_host_ip(), container.get_exposed_port(6379)
        return f"redis://:{password}@{host}:{port}/0"

    return container, url


def _rabbitmq_container(image: str) -> _Container:
    from testcontainers.community.rabbitmq import RabbitMqContainer

    password = secrets.token_hex(16)
    container = RabbitMqContainer(
        image, port=5672, username=SUPERUSER, password=password, vhost="/"
    )

    def url() -> str:
        host, port = container.get_container_host_ip(), container.get_exposed_port(5672)
        return f"amqp://{SUPERUSER}:{password}@{host}:{port}/"

    return container, url


def _postgres_container(image: str) -> _Container:
    from testcontainers.community.postgres import PostgresContainer

    container = PostgresContainer(
        image,
        username=SUPERUSER,
        password=secrets.token_hex(16),
        dbname="postgres",
        driver="asyncpg",
    )
    return container, container.get_connection_url


# --- the third way: a private server of a binary that is here ---


@contextmanager
def _private(kind: str) -> Iterator[Server]:
    recipe = _recipe(kind)
    binaries = [_find_binary(name, recipe.places) for name in recipe.binaries]
    reason = ""
    for _ in range(START_ATTEMPTS):
        with ExitStack() as stack:
            try:
                url = stack.enter_context(recipe.private(*binaries))
            except _EndedEarly as error:
                reason = str(error)
                continue
            yield Server(kind, url, f"private {binaries[0]}")
            return
    raise _Unavailable(f"{binaries[0]} ended {START_ATTEMPTS} times before it answered: {reason}")


def _find_binary(name: str, places: Sequence[str]) -> str:
    """The program of this name in the first place that has it: a folder, a pattern of folders of
    which the highest version comes first, or `$PATH`."""
    if os.name != "posix":
        raise _Unavailable("private servers are run on POSIX systems only")
    for place in places:
        path = os.environ.get("PATH", "") if place == "$PATH" else os.pathsep.join(_expand(place))
        if path and (binary := shutil.which(name, path=path)):
            return binary
    raise _Unavailable(f"there is no {name} in {', '.join(places)}")


def _expand(pattern: str) -> list[str]:
    folders = Path("/").glob(pattern.lstrip("/"))
    return [str(folder) for folder in sorted(folders, key=_numbers_in, reverse=True)]


def _numbers_in(path: Path) -> list[int]:
    return [int(digits) for digits in re.findall(r"\d+", str(path))]


@contextmanager
def _private_redis(binary: str) -> Iterator[str]:
    [port] = _free_ports(1)
    password = secrets.token_hex(16)
    with _folder("redis") as folder:
        settings = folder / "redis.conf"  # a file, so that the password is in no process list
        settings.write_text(
            f"port {port}\nbind 127.0.0.1\nrequirepass {password}\n"
            f'dir "{folder}"\nappendonly yes\nsave ""\n'
        )
        with _process([binary, str(settings)], folder) as process:
            url = f"redis://:{password}@127.0.0.1:{port}/0"
            _wait_until_it_answers("redis", url, process)
            yield url


@contextmanager
def _private_rabbitmq(binary: str, epmd: str) -> Iterator[str]:
    """A node with a name, a cookie, a configuration and an epmd of its own.

    Each variable here replaces a file or a port of the machine's own RabbitMQ; left out, Debian's
    `/etc/rabbitmq` would make this node a second `rabbit@localhost` on port 5672.
    """
    port, distribution_port, epmd_port = _free_ports(3)
    password = secrets.token_hex(16)
    node_address = {"ERL_EPMD_PORT": str(epmd_port), "ERL_EPMD_ADDRESS": "127.0.0.1"}
    with _folder("rabbitmq") as folder:
        files = {
            "environment.conf": "",
            "advanced.config": "[].\n",
            "enabled_plugins": "[].\n",
            "rabbitmq.conf": (
                f"listeners.tcp.local = 127.0.0.1:{port}\n"
                f"default_user = {SUPERUSER}\ndefault_pass = {password}\n"
            ),
        }
        for name, text in files.items():
            (folder / name).write_text(text)
        environment = {
            **node_address,
            "RABBITMQ_NODENAME": f"eventmesh-{secrets.token_hex(8)}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(port),
            "RABBITMQ_DIST_PORT": str(distribution_port),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
            "RABBITMQ_CONF_ENV_FILE": f"{folder}/environment.conf",
            "RABBITMQ_CONFIG_FILE": f"{folder}/rabbitmq.conf",
            "RABBITMQ_CONFIG_FILES": f"{folder}/conf.d",
            "RABBITMQ_ADVANCED_CONFIG_FILE": f"{folder}/advanced.config",
            "RABBITMQ_ENABLED_PLUGINS_FILE": f"{folder}/enabled_plugins",
            "RABBITMQ_MNESIA_BASE": f"{folder}/data",
            "RABBITMQ_LOG_BASE": f"{folder}/log",
            "RABBITMQ_GENERATED_CONFIG_DIR": f"{folder}/generated",
            "RABBITMQ_SCHEMA_DIR": f"{folder}/schema",
        }
        with ExitStack() as stack:
            # Started by us and first, or the node would start one as a daemon that outlives it.
            mapper = stack.enter_context(
                _process([epmd, "-port", str(epmd_port)], folder, environment=node_address)
            )
            _wait_until_served(lambda: _refused_connection(epmd_port), mapper)
            node = stack.enter_context(_process([binary], folder, environment=environment))
            url = f"amqp://{SUPERUSER}:{password}@127.0.0.1:{port}/"
            _wait_until_it_answers("rabbitmq", url, mapper, node)
            yield url


@contextmanager
def _private_postgres(binary: str, initdb: str) -> Iterator[str]:
    """A cluster that answers on TCP only, under another user when we are root.

    It does not sync to disk: the folder is not meant to outlive the machine's next power cut.
    """
    [port] = _free_ports(1)
    account = _unprivileged_account()
    password = secrets.token_hex(16)
    with _folder("postgres", account) as folder:
        password_file = folder / "password"
        password_file.write_text(password)
        if account is not None:
            os.chown(password_file, account.user, account.group)
        data = str(folder / "data")
        _run_to_end(
            [
                *(initdb, "-D", data, "-U", SUPERUSER, f"--pwfile={password_file}"),
                *("-A", "scram-sha-256", "-E", "UTF8", "--locale=C", "--no-sync"),
            ],
            folder,
            account,
        )
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": port,
            "unix_socket_directories": "",
            "max_connections": 200,
            "fsync": "off",
        }
        command = [binary, "-D", data]
        for name, value in settings.items():
            command += ["-c", f"{name}={value}"]
        # SIGTERM would wait for every client to leave; SIGINT does not.
        with _process(command, folder, account=account, ending=signal.SIGINT) as process:
            url = f"postgresql+asyncpg://{SUPERUSER}:{password}@127.0.0.1:{port}/postgres"
            _wait_until_it_answers("postgres", url, process)
            yield url


@dataclass(frozen=True, slots=True)
class _Account:
    user: int
    group: int


def _unprivileged_account() -> _Account | None:
    """Whom to run Postgres as, which refuses to run as root; None when we are not root."""
    if os.geteuid() != 0:
        return None
    import pwd  # is not there on Windows

    for name in ("postgres", "nobody"):
        with suppress(KeyError):
            entry = pwd.getpwnam(name)
            return _Account(entry.pw_uid, entry.pw_gid)
    raise _Unavailable("we are root, and there is no user postgres or nobody to run it as")


@contextmanager
def _folder(kind: str, account: _Account | None = None) -> Iterator[Path]:
    """A temporary folder that only this account can read, removed on leaving."""
    with tempfile.TemporaryDirectory(prefix=f"eventmesh-{kind}-") as name:
        if account is not None:
            os.chown(name, account.user, account.group)
        yield Path(name)


@dataclass(frozen=True, slots=True)
class _Running:
    process: subprocess.Popen[bytes]
    output: Path

    def check(self) -> None:
        """_EndedEarly when it runs no more."""
        code = self.process.poll()
        if code is not None:
            raise _EndedEarly(f"code {code}, {_last_words(self.output)}")


@contextmanager
def _process(
    command: Sequence[str],
    folder: Path,
    *,
    environment: Mapping[str, str] | None = None,
    account: _Account | None = None,
    ending: signal.Signals = signal.SIGTERM,
) -> Iterator[_Running]:
    """A running process, ended on leaving, with its output in a file of the folder."""
    output = folder / f"{Path(command[0]).name}.output"
    with output.open("ab") as stream:
        process = subprocess.Popen(  # noqa: S603 - a program that _find_binary found
            command,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env={**_bare_environment(folder), **(environment or {})},
            user=account.user if account else None,
            group=account.group if account else None,
            extra_groups=[] if account else None,
            process_group=0,
        )
    try:
        yield _Running(process, output)
    finally:
        process.send_signal(ending)
        try:
            process.wait(STOP_PATIENCE)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # ours still: its leader is not reaped yet
            process.wait()


def _run_to_end(command: Sequence[str], folder: Path, account: _Account | None) -> None:
    with _process(command, folder, account=account) as running:
        try:
            code = running.process.wait(START_PATIENCE)
        except subprocess.TimeoutExpired as error:
            raise _Unavailable(f"{command[0]} did not end in {START_PATIENCE:.0f} s") from error
    if code != 0:
        raise _Unavailable(f"{command[0]} ended with code {code}, {_last_words(running.output)}")


def _last_words(output: Path) -> str:
    """The end of what a process wrote, on one line."""
    return f"saying: {_one_line(output.read_text(errors='replace')[-500:])}"


def _one_line(said: object) -> str:
    return " ".join(str(said).split()) or repr(said)


def _bare_environment(folder: Path) -> dict[str, str]:
    """No PGPORT, RABBITMQ_* or the like of the machine's own servers; its home is the folder."""
    return {"PATH": os.environ.get("PATH", os.defpath), "HOME": str(folder), "LC_ALL": "C"}


def _free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that were free a moment ago, all different."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


# --- whether a server answers ---


def _wait_until_it_answers(kind: str, url: str, *processes: _Running) -> None:
    """Return once the server takes our password, as in _wait_until_served."""
    _wait_until_served(lambda: asyncio.run(_refusal(kind, url)), *processes)


def _wait_until_served(refusal: Callable[[], str | None], *processes: _Running) -> None:
    """Return once there is no refusal; _EndedEarly when one of the processes has ended,
    _Unavailable when it takes too long."""
    deadline = time.monotonic() + START_PATIENCE
    while (reason := refusal()) is not None:
        for process in processes:
            process.check()
        if time.monotonic() > deadline:
            raise _Unavailable(f"no answer within {START_PATIENCE:.0f} s: {reason}")
        time.sleep(POLL_INTERVAL)


def _refused_connection(port: int) -> str | None:
    try:
        with socket.create_connection(("127.0.0.1", port), GREETING_PATIENCE):
            return None
    except OSError as error:
        return _one_line(error)


async def _refusal(kind: str, url: str) -> str | None:
    """Why the server does not serve us yet; None when it does."""
    from aiormq.exceptions import AMQPError
    from asyncpg import InterfaceError, PostgresError  # type: ignore[import-untyped]
    from redis.exceptions import RedisError

    try:
        async with asyncio.timeout(GREETING_PATIENCE):
            await _recipe(kind).greet(url)
    except (OSError, EOFError, AMQPError, InterfaceError, PostgresError, RedisError) as error:
        return _one_line(error)
    return None


async def _greet_redis(url: str) -> None:
    from redis.asyncio import Redis

    async with Redis.from_url(url) as client:
        await client.ping()


async def _greet_rabbitmq(url: str) -> None:
    from aio_pika import connect

    async with await connect(url) as connection:
        await connection.channel()


async def _greet_postgres(url: str) -> None:
    await _execute(url, "SELECT 1")


async def _execute(url: str, statement: str) -> None:
    """Execute one statement on a connection of its own."""
    import asyncpg

    plain = urlunsplit(urlsplit(url)._replace(scheme="postgresql"))
    connection = await asyncpg.connect(plain)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


# --- what is particular to each kind ---


@dataclass(frozen=True, slots=True)
class _Recipe:
    """`private` takes the `binaries`, which are looked for in `places`, and gives the URL."""

    schemes: tuple[str, ...]
    image: str
    container: Callable[[str], _Container]
    binaries: tuple[str, ...]
    places: tuple[str, ...]
    private: Callable[..., AbstractContextManager[str]]
    greet: Callable[[str], Awaitable[None]]


_RECIPES: Mapping[str, _Recipe] = MappingProxyType(
    {
        "redis": _Recipe(
            schemes=("redis", "rediss"),
            image="redis:8",
            container=_redis_container,
            binaries=("redis-server",),
            places=("$PATH", "/usr/sbin"),
            private=_private_redis,
            greet=_greet_redis,
        ),
        "rabbitmq": _Recipe(
            schemes=("amqp", "amqps"),
            image="rabbitmq:4",
            container=_rabbitmq_container,
            binaries=("rabbitmq-server", "epmd"),
            # Debian's rabbitmq-server on PATH is a wrapper for its own instance and user.
            places=("/usr/lib/rabbitmq/bin", "$PATH", "/usr/sbin", "/usr/lib/erlang/erts-*/bin"),
            private=_private_rabbitmq,
            greet=_greet_rabbitmq,
        ),
        "postgres": _Recipe(
            schemes=("postgresql+asyncpg",),
            image="postgres:17",
            container=_postgres_container,
            binaries=("postgres", "initdb"),
            places=("$PATH", "/usr/lib/postgresql/*/bin", "/usr/sbin"),
            private=_private_postgres,
            greet=_greet_postgres,
        ),
    }
)

KINDS = tuple(_RECIPES)


def _recipe(kind: str) -> _Recipe:
    if kind not in _RECIPES:
        raise UsageError(f"There is no server {kind!r} for tests; known are {', '.join(KINDS)}.")
    return _RECIPES[kind]


def _leave(signal_number: int, frame: object) -> None:
    """End this process by way of every open context; being asked once more changes nothing."""
    signal.signal(signal_number, signal.SIG_IGN)
    raise SystemExit(_ENDED_BY_US)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _leave)
    logging.disable()  # clients log each failed attempt, and to attempt until it works is our work
    keep(sys.argv[1], sys.stdin.buffer, sys.stdout.buffer)
