"""A user's project in a temporary folder, and the command line run in it as real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, Protocol
from urllib.parse import urlsplit

import aio_pika
import pytest
from redis.asyncio import Redis

from eventmesh.clock import SystemClock
from eventmesh.runtime.relaying import relay
from eventmesh.transports.base import TransportOptions, publish_or_raise
from eventmesh.transports.factory import open_transport
from eventmesh.wire.envelope import Envelope
from tests.integration.forks import LAUNCHER, Forks

TIMEOUT_SECONDS = 120.0
"""Seconds after which waiting for something fails; only a failing test takes so long."""

HOLD_TIME = 3600.0
"""Seconds for which a rejected message is held where `long_holds` is used."""

BECAUSE = ("--reason", "a test")
"""What commands that act on a running mesh ask for."""

POLL_INTERVAL = 0.01
CONCURRENT_COMMANDS = 6
"""How many commands run at the same time."""

BANK = '''\
"""A bank whose handler does what the owner's name asks for."""

import asyncio
import logging
import sys
from pathlib import Path

import structlog
from eventmesh import Command, Event, Reject, Retry, Service, Transaction, constant
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

log = structlog.get_logger()
plain_log = logging.getLogger("services.bank.plain")

class Base(DeclarativeBase): ...
class Account(Base):
    __tablename__ = "accounts"
    owner: Mapped[str] = mapped_column(primary_key=True)
    cents: Mapped[int] = mapped_column(default=0)

class Deposit(Command, name="bank.deposit", version=1, key="owner"):
    owner: str
    cents: int
    note: str = ""

class Deposited(Event, name="bank.deposited", version=1, key="owner"):
    owner: str
    balance: int
    note: str = ""

service = Service("bank", metadata=Base.metadata)
deposits = service.publisher(Deposit)

@service.subscriber(Deposit, retry=Retry(attempts=2, backoff=constant("10ms")))
async def deposit(command: Deposit, tx: Transaction) -> Deposited:
    log.info("depositing", cents=command.cents)
    plain_log.info("depositing plainly")
    account = await tx.session.get(Account, command.owner)
    account = account or Account(owner=command.owner, cents=0)
    tx.session.add(account)
    account.cents += command.cents
    await tx.session.flush()
    match command.owner:
        case "slow":
            Path("started").touch()
            while not Path("go").exists():
                await asyncio.sleep(0.01)
        case "broken":
            raise ValueError("no such branch")
        case "refused":
            raise Reject("the account is closed")
        case "big":
            return Deposited(owner="big", balance=0, note="x" * 5_000_000)
    return Deposited(owner=command.owner, balance=account.cents)

@service.subscriber(Deposited)
async def tell(event: Deposited) -> None:
    print(f"{event.owner} has {event.balance / 100:.2f}", flush=True)
