"""The same tests of a mesh on real servers: a test file of a user's, run by pytest with options."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from eventmesh.clock import SystemClock
from eventmesh.testing.servers import Server
from eventmesh.testing.servers.mariadb_server import execute as execute_on_mariadb
from eventmesh.testing.servers.postgres_server import execute as execute_on_postgres
from eventmesh.transports.base import Subscription, TransportOptions
from eventmesh.transports.factory import open_transport
from tests.integration.conftest import Running
from tests.integration.forks import Forks

SERVICE = """
from sqlalchemy import String
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from eventmesh import Command, Event, Retry, Service, Transaction
from eventmesh.runtime.declaring.retry import constant


class Base(DeclarativeBase): ...
class Account(Base):
    __tablename__ = "accounts"
    owner: Mapped[str] = mapped_column(String(50), primary_key=True)
    cents: Mapped[int] = mapped_column(default=0)


class Deposit(Command, name="bank.deposit", version=1, key="owner"):
    owner: str
    cents: int


class Deposited(Event, name="bank.deposited", version=1, key="owner"):
    owner: str
    balance: int


class Broken(Event, name="bank.broken", version=1):
    pass


service = Service("bank", metadata=Base.metadata)
service.publisher(Deposit)
service.publisher(Broken)


@service.subscriber(Deposit)
async def deposit(command: Deposit, tx: Transaction) -> Deposited:
    account = await tx.session.get(Account, command.owner) or Account(owner=command.owner, cents=0)
    tx.session.add(account)
    account.cents += command.cents
    return Deposited(owner=account.owner, balance=account.cents)


@service.subscriber(Broken, retry=Retry(attempts=2, backoff=constant("200ms")))
async def fail(event: Broken) -> None:
    raise RuntimeError("no")
"""

TESTS = """
import json
import os
from pathlib import Path

import pytest

from bank import Account, Broken, Deposit, Deposited, service


async def test_deposits_add_up(mesh):
    @mesh.always
    def nobody_owes(read):
        return all(each.cents >= 0 for each in read(service).query(Account))

    await mesh.start(service, workers=2)
    for cents in (5, 2):
        await mesh.publish(Deposit(owner="ada", cents=cents))
        await mesh.quiet()  # two workers that open one account at once would retry
    assert sorted(each.balance for each in mesh.published(Deposited))[-1] == 7
    async with mesh.session(service) as session:
        assert (await session.get_one(Account, "ada")).cents == 7
    settings = mesh.settings
    database = settings.database_url("bank")
    told = {"broker": settings.broker_url, "prefix": settings.broker_prefix, "database": database}
    Path("told.json").write_text(json.dumps(told))


async def test_what_fails_becomes_a_dead_letter_when_its_retry_is_over(mesh):
    await mesh.start(service)
    await mesh.publish(Broken())
    await mesh.advance("1s")
    assert [letter.attempts for letter in mesh.dead_letters(service)] == [2]


async def test_two_days_pass(mesh):
    await mesh.start(service)
    await mesh.advance("2d")


async def test_what_must_hold_in_the_middle_is_asked(mesh):
    await mesh.start(service)

    @mesh.always
    def nobody_has_money(read):
        return read(service).query(Account).count() == 0

    await mesh.publish(Deposit(owner="ada", cents=1))
    with pytest.raises(AssertionError, match="nobody_has_money must hold always"):
        await mesh.quiet()


@pytest.mark.mesh(seeds=2)
async def test_a_simulation_shows_its_story(mesh):
    @mesh.eventually
    def nobody_is_rich(read):
        return all(each.cents < 100 for each in read(service).query(Account))

    await mesh.start(service)
    await mesh.publish(Deposit(owner="ada", cents=100))


def test_servers_for_what_a_test_starts_itself(mesh_servers):
    assert mesh_servers.new_database() != mesh_servers.new_database()
    assert "://" in mesh_servers.broker_url
"""


_KINDS = {"postgresql": "postgres"}


@dataclass
class Project:
    """A user's project with these tests."""

    folder: Path
    environment: dict[str, str]
    forks: Forks

    def pytest(self, *arguments: str) -> str:
        """What pytest prints."""
        command = ("pytest", "-p", "no:cacheprovider", *arguments)
        begin = partial(self.forks.begin, command, self.folder, self.environment)
        return Running(self.folder, begin).ended().said


