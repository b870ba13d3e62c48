"""Easy mistakes that once led to a traceback, or to no message at all."""

from __future__ import annotations

import signal
import sys
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.integration.conftest import Project

Put = Callable[[dict[str, str], bytes], Awaitable[None]]
Attributes = Callable[[], dict[str, str]]

PASSWORD = "sesame"  # noqa: S105  # not a secret: it must not be printed


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("sqlite:///notdb", 3),
        ("sqlite:///file/bank.db", 3),
        (f"postgresql://ada:{PASSWORD}@127.0.0.1:high/x", 2),
        (f"postgresql://ada:{PASSWORD}@127.0.0.1:99999/x", 2),
        ("postgresql://ada@127.0.0.1:1/x?nonsense=1", 2),
        ("postgresql://ada@127.0.0.1:1/x?ssl=nonsense", 2),
        (f"postgresql://ada@127.0.0.1:1/x?password={PASSWORD}", 3),
    ],
)
def test_an_unusable_database_url_is_an_error_without_the_password(
    bank: Project, url: str, code: int
) -> None:
    bank.write("notdb", "no database" * 100)
    bank.write("file", "")
    ended = bank.run("worker", "bank", EVENTMESH_BANK_DATABASE_URL=url)
    ended.fails(code, "EVENTMESH_BANK_DATABASE_URL")
    assert PASSWORD not in ended.said


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("redis://[bad", 2),
        ("amqp://", 2),
        ("redis://127.0.0.1:1?nonsense=1", 2),
        (f"amqp://u:pa/{PASSWORD}@127.0.0.1:1/", 2),
        (f"amqp://u:{PASSWORD}@127.0.0.1:1/", 3),
        (f"redis://127.0.0.1:1?password={PASSWORD}", 3),
    ],
)
def test_an_unusable_broker_url_is_an_error_without_the_password(
    bank: Project, url: str, code: int
) -> None:
    ended = bank.run("worker", "bank", EVENTMESH_BROKER_URL=url)
    ended.fails(code)
    assert PASSWORD not in ended.said


def test_subscriber_without_parentheses_is_a_usage_error(project: Project) -> None:
    project.service(
        'from eventmesh import Event, Service\nservice = Service("bank")\n'
        'class Paid(Event, name="bank.paid", version=1): ...\n'
        "@service.subscriber\nasync def handle(event: Paid): ...\n"
    )
    project.run("worker", "bank").fails(2, "@service.subscriber()")


@pytest.mark.parametrize(
    "text", ['raise ValueError("one\\ntwo")', "import sys; sys.exit(3)", "raise SystemExit"]
)
def test_a_module_that_fails_or_exits_on_import_is_a_usage_error(
    project: Project, text: str
) -> None:
    project.service(text + "\n")
    project.run("worker", "bank").fails(2, "'bank'")


@pytest.mark.parametrize("content", [b"tool = 3\n", b"\xff\n"])
def test_an_unreadable_pyproject_is_a_usage_error(bank: Project, content: bytes) -> None:
    bank.write("pyproject.toml", content)
    bank.run("worker", "bank").fails(2, "pyproject.toml")


def test_the_error_for_a_damaged_lock_file_says_how_to_restore_it(bank: Project) -> None:
    bank.run("schema", "freeze").succeeds()
    bank.write("schemas/bank/deposit/v1.json", "{")
    bank.run("schema", "check").fails(4, "from version control")


@pytest.mark.parametrize("option", ["--reload", "--no-reload"])
def test_dev_in_a_folder_without_services_is_a_usage_error(project: Project, option: str) -> None:
    project.run("dev", option).fails(2, "No service was found")


async def test_lines_of_a_handlers_own_logger_are_printed_whatever_its_name(
    bank: Project, put: Put, attributes: Attributes
) -> None:
    bank.change_service("log = structlog.get_logger()", 'log = structlog.get_logger("tills")')
    worker = bank.worker()
    await put(bank, attributes(), b'{"owner": "ada", "cents": 1250}')
    worker.until_prints("ada has 12.50")
    assert "depositing" in worker.events()


def test_workers_do_not_outlive_their_parent(bank: Project, wait_until: Callable[..., Any]) -> None:
    command = (sys.executable, "-m", "eventmesh", "worker", "bank", "--workers", "2")
    worker = bank.start_program(*command)
    worker.until_says("worker is ready", 2)
    worker.tell(signal.SIGKILL)
    worker.process.wait()
    wait_until(lambda: not bank.processes(), "the children to end")