'''

Condition = Callable[[], Any]


def until(condition: Condition, what: str, within: float = TIMEOUT_SECONDS) -> Any:
    """Wait until the condition is true and return its result; after `within` seconds raise an
    AssertionError that names what was waited for."""
    deadline = time.monotonic() + within
    while not (result := condition()):
        assert time.monotonic() < deadline, f"waited {within:g} s for {what}"
        time.sleep(POLL_INTERVAL)
    return result


@dataclass(frozen=True)
class Ended:
    """A command that has ended."""

    code: int
    out: str
    err: str

    @property
    def said(self) -> str:
        return self.out + self.err

    def fails(self, code: int, *words: str) -> str:
        """Check the exit code, and that the error is one paragraph with these words."""
        assert self.code == code, self.said
        assert "Traceback" not in self.said
        error = self.err.strip()
        assert error.startswith("Error: "), self.err
        assert "\n" not in error
        assert error.endswith(".")
        for word in words:
            assert word in error
        return error

    def succeeds(self, *words: str) -> str:
        assert self.code == 0, self.said
        for word in words:
            assert word in self.out
        return self.out


class Output:
    """The output of a command, in files."""

    def __init__(self, root: Path) -> None:
        self.log = root / f".output-{uuid.uuid4().hex}"
        self.log.mkdir()

    @contextmanager
    def files(self) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
        """Both files, open for writing."""
        with (self.log / "out").open("wb") as out, (self.log / "err").open("wb") as err:
            yield out, err

    @property
    def out(self) -> str:
        return (self.log / "out").read_bytes().decode(errors="replace")

    @property
    def err(self) -> str:
        return (self.log / "err").read_bytes().decode(errors="replace")


class Process(Protocol):
    """A process, started or forked, as tests use it."""

    pid: int

    def poll(self) -> int | None: ...
    def wait(self, timeout: float | None = None) -> int: ...
    def send_signal(self, sig: int) -> None: ...


class Running(Output):
    """A running command in its own process group."""

    def __init__(self, root: Path, begin: Callable[[IO[bytes], IO[bytes]], Process]) -> None:
        """`begin` starts the command, which writes to these two files."""
        super().__init__(root)
        with self.files() as (out, err):
            self.process = begin(out, err)

    def lines(self) -> list[dict[str, Any]]:
        """The complete log lines so far."""
        complete = self.err.rpartition("\n")[0].splitlines()
        return [json.loads(line) for line in complete if line.startswith("{")]

    def events(self) -> list[str]:
        return [line["event"] for line in self.lines()]

    def until_says(self, event: str, times: int = 1) -> None:
        """Wait for a log line."""
        self._until(lambda: self.events().count(event) >= times, f"{times} times {event!r}")

    def until_prints(self, text: str) -> None:
        self._until(lambda: text in self.out, f"{text!r} printed")

    def until(self, holds: Callable[[str], bool], what: str) -> None:
        """Wait until this holds for all output so far."""
        self._until(lambda: holds(self.out + self.err), what)

    def tell(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def tell_all(self, number: signal.Signals) -> None:
        """Send a signal to the process and its children, as a terminal does on Ctrl-C."""
        os.killpg(self.process.pid, number)

    def children(self) -> list[int]:
        """Its child processes, without what only starts them (see `forks`)."""
        found = []
        # The kernel's own list of a process's children leaves some out while others exit.
        for each in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):  # it has exited meanwhile
                name, _, rest = each.read_text().partition("(")[2].rpartition(")")
                if int(rest.split()[1]) == self.process.pid and name != LAUNCHER:
                    found.append(int(each.parent.name))
        return sorted(found)

    def ended(self, within: float = TIMEOUT_SECONDS) -> Ended:
        try:
            code = self.process.wait(within)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still runs after {within:g} s; its output: {self.err}") from None
        return Ended(code, self.out, self.err)

    def drain(self) -> Ended:
        """Stop it, and check that it exits with success."""
        self.tell(signal.SIGTERM)
        ended = self.ended()
        assert ended.code == 0, ended.said
        return ended

    def kill(self) -> None:
        """Kill its process group, whatever state it is in."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def _until(self, condition: Condition, what: str) -> None:
        def reached() -> bool:
            if condition():
                return True
            code = self.process.poll()
            assert code is None or condition(), (
                f"ended with {code} before {what}: {self.out}{self.err}"
            )
            return False

        try:
            until(reached, what)
        except AssertionError as error:
            raise AssertionError(f"{error}; its output: {self.out}{self.err}") from None


FORKED = (
    "asyncapi",
    "audit",
    "db",
    "describe",
    "dlq",
    "doctor",
    "outbox",
    "partitions",
    "saga",
    "schema",
    "simulate",
    "status",
    "unrouted",
    "why",
    "worker",
)
"""Commands that are forked from a process that has imported everything (see `forks`), as are the
workers of a supervisor. `start_program` shows in some tests that they also start on their own."""


def _changes_interpreter(environment: Mapping[str, str]) -> bool:
    """Whether it changes variables that Python reads only when a process starts."""
    return any(
        value != os.environ.get(name)
        for name, value in environment.items()
        if name.startswith("PYTHON") and name != "PYTHONDONTWRITEBYTECODE"
    )


class Project:
    """A folder with services, and the environment of the commands that run there."""

    def __init__(self, root: Path, forks: Forks | None = None) -> None:
        """With `forks`, commands start faster. `start_program` never forks."""
        self.root = root
        self._forks = forks
        self.prefix = f"t{uuid.uuid4().hex[:12]}"
        kept = {k: v for k, v in os.environ.items() if not k.startswith("EVENTMESH_")}
        self.environment = kept | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "EVENTMESH_BROKER_PREFIX": self.prefix,
            # The relay of an aborted worker is replaced at lease expiry.
            "EVENTMESH_LEASE_TIME": "500ms",
            # A service that is rewritten within a second must not be read from a bytecode cache.
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        self._started: list[Running] = []

    def write(self, path: str, text: str | bytes) -> Path:
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(text.encode() if isinstance(text, str) else text)
        return target

    def service(self, text: str = BANK, name: str = "bank") -> Path:
        return self.write(f"services/{name}/service.py", text)

    def change_service(self, before: str, after: str) -> None:
        path = self.root / "services/bank/service.py"
        assert before in path.read_text()
        path.write_text(path.read_text().replace(before, after))

    def start_program(self, *command: str, **environment: str) -> Running:
        def begin(out: IO[bytes], err: IO[bytes]) -> Process:
            return subprocess.Popen(  # noqa: S603 - our own command line
                list(command),
                cwd=self.root,
                env=self.environment | environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )

        return self._keep(Running(self.root, begin))

    def start(self, *arguments: str, **environment: str) -> Running:
        """`eventmesh` with these arguments. A worker is the process itself, so that it is what a
        signal reaches, unless `--workers` asks for a supervisor."""
        if arguments[:1] == ("worker",) and "--workers" not in arguments:
            arguments = ("worker", "--no-supervise", *arguments[1:])
        return self.start_as_typed(*arguments, **environment)

    def start_as_typed(self, *arguments: str, **environment: str) -> Running:
        """`eventmesh` with exactly these arguments."""
        asked = self.environment | environment
        if self._forks is None or not set(arguments[:1]) & {*FORKED} or _changes_interpreter(asked):
            return self.start_program(sys.executable, "-m", "eventmesh", *arguments, **environment)
        begin = partial(self._forks.begin, ["eventmesh", *arguments], self.root, asked)
        return self._keep(Running(self.root, begin))

    def start_file(self, *command: str, **environment: str) -> Running:
        """`python` with these arguments, of which the first is a file in this folder."""
        asked = self.environment | environment
        if self._forks is None or _changes_interpreter(asked):
            return self.start_program(sys.executable, *command, **environment)
        begin = partial(self._forks.begin, command, self.root, asked)
        return self._keep(Running(self.root, begin))

    def pytest(self, *arguments: str) -> Ended:
        """pytest with these arguments, forked; see `forks`."""
        command = ("pytest", "-p", "no:cacheprovider", *arguments)
        if self._forks is None:
            return self.start_program(sys.executable, "-m", *command).ended()
        begin = partial(self._forks.begin, command, self.root, self.environment)
        return self._keep(Running(self.root, begin)).ended()

    def _keep(self, running: Running) -> Running:
        self._started.append(running)
        return running

    def run(self, *arguments: str, **environment: str) -> Ended:
        return self.start(*arguments, **environment).ended()

    def run_all(self, *commands: Sequence[str]) -> list[Ended]:
        """Run these, a few at a time; each has its own timeout."""
        ended: list[Ended] = []
        for begin in range(0, len(commands), CONCURRENT_COMMANDS):
            running = [
                self.start(*command) for command in commands[begin : begin + CONCURRENT_COMMANDS]
            ]
            ended += [each.ended() for each in running]
        return ended

    def worker(self, *arguments: str, processes: int = 1, **environment: str) -> Running:
        """Start a worker of the bank and wait until it is ready."""
        running = self.start("worker", "bank", *arguments, **environment)
        running.until_says("worker is ready", processes)
        return running

    def python(self, text: str, **environment: str) -> Ended:
        """Run a program of a user; see `forks`."""
        path = self.write(f"program_{uuid.uuid4().hex}.py", text)
        return self.start_file(path.name, **environment).ended()

    def letters(self, count: int = 1, service: str = "bank") -> list[dict[str, Any]]:
        """Wait until the service has this many dead letters: each is logged shortly before it is
        stored."""
        return until(lambda: self._letters(service, count), f"{count} dead letter(s)")

    def _letters(self, service: str, least: int) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(
            self.run("dlq", "list", service, "--json").succeeds()
        )
        return found if len(found) >= least else []

    def processes(self) -> list[int]:
        """All processes that run in this folder, whatever their parent is."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # it has exited meanwhile
                if (process / "cwd").readlink() == self.root:
                    found.append(int(process.name))
        return found

    def kill(self) -> None:
        for running in self._started:
            running.kill()
        for pid in self.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@pytest.fixture
def long_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hold rejected messages for HOLD_TIME, so that they are retried only when the test moves the
    clock forward, and not because the machine is slow."""
    monkeypatch.setattr(relay, "pause_after_rejections", lambda _attempts: HOLD_TIME)


@pytest.fixture
def project(tmp_path: Path, forks: Forks) -> Iterator[Project]:
    """An empty project on a SQLite broker; processes in it end with the test."""
    made = Project(tmp_path, forks)
    try:
        yield made
    finally:
        made.kill()


@pytest.fixture
def projects(tmp_path: Path, forks: Forks) -> Iterator[Callable[[], Project]]:
    """Creates empty projects; processes in them end with the test."""
    made: list[Project] = []

    def make() -> Project:
        root = tmp_path / str(len(made))
        root.mkdir()
        made.append(Project(root, forks))
        return made[-1]

    try:
        yield make
    finally:
        for project in made:
            project.kill()


@pytest.fixture
def bank(project: Project) -> Project:
    """A project with the service `bank`."""
    project.service()
    return project


@pytest.fixture
def on(bank: Project, durable_url: Callable[[str], str]) -> Callable[[str], Project]:
    """The bank on a "sqlite", "redis" or "amqp" broker, with its own prefix."""

    def use(broker: str) -> Project:
        bank.environment["EVENTMESH_BROKER_URL"] = durable_url(broker)
        return bank

    return use


@pytest.fixture
def attributes() -> Callable[..., dict[str, str]]:
    """The CloudEvents attributes of a new deposit, with changes; "" removes an attribute."""

    def make(**changes: str) -> dict[str, str]:
        made = {
            "specversion": "1.0",
            "id": str(uuid.uuid4()),
            "source": "/test",
            "type": "bank.deposit",
            "dataschema": "urn:eventmesh:bank.deposit:1",
            "datacontenttype": "application/json",
        } | changes
        return {name: value for name, value in made.items() if value}

    return make


Put = Callable[[Project, Mapping[str, str], bytes], Awaitable[None]]


@pytest.fixture
def put() -> Put:
    """Publishes a message to the bank like a program that knows nothing about EventMesh: to the
    destination of its type, or of a deposit if it has no type."""

    async def to(project: Project, attributes: Mapping[str, str], data: bytes) -> None:
        url = project.environment.get("EVENTMESH_BROKER_URL", "")
        name = attributes.get("type", "bank.deposit")
        match urlsplit(url).scheme:
            case "redis":
                async with Redis.from_url(url) as redis:
                    stream = f"{project.prefix}:stream:{name}"
                    await redis.xadd(stream, {**attributes, "data": data})
            case "amqp":
                message = aio_pika.Message(
                    data,
                    headers={f"cloudEvents_{name}": text for name, text in attributes.items()},
                    content_type=attributes.get("datacontenttype"),
                    delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
                )
                async with await aio_pika.connect(url) as connection:
                    channel = await connection.channel()
                    exchange = await channel.get_exchange(project.prefix)
                    await exchange.publish(message, routing_key=name)
            case _:  # only EventMesh itself can write this file
                url = url or f"sqlite:///{project.root}/.eventmesh/broker.db"
                options = TransportOptions(prefix=project.prefix)
                async with open_transport(url, SystemClock(), options) as transport:
                    await publish_or_raise(transport, [Envelope(attributes, data)])

    return to


@pytest.fixture
def wait_until() -> Callable[..., Any]:
    """`wait_until(condition, "what")`: what the condition returns once it is true."""
    return until
