"""The commands as a user runs them: help, usage, schemas, migrations, development, and how workers
stop."""

from __future__ import annotations

import os
import re
import signal
import sqlite3
import subprocess
import sys
import tomllib
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest
import typer

from eventmesh.cli.main import app
from eventmesh.testing.servers import Server
from tests.integration.conftest import BANK, TIMEOUT_SECONDS

if TYPE_CHECKING:
    from tests.integration.conftest import Project, Put, Running

Attributes = Callable[..., dict[str, str]]

ROOT = Path(__file__).parents[2]

SLOW = b'{"owner": "slow", "cents": 100}'
GOOD = b'{"owner": "ada", "cents": 1250}'


def commands() -> Iterator[list[str]]:
    """Every command and command group, as a user types it."""

    def walk(command: Any, path: list[str]) -> Iterator[list[str]]:
        yield path
        for name, inner in getattr(command, "commands", {}).items():
            yield from walk(inner, [*path, name])

    return walk(typer.main.get_command(app), [])


def balances(bank: Project) -> dict[str, int]:
    connection = sqlite3.connect(bank.root / ".eventmesh/bank.db")
    try:
        return dict(connection.execute("SELECT owner, cents FROM accounts"))
    finally:
        connection.close()


def alive(pids: Sequence[int]) -> list[int]:
    return [pid for pid in pids if Path(f"/proc/{pid}").exists()]


# Help and usage


def test_every_command_has_help(project: Project) -> None:
    paths = list(commands())
    assert {"worker", "dev", "schema check", "db upgrade", "dlq replay"} <= {
        " ".join(path) for path in paths
    }
    for path, ended in zip(
        paths, project.run_all(*([*path, "--help"] for path in paths)), strict=True
    ):
        ended.succeeds(" ".join(["Usage: eventmesh", *path]))
        assert ended.err == ""
        assert not re.search(r"<(bool|str|int|path|list)", ended.out), path
    for group in ([], ["schema"], ["saga"], ["outbox"]):
        listed = project.run(*group, "--help").succeeds().partition("Commands:")[2]
        assert listed
        assert "..." not in listed, "a sentence is cut off"
    assert not (project.root / ".eventmesh").exists()


SMALLEST = "import typer; app = typer.Typer(); app.command()(lambda: None); app()"
"""A program that uses the same library and does nothing."""