@pytest.fixture
def project(tmp_path: Path, forks: Forks) -> Project:
    (tmp_path / "bank.py").write_text(SERVICE)
    (tmp_path / "test_bank.py").write_text(TESTS)
    (tmp_path / "pytest.ini").write_text("[pytest]\npythonpath = .\n")
    kept = {name: each for name, each in os.environ.items() if not name.startswith("EVENTMESH_")}
    return Project(tmp_path, kept, forks)


@pytest.mark.parametrize(
    ("broker", "database"),
    [("sqlite", "sqlite"), ("redis?slots=2", "postgresql"), ("rabbitmq", "mariadb")],
)
async def test_the_same_tests_run_on_servers_and_leave_nothing_there(
    broker: str, database: str, project: Project, request: pytest.FixtureRequest
) -> None:
    broker, _, option = broker.partition("?")
    for name in {broker, database} - {"sqlite"}:
        kind = _KINDS.get(name, name)
        server: Server = request.getfixturevalue(f"{kind}_server")
        options = f"?{option}" if name == broker and option else ""
        project.environment[f"EVENTMESH_TEST_{kind.upper()}_URL"] = server.url + options
    printed = project.pytest("-rs", f"--mesh-broker={broker}", f"--mesh-database={database}")
    assert "1 failed, 4 passed, 1 skipped" in printed, printed
    assert "nobody_is_rich must hold in the end" in printed
    assert "what happened in the mesh" in printed
    assert "├↺ deposit #1" in printed
    assert "needs virtual time: the test lets 2d pass" in printed
    told = json.loads((project.folder / "told.json").read_text())
    assert broker == "sqlite" or not await is_on_broker(told["broker"], told["prefix"])
    assert database == "sqlite" or not await is_there(told["database"])


async def is_on_broker(url: str, prefix: str) -> bool:
    subscription = Subscription("bank.deposit", ("bank.deposit",))
    options = TransportOptions(prefix=prefix, create_missing=False)
    async with open_transport(url, SystemClock(), options) as transport:
        return (await transport.stats(subscription)).declared


async def is_there(url: str) -> bool:
    """Whether the server has this database."""
    server, _, name = url.rpartition("/")
    if url.startswith("postgresql"):
        query = f"SELECT count(*) FROM pg_database WHERE datname = '{name}'"  # noqa: S608
        return await execute_on_postgres(f"{server}/postgres", query) != 0
    return await execute_on_mariadb(f"{server}/", f"SHOW DATABASES LIKE '{name}'") is not None


def test_without_options_time_is_virtual(project: Project) -> None:
    printed = project.pytest("-k", "not simulation")
    assert "5 passed, 1 deselected" in printed, printed


def test_a_server_that_was_asked_for_and_is_missing_fails(project: Project) -> None:
    project.environment |= {"PATH": "/nowhere", "DOCKER_HOST": "unix:///nowhere"}
    printed = project.pytest("-k", "add_up", "--mesh-broker=redis")
    assert "no redis for tests" in printed, printed
    assert "1 error" in printed


def test_what_is_not_a_broker_is_named(project: Project) -> None:
    printed = project.pytest("-k", "add_up", "--mesh-broker=kafka")
    assert "There is no broker 'kafka' for a mesh: write memory, sqlite, redis, rabbitmq" in printed


MARKED = """
import pytest

from bank import Broken, service


@pytest.mark.mesh(broker="sqlite")
async def test_a_marker_of_servers_alone_allows_dead_letters(mesh):
    await mesh.start(service)
    await mesh.publish(Broken())
    await mesh.advance("1s")
    assert len(mesh.dead_letters()) == 1


@pytest.mark.mesh(broker="sqlite")
async def test_what_only_a_virtual_process_can_do(mesh):
    await mesh.start(service)
    assert mesh.settings.broker_url.startswith("sqlite:")
    await mesh.kill(service)


async def test_without_a_marker(mesh):
    assert mesh.settings.broker_url == "memory://"
"""


def test_a_marker_asks_for_the_servers_of_one_test(project: Project) -> None:
    (project.folder / "test_marked.py").write_text(MARKED)
    printed = project.pytest("-rs", "test_marked.py")
    assert "2 passed, 1 skipped" in printed, printed
    assert "needs virtual time: the test kills a worker of bank" in printed
