"""A command in a forked process behaves as in a newly started one."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Sequence

import pytest

from tests.integration.conftest import Ended, Project, Put

BROKEN = "raise RuntimeError('not a service')\n"


@pytest.mark.parametrize(
    "command",
    [
        ("outbox", "stats", "bank"),
        ("schema", "check"),
        ("asyncapi", "bank"),
        ("db", "upgrade", "bank"),
        ("schema", "check", "--format", "none"),
        ("outbox",),
    ],
    ids=" ".join,
)
def test_a_forked_command_prints_the_same_output(bank: Project, command: Sequence[str]) -> None:
    bank.run("db", "upgrade", "bank").succeeds()
    bank.run("schema", "freeze").succeeds()
    assert shown(bank.run(*command)) == shown(run_unforked(bank, *command))


def test_a_forked_command_prints_the_same_error(bank: Project) -> None:
    bank.service(BROKEN)
    forked, started = bank.run("schema", "check"), run_unforked(bank, "schema", "check")
    assert forked.code == started.code != 0
    assert shown(forked) == shown(started)


async def test_a_forked_worker_handles_messages_and_stops_in_the_same_way(
    bank: Project, attributes: Callable[..., dict[str, str]], put: Put
) -> None:
    command = ("worker", "--no-supervise", "bank")
    forked = bank.start(*command)
    forked.until_says("worker is ready")
    await put(bank, attributes(), b'{"owner": "ada", "cents": 100}')
    forked.until_prints("ada has 1.00")
    assert forked.process.poll() is None
    forked.drain()
    started = bank.start_program(sys.executable, "-m", "eventmesh", *command)
    started.until_says("worker is ready")
    await put(bank, attributes(), b'{"owner": "ada", "cents": 100}')
    started.until_prints("ada has 2.00")
    started.drain()
    assert forked.events() == started.events()


def test_the_exit_code_of_a_killed_worker_is_its_signal(bank: Project) -> None:
    worker = bank.worker()
    worker.tell(signal.SIGKILL)
    assert worker.ended().code == -signal.SIGKILL


def test_each_forked_command_has_its_own_environment_and_folder(
    projects: Callable[[], Project],
) -> None:
    first, second = projects(), projects()
    first.service()
    for file in ("a.db", "b.db"):
        nowhere = first.run(
            "outbox", "stats", "bank", EVENTMESH_BANK_DATABASE_URL=f"sqlite:///{file}"
        )
        assert file in nowhere.fails(3)
    first.run("schema", "freeze").succeeds()
    assert (first.root / "schemas").exists()
    assert second.run("schema", "freeze").code != 0
    assert not (second.root / "schemas").exists()


def run_unforked(bank: Project, *command: str) -> Ended:
    """Run the command in a newly started process."""
    return bank.start_program(sys.executable, "-m", "eventmesh", *command).ended()


def shown(ended: Ended) -> tuple[int, str, str]:
    return ended.code, ended.out, ended.err