def cpu_seconds(*arguments: str) -> float:
    """CPU time of a Python process. It depends less than wall time on what else the machine
    does."""
    null = (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)
    pid = os.posix_spawn(
        sys.executable, [sys.executable, *arguments], os.environ, file_actions=[null]
    )
    _, status, usage = os.wait4(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    return usage.ru_utime + usage.ru_stime


def test_help_takes_less_than_twice_the_cpu_time_of_a_program_that_does_nothing() -> None:
    runs = range(5)
    smallest = min(cpu_seconds("-c", SMALLEST, "--help") for _ in runs)
    assert min(cpu_seconds("-m", "eventmesh", "--help") for _ in runs) < 2 * smallest


WRONG = {
    "worker": "SERVICE",
    "worker bank --nonsense": "--nonsense",
    "worker bank --workers 0": "--workers",
    "worker bank --workers many": "--workers",
    "nonsense": "nonsense",
    "--nonsense": "--nonsense",
    "dlq list": "SERVICE",
    "dlq nonsense": "nonsense",
    "dlq list bank --limit 0": "--limit",
    "dlq show bank": "ID",
    "db upgrade": "SERVICE",
    "schema check --nonsense": "--nonsense",
}


def test_an_invalid_command_line_shows_its_usage_and_names_the_mistake(bank: Project) -> None:
    ends = bank.run_all(*(line.split() for line in WRONG))
    for (line, word), ended in zip(WRONG.items(), ends, strict=True):
        assert ended.code == 2, line
        assert "Usage: eventmesh" in ended.err, line
        assert word in ended.err, line
        assert "Traceback" not in ended.err, line


def test_a_group_without_a_command_shows_its_help(project: Project) -> None:
    groups: list[list[str]] = [[], ["dlq"], ["schema"], ["db"]]
    for group, ended in zip(groups, project.run_all(*groups), strict=True):
        assert ended.code == 2
        assert " ".join(["Usage: eventmesh", *group]) in ended.said


def test_demo_is_a_command_only_where_the_demo_shop_is(bank: Project) -> None:
    assert "demo" not in bank.run("--help").succeeds()
    ended = bank.run("demo")
    assert (ended.code, "No such command 'demo'" in ended.err) == (2, True)
    root = Path(__file__).parents[2]
    for line, code, words in (
        ("--help", 0, " demo "),
        ("demo --purchases 0", 2, "--purchases"),
        ("demo --attach --kill", 2, "--attach cannot"),
    ):
        done = subprocess.run(  # noqa: S603
            [sys.executable, "-m", "eventmesh", *line.split()],
            cwd=root,
            env=bank.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=TIMEOUT_SECONDS,
        )
        assert done.returncode == code, done.stderr
        assert words in done.stdout + done.stderr


def test_version_prints_the_installed_version(project: Project) -> None:
    assert project.run("--version").succeeds() == f"eventmesh {version('eventmesh')}\n"


@pytest.mark.parametrize(
    ("variables", "is_coloured"),
    [({}, True), ({"NO_COLOR": "1"}, False)],
    ids=["without", "with NO_COLOR"],
)
def test_an_error_is_coloured_on_a_terminal_unless_no_color_is_set(
    project: Project, variables: dict[str, str], is_coloured: bool
) -> None:
    ours, theirs = os.openpty()
    try:
        command = [sys.executable, "-m", "eventmesh", "worker", "bank"]
        environment = project.environment | variables
        subprocess.run(command, cwd=project.root, env=environment, stderr=theirs, check=False)  # noqa: S603
        said = os.read(ours, 4096).decode()
    finally:
        os.close(ours)
        os.close(theirs)
    assert "Error: " in said
    assert ("\x1b[" in said) == is_coloured


def test_output_to_a_full_disk_is_an_error_without_a_traceback(project: Project) -> None:
    command = [sys.executable, "-m", "eventmesh", "--version"]
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(  # noqa: S603
            command, stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert (ended.returncode, ended.stderr) == (
        1,
        "Error: A file or the output could not be written: No space left on device.\n",
    )


def test_a_shell_completes_commands_and_options(project: Project) -> None:
    script = project.start_program("bash", "-c", "eventmesh --show-completion; exit $?").ended()
    script.succeeds("complete -o default -F _eventmesh_completion eventmesh")
    for line, words in (
        ("eventmesh wor", {"worker"}),
        ("eventmesh dlq re", {"replay"}),
        ("eventmesh worker --no", {"--no-supervise"}),
    ):
        completed = project.start_program(
            *(sys.executable, "-X", "importtime", "-m", "eventmesh"),
            _EVENTMESH_COMPLETE="complete_bash",
            COMP_WORDS=line,
            COMP_CWORD=str(len(line.split()) - 1),
        ).ended()
        assert set(completed.succeeds().split()) == words
        assert "sqlalchemy" not in completed.err  # completion must be fast: somebody is typing
        assert "eventmesh.runtime" not in completed.err


# Schemas


def test_schemas_are_frozen_and_checked(bank: Project) -> None:
    bank.run("schema", "check").fails(4, "bank.deposit v1, bank.deposited v1", "schema freeze")
    bank.run("schema", "freeze").succeeds("frozen bank.deposit v1 in schemas/bank/deposit/v1.json")
    assert bank.run("schema", "freeze").succeeds() == ""  # nothing left to freeze
    bank.run("schema", "check").succeeds("bank.deposit v1", "bank.deposited v1", "as frozen")
    bank.worker().drain()


# Migrations


@pytest.fixture
async def absent_url(postgres_server: Server) -> AsyncIterator[str]:
    """The URL of a PostgreSQL database that does not exist yet."""
    name = f"absent_{uuid.uuid4().hex}"
    dsn = postgres_server.url.replace("+asyncpg", "")
    yield f"{dsn.rpartition('/')[0]}/{name}"
    admin = await asyncpg.connect(dsn)
    try:
        await admin.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
    finally:
        await admin.close()


def test_db_upgrade_creates_and_migrates_a_missing_database(bank: Project, absent_url: str) -> None:
    bank.environment["EVENTMESH_BANK_DATABASE_URL"] = absent_url
    assert bank.run("db", "upgrade", "--create", "bank").succeeds() == "bank: upgraded to 0010\n"
    assert bank.run("db", "upgrade", "--create", "bank").succeeds() == "bank: is at 0010\n"


async def test_a_service_on_postgresql_runs_after_db_upgrade(
    bank: Project, postgres_url: str, attributes: Attributes, put: Put
) -> None:
    bank.environment["EVENTMESH_BANK_DATABASE_URL"] = postgres_url.replace("+asyncpg", "")
    assert bank.run("db", "upgrade", "bank").succeeds() == "bank: upgraded to 0010\n"
    assert bank.run("db", "upgrade", "bank").succeeds() == "bank: is at 0010\n"
    worker = bank.worker()
    await put(bank, attributes(), GOOD)
    worker.until_prints("ada has 12.50")
    worker.drain()


def test_db_upgrade_is_optional_on_sqlite(bank: Project) -> None:
    bank.worker().drain()
    assert bank.run("db", "upgrade", "bank").succeeds() == "bank: is at 0010\n"


async def test_a_missing_column_is_reported_at_start_up(
    bank: Project, attributes: Attributes, put: Put
) -> None:
    bank.worker().drain()
    bank.change_service(
        "    cents: Mapped[int] = mapped_column(default=0)\n",
        "    cents: Mapped[int] = mapped_column(default=0)\n    iban: Mapped[str | None]\n",
    )
    said = ("column accounts.iban", "add the columns by a migration of the service's own")
    bank.run("worker", "bank").fails(4, *said)
    upgrade = bank.run("db", "upgrade", "bank")
    upgrade.fails(4, *said)
    assert upgrade.out == "bank: is at 0010\n"

    with sqlite3.connect(bank.root / ".eventmesh/bank.db") as connection:
        connection.execute("ALTER TABLE accounts ADD COLUMN iban VARCHAR")
    connection.close()
    assert bank.run("db", "upgrade", "bank").succeeds() == "bank: is at 0010\n"
    worker = bank.worker()
    await put(bank, attributes(), GOOD)
    worker.until_prints("ada has 12.50")
    worker.drain()


# Development


async def test_dev_runs_all_services_in_one_process(
    bank: Project, attributes: Attributes, put: Put
) -> None:
    bank.service('from eventmesh import Service\n\nservice = Service("till")\n', name="till")
    running = bank.start("dev", "--no-reload")
    running.until_says("worker is ready")
    assert running.lines()[0]["services"] == ["bank", "till"]
    assert running.children() == []
    await put(bank, attributes(), GOOD)
    running.until_prints("ada has 12.50")
    running.drain()


def is_watched(folder: Path, pid: int) -> bool:
    """Whether this process is told by inotify of changes in the folder."""
    found = []
    for descriptor in Path(f"/proc/{pid}/fdinfo").iterdir():
        with suppress(OSError):  # it was closed meanwhile
            found.append(descriptor.read_text())
    return f"ino:{folder.stat().st_ino:x} " in "".join(found)


def test_dev_restarts_when_code_changes(bank: Project, wait_until: Callable[..., Any]) -> None:
    running = bank.start("dev")
    running.until_says("worker is ready")
    folder = bank.root / "services/bank"
    # A change made before goes unnoticed.
    wait_until(lambda: is_watched(folder, running.process.pid), "it to watch the service")
    changed = bank.write("services/bank/service.new", BANK)
    changed.rename(folder / "service.py")  # one change, and not two that are seen one by one
    running.until_says("worker is ready", 2)
    running.tell_all(signal.SIGINT)
    ended = running.ended()
    assert ended.code == 0, ended.said
    assert running.events().count("worker stopped") == 2
    assert "Traceback" not in ended.err


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGKILL])
def test_the_worker_of_dev_does_not_outlive_it(
    bank: Project, number: signal.Signals, wait_until: Callable[..., Any]
) -> None:
    """Its terminal was closed, or it was killed."""
    command = (sys.executable, "-m", "eventmesh", "dev")
    ours = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # `nohup` may have started the tests
    try:
        running = bank.start_program(*command)
    finally:
        signal.signal(signal.SIGHUP, ours)
    running.until_says("worker is ready")
    children = running.children()
    running.tell(number)
    code = running.process.wait(TIMEOUT_SECONDS)
    assert code == (0 if number == signal.SIGHUP else -signal.SIGKILL)
    wait_until(lambda: not alive(children), "the worker to end")
    running.until_says("worker stopped")


