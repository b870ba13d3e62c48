"""README.md: its code runs as it is shown, its commands work, and its links have targets.

Every code block is run. A block that the tests cannot run fails, so nothing can be added untested.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from eventmesh.errors import DrainTimeout, Drift, EventMeshError, Unreachable, UsageError
from eventmesh.testing.servers import Server
from tests.support.pages import BLOCK, ROOT, Reader, steps

if TYPE_CHECKING:
    from tests.integration.conftest import Project

README = (ROOT / "README.md").read_text(encoding="utf-8")

SPAN = re.compile(r"`([^`\n]+)`")
PROSE = BLOCK.sub("", README)

MOST_LINES = 30
"""The maximum length of the first example, which is a complete service."""


def blocks(language: str) -> list[str]:
    return [text for name, text in BLOCK.findall(README) if name == language]


SERVICE, SEND = blocks("python")
TWO_COMMANDS, RUN_IT, ON_SERVERS = blocks("console")


@pytest.fixture
def reader(project: Project) -> Reader:
    """A reader who has written the README's two files."""
    for path, text in (("services/bank/service.py", SERVICE), ("send.py", SEND)):
        assert f"`{path}`" in PROSE  # its first line says where each file belongs
        project.write(path, text)
    return Reader(project)


def test_the_example_service_is_short() -> None:
    assert len([line for line in SERVICE.splitlines() if line.strip()]) <= MOST_LINES


def test_every_block_is_run_by_these_tests() -> None:
    assert {name for name, _ in BLOCK.findall(README)} == {"python", "console"}
    assert README.count("```") == 2 * len(BLOCK.findall(README))


def test_the_first_two_commands_work(reader: Reader) -> None:
    assert [step.command for step in steps(TWO_COMMANDS)] == ["make demo", "make test"]
    reader.follow(TWO_COMMANDS)
    for span in SPAN.findall(PROSE):
        if span.startswith("make "):
            reader.type(span)


def test_the_example_service_prints_what_is_shown(reader: Reader) -> None:
    assert [step.output for step in steps(RUN_IT)][-1]  # the README shows some output
    reader.forks = False
    reader.follow(RUN_IT)
    for worker in reader.workers:
        worker.output.drain()


def test_the_example_service_runs_on_servers(
    reader: Reader, rabbitmq_server: Server, postgres_url: str
) -> None:
    reader.urls = {
        "amqp": rabbitmq_server.url,
        "postgresql": postgres_url.replace("+asyncpg", ""),
    }
    reader.follow(ON_SERVERS)
    reader.type("python send.py")
    [workers] = reader.workers
    workers.output.until_prints("ada has 12.50")
    workers.output.drain()


def test_the_commands_in_the_text_work(reader: Reader) -> None:
    commands = [span for span in SPAN.findall(PROSE) if span.startswith("eventmesh ")]
    # Those that stand for many, such as `eventmesh why ID`, are typed on pages of their own.
    commands = [command for command in commands if not re.search(r"\b[A-Z]{2,}\b", command)]
    assert commands
    reader.type("python send.py")  # messages for the commands to show
    for command in commands:
        if command == "eventmesh status":  # from here on, all ask for what a worker has made
            reader.type("eventmesh worker bank &")
        reader.type(command)
    for worker in reader.workers:
        worker.output.drain()


def test_the_exit_codes_are_those_of_the_commands() -> None:
    codes = {
        UsageError: "usage",
        Unreachable: "a server cannot be reached",
        Drift: "schemas or migrations differ",
        DrainTimeout: "the drain timed out",
        EventMeshError: "crashed, a child died, or the doctor found something",
    }
    for error, meaning in codes.items():
        assert f"{error.exit_code} {meaning}" in PROSE


def test_the_compose_file_is_valid() -> None:
    assert any(span.startswith("docker compose up ") for span in SPAN.findall(PROSE))
    if shutil.which("docker") is None:
        pytest.skip("docker is not installed")
    command = ["docker", "compose", "config", "--quiet"]
    version = subprocess.run(  # noqa: S603
        [*command[:2], "version"], capture_output=True, check=False, timeout=60
    )
    if version.returncode:
        pytest.skip("docker has no compose")
    done = subprocess.run(  # noqa: S603
        command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