def test_dev_names_a_misspelt_variable_once_a_start(bank: Project) -> None:
    bank.environment["EVENTMESH_BROKER_PREFFIX"] = "x"
    running = bank.start("dev")
    running.until_says("worker is ready")
    assert running.events().count("unknown environment variable ignored") == 1
    running.drain()


# How a worker stops


async def until_depositing(
    bank: Project, worker: Running, put: Put, attributes: dict[str, str]
) -> None:
    """Wait until the worker is in the middle of a deposit, which lasts until the file `go`
    exists."""
    await put(bank, attributes, SLOW)
    worker.until_says("depositing")


ALONE = ("--no-supervise",)
SUPERVISED = ("--workers", "1")


@pytest.mark.parametrize(
    ("number", "options"),
    [(signal.SIGTERM, ALONE), (signal.SIGINT, ALONE)],
)
async def test_the_first_signal_lets_a_handler_finish(
    bank: Project,
    number: signal.Signals,
    options: tuple[str, ...],
    attributes: Attributes,
    put: Put,
) -> None:
    worker = bank.worker(*options)
    await until_depositing(bank, worker, put, attributes())
    worker.tell(number)
    worker.until_says("worker draining")
    assert worker.process.poll() is None
    bank.write("go", "")
    ended = worker.ended()
    assert ended.code == 0, ended.said
    assert worker.events()[-1] == "worker stopped"
    assert "Error" not in ended.err
    assert balances(bank) == {"slow": 100}
    # The event that the handler returned is kept too: handled before the end, or by the next
    # worker.
    if "slow has 1.00" not in ended.out:
        worker = bank.worker()
        worker.until_prints("slow has 1.00")
        worker.drain()


@pytest.mark.parametrize(
    ("second", "options"),
    [(signal.SIGTERM, ALONE), (signal.SIGINT, ALONE), (signal.SIGINT, SUPERVISED)],
)
async def test_the_second_signal_aborts_the_drain_and_loses_nothing(
    bank: Project,
    second: signal.Signals,
    options: tuple[str, ...],
    attributes: Attributes,
    put: Put,
) -> None:
    worker = bank.worker(*options)
    await until_depositing(bank, worker, put, attributes())
    worker.tell(signal.SIGTERM)
    worker.until_says("worker draining")
    worker.tell(second)
    ended = worker.ended()
    assert ended.code == 1, ended.said
    assert ended.err.splitlines()[-1].startswith("Error: The worker received a second stop signal")
    assert "Traceback" not in ended.err
    assert balances(bank) == {}
    finish_with_another_worker(bank)


@pytest.mark.parametrize("options", [ALONE, SUPERVISED])
async def test_a_drain_that_exceeds_its_timeout_ends_with_an_error_and_loses_nothing(
    bank: Project, options: tuple[str, ...], attributes: Attributes, put: Put
) -> None:
    # Its only subscription is the one that is late: on a slow machine, others may be late too.
    bank.change_service("@service.subscriber(Deposited)\n", "")
    worker = bank.worker(*options, EVENTMESH_DRAIN_TIMEOUT="200ms")
    await until_depositing(bank, worker, put, attributes())
    worker.tell(signal.SIGTERM)
    ended = worker.ended()
    assert ended.code == 5, ended.said
    error = ended.err.splitlines()[-1]
    assert error.startswith("Error: 1 subscription(s) were still handling messages 0.2 s after")
    assert "EVENTMESH_DRAIN_TIMEOUT" in error
    assert "Traceback" not in ended.err
    assert balances(bank) == {}
    bank.service()
    finish_with_another_worker(bank)


def finish_with_another_worker(bank: Project) -> None:
    """What one worker did not finish is delivered to the next at once, and takes effect once."""
    bank.write("go", "")
    worker = bank.worker()
    worker.until_prints("slow has 1.00")
    worker.drain()
    assert balances(bank) == {"slow": 100}


@pytest.mark.parametrize(
    ("number", "whom"), [(signal.SIGTERM, "one"), (signal.SIGTERM, "all"), (signal.SIGINT, "all")]
)
async def test_two_workers_drain_and_stop_together(
    bank: Project, number: signal.Signals, whom: str, attributes: Attributes, put: Put
) -> None:
    parent = bank.worker("--workers", "2", processes=2)
    children = parent.children()
    assert len(children) == 2
    await until_depositing(bank, parent, put, attributes())
    # A terminal sends Ctrl-C to the whole group, as `timeout` does with SIGTERM.
    (parent.tell if whom == "one" else parent.tell_all)(number)
    parent.until_says("worker draining", 2)
    bank.write("go", "")
    ended = parent.ended()
    assert ended.code == 0, ended.said
    assert parent.events().count("worker stopped") == 2
    assert balances(bank) == {"slow": 100}
    assert not alive(children)


async def test_a_killed_worker_is_replaced_and_the_exit_code_reports_it(
    bank: Project, attributes: Attributes, put: Put
) -> None:
    parent = bank.worker("--workers", "2", processes=2)
    first, other = parent.children()
    os.kill(first, signal.SIGKILL)
    parent.until_says("worker is ready", 3)
    [line] = [line for line in parent.lines() if line["event"] == "worker exited, restarting"]
    assert (line["pid"], line["exit_code"]) == (first, -signal.SIGKILL)
    assert len(parent.children()) == 2
    assert other in parent.children()
    await put(bank, attributes(), GOOD)
    parent.until_prints("ada has 12.50")
    children = parent.children()
    parent.tell(signal.SIGTERM)
    ended = parent.ended()
    assert ended.code == 1, ended.said  # a worker was lost, although it was replaced
    assert parent.events().count("worker stopped") == 2
    assert not alive(children)


def test_a_worker_that_keeps_dying_is_restarted_again_and_again(bank: Project) -> None:
    bank.change_service("service = Service(", EXITS_WHEN_IT_RUNS + "service = Service(")
    parent = bank.start("worker", "bank", "--workers", "2")
    parent.until_says("worker exited, restarting", 6)
    parent.tell(signal.SIGTERM)
    ended = parent.ended()
    assert ended.code == 1, ended.said


EXITS_WHEN_IT_RUNS = """
import os
from eventmesh.runtime.consuming.worker import Worker

async def dying(self, *_):
    os._exit(7)

Worker.run = dying
"""


WITHOUT_AND_WITH_A_SUPERVISOR = pytest.mark.parametrize(
    ("options", "processes"), [(ALONE, 1), (("--workers", "2"), 2)]
)


def started(bank: Project, options: tuple[str, ...], processes: int) -> Running:
    """A worker of the bank. Without a supervisor it is a program of its own, because it ends by
    starting the program again."""
    command = ("worker", "bank", *options)
    if options == ALONE:
        worker = bank.start_program(sys.executable, "-m", "eventmesh", *command)
    else:
        worker = bank.start(*command)
    worker.until_says("worker is ready", processes)
    return worker


@WITHOUT_AND_WITH_A_SUPERVISOR
async def test_sighup_reloads_the_code(
    bank: Project, options: tuple[str, ...], processes: int, attributes: Attributes, put: Put
) -> None:
    worker = started(bank, options, processes)
    pid = worker.process.pid
    bank.change_service(" has ", " now owns ")
    worker.tell(signal.SIGHUP)
    worker.until_says("worker is ready", 2 * processes)
    await put(bank, attributes(), GOOD)
    worker.until_prints("ada now owns 12.50")
    assert worker.process.pid == pid
    assert worker.drain().code == 0
    assert worker.events().count("worker stopped") == 2 * processes


@WITHOUT_AND_WITH_A_SUPERVISOR
async def test_sighup_keeps_the_old_workers_if_the_new_code_does_not_start(
    bank: Project, options: tuple[str, ...], processes: int, attributes: Attributes, put: Put
) -> None:
    worker = started(bank, options, processes)
    bank.change_service("async def tell(", "async def tell((")
    worker.tell(signal.SIGHUP)
    worker.until_says("reload skipped, new code does not start")
    await put(bank, attributes(), GOOD)
    worker.until_prints("ada has 12.50")
    assert "Error: " in worker.err
    worker.drain()


def test_if_a_worker_cannot_start_the_command_ends_with_the_reason(bank: Project) -> None:
    bank.run("schema", "freeze").succeeds()
    bank.change_service("    cents: int\n", "    pence: int\n")
    worker = ("worker", "bank", "--workers", "2")
    drifted = bank.start(*worker)
    unreachable = bank.start(*worker, EVENTMESH_BROKER_URL="redis://127.0.0.1:1")
    wrong = bank.start(*worker, EVENTMESH_PREFETCH="0")
    unknown = bank.start("worker", "bnak", *worker[2:])
    drifted.ended().fails(4, "bank.deposit v1")
    unreachable.ended().fails(3, "Redis at redis://127.0.0.1:1 does not answer")
    wrong.ended().fails(2, "EVENTMESH_PREFETCH")
    unknown.ended().fails(2, "Known are: bank")


def test_the_supervisor_itself_loads_no_service(bank: Project) -> None:
    parent = bank.start_program("eventmesh", "worker", "bank")
    parent.until_says("worker is ready")
    [child] = parent.children()
    assert "/sqlalchemy/" in Path(f"/proc/{child}/maps").read_text()
    assert "/sqlalchemy/" not in Path(f"/proc/{parent.process.pid}/maps").read_text()
    parent.drain()


@pytest.mark.parametrize("options", [ALONE, SUPERVISED])
def test_closing_the_terminal_stops_the_worker(bank: Project, options: tuple[str, ...]) -> None:
    ours, theirs = os.openpty()
    try:
        worker = subprocess.Popen(  # noqa: S603
            [sys.executable, "-m", "eventmesh", "worker", "bank", *options],
            cwd=bank.root,
            env=bank.environment,
            stdin=theirs,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert worker.stderr is not None
        with worker, worker.stderr as said:
            assert any("worker is ready" in line for line in said)
            worker.send_signal(signal.SIGHUP)
            assert any("worker stopped" in line for line in said)
            assert worker.wait(TIMEOUT_SECONDS) == 0
    finally:
        os.close(ours)
        os.close(theirs)


def test_the_health_ports_of_all_workers_must_exist(bank: Project) -> None:
    bank.run("worker", "bank", "--workers", "2", "--health-port", "65535").fails(
        2, "2 workers need the ports 65535 to 65536, and the last port is 65535"
    )


def test_several_workers_require_the_supervisor(bank: Project) -> None:
    bank.run("worker", "bank", "--workers", "2", "--no-supervise").fails(2, "--no-supervise")


def test_a_worker_that_is_stopped_during_start_up_exits_with_success(
    bank: Project, wait_until: Callable[..., Any]
) -> None:
    bank.change_service(
        "service = Service(",
        "Path('starting').touch(); import time; time.sleep(60)\nservice = Service(",
    )
    parent = bank.start("worker", "bank", "--workers", "1")
    wait_until((bank.root / "starting").exists, "the start of a worker")
    parent.drain()


def test_process_1_ends_by_a_sigterm_that_comes_before_it_handles_signals() -> None:
    """The kernel ignores it otherwise. Python's default here would be to die of it, by -15."""
    told_early = (
        "import os, signal, sys, types\n"
        "os.getpid = lambda: 1\n"
        "sys.modules['eventmesh.cli.main'] = loaded = types.ModuleType('main')\n"
        "loaded.main = lambda: signal.raise_signal(signal.SIGTERM)\n"
        "from eventmesh.__main__ import main\n"
        "main()"
    )
    ended = subprocess.run([sys.executable, "-c", told_early], check=False, timeout=TIMEOUT_SECONDS)  # noqa: S603  # our own text
    assert ended.returncode == 128 + signal.SIGTERM
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["scripts"] == {"eventmesh": "eventmesh.__main__:main"}
